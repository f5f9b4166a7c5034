"""One .npz file and one record per sample: the format that public fine-tuning code for IndexTTS-2.5 reads.

    features/<id>.npz                                the columns of the schema, by name
    utterances_train.jsonl, utterances_val.jsonl     id, features, speaker, lang, lang_alias, text, and the lengths

stats.json beside them describes the columns. Trainers can load such a folder like an output, but it cannot be exported
again.
"""

import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import StoreError
from hfprep.formats.folders import atomic_folder
from hfprep.formats.npy import MAX_ARRAY_BYTES, check_inside, file_content, npy_origin
from hfprep.formats.positioned import LineFile
from hfprep.formats.samples import SPLITS, Entry, Sample, SampleSet, Split, checked, parse_entry, safe_id
from hfprep.io import atomic
from hfprep.io.chunks import chunks_of
from hfprep.schema import Schema, record_fields
from hfprep.store.layout import IO_THREADS, STATS, json_line
from hfprep.store.statistics import write_stats

UTTERANCES = {"train": "utterances_train.jsonl", "validation": "utterances_val.jsonl"}
FEATURES = "features"
CHUNK_SAMPLES = 256


def is_npz_export(path: Path) -> bool:
    """Whether a folder was written by `export_npz`."""
    return all((path / name).is_file() for name in UTTERANCES.values())


def export_npz(source: SampleSet, target: Path) -> dict[str, int]:
    """Write a sample set as .npz files to a folder, atomically; returns the number of samples per split.

    Replaces an earlier export of this kind. Vectors stored as float16 are converted to their column's dtype. Raises
    StoreError if `target` contains anything else.
    """
    counts = dict.fromkeys(SPLITS, 0)
    with (
        atomic_folder(target, is_npz_export) as folder,
        ThreadPoolExecutor(IO_THREADS) as pool,
        ExitStack() as stack,
    ):
        (folder / FEATURES).mkdir()
        for name in SPLITS:
            manifest = stack.enter_context(atomic.replacing(folder / UTTERANCES[name]))
            for chunk in chunks_of(source.split(name).samples(), CHUNK_SAMPLES):
                list(pool.map(lambda sample: _write(folder, source.schema, sample), chunk))
                manifest.writelines(json_line(utterance_record(source.schema, sample.entry.record)) for sample in chunk)
                counts[name] += len(chunk)
        stats = (source.origin.stats or {}) | {"schema": source.schema.record()}
        write_stats(folder / STATS, stats)
    return counts


def utterance_record(schema: Schema, record: dict[str, Any]) -> dict[str, Any]:
    """The record of a sample, with the language in lower case and no lang_alias."""
    language = record.get("language")
    return {
        "id": record["id"],
        "features": features_path(record["id"]),
        "speaker": record.get("speaker"),
        "lang": None if language is None else str(language).lower(),
        "lang_alias": None,
        "text": record.get("text"),
        **{name: record[name] for name in schema.lengths},
    }


def features_path(sample_id: str) -> str:
    """The path of a sample's file, relative to the folder, with forward slashes."""
    return f"{FEATURES}/{sample_id}.npz"


def _write(folder: Path, schema: Schema, sample: Sample) -> None:
    path = folder / features_path(safe_id(sample.entry.id, folder))
    arrays: dict[str, Any] = {
        name: values.astype(schema.by_name[name].numpy_dtype, copy=False) for name, values in sample.arrays.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.explained(path), open(path, "xb") as stream:
        np.savez(stream, **arrays)
        stream.flush()
        atomic.sync_file(stream.fileno(), path)


class NpzSplit(Split):
    """A file of utterances. Records also have the language under hfprep's name, and the fields that follow from it.

    Raises StoreError if there is no stats.json beside it.
    """

    def __init__(self, manifest: Path) -> None:
        self.manifest = manifest
        self.root = manifest.parent
        self.schema = npz_schema(self.root)
        self._lines = LineFile(manifest)

    def __len__(self) -> int:
        return len(self._lines)

    def entry(self, index: int) -> Entry:
        try:
            record = parse_entry(self._lines.line(index)).record
            language = {"language": record.get("lang")}
            return Entry(record | language | record_fields(self.schema, language))
        except ValueError as error:
            raise StoreError(f"{self.manifest}, line {index + 1}: {error}; export it again") from None

    def sample(self, index: int) -> Sample:
        entry = self.entry(index)
        arrays = load_npz(self.root, self.schema, entry.record.get("features"), entry.id)
        return checked(self.schema, Sample(entry, arrays), str(self.manifest))


def npz_schema(folder: Path) -> Schema:
    """The schema of a folder of .npz files; raises StoreError if its stats.json has none."""
    schema = npy_origin(folder).schema
    if schema is None:
        raise StoreError(
            f"{folder} has no {STATS} that describes its .npz files; copy the one that `export-npz` wrote beside "
            f"{UTTERANCES['train']}"
        )
    return schema


def load_npz(folder: Path, schema: Schema, path: Any, sample_id: str) -> dict[str, np.ndarray]:
    """The columns of an .npz file, by its path relative to the folder; raises StoreError with sample and file."""
    try:
        check_inside(folder, path, ".npz")
        content = io.BytesIO(file_content(folder / path))
        with zipfile.ZipFile(content) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_ARRAY_BYTES:
                raise ValueError("it is larger than any sample")
        with np.load(content, allow_pickle=False) as arrays:
            return {column.name: arrays[column.name] for column in schema.columns}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"sample {sample_id!r}: {folder / str(path)} cannot be read: {error}; export it again"
        ) from error
