"""The sample data: the same bytes for a seed, sound that is like a voice, and each line's fate as announced."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio.decode import load_waveform
from hfprep.inputs.manifest.rows import AudioFinder, numbered_lines, parse_line
from hfprep.models.input_features import extract_input_features
from hfprep.schema import Rejection
from hfprep.tools.demo.audio_files import KINDS, write_audio
from hfprep.tools.demo.dataset import DemoDataset, make_dataset
from hfprep.tools.demo.sentences import SENTENCES
from hfprep.tools.demo.voice import PEAK, SPEAKERS, speak


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    return make_dataset(tmp_path_factory.mktemp("demo"))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_seed_gives_the_same_bytes(tmp_path: Path, dataset: DemoDataset) -> None:
    again = make_dataset(tmp_path / "again")
    assert digests(again.folder) == digests(dataset.folder)
    assert (again.accepted_ids, again.rejected) == (dataset.accepted_ids, dataset.rejected)


def test_another_seed_gives_other_sound(tmp_path: Path) -> None:
    first, second = (digests(make_dataset(tmp_path / str(seed), num_samples=3, seed=seed).folder) for seed in (0, 1))
    clips = [name for name in first if name.startswith("audio/") and "special_n" not in name and "_empty" not in name]
    differing = [name for name in clips if first[name] != second.get(name)]
    assert set(clips) - set(differing) == {"audio/special_silence.wav"}


def test_more_samples_leave_the_first_ones_as_they_are(tmp_path: Path) -> None:
    few = digests(make_dataset(tmp_path / "few", num_samples=3, bad_lines=False).folder)
    more = digests(make_dataset(tmp_path / "more", num_samples=5, bad_lines=False).folder)
    assert len(few) == 4
    assert {
        name: digest for name, digest in more.items() if name in few and name != "manifest.jsonl"
    }.items() <= few.items()


def test_every_line_becomes_what_was_announced(dataset: DemoDataset) -> None:
    accepted: list[str] = []
    rejected: dict[int, Reason] = {}
    finder = AudioFinder(dataset.manifest)
    for number, (line, raw) in enumerate(numbered_lines(dataset.manifest), 1):
        item = parse_line(line, raw, finder, None)
        assert item.line == number
        if isinstance(item, Rejection):
            rejected[number] = item.reason
        elif item.id in accepted:
            rejected[number] = Reason.DUPLICATE_ID
        else:
            try:
                features = extract_input_features(load_waveform(item.path).samples)
                assert len(features) >= 3
                accepted.append(item.id)
            except RejectedSample as error:
                rejected[number] = error.reason
    assert tuple(accepted) == dataset.accepted_ids
    assert rejected == dataset.rejected
    assert len(accepted) + len(rejected) == dataset.num_lines


def test_the_bad_lines_cover_the_reasons_of_manifest_and_audio(dataset: DemoDataset) -> None:
    not_shown = {
        Reason.TEXT_FAILED, Reason.TEXT_TOO_LONG, Reason.AUDIO_UNSUPPORTED, Reason.AUDIO_TOO_LONG,
        Reason.CODES_TOO_LONG, Reason.OUT_OF_MEMORY, Reason.COMPUTE_FAILED,
        Reason.UNDER_MIN_SECONDS, Reason.OVER_MAX_SECONDS, Reason.OVER_MAX_CHARS_PER_SECOND,
    }  # fmt: skip
    assert set(dataset.rejected.values()) == set(Reason) - not_shown
    assert {"4711", "extra_fields", "silence", "chapter_1/line_1"} <= set(dataset.accepted_ids)
    assert dataset.manifest.read_bytes().startswith(b"\xef\xbb\xbf")
    assert len(dataset.accepted_ids) == 24 + 4


def test_without_bad_lines_all_is_well(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, num_samples=7, bad_lines=False)
    rows = [json.loads(line) for line in made.manifest.read_text(encoding="utf-8").splitlines()]
    assert made.rejected == {}
    assert tuple(row["id"] for row in rows) == made.accepted_ids
    assert made.num_lines == len(rows) == 7


def test_the_clips_differ_in_kind_speaker_language_and_length(dataset: DemoDataset) -> None:
    rows = [
        json.loads(line)
        for line in dataset.manifest.read_text(encoding="utf-8", errors="replace").lstrip("\ufeff").splitlines()
        if '"speaker"' in line
    ]
    assert len(rows) == 24
    infos = [soundfile.info(dataset.folder / row["audio"]) for row in rows]
    assert {info.format for info in infos} == {"WAV", "FLAC", "OGG", "MP3"}
    assert {info.samplerate for info in infos} >= {8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000}
    assert {info.channels for info in infos} == {1, 2}
    assert {row["speaker"] for row in rows} == {speaker.name for speaker in SPEAKERS}
    assert {row["language"] for row in rows} == set(SENTENCES) >= {"en", "zh", "ja", "am", "fr"}
    seconds = [row["duration"] for row in rows]
    assert min(seconds) < 2 < 6 < max(seconds) <= 8
    for row, info in zip(rows, infos, strict=True):
        assert info.duration == pytest.approx(row["duration"], abs=2e-3)
    assert len({(row["speaker"], row["text"]) for row in rows}) > 20


@pytest.mark.parametrize("speaker", SPEAKERS, ids=lambda speaker: speaker.name)
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_voice_has_its_pitch_and_pauses(speaker: object, rate: int) -> None:
    voice = next(known for known in SPEAKERS if known is speaker)
    sound = speak(voice, 3.0, rate, np.random.default_rng(0))
    assert len(sound) == 3 * rate
    assert np.abs(sound).max() == pytest.approx(PEAK)
    assert abs(sound.mean()) < 0.01
    loudness = np.sqrt((sound[: 300 * (rate // 100)].reshape(300, -1) ** 2).mean(axis=1))  # of each 10 ms
    assert (loudness < 0.02 * loudness.max()).any()
    assert (loudness > 0.2 * loudness.max()).mean() > 0.3
    # The pitch is where the sound is most like itself a little later; it drifts by a tenth while one speaks.
    middle = sound[rate : rate + rate // 2]
    alike = np.correlate(middle, middle, "full")[len(middle) - 1 :]
    shortest, longest = int(rate / (1.3 * voice.pitch)), int(rate / (0.75 * voice.pitch))
    best = shortest + int(np.argmax(alike[shortest:longest]))
    assert rate / best == pytest.approx(voice.pitch, rel=0.15)
    assert alike[best] > 0.3 * alike[0]


def test_half_a_second_is_enough() -> None:
    assert np.abs(speak(SPEAKERS[0], 0.5, 8_000, np.random.default_rng(1))).max() == pytest.approx(PEAK)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.suffix}-{kind.subtype}-{kind.sampling_rate}")
def test_files_are_readable_and_keep_no_time(tmp_path: Path, kind: object, monkeypatch: pytest.MonkeyPatch) -> None:
    known = next(one for one in KINDS if one is kind)
    sound = speak(SPEAKERS[1], 1.0, known.sampling_rate, np.random.default_rng(0))
    samples = np.stack([sound] * known.channels, axis=1)
    contents = []
    for name in ("a", "b"):
        write_audio(tmp_path / f"{name}.{known.suffix}", samples, known)
        contents.append((tmp_path / f"{name}.{known.suffix}").read_bytes())
    assert contents[0] == contents[1]
    read, rate = soundfile.read(tmp_path / f"a.{known.suffix}", always_2d=True)
    assert (rate, read.shape) == (known.sampling_rate, samples.shape)
    assert np.abs(read - samples).max() < (0.3 if known.subtype in {"VORBIS", "OPUS", "MPEG_LAYER_III"} else 1e-3)
