"""Clips to measure with: voice-like sound of known lengths, and the manifest that lists them.

Gives `make_corpus`. Takes a number of clips and a range of seconds; the same arguments give the same bytes.
"""

import json
from pathlib import Path

import numpy as np

from hfprep.demo.audio_files import AudioKind, write_audio
from hfprep.demo.sentences import SENTENCES
from hfprep.demo.voice import SPEAKERS, speak

KIND = AudioKind("wav", "WAV", "PCM_16", 24_000)  # as most speech for synthesis comes: both sides have to resample


def make_corpus(folder: Path, *, num_clips: int, seconds: tuple[float, float], seed: int = 0) -> Path:
    """Write `num_clips` clips with lengths evenly drawn from the range `seconds`, and give the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.jsonl"
    languages = tuple(SENTENCES)
    with open(manifest, "w", encoding="utf-8") as lines:
        for index in range(num_clips):
            generator = np.random.default_rng([seed, index])
            speaker, language = SPEAKERS[index % len(SPEAKERS)], languages[index % len(languages)]
            length = round(float(generator.uniform(*seconds)), 2)
            path = folder / f"clip_{index:05d}.{KIND.suffix}"
            write_audio(path, speak(speaker, length, KIND.sampling_rate, generator), KIND)
            text = SENTENCES[language][index % len(SENTENCES[language])]
            row = {"id": path.stem, "text": text, "audio": path.name, "language": language}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return manifest
