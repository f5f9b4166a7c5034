"""Rewrites the manifests and the progress file: exactly the complete samples, in source order, replaced atomically.

Takes complete samples one by one and writes them under temporary names; the files are put in place when the listing is
closed without an error. Knows nothing about why a sample is complete.

`entry_of` makes a sample's line, which can be done in another process.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from hfprep.errors import StoreError
from hfprep.io import atomic
from hfprep.schema import Schema, Utterance
from hfprep.store.layout import (
    PROGRESS,
    TRAIN,
    VAL,
    NpyOutput,
    in_validation,
    is_validation,
    json_line,
    record_of,
    record_start,
    split_bucket,
)
from hfprep.store.state import SampleState, State
from hfprep.store.values import ratio

STAYING = atomic.TEMPORARY[1]
NANOSECONDS = 1e9  # in a second


# A complete sample as it is listed: its id, its line in a manifest, the number that decides its split (see
# `split_bucket`), nanoseconds of audio, and the names of lengths over their limits. Cheap to send between processes.
Entry = tuple[str, bytes, int, int, tuple[str, ...]]


def entry_of(schema: Schema, utterance: Utterance, sample: SampleState, *, record: bool = True) -> Entry:
    """A complete sample's entry; without `record` for the progress file only."""
    lengths = sample.lengths
    line = json_line(record_of(schema, utterance, sample.seconds, lengths)) if record else b""
    overlong = tuple([name for name, limit in schema.limits.items() if lengths[name] > limit])
    nanoseconds = round((sample.seconds or 0.0) * NANOSECONDS)
    return utterance.id, line, split_bucket(utterance.id), nanoseconds, overlong


@dataclass(slots=True)
class Listed:
    """What the manifests list; `overlong` counts samples over each limit of the schema, by length name.

    Time is added up in whole nanoseconds, so that the sum does not depend on the order.
    """

    train: int = 0
    val: int = 0
    nanoseconds: int = 0
    overlong: Counter[str] = field(default_factory=Counter)

    @property
    def seconds(self) -> float:
        return self.nanoseconds / NANOSECONDS

    def overlong_by_group(self, schema: Schema) -> dict[str, int]:
        """`overlong` as it is written to stats.json: counts by the group whose columns have that length."""
        groups = {name: column.group for column in schema.columns for name in column.lengths}
        return {groups[name]: self.overlong[name] for name in schema.limits}


class Listing:
    """Replaces both manifests and the progress file with the samples added in a `with` block, unless there is an error.

    If the ratio has changed, samples that change splits are removed from one manifest before they are added to the
    other, so that no id is ever in both, even if the run is interrupted. Samples over the model's limits are listed and
    counted.

    `val_ratio` is the share of ids in the validation split. Without `manifests` only the progress file is written, for
    features that are not stored in the npy layout. `repeated`: what this run has listed before; all of these samples
    are listed again, with `keep`.
    """

    def __init__(
        self,
        output: NpyOutput,
        state: State,
        val_ratio: float,
        *,
        manifests: bool = True,
        repeated: Listed | None = None,
    ) -> None:
        self.output = output
        self.state = state
        self.val_ratio = val_ratio
        self.manifests = manifests
        self.listed = Listed() if repeated is None else dataclasses.replace(repeated, overlong=repeated.overlong.copy())
        self._repeats = repeated is not None
        self._stack = contextlib.ExitStack()
        # Splits are nested: an id that is not in validation at the largest ratio used so far is in no validation
        # file. Files with an unknown ratio may contain any id.
        known = state.get("largest_val_ratio", ratio)
        earlier = known if known is not None else 1.0 if (output.root / VAL).exists() else val_ratio
        self._largest_ratio = max(earlier, val_ratio)
        self._moving = earlier != val_ratio

    def __enter__(self) -> "Listing":
        # These exit in reverse order.
        self._stack.push(self._keep(val_ratio=self.val_ratio, largest_val_ratio=self.val_ratio))
        self._progress = self._open(PROGRESS)
        kept = self.manifests
        self._train = self._open(TRAIN) if kept else None
        self._val = self._open(VAL) if kept else None
        self._staying = self._open(TRAIN, STAYING) if kept and self._moving else None
        if kept and self._repeats:
            self._listed_train = self._stack.enter_context(open(self.output.root / TRAIN, "rb"))
            self._listed_val = self._stack.enter_context(open(self.output.root / VAL, "rb"))
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

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def keep(self, sample_ids: Iterable[str]) -> None:
        """List again the next samples of the earlier listing; raises StoreError if a manifest has other lines."""
        for sample_id in sample_ids:
            self._progress.write(sample_id.encode() + b"\n")
            if self._train is None or self._val is None:
                continue
            validation = is_validation(sample_id, self.val_ratio)
            record = (self._listed_val if validation else self._listed_train).readline()
            if not record.startswith(record_start(sample_id)) or not record.endswith(b"\n"):
                path = self.output.root / (VAL if validation else TRAIN)
                raise StoreError(f"{path} was changed by another program; run the same command again")
            (self._val if validation else self._train).write(record)

    def add(self, entry: Entry) -> None:
        """List a complete sample; in the manifest's order."""
        sample_id, record, bucket, nanoseconds, overlong = entry
        listed = self.listed
        validation = in_validation(bucket, self.val_ratio)
        # The `replacing` contexts of the files explain an OSError here.
        self._progress.write(sample_id.encode() + b"\n")
        manifest = self._val if validation else self._train
        if manifest is not None:
            manifest.write(record)
            if self._staying is not None and not in_validation(bucket, self._largest_ratio):
                self._staying.write(record)
        listed.train += not validation
        listed.val += validation
        listed.nanoseconds += nanoseconds
        if overlong:
            listed.overlong.update(overlong)
