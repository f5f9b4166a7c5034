"""The user's options for single samples: how they are read, and which of them are rejected.

Each bound has its own rejection reason.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from hfprep.errors import ConfigError, Reason, RejectedSample


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFilters:
    """Bounds on a clip's seconds and on its characters per second; None: no bound."""

    min_seconds: float | None = None
    max_seconds: float | None = None
    max_chars_per_second: float | None = None

    def __post_init__(self) -> None:
        for name in ("min_seconds", "max_seconds", "max_chars_per_second"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be a positive number")
        if self.min_seconds is not None and self.max_seconds is not None and self.min_seconds > self.max_seconds:
            raise ConfigError(
                f"--max-seconds is {self.max_seconds}; it must be at least --min-seconds, {self.min_seconds}"
            )

    @classmethod
    def of(cls, options: Any) -> RowFilters:
        """The bounds in an object with options of these names."""
        return cls(**{item.name: getattr(options, item.name) for item in dataclasses.fields(cls)})

    def check(self, seconds: float | None, text: str) -> None:
        """Raise RejectedSample if a clip of so many seconds with this text is out of bounds.

        Characters are counted without surrounding white space. Unknown seconds are accepted.
        """
        if seconds is None:
            return
        if self.min_seconds is not None and seconds < self.min_seconds:
            message = f"the clip has {seconds:.2f} s; --min-seconds is {self.min_seconds:g}"
            raise RejectedSample(Reason.UNDER_MIN_SECONDS, message)
        if self.max_seconds is not None and seconds > self.max_seconds:
            message = f"the clip has {seconds:.2f} s; --max-seconds is {self.max_seconds:g}"
            raise RejectedSample(Reason.OVER_MAX_SECONDS, message)
        most, characters = self.max_chars_per_second, len(text.strip())
        if most is not None and characters > most * seconds:
            message = f"the text has {characters} characters for {seconds:.2f} s; --max-chars-per-second is {most:g}"
            raise RejectedSample(Reason.OVER_MAX_CHARS_PER_SECOND, message)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """How samples are read, and which are rejected.

    Clips are resampled by way of `via_sampling_rate` (Hz; None: directly). With `drop_overlong`, samples with more text
    ids or codes than the model has positions are rejected. `named_stores` are the object stores that the user named
    (see `Stores`).
    """

    via_sampling_rate: int | None = None
    drop_overlong: bool = False
    filters: RowFilters = field(default_factory=RowFilters)
    named_stores: frozenset[str] = frozenset()

    @classmethod
    def of(cls, options: Any, via_sampling_rate: int | None) -> SampleOptions:
        """Those of a `BuildConfig` or `CheckOptions`."""
        return cls(
            via_sampling_rate=via_sampling_rate,
            drop_overlong=options.drop_overlong,
            filters=options.filters,
            named_stores=options.named_stores,
        )
