"""A sample set for publishing, without local paths.

Absolute paths, and paths out of the data set, are replaced by their last component in records, in the source manifest's
other fields and in the provenance. Everything else is unchanged.
"""

import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from hfprep.formats.samples import NO_EXTRA, Entry, Origin, Sample, SampleSet, Split, entry_from
from hfprep.io.json_text import json_text

_LOCAL = re.compile(r"(/|~|[A-Za-z]:[\\/]|\\\\|file:)|\.\.([/\\]|$)")


def public_value(value: Any) -> Any:
    """A JSON value with each local path replaced by its last component."""
    if isinstance(value, dict):
        return {name: public_value(item) for name, item in value.items()}
    if isinstance(value, list):
        return [public_value(item) for item in value]
    return _public_text(value) if isinstance(value, str) else value


def _public_text(text: str) -> str:
    parts = PurePosixPath(text).parts
    if _LOCAL.match(text) is None and ".." not in parts and ".." not in PureWindowsPath(text).parts:
        return text
    return PureWindowsPath(text).name or PurePosixPath(text).name


class PublishedSet(SampleSet):
    """Another set without local paths."""

    def __init__(self, source: SampleSet) -> None:
        super().__init__(source.root)
        self.source = source
        self.format = source.format

    @cached_property
    def origin(self) -> Origin:
        origin = self.source.origin
        stats, fingerprints = public_value(origin.stats), public_value(origin.fingerprints)
        return Origin(stats, fingerprints, origin.latents_dtype, origin.schema)

    def _width(self, column: str) -> int:
        return self.source._width(column)

    def split(self, name: str) -> "PublishedSplit":
        return PublishedSplit(self.source.split(name))


class PublishedSplit(Split):
    """A split of another set without local paths."""

    def __init__(self, source: Split) -> None:
        self.source = source
        self.schema = source.schema

    def __len__(self) -> int:
        return len(self.source)

    def entry(self, index: int) -> Entry:
        return self._published(self.source.entry(index))

    def sample(self, index: int) -> Sample:
        sample = self.source.sample(index)
        return Sample(self._published(sample.entry), sample.arrays)

    def entries(self) -> Iterator[Entry]:
        return map(self._published, self.source.entries())

    def samples(self) -> Iterator[Sample]:
        return (Sample(self._published(sample.entry), sample.arrays) for sample in self.source.samples())

    def _published(self, entry: Entry) -> Entry:
        """The record with only hfprep's fields: additional fields of older scripts are dropped."""
        metadata = entry.metadata(self.schema)
        metadata["audio_path"] = _public_text(metadata["audio_path"] or "")
        extra = entry.extra
        if extra != NO_EXTRA:
            extra = json_text(public_value(json.loads(extra)))
        return entry_from(self.schema, metadata, None, extra)
