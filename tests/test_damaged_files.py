"""JSON files of an output with content that hfprep did not write: each reader says what is wrong, and none crashes."""

import contextlib
import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hfprep
from hfprep.errors import HfprepError
from hfprep.formats.formats import open_set
from hfprep.formats.pair_files import known_pairs, make_pairs
from hfprep.formats.pairs import PairOptions
from hfprep.formats.samples import SPLITS
from hfprep.pipeline.retokenizing import last_config
from hfprep.tools.report.collect import collect
from hfprep.tools.verify.checking import VerifyOptions, verify
from tests.engines import one_worker_inline

pytestmark = pytest.mark.usefixtures("normalised_once")

VALUES: tuple[Any, ...] = (None, 5, -1, 1.5, "x", [], {}, [1], {"a": 1}, True, 1e400)
DEPTH = 3


def load_all(output: Path) -> None:
    samples = hfprep.load(output)
    for index in range(len(samples)):
        assert samples[index]


READERS: tuple[Callable[[Path], Any], ...] = (
    lambda output: verify(VerifyOptions(output_dir=output)),
    lambda output: [sample for name in SPLITS for sample in open_set(output).split(name).samples()],
    load_all,
    collect,
    last_config,
    lambda output: make_pairs(output, PairOptions()),
    known_pairs,
)


def places_in(value: Any, depth: int = DEPTH) -> Iterator[tuple[Any, ...]]:
    """The path of each value inside a JSON value."""
    yield ()
    if depth and isinstance(value, dict | list) and value:
        for key in value if isinstance(value, dict) else range(min(2, len(value))):
            yield from ((key, *rest) for rest in places_in(value[key], depth - 1))


def with_other(value: Any, place: tuple[Any, ...], other: Any) -> Any:
    if not place:
        return other
    changed = copy.deepcopy(value)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = other
    return changed


def contents(path: Path, count: int) -> Iterator[bytes]:
    """The file with one other value, drawn `count` times; empty, cut off, and binary."""
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True) if path.suffix == ".jsonl" else [whole]
    value = json.loads(lines[0])
    changes = [(place, other) for place in places_in(value) for other in VALUES]
    for place, other in random.sample(changes, min(count, len(changes))):
        yield b"".join([json.dumps(with_other(value, place, other)).encode() + b"\n", *lines[1:]])
    yield from (b"", whole[: len(whole) // 2], b"\xff\x00")


@pytest.mark.parametrize("count", [1, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["npy", "arrow", "webdataset"])
def test_every_reader_says_what_is_wrong(
    kind: str, count: int, tmp_path: Path, golden_small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_worker_inline(monkeypatch.setitem)
    rows = map(json.loads, (golden_small / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[:4])
    lines = [json.dumps(row | {"audio": str(golden_small / row["audio"]), "speaker": "one"}) for row in rows]
    (tmp_path / "manifest.jsonl").write_text("\n".join(["{", *lines]))
    config = hfprep.BuildConfig(
        manifest=tmp_path / "manifest.jsonl", models=golden_small / "checkpoints", output_dir=tmp_path / "whole",
        workers=1, val_ratio=0.3, format=kind,
    )  # fmt: skip
    hfprep.build(config)
    with contextlib.suppress(HfprepError):  # speakers have too few samples, or there are no manifests
        make_pairs(tmp_path / "whole", PairOptions())
    shutil.copytree(tmp_path / "whole", tmp_path / "output")
    files = [
        path.relative_to(tmp_path / "whole")
        for path in sorted((tmp_path / "whole").rglob("*.json*"))
        if path.suffix in (".json", ".jsonl") and path.stat().st_size
    ]
    assert {"stats.json", "rejected.jsonl"} <= {path.name for path in files}
    refusals = 0
    for name in files:
        for content in contents(tmp_path / "whole" / name, count):
            for reader in READERS:
                (tmp_path / "output" / name).write_bytes(content)
                try:
                    reader(tmp_path / "output")
                except HfprepError:
                    refusals += 1
        shutil.copyfile(tmp_path / "whole" / name, tmp_path / "output" / name)
    assert refusals > len(files)
