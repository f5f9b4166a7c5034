"""Finished sets as map-style torch data sets: the same samples in the same order from every format.

Provides `load`. Each process opens files on first read, so data sets can be passed to workers by fork or pickling.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hfprep.errors import ConfigError, StoreError
from hfprep.formats.formats import open_set
from hfprep.formats.loading.batches import Item, Rows, tensors_of
from hfprep.formats.npy import load_array, open_manifest, unless_stats_are_missing
from hfprep.formats.npz import UTTERANCES, NpzSplit, is_npz_export, load_npz, npz_schema
from hfprep.formats.pair_records import PROMPT, TARGET, pair_schema, path_field, read_npz_pair, role_of
from hfprep.formats.positioned import LineFile
from hfprep.formats.samples import Split, parse_entry
from hfprep.io.object_storage import check_local
from hfprep.io.words import count, duration
from hfprep.schema import Schema

ToTensors = Callable[[Mapping[str, np.ndarray]], dict[str, torch.Tensor]]
ROLES = (PROMPT, TARGET)
SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation"}
LOOKED_AT = 1000  # records from which a data set's `repr` estimates its hours
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class FeatureDataset(Dataset[dict[str, Any]]):
    """The samples of one split, as tensors.

    An item has id, language, the schema's record fields, and each column of the schema: tokens and codes as int64,
    vectors as float32. `origin` describes the source in its `repr`. Reading raises StoreError if a file is damaged or a
    length differs from the record.
    """

    def __init__(self, split: Split, origin: str) -> None:
        self.split = split
        self.origin = origin

    def __repr__(self) -> str:
        return _described(self, "sample", "")

    @property
    def schema(self) -> Schema:
        """The schema of a sample."""
        return self.split.schema

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._item(index, tensors_of)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The samples of a batch, for a DataLoader; `collate` does not copy their vectors."""
        add = Rows(len(indices)).add
        return [self._item(index, add) for index in indices]

    def _item(self, index: int, to_tensors: ToTensors) -> dict[str, Any]:
        record, arrays = self.split.read(_position(index, len(self)))
        values = {"id": record["id"], "language": record.get("language")}
        values |= {item.name: record.get(item.name) for item in self.schema.record_fields}
        return Item(self.schema, values | to_tensors(arrays))

    def lengths(self, name: str) -> np.ndarray:
        """A length of every sample, such as code_len, int64."""
        return self.split.lengths(name)

    def record(self, index: int) -> dict[str, Any]:
        """The manifest record of a sample."""
        return self.split.entry(_position(index, len(self))).record

    @cached_property
    def code_lengths(self) -> np.ndarray:
        """The number of codes of every sample, int64, for a length-bucketed sampler."""
        return self.split.lengths("code_len")

    @cached_property
    def text_lengths(self) -> np.ndarray:
        """The number of text ids of every sample, int64."""
        return self.split.lengths("text_len")


class PairDataset(Dataset[dict[str, Any]]):
    """Prompt and target pairs: tokens and codes of the target, voice and emotion vectors of the prompt.

    An item has the fields of a `FeatureDataset` item (the id of the pair, the language of the target), and prompt_id,
    target_id and prompt_language. Arrays are read from the files in the pair manifest (.npy or .npz), or by id from
    `samples`, a set in any format, if it is given.
    """

    def __init__(self, manifest: Path, samples: FeatureDataset | None = None) -> None:
        self.manifest = manifest
        self.samples = samples
        self._lines = LineFile(manifest)
        # Here and not on first read, or each DataLoader worker would do it again.
        self._positions = None if samples is None else self._found_in(samples.split)

    def __repr__(self) -> str:
        return _described(self, "pair", "" if self._of_npz else f"{TARGET}_")

    @property
    def origin(self) -> str:
        """A description of where the pairs come from."""
        return str(self.manifest) + (f", arrays from {self.samples.origin}" if self.samples is not None else "")

    def __len__(self) -> int:
        return len(self._lines)

    def record(self, index: int) -> dict[str, Any]:
        """The pair's record."""
        return parse_entry(self._lines.line(_position(index, len(self)))).record

    @cached_property
    def schema(self) -> Schema:
        """The schema of a sample: of the set, or of the output that contains the manifest."""
        if self.samples is not None:
            return self.samples.schema
        folder = self.manifest.parent
        return npz_schema(folder) if self._of_npz else pair_schema(folder)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._item(_position(index, len(self)), tensors_of)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The pairs of a batch, for a DataLoader; `collate` does not copy their vectors."""
        add = Rows(len(indices)).add
        return [self._item(_position(index, len(self)), add) for index in indices]

    def _item(self, index: int, to_tensors: ToTensors) -> dict[str, Any]:
        record = self.record(index)
        try:
            named = self._named(record)
            arrays = self._from_files(named) if self.samples is None else self._from_samples(index, named)
            return self._checked(named, to_tensors(arrays))
        except (KeyError, ValueError) as error:
            wrong = f"has no {error.args[0]}" if isinstance(error, KeyError) else f"cannot be read: {error}"
            folder = self.manifest.parent
            advice = f"make the pairs again: python -m hfprep pairs {folder}"
            if self.samples is None:
                advice = unless_stats_are_missing(folder, advice)
            raise StoreError(f"{self.manifest}, pair {record.get('id')!r} {wrong}; {advice}") from None

    @cached_property
    def _of_npz(self) -> bool:
        """Whether the arrays are in .npz files."""
        return len(self) > 0 and f"{TARGET}_features" in self.record(0)

    def _named(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record of a pair with the field names of `pair_record`."""
        return read_npz_pair(self.schema, record, self.manifest.parent) if self._of_npz else record

    def _checked(self, record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        for column in self.schema.columns:
            for dim, name in enumerate(column.dims if role_of(column) == TARGET else ()):
                size = tensors[column.name].shape[dim]
                if isinstance(name, str) and size != record[f"target_{name}"]:
                    raise StoreError(
                        f"{self.manifest}, pair {record['id']!r}: {column.name} has {size} values, but target_{name} "
                        f"is {record[f'target_{name}']}; make the pairs again: python -m hfprep pairs "
                        f"{self.manifest.parent}"
                    )
        values = {
            "id": record["id"],
            "language": record["target_language"],
            "prompt_id": record["prompt_id"],
            "target_id": record["target_id"],
            "prompt_language": record["prompt_language"],
            **{item.name: record[f"target_{item.name}"] for item in self.schema.record_fields},
        }
        return Item(self.schema, values | tensors)

    def _from_files(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        root = self.manifest.parent
        if self._of_npz:
            files = {role: load_npz(root, self.schema, record[f"{role}_features"], record["id"]) for role in ROLES}
            return {column.name: files[role_of(column)][column.name] for column in self.schema.columns}
        return {
            column.name: load_array(root, record[path_field(role_of(column), column)], record["id"])
            for column in self.schema.columns
        }

    def _from_samples(self, index: int, record: dict[str, Any]) -> dict[str, np.ndarray]:
        assert self.samples is not None
        assert self._positions is not None
        arrays: dict[str, np.ndarray] = {}
        for role, position in zip(ROLES, self._positions[index].tolist(), strict=True):
            if position < 0:
                raise StoreError(f"{self.manifest}: pair {record['id']!r} has a {role} that is not in the data set")
            columns = [column for column in self.schema.columns if role_of(column) == role]
            found = self.samples.split.read(position, columns)[1]
            arrays |= {name: array.copy() for name, array in found.items()}  # the next read overwrites it
        return {column.name: arrays[column.name] for column in self.schema.columns}

    def _found_in(self, split: Split) -> np.ndarray:
        """The positions of each pair's prompt and target, int64 (pairs, 2); -1 for missing ones."""
        positions = {sample_id: position for position, sample_id in enumerate(split.ids())}
        found = (positions.get(name, -1) for line in self._lines.lines() for name in self._ids_in(line))
        return np.fromiter(found, np.int64, len(ROLES) * len(self)).reshape(-1, len(ROLES))

    def _ids_in(self, line: bytes) -> list[str]:
        """The ids of a pair's prompt and target; "" if it is damaged, which reading the pair reports."""
        try:
            record = self._named(parse_entry(line).record)
        except (KeyError, ValueError):
            record = {}
        return [str(record.get(f"{role}_id", "")) for role in ROLES]

    @cached_property
    def code_lengths(self) -> np.ndarray:
        """The number of codes of every pair's target, int64."""
        return self._length("code_len")

    @cached_property
    def text_lengths(self) -> np.ndarray:
        """The number of text ids of every pair's target, int64."""
        return self._length("text_len")

    def _length(self, name: str) -> np.ndarray:
        field = name if self._of_npz else f"{TARGET}_{name}"
        return np.fromiter((self.record(index)[field] for index in range(len(self))), np.int64, len(self))


def load(
    path: str | Path, split: str = "train", *, pairs: str | Path | None = None, revision: str | None = None
) -> FeatureDataset | PairDataset:
    """Load the samples of a finished set in any format, in source order.

    `path`: an output of build, a saved Arrow data set, a folder of WebDataset shards or of .npz files, a manifest or
    pair manifest (.jsonl), or a Hub data set id (downloaded into the Hub cache first, at `revision` if given). `split`:
    train or validation. `pairs`: a pair manifest over the samples of that split. Raises ConfigError or StoreError.
    """
    if split not in SPLIT_NAMES:
        raise ConfigError(f"split is {split!r}; it must be train or validation")
    path = local_folder(path, revision)
    if path.is_file():
        return _of_manifest(path)
    name = SPLIT_NAMES[split]
    if is_npz_export(path):
        samples = FeatureDataset(NpzSplit(path / UTTERANCES[name]), f"{name} split of {path} (npz)")
        return samples if pairs is None else PairDataset(Path(pairs), samples)
    found = open_set(path)
    samples = FeatureDataset(found.split(name), f"{name} split of {found.root} ({found.format})")
    return samples if pairs is None else PairDataset(Path(pairs), samples)


def _described(data: FeatureDataset | PairDataset, noun: str, prefix: str) -> str:
    """The `repr` of a data set; `prefix` comes before the names of lengths in its records."""
    schema = data.schema
    lines = [f"{type(data).__name__}: {count(len(data), noun)}{_audio(data, prefix)}, recipe {schema.recipe}"]
    lines.append(f"  {data.origin}")
    for column in schema.columns:
        dims = ", ".join(str(schema.fixed.get(dim, dim) if isinstance(dim, str) else dim) for dim in column.dims)
        dtype = "float32" if column.kind == "vector" else "int64"
        lines.append(f"  {column.name}: {dtype} ({dims}{',' if column.ndim == 1 else ''})")
    return "\n".join(lines)


def _audio(data: FeatureDataset | PairDataset, prefix: str) -> str:
    """The duration of the audio, from the code lengths of at most `LOOKED_AT` records; "" if it is unknown."""
    length = next((column.lengths[-1] for column in data.schema.of_kind("codes")), None)
    positions = range(0, len(data), -(-len(data) // LOOKED_AT) or 1)
    if length is None or not data.schema.code_rate or not positions:
        return ""
    try:
        codes = sum(data.record(position)[prefix + length] for position in positions)
    except (StoreError, KeyError, TypeError):  # damaged, which reading the samples reports
        return ""
    about = "" if len(positions) == len(data) else "about "
    return f", {about}{duration(codes / len(positions) * len(data) / data.schema.code_rate)} of audio"


def _of_manifest(manifest: Path) -> FeatureDataset | PairDataset:
    """The samples or pairs in a manifest."""
    lines = LineFile(manifest)
    first = parse_entry(lines.line(0)).record if len(lines) else {}
    if "prompt_id" in first or f"{TARGET}_features" in first:
        return PairDataset(manifest)
    return FeatureDataset(NpzSplit(manifest) if "features" in first else open_manifest(manifest), str(manifest))


def local_folder(path: str | Path, revision: str | None = None) -> Path:
    """The path if it exists, or else the data set with this id in the Hub cache; raises StoreError."""
    if Path(path).exists():
        return Path(path)
    check_local(path)
    name = str(path)
    if not _HUB_ID.fullmatch(name):
        raise StoreError(f"{name} does not exist, and it is not a Hub data set id (USER/NAME)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise StoreError(
            f"there is no folder {name}, and the Hub data set {name} cannot be downloaded: {error}"
        ) from error


def _position(index: int, length: int) -> int:
    position = index + length if index < 0 else index
    if not 0 <= position < length:
        raise IndexError(f"sample {index} of {length}")
    return position
