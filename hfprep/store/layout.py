"""The npy layout on disk: paths of artifacts, publishing of batches, and the manifests.

A batch is published in this order: arrays are written under temporary names and synced; the state marks the samples as
unfinished; files are renamed; folders are synced; the state marks the samples as finished; progress and manifests are
appended. After a kill at any point the state never claims more than is on disk, and the listing is rebuilt from it.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import StoreError
from hfprep.io import atomic
from hfprep.io.npy_format import HEADER_BYTES, npy_bytes, npy_header, npy_size, parse_npy
from hfprep.schema import (
    Features,
    PickledAsTuple,
    Rejection,
    Schema,
    Utterance,
    artifact_path,
    manifest_record,
    metadata_of,
)
from hfprep.store.fingerprints import AudioIdentity, source_of
from hfprep.store.names import UNNAMEABLE, unnameable
from hfprep.store.state import Finished, SampleState, State

TRAIN, VAL = "train_manifest.jsonl", "val_manifest.jsonl"
PROGRESS, REJECTED, STATS = ".preprocessing_progress.txt", "rejected.jsonl", "stats.json"
PRIVATE = ".hfprep"
STATE = "state.sqlite"  # in the private folder
STATE_FILE = f"{PRIVATE}/{STATE}"
SPLIT_BUCKETS = 1_000_000
IO_THREADS = 8
READING_THREADS = 4
_ENCODER = json.JSONEncoder(ensure_ascii=False)


def split_bucket(sample_id: str) -> int:
    """The number in [0, `SPLIT_BUCKETS`), from the SHA-1 of an id, that decides its split."""
    return int.from_bytes(hashlib.sha1(sample_id.encode()).digest()) % SPLIT_BUCKETS


def in_validation(bucket: int, val_ratio: float) -> bool:
    """Whether ids with this number belong to the validation split."""
    return bucket / SPLIT_BUCKETS < val_ratio


def is_validation(sample_id: str, val_ratio: float) -> bool:
    return in_validation(split_bucket(sample_id), val_ratio)


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as one line of UTF-8 JSON."""
    return _ENCODER.encode(record).encode() + b"\n"


def record_start(sample_id: str) -> bytes:
    """How the line of a sample's manifest record begins."""
    return b'{"id": ' + _ENCODER.encode(sample_id).encode() + b","


@dataclass(frozen=True, slots=True)
class PlannedRow(PickledAsTuple):
    """A valid manifest row, the fingerprints its groups must have, and the groups still to be computed."""

    utterance: Utterance
    fingerprints: Mapping[str, str]
    audio: AudioIdentity
    need: frozenset[str]

    @property
    def source(self) -> str:
        """What the sample is computed from, as it is stored in the state."""
        return source_of(self.utterance, self.audio)


@dataclass(frozen=True, slots=True)
class Staged(PickledAsTuple):
    """A computed sample whose arrays are on disk, synced, under temporary names; cheap to send between processes.

    `files` and `shapes` are by column; `seconds` is None if the audio was not read.
    """

    row: PlannedRow
    files: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    seconds: float | None


def finished_groups(schema: Schema, row: PlannedRow, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Finished]:
    """The groups of arrays with these shapes, by column, as the state stores them once they are in place."""
    lengths: dict[str, dict[str, int]] = {}
    for name, shape in shapes.items():
        column = schema.by_name[name]
        own = lengths.setdefault(column.group, {})
        own.update((dim, size) for dim, size in zip(column.dims, shape, strict=True) if isinstance(dim, str))
    return {name: Finished(row.fingerprints[name], own) for name, own in lengths.items()}


class OutputFolder:
    """An output directory, and the private folder inside it."""

    url: str | None = None  # of the output in object storage, if this is its local folder

    def __init__(self, root: Path) -> None:
        self.root = root
        self.private = root / PRIVATE
        self.work = self.private / "work"

    @property
    def state_file(self) -> Path:
        """The database of finished samples (see `State`)."""
        return self.private / STATE

    def reset_work(self) -> None:
        """Make an empty folder for working data; what a killed run left there is removed."""
        with atomic.explained(self.work):
            self.remove_work()
            for name in (PROGRESS, TRAIN, VAL, REJECTED, STATS):
                for suffix in atomic.TEMPORARY:
                    (self.root / f"{name}.{suffix}").unlink(missing_ok=True)
            self.work.mkdir(parents=True, exist_ok=True)

    def remove_work(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)


class NpyOutput(OutputFolder):
    """An output directory in the npy layout, for samples of one schema."""

    def __init__(self, root: Path, schema: Schema) -> None:
        super().__init__(root)
        self.schema = schema
        self._root = str(root)

    def artifact(self, column: str, sample_id: str) -> Path:
        return self.root / artifact_path(column, sample_id)

    def artifacts(self, sample_id: str) -> list[str]:
        """Paths of a sample's arrays, in the order of the schema's columns."""
        return [f"{self._root}/{column.name}/{sample_id}.npy" for column in self.schema.columns]

    def all_artifacts(self) -> Iterator[tuple[str, str]]:
        """Id and column of every artifact on disk, whether its sample is finished or not."""
        for column in self.schema.columns:
            folder = self.root / column.name
            for path in folder.rglob("*.npy"):
                yield path.relative_to(folder).as_posix().removesuffix(".npy"), column.name

    def incomplete(
        self, sample_id: str, state: SampleState, sizes: Sequence[int | None] | None = None
    ) -> frozenset[str]:
        """The finished groups with an artifact that is missing or whose size does not match its lengths.

        `sizes` are those of `artifacts(sample_id)` (None: no such file), if they are known already.
        """
        if sizes is None:
            sizes = [_size_of(path) for path in self.artifacts(sample_id)]
        missing = set()
        for size, column in zip(sizes, self.schema.columns, strict=True):
            group = state.groups.get(column.group)
            if group is not None and size != npy_size(column.dtype, self.schema.shape(column, group.lengths)):
                missing.add(column.group)
        return frozenset(missing)

    def read_shape(self, column: str, sample_id: str) -> tuple[int, ...] | None:
        """Shape of an artifact that is complete, readable and of the right dtype and rank, else None."""
        path, described = self.artifact(column, sample_id), self.schema.by_name[column]
        try:
            with open(path, "rb") as stream:
                header = npy_header(stream.read(HEADER_BYTES))
                size = os.fstat(stream.fileno()).st_size
        except (OSError, ValueError):
            return None
        right = header.dtype == described.numpy_dtype and len(header.shape) == described.ndim
        return header.shape if right and size == npy_size(described.dtype, header.shape) else None

    def read(self, column: str, sample_id: str) -> np.ndarray:
        """A finished sample's array; raises StoreError if it cannot be read."""
        path = self.artifact(column, sample_id)
        try:
            with open(path, "rb", buffering=0) as stream:
                return parse_npy(stream.read())
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error  # without the path, which is already in the message
            message = f"{path} was complete but cannot be read now: {why}; run the same command again"
            raise StoreError(message) from error

    def occupied(self) -> bool:
        return any((self.root / column.name).is_dir() for column in self.schema.columns)


def _size_of(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def record_of(
    schema: Schema, utterance: Utterance, seconds: float | None, lengths: Mapping[str, int]
) -> dict[str, Any]:
    """The manifest record of a complete sample; `seconds` is the audio's actual length."""
    return manifest_record(schema, metadata_of(utterance, seconds), lengths)


class Stage:
    """Writes computed samples under temporary names in one process's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="hfprep-write")
        self._numbers = itertools.count()
        with atomic.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        self._pool.shutdown(wait=True)

    def write(self, computed: Sequence[tuple[PlannedRow, Features]]) -> list[Staged]:
        """Write and sync all arrays of these samples; raises StoreError."""
        jobs, staged = [], []
        for row, features in computed:
            arrays = features.arrays
            files = {name: self.folder / f"{next(self._numbers)}-{name}" for name in arrays}
            jobs.append([(files[name], array) for name, array in arrays.items()])
            shapes = {name: array.shape for name, array in arrays.items()}
            staged.append(Staged(row, {name: str(path) for name, path in files.items()}, shapes, features.seconds))
        list(self._pool.map(write_arrays, jobs))
        return staged


class Publisher:
    """Publishes staged batches, one after another; use from one thread at a time."""

    def __init__(self, output: NpyOutput, state: State, val_ratio: float) -> None:
        self.output = output
        self.state = state
        self.val_ratio = val_ratio
        self._files = {name: atomic.AppendedFile(output.root / name) for name in (PROGRESS, TRAIN, VAL, REJECTED)}
        self._made: set[Path] = set()

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def publish(self, staged: Sequence[Staged], rejections: Sequence[Rejection]) -> list[Staged]:
        """Put a batch in place and list it; returns the samples that are in place.

        Samples whose id cannot be a file name become rejections. On a StoreError nothing of the batch is listed.
        """
        if staged:
            groups = {
                item.row.utterance.id: finished_groups(self.output.schema, item.row, item.shapes) for item in staged
            }
            with self.state.transaction():
                self.state.begin(groups.items())
            refused = self._move(staged)
            staged = [item for item in staged if item.row.utterance.id not in refused]
            rejections = [*rejections, *refused.values()]
            with self.state.transaction():
                for item in staged:
                    sample_id = item.row.utterance.id
                    self.state.finish(sample_id, groups[sample_id], seconds=item.seconds, source=item.row.source)
        for rejection in rejections:
            self.state.reject(rejection)
        self._list(staged, rejections)
        return list(staged)

    def _move(self, staged: Sequence[Staged]) -> dict[str, Rejection]:
        """Give the files of a batch their final names; returns a rejection for each id that cannot be a file name."""
        moves, owners = [], {}
        for item in staged:
            for name, path in item.files.items():
                final = self.output.artifact(name, item.row.utterance.id)
                moves.append((path, final))
                owners[final] = item
        refused: dict[str, Rejection] = {}
        for final, problem in put_in_place(self.output.root, moves, self._made).items():
            utterance = owners[final].row.utterance
            error = unnameable(utterance.id, f"the file system says {problem!r}")
            refused[utterance.id] = Rejection(utterance.line, utterance.id, error.reason, error.message)
        for path, final in moves:
            if owners[final].row.utterance.id in refused:  # some of its files may be in place
                for leftover in (Path(path), final):
                    with contextlib.suppress(OSError):
                        leftover.unlink()
        return refused

    def _list(self, staged: Sequence[Staged], rejections: Sequence[Rejection]) -> None:
        lines: dict[str, list[bytes]] = {TRAIN: [], VAL: []}
        known = self.state.samples(item.row.utterance.id for item in staged)
        for item, state in zip(staged, known, strict=True):
            utterance = item.row.utterance
            if state is None or state.missing(item.row.fingerprints):
                raise StoreError(f"sample {utterance.id!r} was published with columns missing; please report this")
            name = VAL if is_validation(utterance.id, self.val_ratio) else TRAIN
            lines[name].append(json_line(record_of(self.output.schema, utterance, state.seconds, state.lengths)))
        for name, records in lines.items():
            self._files[name].append(records)
        self._files[PROGRESS].append(item.row.utterance.id.encode() + b"\n" for item in staged)
        self._files[REJECTED].append(json_line(rejection.record()) for rejection in rejections)


def put_in_place(root: Path, moves: Sequence[tuple[str | Path, Path]], made: set[Path]) -> dict[Path, str]:
    """Rename files below `root` (temporary name, final name), durably; raises StoreError.

    `made` are folders that are known to exist; the folders of these files are added to it. Returns the final names that
    the file system refuses, with its error message; those files keep their temporary names.
    """
    refused: dict[Path, str] = {}
    with atomic.explained(root):
        new = {final.parent for _, final in moves} - made
        unmade = {folder: problem for folder in new if (problem := _make_folder(root, folder))}
        for temporary, final in moves:
            try:
                if final.parent in unmade:
                    refused[final] = unmade[final.parent]
                else:
                    atomic.rename(temporary, final)
            except OSError as error:
                if error.errno not in UNNAMEABLE:
                    raise
                refused[final] = error.strerror or str(error)
        folders = {final.parent for _, final in moves} - unmade.keys()
        parents = {parent for folder in folders - made for parent in folder.parents}
        for folder in folders | {parent for parent in parents if parent == root or root in parent.parents}:
            atomic.sync_folder(folder)
    made |= folders
    return refused


def _make_folder(root: Path, folder: Path) -> str | None:
    """Make a folder below `root`; returns the file system's error message if it refuses the name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in UNNAMEABLE:
            raise
        return error.strerror or str(error)
    for place in (folder, *folder.parents):  # a symbolic link there would redirect the files
        if place == root:
            break
        atomic.refuse_link(place)
    return None


def write_arrays(files: Sequence[tuple[Path, np.ndarray]], *, only_new: bool = False) -> None:
    """Write a few arrays as .npy and sync the files, not their folders. Raises StoreError.

    With `only_new`, also if a file exists. All are written before the first is synced, which takes less time.
    """
    with atomic.explained(files[0][0].parent), ExitStack() as stack:
        streams = []
        for path, array in files:
            stream = stack.enter_context(open(path, "xb" if only_new else "wb", buffering=0))
            atomic.observe("before-write", path)
            atomic.write_all(stream.fileno(), npy_bytes(array))
            atomic.observe("after-write", path)
            streams.append(stream)
        for (path, _), stream in zip(files, streams, strict=True):
            atomic.sync_file(stream.fileno(), path)
