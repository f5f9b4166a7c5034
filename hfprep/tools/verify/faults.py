"""The faults that an output can have.

Provides `FaultKind`, the fixed set of kinds, `Fault`, and `Findings`, which collects them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum


class FaultKind(StrEnum):
    """The kinds of faults."""

    ARTIFACT_MISSING = "artifact_missing"
    ARTIFACT_UNREADABLE = "artifact_unreadable"
    ARTIFACT_DTYPE = "artifact_dtype"
    ARTIFACT_SHAPE = "artifact_shape"
    ARTIFACT_LENGTH = "artifact_length"
    ARTIFACT_SIZE = "artifact_size"
    NOT_FINITE = "not_finite"
    ALL_ZERO = "all_zero"
    OUT_OF_RANGE = "out_of_range"
    RECORD_INVALID = "record_invalid"
    DUPLICATE_ID = "duplicate_id"
    IN_BOTH_SPLITS = "in_both_splits"
    WRONG_SPLIT = "wrong_split"
    FILE_MISSING = "file_missing"
    FILE_INVALID = "file_invalid"
    PROGRESS_DISAGREES = "progress_disagrees"
    STATS_DISAGREE = "stats_disagree"
    REJECTED_DISAGREES = "rejected_disagrees"
    STATE_DISAGREES = "state_disagrees"
    PAIRS_DISAGREE = "pairs_disagree"
    UNFINISHED = "unfinished"
    UNLISTED_FILE = "unlisted_file"
    CHECKSUM = "checksum"
    PARITY = "parity"
    REFERENCE = "reference"


# Faults of an array, which are repaired by computing that array again.
OF_ARTIFACT = {kind for kind in FaultKind if kind.startswith("artifact_")}
OF_ARTIFACT |= {FaultKind.NOT_FINITE, FaultKind.ALL_ZERO, FaultKind.OUT_OF_RANGE, FaultKind.PARITY}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault: its sample (None: not of a single sample), file, and description.

    `file` is relative to the output directory; `column` is the broken array, if any.
    """

    kind: FaultKind
    id: str | None
    file: str
    message: str
    column: str | None = None

    def line(self) -> str:
        """The fault on one line: id, file, what."""
        what = self.message.replace("\n", " ")
        return f"{self.id if self.id is not None else '-'}: {self.file}: {what} [{self.kind.value}]"


@dataclass
class Findings:
    """Faults in the order in which they are found, and notes."""

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self, kind: FaultKind, file: str, message: str, *, sample_id: str | None = None, column: str | None = None
    ) -> None:
        """Add a fault."""
        self.faults.append(Fault(kind, sample_id, file, message, column))

    def note(self, text: str) -> None:
        """Add a note, which is not a fault."""
        self.notes.append(text)

    def of(self, *kinds: FaultKind) -> Iterator[Fault]:
        """The faults of these kinds."""
        return (fault for fault in self.faults if fault.kind in kinds)
