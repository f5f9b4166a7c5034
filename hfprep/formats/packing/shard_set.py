"""The complete set of shards in its folder (OUT/arrow, OUT/webdataset): given its place at the end of a build, and
taken back before shards are replaced.

While it is taken back, the shards lie in the private folder, and nothing in the output passes for a whole set.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from hfprep.errors import StoreError
from hfprep.formats.packing.formats import ShardFormat
from hfprep.formats.samples import SPLITS, Origin
from hfprep.formats.shard_files import WrittenShard
from hfprep.io import atomic
from hfprep.store.fingerprints import digest
from hfprep.store.shard_index import Shard, ShardIndex

DESCRIBED = "packed_set"  # what the files beside the shards were written for


class ShardSet:
    """The folder of a complete set, and the way there and back."""

    def __init__(self, index: ShardIndex, shards: ShardFormat) -> None:
        self.index = index
        self.shards = shards
        self.folder = index.root / shards.name

    def check_place(self) -> None:
        """Raise StoreError where something else lies in the set's place."""
        folder = self.folder
        if any(shard.name for shard in self.index.shards()) or not (folder.exists() or folder.is_symlink()):
            return
        if not folder.is_dir() or (any(folder.iterdir()) and not self.shards.replaceable(folder)):
            raise StoreError(f"{folder} exists and is not a set that hfprep wrote; move it away, or give a new folder")

    def withdraw(self) -> None:
        """Bring all shards back into the private folder; what is left of the set goes."""
        named = [shard for shard in self.index.shards() if shard.name]
        if not named:
            return
        with atomic.explained(self.folder):
            (self.folder / self.shards.marker).unlink(missing_ok=True)
            self._move(named, lambda shard: (self.index.root / shard.name, self.index.own_path(shard.serial)))
            shutil.rmtree(self.folder, ignore_errors=True)
            # Last: as long as a shard has a name there, what is left of the folder is known to be the set's.
            self.index.rename({shard.serial: "" for shard in named})

    def publish(self, origin: Origin) -> str:
        """Give all current shards their places and write the files beside them; gives a digest of the whole.

        Writes nothing where the set is there already, made by the same models and versions.
        """
        splits = {name: self.index.current(name) for name in SPLITS}
        content = self.digest(splits, origin)
        whole = (self.folder / self.shards.marker).is_file()
        if (
            whole
            and self.index.state.get(DESCRIBED) == content
            and all(s.name for shards in splits.values() for s in shards)
        ):
            return content
        with atomic.explained(self.folder):
            former = self.folder.with_name(f".{self.folder.name}.former")
            shutil.rmtree(former, ignore_errors=True)
            if not any(shard.name for shards in splits.values() for shard in shards) and self.folder.exists():
                atomic.rename(self.folder, former)  # an export of earlier days: what it shows is in the shards now
            (self.folder / self.shards.marker).unlink(missing_ok=True)
            places = self._places(splits)
            self.index.rename(places)
            named = [shard for shard in self.index.shards() if shard.name]
            self._move(named, lambda shard: (self.index.own_path(shard.serial), self.index.root / shard.name))
            self.folder.mkdir(parents=True, exist_ok=True)
            written = {
                name: [
                    WrittenShard(
                        self.index.root / places[item.serial], item.samples, item.used, item.num_bytes, item.sha256
                    )
                    for item in shards
                ]
                for name, shards in splits.items()
            }
            self.shards.describe(self.folder, written, origin)
            shutil.rmtree(former, ignore_errors=True)
            if not any(self.index.folder.iterdir() if self.index.folder.is_dir() else ()):
                shutil.rmtree(self.index.folder, ignore_errors=True)
            atomic.sync_folder(self.index.root)
        self.index.state.put(DESCRIBED, content)
        return content

    def digest(self, splits: dict[str, list[Shard]], origin: Origin) -> str:
        """What a set shows of a build: its shards, and what of the provenance matters to who reads it."""
        stats = origin.stats or {}
        sums = {name: [shard.sha256 for shard in shards] for name, shards in splits.items()}
        return digest([self.shards.name, sums, [stats.get(name) for name in ("sha256", "versions")]]).hex()

    def _places(self, splits: dict[str, list[Shard]]) -> dict[int, str]:
        places = {}
        for name, shards in splits.items():
            for shard, final in zip(shards, self.shards.names(name, len(shards)), strict=True):
                places[shard.serial] = f"{self.shards.name}/{final}"
        return places

    def _move(self, shards: Sequence[Shard], ways: Callable[[Shard], tuple[Path, Path]]) -> None:
        folders = set()
        for shard in shards:
            source, target = ways(shard)
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                atomic.rename(source, target)
                folders |= {source.parent, target.parent}
        for folder in sorted(folders):
            atomic.sync_folder(folder)
