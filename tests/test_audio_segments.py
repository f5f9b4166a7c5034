"""Rows with an offset and a duration: that stretch of the recording, exactly, and no more of the file than it needs."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
from fsspec.spec import AbstractBufferedFile

import hfprep
from hfprep.errors import Reason, RejectedSample, StoreError
from hfprep.formats.arrow_writer import ArrowOptions, export_arrow
from hfprep.formats.formats import open_set
from hfprep.inputs.audio import containers
from hfprep.inputs.audio.decode import guess_seconds, load_waveform, read_header
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.opening import open_source
from hfprep.inputs.manifest.rows import AudioFinder, parse_line
from hfprep.io import object_storage
from hfprep.schema import Rejection, Segment, Utterance
from hfprep.store.fingerprints import AudioIdentity, Fingerprinter, source_of
from hfprep.tools.verify.checking import verify
from hfprep.tools.verify.options import VerifyOptions
from tests.av_files import encode, tone
from tests.sample_schemas import speech_schema

SECONDS = 20.0
STRETCHES = [(0.0, 0.5), (0.013, 1.0), (7.25, 2.0), (18.5, 1.5), (12.345678, 0.777)]

# Suffix, FFmpeg's container and codec, Hz, and by how much samples may differ from those of the whole recording.
FORMATS = [
    ("wav", "wav", "pcm_s16le", 16_000, 0.0),
    ("flac", "flac", "flac", 44_100, 0.0),
    ("opus", "ogg", "libopus", 48_000, 0.0),
    ("mp3", "mp3", "libmp3lame", 44_100, 2e-7),
    ("low.mp3", "mp3", "libmp3lame", 16_000, 2e-7),
    ("mka", "matroska", "flac", 16_000, 0.0),
    ("m4a", "ipod", "aac", 44_100, 1e-4),
    ("ts", "mpegts", "aac", 16_000, 1e-6),
    ("aac", "adts", "aac", 16_000, 1e-6),
    ("oga", "ogg", "flac", 16_000, 0.0),
    ("wv", "wv", "wavpack", 16_000, 0.0),
]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recordings")
    found = {}
    for suffix, container, codec, rate, _ in FORMATS:
        bit_rate = 16_000 if suffix == "low.mp3" else None
        # Where an AAC encoder leaves noise to the decoder, that is another noise after a seek.
        codec_options = {"aac_pns": "0"} if codec == "aac" else None
        path = folder / f"a.{suffix}"
        found[suffix] = encode(
            path, container, codec, tone(SECONDS, rate), rate, bit_rate=bit_rate, codec_options=codec_options
        )
    return found


@pytest.mark.parametrize(("suffix", "_container", "_codec", "rate", "tolerance"), FORMATS)
def test_a_segment_is_the_same_stretch_of_the_whole(
    recordings: dict[str, Path], suffix: str, _container: str, _codec: str, rate: int, tolerance: float
) -> None:
    path = recordings[suffix]
    whole = load_waveform(path, sampling_rate=rate).samples
    for offset, seconds in STRETCHES:
        segment = Segment(offset, seconds)
        found = load_waveform(path, sampling_rate=rate, segment=segment)
        first, end = round(offset * rate), round((offset + seconds) * rate)
        assert found.seconds == pytest.approx(seconds, abs=1 / rate)
        np.testing.assert_allclose(found.samples, whole[first:end], rtol=0, atol=tolerance)
        assert read_header(path, segment=segment).seconds == pytest.approx(seconds, abs=1 / rate)
        assert guess_seconds(path, segment) == seconds


def test_a_segment_of_webm_is_where_its_times_say(tmp_path: Path) -> None:
    """Matroska counts in milliseconds: a stretch begins within one of where it should."""
    sound = np.zeros((1, 48_000 * 10), np.float32)
    sound[0, 48_000 * 6 : 48_000 * 7] = tone(1.0, 48_000)
    path = encode(tmp_path / "a.webm", "webm", "libopus", sound, 48_000)
    found = load_waveform(path, segment=Segment(5.5, 1.0))
    loud = np.flatnonzero(np.abs(found.samples) > 0.1)
    assert found.seconds == 1.0
    assert loud[0] / 16_000 == pytest.approx(0.5, abs=0.005)


def test_only_that_stretch_is_read(tmp_path: Path) -> None:
    path = tmp_path / "hours.wav"
    with soundfile.SoundFile(path, "w", 48_000, 2, "PCM_16") as file:
        for _ in range(20):
            file.write(np.zeros((48_000 * 60, 2), np.int16))
    before = bytes_read()
    assert load_waveform(path, segment=Segment(1_000.0, 2.0)).seconds == 2.0
    assert bytes_read() - before < 2_000_000


class Held:
    """Stands for a store with one file, whose bytes that were asked for are counted; `fails_at`: of which answer."""

    def __init__(self, content: bytes, fails_at: int = 1 << 30) -> None:
        self.content, self.fails_at = content, fails_at
        self.given = self.answers = 0

    def info(self, path: str) -> dict[str, Any]:
        del path
        return {"size": len(self.content), "ETag": "1", "type": "file"}

    def open(self, path: str, mode: str, *, block_size: int, cache_type: str) -> Any:
        del path, mode
        held = self

        class File(AbstractBufferedFile):
            def _fetch_range(self, start: int, end: int) -> bytes:
                held.answers += 1
                if held.answers > held.fails_at:
                    raise ConnectionError("reset by peer")
                held.given += end - start
                return held.content[start:end]

        return File(None, "x", "rb", block_size=block_size, cache_type=cache_type, size=len(self.content))


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is held in memory."""
    monkeypatch.setattr(containers, "MAX_CLIP_BYTES", 1)
    monkeypatch.setattr(containers, "FETCHED_WHOLE_BYTES", 1)


@pytest.mark.parametrize("suffix", [row[0] for row in FORMATS])
@pytest.mark.usefixtures("in_place")
def test_what_is_read_where_it_is_has_the_same_numbers(
    recordings: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    content = recordings[suffix].read_bytes()
    (tmp_path / "x.tar").write_bytes(b"RIFF" * 128 + content + b"OggS" * 1000)
    store = Held(content)
    monkeypatch.setattr(object_storage, "opened", lambda url: (store, url))
    inside, there = f"{tmp_path}/x.tar#a.{suffix}@512+{len(content)}", f"s3://data/a.{suffix}"
    for segment in (None, *(Segment(*stretch) for stretch in STRETCHES)):
        expected = load_waveform(recordings[suffix], segment=segment)
        for place in (inside, there):
            found = load_waveform(place, segment=segment)
            np.testing.assert_array_equal(found.samples, expected.samples)
            assert found.seconds == expected.seconds
            assert read_header(place, segment=segment) == read_header(recordings[suffix], segment=segment)
            assert guess_seconds(place, segment) == guess_seconds(recordings[suffix], segment)
    cut = inside.replace(f"+{len(content)}", f"+{len(content) - 3000}")
    with pytest.raises(RejectedSample):
        load_waveform(cut)


@pytest.mark.parametrize("suffix", [row[0] for row in FORMATS])
@pytest.mark.usefixtures("in_place")
def test_a_read_that_fails_half_way_is_no_end(
    recordings: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], suffix: str
) -> None:
    monkeypatch.setattr(object_storage, "READ_AHEAD_BYTES", 1 << 12)
    counting = store = Held(recordings[suffix].read_bytes())
    monkeypatch.setattr(object_storage, "opened", lambda url: (store, url))
    load_waveform("s3://data/counted.wav")
    for answers in {0, 1, counting.answers // 2, counting.answers - 1}:
        store = Held(counting.content, fails_at=answers)
        with pytest.raises(StoreError, match="reset by peer"):
            load_waveform(f"s3://data/{answers}.wav")
    assert "Traceback" not in capfd.readouterr().err


def test_of_a_large_object_only_the_stretch_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    target = BytesIO()
    soundfile.write(target, np.zeros(48_000 * 600, np.int16), 48_000, format="WAV")
    store = Held(target.getvalue())
    monkeypatch.setattr(object_storage, "opened", lambda url: (store, url))
    assert load_waveform("s3://data/long.wav", segment=Segment(300.0, 2.0)).seconds == 2.0
    assert store.given < len(store.content) / 10


def bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def test_a_segment_ends_where_the_recording_does(recordings: dict[str, Path]) -> None:
    for suffix in ("wav", "flac", "mp3", "m4a", "aac"):
        path = recordings[suffix]
        end = load_waveform(path).seconds
        assert load_waveform(path, segment=Segment(15.0)).seconds == pytest.approx(end - 15.0, abs=0.1)
        assert load_waveform(path, segment=Segment(19.0, end - 19.0 + 0.03)).seconds == pytest.approx(
            end - 19, abs=0.05
        )
        for segment in (Segment(19.0, 2.0), Segment(0.0, 100.0), Segment(20.5, 0.5), Segment(1e8), Segment(1e8, 1e8)):
            for function in (load_waveform, read_header):
                with pytest.raises(RejectedSample) as caught:
                    function(path, segment=segment)
                assert caught.value.reason in (Reason.AUDIO_UNREADABLE, Reason.AUDIO_EMPTY)
                assert str(path) in caught.value.message


def test_a_segment_needs_no_more_of_a_cut_file_than_itself(recordings: dict[str, Path], tmp_path: Path) -> None:
    for suffix in ("wav", "mka"):
        path = tmp_path / f"cut.{suffix}"
        content = recordings[suffix].read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert load_waveform(path, segment=Segment(2.0, 3.0)).seconds == 3.0
        with pytest.raises(RejectedSample):
            load_waveform(path, segment=Segment(9.0, 3.0))
        with pytest.raises(RejectedSample):
            load_waveform(path)


def rows_of(path: Path, mapping: str = "") -> list[Utterance | Rejection]:
    finder = AudioFinder(path)
    return [parse_line(number, raw, finder, None) for number, raw in open_source(path, FieldMap.parse(mapping))]


def test_rows_with_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    values: list[dict[str, Any]] = [
        {"offset": 1.5, "duration": 2},
        {"offset": 0, "duration": 0.25},
        {"duration": 2.0},
        {"offset": None, "duration": 2.0},
        {"offset": 3.0},
        {"offset": -1.0, "duration": 1.0},
        {"offset": "1.0", "duration": 1.0},
        {"offset": 1.0, "duration": 0},
        {"offset": 1e308, "duration": 1.0},
        {"offset": 1.0, "duration": 1e308},
        {"offset": float("nan"), "duration": 1.0},
        {"offset": True, "duration": 1.0},
        {"duration": 10**400},
    ]
    rows = [{"id": str(number), "text": "t", "audio": "a.wav"} | row for number, row in enumerate(values)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = rows_of(path)
    segments = [row.segment if isinstance(row, Utterance) else row.reason for row in found]
    assert segments[:5] == [Segment(1.5, 2.0), Segment(0.0, 0.25), None, None, Segment(3.0, None)]
    assert segments[5:] == [Reason.INVALID_FIELD] * 8
    assert isinstance(found[0], Utterance)
    assert json.loads(found[0].extra) == {"offset": 1.5}  # the Arrow dataset keeps it, as it did


def test_the_fields_may_have_other_names(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "t", "wav": "a.wav", "start": 2.5, "length": 1.25}) + "\n")
    (found,) = rows_of(path, "audio=wav,offset=start,duration=length")
    assert isinstance(found, Utterance)
    assert found.segment == Segment(2.5, 1.25)


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_tables_have_segments_too(tmp_path: Path, suffix: str, delimiter: str) -> None:
    path = tmp_path / f"m.{suffix}"
    rows = [
        ("id", "text", "audio", "offset", "duration"),
        ("a", "t", "a.wav", "0.5", "2"),
        ("b", "t", "a.wav", "", "2"),
    ]
    path.write_text("".join(delimiter.join(row) + "\n" for row in rows))
    segments = [row.segment for row in rows_of(path) if isinstance(row, Utterance)]
    assert segments == [Segment(0.5, 2.0), None]


FINGERPRINTER = Fingerprinter(
    speech_schema(), {"text": {"tokenizer": "t"}, "codes": {"encoder": "e"}, "latents": {"gpt": "g"}}
)


def utterance(**values: Any) -> Utterance:
    given: dict[str, Any] = {
        "line": 1,
        "id": "a",
        "text": "Hello.",
        "audio": "wavs/a.wav",
        "path": "/x/wavs/a.wav",
        "language": "en",
    }
    return Utterance(**(given | {"duration": 2.5, "speaker": "s", "extra": '{"k": 1}'} | values))


def test_fingerprints_of_whole_recordings_are_those_of_0_1_0() -> None:
    """Computed by that version: an output of it is continued, not begun again."""
    row = utterance()
    text = "c6643acfcc35d6716c33ea8e6493aec8"
    assert FINGERPRINTER.of(row, AudioIdentity(1000, 5)) == {
        "text": text,
        "codes": "90148b3a5e494e6534bbb6906dfe831a",
        "latents": "352efab8ce6cec064ba4e907dc6ed43c",
    }
    assert FINGERPRINTER.of(row, AudioIdentity(1000, 5, "ab" * 32)) == {
        "text": text,
        "codes": "b6853436637071c712474eb5c9608ab5",
        "latents": "e52d398bd2bb5f847bfc01090a40c28e",
    }
    assert source_of(row, AudioIdentity(1000, 5)) == (
        '{"text": "Hello.", "language": "en", "audio": "wavs/a.wav", "size": 1000, "mtime_ns": 5, "sha256": null}'
    )


def test_a_segment_is_part_of_what_was_computed() -> None:
    for audio in (AudioIdentity(1000, 5), AudioIdentity(1000, 5, "ab" * 32)):
        rows = [utterance(), utterance(offset=0.0), utterance(offset=0.5), utterance(offset=0.5, duration=3.0)]
        found = [FINGERPRINTER.of(row, audio) for row in rows]
        counts = {group: len({prints[group] for prints in found}) for group in ("text", "codes", "latents")}
        assert counts == {"text": 1, "codes": 4, "latents": 4}
    source = json.loads(source_of(utterance(offset=0.5), AudioIdentity(1000, 5)))
    assert (source["offset"], source["duration"]) == (0.5, 2.5)


def test_a_build_of_segments(repository: Path, golden_small: Path, tmp_path: Path) -> None:
    """Each has its own codes, the same ones as a file with that stretch has, and a rerun computes what moved."""
    clip = golden_small / "audio" / "synth5.wav"
    samples, rate = soundfile.read(clip)
    half = len(samples) / rate / 2
    soundfile.write(tmp_path / "second.wav", samples[round(half * rate) :], rate, subtype="PCM_16")
    manifest = tmp_path / "m.jsonl"
    rows = [
        {"id": "first", "audio": str(clip), "text": "Hello.", "offset": 0.0, "duration": half},
        {"id": "second", "audio": str(clip), "text": "There.", "offset": half, "duration": half},
        {"id": "file", "audio": str(tmp_path / "second.wav"), "text": "There."},
        {"id": "beyond", "audio": str(clip), "text": "There.", "offset": half, "duration": 2 * half},
    ]
    config = hfprep.BuildConfig(
        manifest=manifest, models=golden_small / "checkpoints", output_dir=tmp_path / "out", val_ratio=0.0
    )
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = hfprep.build(config)
    assert (summary.accepted, summary.rejected) == (3, {"audio_unreadable": 1})
    codes = {name: np.load(tmp_path / "out" / "codes" / f"{name}.npy") for name in ("first", "second", "file")}
    np.testing.assert_array_equal(codes["second"], codes["file"])
    assert not np.array_equal(codes["first"], codes["second"])
    export_arrow(open_set(tmp_path / "out"), tmp_path / "arrow", ArrowOptions(find_audio=str))
    exported = datasets.load_from_disk(str(tmp_path / "arrow"))["train"]
    clips = {}
    for row in exported.cast_column("audio", datasets.Audio(decode=False)):
        content, exported_rate = soundfile.read(BytesIO(row["audio"]["bytes"]), always_2d=True)
        assert exported_rate == rate
        assert len(content) == pytest.approx(half * rate, abs=1)
        clips[row["id"]] = content.mean(axis=1)
    np.testing.assert_array_equal(clips["second"], clips["file"])
    assert not verify(VerifyOptions(output_dir=tmp_path / "out", parity=3, device="cpu")).faults
    before = {name: (tmp_path / "out" / "codes" / f"{name}.npy").stat().st_ino for name in codes}
    rows[0] |= {"offset": half / 2}
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert hfprep.build(config).accepted == 3
    after = {name: (tmp_path / "out" / "codes" / f"{name}.npy").stat().st_ino for name in codes}
    assert {name for name in codes if before[name] != after[name]} == {"first"}


def test_the_segments_of_the_case_are_read(repository: Path) -> None:
    folder = repository / "tests" / "data" / "cases"
    expected = json.loads((folder / "expect.json").read_text())["manifests"]["segments-by-offset.jsonl"]
    found = rows_of(folder / "segments-by-offset.jsonl", expected["args"][1])
    read = []
    for row in found:
        assert isinstance(row, Utterance)
        read.append([row.id, row.text, load_waveform(row.path, segment=row.segment).seconds])
    assert read == expected["accept"]
