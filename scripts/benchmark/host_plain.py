"""The obvious pipeline around the models: one process, one clip after another, with what the libraries offer.

Gives `run_plain`. soundfile reads, torchaudio resamples, transformers makes the input features eight clips at a time,
and np.save, tarfile or `Dataset.save_to_disk` writes. The tokens are those of the build's own tokenizer; the models
are zeros, as on the other side.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio
from transformers import SeamlessM4TFeatureExtractor

from scripts.benchmark.stand_in import StandInModel, StandInModels

BATCH = 8

Row = dict[str, Any]
Samples = Iterator[tuple[Row, dict[str, np.ndarray]]]


def run_plain(models: StandInModels, manifest: Path, output: Path, kind: str) -> int:
    """Write the features of every row into `output` in a format; gives the number of samples."""
    output.mkdir(parents=True)
    if kind == "npy":
        return _as_npy(_computed(models, manifest), output)
    if kind == "webdataset":
        return _as_tar(_computed(models, manifest), output)
    return _as_dataset(models, manifest, output)


def _computed(models: StandInModels, manifest: Path) -> Samples:
    encoder, model, rate = models.text_encoder(), StandInModel(models), models.audio.sampling_rate
    extractor = SeamlessM4TFeatureExtractor()
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    takes_samples = models.audio.prepare(np.zeros(rate, np.float32), on_gpu=False).ndim == 1
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        clips = [_decoded(manifest.parent / row["audio"], rate) for row in batch]
        lengths = torch.tensor([len(clip) for clip in clips])
        inputs = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        if not takes_samples:
            waveforms = [clip.numpy() for clip in clips]
            found = extractor(waveforms, sampling_rate=rate, return_tensors="pt")
            inputs, lengths = found["input_features"], found["attention_mask"].sum(dim=1)
        columns = model(inputs, lengths, models.schema.audio_groups)
        for index, row in enumerate(batch):
            arrays = {name: tensor[index].numpy() for name, tensor in columns.items()}
            if encoder is not None:
                tokens = encoder.encode(row["text"], row["language"])
                arrays |= {column.name: tokens for column in models.schema.of_kind("tokens")}
            yield row, arrays


def _decoded(path: Path, rate: int) -> torch.Tensor:
    samples, found = soundfile.read(path, dtype="float32")
    return torchaudio.functional.resample(torch.from_numpy(samples), found, rate)


def _as_npy(samples: Samples, output: Path) -> int:
    count = 0
    with open(output / "manifest.jsonl", "w", encoding="utf-8") as manifest:
        for row, arrays in samples:
            for name, values in arrays.items():
                path = output / name / f"{row['id']}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, values)
            manifest.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _as_tar(samples: Samples, output: Path) -> int:
    count = 0
    with tarfile.open(output / "shard.tar", "w") as tar:
        for row, arrays in samples:
            members = {"json": json.dumps(row, ensure_ascii=False).encode()}
            for name, values in arrays.items():
                stream = io.BytesIO()
                np.save(stream, values)
                members[f"{name}.npy"] = stream.getvalue()
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{row['id']}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            count += 1
    return count


def _as_dataset(models: StandInModels, manifest: Path, output: Path) -> int:
    import datasets

    found = datasets.Dataset.from_generator(
        _rows, cache_dir=str(output / "cache"), gen_kwargs={"models": models, "manifest": manifest}
    )
    assert isinstance(found, datasets.Dataset)
    found.save_to_disk(output / "arrow")
    return len(found)


def _rows(models: StandInModels, manifest: Path) -> Iterator[dict[str, Any]]:
    return (row | arrays for row, arrays in _computed(models, manifest))
