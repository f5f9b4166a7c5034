"""Tar shards in the WebDataset convention as a sample set.

Needs the index that hfprep writes beside the shards. Members are found by reading tar headers, once; samples are then
read by position.
"""

import json
import re
from array import array
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from hfprep.errors import StoreError
from hfprep.formats.index import INDEX, read_index
from hfprep.formats.positioned import PositionedFile
from hfprep.formats.samples import METADATA, Entry, Origin, Sample, SampleSet, Split, checked, entry_from
from hfprep.io.npy_format import parse_npy
from hfprep.schema import COLUMNS

FORMAT_NAME = "hfprep-webdataset"
EXACT_LINE, EXTRA = "manifest_line", "extra"
BLOCK = 512
MEMBERS = ("json", *(f"{column}.npy" for column in COLUMNS))
_NAME = re.compile(rb"\d{9}\.([a-z_.]+)")


def is_webdataset(path: Path) -> bool:
    """Whether a folder holds shards that hfprep wrote."""
    return read_index(path, FORMAT_NAME) is not None


def metadata_json(entry: Entry) -> dict[str, Any]:
    """What the .json member of a sample holds: always the same fields, each always of one type.

    Readers such as `datasets` take the types from the first samples, so nothing is null: a missing text is "", a
    missing number 0. `manifest_line` is the exact manifest line where these fields do not give it back, else "".
    """
    values = {name: kind() if value is None else value for (name, value), kind in zip(
        entry.metadata().items(), METADATA.values(), strict=True)}  # fmt: skip
    exact = "" if _entry(values, "", "").line == entry.line else entry.line.decode("utf-8")
    return values | {EXTRA: entry.extra, EXACT_LINE: exact}


def _entry(values: dict[str, Any], exact_line: str, extra: str) -> Entry:
    metadata = {name: values[name] for name in METADATA}
    for name in ("speaker", "language"):
        metadata[name] = metadata[name] or None
    return entry_from(metadata, exact_line or None, extra)


def parse_header(block: bytes) -> tuple[bytes, int]:
    """Name and size of a tar member; an empty name at the end of the archive."""
    name = block[:100].rstrip(b"\0")
    return name, int(block[124:135], 8) if name else 0


class TarFile(PositionedFile):
    """A shard, read by position."""

    def header(self, offset: int) -> tuple[bytes, int]:
        """Name and size of the member whose header stands at `offset`; an empty name at the end."""
        try:
            return parse_header(self.read(offset, BLOCK))
        except ValueError:
            raise StoreError(f"{self.path} is damaged at byte {offset}; export it again") from None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


class WebDatasetSplit(Split):
    """The shards of one split, in order."""

    def __init__(self, root: Path, shards: list[dict[str, Any]]) -> None:
        self.root = root
        self._files: list[TarFile] = []
        self._shard = array("i")
        self._offset = array("q")
        self._sizes = [int(shard["bytes"]) for shard in shards]
        for number, shard in enumerate(shards):
            path = root / shard["name"]
            size = path.stat().st_size if path.is_file() else -1
            if size != shard["bytes"]:
                raise StoreError(
                    f"{path} has {max(size, 0)} bytes instead of {shard['bytes']}; export or fetch it again"
                )
            self._files.append(TarFile(path))
            offsets = list(self._scan(self._files[-1]))
            if len(offsets) != shard["samples"]:
                raise StoreError(f"{path} has {len(offsets)} samples instead of {shard['samples']}; export it again")
            self._offset.extend(offsets)
            self._shard.extend([number] * len(offsets))

    @staticmethod
    def _scan(file: TarFile) -> Iterator[int]:
        """Where each sample starts: at its .json, which comes first."""
        offset = 0
        while True:
            name, size = file.header(offset)
            if not name:
                return
            match = _NAME.fullmatch(name)
            if match and match[1] == b"json":
                yield offset
            offset += BLOCK + _padded(size)

    def __len__(self) -> int:
        return len(self._offset)

    def _read(self, index: int, members: tuple[str, ...]) -> dict[str, memoryview]:
        """The first members of a sample, by name, in one read."""
        file, start = self._files[self._shard[index]], self._offset[index]
        data = memoryview(file.read(start, self._end(index) - start))
        found, offset = {}, 0
        for wanted in members:
            name, size = parse_header(bytes(data[offset : offset + BLOCK]))
            member = name.partition(b".")[2].decode()
            if member != wanted:
                raise StoreError(f"{file.path} has {member or 'nothing'} where {wanted} should be; export it again")
            found[member] = data[offset + BLOCK : offset + BLOCK + size]
            offset += BLOCK + _padded(size)
        return found

    def _end(self, index: int) -> int:
        """Where the next sample starts, or the shard ends."""
        last = index + 1 == len(self) or self._shard[index + 1] != self._shard[index]
        return self._sizes[self._shard[index]] if last else self._offset[index + 1]

    def entry(self, index: int) -> Entry:
        return self._parse(self._read(index, MEMBERS[:1])["json"])

    @staticmethod
    def _parse(data: memoryview) -> Entry:
        values = json.loads(bytes(data))
        return _entry(values, values[EXACT_LINE], values[EXTRA])

    def sample(self, index: int) -> Sample:
        members = self._read(index, MEMBERS)
        where = str(self._files[self._shard[index]].path)
        entry = self._parse(members["json"])
        try:
            arrays = {name: parse_npy(members[f"{name}.npy"]) for name in COLUMNS}
        except ValueError as error:
            message = f"sample {entry.id!r}: an array in {where} cannot be read: {error}; make it again"
            raise StoreError(message) from error
        return checked(Sample(entry, arrays), where)


class WebDatasetSet(SampleSet):
    """A folder of shards with their index."""

    format = "webdataset"

    @cached_property
    def index(self) -> dict[str, Any]:
        """The index beside the shards."""
        index = read_index(self.root, FORMAT_NAME)
        if index is None:
            raise StoreError(f"{self.root} has no {INDEX} of hfprep; export the set again")
        return index

    @cached_property
    def origin(self) -> Origin:
        return Origin.parse(self.index)

    def split(self, name: str) -> WebDatasetSplit:
        splits = self.index["splits"]
        if name not in splits:
            raise StoreError(f"{self.root} has no split {name!r}; it has {', '.join(splits)}")
        return WebDatasetSplit(self.root, splits[name]["shards"])
