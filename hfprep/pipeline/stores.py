"""Failures of an object store: whether they end the run or reject a row.

Takes functions that access a file; knows nothing about what they do.
"""

from collections.abc import Callable
from typing import TypeVar

from hfprep.errors import HfprepError, Reason, RejectedSample
from hfprep.io.object_storage import is_url, store_of

MAX_STORES = 1000  # that are tracked
MAX_FAILURES = 3  # in a row of a store that has worked before, each after retries by the store's library

Answer = TypeVar("Answer")


class Stores:
    """Accesses files in object stores.

    A failure of a store that the user named (as manifest, output or option), or that has the audio of a finished
    sample, ends the run. Any other store was chosen by a row, and its failure rejects that row. A store that has never
    worked is not tried again after a failure, and any other store not after `MAX_FAILURES` in a row: otherwise every
    row that names it would wait for a timeout. Thread-safe.
    """

    def __init__(self, named: frozenset[str] = frozenset()) -> None:
        self._named = named
        self._failures: dict[str, int] = {}  # in a row, by store
        self._refused: dict[str, str] = {}

    def ask(self, path: str, question: Callable[[], Answer], *, finished: bool = False) -> Answer:
        """Return `question()`, which accesses the file at a path or URL.

        Raises its errors, but as a RejectedSample if only a row names the store and its sample is not `finished`.
        """
        store = store_of(path) if is_url(path) else None
        if store is None or store in self._named:
            return question()
        if store in self._refused and not finished:
            message = f"{store} failed before and is not tried again: {self._refused[store]}"
            raise RejectedSample(Reason.AUDIO_UNREADABLE, message)
        try:
            answer = question()
        except RejectedSample:
            self._answered(store)
            raise
        except HfprepError as error:
            if finished:
                raise
            self._failed(store, error)
            raise RejectedSample(Reason.AUDIO_UNREADABLE, str(error)) from error
        self._answered(store)
        return answer

    def _answered(self, store: str) -> None:
        if self._failures.get(store) or len(self._failures) < MAX_STORES:
            self._failures[store] = 0

    def _failed(self, store: str, error: HfprepError) -> None:
        if isinstance(error.__cause__, PermissionError):  # the store works, only this file is not accessible
            self._answered(store)
            return
        failures = self._failures.get(store, MAX_FAILURES - 1) + 1
        if len(self._refused) >= MAX_STORES:
            return
        if failures >= MAX_FAILURES:
            self._refused[store] = str(error)
        else:
            self._failures[store] = failures
