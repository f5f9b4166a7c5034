"""What an output says, whatever its format: samples, their order, what is listed and what was rejected, as hashes.

Read with numpy, datasets and tarfile alone, so that it reads the output of any version of hfprep and can hold one
version against another. The bytes of containers, the shard and the place of a sample count for nothing.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = ("text_ids", "codes", "condition", "emo_vec")
FIELDS = ("id", "text", "speaker", "language", "duration", "text_len", "code_len", "condition_len")
MANIFEST_FIELDS = ("id", "text", "audio", "speaker", "language", "duration")
SPLITS = {"train_manifest.jsonl": "train", "val_manifest.jsonl": "validation"}
PROGRESS = ".preprocessing_progress.txt"
COUNTS = ("total", "train", "val", "hours", "lines_read", "accepted", "rejected", "capped", "pending", "overlong")


def digest(value: Any) -> str:
    """32 hexadecimal digits that stand for a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def hash_of(array: np.ndarray) -> str:
    """SHA-256 of an array's numbers."""
    return hashlib.sha256(array.tobytes()).hexdigest()


@dataclass(frozen=True)
class Sample:
    """One sample: its split, the fields of its record, the manifest's other fields (None: not kept) and its arrays."""

    split: str
    record: dict[str, Any]
    extra: dict[str, Any] | None
    arrays: dict[str, np.ndarray]

    def says(self, *, numbers: str) -> dict[str, Any]:
        """What is hashed. `numbers`: "all", or "exact" for those that are integers, with the shapes of the others."""
        arrays = {}
        for name, array in self.arrays.items():
            arrays[name] = [str(array.dtype), list(array.shape)]
            if numbers == "all" or array.dtype.kind == "i":
                arrays[name].append(hash_of(array))
        return {"split": self.split, "record": self.record, "arrays": arrays}


@dataclass(frozen=True)
class Content:
    """All that an output says. What a format does not keep is None: an export has no rejected lines."""

    samples: dict[str, Sample]  # in the order of the manifest's lines
    progress: list[str] | None
    rejected: list[dict[str, Any]] | None
    counts: dict[str, Any] | None

    def hashes(self) -> dict[str, str]:
        """Hashes by what they are of; those of parts that the output does not have are absent.

        `exact` leaves out the float columns, which differ by rounding from one machine to another.
        """
        found = {
            "samples": digest([sample.says(numbers="all") for sample in self.samples.values()]),
            "exact": digest([sample.says(numbers="exact") for sample in self.samples.values()]),
        }
        if all(sample.extra is not None for sample in self.samples.values()):
            found["extra"] = digest([sample.extra for sample in self.samples.values()])
        if self.progress is not None:
            found["listed"] = digest(sorted(self.progress))
        if self.rejected is not None:  # an export has none, and does not know the manifest's order across splits
            found["progress"] = digest(self.progress)
            found["rejected"] = digest([[line["line"], line["id"], line["reason"]] for line in self.rejected])
            found["messages"] = digest([line["message"] for line in self.rejected])
        if self.counts is not None:
            found["counts"] = digest(self.counts)
        return found

    def loaded(self) -> dict[str, list[Any]]:
        """What `hfprep.load` has to give for each split: ids and numbers in the order of the manifest's lines."""
        found: dict[str, list[Any]] = {split: [] for split in SPLITS.values()}
        for sample in self.samples.values():
            hashes = [hash_of(sample.arrays[name]) for name in COLUMNS]
            found[sample.split].append([sample.record["id"], *hashes])
        return found


def read_manifest(manifest: Path) -> list[dict[str, Any]]:
    """The manifest's rows; a line that is not JSON is left out. The first row of an id is the one that counts."""
    rows: dict[str, dict[str, Any]] = {}
    for line in manifest.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows.setdefault(row["id"], row)
    return list(rows.values())


def read_content(folder: Path, kind: str, manifest: Path, root: Path) -> Content:
    """Everything that the output in `folder` says; ValueError where a sample is there twice or is not the manifest's.

    `kind` is npy, arrow or webdataset. For a build without npy `folder` holds the folder of that name. The name of
    the folder `root` is left out of what is read.
    """
    inner = folder / kind
    samples = READERS[kind](inner if inner.is_dir() else folder)
    found: dict[str, Sample] = {}
    rows = read_manifest(manifest)
    others = {row["id"]: {name: row[name] for name in row if name not in MANIFEST_FIELDS} for row in rows}
    for sample in samples:
        sample_id = sample.record["id"]
        if sample_id in found or sample_id not in others:
            raise ValueError(f"{folder}: {sample_id!r} is there twice, or not of the manifest")
        extra = sample.extra
        if extra is not None:
            extra = {name: extra.get(name) for name in others[sample_id]}
        found[sample_id] = Sample(sample.split, sample.record, extra, sample.arrays)
    stats, rejected, progress = folder / "stats.json", folder / "rejected.jsonl", folder / PROGRESS
    counts = json.loads(stats.read_bytes()) if stats.exists() else None
    return Content(
        samples={row["id"]: found[row["id"]] for row in rows if row["id"] in found},
        progress=progress.read_text(encoding="utf-8").splitlines() if progress.exists() else None,
        rejected=[_without(root, line) for line in _json_lines(rejected)] if rejected.exists() else None,
        counts=None if counts is None else {name: counts.get(name) for name in COUNTS},
    )


def _without(root: Path, line: dict[str, Any]) -> dict[str, Any]:
    return line | {"message": line["message"].replace(str(root), "")}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _record(fields: dict[str, Any]) -> dict[str, Any]:
    """A record as every format can give it: an empty string is a value that is not there, audio by its file's name."""
    record = {name: None if fields.get(name) == "" else fields.get(name) for name in FIELDS}
    return record | {"audio": Path(fields["audio_path"]).name}


def _read_npy(folder: Path) -> Iterator[Sample]:
    for name, split in SPLITS.items():
        for fields in _json_lines(folder / name):
            arrays = {column: np.load(folder / fields[f"{column}_path"], allow_pickle=False) for column in COLUMNS}
            yield Sample(split, _record(fields), None, arrays)


def _read_arrow(folder: Path) -> Iterator[Sample]:
    import datasets
    import pyarrow

    for split, rows in datasets.load_from_disk(str(folder)).items():
        table = rows.with_format("arrow")[:]
        columns = {name: table.column(name).combine_chunks() for name in COLUMNS}
        other = table.drop_columns(list(COLUMNS)).to_pylist()
        for index, fields in enumerate(other):
            arrays = {}
            for name, values in columns.items():
                element = values.type.storage_type if isinstance(values.type, pyarrow.ExtensionType) else values.type
                while hasattr(element, "value_type"):
                    element = element.value_type
                value = values[index].as_py()
                arrays[name] = np.array(value, dtype=element.to_pandas_dtype())
            yield Sample(split, _record(fields), fields, arrays)


def _read_webdataset(folder: Path) -> Iterator[Sample]:
    for shard in sorted(folder.glob("*.tar")):
        members: dict[str, dict[str, bytes]] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is not None:
                    key, _, suffix = member.name.partition(".")
                    members.setdefault(key, {})[suffix] = content.read()
        for parts in members.values():
            fields = json.loads(parts["json"])
            arrays = {name: np.load(io.BytesIO(parts[f"{name}.npy"]), allow_pickle=False) for name in COLUMNS}
            yield Sample(shard.name.split("-")[0], _record(fields), json.loads(fields["extra"]), arrays)


READERS = {"npy": _read_npy, "arrow": _read_arrow, "webdataset": _read_webdataset}
