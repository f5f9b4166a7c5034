"""Recordings are accepted whole or not at all, whatever they are wrapped in: each kind whole, cut, joined, damaged."""

import functools
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio.decode import guess_seconds, load_waveform, read_header
from tests.av_files import KINDS, encode, encode_kind, tone

SECONDS = 3.0
FRAME_SECONDS = 0.1  # codecs fill up their last frame
UNSEEN_CUTS = {"g722", "ac3", "eac3", "mpg"}  # streams without lengths: a cut between frames leaves a shorter whole

EXPECTED = json.loads((Path(__file__).parent / "data" / "cases" / "expect.json").read_text())["rows"]


def seconds_of(path: Path | str) -> float | None:
    """The length of what is accepted, None where it is rejected; by the header no other than by decoding."""
    try:
        seconds = load_waveform(path).seconds
    except RejectedSample:
        return None
    assert read_header(path).seconds == pytest.approx(seconds, abs=FRAME_SECONDS)
    assert guess_seconds(path) > 0
    return seconds


@pytest.mark.parametrize("name", EXPECTED)
def test_odd_files(repository: Path, name: str) -> None:
    seconds, may_be_rejected = EXPECTED[name]
    found = seconds_of(repository / "tests" / "data" / "cases" / name)
    if found is None:
        assert may_be_rejected
    else:
        assert found == pytest.approx(seconds, abs=0.05)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {kind[0]: encode_kind(folder, kind, SECONDS) for kind in KINDS}


@pytest.mark.parametrize("suffix", [kind[0] for kind in KINDS])
def test_every_kind_is_read_whole(files: dict[str, Path], suffix: str) -> None:
    assert seconds_of(files[suffix]) == pytest.approx(SECONDS, abs=FRAME_SECONDS)
    samples = load_waveform(files[suffix]).samples
    spectrum = np.abs(np.fft.rfft(samples[4_000:36_000]))
    assert np.argmax(spectrum) * 0.5 == pytest.approx(440, abs=1)


@pytest.mark.parametrize("suffix", [kind[0] for kind in KINDS if kind[0] not in UNSEEN_CUTS])
def test_every_kind_is_refused_when_it_is_cut(files: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    whole = files[suffix].read_bytes()
    for share in (0.3, 0.5, 0.97):
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(whole[: int(len(whole) * share)])
        assert seconds_of(path) is None, share


@pytest.mark.parametrize("suffix", [kind[0] for kind in KINDS if kind[0] not in UNSEEN_CUTS])
def test_two_files_in_one_are_read_to_the_end_or_refused(files: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(files[suffix].read_bytes() * 2)
    assert seconds_of(path) in (None, pytest.approx(2 * SECONDS, abs=2 * FRAME_SECONDS))


@pytest.mark.parametrize(
    "suffix", ["mp3", "mp2", "aac", "opus", "oga", "webm", "mka", "ts", "flv", "flac", "ac3", "caf"]
)
def test_foreign_bytes_inside_are_noticed(files: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    whole = files[suffix].read_bytes()
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(whole[: len(whole) // 2] + bytes(range(1, 256)) * 4 + whole[len(whole) // 2 :])
    assert seconds_of(path) is None


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 1), (22_050, 2)])
@pytest.mark.parametrize("options", [{"q": "4"}, {"b": "64k"}])
def test_mp3_without_a_tag_is_counted(tmp_path: Path, rate: int, channels: int, options: dict[str, str]) -> None:
    samples = tone(6.0, rate, channels=channels)
    samples[:, : 2 * rate] = 0.0  # a quiet start, from which a decoder that guesses takes the bit rate
    path = encode(tmp_path / "a.mp3", "mp3", "libmp3lame", samples, rate, options={"write_xing": "0"},
                  codec_options=options)  # fmt: skip
    assert seconds_of(path) == pytest.approx(6.05, abs=FRAME_SECONDS)


@pytest.mark.parametrize("second", [(22_050, 1), (44_100, 2)])
def test_mp3_whose_rate_or_channels_change_is_refused(tmp_path: Path, second: tuple[int, int]) -> None:
    parts = []
    for number, (rate, channels) in enumerate([(44_100, 1), second]):
        path = tmp_path / f"{number}.mp3"
        encode(path, "mp3", "libmp3lame", tone(2.0, rate, channels=channels), rate,
               options={"write_xing": "0", "id3v2_version": "0"})  # fmt: skip
        parts.append(path.read_bytes())
    joined = tmp_path / "joined.mp3"
    joined.write_bytes(b"".join(parts))
    with pytest.raises(RejectedSample, match=r"rate or channels change at byte \d+"):
        load_waveform(joined)


def test_mp3_frames_behind_the_tags_count_are_not_lost(tmp_path: Path) -> None:
    """A tag that tells of half the frames, as after a careless edit."""
    path = encode(tmp_path / "a.mp3", "mp3", "libmp3lame", tone(4.0, 16_000), 16_000)
    content = bytearray(path.read_bytes())
    at = max(content.find(b"Xing"), content.find(b"Info"))
    frames = int.from_bytes(content[at + 8 : at + 12], "big")
    content[at + 8 : at + 12] = (frames // 2).to_bytes(4, "big")
    path.write_bytes(content)
    assert seconds_of(path) in (None, pytest.approx(4.0, abs=FRAME_SECONDS))


def test_chained_ogg_of_another_rate_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "1.ogg", tone(2.0, 16_000)[0], 16_000, format="OGG", subtype="VORBIS")
    soundfile.write(tmp_path / "2.ogg", tone(2.0, 24_000)[0], 24_000, format="OGG", subtype="VORBIS")
    path = tmp_path / "both.ogg"
    path.write_bytes((tmp_path / "1.ogg").read_bytes() + (tmp_path / "2.ogg").read_bytes())
    assert seconds_of(path) is None


@pytest.mark.parametrize("suffix", ["mp3", "m4a", "mka", "flac", "wav", "opus", "caf", "wma", "avi"])
def test_a_little_behind_the_recording_is_left_alone(files: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    for behind in (b"TAG" + b"x" * 125, bytes(300)):
        path.write_bytes(files[suffix].read_bytes() + behind)
        assert seconds_of(path) == pytest.approx(SECONDS, abs=FRAME_SECONDS), behind[:3]


def test_late_sound_in_matroska_is_whole(tmp_path: Path) -> None:
    for codec, rate in (("libopus", 48_000), ("flac", 16_000)):
        path = encode(tmp_path / f"{codec}.mkv", "matroska", codec, tone(2.0, rate), rate, late_seconds=1.5)
        assert seconds_of(path) == pytest.approx(2.0, abs=FRAME_SECONDS)


@pytest.mark.parametrize(
    "codec", ["adpcm_ms", "pcm_mulaw", "adpcm_ima_wav", "g722", "ac3", "eac3", "mp2", "libmp3lame"]
)
def test_what_a_wav_file_can_hold(tmp_path: Path, codec: str) -> None:
    rate = 48_000 if codec in {"ac3", "eac3"} else 16_000
    path = encode(tmp_path / "a.wav", "wav", codec, tone(2.0, rate), rate)
    assert seconds_of(path) == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize(
    ("suffix", "named"), [("ts", "wav"), ("ac3", "wav"), ("webm", "mp3"), ("m4a", "ogg"), ("wv", "")]
)
def test_suffixes_say_nothing(files: dict[str, Path], tmp_path: Path, suffix: str, named: str) -> None:
    path = tmp_path / f"a.{named}"
    path.write_bytes(files[suffix].read_bytes())
    assert seconds_of(path) == pytest.approx(SECONDS, abs=FRAME_SECONDS)


@pytest.mark.parametrize("suffix", ["raw", "pcm", "vox", "ul", "sln", "sd2", "g723", ""])
def test_bare_samples_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes((tone(1.0, 8_000)[0] * 32767).astype("<i2").tobytes())
    for function in (load_waveform, read_header, guess_seconds):
        with pytest.raises(RejectedSample) as caught:
            function(path)
        assert caught.value.reason is Reason.AUDIO_UNREADABLE


@pytest.mark.parametrize("suffix", [kind[0] for kind in KINDS])
def test_the_same_bytes_inside_other_files(files: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    expected = load_waveform(files[suffix])
    content = files[suffix].read_bytes()
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(files[suffix], f"c.{suffix}")
    with tarfile.open(tmp_path / "x.tar") as archive:
        offset = archive.getmembers()[0].offset_data
    column = pa.array([{"bytes": content, "path": f"c.{suffix}"}])
    pq.write_table(pa.table({"audio": column}), tmp_path / "x.parquet")
    places = (
        f"{tmp_path}/x.tar#c.{suffix}@{offset}+{len(content)}",
        f"{tmp_path}/x.parquet#c.{suffix}@audio[0]",
    )
    for place in places:
        found = load_waveform(place)
        assert found.seconds == expected.seconds
        np.testing.assert_array_equal(found.samples, expected.samples)
        assert read_header(place) == read_header(files[suffix])


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{path}\n#EXT-X-ENDLIST\n",
    "live": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{path}\n",
    "concat": "ffconcat version 1.0\nfile '{path}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{path}</BaseURL></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
}


@functools.cache
def _recorders() -> list[list[str]]:
    """Lists to which the path of each opened file is added. An audit hook stays for good, so there is one."""
    recorders: list[list[str]] = []

    def record(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            for recorder in recorders:
                recorder.append(str(arguments[0]))

    sys.addaudithook(record)
    return recorders


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The paths of the files that Python opens during the test."""
    paths: list[str] = []
    _recorders().append(paths)
    yield paths
    _recorders().remove(paths)


@pytest.mark.parametrize("suffix", ["m4a", "aac", "ts", "webm", "m3u8", "mpd", "mp3", "wav"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_lists_of_other_files_open_none(
    files: dict[str, Path], tmp_path: Path, opened: list[str], kind: str, suffix: str
) -> None:
    secret = tmp_path / "secret.ts"
    secret.write_bytes(files["ts"].read_bytes())
    before = os.stat(secret).st_atime_ns
    path = tmp_path / f"a.{suffix}"
    path.write_text(PLAYLISTS[kind].format(path=secret))
    opened.clear()
    assert seconds_of(path) is None
    assert os.stat(secret).st_atime_ns == before
    assert str(path) in opened
    assert not any("secret" in name for name in opened)


def test_a_video_without_sound_is_named(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "v.mp4"), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(RejectedSample, match="has no audio stream") as caught:
        load_waveform(tmp_path / "v.mp4")
    assert caught.value.reason is Reason.AUDIO_UNSUPPORTED


def test_the_decoders_numbers_are_those_of_libsndfile_where_it_is_right(golden_small: Path) -> None:
    """An mp3 with a correct tag is decoded as it always was, to the last bit."""
    path = golden_small / "audio" / "synth4.mp3"
    with soundfile.SoundFile(path) as file:
        expected = file.read(1 << 20, dtype="float32", always_2d=True).mean(axis=1)
    found = load_waveform(path, sampling_rate=48_000)
    np.testing.assert_array_equal(found.samples, expected)


def test_flat_sound_is_said_to_be_flat(tmp_path: Path) -> None:
    sound = tone(1.0, 16_000)[0]
    for name, samples, flat in (
        ("silence", np.zeros(16_000), True),
        ("constant", np.full(16_000, 0.25), True),
        ("cancels", np.stack([sound, -sound], axis=1), True),
        ("sound", sound, False),
        ("quiet", sound * 0.01, False),
    ):
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, samples, 16_000, subtype="FLOAT")
        assert load_waveform(path).is_flat is flat, name


@pytest.mark.parametrize(
    ("codec", "tolerance"),
    [("pcm_s16le", 4e-5), ("pcm_s24le", 2e-7), ("pcm_s32le", 1e-7), ("pcm_f32le", 0), ("pcm_u8", 8e-3)],
)
def test_samples_of_every_width_are_scaled_to_one(tmp_path: Path, codec: str, tolerance: float) -> None:
    samples = tone(0.5, 16_000)
    path = encode(tmp_path / "a.bin", "avi" if codec == "pcm_u8" else "matroska", codec, samples, 16_000)
    np.testing.assert_allclose(load_waveform(path).samples, samples[0], rtol=0, atol=tolerance)


def test_nothing_reaches_the_terminal(
    files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="hfprep")
    whole = files["mp3"].read_bytes()
    for number in range(30):  # bytes inside the frames, which the walk over their headers does not see
        damaged = bytearray(whole)
        for place in np.random.default_rng(number).integers(1_000, len(whole) - 10, 20):
            damaged[place] ^= 0x55
        (tmp_path / "a.mp3").write_bytes(damaged)
        seconds_of(tmp_path / "a.mp3")
    for suffix, path in files.items():
        (tmp_path / f"cut.{suffix}").write_bytes(path.read_bytes()[:5_000])
        seconds_of(tmp_path / f"cut.{suffix}")
    assert capfd.readouterr() == ("", "")
    assert any("a.mp3: the mp3 decoder says:" in message for message in caplog.messages)


def test_other_lines_pass_while_the_decoder_is_listened_to(capfd: pytest.CaptureFixture[str]) -> None:
    from hfprep.inputs.audio.native_stderr import native_stderr_logged

    with native_stderr_logged("x"):
        os.write(2, b"Note: Illegal Audio-MPEG-Header\na line of somebody else\n")
    assert capfd.readouterr().err == "a line of somebody else\n"


def test_a_fork_and_its_parent_take_no_lines_of_each_other(caplog: pytest.LogCaptureFixture) -> None:
    from hfprep.inputs.audio.native_stderr import native_stderr_logged

    caplog.set_level("INFO")
    with native_stderr_logged("before"):
        pass
    said, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with native_stderr_logged("child"):
            os.write(2, b"Note: of the child\n")
            os.write(said[1], b"x")
            os.read(go_on[0], 1)
        os._exit(not any("child: the mp3 decoder says: Note" in message for message in caplog.messages))
    os.read(said[0], 1)
    with native_stderr_logged("parent"):
        pass
    os.write(go_on[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
    assert not caplog.messages


def test_reading_from_memory_is_the_same_as_from_a_file(files: dict[str, Path]) -> None:
    """`soundfile` and PyAV see the same bytes; a check of the fixtures themselves."""
    assert soundfile.info(io.BytesIO(files["wav"].read_bytes())).duration == pytest.approx(SECONDS)
