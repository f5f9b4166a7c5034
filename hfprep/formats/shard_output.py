"""The shards of a build's output: what their users share, and recovery after a killed run.

The shards of a split are in the set's folder (OUT/arrow, OUT/webdataset) from the start. The files that make that
folder a set are removed before anything in it changes, and written again when the build is complete. Samples that are
not in the manifest are in shards in the private folder.
"""

import dataclasses
import logging
import shutil
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hfprep.errors import StoreError
from hfprep.formats.appending import Appender
from hfprep.formats.arrow_writer import ArrowOptions, ArrowShards, Survey
from hfprep.formats.index import PLACES
from hfprep.formats.samples import NO_EXTRA, Entry, Sample
from hfprep.formats.shards import OPEN, ReadSample, ShardFormat, found_path, open_path
from hfprep.formats.webdataset_writer import WebDatasetOptions, WebDatasetShards
from hfprep.io import atomic
from hfprep.io.chunks import chunks_of
from hfprep.store.layout import NpyOutput, PlannedRow
from hfprep.store.shard_index import SHARDS, UNLISTED, Place, Shard, ShardIndex, held
from hfprep.store.state import SELECTED_TOGETHER, SampleState, State

log = logging.getLogger(__name__)

SURVEY = "packed_survey"  # state key (its original name): the survey that the columns for other fields were chosen by
DESCRIBED = "packed_set"  # state key: a digest of the content that the files beside the shards describe
_ELSEWHERE = """
SELECT id FROM samples LEFT JOIN places USING (id)
WHERE samples.finished != '{}' AND typeof(samples.id) = 'text' AND (places.id IS NULL OR places.stale != '[]')
"""
OPEN_SHARDS = 4  # for reading
FIRST_LAYOUT = "0.1.0"  # of shards that the current version would write differently
SUFFIXES = {"arrow": ".arrow", "webdataset": ".tar"}


class PlannedRows(Protocol):
    """The rows of a plan: its file, and its rows in source order, as a table with a column `extra` and as objects."""

    path: Path

    @property
    def table(self) -> pa.Table: ...

    def chunks(self) -> Iterator[list[PlannedRow]]: ...


class ShardOutput:
    """The shards of one output, in the format `name`."""

    continues_closed = True  # whether to append to a closed shard with space left

    def __init__(self, output: NpyOutput, state: State, name: str, max_shard_bytes: int) -> None:
        self.output = output
        self.state = state
        self.name = name
        self.max_shard_bytes = max_shard_bytes
        self.index = ShardIndex(state)
        self.folder = output.root / name
        self._withdrawn = False
        self.use(state.get(SURVEY, Survey.parse) or Survey())

    @property
    def private(self) -> Path:
        """The folder for shards of samples that are not in the manifest."""
        return self.output.private / SHARDS

    def use(self, survey: Survey) -> None:
        self.shards = _format(self.name, self.output, self.max_shard_bytes, survey)
        self._open: OrderedDict[int, ReadSample] = OrderedDict()
        self.appender = Appender(
            self.index,
            self.shards,
            self.folder_of,
            before=self.withdraw,
            closed=self.closed,
            continues_closed=self.continues_closed,
        )

    def folder_of(self, split: str) -> Path:
        return self.private if split == UNLISTED else self.folder

    def place(self, shard: Shard) -> Path:
        """The local path of a shard, open or closed."""
        return found_path(self.folder_of(shard.split), shard.name)

    def path(self, shard: Shard) -> Path:
        """The file of a shard, for reading."""
        return self.place(shard)

    def sample(self, place: Place) -> Sample:
        """The sample at a place; raises StoreError if it cannot be read. The last shards stay open."""
        read = self._open.get(place.shard)
        if read is None:
            shard = next(shard for shard in self.index.shards() if shard.serial == place.shard)
            read = self._open[place.shard] = self.shards.reader(self.path(shard))
            if len(self._open) > OPEN_SHARDS:
                self.released(self._open.popitem(last=False)[0])
        self._open.move_to_end(place.shard)
        return read(place.row, place.start, place.size)

    def arrays(
        self, sample_id: str, sample: SampleState, place: Place | None, groups: Iterable[str]
    ) -> dict[str, np.ndarray]:
        """The columns of these groups that the state lists, from a shard, from artifacts, or partly from both.

        Raises StoreError if one cannot be read.
        """
        wanted = self.shards.schema.columns_of(groups)
        in_shard, found = held(place, sample), {}
        if place is not None and any(column.group in in_shard for column in wanted):
            found = self.sample(place).arrays
        return {
            column.name: found[column.name] if column.group in in_shard else self.output.read(column.name, sample_id)
            for column in wanted
        }

    def released(self, serial: int) -> None:
        """Called when a shard is no longer read."""

    def closed(self, shards: Sequence[Shard]) -> None:
        """Called when shards were closed."""
        del shards

    def removed(self, shard: Shard) -> None:
        """Called when the state no longer lists a shard; deletes its file."""
        self._open.pop(shard.serial, None)
        path = self.place(shard)
        with atomic.explained(path):
            path.unlink(missing_ok=True)

    def survey(self, plan: PlannedRows) -> None:
        """Choose the columns for the other fields of a plan's rows, in the earlier order if they are the same."""
        column = plan.table.column("extra")
        survey = Survey()
        if pc.all(pc.equal(column, NO_EXTRA)).as_py() is False:

            def entries() -> Iterator[Entry]:
                return (Entry({}, None, value.as_py()) for value in column)

            survey = Survey.of(self.output.schema, entries, written=False)
            known = self.state.get(SURVEY, Survey.parse) or Survey()
            if sorted(map(repr, known.extra)) == sorted(map(repr, survey.extra)):
                survey.extra = known.extra  # a different order is not a different layout
                survey.exact_extras = any(survey.exact_extra(entry) for entry in entries())
        self.state.put(SURVEY, dataclasses.asdict(survey))
        self.use(survey)
        self.recognise()

    def recognise(self) -> None:
        """Assign the current layout to shards of hfprep 0.1.0 that the current version would write identically."""
        for shard in self.index.shards():
            if shard.layout:
                continue
            found = self.shards.earlier_places(self.path(shard))
            shard.layout = FIRST_LAYOUT if found is None else self.shards.layout()
            moved = []
            if found:
                for sample_id, place in self.index.members(shard.serial):
                    start, size = found[place.row]
                    moved.append((sample_id, place._replace(start=start, size=size)))
            with self.state.transaction():
                self.index.put([shard])
                self.index.place(moved)

    def check_place(self) -> None:
        """Raise StoreError if something else is in the place of the set's folder."""
        folder = self.folder
        if self.index.shards() or not (folder.exists() or folder.is_symlink()):
            return
        if not folder.is_dir() or (any(folder.iterdir()) and not self.shards.replaceable(folder)):
            raise StoreError(f"{folder} exists and is not a set that hfprep wrote; move it away, or give a new folder")

    @property
    def former(self) -> Path:
        """Where an earlier set is kept until this one is complete."""
        return self.folder.with_name(f".{self.folder.name}.former")

    def withdraw(self) -> None:
        """Called before the first change: remove the files that mark the folder as a complete set."""
        if self._withdrawn or not self.folder.is_dir():
            return
        with atomic.explained(self.folder):
            if self._is_other():
                shutil.rmtree(self.former, ignore_errors=True)
                atomic.rename(self.folder, self.former)
            else:
                (self.folder / self.shards.marker).unlink(missing_ok=True)
                for path in [*self.folder.rglob("*.json"), self.folder / PLACES]:
                    path.unlink(missing_ok=True)
                atomic.sync_folder(self.folder)
        self._withdrawn = True

    def _is_other(self) -> bool:
        """Whether the folder is an earlier export."""
        marked = (self.folder / self.shards.marker).exists()
        return marked and not any(shard.split != UNLISTED for shard in self.index.shards())

    def recover(self) -> None:
        """Bring the state in line with the disk: cut off torn tails, and forget missing shards."""
        self.index.remove_damaged()
        places = {(self.folder_of(shard.split) / shard.name).parent for shard in self.index.shards()}
        for folder in (self.private, self.folder, *sorted(places)):
            atomic.refuse_link(folder)  # a link's target would be written to, and other shards in it deleted
        self._move_into_place()
        broken, kept = list[Shard](), list[Shard]()
        for shard in self.index.shards():
            if shard.closed or shard.samples:
                (kept if self._recover(shard) else broken).append(shard)
            else:
                self.index.forget([shard.serial])  # created, but empty
        if broken:
            shown = ", ".join(shard.name for shard in broken[:5])
            log.warning("%d shards are missing or incomplete (%s); their samples count as not computed",
                        len(broken), shown)  # fmt: skip
            self.index.forget([shard.serial for shard in broken])
        self._remove_others({self.place(shard) for shard in kept})
        self._check_against_disk()

    def _check_against_disk(self) -> None:
        """Mark samples as not finished if they are neither in a shard nor in artifacts of the npy layout."""
        for ids in chunks_of((row[0] for row in self.state.query(_ELSEWHERE)), SELECTED_TOGETHER):
            missing = []
            for sample_id, sample, place in zip(ids, self.state.samples(ids), self.index.places(ids), strict=True):
                if sample is not None:
                    missing.append((sample_id, self.output.incomplete(sample_id, sample) - held(place, sample)))
            with self.state.transaction():
                self.state.begin((sample_id, groups) for sample_id, groups in missing if groups)

    def _recover(self, shard: Shard) -> bool:
        """Whether a shard exists; one that was being appended to is truncated and reopened."""
        folder = self.folder_of(shard.split)
        path = folder / shard.name
        if shard.closed and _size(path) == shard.num_bytes and not open_path(folder, shard.name).exists():
            return True
        found = self.place(shard)
        size = _size(found)
        if size is None or size < shard.used or (shard.closed and shard.num_bytes == shard.used):
            return False
        with atomic.explained(found):
            if found == path:
                atomic.rename(path, open_path(folder, shard.name))
            with open(open_path(folder, shard.name), "r+b") as stream:
                stream.truncate(shard.used)
                atomic.sync_file(stream.fileno(), found)
        if shard.closed:
            shard.num_bytes, shard.sha256 = 0, ""
            with self.state.transaction():
                self.index.put([shard])
        return True

    def _move_into_place(self) -> None:
        """Move shards that hfprep 0.1.0 kept in the private folder until the set was complete."""
        for shard in self.index.shards():
            private = self.output.private / SHARDS / f"{shard.serial}{SUFFIXES[self.name]}"
            if private.is_file() and private != self.place(shard):
                path = self.folder_of(shard.split) / shard.name
                with atomic.explained(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    atomic.rename(private, path)
                    atomic.sync_folder(path.parent)

    def _remove_others(self, known: set[Path]) -> None:
        """Delete shard files that the state does not list, left by a killed run or broken."""
        suffix = SUFFIXES[self.name]
        for folder in [self.private] if self._is_other() else [self.private, self.folder]:
            for path in folder.rglob(f"*{suffix}*") if folder.is_dir() else ():
                if path not in known and path.name.endswith((suffix, suffix + OPEN)):
                    with atomic.explained(path):
                        path.unlink()


def _size(path: Path) -> int | None:
    """The size of a regular file; None for anything else, including links, because shards are modified and deleted."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _format(name: str, output: NpyOutput, max_shard_bytes: int, survey: Survey) -> ShardFormat:
    if name == "arrow":
        return ArrowShards(output.schema, ArrowOptions(max_shard_bytes=max_shard_bytes), survey)
    return WebDatasetShards(output.schema, WebDatasetOptions(max_shard_bytes=max_shard_bytes))
