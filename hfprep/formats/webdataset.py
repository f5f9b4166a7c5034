"""Reads tar shards in the WebDataset convention as a sample set.

Needs hfprep's index beside the shards, which has the place of each sample. In sets of hfprep 0.1.0, whose index does
not, samples are found by reading the tar headers once.
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import StoreError
from hfprep.formats.index import INDEX, Places, read_index
from hfprep.formats.positioned import PositionedFile
from hfprep.formats.samples import (
    Entry,
    Origin,
    Sample,
    SampleSet,
    Split,
    check_arrays,
    checked,
    entry_from,
    parse_exact,
)
from hfprep.io.npy_format import parse_npy
from hfprep.schema import Column, Schema
from hfprep.store.first_version import first_schema

FORMAT_NAME = "hfprep-webdataset"
EXACT_LINE, EXTRA = "manifest_line", "extra"
SHARD, START, SIZE = "shard", "start", "bytes"  # columns of a sample's place, followed by its lengths
BLOCK = 512
RECORD_BYTES = 4096  # most records are shorter, including the header
_HEADER = struct.Struct("100s24x11s")  # a member's name, and its size in octal digits
_NAME = re.compile(rb"[0-9a-f]+\.(.+)")


def is_webdataset(path: Path) -> bool:
    """Whether a folder has WebDataset shards written by hfprep."""
    return read_index(path, FORMAT_NAME) is not None


def members_of(schema: Schema) -> tuple[str, ...]:
    """The members of a sample in order, without its key."""
    return ("json", *(f"{column.name}.npy" for column in schema.columns))


def metadata_json(schema: Schema, entry: Entry) -> dict[str, Any]:
    """The content of a sample's .json member: always the same fields, with fixed types.

    Readers such as `datasets` infer types from the first samples, so nothing is null: a missing text is "", a missing
    number 0. `manifest_line` is the exact manifest line if it cannot be restored from these fields, else "".
    """
    metadata = entry.metadata(schema)
    values = {
        name: kind() if metadata[name] is None else metadata[name] for name, kind in schema.fields.items()
    }  # fmt: skip
    exact = "" if _entry(schema, values, "", "").line == entry.line else entry.line.decode("utf-8")
    return values | {EXTRA: entry.extra, EXACT_LINE: exact}


def _entry(schema: Schema, values: Mapping[str, Any], exact_line: str, extra: str) -> Entry:
    metadata = {name: values[name] for name in schema.fields}
    for name in ("speaker", "language"):
        metadata[name] = metadata[name] or None
    return entry_from(schema, metadata, exact_line or None, extra)


def parse_header(data: bytes | memoryview, offset: int = 0) -> tuple[bytes, int]:
    """Name and size of the tar member at an offset; an empty name at the end. Raises ValueError if it is damaged."""
    if len(data) < offset + BLOCK:
        raise ValueError("the header is cut off")
    name, size = _HEADER.unpack_from(data, offset)
    name = name.rstrip(b"\0")
    return name, int(size, 8) if name else 0


def parse_sample(schema: Schema, data: memoryview, where: Path) -> Sample:
    """Parse a sample from its members; raises StoreError if they are not valid."""
    members = _members(data, members_of(schema), where)
    entry = _parse_entry(schema, members["json"])
    return checked(schema, Sample(entry, _arrays(schema.columns, members, entry.id, where)), str(where))


def _arrays(
    columns: Sequence[Column], members: Mapping[str, memoryview], sample_id: str, where: Path
) -> dict[str, np.ndarray]:
    try:
        return {column.name: parse_npy(members[f"{column.name}.npy"]) for column in columns}
    except ValueError as error:
        message = f"sample {sample_id!r}: an array in {where} cannot be read: {error}; make it again"
        raise StoreError(message) from error


def _parse_entry(schema: Schema, data: memoryview) -> Entry:
    values = json.loads(str(data, "utf-8"))
    return _entry(schema, values, values[EXACT_LINE], values[EXTRA])


def _members(data: memoryview, wanted: Sequence[str], where: Path) -> dict[str, memoryview]:
    found, offset = {}, 0
    for name_wanted in wanted:
        try:
            name, size = parse_header(data, offset)
        except ValueError:
            raise StoreError(f"{where} is damaged; make it again") from None
        member = name.partition(b".")[2].decode(errors="replace")
        if member != name_wanted:
            raise StoreError(f"{where} has {member or 'nothing'} where {name_wanted} should be; export it again")
        found[member] = data[offset + BLOCK : offset + BLOCK + size]
        offset += BLOCK + padded(size)
    return found


def padded(size: int) -> int:
    """`size` rounded up to whole tar blocks."""
    return -(-size // BLOCK) * BLOCK


def scan(file: PositionedFile) -> Iterator[tuple[int, int]]:
    """Start and size of each sample, from the headers. A sample starts with its .json."""
    offset, start = 0, -1
    while True:
        try:
            name, size = parse_header(file.read(offset, BLOCK).ljust(BLOCK, b"\0"))  # an open shard has no end marker
        except ValueError:
            raise StoreError(f"{file.path} is damaged at byte {offset}; export it again") from None
        match = _NAME.fullmatch(name)
        if not name or (match and match[1] == b"json"):
            if start >= 0:
                yield start, offset - start
            start = offset
        if not name:
            return
        offset += BLOCK + padded(size)


class WebDatasetSplit(Split):
    """The samples of a split; `places` has their positions, None: from the tar headers."""

    def __init__(self, root: Path, schema: Schema, shards: list[dict[str, Any]], places: Places | None = None) -> None:
        self.root = root
        self.schema = schema
        self._wanted = members_of(schema)
        self._files: list[PositionedFile] = []
        self._places = places
        self._scanned: np.ndarray | None = None
        found: list[tuple[int, int, int]] = []
        for number, shard in enumerate(shards):
            path = root / shard["name"]
            size = path.stat().st_size if path.is_file() else -1
            if size != shard["bytes"]:
                raise StoreError(
                    f"{path} has {max(size, 0)} bytes instead of {shard['bytes']}; export or fetch it again"
                )
            self._files.append(PositionedFile(path))
            if places is None:
                before = len(found)
                found += ((number, start, length) for start, length in scan(self._files[-1]))
                if len(found) - before != shard["samples"]:
                    message = f"{path} has {len(found) - before} samples instead of {shard['samples']}; export it again"
                    raise StoreError(message)
        if places is None:
            self._scanned = np.array(found, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._places) if self._places is not None else len(self._table)

    @property
    def _table(self) -> np.ndarray:
        """Shard, start and size of each sample, int64 (samples, 3 or more)."""
        if self._scanned is not None:
            return self._scanned
        assert self._places is not None
        return self._places.table

    def _place(self, index: int) -> tuple[PositionedFile, int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard, start, size = self._table[index, :3].tolist()
        if not 0 <= shard < len(self._files):
            raise StoreError(f"sample {index} is in shard {shard} of {len(self._files)}; make or fetch the set again")
        return self._files[shard], start, size

    def entry(self, index: int) -> Entry:
        file, start, size = self._place(index)
        for most in (min(RECORD_BYTES, size), size):
            members = _members(memoryview(file.read(start, most)), ("json",), file.path)
            if BLOCK + len(members["json"]) < most:
                break
        return _parse_entry(self.schema, members["json"])

    def sample(self, index: int) -> Sample:
        file, start, size = self._place(index)
        return parse_sample(self.schema, memoryview(file.read(start, size)), file.path)

    def read(self, index: int, columns: Sequence[Column] | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        file, start, size = self._place(index)
        members = _members(file.view(start, size), self._wanted, file.path)
        values = json.loads(str(members["json"], "utf-8"))
        if values[EXACT_LINE]:
            record = parse_exact(values[EXACT_LINE]).record
        else:
            record = values
            record["language"] = record["language"] or None
        wanted = self.schema.columns if columns is None else columns
        arrays = _arrays(wanted, members, str(record.get("id")), file.path)
        check_arrays(self.schema, record, arrays, str(file.path))
        return record, arrays

    def lengths(self, name: str) -> np.ndarray:
        if self._places is not None and name in self._places.columns:
            return self._places.column(name)
        return super().lengths(name)


class WebDatasetSet(SampleSet):
    """A folder of shards with their index."""

    format = "webdataset"

    @cached_property
    def index(self) -> dict[str, Any]:
        index = read_index(self.root, FORMAT_NAME)
        if index is None:
            raise StoreError(f"{self.root} has no {INDEX} of hfprep; export the set again")
        return index

    @cached_property
    def origin(self) -> Origin:
        return Origin.parse(self.index)

    def _width(self, column: str) -> int:
        """From the first sample, because the schema is not known yet."""
        for split in self.index["splits"].values():
            for shard in split["shards"]:
                file = PositionedFile(self.root / shard["name"])
                for start, size in scan(file):
                    members = _members(memoryview(file.read(start, size)), members_of(first_schema(0)), file.path)
                    return len(parse_npy(members[f"{column}.npy"]))
        return 0

    def split(self, name: str) -> WebDatasetSplit:
        splits = self.index["splits"]
        if name not in splits:
            raise StoreError(f"{self.root} has no split {name!r}; it has {', '.join(splits)}")
        return WebDatasetSplit(self.root, self.schema, splits[name]["shards"], Places.of(self.root, self.index, name))

    def shard(self, shard: Mapping[str, Any]) -> WebDatasetSplit:
        """The samples of a shard, from the tar headers."""
        return WebDatasetSplit(self.root, self.schema, [dict(shard)])
