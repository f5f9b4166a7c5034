"""Real builds held against the published code's numbers by the checkers in ../shared, wherever they lie there.

check_golden.py: every code, latent, token id and record as the published code has it, at several batch sizes and by
way of 24 kHz. compare_builds.py: the same samples in other batches, and in another order, give the same build.
"""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import soundfile

import hfprep
from hfprep.formats.arrow_writer import export_arrow
from hfprep.formats.formats import open_set
from hfprep.formats.npy import export_npy
from hfprep.formats.webdataset_writer import export_webdataset
from tests.sample_sets import public_files

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parent.parent / "shared"
GOLDEN = {name: folder for name in ("golden", "golden-small") if (folder := SHARED / name).is_dir()}
GOLDEN25 = {name: folder for name in ("golden25", "golden25-small") if (folder := SHARED / name).is_dir()}
VAL_RATIO = 0.3

Builder = Callable[..., Path]


def check(script: str, *arguments: object) -> None:
    """Run one of the checkers; what it printed is the message when it finds fault."""
    command = [sys.executable, str(SHARED / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Makes builds of a golden set, each once; gives the output folder."""
    finished: dict[tuple[Path, Path | None, int, int], Path] = {}

    def build(golden: Path, *, batch_size: int, audio_sr: int = 16000, manifest: Path | None = None) -> Path:
        key = (golden, manifest, batch_size, audio_sr)
        if key not in finished:
            config = hfprep.BuildConfig(
                manifest=manifest or golden / "manifest.jsonl",
                output_dir=tmp_path_factory.mktemp("build") / "out",
                models=golden / "checkpoints",
                val_ratio=VAL_RATIO,
                batch_size=batch_size,
                audio_sr=audio_sr,
            )
            hfprep.build(config)
            finished[key] = config.output_dir
        return finished[key]

    return build


def each(sets: Mapping[str, Path], *cases: Any) -> list[Any]:
    """Every set with every case (a value, or several).

    In the quick set the small sets have the first two, the large sets the first one.
    """
    return [
        pytest.param(name, *(case if isinstance(case, tuple) else (case,)),
                     marks=[] if case in cases[: 2 if name.endswith("small") else 1] else [pytest.mark.slow])
        for name in sets
        for case in cases
    ]  # fmt: skip


if GOLDEN:

    @pytest.mark.parametrize(("name", "batch_size"), each(GOLDEN, 3, 1, 0, 8))
    def test_a_build_has_the_published_numbers(built: Builder, name: str, batch_size: int) -> None:
        output = built(GOLDEN[name], batch_size=batch_size)
        check("check_golden.py", GOLDEN[name], output, "--val-ratio", VAL_RATIO)

    @pytest.mark.parametrize("name", GOLDEN)
    def test_a_build_by_way_of_24_khz_has_the_published_numbers(built: Builder, name: str, tmp_path: Path) -> None:
        """But for files at 16 kHz, of which the golden set has the direct numbers alone."""
        output = built(GOLDEN[name], batch_size=0, audio_sr=24000)
        rows = [json.loads(line) for line in (GOLDEN[name] / "manifest.jsonl").read_bytes().splitlines()]
        others = [row for row in rows if soundfile.info(GOLDEN[name] / row["audio"]).samplerate != 16000]
        assert others
        (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others), encoding="utf-8")
        (tmp_path / "expected").symlink_to(GOLDEN[name] / "expected")
        check("check_golden.py", tmp_path, output, "--val-ratio", VAL_RATIO, "--via-24k")

    @pytest.mark.parametrize(("name", "batch_size"), each(GOLDEN, 5, 2, 16))
    def test_batches_give_what_single_samples_give(built: Builder, name: str, batch_size: int) -> None:
        single = built(GOLDEN[name], batch_size=1)
        batched = built(GOLDEN[name], batch_size=batch_size)
        check("compare_builds.py", single, batched)

    @pytest.mark.parametrize("name", GOLDEN)
    def test_the_order_of_the_manifest_changes_no_number(built: Builder, name: str, tmp_path: Path) -> None:
        rows = [json.loads(line) for line in (GOLDEN[name] / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
        shuffled = rows.copy()
        random.Random(1).shuffle(shuffled)
        assert shuffled != rows
        # A link to the recordings beside the new manifest, so that its rows are the same.
        folder = tmp_path / "set"
        folder.mkdir()
        (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shuffled), encoding="utf-8")
        (folder / "audio").symlink_to(GOLDEN[name] / "audio")
        other = built(GOLDEN[name], batch_size=5, manifest=folder / "manifest.jsonl")
        check("compare_builds.py", built(GOLDEN[name], batch_size=1), other)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", GOLDEN)
    def test_there_and_back_over_every_row_gives_the_same_bytes(built: Builder, name: str, tmp_path: Path) -> None:
        source = built(GOLDEN[name], batch_size=1)
        files = public_files(source)
        rows = (GOLDEN[name] / "manifest.jsonl").read_bytes().splitlines()
        assert len(files) == 3 + 4 * len(rows)
        for export in (export_arrow, export_webdataset):
            export(open_set(source), tmp_path / export.__name__)
            export_npy(open_set(tmp_path / export.__name__), tmp_path / f"{export.__name__}-back")
            assert public_files(tmp_path / f"{export.__name__}-back") == files

    @pytest.mark.slow
    @pytest.mark.parametrize("format_name", ["arrow", "webdataset"])
    def test_shards_without_npy_hold_what_the_npy_layout_holds(
        built: Builder, format_name: str, tmp_path: Path
    ) -> None:
        """A build of every golden row in another format alone, turned into npy, is the npy build."""
        golden = GOLDEN["golden"]
        config = hfprep.BuildConfig(
            manifest=golden / "manifest.jsonl", output_dir=tmp_path / "out", models=golden / "checkpoints",
            val_ratio=VAL_RATIO, batch_size=1, format=format_name, max_shard_size="200KB",
        )  # fmt: skip
        hfprep.build(config)
        export_npy(open_set(tmp_path / "out"), tmp_path / "back")
        found, expected = public_files(tmp_path / "back"), public_files(built(golden, batch_size=1))
        said = [json.loads(files.pop("stats.json")) for files in (found, expected)]
        assert found == expected
        settings = [stats.pop("settings") for stats in said]
        assert said[0] == said[1]
        assert settings[0] == settings[1] | {"format": format_name, "max_shard_size": "200KB"}


def models_of(golden: Path, folder: Path) -> Path:
    """The model set of an IndexTTS-2.5 golden set, with the vocabulary that only the larger one has."""
    shutil.copytree(golden / "checkpoints", folder)
    vocabulary = folder / "multilingual_zh_ja_yue_char_del.tiktoken"
    if not vocabulary.exists():
        vocabulary.symlink_to(GOLDEN25["golden25"] / "checkpoints" / vocabulary.name)
    return folder


if GOLDEN25:

    @pytest.mark.parametrize(
        ("name", "batch_size", "audio_sr"),
        each(GOLDEN25, (8, 16000), (0, 22050), (0, 16000), (1, 16000), (3, 16000)),
    )
    def test_a_build_has_the_published_numbers_of_2_5(
        name: str, batch_size: int, audio_sr: int, tmp_path: Path
    ) -> None:
        config = hfprep.BuildConfig(
            manifest=GOLDEN25[name] / "manifest.jsonl",
            output_dir=tmp_path / "out",
            models=models_of(GOLDEN25[name], tmp_path / "models"),
            val_ratio=VAL_RATIO,
            batch_size=batch_size,
            audio_sr=audio_sr,
        )
        hfprep.build(config)
        via = ["--via-22k"] if audio_sr == 22050 else []
        check("check_golden25.py", GOLDEN25[name], tmp_path / "out", "--val-ratio", VAL_RATIO, *via)
