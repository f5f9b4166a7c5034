"""What the driver of the processes engine and its workers say to each other.

Plain records that can be pickled; light to import, so that a worker is heavy only once it opens its models.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfprep.schema import Rejection

if TYPE_CHECKING:  # these modules load torch
    from hfprep.pipeline.engines.spec import BatchCost, ExtractorSpec


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """The first message to a worker: what to open, where; the plan's file; the folder that is the worker's own."""

    spec: "ExtractorSpec"
    device: str
    plan: Path
    folder: Path


@dataclass(frozen=True, slots=True)
class Assignment:
    """A shard of the plan: positions of rows in the plan's Arrow file."""

    shard: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """A computed and staged batch of a shard; with `awaited` its worker goes on when the driver says `Published`."""

    shard: int
    staged: list[Any]
    rejections: list[Rejection]
    cost: "BatchCost"
    awaited: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """The driver's answer to a batch that is awaited: it is on disk and listed."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A shard of which everything has been reported; None stands for "ready for the first one"."""

    shard: int | None


@dataclass(frozen=True, slots=True)
class Failed:
    """An error that ends the run (`fatal`) or only this process."""

    error: Exception
    fatal: bool


@dataclass(frozen=True, slots=True)
class LogLine:
    """A log record on its way to the driver."""

    level: int
    name: str
    text: str
