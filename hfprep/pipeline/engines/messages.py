"""The messages between a driver and its workers, on any machine.

Plain picklable records; light to import, so that a worker only imports heavy modules when it loads its models.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hfprep.schema import Features, Rejection

if TYPE_CHECKING:  # these modules load torch, or much else
    from hfprep.pipeline.engines.spec import BatchCost, ExtractorSpec
    from hfprep.store.layout import PlannedRow


class Channel(Protocol):
    """One end of a connection; `multiprocessing.connection.Connection` is one."""

    def send(self, message: Any, /) -> None: ...

    def recv(self) -> Any: ...

    def poll(self) -> bool: ...


# To a worker


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """A build: what to load and where.

    `plan` is the file whose rows are assigned; without it (the worker may be on another machine) assignments contain
    the rows themselves. `folder` is where arrays are staged; without it batches contain the arrays. `control` is a row
    that was computed before; with `prove` the worker computes it first and reports whether that works.
    """

    spec: "ExtractorSpec"
    plan: Path | None
    folder: Path | None
    control: "PlannedRow | None" = None
    prove: bool = False


@dataclass(frozen=True, slots=True)
class Assignment:
    """A work unit: positions of rows in the plan's Arrow file, or the rows as an Arrow stream."""

    unit: int
    rows: tuple[int, ...] | bytes


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer to an `awaited` batch: it is on disk and listed."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop after the batch in flight; with `done`, finish the assigned units first: there are no more."""

    done: bool = False


# From a worker


@dataclass(frozen=True, slots=True)
class Opened:
    """The models are loaded; `works` says whether the control was computed, if requested."""

    works: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """A computed batch of a work unit, staged or as arrays; if `awaited`, the worker waits for `Taken`."""

    unit: int
    rejections: list[Rejection]
    cost: "BatchCost"
    staged: list[Any] = field(default_factory=list)
    computed: list[tuple["PlannedRow", Features]] = field(default_factory=list)
    awaited: bool = False


@dataclass(frozen=True, slots=True)
class Underway:
    """The worker's progress within its batch: the share that is computed, from 0 to 1, and the batch's total work."""

    work: float
    share: float


@dataclass(frozen=True, slots=True)
class Closed:
    """The worker has left its build and waits for another."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An error that ends the run (`fatal`) or only this worker."""

    error: Exception
    fatal: bool


@dataclass(frozen=True, slots=True)
class LogLine:
    """A log record for the driver."""

    level: int
    name: str
    text: str
