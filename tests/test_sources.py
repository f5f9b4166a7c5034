"""Every form of input gives the rows that it holds; clips inside files are the bytes that were put there."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.inputs.audio.containers import read_clip
from hfprep.inputs.audio.decode import load_waveform, read_header
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.opening import open_source, rows_sha256
from hfprep.inputs.manifest.rows import AudioFinder, parse_line
from hfprep.io.references import ByteRange, ParquetCell, file_of, name_of, parse_reference, suffix_of
from hfprep.schema import Rejection, Utterance
from tests.fake_hub import Repository, serve_hub


def read(manifest: Path | str, mapping: str | None = None) -> list[Utterance | Rejection]:
    """All rows of an input, as a build reads them."""
    path = Path(manifest)
    finder = AudioFinder(path)
    lines = open_source(path, FieldMap.parse(mapping))
    return [parse_line(number, raw, finder, None) for number, raw in lines]


def rejected(rows: list[Utterance | Rejection]) -> list[tuple[int, Reason]]:
    return [(row.line, row.reason) for row in rows if isinstance(row, Rejection)]


def texts(rows: list[Utterance | Rejection]) -> list[tuple[int, str, str]]:
    return [(row.line, row.id, row.text) for row in rows if isinstance(row, Utterance)]


@pytest.fixture(scope="module")
def clips(golden_small: Path) -> list[dict[str, Any]]:
    """Rows of the small golden set with their audio as bytes."""
    rows = [json.loads(line) for line in (golden_small / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row | {"bytes": (golden_small / row["audio"]).read_bytes()} for row in rows]


def data_set(clips: list[dict[str, Any]]) -> datasets.Dataset:
    audio = [{"bytes": clip["bytes"], "path": f"/somewhere/{Path(clip['audio']).name}"} for clip in clips]
    columns: dict[str, list[Any]] = {name: [clip[name] for clip in clips] for name in ("id", "text")}
    columns |= {"audio": audio, "accent": [number % 2 for number in range(len(clips))]}
    columns |= {"snr": [float("nan")] + [1.5] * (len(clips) - 1)}
    rows = datasets.Dataset.from_dict(columns)  # casting encodes nothing: the clips are encoded already
    rows = rows.cast_column("audio", datasets.Audio(decode=False))
    return rows.cast_column("accent", datasets.ClassLabel(names=["north", "south"]))


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def members_of(clip: dict[str, Any]) -> list[tuple[str, bytes]]:
    key = f"part/{clip['id']}"
    fields = json.dumps({"speaker": "s1", "take": 3}).encode()
    return [(f"{key}.txt", clip["text"].encode()), (key + Path(clip["audio"]).suffix, clip["bytes"]),
            (f"{key}.json", fields)]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(clips: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same samples as a saved data set (of one and of two splits), as Parquet and as two tars."""
    folder = tmp_path_factory.mktemp("inputs")
    rows = data_set(clips)
    rows.save_to_disk(folder / "saved", num_shards=2)
    datasets.DatasetDict({"train": rows, "test": rows.select([5])}).save_to_disk(folder / "splits")
    rows.to_parquet(folder / "rows.parquet", batch_size=3)
    (folder / "shards").mkdir()
    for number, part in enumerate((clips[:5], clips[5:])):
        write_tar(folder / "shards" / f"a-{number:03d}.tar", [item for clip in part for item in members_of(clip)])
    return folder


@pytest.mark.parametrize("name", ["a.wav", "", "odd #1 @2%.flac", "日本/語.mp3", "line\nend.wav"])
def test_references_come_back_from_their_strings(name: str) -> None:
    for reference in (ByteRange("x/y#z.tar", name, 512, 0), ParquetCell("q.parquet", name, "audio[0]", 7)):
        text = str(reference)
        assert parse_reference(text) == reference
        assert file_of(text) == reference.file
        assert "\n" not in text
    assert (name_of("x.tar#b/a.wav@1+2"), suffix_of("x.tar#b/a.WAV@1+2")) == ("a", ".wav")


@pytest.mark.parametrize("path", ["a.wav", "take #3.wav", "x.tar#a@b+c", "x.tar#a.wav@5", "a.csv#x@audio[3]", "#@1+2"])
def test_ordinary_paths_are_no_references(path: str) -> None:
    assert parse_reference(path) is None
    assert file_of(path) == path


@pytest.mark.parametrize("text", ["text", "text=", "words=text", "text=a,text=b", "text=@line", "id=@file", "=a"])
def test_a_map_that_is_wrong_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="--map is '"):
        FieldMap.parse(text)


def test_a_map_renames_and_what_it_displaces_goes() -> None:
    row = {"sentence": "s", "text": "t", "path": "wavs/u1.wav", "more": 1}
    fields = FieldMap.parse("text=sentence, audio=path, id=@audio")
    assert fields.apply(4, row) == {"text": "s", "audio": "wavs/u1.wav", "id": "u1", "more": 1}
    assert FieldMap.parse("id=@line").apply(4, row)["id"] == "00000004"
    with pytest.raises(RejectedSample, match=r"'phrase' \(--map text=phrase\) is missing"):
        FieldMap.parse("text=phrase").apply(4, row)


def test_jsonl_keeps_its_numbers_under_a_map(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = {"utt": "u", "text": "t", "audio": "a.wav"}
    path.write_text("\n".join([json.dumps(good), "", "{", json.dumps({"text": "t"}), json.dumps(good)]) + "\n")
    rows = read(path, "id=utt")
    assert texts(rows) == [(1, "u", "t"), (5, "u", "t")]
    assert rejected(rows) == [(3, Reason.INVALID_JSON), (4, Reason.MISSING_FIELD)]


def test_csv_numbers_are_those_of_the_lines_and_a_bad_row_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b"\xef\xbb\xbfid,text,audio,duration,note\r\n"
        b'a,"one, ""two""\r\nthree",a.wav,1.5,\r\n'
        b"\r\n"
        b"b,short,b.wav\r\n"
        b'c,"never closed,c.wav,,\r\n'
        b"d,\xff,d.wav,,\r\n"
        b"e,five,e.wav,long,\r\n"
        b'f,"say "hi"",f.wav,,\r\n'
        b"g,six,g.wav,,x"
    )
    rows = read(path)
    assert texts(rows) == [(2, "a", 'one, "two"\r\nthree'), (10, "g", "six")]
    assert [row.duration for row in rows if isinstance(row, Utterance)] == [1.5, None]
    assert rejected(rows) == [
        (5, Reason.INVALID_FIELD),
        (6, Reason.INVALID_FIELD),
        (7, Reason.INVALID_ENCODING),
        (8, Reason.INVALID_FIELD),
        (9, Reason.INVALID_FIELD),
    ]
    assert next(row.message for row in rows if isinstance(row, Rejection)) == "the row has 3 fields, the header has 5"


def test_csv_of_other_delimiters_and_tsv_with_plain_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id;text;audio\n1;a, b;a.wav\n")
    assert texts(read(tmp_path / "a.csv")) == [(2, "1", "a, b")]
    (tmp_path / "a.tsv").write_text('id\ttext\taudio\n1\t"So," he said\ta.wav\n2\t"say ""hi"""\tb.wav\n3\t"x\tc.wav\n')
    assert texts(read(tmp_path / "a.tsv")) == [(2, "1", '"So," he said'), (3, "2", 'say "hi"'), (4, "3", '"x')]


@pytest.mark.parametrize(
    ("header", "mapping", "message"),
    [
        ("text,audio", None, r"no column 'id'; it has: audio, text.*--map id=COLUMN.*id=@line.*id=@audio"),
        ("id,sentence,audio", None, "no column 'text'.*--map text=COLUMN"),
        ("id,text,audio", "speaker=who", "no column 'who'"),
        ("id,text,audio,id", None, "names a column twice: 'id'"),
    ],
)
def test_a_header_that_does_not_do_is_an_error(tmp_path: Path, header: str, mapping: str | None, message: str) -> None:
    (tmp_path / "a.csv").write_text(header + "\n1,2,3\n")
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "a.csv", mapping)


def test_an_ljspeech_folder(tmp_path: Path, clips: list[dict[str, Any]]) -> None:
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs" / "LJ-1.wav").write_bytes(clips[0]["bytes"])
    (tmp_path / "metadata.csv").write_bytes(
        'LJ-1|In "1455|In "fourteen fifty-five\nLJ-2|Only one.\nLJ-3|Raw.|\na|b|c|d\nLJ-4|\xe9|\n'.encode("latin-1")
    )
    for manifest in (tmp_path, tmp_path / "metadata.csv"):
        rows = read(manifest)
        assert texts(rows) == [(1, "LJ-1", 'In "fourteen fifty-five'), (2, "LJ-2", "Only one."), (3, "LJ-3", "Raw.")]
        assert rejected(rows) == [(4, Reason.INVALID_FIELD), (5, Reason.INVALID_ENCODING)]
        first = rows[0]
        assert isinstance(first, Utterance)
        assert (first.audio, first.path) == ("wavs/LJ-1.wav", str(tmp_path / "wavs" / "LJ-1.wav"))
    assert texts(read(tmp_path, "text=raw_text"))[0] == (1, "LJ-1", 'In "1455')


@pytest.mark.usefixtures("tables_are_read_here")
@pytest.mark.parametrize(
    "manifest",
    ["saved", "splits", "splits:train", "rows.parquet", "shards", "shards/a-*.tar", "shards/a-{000..001}.tar"],
)
def test_clips_in_files_are_the_bytes_that_were_put_there(
    inputs: Path, clips: list[dict[str, Any]], manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_tars = manifest.startswith("shards")
    monkeypatch.chdir(tmp_path)  # files of the same names here must not be taken for the input's
    for name in ("a-000.tar", "rows.parquet", "data-00000-of-00002.arrow"):
        (tmp_path / name).write_bytes(b"something else")
    rows = read(inputs / manifest, "id=@audio" if in_tars else None)
    assert [row.line for row in rows] == list(range(1, 9))
    for row, clip in zip(rows, clips, strict=True):
        assert isinstance(row, Utterance)
        assert (row.id, row.text) == (clip["id"], clip["text"])
        assert read_clip(row.path) == clip["bytes"]
        assert Path(clip["audio"]).name in row.audio
        assert not os.path.isabs(row.audio)
        assert row.speaker == ("s1" if in_tars else None)
    extra = [json.loads(row.extra) for row in rows[:2] if isinstance(row, Utterance)]
    named = [{"accent": "north", "snr": None}, {"accent": "south", "snr": 1.5}]
    assert extra == ([{"take": 3}] * 2 if in_tars else named)


@pytest.mark.usefixtures("tables_are_read_here")
def test_a_split_is_named_after_a_colon(inputs: Path, clips: list[dict[str, Any]]) -> None:
    assert texts(read(f"{inputs}/splits:test")) == [(1, clips[5]["id"], clips[5]["text"])]
    with pytest.raises(ConfigError, match="has no split 'dev'; it has: train, test"):
        read(f"{inputs}/splits:dev")
    with pytest.raises(ConfigError, match="has no splits; omit :test"):
        read(f"{inputs}/saved:test")


@pytest.mark.usefixtures("tables_are_read_here")
def test_a_clip_decodes_as_its_file_does(inputs: Path, golden_small: Path, clips: list[dict[str, Any]]) -> None:
    for manifest in ("saved", "rows.parquet", "shards"):
        for row, clip in zip(read(inputs / manifest), clips, strict=True):
            assert isinstance(row, Utterance)
            file = golden_small / clip["audio"]
            assert read_header(row.path) == read_header(file)
            assert (load_waveform(row.path).samples == load_waveform(file).samples).all()


@pytest.mark.usefixtures("tables_are_read_here")
def test_parquet_rows_in_any_order_and_cells_without_audio(tmp_path: Path) -> None:
    values = [bytes([number]) * (number + 1) for number in range(50)]
    values[20:30] = [None] * 10  # type: ignore[list-item]
    table = {"id": [str(number) for number in range(50)], "text": ["t"] * 50, "sound": values}
    pq.write_table(pa.table(table, schema=pa.schema([("id", "str"), ("text", "str"), ("sound", pa.binary())])),
                   tmp_path / "p.parquet", row_group_size=20)  # fmt: skip
    rows = [row for row in read(tmp_path / "p.parquet", "audio=sound") if isinstance(row, Utterance)]
    assert rows[49].audio == "p.parquet#@sound[49]"
    for number in (49, 0, 1, 45, 3, 2, 19, 40, 39):
        assert read_clip(rows[number].path) == values[number]
    with pytest.raises(RejectedSample, match=r"p\.parquet#@sound\[25\]: the cell is empty"):
        read_clip(rows[25].path)
    with pytest.raises(RejectedSample, match="has only 50 rows"):
        read_clip(rows[49].path.replace("[49]", "[50]"))


@pytest.mark.usefixtures("tables_are_read_here")
def test_an_audio_column_of_paths_gives_paths(tmp_path: Path, golden_small: Path) -> None:
    audio = [{"bytes": None, "path": str(golden_small / "audio" / "synth6.ogg")}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"id": ["a"], "text": ["t"], "audio": pa.array(audio, kind)}), tmp_path / "p.parquet")
    datasets.Dataset.from_list([{"id": "a", "text": "t", "audio": audio[0]["path"]}]).save_to_disk(tmp_path / "saved")
    for name in ("p.parquet", "saved"):
        (row,) = read(tmp_path / name)
        assert isinstance(row, Utterance)
        assert row.path == audio[0]["path"]


@pytest.mark.usefixtures("tables_are_read_here")
def test_audio_that_is_neither_path_nor_bytes_is_an_error(tmp_path: Path) -> None:
    rows = {"id": ["a"], "text": ["t"], "audio": [{"array": [0.5], "sampling_rate": 16000}]}
    pq.write_table(pa.table(rows), tmp_path / "p.parquet")
    with pytest.raises(ConfigError, match=r"the column 'audio' has the type struct.*--map audio=COLUMN"):
        read(tmp_path / "p.parquet")


def test_tars_with_members_missing_and_fields_of_the_json(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [
            ("./x/1.json", json.dumps({"id": "own/id", "text": "from json"}).encode()),
            ("./x/1.txt", b"from txt"),
            ("./x/1.wav", b"one"),
            ("2.txt", b"no audio"),
            ("3.flac", b"three"),
            ("4.json", b"{"),
            ("5.en.txt", b"not said to be the text of what is mono"),
            ("5.mono.ogg", b"five"),
            ("6.take.txt", b" six \n"),
            ("6.take.ogg", b"six"),
        ],
    )
    rows = read(tmp_path / "a.tar")
    assert texts(rows) == [(1, "own/id", "from json"), (6, "6", "six")]
    missing = Reason.MISSING_FIELD
    assert rejected(rows) == [(2, missing), (3, missing), (4, Reason.INVALID_JSON), (5, missing)]


def test_a_damaged_tar_is_a_rejection_and_the_next_is_read(tmp_path: Path, clips: list[dict[str, Any]]) -> None:
    for name in ("1.tar", "2.tar", "3.tar"):
        write_tar(tmp_path / name, [item for clip in clips[:2] for item in members_of(clip)])
    whole = (tmp_path / "1.tar").read_bytes()
    second = whole.index(f"part/{clips[1]['id']}.txt".encode())
    (tmp_path / "1.tar").write_bytes(whole[:second] + b"#" * 512 + whole[second + 512 :])
    (tmp_path / "2.tar").write_bytes(whole[: second + 1024 + 700])
    rows = read(tmp_path)
    assert [row.line for row in rows] == list(range(1, 6))
    assert rejected(rows) == [(1, Reason.AUDIO_UNREADABLE), (3, Reason.AUDIO_UNREADABLE)]
    assert isinstance(rows[0], Rejection)
    assert f"1.tar: damaged at byte {second}, at or after sample 'part/{clips[0]['id']}'" in rows[0].message
    kept = [row for row in rows if isinstance(row, Utterance)]
    assert [read_clip(row.path) == clips[0]["bytes"] for row in kept] == [True, True, False]


def test_a_clip_beyond_the_end_of_its_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"12345")
    with pytest.raises(RejectedSample, match=r"x\.tar#a\.wav@3\+10: cut off.* 2 of the clip's 10 bytes") as caught:
        load_waveform(f"{tmp_path}/x.tar#a.wav@3+10")
    assert caught.value.reason is Reason.AUDIO_UNREADABLE
    with pytest.raises(RejectedSample, match=r"none\.tar#a\.wav@3\+10: no such file"):
        load_waveform(f"{tmp_path}/none.tar#a.wav@3+10")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", "cannot be read: No such file"),
        ("empty", "a folder without anything that can be read"),
        ("a.tar.gz", "is packed; decompress it first"),
        ("none-*.tar", "matches 0 files"),
        ("a-{0..2}.tar", "2 files are missing, the first is 'a-1.tar'"),
        ("bad.parquet", "cannot be read as Parquet"),
        ("empty:train", "is not a saved data set; omit :train"),
    ],
)
def test_an_input_that_is_none_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    for file in ("a.tar.gz", "bad.parquet", "a-0.tar"):
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / name)


def test_a_hub_id_that_is_neither_cached_nor_reachable_says_what_to_do() -> None:
    with pytest.raises(
        ConfigError, match=r"'nobody/nothing' \(no such file; taken as a data set on the Hub\) cannot be loaded"
    ):
        read("nobody/nothing")


HUB_SCRIPT = """
import json, pathlib, sys
from hfprep.inputs.audio.containers import read_clip
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.opening import open_source
rows = [row for _, row in open_source(pathlib.Path(sys.argv[1]), FieldMap())]
print(json.dumps([[row["id"], row["text"], len(read_clip(row["audio"]))] for row in rows]))
"""


def test_a_data_set_of_the_hub_is_fetched_once_and_then_read_offline(
    inputs: Path, clips: list[dict[str, Any]], tmp_path: Path, repository: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(repository)}

    def run(**more: str) -> list[list[Any]]:
        command = [sys.executable, "-c", HUB_SCRIPT, "acme/speech"]
        done = subprocess.run(command, env=environment | more, capture_output=True, cwd=tmp_path, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
        rows: list[list[Any]] = json.loads(done.stdout.splitlines()[-1])
        return rows

    expected = [[clip["id"], clip["text"], len(clip["bytes"])] for clip in clips]
    with serve_hub() as hub:
        file = (inputs / "rows.parquet").read_bytes()
        hub.repositories["acme/speech"] = Repository(False, {"data/train-00000-of-00001.parquet": file})
        assert run(HF_ENDPOINT=hub.url, NO_PROXY="127.0.0.1") == expected
    assert run(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1") == expected


CRASHING = """
import os

def disable_progress_bars():
    return False

def get_dataset_split_names(*_):
    os.kill(os.getpid(), 11)
"""


def test_a_crash_while_a_hub_data_set_is_converted_is_one_error(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "datasets.py").write_text(CRASHING)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{repository}"}
    command = [sys.executable, "-c", HUB_SCRIPT, "acme/speech"]
    done = subprocess.run(command, env=environment, capture_output=True, cwd=tmp_path, timeout=120, text=True)
    assert done.returncode == 1, done.stderr
    assert "ConfigError: --manifest 'acme/speech'" in done.stderr.splitlines()[-1]
    assert "the process that converts it crashed (SIGSEGV); download its files" in done.stderr.splitlines()[-1]


def test_a_hub_data_set_that_is_damaged_says_how_to_read_the_rest(
    inputs: Path, tmp_path: Path, repository: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(repository)}
    with serve_hub() as hub:
        file = bytearray((inputs / "rows.parquet").read_bytes())
        file[100:2000] = bytes(1900)
        hub.repositories["acme/speech"] = Repository(False, {"data/train-00000-of-00001.parquet": bytes(file)})
        environment |= {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-c", HUB_SCRIPT, "acme/speech"]
        done = subprocess.run(command, env=environment, capture_output=True, cwd=tmp_path, timeout=120, text=True)
    assert done.returncode == 1, done.stderr
    assert "cannot be converted: " in done.stderr.splitlines()[-1]
    assert "; download its files with `hf download acme/speech" in done.stderr.splitlines()[-1]


@pytest.mark.usefixtures("tables_are_read_here")
def test_what_tells_manifests_apart(inputs: Path, tmp_path: Path) -> None:
    fields = FieldMap()
    hashes = [rows_sha256(inputs / name, fields) for name in ("saved", "splits", "rows.parquet", "shards")]
    assert len(set(hashes)) == 4
    assert rows_sha256(inputs / "saved", fields) == hashes[0]
    (tmp_path / "m.jsonl").write_bytes(b"")
    assert rows_sha256(tmp_path / "m.jsonl", fields).startswith("e3b0c44298fc1c14")
