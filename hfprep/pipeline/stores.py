"""What to make of an object store that cannot be used: the end of the run, or the rejection of a row.

Takes questions about files, whatever they ask; knows nothing of what is asked.
"""

from collections.abc import Callable
from typing import TypeVar

from hfprep.errors import HfprepError, Reason, RejectedSample
from hfprep.io.object_storage import is_url, store_of

MOST_STORES = 1000  # that are remembered
MOST_FAILURES = 3  # in a row of a store that has answered before, each after the store's own library has tried again

Answer = TypeVar("Answer")


class Stores:
    """Asks object stores for files.

    A store that the user named (by the manifest, the output or an option) ends the run where it cannot be used, and so
    does one that holds the audio of a finished sample. Any other is one that a row chose: that row is rejected. A store
    that has not answered yet is not asked again, nor is one after `MOST_FAILURES` in a row: else each row that names it
    would be waited for. Safe to use from several threads.
    """

    def __init__(self, named: frozenset[str] = frozenset()) -> None:
        self._named = named
        self._failures: dict[str, int] = {}  # in a row, of each store that was asked
        self._refused: dict[str, str] = {}

    def ask(self, path: str, question: Callable[[], Answer], *, finished: bool = False) -> Answer:
        """What `question`, which is about the file at a path or URL, answers.

        Raises what it raises; but a RejectedSample for a store that only a row names, unless its sample is `finished`.
        """
        store = store_of(path) if is_url(path) else None
        if store is None or store in self._named:
            return question()
        if store in self._refused and not finished:
            message = f"{store} could not be used before: {self._refused[store]}"
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
        if self._failures.get(store) or len(self._failures) < MOST_STORES:
            self._failures[store] = 0

    def _failed(self, store: str, error: HfprepError) -> None:
        if isinstance(error.__cause__, PermissionError):  # that is an answer, about one file
            self._answered(store)
            return
        failures = self._failures.get(store, MOST_FAILURES - 1) + 1
        if len(self._refused) >= MOST_STORES:
            return
        if failures >= MOST_FAILURES:
            self._refused[store] = str(error)
        else:
            self._failures[store] = failures
