"""One run at a time in an output in object storage: a small file there that its holder keeps renewing.

Whoever finds one watches it. If it is renewed meanwhile, its holder is alive; if not, for longer than any holder goes
on without renewing it, the holder is gone. So no clock of one machine is ever compared with another's.
"""

import json
import logging
import os
import socket
import threading
import time
from types import TracebackType
from typing import Any

from hfprep.errors import StoreError
from hfprep.io.object_storage import read, remove, write

log = logging.getLogger(__name__)

RENEWAL_SECONDS = 15.0
LEASE_SECONDS = 75.0  # for which a holder that cannot renew it goes on
OUTLIVED_SECONDS = 90.0  # for which nobody renewed it when another takes it over
WATCH_SECONDS = 2.0
SETTLE_SECONDS = 2.0  # in which the later of two who take over at the same time has the last word


class Lease:
    """Holds the file at `url` while in a `with` block; StoreError names the holder where there is a live one.

    `holder` is an id that outlives processes: its own lease, left by a killed one, is taken over at once.
    """

    def __init__(self, url: str, holder: str) -> None:
        self.url = url
        self.holder = holder
        self._renewals = 0
        self._renewed = 0.0
        self._taken: str | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="hfprep-lease", daemon=True)

    def __enter__(self) -> "Lease":
        while not self._create():
            found = self._read()
            if found is None:
                continue
            if found.get("holder") != self.holder:
                if not self._outlived(found):
                    continue
                self._renew()
                time.sleep(SETTLE_SECONDS)
                self._confirm()
            self._renew()
            break
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()
        try:
            if self._taken is None and self._is_mine(self._read()):
                remove(self.url)
        except StoreError as failure:
            log.warning("%s stays for now: %s", self.url, failure)

    def check(self) -> None:
        """Raise StoreError unless nobody else can have taken the output over."""
        if self._taken is not None:
            raise StoreError(f"another run took over {self.url}: {self._taken}; this run stops")
        if time.monotonic() - self._renewed > LEASE_SECONDS:
            raise StoreError(
                f"{self.url} could not be renewed for {LEASE_SECONDS:.0f} s; check the network, "
                "then run the same command again: finished work is kept"
            )

    def _create(self) -> bool:
        started = time.monotonic()
        try:
            write(self.url, self._content(), only_new=True)
        except FileExistsError:
            return False
        self._renewed = started
        return True

    def _outlived(self, found: dict[str, Any]) -> bool:
        """Watch another's lease: True once it has run out, False if it is gone; raises StoreError if it is renewed."""
        who = f"{found.get('host')}, process {found.get('pid')}"
        log.warning("%s was taken by %s; waiting up to %.0f s to see whether that run is alive",
                    self.url, who, OUTLIVED_SECONDS)  # fmt: skip
        end = time.monotonic() + OUTLIVED_SECONDS
        while time.monotonic() < end:
            time.sleep(WATCH_SECONDS)
            now = self._read()
            if now is None:
                return False
            if now != found:
                output = self.url.rpartition("/.hfprep/")[0]
                raise StoreError(f"another run is writing to {output} ({who}); wait for it or stop it")
        return True

    def _keep(self) -> None:
        while not self._closing.wait(RENEWAL_SECONDS):
            try:
                self._confirm()
                self._renew()
            except StoreError as error:
                log.warning("%s", error)
                if self._taken is not None:
                    return

    def _confirm(self) -> None:
        found = self._read()
        if not self._is_mine(found):
            self._taken = "it was removed" if found is None else f"{found.get('host')}, process {found.get('pid')}"
            self.check()

    def _renew(self) -> None:
        started = time.monotonic()
        self._renewals += 1
        write(self.url, self._content())
        self._renewed = started

    def _is_mine(self, found: dict[str, Any] | None) -> bool:
        return found is not None and (found.get("holder"), found.get("pid")) == (self.holder, os.getpid())

    def _content(self) -> bytes:
        holder = {"holder": self.holder, "host": socket.gethostname(), "pid": os.getpid(), "renewals": self._renewals}
        return json.dumps(holder).encode() + b"\n"

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(read(self.url))
        except FileNotFoundError:
            return None
        except ValueError:
            found = None
        return found if isinstance(found, dict) else {}
