"""Files of thirteen formats, damaged, cut and joined at random: each is whole or rejected, at once, without a word."""

import contextlib
import random
import time
from pathlib import Path

import pytest

from hfprep.errors import RejectedSample
from hfprep.inputs.audio.decode import guess_seconds, load_waveform, read_header
from tests.av_files import encode, tone

SECONDS = 2.0
NUM_FILES = 500
MOST_SECONDS = 5.0  # for one file
FORMATS = (
    ("wav", "wav", "pcm_s16le", 16_000),
    ("flac", "flac", "flac", 16_000),
    ("mp3", "mp3", "libmp3lame", 44_100),
    ("opus", "ogg", "libopus", 48_000),
    ("oga", "ogg", "flac", 16_000),
    ("m4a", "ipod", "aac", 44_100),
    ("webm", "webm", "libopus", 48_000),
    ("mka", "matroska", "flac", 16_000),
    ("aac", "adts", "aac", 16_000),
    ("ts", "mpegts", "aac", 16_000),
    ("flv", "flv", "aac", 44_100),
    ("aiff", "aiff", "pcm_s16be", 16_000),
    ("tta", "tta", "tta", 16_000),
)
# A frame may end up unlike the others, as for what is inside of it nothing speaks; its place and length are known.
SLACK_SECONDS = 0.15


def damaged(whole: bytes, other: bytes, chance: random.Random) -> tuple[bytes, float]:
    """A file with some damage, and the length that a whole reading of it has."""
    start = len(whole) // 20 + 200  # behind the headers: a header's flipped bit may say anything, and be believed
    place = chance.randrange(start, len(whole) - 20)
    match chance.randrange(6):
        case 0:
            return whole[:place], SECONDS
        case 1:
            flipped = bytearray(whole)
            for _ in range(chance.randrange(1, 20)):
                flipped[chance.randrange(start, len(whole) - 20)] ^= 1 << chance.randrange(8)
            return bytes(flipped), SECONDS
        case 2:
            return whole[:place] + chance.randbytes(chance.randrange(1, 5_000)) + whole[place:], SECONDS
        case 3:
            return whole[:place] + whole[place + chance.randrange(1, 5_000) :], SECONDS
        case 4:
            return whole + whole, 2 * SECONDS
        case _:
            return whole + other, SECONDS  # what is of another kind stands behind the recording


@pytest.mark.slow
def test_five_hundred_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wholes = {}
    for suffix, container, codec, rate in FORMATS:
        path = encode(tmp_path / f"whole.{suffix}", container, codec, tone(SECONDS, rate), rate)
        wholes[suffix] = path.read_bytes()
        assert load_waveform(path).seconds == pytest.approx(SECONDS, abs=SLACK_SECONDS)
    chance = random.Random(0)
    accepted = rejected = 0
    wrong = []
    for number in range(NUM_FILES):
        suffix = chance.choice(FORMATS)[0]
        content, seconds = damaged(wholes[suffix], wholes[chance.choice(FORMATS)[0]], chance)
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(content)
        started = time.monotonic()
        for look in (read_header, guess_seconds):
            with contextlib.suppress(RejectedSample):
                look(path)
        try:
            found = load_waveform(path).seconds
        except RejectedSample:
            rejected += 1
        else:
            accepted += 1
            if not found >= seconds - SLACK_SECONDS:
                wrong.append((path.name, found, seconds))
        assert time.monotonic() - started < MOST_SECONDS, path
        path.unlink()
    assert accepted + rejected == NUM_FILES
    assert not wrong
    assert accepted > NUM_FILES // 20  # bits that flipped inside frames without a checksum
    assert capfd.readouterr() == ("", "")
