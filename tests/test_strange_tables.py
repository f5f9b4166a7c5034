"""Parquet files and saved Arrow sets of others: damage costs rows, never the run and never the process that plans."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from hfprep.errors import ConfigError, HfprepError, Reason, RejectedSample
from hfprep.inputs.audio.containers import read_clip
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.guarded import GuardedTables, Position
from hfprep.schema import Rejection, Utterance
from tests.test_sources import read, rejected, texts

IDS = ["a", "b", "c"]
FIELDS: dict[str, Any] = {"id": IDS, "text": ["one", "two", "three"], "audio": ["a.wav", "b.wav", "c.wav"]}
Save = Callable[[pa.Table, Path], Path]


def as_parquet(table: pa.Table, folder: Path) -> Path:
    pq.write_table(table, folder / "rows.parquet")
    return folder / "rows.parquet"


def as_saved_set(table: pa.Table, folder: Path) -> Path:
    """The files of `save_to_disk`, also for tables that `datasets` would not make."""
    saved = folder / "saved"
    saved.mkdir()
    with pa.OSFile(str(saved / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return saved


both = pytest.mark.parametrize("save", [as_parquet, as_saved_set])


def bad_text(good: list[str], at: int) -> pa.Array:
    values = [value.encode() for value in good]
    values[at] = b"\xff" + values[at]
    return pa.Array.from_buffers(pa.string(), len(good), pa.array(values).buffers())


FAR = pa.array([0, 10**12, 86400], pa.int64()).cast(pa.timestamp("s"))  # the second is in the year 33658


@both
@pytest.mark.usefixtures("tables_are_read_here")
def test_a_cell_that_cannot_be_read_costs_its_row_where_it_is_used(tmp_path: Path, save: Save) -> None:
    rows = read(save(pa.table(FIELDS | {"text": bad_text(FIELDS["text"], 1)}), tmp_path))
    assert texts(rows) == [(1, "a", "one"), (3, "c", "three")]
    assert rejected(rows) == [(2, Reason.INVALID_ENCODING)]


@both
@pytest.mark.usefixtures("tables_are_read_here")
@pytest.mark.parametrize("unused", [bad_text(IDS, 1), FAR, pa.array([[b"x"], None, [b"y"]])])
def test_a_cell_that_nobody_uses_costs_nothing(tmp_path: Path, save: Save, unused: pa.Array) -> None:
    rows = read(save(pa.table(FIELDS | {"note": unused}), tmp_path))
    assert [row.id for row in rows if isinstance(row, Utterance)] == IDS
    kept = [json.loads(row.extra) for row in rows if isinstance(row, Utterance)]
    assert "note" not in kept[1]
    assert [bool(kept[0]), bool(kept[2])] == [not pa.types.is_list(unused.type)] * 2


@both
@pytest.mark.usefixtures("tables_are_read_here")
@pytest.mark.parametrize(
    "note",
    [b"", b"{", b"[]", b'{"info": null}', b'{"info": {"features": {"id": 3, "speaker": {"_type": "ClassLabel"}}}}',
     b'{"info": {"features": {"id": {"_type": "Holograph", "x": []}}}}', b"[" * 10**5, b"\xff"],
)  # fmt: skip
def test_notes_of_datasets_that_are_damaged_are_left_alone(tmp_path: Path, save: Save, note: bytes) -> None:
    table = pa.table(FIELDS).replace_schema_metadata({b"huggingface": note})
    assert texts(read(save(table, tmp_path))) == [(1, "a", "one"), (2, "b", "two"), (3, "c", "three")]


@both
@pytest.mark.usefixtures("tables_are_read_here")
def test_a_column_twice(tmp_path: Path, save: Save) -> None:
    arrays = [pa.array(values) for values in (*FIELDS.values(), ["n1"] * 3, ["n2"] * 3)]
    rows = read(save(pa.table(arrays, names=[*FIELDS, "note", "note"]), tmp_path))
    assert [json.loads(row.extra) for row in rows if isinstance(row, Utterance)] == [{"note": "n1"}] * 3
    shutil.rmtree(tmp_path / "saved", ignore_errors=True)
    with pytest.raises(ConfigError, match="has a column twice: 'text'"):
        read(save(pa.table(arrays, names=[*FIELDS, "note", "text"]), tmp_path))


@both
@pytest.mark.usefixtures("tables_are_read_here")
@pytest.mark.parametrize("kind", ["string_view", "dictionary", "large_string", "run_end_encoded"])
def test_columns_of_text_in_other_encodings(tmp_path: Path, save: Save, kind: str) -> None:
    def encoded(values: list[str]) -> pa.Array:
        if kind == "dictionary":
            return pa.array(values).dictionary_encode()
        if kind == "run_end_encoded":
            return pc.run_end_encode(pa.array(values))
        return pa.array(values, getattr(pa, kind)())

    if kind == "run_end_encoded" and save is as_parquet:
        pytest.skip("Parquet has no such columns")
    columns = {name: encoded(values) for name, values in FIELDS.items()}
    if kind == "run_end_encoded":
        columns["audio"] = pa.array(FIELDS["audio"])
    assert texts(read(save(pa.table(columns), tmp_path))) == [(1, "a", "one"), (2, "b", "two"), (3, "c", "three")]


@pytest.mark.usefixtures("tables_are_read_here")
@pytest.mark.parametrize("struct", [False, True])
@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view", "dictionary"])
def test_clips_in_other_encodings_are_the_bytes_that_were_put_there(tmp_path: Path, kind: str, struct: bool) -> None:
    clips = [b"tiny", b"longer than what a view can hold" * 9, None]
    values = pa.array(clips).dictionary_encode() if kind == "dictionary" else pa.array(clips, getattr(pa, kind)())
    if struct:
        values = pa.StructArray.from_arrays([values, pa.array(["x/a.wav", None, "c.wav"])], ["bytes", "path"])
    table = pa.table(FIELDS | {"audio": values})
    rows = read(as_saved_set(table, tmp_path))
    found = [row for row in rows if isinstance(row, Utterance)]
    assert [read_clip(row.path) for row in found[:2]] == clips[:2]
    assert found[0].audio.startswith("data.arrow#a.wav@" if struct else "data.arrow#@")
    assert [row.audio for row in found[2:]] == (["c.wav"] if struct else [])
    assert len(rows) == 3
    cells = [row.path for row in read(as_parquet(table, tmp_path)) if isinstance(row, Utterance)]
    assert [read_clip(cell) for cell in cells[:2]] == clips[:2]


@pytest.mark.usefixtures("tables_are_read_here")
@pytest.mark.parametrize("statistics", [True, False])
def test_rows_by_path_among_rows_with_bytes(tmp_path: Path, statistics: bool) -> None:
    audio = [{"bytes": b"1", "path": "x/a.wav"}, {"bytes": None, "path": "b.wav"}, {"bytes": b"3", "path": None}]
    pq.write_table(pa.table(FIELDS | {"audio": audio}), tmp_path / "p.parquet", write_statistics=statistics)
    rows = [row for row in read(tmp_path / "p.parquet") if isinstance(row, Utterance)]
    assert [row.audio for row in rows] == ["p.parquet#a.wav@audio[0]", "b.wav", "p.parquet#@audio[2]"]
    assert [read_clip(rows[index].path) for index in (0, 2)] == [b"1", b"3"]


def test_a_cloned_repository_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table = pa.table(FIELDS | {"audio": [{"bytes": b"1", "path": f"{name}.wav"} for name in IDS]})
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001-0123456789abcdef"):
        pq.write_table(table, tmp_path / "data" / f"{name}.parquet")
    rows = [row for row in read(tmp_path) if isinstance(row, Utterance)]
    assert [row.line for row in rows] == list(range(1, 7))
    assert rows[3].audio == "data/train-00001-of-00002.parquet#a.wav@audio[0]"
    assert read_clip(rows[3].path) == b"1"
    assert len(read(f"{tmp_path}:test")) == 3
    with pytest.raises(ConfigError, match="has no split 'dev'; it has: test, train"):
        read(f"{tmp_path}:dev")


def test_a_damaged_file_among_others_is_named(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        pq.write_table(pa.table(FIELDS), tmp_path / f"{name}.parquet")
    (tmp_path / "2.parquet").write_bytes(b"PAR1 not at all")
    rows = read(tmp_path)
    assert [row.line for row in rows if isinstance(row, Utterance)] == [1, 2, 3, 5, 6, 7]
    (message,) = (row.message for row in rows if isinstance(row, Rejection))
    assert "2.parquet cannot be read as Parquet" in message


def flipped(content: bytes, begin: int, end: int) -> bytes:
    return content[:begin] + bytes(255 - byte for byte in content[begin:end]) + content[end:]


def test_a_damaged_row_group_costs_itself(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    table = pa.table({name: [f"{value} {n}" for n in range(20) for value in values] for name, values in FIELDS.items()})
    pq.write_table(table.append_column("note", table["text"]), path, row_group_size=20, compression="zstd")
    groups = pq.read_metadata(path)
    whole = path.read_bytes()

    def damaged(group: int, column: int) -> list[Utterance | Rejection]:
        chunk = groups.row_group(group).column(column)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        path.write_bytes(flipped(whole, start, start + chunk.total_compressed_size))
        return read(path)

    rows = damaged(1, 1)
    assert [row.line for row in rows if isinstance(row, Utterance)] == [*range(1, 21), *range(41, 61)]
    assert [(row.line, "row group 1" in row.message) for row in rows if isinstance(row, Rejection)] == [(21, True)]
    unused = damaged(1, 3)
    assert [row.line for row in unused if isinstance(row, Utterance)] == list(range(1, 61))


class Crashing(GuardedTables):
    """Two files of two parts with two rows; reading one part ends the process, unless our columns alone are read."""

    where = "here"
    paths = ("x", "y")
    fields = FieldMap()

    def __init__(self, kill: tuple[int, int], always: bool) -> None:
        self.kill = kill
        self.always = always

    def steps(self, start: Position) -> Any:
        number = start.number
        for file in range(start.file, 2):
            yield Position(file, number=number)
            for part in range(start.part if file == start.file else 0, 2):
                narrow = start.narrow and (file, part) == (start.file, start.part)
                yield Position(file, part, number, 2, narrow)
                for _ in range(2):
                    number += 1
                    yield number, {"id": str(number)}
                    if (file, part) == self.kill and (self.always or not narrow):
                        import ctypes

                        ctypes.string_at(8)  # no memory is there


@pytest.mark.parametrize("always", [False, True])
def test_a_crash_of_the_reader_costs_a_process_and_at_most_a_part(always: bool) -> None:
    steps: list[tuple[int, dict[str, Any] | RejectedSample]] = list(Crashing((0, 1), always).lines())
    numbers = [number for number, _ in steps]
    assert numbers == [1, 2, 3, 4, 5, 6, 7, 8]
    bad = [(number, row.message) for number, row in steps if isinstance(row, RejectedSample)]
    assert len(bad) == always
    if always:
        assert bad[0][0] == 4
        assert bad[0][1].startswith("row group 1 of x is damaged: the process that reads it crashed (SIGSEGV)")


def test_notes_of_a_saved_set_lead_nowhere_else(tmp_path: Path) -> None:
    saved = as_saved_set(pa.table(FIELDS), tmp_path)
    for name in ("../data.arrow", "/etc/passwd", "", None, "a\0b"):
        (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(ConfigError, match="which is not a file of a saved data set"):
            read(saved)
    (saved / "dataset_dict.json").write_text('{"splits": ["../.."]}')
    with pytest.raises(ConfigError, match="which is not a file of a saved data set"):
        read(saved)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "saved", "splits"])
def test_flipped_bytes_never_end_the_reading(tmp_path: Path, kind: str) -> None:
    """Three tables a kind, a hundred times with bytes changed: rows and rejections come, or one error."""
    chance = random.Random(17)
    rows = datasets.Dataset.from_dict(
        FIELDS | {"audio": [b"1" * 200, b"2", b"3"], "label": [0, 1, 0], "tags": [["x"], [], ["y", "z"]]}
    ).cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    target = tmp_path / "rows.parquet"
    if kind == "parquet":
        rows.to_parquet(target)
        file = target
    else:
        saved = rows if kind == "saved" else datasets.DatasetDict({"train": rows})
        target = tmp_path / "saved"
        saved.save_to_disk(target)
        file = next(target.rglob("*.arrow"))
    whole = file.read_bytes()
    outcomes = {"rows": 0, "error": 0}
    for _ in range(33):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 3, 20))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        file.write_bytes(damaged if chance.random() < 0.8 else damaged[: chance.randrange(len(damaged))])
        try:
            numbers = [row.line for row in read(target)]
        except HfprepError:
            outcomes["error"] += 1
            continue
        assert numbers == sorted(set(numbers))
        outcomes["rows"] += 1
    assert outcomes["rows"]
