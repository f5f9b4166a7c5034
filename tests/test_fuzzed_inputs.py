"""Thousands of damaged manifests, references, tables and tars: every line is accounted for, and nothing is raised."""

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hfprep
from hfprep.errors import HfprepError, RejectedSample
from hfprep.inputs.audio.decode import load_waveform
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.opening import open_source
from hfprep.inputs.manifest.rows import AudioFinder, parse_line
from hfprep.schema import Rejection

pytestmark = pytest.mark.slow

VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 10**30, 1e308, "", " ", "\0", "\x1b[2J", "../x", "/etc/passwd", "[/x]", "\udc80", "ü" * 300),
    *(
        [],
        {},
        [[1]],
        {"a": 1},
        "s3://none/x.wav",
        "webhdfs://127.0.0.1:1/x",
        "http://x/y",
        "good.wav#a@0+5",
        "x/" * 900,
    ),
)
NAMES = ("id", "text", "audio", "speaker", "language", "duration", "offset", "note")


def fuzzed_row(chance: random.Random, number: int) -> bytes:
    """A manifest line: a row with some values that are odd, and then perhaps some odd bytes."""
    row: dict[str, Any] = {"id": f"row{number}", "text": "Hello there.", "audio": "good.wav"}
    for _ in range(chance.choice((0, 0, 1, 1, 2, 4))):
        row[chance.choice(NAMES)] = chance.choice(VALUES)
    if chance.random() < 0.1:
        row.pop(chance.choice(NAMES), None)
    line = bytearray(json.dumps(row, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass"))
    if chance.random() < 0.2:
        line[chance.randrange(len(line))] = chance.choice([b for b in range(256) if b != 10])
    if chance.random() < 0.05:
        del line[chance.randrange(len(line)) :]
    return bytes(line)


def test_3000_lines_are_accounted_for_in_a_build(tmp_path: Path, golden_small: Path) -> None:
    chance = random.Random(3000)
    row = json.loads((golden_small / "manifest.jsonl").read_bytes().splitlines()[0])
    (tmp_path / "good.wav").write_bytes((golden_small / row["audio"]).read_bytes())
    lines = [fuzzed_row(chance, number) for number in range(3000)]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    summary = hfprep.build(
        hfprep.BuildConfig(
            manifest=tmp_path / "rows.jsonl",
            output_dir=tmp_path / "out",
            models=golden_small / "checkpoints",
            max_samples=400,
        )
    )
    read = sum(bool(line.strip()) for line in lines)
    assert summary.lines_read == read
    assert summary.accepted + sum(summary.rejected.values()) + summary.capped == read
    assert summary.accepted > 100


def fuzzed_reference(chance: random.Random, files: list[str]) -> str:
    numbers = ("0", "1", "44", "5" * 30, "9223372036854775807", "9223372036854775808", "1000000", "-1", "")
    file, name = chance.choice(files), chance.choice(("a.wav", "", "%00", "a#b", "é", "x" * 300, "a.raw", "a.mp3"))
    if chance.random() < 0.6:
        return f"{file}#{name}@{chance.choice(numbers)}+{chance.choice(numbers)}"
    return f"{file}#{name}@{chance.choice(('audio', 'text', 'none', 'audio.bytes', ''))}[{chance.choice(numbers)}]"


def test_300_references_give_audio_or_a_rejection(tmp_path: Path, golden_small: Path) -> None:
    chance = random.Random(300)
    row = json.loads((golden_small / "manifest.jsonl").read_bytes().splitlines()[0])
    clip = (golden_small / row["audio"]).read_bytes()
    (tmp_path / "good.wav").write_bytes(clip)
    pq.write_table(pa.table({"audio": [clip, None], "text": ["a", "b"]}), tmp_path / "t.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1" + clip)
    (tmp_path / "empty.tar").touch()
    files = [str(tmp_path / name) for name in ("good.wav", "t.parquet", "damaged.parquet", "empty.tar", "none", ".")]
    outcomes = {"audio": 0, "rejected": 0}
    for _ in range(300):
        try:
            load_waveform(fuzzed_reference(chance, files))
            outcomes["audio"] += 1
        except RejectedSample:
            outcomes["rejected"] += 1
    assert sum(outcomes.values()) == 300
    assert outcomes["rejected"] > 100


def tar_of(chance: random.Random) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode="w", format=chance.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    ) as archive:
        for number in range(6):
            for suffix in chance.choice((("txt", "wav"), ("wav",), ("0.wav", "1.wav", "txt"), ("json", "flac"))):
                member = tarfile.TarInfo(f"{chance.choice(('', 'x/', 'ü' * 60 + '/'))}clip{number}.{suffix}")
                content = b'{"text": "t"}' if suffix == "json" else b"some text"
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def parquet_of(chance: random.Random) -> bytes:
    stream = io.BytesIO()
    count = chance.choice((0, 1, 5, 40))
    columns = {
        "id": [f"row{number}" for number in range(count)],
        "text": pa.array(["Hello"] * count, chance.choice((pa.string(), pa.large_string(), pa.string_view()))),
        "audio": chance.choice(([b"1234"] * count, [{"bytes": b"12", "path": None}] * count, ["a.wav"] * count)),
        "note": [[1, None]] * count,
    }
    pq.write_table(pa.table(columns), stream, row_group_size=7, compression=chance.choice(("none", "snappy", "zstd")))
    return stream.getvalue()


@pytest.mark.parametrize(("suffix", "make", "count"), [("parquet", parquet_of, 150), ("tar", tar_of, 150)])
def test_300_tables_and_tars_are_read_or_one_error(
    tmp_path: Path, suffix: str, make: Callable[[random.Random], bytes], count: int
) -> None:
    chance = random.Random(suffix)
    outcomes = {"rows": 0, "rejections": 0, "errors": 0}
    path = tmp_path / f"t.{suffix}"
    for _ in range(count):
        content = bytearray(make(chance))
        for _ in range(chance.choice((1, 2, 5, 30))):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content if chance.random() < 0.8 else content[: chance.randrange(len(content))])
        try:
            rows = list(open_source(path, FieldMap()))
        except HfprepError:
            outcomes["errors"] += 1
            continue
        numbers = [number for number, _ in rows]
        assert numbers == sorted(set(numbers))
        for number, raw in rows:
            rejected = isinstance(parse_line(number, raw, AudioFinder(path), None), Rejection)
            outcomes["rejections" if rejected else "rows"] += 1
    assert outcomes["rows"] > 50
    assert outcomes["rejections"]
