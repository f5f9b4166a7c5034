"""A lease that allows one run at a time in an output in object storage: a small file that its holder keeps renewing.

A run that finds a lease watches it. If it is renewed, its holder is alive. If it is not renewed for longer than any
holder continues without renewing it, the holder is gone. Clocks of different machines are never compared.
"""

import json
import logging
import os
import socket
import threading
import time
from typing import Any

from hfprep.errors import StoreError
from hfprep.io.object_storage import read, remove, write

log = logging.getLogger(__name__)

RENEWAL_SECONDS = 15.0
LEASE_SECONDS = 75.0  # a holder that cannot renew its lease stops after this time
EXPIRY_SECONDS = 90.0  # a lease that is not renewed for this time is taken over
WATCH_SECONDS = 2.0
SETTLE_SECONDS = 2.0  # if two runs take over at the same time, the one that wrote last has the lease


class Lease:
    """Holds the lease at `url` during a `with` block; raises StoreError naming the holder if another run has it.

    `holder` is an id that stays the same between processes: a lease that a killed process left is taken over at once.
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
                if not self._expired(found):
                    continue
                self._renew()
                time.sleep(SETTLE_SECONDS)
                self._confirm()
            self._renew()
            break
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        try:
            if self._taken is None and self._is_mine(self._read()):
                remove(self.url)
        except StoreError as failure:
            log.warning("%s could not be removed: %s", self.url, failure)

    def check(self) -> None:
        """Raise StoreError if another run has taken over the output, or may have."""
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

    def _expired(self, found: dict[str, Any]) -> bool:
        """Watch another run's lease: True once it has expired, False if removed; raises StoreError if renewed."""
        who = f"{found.get('host')}, process {found.get('pid')}"
        log.warning("%s is held by %s; waiting up to %.0f s to see whether that run is alive",
                    self.url, who, EXPIRY_SECONDS)  # fmt: skip
        end = time.monotonic() + EXPIRY_SECONDS
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
