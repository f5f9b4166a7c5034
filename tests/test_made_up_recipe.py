"""A recipe that hfprep has never seen: a build, every format, resuming, repair, merging, the report, the loader.

Nothing in the package is changed for it: it is registered, as one line in `registry` would do.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import hfprep
from hfprep.formats.formats import open_set
from hfprep.pipeline.merging import merge
from hfprep.recipes import registry
from tests.made_up_recipe import CODEBOOKS, FRAMES_A_STEP, HOP, RATE, Frames, Layers, Letters
from tests.sample_schemas import MADE_UP

SECONDS = (0.4, 1.1, 0.25, 0.9, 0.3, 2.0)
FORMATS = ("npy", "arrow", "webdataset")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.MODULES, MADE_UP.recipe, "tests.made_up_recipe")
    monkeypatch.setattr(registry, "NAMES", (*registry.NAMES, MADE_UP.recipe))


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Clips, a manifest and the model files."""
    noise = np.random.default_rng(1)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "shift.txt").write_text("3")
    (tmp_path / "models" / "gain.txt").write_text("7")
    with open(tmp_path / "m.jsonl", "w", encoding="utf-8") as lines:
        for number, seconds in enumerate(SECONDS):
            samples = noise.uniform(-0.3, 0.3, round(seconds * RATE)).astype(np.float32)
            soundfile.write(tmp_path / f"{number}.wav", samples, RATE, subtype="PCM_16")
            row = {"id": f"c{number}", "text": f"Clip number {'one' * (number + 1)}.", "audio": f"{number}.wav"}
            lines.write(json.dumps(row) + "\n")
    return tmp_path


Build = Callable[..., hfprep.Summary]


@pytest.fixture
def build(world: Path) -> Build:
    def run(name: str = "out", **options: Any) -> hfprep.Summary:
        values: dict[str, Any] = {"manifest": world / "m.jsonl", "models": world / "models"}
        values |= {"val_ratio": 0.4, "batch_size": 3}
        return hfprep.build(hfprep.BuildConfig(output_dir=world / name, **(values | options)))

    return run


def expected(world: Path, number: int, shift: int = 3, gain: int = 7) -> dict[str, np.ndarray]:
    """A sample's columns, computed alone."""
    samples, _ = soundfile.read(world / f"{number}.wav", dtype="float32")
    inputs = torch.from_numpy(Frames().prepare(samples, on_gpu=False))[None]
    found = Layers(gain)(inputs, torch.tensor([inputs.shape[1]]), frozenset({"sound"}))
    text = json.loads((world / "m.jsonl").read_text().splitlines()[number])["text"]
    return {"letters": Letters(shift).encode(text)} | {name: tensor[0].numpy() for name, tensor in found.items()}


def check(world: Path, output: Path, *, shift: int = 3, gain: int = 7) -> None:
    """Every sample of an output is what it is alone."""
    splits = [open_set(output).split(name) for name in ("train", "validation")]
    samples = {sample.entry.id: sample for split in splits for sample in split.samples()}
    assert sorted(samples) == [f"c{number}" for number in range(len(SECONDS))]
    assert open_set(output).schema == MADE_UP
    for number in range(len(SECONDS)):
        wanted, sample = expected(world, number, shift, gain), samples[f"c{number}"]
        assert sample.entry.record["num_letters"] == len(wanted["letters"])
        assert sample.entry.record["num_steps"] == wanted["layers"].shape[1]
        assert sample.entry.record["codebooks"] == CODEBOOKS
        for name, array in wanted.items():
            np.testing.assert_array_equal(sample.arrays[name], array, err_msg=f"c{number} {name}")
            assert sample.arrays[name].dtype == array.dtype


@pytest.mark.parametrize("kept", FORMATS)
@pytest.mark.parametrize("recipe", [None, MADE_UP.recipe])
def test_a_build_in_each_format(world: Path, build: Build, kept: str, recipe: str | None) -> None:
    summary = build(format=kept, recipe=recipe)
    assert (summary.accepted, summary.rejected) == (len(SECONDS), {})
    check(world, world / "out")
    stats = json.loads((world / "out" / "stats.json").read_bytes())
    assert (stats["recipe"], stats["codebook"]["size"]) == (MADE_UP.recipe, 64)
    again = build(format=kept)
    assert (again.reused, again.tally.done) == (len(SECONDS), 0)


@pytest.mark.parametrize("kept", FORMATS)
def test_only_the_columns_that_changed_are_computed_again(world: Path, build: Build, kept: str) -> None:
    build(format=kept)
    (world / "models" / "shift.txt").write_text("5")
    summary = build(format=kept)
    assert (summary.changed, summary.tally.done, summary.tally.frames) == (len(SECONDS), len(SECONDS), 0)
    check(world, world / "out", shift=5)
    (world / "models" / "gain.txt").write_text("11")
    assert build(format=kept).tally.frames == sum(int(seconds * RATE) // HOP for seconds in SECONDS)
    check(world, world / "out", shift=5, gain=11)


def test_exports_from_each_format_to_each(world: Path, build: Build) -> None:
    from hfprep.formats.arrow_writer import export_arrow
    from hfprep.formats.npy import export_npy
    from hfprep.formats.webdataset_writer import export_webdataset

    for kept in FORMATS:
        build(kept, format=kept)
        for name, export in (("npy", export_npy), ("arrow", export_arrow), ("webdataset", export_webdataset)):
            export(open_set(world / kept), world / f"{kept}-{name}")
            check(world, world / f"{kept}-{name}")


def test_parts_are_merged(world: Path, build: Build) -> None:
    for part in range(2):
        build(f"part{part}", shard=f"{part}/2")
    assert merge([world / "part0", world / "part1"], world / "merged").train
    check(world, world / "merged")


def test_several_processes(world: Path, build: Build) -> None:
    assert build(num_processes=2).accepted == len(SECONDS)
    check(world, world / "out")


def test_a_broken_file_is_found_moved_aside_and_computed_again(world: Path, build: Build) -> None:
    from hfprep.tools.verify.checking import VerifyOptions, verify

    build()
    whole = verify(VerifyOptions(output_dir=world / "out", parity=3))
    assert whole.faults == []
    assert whole.parity is not None
    assert (whole.parity.samples, whole.parity.codes_differing) == (3, 0)
    layers = np.load(world / "out" / "layers" / "c1.npy")
    layers[2, 5] = 64  # not in the codebook
    np.save(world / "out" / "layers" / "c1.npy", layers)
    colour = np.load(world / "out" / "colour" / "c3.npy")
    colour[1] = np.nan
    np.save(world / "out" / "colour" / "c3.npy", colour)
    found = verify(VerifyOptions(output_dir=world / "out", repair=True))
    assert {(fault.id, fault.column) for fault in found.faults} == {("c1", "layers"), ("c3", "colour")}
    assert build().tally.done == 2
    check(world, world / "out")
    assert verify(VerifyOptions(output_dir=world / "out")).faults == []


def test_the_report_shows_its_lengths_and_limits(world: Path, build: Build) -> None:
    from hfprep.tools.report.writing import write_report

    build()
    page = world / "report.html"
    write_report(world / "out", page)
    text = page.read_text(encoding="utf-8")
    for name in ("num_letters", "num_steps"):
        assert name in text


@pytest.fixture
def loaded(world: Path, build: Build) -> list[Any]:
    build(format="npy,arrow,webdataset", val_ratio=0.0)
    return [hfprep.load(world / "out" / name) for name in ("", "arrow", "webdataset")]


def test_a_trainer_gets_padded_batches(world: Path, loaded: Any) -> None:
    for data in loaded:
        batch = hfprep.collate([data[index] for index in range(len(SECONDS))])
        steps = [-(-(int(seconds * RATE) // HOP) // FRAMES_A_STEP) for seconds in SECONDS]
        assert batch["ids"] == [f"c{number}" for number in range(len(SECONDS))]
        assert batch["layers"].shape == (len(SECONDS), CODEBOOKS, max(steps))
        assert batch["colour"].shape == (len(SECONDS), 3, 5)
        assert batch["num_steps_lengths"].tolist() == steps
        for row, count, number in zip(batch["layers"], steps, range(len(SECONDS)), strict=True):
            assert torch.equal(row[:, :count].to(torch.int16), torch.from_numpy(expected(world, number)["layers"]))
            assert (row[:, count:] == 63).all()  # the column's padding value
        letters = batch["letters"]
        assert (letters[0, batch["num_letters_lengths"][0] :] == 5).all()


def test_another_recipe_is_refused_in_its_output(world: Path, build: Build, golden_small: Path) -> None:
    build()
    with pytest.raises(hfprep.ConfigError, match="contains samples of the recipe 'made-up'"):
        build(models=golden_small / "checkpoints")
