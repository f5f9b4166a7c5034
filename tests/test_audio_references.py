"""Whatever a row names as its audio costs at most that row: no hang, no flood of memory, no traceback."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

import hfprep
from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio import av_decode, containers, sndfile_decode, sound
from hfprep.inputs.audio.containers import read_clip
from hfprep.inputs.audio.decode import guess_seconds, load_waveform, read_header
from hfprep.pipeline.inspection import identify_audio
from hfprep.pipeline.intake import SampleLimits, Task, check_seconds, expected_seconds, load_sample
from hfprep.recipes.indextts import SemanticAudio
from hfprep.schema import Rejection, Utterance
from tests.av_files import encode, tone
from tests.sample_schemas import speech_schema

HUGE = (10**14, 10**18, 10**26, 10**400)


def looks(by_content: bool) -> list[Callable[[str], object]]:
    return [lambda path: identify_audio(path, by_content=by_content), load_waveform, read_header, guess_seconds]


@pytest.fixture
def strange(tmp_path: Path) -> list[str]:
    """Values of `audio` that a stranger might write, none of which is a clip."""
    (tmp_path / "f.tar").write_bytes(b"RIFF" + bytes(5_000))
    (tmp_path / "empty.tar").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    os.mkfifo(tmp_path / "fifo.parquet")
    (tmp_path / "folder").mkdir()
    column = pa.array([{"bytes": None, "path": "x"}, {"bytes": b"no sound", "path": "x"}])
    pq.write_table(pa.table({"audio": column}), tmp_path / "cells.parquet")
    pq.write_table(pa.table({"audio": pa.array([{"path": "x"}])}), tmp_path / "paths.parquet")
    pq.write_table(pa.table({"audio": pa.array([{"bytes": 7, "path": "x"}])}), tmp_path / "numbers.parquet")
    pq.write_table(pa.table({"audio": pa.array(["text"])}), tmp_path / "texts.parquet")
    (tmp_path / "damaged.parquet").write_bytes((tmp_path / "cells.parquet").read_bytes()[:-30] + b"x" * 30)
    folder = str(tmp_path)
    values = [f"{folder}/f.tar#x@0+{huge}" for huge in HUGE]
    values += [f"{folder}/f.tar#x@{huge}+5" for huge in HUGE]
    values += [f"{folder}/f.tar#x.wav@4000+2000", f"{folder}/f.tar#x.wav@0+0", f"{folder}/empty.tar#x@0+1"]
    values += [
        f"{name}#x@0+{huge}" for name in (f"{folder}/fifo", "/dev/zero", f"{folder}/folder") for huge in (10, 10**26)
    ]
    values += [f"{folder}/{name}.parquet#x@audio[0]" for name in ("paths", "numbers", "texts", "damaged", "fifo", "no")]
    values += [f"{folder}/cells.parquet#x@{cell}" for cell in ("audio[0]", "audio[1]", f"audio[{HUGE[2]}]", "other[0]")]
    values += [f"{folder}/fifo", f"{folder}/folder", "/dev/zero", "/dev/stdin", "/proc/self/mem", f"{folder}/a\0b"]
    return values


def test_strange_audio_is_rejected_at_once(strange: list[str]) -> None:
    for path in strange:
        for look in (load_waveform, read_header, guess_seconds):
            started = time.monotonic()
            with pytest.raises(RejectedSample) as caught:
                look(path)
            assert caught.value.reason in (Reason.AUDIO_UNREADABLE, Reason.AUDIO_MISSING, Reason.AUDIO_EMPTY), path
            assert time.monotonic() - started < 2, path
        assert expected_seconds(path, None) is None


@pytest.mark.parametrize("by_content", [False, True])
def test_strange_audio_is_told_apart_or_rejected(strange: list[str], by_content: bool) -> None:
    for path in strange:
        started = time.monotonic()
        with contextlib.suppress(RejectedSample):
            assert identify_audio(path, by_content=by_content).size < 1 << 62
        assert time.monotonic() - started < 2, path


@pytest.mark.parametrize("hash_audio", [False, True])
def test_a_build_and_a_check_of_strange_audio_come_to_their_end(
    strange: list[str], tmp_path: Path, golden_small: Path, hash_audio: bool
) -> None:
    rows = [{"id": str(number), "text": "Hello.", "audio": path} for number, path in enumerate(strange)]
    good = {"id": "good", "text": "Hello.", "audio": str(golden_small / "audio" / "synth7.wav")}
    rows.insert(3, good)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = hfprep.BuildConfig(
        manifest=manifest, models=golden_small / "checkpoints", output_dir=tmp_path / "out", hash_audio=hash_audio
    )
    summary = hfprep.build(config)
    assert (summary.lines_read, summary.accepted) == (len(rows), 1)
    assert sum(summary.rejected.values()) == len(rows) - 1


def test_a_large_file_of_nothing_inside_another_is_left_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tar"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    for look in (load_waveform, read_header):
        with pytest.raises(RejectedSample, match="is it audio"):
            look(f"{path}#x.wav@512+{1 << 39}")
    for name in (str(path), f"{path}#x.wav@512+{1 << 39}"):
        with pytest.raises(RejectedSample, match="GiB"):
            identify_audio(name, by_content=True)
    with pytest.raises(RejectedSample, match="save it as a file on a local disk"):
        read_clip(f"{path}#x.wav@512+{1 << 39}")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "start", [b"", b"ID3\4\0\0\0\0\0\0", b"\xff\xfb\x90\x64", b"OggS\0\2", b"RIFF", b"fLaC", b"\1"]
)
def test_large_files_of_nothing_are_left_at_once(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "sparse.mp3"
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(1 << 40)
    started = time.monotonic()
    with pytest.raises(RejectedSample):
        load_waveform(path)
    assert time.monotonic() - started < 5


def test_a_parquet_column_is_read_on_after_a_damaged_group(tmp_path: Path, golden_small: Path) -> None:
    clip = (golden_small / "audio" / "synth7.wav").read_bytes()
    path = tmp_path / "p.parquet"
    noise = np.random.default_rng(0).bytes(40_000)
    pq.write_table(pa.table({"audio": [noise, clip]}), path, row_group_size=1, compression="zstd")
    content = bytearray(path.read_bytes())
    group = pq.ParquetFile(path).metadata.row_group(0).column(0)
    start = group.dictionary_page_offset
    content[start : start + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    path.write_bytes(content)
    column = containers.ParquetColumn(str(path), "audio")
    for _ in range(2):
        with pytest.raises((OSError, RejectedSample, pa.ArrowException)):
            column.read(containers.ParquetCell(str(path), "", "audio", 0))
        assert column.read(containers.ParquetCell(str(path), "", "audio", 1)) == clip
    column.close()


SCHEMA = speech_schema()
LIMITS = SampleLimits(schema=SCHEMA, min_frames=5, max_frames=1_000)  # 20 s


def reason_to_refuse(path: Path) -> tuple[Reason, float]:
    """Why a clip is refused under `LIMITS`, and the samples' bytes that were held at most."""
    from hfprep.pipeline.intake import Intake, IntakeSettings

    intake = Intake(None, IntakeSettings(limits=LIMITS, audio=SemanticAudio()))
    row = Utterance(1, "a", "t", str(path), str(path))
    tracemalloc.start()
    found = load_sample(Task(row, SCHEMA.audio_groups, True), None, intake.read_audio, LIMITS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(found, Rejection), found
    return found.reason, peak


@pytest.mark.parametrize(
    ("suffix", "container", "codec", "rate"),
    [
        ("wav", "wav", "pcm_s16le", 16_000),
        ("flac", "flac", "flac", 16_000),
        ("mp3", "mp3", "libmp3lame", 16_000),
        ("opus", "ogg", "libopus", 48_000),
        ("m4a", "ipod", "aac", 16_000),
        ("webm", "webm", "libopus", 48_000),
        ("aac", "adts", "aac", 16_000),
        ("ts", "mpegts", "aac", 16_000),
    ],
)
def test_what_is_far_too_long_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, container: str, codec: str, rate: int
) -> None:
    path = encode(tmp_path / f"a.{suffix}", container, codec, np.zeros((1, rate * 120), np.float32), rate)
    decoded = []
    real = sound.mono

    def mono(clip: sound.Clip, block: np.ndarray) -> np.ndarray:
        decoded.append(len(block))
        return real(clip, block)

    for module in (sndfile_decode, av_decode):
        monkeypatch.setattr(module, "mono", mono)
    reason, peak = reason_to_refuse(path)
    assert reason is Reason.AUDIO_TOO_LONG
    # What says its length is refused before; what does not, once it has passed the limit.
    assert sum(decoded) <= (40 * rate if suffix == "ts" else 0)
    assert peak < 20_000_000


def lying_flac(path: Path, seconds: int, claimed: int) -> Path:
    soundfile.write(path, np.zeros(16_000 * seconds), 16_000, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[21] = content[21] & 0xF0 | claimed >> 32
    content[22:26] = (claimed & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(content)
    return path


def test_a_header_that_lies_ends_at_the_limit(tmp_path: Path) -> None:
    unknown = lying_flac(tmp_path / "unknown.flac", 300, 0)
    assert reason_to_refuse(unknown)[0] is Reason.AUDIO_TOO_LONG
    assert reason_to_refuse(unknown)[1] < 30_000_000
    assert reason_to_refuse(lying_flac(tmp_path / "more.flac", 2, 16_000 * 36_000))[0] is Reason.AUDIO_TOO_LONG
    assert reason_to_refuse(lying_flac(tmp_path / "little.flac", 2, 16_000 * 3))[0] is Reason.AUDIO_UNREADABLE
    webm = encode(tmp_path / "a.webm", "webm", "libopus", np.zeros((1, 48_000 * 120), np.float32), 48_000)
    content = webm.read_bytes()
    at = content.index(b"\x44\x89\x88") + 3  # the duration, a float of 8 bytes, in milliseconds
    lie = np.array([2_000.0], ">f8").tobytes()
    tag = content.index(b"00:02:00.0")  # and the track's own tag
    webm.write_bytes(content[:at] + lie + content[at + 8 : tag] + b"00:00:02.0" + content[tag + 10 :])
    assert reason_to_refuse(webm)[0] is Reason.AUDIO_TOO_LONG


def test_a_check_of_the_length_is_exact_near_the_limit() -> None:
    told: list[int] = []

    def check_frames(frames: int) -> None:
        if frames > 1_000:
            told.append(frames)
            raise RejectedSample(Reason.AUDIO_TOO_LONG, f"{frames} frames")

    check = check_seconds(check_frames, SemanticAudio())
    for seconds in (0.0, 1.0, 19.9, 20.3):  # a little over may be a header's error: decoding decides
        check(seconds)
    with pytest.raises(RejectedSample, match="1799999 frames"):
        check(36_000.0)


def test_the_time_for_a_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.m4a", "ipod", "aac", tone(5.0, 16_000), 16_000)
    monkeypatch.setattr(av_decode, "BASE_SECONDS", -1.0)
    with pytest.raises(RejectedSample):
        load_waveform(path)


CHILD = """
import resource, sys
import hfprep
config = hfprep.BuildConfig(manifest=sys.argv[1], models=sys.argv[2], output_dir=sys.argv[3])
summary = hfprep.build(config)
print(summary.accepted, dict(summary.rejected), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
      resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
def test_peak_memory_of_a_build_with_ten_hours_in_one_file(tmp_path: Path, golden_small: Path) -> None:
    """As a file, inside a tar, and with a header that does not say how long it is."""
    path = tmp_path / "ten-hours.flac"
    with soundfile.SoundFile(path, "w", 16_000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(600):
            file.write(np.zeros(16_000 * 60, np.int16))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    (tmp_path / "silent.flac").write_bytes(content)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(path, "a.flac")
    with tarfile.open(tmp_path / "x.tar") as archive:
        place = f"{tmp_path}/x.tar#a.flac@{archive.getmembers()[0].offset_data}+{path.stat().st_size}"
    paths = [str(path), str(tmp_path / "silent.flac"), place, str(golden_small / "audio" / "synth7.wav")]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(
        "".join(json.dumps({"id": str(n), "text": "Hello.", "audio": audio}) + "\n" for n, audio in enumerate(paths))
    )
    command = [sys.executable, "-c", CHILD, str(manifest), str(golden_small / "checkpoints"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    accepted, *_, own, children = done.stdout.split()
    assert accepted == "1"
    assert max(int(own), int(children)) * 1024 < 1.5e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
