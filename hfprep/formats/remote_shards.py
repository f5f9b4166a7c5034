"""Shards of an output in object storage: closed shards are remote, open ones local.

Remote shards never change, and names are never reused; so every shard in a snapshot of the state stays unchanged until
a later snapshot is uploaded.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from hfprep.errors import StoreError
from hfprep.formats.feature_stores import ShardStore
from hfprep.formats.formats import KEPT_FORMAT
from hfprep.formats.samples import Origin
from hfprep.formats.shard_output import SUFFIXES
from hfprep.io.object_storage import download, file_sizes, remove, upload
from hfprep.store.layout import PRIVATE, NpyOutput
from hfprep.store.remote import Mirror
from hfprep.store.shard_index import SHARDS, UNLISTED, Shard
from hfprep.store.state import State

log = logging.getLogger(__name__)


class RemoteStore(ShardStore):
    """Stores features in shards; closed ones are in object storage."""

    continues_closed = False

    def __init__(self, output: NpyOutput, state: State, name: str, max_shard_bytes: int, mirror: Mirror) -> None:
        super().__init__(output, state, name, max_shard_bytes)
        self.mirror = mirror
        self._there: dict[str, dict[str, int]] = {}  # sizes of the files in each remote folder

    def name_of(self, shard: Shard) -> str:
        """A shard's name below the output's URL."""
        folder = f"{PRIVATE}/{SHARDS}" if shard.split == UNLISTED else self.name
        return f"{folder}/{shard.name}"

    def closed(self, shards: Sequence[Shard]) -> None:
        """Upload closed shards and delete the local files."""
        for shard in shards:
            path = self.folder_of(shard.split) / shard.name
            self.mirror.send(path, self.name_of(shard), path.unlink)

    def published(self) -> None:
        self.mirror.snapshot_if_due(self.state)

    def path(self, shard: Shard) -> Path:
        """A shard's local file, downloaded if necessary."""
        path = self.place(shard)
        if path.exists():
            return path
        self.mirror.drain()
        fetched = self._fetched(shard.serial)
        if not fetched.exists():
            fetched.parent.mkdir(parents=True, exist_ok=True)
            partial = fetched.with_suffix(".part")
            try:
                download(f"{self.mirror.url}/{self.name_of(shard)}", partial)
            except FileNotFoundError:
                url = f"{self.mirror.url}/{self.name_of(shard)}"
                raise StoreError(f"{url} is gone; run the same command again") from None
            partial.rename(fetched)
        return fetched

    def _fetched(self, serial: int) -> Path:
        """The local copy of a downloaded shard, until it is released or the run ends."""
        return self.output.work / "fetched" / f"{serial}{SUFFIXES[self.name]}"

    def released(self, serial: int) -> None:
        self._fetched(serial).unlink(missing_ok=True)

    def removed(self, shard: Shard) -> None:
        """Called when the state no longer lists a shard; the remote file is deleted after the next snapshot."""
        super().removed(shard)
        self.released(shard.serial)

    def is_there(self, shard: Shard) -> bool:
        """Whether a closed shard is in object storage."""
        folder, _, name = self.name_of(shard).rpartition("/")
        if folder not in self._there:
            self._there[folder] = file_sizes(f"{self.mirror.url}/{folder}")
        return shard.closed and self._there[folder].get(name) == shard.num_bytes

    def recover(self) -> None:
        """As for local shards; also uploads closed shards that a killed run did not upload."""
        super().recover()
        here = [shard for shard in self.index.shards() if (self.folder_of(shard.split) / shard.name).exists()]
        self.closed([shard for shard in here if shard.closed])

    def _recover(self, shard: Shard) -> bool:
        if self.place(shard).exists():
            return super()._recover(shard)
        return self.is_there(shard)

    def publish(self, origin: Origin) -> str:
        """Upload the files that complete the set once all shards are uploaded, then delete unused shards."""
        content = super().publish(origin)
        self.mirror.snapshot(self.state)
        there = file_sizes(f"{self.mirror.url}/{self.name}")
        if self.shards.marker not in there or self.state.get("sent_set") != content:
            base = f"{self.mirror.url}/{self.name}"
            remove(f"{base}/{self.shards.marker}")
            files = [path for path in self.folder.rglob("*") if path.is_file()]
            for path in sorted(files, key=lambda path: (path.name == self.shards.marker, path)):
                upload(path, f"{base}/{path.relative_to(self.folder).as_posix()}")
            self.state.put("sent_set", content)
            self._remove_dead()
        return content

    def _remove_dead(self) -> None:
        """Delete remote shards that the state does not list."""
        known = {self.name_of(shard) for shard in self.index.shards()}
        folders = {name.rpartition("/")[0] for name in known} | {f"{PRIVATE}/{SHARDS}"}
        for folder in sorted(folders):
            for name in file_sizes(f"{self.mirror.url}/{folder}"):
                if f"{folder}/{name}" not in known and name.endswith(SUFFIXES[self.name]):
                    remove(f"{self.mirror.url}/{folder}/{name}")

    def end(self) -> None:
        """At the end of a run, complete or not, upload all finished samples, then their lists."""
        self.appender.finish(())
        self.mirror.snapshot(self.state)
        self.mirror.send_lists()


def open_remote(
    output: NpyOutput, state: State, formats: Sequence[str], max_shard_bytes: int, mirror: Mirror
) -> RemoteStore:
    """Open the store of an output in object storage, in the format of an earlier build if there was one.

    Raises StoreError if it has npy files from hfprep 0.1.0.
    """
    known = state.get(KEPT_FORMAT)
    if known is None and not state.is_empty():
        raise StoreError(
            f"{mirror.url} contains npy files from hfprep 0.1.0; copy it to a disk and build in the copy, or "
            "give a new --output-dir"
        )
    if known is not None and known not in formats:
        log.warning("%s keeps its features as %s, as in earlier builds", mirror.url, known)
    store = RemoteStore(output, state, known or formats[0], max_shard_bytes, mirror)
    store.take_place(known)
    return store
