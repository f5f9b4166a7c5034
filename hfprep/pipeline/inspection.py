"""Looks up the files of manifest rows: audio, artifacts of finished samples, and artifacts to adopt.

Takes rows and their states. Opens no files, except headers of artifacts that may be adopted. Makes no decisions and no
changes. Thread-safe.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from pyarrow import fs

from hfprep.errors import HfprepError, Reason, RejectedSample
from hfprep.inputs.audio.decode import read_header
from hfprep.io.object_storage import REQUESTS_AT_A_TIME, is_url
from hfprep.pipeline.stores import Stores
from hfprep.schema import Schema, Utterance
from hfprep.store.fingerprints import AudioIdentity
from hfprep.store.layout import NpyOutput
from hfprep.store.state import SampleState

Known = tuple[Utterance, SampleState | None]  # a row and its state
ADOPTED_LENGTH_SLACK = 1  # frames; the length in an mp3's header may be slightly off


def identify_audio(
    path: str, *, by_content: bool, stores: Stores | None = None, finished: bool = False
) -> AudioIdentity:
    """The identity of the audio at `path`; raises RejectedSample if it is missing or not accessible.

    Raises StoreError if its object storage cannot be reached, unless `stores` attributes that to the row. `finished`:
    whether it is the audio of a finished sample.
    """
    try:
        if stores is not None:
            return stores.ask(path, lambda: identify_audio(path, by_content=by_content), finished=finished)
        return AudioIdentity.of(path, by_content=by_content)
    except (FileNotFoundError, NotADirectoryError):
        message = f"there is no file {path}; correct `audio` or restore the file"
        raise RejectedSample(Reason.AUDIO_MISSING, message) from None
    except OSError as error:
        raise RejectedSample(Reason.AUDIO_UNREADABLE, f"{path}: {error.strerror or error}") from error
    except HfprepError:  # such as an unreachable store: not the sample's fault
        raise
    except Exception as error:  # any other error that an untrusted path causes only rejects its row
        what = f"error while checking {path}: {type(error).__name__}: {error}"
        raise RejectedSample(Reason.AUDIO_UNREADABLE, what) from error


class Inspected(NamedTuple):
    """One row: its audio, its state, finished groups with missing or incomplete artifacts, and what may be adopted."""

    identity: AudioIdentity
    known: SampleState | None
    incomplete: frozenset[str]
    adopted: "Adoptable | None"


@dataclass(frozen=True, slots=True)
class Adoptable:
    """Artifacts without a record: the lengths of groups that are usable, and whether the codes contain padding."""

    groups: dict[str, dict[str, int]]
    seconds: float | None = None
    padded: bool = False


@dataclass(frozen=True, kw_only=True)
class Inspector:
    """Inspects rows; with `adopt`, also finds artifacts without a record that fit the schema.

    Without `artifacts`, features of finished samples are stored elsewhere and not looked up. `num_codes(seconds)` is
    the number of codes of a clip.
    """

    output: NpyOutput
    hash_audio: bool
    adopt: bool
    artifacts: bool
    num_codes: Callable[[float], int]
    stores: Stores = field(default_factory=Stores)

    def inspect(self, rows: Sequence[Known]) -> list[Inspected | RejectedSample]:
        """The result for each of these rows; a RejectedSample if its audio is missing."""
        found: list[Inspected | RejectedSample] = []
        remote = self._identify_remote(
            (utterance.path, known is not None) for utterance, known in rows if is_url(utterance.path)
        )
        for (utterance, known), files in zip(rows, self._look(rows), strict=True):
            try:
                identity = remote.get(utterance.path) or self._identify(utterance, files)
                if isinstance(identity, RejectedSample):
                    raise identity
                incomplete, adopted = frozenset[str](), None
                if known is not None and self.artifacts:
                    sizes = None if files is None else [file.size for file in files[1:]]
                    incomplete = self.output.incomplete(utterance.id, known, sizes)
                elif known is None and self.adopt:
                    adopted = self._adoptable(utterance)
                found.append(Inspected(identity, known, incomplete, adopted))
            except RejectedSample as error:
                found.append(error)
        return found

    def _identify_remote(self, urls: Iterable[tuple[str, bool]]) -> dict[str, AudioIdentity | RejectedSample]:
        """Identities of these files (URL, whether it belongs to a finished sample), with concurrent requests."""

        def identify(url: str) -> AudioIdentity | RejectedSample:
            try:
                return identify_audio(url, by_content=self.hash_audio, stores=self.stores, finished=wanted[url])
            except RejectedSample as error:
                return error

        wanted: dict[str, bool] = {}
        for url, finished in urls:
            wanted[url] = finished or wanted.get(url, False)
        if not wanted:
            return {}
        with ThreadPoolExecutor(min(len(wanted), REQUESTS_AT_A_TIME)) as pool:
            return dict(zip(wanted, pool.map(identify, wanted), strict=True))

    def _identify(self, utterance: Utterance, files: Sequence[fs.FileInfo] | None) -> AudioIdentity:
        size = None if files is None or self.hash_audio else files[0].size
        if files is None or size is None:  # also if it is missing, or a clip inside another file
            return identify_audio(utterance.path, by_content=self.hash_audio)
        return AudioIdentity(size, files[0].mtime_ns)

    def _look(self, rows: Sequence[Known]) -> Iterator[Sequence[fs.FileInfo] | None]:
        """For each finished row its audio file and artifacts, looked up in one call that releases the GIL.

        None for other rows, and for all rows if the call fails: then each is looked up by itself.
        """
        paths = [
            path
            for utterance, known in rows
            if known is not None
            for path in (
                "." if is_url(utterance.path) else utterance.path,  # looked up in the store already
                *(self.output.artifacts(utterance.id) if self.artifacts else ()),
            )
        ]
        try:
            infos = iter(fs.LocalFileSystem().get_file_info(paths))
        except (OSError, ValueError):
            return itertools.repeat(None, len(rows))
        per_row = 1 + len(self.output.schema.columns) * self.artifacts
        return (None if known is None else tuple(itertools.islice(infos, per_row)) for _, known in rows)

    def _adoptable(self, utterance: Utterance) -> Adoptable | None:
        """The groups on disk that can be adopted; audio groups only if the codes match the audio's length."""
        schema = self.output.schema
        shapes = {column.name: self.output.read_shape(column.name, utterance.id) for column in schema.columns}
        lengths = {group: _lengths(schema, group, shapes) for group in schema.group_names}
        groups = {group: found for group, found in lengths.items() if found is not None and group in schema.text_groups}
        audio = {group: found for group in schema.audio_groups if (found := lengths[group]) is not None}
        codes = next((column for column in schema.of_kind("codes")), None)
        if codes is None or audio.keys() != schema.audio_groups:
            return Adoptable(groups) if groups else None
        try:
            header = self.stores.ask(utterance.path, lambda: read_header(utterance.path, segment=utterance.segment))
        except RejectedSample:
            return Adoptable(groups) if groups else None
        expected = self.num_codes(header.seconds)
        if abs(audio[codes.group][codes.lengths[-1]] - expected) > ADOPTED_LENGTH_SLACK:
            return Adoptable(groups, padded=True)
        return Adoptable(groups | audio, header.seconds)


def _lengths(schema: Schema, group: str, shapes: Mapping[str, tuple[int, ...] | None]) -> dict[str, int] | None:
    """The lengths of a group if all its artifacts exist and match the schema and each other, else None."""
    found: dict[str, int] = dict(schema.fixed)
    for column in schema.columns_of([group]):
        shape = shapes[column.name]
        if shape is None:
            return None
        for dim, size in zip(column.dims, shape, strict=True):
            if size != (dim if isinstance(dim, int) else found.setdefault(dim, size)) or not size:
                return None
    return {name: found[name] for column in schema.columns_of([group]) for name in column.lengths}
