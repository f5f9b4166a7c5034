"""`build --format`: the other formats beside the npy layout, made again when, and only when, that has changed."""

import dataclasses
import json
from pathlib import Path

import hfprep
from hfprep.formats.formats import open_set
from hfprep.formats.npy import export_npy
from hfprep.pipeline.config import BuildConfig
from tests.sample_sets import public_files

EXPORTS = ("arrow", "webdataset")


def layout_of(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in public_files(output).items() if not name.startswith(EXPORTS)}


def inodes(output: Path) -> dict[str, int]:
    return {name: (output / name).stat().st_ino for name in EXPORTS}


def test_exports_follow_the_build(tmp_path: Path, golden_small: Path) -> None:
    rows = [json.loads(line) for line in (golden_small / "manifest.jsonl").read_bytes().splitlines()]
    for number, row in enumerate(rows):
        row |= {"take": number, "mixed": [1, "x", None, [2]][number % 4], "audio": str(golden_small / row["audio"])}
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    output = tmp_path / "out"
    config = BuildConfig(
        manifest=manifest, output_dir=output, models=golden_small / "checkpoints", val_ratio=0.3,
        format="npy,arrow,webdataset",
    )  # fmt: skip
    hfprep.build(config)
    for name in EXPORTS:
        exported = open_set(output / name)
        export_npy(exported, tmp_path / f"back-{name}")
        assert layout_of(tmp_path / f"back-{name}") == layout_of(output)
        entries = [entry for split in ("train", "validation") for entry in exported.split(split).entries()]
        assert sorted(json.loads(entry.extra)["take"] for entry in entries) == list(range(8))
        assert exported.origin.stats == json.loads((output / "stats.json").read_bytes())
        assert {"text", "codes", "latents"} <= exported.origin.fingerprints.keys()
    first = inodes(output)
    hfprep.build(config)
    assert inodes(output) == first  # nothing changed: nothing written
    hfprep.build(dataclasses.replace(config, val_ratio=0.9))
    second = inodes(output)
    assert all(second[name] != first[name] for name in EXPORTS)
    assert len(open_set(output / "arrow").split("validation")) == len(open_set(output).split("validation")) > 2
