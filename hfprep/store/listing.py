"""Rewrites the manifests and the progress file: exactly the complete samples, in source order, replaced atomically.

Takes complete samples one by one and writes them under temporary names; the files are put in place when the listing is
closed without an error. Knows nothing about why a sample is complete.
"""

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import BinaryIO

from hfprep.io import atomic
from hfprep.schema import Schema, Utterance
from hfprep.store.layout import PROGRESS, TRAIN, VAL, NpyOutput, is_validation, json_line, record_of
from hfprep.store.state import SampleState, State

STAYING = atomic.TEMPORARY[1]


@dataclass(slots=True)
class Listed:
    """What the manifests list; `overlong` counts samples over each limit of the schema, by length name."""

    train: int = 0
    val: int = 0
    seconds: float = 0.0
    overlong: Counter[str] = field(default_factory=Counter)

    def overlong_by_group(self, schema: Schema) -> dict[str, int]:
        """`overlong` as it is written to stats.json: counts by the group whose columns have that length."""
        groups = {name: column.group for column in schema.columns for name in column.lengths}
        return {groups[name]: self.overlong[name] for name in schema.limits}


@dataclass(frozen=True, kw_only=True)
class ListingOptions:
    """`val_ratio` is the share of ids in the validation split.

    Without `manifests` only the progress file is written, for features that are not stored in the npy layout.
    """

    val_ratio: float
    manifests: bool = True


class Listing:
    """Replaces both manifests and the progress file with the samples added in a `with` block, unless there is an error.

    If the ratio has changed, samples that change splits are removed from one manifest before they are added to the
    other, so that no id is ever in both, even if the run is interrupted. Samples over the model's limits are listed and
    counted.
    """

    def __init__(self, output: NpyOutput, state: State, options: ListingOptions) -> None:
        self.output = output
        self.state = state
        self.options = options
        self.listed = Listed()
        self._stack = contextlib.ExitStack()
        # Splits are nested: an id that is not in validation at the largest ratio used so far is in no validation
        # file. Files with an unknown ratio may contain any id.
        known = state.get("largest_val_ratio")
        earlier = known if known is not None else 1.0 if (output.root / VAL).exists() else options.val_ratio
        self._largest_ratio = max(earlier, options.val_ratio)
        self._moving = earlier != options.val_ratio

    def __enter__(self) -> "Listing":
        # These exit in reverse order.
        self._stack.push(self._keep(val_ratio=self.options.val_ratio, largest_val_ratio=self.options.val_ratio))
        self._progress = self._open(PROGRESS)
        kept = self.options.manifests
        self._train = self._open(TRAIN) if kept else None
        self._val = self._open(VAL) if kept else None
        self._staying = self._open(TRAIN, STAYING) if kept and self._moving else None
        self._stack.push(self._keep(largest_val_ratio=self._largest_ratio))
        return self

    def _open(self, name: str, temporary: str = atomic.TEMPORARY[0]) -> BinaryIO:
        return self._stack.enter_context(atomic.replacing(self.output.root / name, temporary))

    def _keep(self, **values: float) -> Callable[..., None]:
        def keep(kind: type[BaseException] | None, *_: object) -> None:
            if kind is None:
                for key, value in values.items():
                    self.state.put(key, value)

        return keep

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def add(self, utterance: Utterance, sample: SampleState) -> None:
        """List a complete sample; in the manifest's order."""
        options, listed = self.options, self.listed
        validation = is_validation(utterance.id, options.val_ratio)
        # The `replacing` contexts of the files explain an OSError here.
        self._progress.write(utterance.id.encode() + b"\n")
        manifest = self._val if validation else self._train
        if manifest is not None:
            line = json_line(record_of(self.output.schema, utterance, sample))
            manifest.write(line)
            if self._staying is not None and not is_validation(utterance.id, self._largest_ratio):
                self._staying.write(line)
        listed.train += not validation
        listed.val += validation
        listed.seconds += sample.seconds or 0.0
        lengths = sample.lengths
        for name, limit in self.output.schema.limits.items():
            listed.overlong[name] += lengths[name] > limit
