"""The result of a build."""

from dataclasses import dataclass, field
from pathlib import Path

from hfprep.pipeline.progress import Tally


@dataclass(frozen=True)
class Summary:
    """What a build did. lines_read = accepted + all rejected + capped + pending (0 unless it was interrupted).

    For an output in object storage, `url` is its URL and `output_dir` its local folder.
    """

    output_dir: Path
    lines_read: int
    accepted: int
    rejected: dict[str, int]
    capped: int
    pending: int
    train: int
    val: int
    hours: float
    reused: int
    adopted: int
    repaired: int
    changed: int
    out_of_memory_events: int
    overlong: dict[str, int]
    elapsed_seconds: float
    tally: Tally = field(default_factory=Tally)
    interrupted_by: int | None = None
    url: str | None = None
