"""Conversions give back, byte for byte, what went in, whatever the ids, lines and other fields are."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfprep.errors import ConfigError, StoreError
from hfprep.formats.arrow_writer import ArrowOptions, export_arrow
from hfprep.formats.extra_fields import read_extra_fields, write_extra_fields
from hfprep.formats.folders import atomic_folder, unfinished_name
from hfprep.formats.formats import open_set
from hfprep.formats.npy import export_npy
from hfprep.formats.webdataset_writer import WebDatasetOptions, export_webdataset
from hfprep.io import atomic
from hfprep.io.words import parse_size
from tests.quick import some_quick
from tests.sample_sets import AWKWARD_IDS, EXTRAS, make_output, public_files

Export = Callable[[Path, Path], Any]
EXPORTS: dict[str, Export] = {
    "arrow": lambda source, target: export_arrow(open_set(source), target, ArrowOptions(max_shard_bytes=2000)),
    "webdataset": lambda source, target: export_webdataset(
        open_set(source), target, WebDatasetOptions(max_shard_samples=3)
    ),
}


def extras_of(root: Path) -> dict[str, str]:
    """The other fields of every sample, by id."""
    output = open_set(root)
    return {entry.id: entry.extra for name in ("train", "validation") for entry in output.split(name).entries()}


@pytest.fixture(params=EXPORTS)
def export(request: pytest.FixtureRequest) -> Export:
    return EXPORTS[request.param]


@pytest.mark.parametrize("extra", [True, False])
def test_there_and_back_gives_the_same_bytes(tmp_path: Path, export: Export, extra: bool) -> None:
    source = make_output(tmp_path / "out", extra=extra)
    export(source, tmp_path / "exported")
    counts = export_npy(open_set(tmp_path / "exported"), tmp_path / "back")
    assert counts == {"train": 8, "validation": 4}
    files = public_files(source)
    assert len(files) == 3 + 4 * len(AWKWARD_IDS)
    assert public_files(tmp_path / "back") == files
    assert extras_of(tmp_path / "back") == extras_of(source)
    assert len({extra for extra in extras_of(source).values() if extra != "{}"}) == (9 if extra else 0)


def test_from_one_format_to_the_other_and_back(tmp_path: Path) -> None:
    source = make_output(tmp_path / "out")
    EXPORTS["arrow"](source, tmp_path / "arrow")
    EXPORTS["webdataset"](tmp_path / "arrow", tmp_path / "shards")
    EXPORTS["arrow"](tmp_path / "shards", tmp_path / "again")
    export_npy(open_set(tmp_path / "again"), tmp_path / "back")
    assert public_files(tmp_path / "back") == public_files(source)
    assert extras_of(tmp_path / "back") == extras_of(source)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, export: Export) -> None:
    source = make_output(tmp_path / "out")
    export(source, tmp_path / "one")
    export(source, tmp_path / "two")
    assert public_files(tmp_path / "one") == public_files(tmp_path / "two")


def test_manifest_lines_that_hfprep_would_write_otherwise_come_back_too(tmp_path: Path, export: Export) -> None:
    """Older scripts: escaped letters, other separators, another order, fields of other types and of their own."""

    def change(record: dict[str, Any], number: int) -> dict[str, Any]:
        record = dict(reversed(record.items())) | {"speaker": number, "note": [None, 1.0]}
        if number == 3:
            del record["language"]
        return record

    def line_of(record: dict[str, Any]) -> bytes:
        return json.dumps(record, separators=(",", ":")).encode() + b"\n"

    source = make_output(tmp_path / "out", change=change, line_of=line_of)
    export(source, tmp_path / "exported")
    export_npy(open_set(tmp_path / "exported"), tmp_path / "back")
    assert public_files(tmp_path / "back") == public_files(source)


def test_an_empty_split_is_an_empty_split(tmp_path: Path, export: Export) -> None:
    source = make_output(tmp_path / "out", ids=("a", "b"))
    export(source, tmp_path / "exported")
    assert export_npy(open_set(tmp_path / "exported"), tmp_path / "back") == {"train": 2, "validation": 0}
    assert public_files(tmp_path / "back") == public_files(source)


def test_float16_is_recorded_and_comes_back_as_float32(tmp_path: Path) -> None:
    source = make_output(tmp_path / "out")
    export_arrow(open_set(source), tmp_path / "arrow", ArrowOptions(dtype="float16"))
    export_webdataset(open_set(source), tmp_path / "shards", WebDatasetOptions(dtype="float16"))
    for name in ("arrow", "shards"):
        exported = open_set(tmp_path / name)
        assert exported.origin.latents_dtype == "float16"
        export_npy(exported, tmp_path / f"back-{name}")
        files, back = public_files(source), public_files(tmp_path / f"back-{name}")
        assert back.keys() == files.keys()
        assert {file for file in files if files[file] != back[file]} == {
            file for file in files if file.startswith(("condition/", "emo_vec/"))
        }
        for sample_id in AWKWARD_IDS:
            stored = np.load(tmp_path / f"back-{name}" / "condition" / f"{sample_id}.npy")
            exact = np.load(source / "condition" / f"{sample_id}.npy")
            assert stored.dtype == np.float32
            np.testing.assert_array_equal(stored, exact.astype(np.float16).astype(np.float32))


def test_float16_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    source = make_output(tmp_path / "out", ids=("a", "b"))
    path = source / "emo_vec" / "b.npy"
    np.save(path, np.full_like(np.load(path), 1e6))
    with pytest.raises(StoreError, match="'b': emo_vec is too large for float16"):
        export_arrow(open_set(source), tmp_path / "arrow", ArrowOptions(dtype="float16"))
    assert not (tmp_path / "arrow").exists()


def test_other_dtypes_and_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="--dtype is 'int8'"):
        ArrowOptions(dtype="int8")
    with pytest.raises(ConfigError, match="--max-shard-size is 'much'"):
        parse_size("much")
    sizes = {"500MB": 500_000_000, "2GB": 2 * 10**9, "1.5kb": 1500, "1KiB": 1024, "77": 77}
    assert {text: parse_size(text) for text in sizes} == sizes


def test_ids_that_would_leave_the_output_are_refused(
    tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(record: dict[str, Any], number: int) -> dict[str, Any]:
        return record | {"id": "../escape"} if number == 1 else record

    source = make_output(tmp_path / "out", ids=("a", "b"), change=change)
    with pytest.raises(StoreError, match="escape"):
        export(source, tmp_path / "exported")
    with monkeypatch.context() as patch:
        patch.setattr("hfprep.formats.npy.safe_id", lambda sample_id, where: sample_id)
        export(source, tmp_path / "exported")
    with pytest.raises(StoreError, match="escape"):
        export_npy(open_set(tmp_path / "exported"), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_length_that_is_not_the_records_stops_the_export(tmp_path: Path, export: Export) -> None:
    source = make_output(tmp_path / "out")
    np.save(source / "codes" / "plain.npy", np.zeros(3, np.int32))
    with pytest.raises(StoreError, match=r"'plain': codes is of shape \(3,\), but the record's code_len is 5"):
        export(source, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


class _Killed(BaseException):
    """Stands for a kill: nothing in the program catches it or tidies up after it."""


@pytest.mark.parametrize("every", [pytest.param(8, id="every eighth"), pytest.param(1, marks=pytest.mark.slow)])
def test_a_fault_at_any_point_leaves_the_earlier_export_whole(tmp_path: Path, export: Export, every: int) -> None:
    """Every named point of an export over an earlier one: the target is the old set or the new one, never a mixture."""
    old, new = make_output(tmp_path / "old", ids=("a", "b", "c")), make_output(tmp_path / "new")
    export(old, tmp_path / "old-alone")
    export(new, tmp_path / "new-alone")
    whole = [public_files(tmp_path / "old-alone"), public_files(tmp_path / "new-alone")]
    points: list[str] = []
    atomic.set_observer(lambda point, path: points.append(point))
    try:
        export(old, tmp_path / "counted")
        export(new, tmp_path / "counted")
        number = len(points)
        for stop in range(1, number, every):
            seen = 0

            def kill(point: str, path: str, stop: int = stop) -> None:
                nonlocal seen
                seen += 1
                if seen == stop:
                    raise _Killed

            target = tmp_path / "target"
            atomic.set_observer(None)
            export(old, target)
            atomic.set_observer(kill)
            with contextlib.suppress(_Killed):
                export(new, target)
            assert public_files(target) in whole
            atomic.set_observer(None)
            export(new, target)
            assert public_files(target) == whole[1]
            assert not unfinished_name(target).exists()
    finally:
        atomic.set_observer(None)
    assert number > 12


def test_leftovers_of_a_killed_export_go(tmp_path: Path, export: Export) -> None:
    source = make_output(tmp_path / "out", ids=("a", "b"))
    leftover = unfinished_name(tmp_path / "target") / "deep" / "file"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half")
    former = tmp_path / ".target.former"
    export(source, former)
    export(source, tmp_path / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "target"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path, export: Export) -> None:
    source = make_output(tmp_path / "out", ids=("a", "b"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="thesis exists and is not an earlier export"):
        export(source, tmp_path / "thesis")
    assert os.listdir(tmp_path / "thesis") == ["thesis.tex"]
    with pytest.raises(StoreError, match="exists and is not an earlier export"):
        export_npy(open_set(source), tmp_path / "thesis")


def test_two_exports_to_one_place_do_not_mix(tmp_path: Path, export: Export) -> None:
    source = make_output(tmp_path / "out", ids=("a", "b"))
    with atomic_folder(tmp_path / "target", lambda _: False), pytest.raises(StoreError, match="another export"):
        export(source, tmp_path / "target")


def test_what_is_no_set_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="contains no finished sample set"):
        open_set(tmp_path)
    with pytest.raises(StoreError, match="does not exist"):
        open_set(tmp_path / "missing")


def test_other_fields_are_joined_in_order(tmp_path: Path) -> None:
    source = make_output(tmp_path / "out")
    joined = list(read_extra_fields(source, ["plain", AWKWARD_IDS[2], "-dash", "not there"]))
    assert [json.loads(extra).get("score") for extra in joined] == [None, "text", 1, None]
    assert len(EXTRAS) == 8


@pytest.fixture(scope="module")
def small_and_large(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Outputs of 300 and of 900 samples: of more than one chunk."""
    folder = tmp_path_factory.mktemp("outputs")
    return [
        make_output(folder / str(count), ids=tuple(f"{number:06d}" for number in range(count)), dim=512)
        for count in (300, 900)
    ]


@pytest.mark.parametrize("name", some_quick(EXPORTS, 2))
def test_memory_does_not_grow_with_the_number_of_samples(
    small_and_large: list[Path], tmp_path: Path, name: str
) -> None:
    """Three times the samples may not take much more memory: what is held is one chunk and the index."""
    import tracemalloc

    EXPORTS[name](small_and_large[0], tmp_path / "exported")  # imports are not to be counted
    peaks = []
    for source in small_and_large:
        tracemalloc.start()
        EXPORTS[name](source, tmp_path / "exported")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    size = sum(len(data) for name, data in public_files(small_and_large[1]).items() if "/" in name)
    assert peaks[1] - peaks[0] < size / 4


def test_half_a_surrogate_pair_in_another_field_is_kept(tmp_path: Path, export: Export) -> None:
    source = make_output(tmp_path / "out", ids=("a", "b"))
    write_extra_fields(source, [("a", '{"note": "\\ud800", "other": "ü"}'), ("b", '{"note": "fine"}')])
    export(source, tmp_path / "exported")
    export_npy(open_set(tmp_path / "exported"), tmp_path / "back")
    assert extras_of(tmp_path / "back") == extras_of(source) == {
        "a": '{"note": "\\ud800", "other": "ü"}', "b": '{"note": "fine"}',
    }  # fmt: skip


def test_a_row_that_is_not_kept_costs_the_others_nothing(tmp_path: Path) -> None:
    source = make_output(tmp_path / "out")
    ids = ["plain", "never written", AWKWARD_IDS[2], AWKWARD_IDS[1], "-dash"]
    joined = list(read_extra_fields(source, ids))
    assert [json.loads(extra).get("take") for extra in joined] == [None, None, 2, 1, 8]
