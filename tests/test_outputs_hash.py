"""Every way to make an output says the same, and what it says is what was recorded (tests/data/outputs-hash.txt)."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tests.outputs_content import Content, read_content
from tests.outputs_hash import Comparison, all_ways, main

RECORDED = Path(__file__).resolve().parent / "data" / "outputs-hash.txt"
RELATIVE_DIFFERENCE = 1e-4  # of a whole vector, between machines
QUICK = "^all three: "

Hashes = dict[str, dict[str, str]]
Quick = tuple[Hashes, Content]


def recorded() -> dict[str, str]:
    lines = RECORDED.read_text(encoding="utf-8").splitlines()
    return {part: value for value, part in (line.split() for line in lines if line and not line.startswith("#"))}


def run(folder: Path, *words: str) -> Hashes:
    """The hashes of each way, once they are found to agree."""
    found = folder / "hashes.json"
    status = main(["--folder", str(folder / "outputs"), "--json", str(found), *words])
    answer = json.loads(found.read_bytes())
    assert answer["faults"] == []
    assert status == 0
    ways: Hashes = answer["ways"]
    return ways


def check_recorded(ways: Hashes) -> None:
    known = recorded()
    for way, hashes in ways.items():
        differing = [part for part in known if hashes.get(part, known[part]) != known[part]]
        assert not differing, (way, differing)
    assert known.keys() <= {part for hashes in ways.values() for part in hashes}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Quick:
    """The hashes of one build with all formats, and what its npy layout says."""
    folder = tmp_path_factory.mktemp("quick")
    ways = run(folder, "--only", QUICK)
    root = folder / "outputs"
    return ways, read_content(root / "all-three", "npy", root / "data" / "manifest.jsonl", root)


def test_one_build_says_what_was_recorded_in_each_format(quick: Quick) -> None:
    assert len(quick[0]) == 3
    check_recorded(quick[0])


def test_latents_are_the_published_ones(quick: Quick, golden_small: Path) -> None:
    content = quick[1]
    assert len(content.samples) == 8
    for sample_id, sample in content.samples.items():
        with np.load(golden_small / "expected" / f"{Path(sample_id).name}.npz") as expected:
            for name in ("condition", "emo_vec"):
                theirs = expected[name].reshape(sample.arrays[name].shape)
                assert np.linalg.norm(sample.arrays[name] - theirs) <= RELATIVE_DIFFERENCE * np.linalg.norm(theirs)


@pytest.mark.slow
def test_every_way_says_what_was_recorded(tmp_path: Path) -> None:
    ways = run(tmp_path)
    assert ways.keys() == all_ways().keys()
    check_recorded(ways)


def altered(content: Content, what: str) -> Content:
    """The content with one small thing changed."""
    samples = dict(content.samples)
    first = samples["synth0"]
    if what == "a number":
        condition = first.arrays["condition"].copy()
        condition[3, 5] = np.nextafter(condition[3, 5], np.float32(np.inf))
        samples["synth0"] = dataclasses.replace(first, arrays=first.arrays | {"condition": condition})
    elif what == "a type":
        arrays = first.arrays | {"codes": first.arrays["codes"].astype(np.int64)}
        samples["synth0"] = dataclasses.replace(first, arrays=arrays)
    elif what == "a field":
        samples["synth0"] = dataclasses.replace(first, record=first.record | {"speaker": "another"})
    elif what == "a split":
        samples["synth0"] = dataclasses.replace(first, split="validation")
    elif what == "a sample":
        del samples["synth0"]
    elif what == "the listing":
        return dataclasses.replace(content, progress=(content.progress or [])[::-1])
    elif what == "a rejection":
        return dataclasses.replace(content, rejected=(content.rejected or [])[1:])
    return dataclasses.replace(content, samples=samples)


def test_the_least_difference_is_found(quick: Quick) -> None:
    content = quick[1]
    parts = {
        "nothing": [],
        "a number": ["samples"],
        "a type": ["samples", "exact"],
        "a field": ["samples", "exact"],
        "a split": ["samples", "exact"],
        "a sample": ["samples", "exact"],
        "the listing": ["progress"],
        "a rejection": ["rejected", "messages"],
    }
    for what, expected in parts.items():
        comparison = Comparison()
        comparison.add("whole", content)
        comparison.add("altered", altered(content, what))
        found = [fault.split(" is not")[0] for fault in comparison.faults]
        assert found == [f"altered: {part}" for part in expected], what


def test_another_order_from_the_loader_is_found(quick: Quick) -> None:
    comparison = Comparison()
    comparison.add("npy", quick[1])
    loaded = comparison.contents["npy"].loaded()
    comparison.add_loaded({"npy": loaded})
    assert comparison.faults == []
    comparison.add_loaded({"npy": loaded | {"train": loaded["train"][::-1]}})
    assert comparison.faults == ["npy: hfprep.load gives other numbers, or another order"]
