"""An output in object storage: built in a local folder, its shards uploaded when they are closed.

The local folder is an ordinary output, but closed shards are removed from it once they are uploaded. Periodically, and
at the end, a snapshot of the state is uploaded after them. A snapshot may contain samples of open shards, which are not
in the store; a run that resumes from it notices that these shards are missing. A rerun continues from the local folder
if no other run has written to the output since, otherwise from the snapshot.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hfprep.errors import StoreError
from hfprep.io import atomic
from hfprep.io.json_file import read_json
from hfprep.io.lease import Lease
from hfprep.io.object_storage import check_local, download, file_sizes, read, remove, upload, url_of, write
from hfprep.store.layout import PRIVATE, OutputFolder
from hfprep.store.state import State, copy_state
from hfprep.store.timeline import TIMELINE

log = logging.getLogger(__name__)

STATE, COPY, SNAPSHOT, LEASE, RECORD = (
    "state.sqlite", "snapshot.sqlite", "snapshot.json", "lease.json", "remote.json",
)  # fmt: skip
# Files in the private folder that only concern this machine, or that a snapshot uploads separately.
JOURNALS = {f"{name}-journal" for name in (STATE, COPY)}
NOT_UPLOADED = {STATE, COPY, SNAPSHOT, LEASE, RECORD, "lock", "build.log", "sha256.json"} | JOURNALS
SNAPSHOT_SECONDS = 60.0
SNAPSHOT_SHARE = 20  # minimum time between two snapshots, as a multiple of the time that one takes
FILES_IN_FLIGHT = 4  # each shard is uploaded in parts; more shards would only fill the local disk


def open_folder(path: Path, folder: Path | None) -> OutputFolder:
    """The output directory `path`; if that is a URL, its local folder: `folder`, or else a default one per URL."""
    url = url_of(path)
    if url is None:
        check_local(path, written=True)
        return OutputFolder(path)
    name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    found = OutputFolder(folder or Path.home() / ".cache" / "hfprep" / name)
    found.url = url.rstrip("/")
    return found


def fetch_state(url: str, target: Path) -> None:
    """Download the state of an output's last snapshot to `target`, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        download(f"{url.rstrip('/')}/{PRIVATE}/{STATE}", target)


class Mirror:
    """Uploads a local folder, which must be locked, to its output in object storage; a context manager.

    Raises StoreError if the store cannot be reached or another run has taken over the output.
    """

    def __init__(self, folder: OutputFolder) -> None:
        assert folder.url is not None
        self.folder = folder
        self.url = folder.url
        self.private = f"{self.url}/{PRIVATE}"
        self._sending: deque[Future[None]] = deque()
        self._next_snapshot = time.monotonic() + SNAPSHOT_SECONDS
        self._stack = ExitStack()

    def __enter__(self) -> "Mirror":
        with self._stack:
            record = self._read_record()
            # The folder's id survives a killed run; the host is included because a folder may be copied.
            holder = f"{record['folder']}@{socket.gethostname()}"
            self._lease = self._stack.enter_context(Lease(f"{self.private}/{LEASE}", holder))
            self._write_record(record)
            self._pool = ThreadPoolExecutor(FILES_IN_FLIGHT, thread_name_prefix="hfprep-upload")
            self._stack.callback(self._pool.shutdown, wait=True, cancel_futures=True)
            self._bring_up_to_date(record)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def send(self, path: Path, name: str, then: Callable[[], None]) -> None:
        """Upload a file in the background to `name` below the output's URL; waits while too many are in flight."""

        def send() -> None:
            self._lease.check()
            upload(path, f"{self.url}/{name}")
            then()

        while len(self._sending) >= FILES_IN_FLIGHT:
            self._sending.popleft().result()
        self._sending.append(self._pool.submit(send))

    def drain(self) -> None:
        while self._sending:
            self._sending.popleft().result()

    def snapshot_if_due(self, state: State) -> None:
        if time.monotonic() >= self._next_snapshot:
            self.snapshot(state)

    def snapshot(self, state: State) -> None:
        """Wait for uploads in flight, then upload the state."""
        started = time.monotonic()
        self.drain()
        self._lease.check()
        record = self._read_record()
        last, new = record["snapshots"][-1:], uuid.uuid4().hex
        self._write_record(record | {"snapshots": [*last, new]})  # either may be in the store, and both are ours
        copy = self.folder.private / COPY
        copy.unlink(missing_ok=True)
        copy_state(state.path, copy)
        upload(copy, f"{self.private}/{STATE}")
        copy.unlink()
        write(f"{self.private}/{SNAPSHOT}", json.dumps({"id": new}).encode() + b"\n")
        self._write_record(record | {"snapshots": [new]})
        took = time.monotonic() - started
        self._next_snapshot = time.monotonic() + max(SNAPSHOT_SECONDS, SNAPSHOT_SHARE * took)

    def send_lists(self) -> None:
        """Upload the manifests and other files beside the shards; remove private files that no longer exist here."""
        root, private = self.folder.root, self.folder.private
        paths = [path for path in root.iterdir() if path.is_file() and not path.name.endswith(atomic.TEMPORARY)]
        paths += [path for path in private.iterdir() if path.is_file() and path.name not in NOT_UPLOADED]
        self._lease.check()
        for path in sorted(paths):
            upload(path, f"{self.url}/{path.relative_to(root).as_posix()}")
        here = {path.name for path in paths if path.parent == private} | NOT_UPLOADED
        for name in file_sizes(self.private):
            if name not in here:
                remove(f"{self.private}/{name}")

    def _bring_up_to_date(self, record: dict[str, Any]) -> None:
        """Replace the local folder with the store's snapshot, unless that snapshot came from this folder."""
        try:
            there = json.loads(read(f"{self.private}/{SNAPSHOT}"))["id"]
        except FileNotFoundError:
            there = None
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.private}/{SNAPSHOT} is damaged ({error}); use a new --output-dir") from error
        known = record["snapshots"]
        if there in known or (there is None and not known):
            return
        if known:
            log.warning("%s was changed by another run, or removed; %s is rebuilt from it",
                        self.url, self.folder.root)  # fmt: skip
        self._clear()
        self._write_record(record | {"snapshots": []})
        if there is not None:
            log.info("continuing from the snapshot in %s", self.url)
            for name in (TIMELINE, STATE):
                with contextlib.suppress(FileNotFoundError):
                    download(f"{self.private}/{name}", self.folder.private / name)
        self._write_record(record | {"snapshots": [] if there is None else [there]})

    def _clear(self) -> None:
        """Empty the local folder, except for the files that identify it."""
        with atomic.explained(self.folder.root):
            for path in [*self.folder.root.iterdir(), *self.folder.private.iterdir()]:
                if path == self.folder.private or path.name in (RECORD, "lock", "build.log", "work"):
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def _read_record(self) -> dict[str, Any]:
        """The folder's identity: its output's URL, its id, and the snapshots that the store may have from it."""
        path = self.folder.private / RECORD
        try:
            record = read_json(path, _parse_record, "remove its folder, the rest is in the store")
        except FileNotFoundError:
            if {item.name for item in self.folder.root.iterdir()} > {PRIVATE}:
                raise StoreError(f"{self.folder.root} contains other files; use another --work-dir") from None
            return {"url": self.url, "folder": uuid.uuid4().hex, "snapshots": []}
        if record["url"] != self.url:
            raise StoreError(f"{self.folder.root} belongs to {record['url']}; use another --work-dir")
        return record

    def _write_record(self, record: dict[str, Any]) -> None:
        atomic.write_bytes(self.folder.private / RECORD, json.dumps(record).encode() + b"\n")


def _parse_record(record: Any) -> dict[str, Any]:
    """A folder's identity, as it was stored. Raises KeyError or TypeError for anything else."""
    found = {name: record[name] for name in ("url", "folder", "snapshots")}
    if not all(isinstance(text, str) for text in (found["url"], found["folder"], *found["snapshots"])):
        raise TypeError("an entry is not text")
    return found
