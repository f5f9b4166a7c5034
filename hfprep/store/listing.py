"""The manifests and the progress file as a whole: exactly what is complete, in source order, replaced at once.

Takes complete samples one by one and writes them under temporary names; puts the files in place when it is closed
without an error. Knows nothing of why a sample is complete.
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
        """What stats.json says of `overlong`: counts by the group whose columns have that length."""
        groups = {name: column.group for column in schema.columns for name in column.lengths}
        return {groups[name]: self.overlong[name] for name in schema.limits}


@dataclass(frozen=True, kw_only=True)
class ListingOptions:
    """The share of ids that goes to validation.

    Without `manifests` only the progress file is written: the features are not kept in the npy layout.
    """

    val_ratio: float
    manifests: bool = True


class Listing:
    """Replaces both manifests and the progress file by what was added while in the `with` block; nothing on errors.

    When the ratio has changed, samples that move from one split to the other leave the first manifest before they
    enter the second, so that no id is ever in both, however often the change is interrupted. Samples over the
    model's positions are listed, and counted.
    """

    def __init__(self, output: NpyOutput, state: State, options: ListingOptions) -> None:
        self.output = output
        self.state = state
        self.options = options
        self.listed = Listed()
        self._stack = contextlib.ExitStack()
        # Splits are nested: what is not in validation at the largest ratio that the files may have is in no
        # validation file. Files of unknown ratio may hold anything.
        known = state.get("largest_val_ratio")
        earlier = known if known is not None else 1.0 if (output.root / VAL).exists() else options.val_ratio
        self._largest_ratio = max(earlier, options.val_ratio)
        self._moving = earlier != options.val_ratio

    def __enter__(self) -> "Listing":
        # All of this ends in the reverse of this order.
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
        # An OSError here passes through the files' own blocks, which explain it.
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
