"""Outputs of hfprep 0.1.0, complete and interrupted, are continued by this version and say the same in the end."""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hfprep
from tests.make_outputs_0_1_0 import FIXTURES, OPTIONS, content_json
from tests.outputs_content import Content, read_content

RELATIVE_DIFFERENCE = 1e-4  # of a whole vector that is computed here, on another machine than the published one
CONTENT: dict[str, dict[str, Any]] = json.loads((FIXTURES / "content.json").read_bytes())
UNICODE = "14.0.0"  # of the Python that made them: text ids depend on it, and are redone under another

pytestmark = pytest.mark.skipif(
    unicodedata.unidata_version != UNICODE, reason=f"text ids are redone on a Python whose Unicode is not {UNICODE}"
)


def place(name: str, folder: Path, golden_small: Path) -> Path:
    """A copy of a fixture beside its manifest and audio, in a folder that it was not made in."""
    (folder / "audio").symlink_to(golden_small / "audio")
    shutil.copy(FIXTURES / "manifest.jsonl", folder)
    return Path(shutil.copytree(FIXTURES / name, folder / "output"))


def build(folder: Path, kind: str, golden_small: Path, **changes: Any) -> tuple[hfprep.Summary, Content]:
    """What today's code makes of the output in `folder`."""
    chosen: dict[str, Any] = OPTIONS | changes
    manifest, output = folder / "manifest.jsonl", folder / "output"
    config = hfprep.BuildConfig(
        manifest=manifest, output_dir=output, models=golden_small / "checkpoints", format=kind, **chosen
    )
    summary = hfprep.build(config)
    return summary, read_content(output, kind, manifest, folder)


@pytest.mark.parametrize("name", CONTENT)
def test_is_continued_and_says_what_0_1_0_said(name: str, tmp_path: Path, golden_small: Path) -> None:
    kind = name.split("-")[0]
    expected = CONTENT[name]
    place(name, tmp_path, golden_small)
    summary, content = build(tmp_path, kind, golden_small)
    assert (summary.reused, summary.tally.done) == (expected["reused"], expected["computed"])
    assert summary.changed == 0
    assert summary.pending == 0
    found = content_json(content)
    by_rounding = {"samples"} if expected["computed"] else set()  # what is computed here may differ from there
    for part in expected["hashes"].keys() - by_rounding:
        assert found["hashes"][part] == expected["hashes"][part], part
    same = [sample for sample, value in expected["samples"].items() if found["samples"][sample] == value]
    assert len(same) >= expected["reused"]
    for sample_id, sample in content.samples.items():
        with np.load(golden_small / "expected" / f"{Path(sample_id).name}.npz") as published:
            for column in ("condition", "emo_vec"):
                theirs = published[column].reshape(sample.arrays[column].shape)
                distance = np.linalg.norm(sample.arrays[column] - theirs)
                assert distance <= RELATIVE_DIFFERENCE * np.linalg.norm(theirs), (sample_id, column)


@pytest.mark.parametrize("kind", ["npy", "arrow", "webdataset"])
def test_after_it_was_continued_nothing_is_left_to_do(kind: str, tmp_path: Path, golden_small: Path) -> None:
    place(f"{kind}-interrupted", tmp_path, golden_small)
    _, first = build(tmp_path, kind, golden_small)
    summary, second = build(tmp_path, kind, golden_small)
    assert (summary.reused, summary.tally.done) == (5, 0)
    assert content_json(second) == content_json(first)


@pytest.mark.parametrize("kind", ["npy", "arrow", "webdataset"])
def test_a_changed_text_redoes_its_text_ids_alone(kind: str, tmp_path: Path, golden_small: Path) -> None:
    output = place(f"{kind}-complete", tmp_path, golden_small)
    manifest = tmp_path / "manifest.jsonl"
    before = read_content(output, kind, manifest, tmp_path).samples["synth6"].arrays
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"Tiny"', '"Tiny, once more"'), encoding="utf-8")
    summary, content = build(tmp_path, kind, golden_small)
    assert (summary.reused, summary.tally.done, summary.changed) == (4, 1, 1)
    found, expected = content_json(content)["samples"], CONTENT[f"{kind}-complete"]["samples"]
    assert [name for name in expected if found[name] != expected[name]] == ["synth6"]
    after = content.samples["synth6"].arrays
    assert [name for name in before if not np.array_equal(before[name], after[name])] == ["text_ids"]
