"""Sample data for the demo and the tests: voice-like clips, a manifest, and invalid lines.

Provides `make_dataset`, which also returns the expected outcome of each line. The same seed gives the same bytes.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import Reason
from hfprep.tools.demo.audio_files import KINDS, AudioKind, write_audio
from hfprep.tools.demo.sentences import SENTENCES
from hfprep.tools.demo.voice import SPEAKERS, speak

MANIFEST_FILE = "manifest.jsonl"
AUDIO_FOLDER = "audio"
SECONDS = (0.5, 8.0)
BYTE_ORDER_MARK = "\ufeff"

_PLAIN_WAV = AudioKind("wav", "WAV", "PCM_16", 16_000)
_FLOAT_WAV = AudioKind("wav", "WAV", "FLOAT", 16_000)
_FLAC = AudioKind("flac", "FLAC", "PCM_16", 16_000)


@dataclass(frozen=True, slots=True)
class DemoDataset:
    """A demo data set: `accepted_ids` in manifest order, and the reason for each line (from 1) to be rejected."""

    folder: Path
    manifest: Path
    num_lines: int
    accepted_ids: tuple[str, ...]
    rejected: dict[int, Reason] = field(default_factory=dict)


def make_dataset(
    folder: str | Path, *, num_samples: int = 24, seed: int = 0, bad_lines: bool = True, max_seconds: float = SECONDS[1]
) -> DemoDataset:
    """Write `num_samples` clips of 0.5 to `max_seconds` seconds and their manifest.

    Clips differ in speaker, language, file format, rate and channels. With `bad_lines`, about twenty more lines are
    added, most of them to be rejected, and the file starts with a byte order mark. Existing files are overwritten.
    """
    folder = Path(folder)
    (folder / AUDIO_FOLDER).mkdir(parents=True, exist_ok=True)
    lines: list[tuple[str | bytes, str | Reason]] = []
    for index in range(num_samples):
        row = _make_clip(folder, index, seed, max_seconds)
        lines.append((_json(row), str(row["id"])))
    if bad_lines:
        _insert(lines, _special_lines(folder, seed))
    encoded = [line if isinstance(line, bytes) else line.encode() for line, _ in lines]
    start = BYTE_ORDER_MARK.encode() if bad_lines else b""
    manifest = folder / MANIFEST_FILE
    manifest.write_bytes(start + b"".join(line + b"\n" for line in encoded))
    outcomes = [outcome for _, outcome in lines]
    return DemoDataset(
        folder=folder,
        manifest=manifest,
        num_lines=len(lines),
        accepted_ids=tuple(str(outcome) for outcome in outcomes if not isinstance(outcome, Reason)),
        rejected={number: outcome for number, outcome in enumerate(outcomes, 1) if isinstance(outcome, Reason)},
    )


def _make_clip(folder: Path, index: int, seed: int, max_seconds: float) -> dict[str, Any]:
    """Write clip number `index` and return its manifest row; independent of the number of clips."""
    generator = np.random.default_rng([seed, index])
    kind = KINDS[index % len(KINDS)]
    speaker = SPEAKERS[index % len(SPEAKERS)]
    language = tuple(SENTENCES)[index % len(SENTENCES)]
    text = SENTENCES[language][index // len(SENTENCES) % len(SENTENCES[language])]
    seconds = round(float(generator.uniform(SECONDS[0], max_seconds)), 3)
    samples = speak(speaker, seconds, kind.sampling_rate, generator)
    if kind.channels == 2:
        samples = np.stack([samples, 0.7 * np.roll(samples, kind.sampling_rate // 2000)], axis=1)
    sample_id = f"{speaker.name}_{language}_{index:04d}"
    audio = f"{AUDIO_FOLDER}/{sample_id}.{kind.suffix}"
    write_audio(folder / audio, samples, kind)
    return {
        "id": sample_id, "text": text, "audio": audio,
        "speaker": speaker.name, "language": language, "duration": seconds,
    }  # fmt: skip


def _special_lines(folder: Path, seed: int) -> list[tuple[str | bytes, str | Reason]]:
    """Unusual and invalid lines, each with its id if it is to be accepted, or else the expected reason."""
    good = _special_clips(folder, seed)
    text = SENTENCES["en"][0]

    def row(sample_id: Any, audio: str = good, **fields: Any) -> str:
        return _json({"id": sample_id, "text": text, "audio": audio, **fields})

    def clip(name: str) -> str:
        return f"{AUDIO_FOLDER}/special_{name}"

    return [
        (row("extra_fields", emotion="calm", take=3, tags=["demo", "odd"]), "extra_fields"),
        ('{"id": "broken_json", "text": "the line ends her', Reason.INVALID_JSON),
        ('["a list", "not an object"]', Reason.INVALID_JSON),
        (row("missing_audio", f"{AUDIO_FOLDER}/is_not_there.wav"), Reason.AUDIO_MISSING),
        (_json({"id": "null_text", "text": None, "audio": good}), Reason.INVALID_FIELD),
        (_json({"id": "no_text", "audio": good}), Reason.MISSING_FIELD),
        (_json({"id": "blank_text", "text": "  ", "audio": good}), Reason.EMPTY_TEXT),
        (row(4711), "4711"),
        (row("4711"), Reason.DUPLICATE_ID),
        (row("../escape"), Reason.INVALID_ID),
        (row("chapter_1/line_1"), "chapter_1/line_1"),
        (b'{"id": "latin1", "text": "caf\xe9", "audio": "' + good.encode() + b'"}', Reason.INVALID_ENCODING),
        (row("truncated_flac", clip("truncated.flac")), Reason.AUDIO_UNREADABLE),
        (row("truncated_wav", clip("truncated.wav")), Reason.AUDIO_UNREADABLE),
        (row("not_audio", clip("not_audio.wav")), Reason.AUDIO_UNREADABLE),
        (row("folder_as_audio", AUDIO_FOLDER), Reason.AUDIO_UNREADABLE),
        (row("empty_file", clip("empty_file.wav")), Reason.AUDIO_EMPTY),
        (row("no_samples", clip("no_samples.wav")), Reason.AUDIO_EMPTY),
        (row("nan_samples", clip("nan_samples.wav")), Reason.AUDIO_NOT_FINITE),
        (row("too_short", clip("too_short.wav")), Reason.AUDIO_TOO_SHORT),
        (row("silence", clip("silence.wav")), "silence"),
    ]


def _special_clips(folder: Path, seed: int) -> str:
    """Write the audio of the special lines; returns the path of the valid clip."""
    audio = folder / AUDIO_FOLDER
    rate = _PLAIN_WAV.sampling_rate
    voice = speak(SPEAKERS[0], 1.2, rate, np.random.default_rng([seed, 1 << 32]))
    with_nan = voice.copy()
    with_nan[rate // 2 : rate // 2 + 3] = np.nan
    write_audio(audio / "special_sound.wav", voice, _PLAIN_WAV)
    write_audio(audio / "special_nan_samples.wav", with_nan, _FLOAT_WAV)
    write_audio(audio / "special_too_short.wav", voice[: rate // 50], _PLAIN_WAV)
    write_audio(audio / "special_silence.wav", np.zeros(rate), _PLAIN_WAV)
    write_audio(audio / "special_no_samples.wav", voice[:0], _PLAIN_WAV)
    for kind in (_FLAC, _PLAIN_WAV):
        path = audio / f"special_truncated.{kind.suffix}"
        write_audio(path, voice, kind)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    (audio / "special_not_audio.wav").write_bytes(b"This is a letter, and no sound at all.\n" * 20)
    (audio / "special_empty_file.wav").write_bytes(b"")
    return f"{AUDIO_FOLDER}/special_sound.wav"


def _insert(lines: list[tuple[str | bytes, str | Reason]], special: list[tuple[str | bytes, str | Reason]]) -> None:
    """Spread the special lines evenly among the others, in order."""
    step = max(1, len(lines) // (len(special) + 1))
    for number, line in enumerate(special):
        lines.insert(min(len(lines), (number + 1) * step + number), line)


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)
