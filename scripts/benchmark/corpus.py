"""Makes clips for measurements: voice-like audio with random lengths, and their manifest.

Provides `make_corpus`. The same arguments give the same bytes.
"""

import functools
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from hfprep.tools.demo.audio_files import AudioKind, write_audio
from hfprep.tools.demo.sentences import SENTENCES
from hfprep.tools.demo.voice import SPEAKERS, speak

KIND = AudioKind("wav", "WAV", "PCM_16", 24_000)  # like most speech for synthesis, so both sides must resample
CLIPS_AT_ONCE = 16  # clips per task; a process makes one in 36 ms


def make_corpus(folder: Path, *, num_clips: int, seconds: tuple[float, float], seed: int = 0) -> Path:
    """Write `num_clips` clips with lengths drawn uniformly from the range `seconds`; returns the manifest's path."""
    from hfprep.pipeline.devices import choose_workers  # imports torch, which the processes below do not need

    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.jsonl"
    workers = min(choose_workers(0), -(-num_clips // CLIPS_AT_ONCE))
    make = functools.partial(_make_clip, folder, seconds, seed)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver")) as pool:
        rows = pool.map(make, range(num_clips), chunksize=CLIPS_AT_ONCE)
        manifest.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return manifest


def _make_clip(folder: Path, seconds: tuple[float, float], seed: int, index: int) -> dict[str, str]:
    """Write a clip; returns its row."""
    generator, languages = np.random.default_rng([seed, index]), tuple(SENTENCES)
    speaker, language = SPEAKERS[index % len(SPEAKERS)], languages[index % len(languages)]
    length = round(float(generator.uniform(*seconds)), 2)
    path = folder / f"clip_{index:05d}.{KIND.suffix}"
    write_audio(path, speak(speaker, length, KIND.sampling_rate, generator), KIND)
    text = SENTENCES[language][index % len(SENTENCES[language])]
    return {"id": path.stem, "text": text, "audio": path.name, "language": language}
