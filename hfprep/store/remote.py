"""An output in object storage: computed in a local folder, uploaded batch by batch.

The local folder is an output as any other, but artifacts leave it once they are uploaded (codes stay, for statistics).
Now and then, and at the end, a snapshot goes after them: the state, then the manifests that list it. So the store never
lists what it does not hold, and what downloads as a folder is an output that a build can go on in. A rerun goes on from
the local folder where nobody else has written since; otherwise from the snapshot.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import socket
import time
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from hfprep.errors import StoreError
from hfprep.io import atomic
from hfprep.io.lease import Lease
from hfprep.io.object_storage import REQUESTS_AT_A_TIME, download, file_names, read, remove, upload, url_of, write
from hfprep.schema import Rejection, Schema, artifact_path
from hfprep.store.layout import PRIVATE, VAL, NpyOutput, OutputFolder, PlannedRow, Publisher, Staged
from hfprep.store.state import State, copy_state
from hfprep.store.timeline import TIMELINE

log = logging.getLogger(__name__)

STATE, COPY, SNAPSHOT, LEASE = "state.sqlite", "snapshot.sqlite", "snapshot.json", "lease.json"
RECORD, UNSENT = "remote.json", "unsent.txt"
# In the private folder: what concerns this machine alone, and what a snapshot puts there by itself.
JOURNALS = {f"{name}-journal" for name in (STATE, COPY)}
NOT_UPLOADED = {STATE, COPY, SNAPSHOT, LEASE, RECORD, UNSENT, "lock", "build.log", "sha256.json"} | JOURNALS
KEPT_COLUMN = "codes"
SNAPSHOT_SECONDS = 60.0
SNAPSHOT_SHARE = 20  # the time between two snapshots is at least so many times what one takes
FILES_IN_FLIGHT = 1024


class RemoteOutput(NpyOutput):
    """The local folder of an output in object storage; finished artifacts may be there alone."""

    reading_threads = REQUESTS_AT_A_TIME

    def __init__(self, root: Path, schema: Schema, url: str) -> None:
        super().__init__(root, schema)
        self.url: str = url.rstrip("/")

    def incomplete(self, sample_id: str, state: Any, sizes: Sequence[int | None] | None = None) -> frozenset[str]:
        """Nothing: the state claims what the store holds, and what was not yet sent is sent before anybody asks."""
        del sample_id, state, sizes
        return frozenset()

    def content(self, path: str) -> bytes:
        """The content of an artifact, from the store where it is not here."""
        try:
            return super().content(path)
        except FileNotFoundError:
            return read(self.url + path.removeprefix(str(self.root)))


def open_folder(path: Path, folder: Path | None) -> OutputFolder:
    """The output directory `path`, or, where that is a URL, its local folder: `folder`, or one for each URL."""
    url = url_of(path)
    if url is None:
        return OutputFolder(path)
    name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    found = OutputFolder(folder or Path.home() / ".cache" / "hfprep" / name)
    found.url = url
    return found


def open_output(folder: OutputFolder, schema: Schema) -> NpyOutput:
    """The output in a folder, for samples of that schema."""
    if folder.url is None:
        return NpyOutput(folder.root, schema)
    return RemoteOutput(folder.root, schema, folder.url)


def fetch_state(url: str, target: Path) -> None:
    """Copy the state of an output's last snapshot here, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        download(f"{url.rstrip('/')}/{PRIVATE}/{STATE}", target)


class Mirror:
    """Keeps an output in object storage up to date with its local folder, which must be locked; a context manager.

    Raises StoreError wherever the store cannot be reached, or another run has taken the output over.
    """

    def __init__(self, output: RemoteOutput) -> None:
        self.output = output
        self.private = f"{output.url}/{PRIVATE}"
        self._sending: deque[Future[None]] = deque()
        self._known: dict[str, tuple[int, int]] = {}  # files as they were uploaded: bytes and mtime, by relative path
        self._val_ratio: float | None = None  # by which the lists in the store are split
        self._next_snapshot = 0.0
        self._stack = ExitStack()

    def __enter__(self) -> "Mirror":
        with self._stack:
            record = self._read_record()
            # The folder's id outlives a killed run; the host is in it because a folder may be copied.
            holder = f"{record['folder']}@{socket.gethostname()}"
            self._lease = self._stack.enter_context(Lease(f"{self.private}/{LEASE}", holder))
            self._write_record(record)
            self._pool = ThreadPoolExecutor(REQUESTS_AT_A_TIME, thread_name_prefix="hfprep-upload")
            self._stack.callback(self._pool.shutdown, wait=True, cancel_futures=True)
            self._bring_up_to_date(record)
            self._stack = self._stack.pop_all()
        self._unsent = atomic.AppendedFile(self.output.private / UNSENT)
        self._stack.callback(self._unsent.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def forget_changed(self, state: State, rows: Iterable[Sequence[PlannedRow]]) -> None:
        """Take back what the state says of finished groups that are about to be computed again.

        Their artifacts will be replaced in the store one by one, so the next snapshot must not speak of them.
        """
        for chunk in rows:
            known = state.samples(row.utterance.id for row in chunk)
            pairs = zip(chunk, known, strict=True)
            stale = [(row.utterance.id, row.need & sample.finished) for row, sample in pairs if sample is not None]
            with state.transaction():
                state.begin((sample_id, need) for sample_id, need in stale if need)

    def announce(self, staged: Sequence[Staged]) -> None:
        """Note, durably, which samples are about to become final here and have to be sent."""
        self._unsent.append(item.row.utterance.id.encode() + b"\n" for item in staged)

    def send(self, staged: Sequence[Staged]) -> None:
        """Upload the artifacts of samples that are final here; waits where too many are on their way."""
        for item in staged:
            self._send(item.row.utterance.id, item.files)

    def snapshot_if_due(self, state: State) -> None:
        """Make a snapshot if the last one is some time ago."""
        if time.monotonic() >= self._next_snapshot:
            self.snapshot(state)

    def snapshot(self, state: State) -> None:
        """Bring everything that is final here, and what lists it, into the store."""
        started = time.monotonic()
        self._drain()
        self._lease.check()
        record = self._read_record()
        last, new = record["snapshots"][-1:], uuid.uuid4().hex
        self._write_record(record | {"snapshots": [*last, new]})  # whichever of them is in the store, it is ours
        copy = self.output.private / COPY
        copy.unlink(missing_ok=True)
        copy_state(state.path, copy)
        upload(copy, f"{self.private}/{STATE}")
        copy.unlink()
        val_ratio = state.get("val_ratio")
        if self._val_ratio not in (None, val_ratio):  # else samples that change sides would be on both for a moment
            remove(f"{self.output.url}/{VAL}")
            self._known.pop(VAL, None)
        self._upload_lists()
        write(f"{self.private}/{SNAPSHOT}", json.dumps({"id": new, "val_ratio": val_ratio}).encode() + b"\n")
        self._val_ratio = val_ratio
        self._write_record(record | {"snapshots": [new]})
        os.truncate(self.output.private / UNSENT, 0)
        took = time.monotonic() - started
        self._next_snapshot = time.monotonic() + max(SNAPSHOT_SECONDS, SNAPSHOT_SHARE * took)

    def _bring_up_to_date(self, record: dict[str, Any]) -> None:
        """See that the local folder is what the store has, or what this folder made of it."""
        try:
            snapshot = json.loads(read(f"{self.private}/{SNAPSHOT}"))
            there, self._val_ratio = snapshot["id"], snapshot["val_ratio"]
        except FileNotFoundError:
            there = None
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.private}/{SNAPSHOT} is damaged ({error}); use a new --output-dir") from error
        known = record["snapshots"]
        if there in known or (there is None and not known):
            self._resend()
            return
        if known:
            log.warning("%s was changed by another run, or removed; %s is made anew from it",
                        self.output.url, self.output.root)  # fmt: skip
        self._clear()
        self._write_record(record | {"snapshots": []})
        if there is not None:
            log.info("continuing from the snapshot in %s", self.output.url)
            for name in (TIMELINE, STATE):
                with contextlib.suppress(FileNotFoundError):
                    download(f"{self.private}/{name}", self.output.private / name)
        self._write_record(record | {"snapshots": [] if there is None else [there]})

    def _clear(self) -> None:
        """Empty the local folder, but for what says whose it is."""
        with atomic.explained(self.output.root):
            for path in [*self.output.root.iterdir(), *self.output.private.iterdir()]:
                if path == self.output.private or path.name in (RECORD, "lock"):
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def _resend(self) -> None:
        """Upload what a killed run had made final here and may not have sent; half of its last line may be missing."""
        path = self.output.private / UNSENT
        if not path.is_file() or not (self.output.private / STATE).is_file():
            return
        state = State(self.output.private / STATE)
        try:
            with open(path, encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    sample_id = line.rstrip("\n")
                    sample = state.sample(sample_id)
                    finished = () if sample is None else sample.finished
                    self._send(sample_id, [column.name for column in self.output.schema.columns_of(finished)])
            self._drain()
        finally:
            state.close()

    def _send(self, sample_id: str, columns: Iterable[str]) -> None:
        for name in columns:
            while len(self._sending) >= FILES_IN_FLIGHT:
                self._sending.popleft().result()
            self._sending.append(self._pool.submit(self._upload_artifact, name, sample_id))

    def _upload_artifact(self, column: str, sample_id: str) -> None:
        self._lease.check()
        path = self.output.artifact(column, sample_id)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return  # a killed run has sent it
        write(f"{self.output.url}/{artifact_path(column, sample_id)}", content)
        if column != KEPT_COLUMN:
            path.unlink()

    def _drain(self) -> None:
        while self._sending:
            self._sending.popleft().result()

    def _upload_lists(self) -> None:
        """Upload the files beside the artifacts that have changed; remove private ones that are no more."""
        root, private = self.output.root, self.output.private
        paths = [path for path in root.iterdir() if path.is_file() and not path.name.endswith(atomic.TEMPORARY)]
        paths += [path for path in private.iterdir() if path.is_file() and path.name not in NOT_UPLOADED]
        for path in sorted(paths, key=lambda path: (path.parent == private, path)):  # a part's mark comes last
            name, status = path.relative_to(root).as_posix(), path.stat()
            version = (status.st_size, status.st_mtime_ns)
            if self._known.get(name) != version:
                upload(path, f"{self.output.url}/{name}")
                self._known[name] = version
        here = {path.name for path in paths if path.parent == private} | NOT_UPLOADED
        for name in file_names(self.private):
            if name not in here:
                remove(f"{self.private}/{name}")

    def _read_record(self) -> dict[str, Any]:
        """Whose folder this is: an id of its own, and the snapshots of which one is what it was last in step with."""
        path = self.output.private / RECORD
        try:
            record: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            if {item.name for item in self.output.root.iterdir()} > {PRIVATE} or self.output.occupied():
                raise StoreError(f"{self.output.root} holds other files; give another --work-dir") from None
            return {"url": self.output.url, "folder": uuid.uuid4().hex, "snapshots": []}
        except ValueError as error:
            raise StoreError(f"{path} is damaged ({error}); remove its folder, the store has the rest") from error
        if record["url"] != self.output.url:
            raise StoreError(f"{self.output.root} belongs to {record['url']}; give another --work-dir")
        return record

    def _write_record(self, record: dict[str, Any]) -> None:
        atomic.write_bytes(self.output.private / RECORD, json.dumps(record).encode() + b"\n")


class UploadingPublisher(Publisher):
    """Makes batches final here, and sends them."""

    def __init__(self, output: NpyOutput, state: State, val_ratio: float, mirror: Mirror) -> None:
        super().__init__(output, state, val_ratio)
        self.mirror = mirror

    def publish(self, staged: Sequence[Staged], rejections: Sequence[Rejection]) -> list[Staged]:
        """Put a batch in place, list it and send it; raises StoreError, and then a rerun sends it."""
        self.mirror.announce(staged)
        placed = super().publish(staged, rejections)
        self.mirror.send(placed)
        self.mirror.snapshot_if_due(self.state)
        return placed
