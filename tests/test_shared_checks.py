"""Real builds held against the published code's numbers by the checkers in ../shared, wherever they lie there.

check_golden.py: every code, latent, token id and record as the published code has it, at several batch sizes and by
way of 24 kHz. compare_builds.py: the same samples in other batches, and in another order, give the same build.
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parent.parent / "shared"
GOLDEN = {name: folder for name in ("golden", "golden-small") if (folder := SHARED / name).is_dir()}
VAL_RATIO = "0.3"

Builder = Callable[..., Path]


def run(*command: object) -> str:
    """Standard output of a command that must succeed; what it said when it does not."""
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Makes builds of a golden set with some options, each once; gives the output folder."""
    finished: dict[tuple[str, ...], Path] = {}

    def build(golden: Path, *options: str, manifest: Path | None = None) -> Path:
        key = (str(golden), str(manifest), *options)
        if key not in finished:
            output = tmp_path_factory.mktemp("build") / "out"
            source = ["--manifest", manifest or golden / "manifest.jsonl", "--models", golden / "checkpoints"]
            rest = ["--output-dir", output, "--val-ratio", VAL_RATIO, *options]
            run(sys.executable, "-m", "hfprep", "build", *source, *rest)
            finished[key] = output
        return finished[key]

    return build


if GOLDEN:

    @pytest.mark.parametrize("batch_size", ["0", "1", "3", "8"])
    @pytest.mark.parametrize("name", GOLDEN)
    def test_a_build_has_the_published_numbers(built: Builder, name: str, batch_size: str) -> None:
        output = built(GOLDEN[name], "--batch-size", batch_size)
        run(sys.executable, SHARED / "check_golden.py", GOLDEN[name], output, "--val-ratio", VAL_RATIO)

    @pytest.mark.parametrize("name", GOLDEN)
    def test_a_build_by_way_of_24_khz_has_the_published_numbers(built: Builder, name: str) -> None:
        output = built(GOLDEN[name], "--audio-sr", "24000")
        checks = ["--val-ratio", VAL_RATIO, "--via-24k"]
        run(sys.executable, SHARED / "check_golden.py", GOLDEN[name], output, *checks)

    @pytest.mark.parametrize("batch_size", ["2", "5", "16"])
    @pytest.mark.parametrize("name", GOLDEN)
    def test_batches_give_what_single_samples_give(built: Builder, name: str, batch_size: str) -> None:
        single = built(GOLDEN[name], "--batch-size", "1")
        batched = built(GOLDEN[name], "--batch-size", batch_size)
        run(sys.executable, SHARED / "compare_builds.py", single, batched)

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
        other = built(GOLDEN[name], "--batch-size", "5", manifest=folder / "manifest.jsonl")
        run(sys.executable, SHARED / "compare_builds.py", built(GOLDEN[name], "--batch-size", "1"), other)
