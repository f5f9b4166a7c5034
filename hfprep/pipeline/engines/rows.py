"""The rows of a plan in the forms that engines use: work units, ids, Arrow streams."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hfprep.pipeline.engines.work_units import WorkQueue, WorkUnit, cut
from hfprep.pipeline.plan import Plan, planned_row
from hfprep.store.layout import PlannedRow


def units_of(plan: Plan, num_workers: int) -> list[WorkUnit]:
    """The pending rows as work units."""
    return cut(np.asarray(plan.pending_positions(), np.int64), num_workers)


def queue_of(plan: Plan, num_workers: int) -> WorkQueue:
    """A queue of the pending rows as work units."""
    return WorkQueue(units_of(plan, num_workers), row_reader(plan))


def row_reader(plan: Plan) -> Callable[[Sequence[int] | np.ndarray], Iterable[tuple[int, str, int]]]:
    """A function that returns line, id and position of the plan's rows at given positions."""

    def read(positions: Sequence[int] | np.ndarray) -> Iterable[tuple[int, str, int]]:
        rows = plan.rows.take(positions, ["line", "id"])
        lines, ids = (rows.column(name).to_pylist() for name in ("line", "id"))
        return zip(lines, ids, (int(position) for position in positions), strict=True)

    return read


def control_of(plan: Plan) -> PlannedRow | None:
    """The finished row with the smallest audio file; None if no row is finished."""
    columns = plan.table
    finished = np.flatnonzero(pc.list_value_length(columns.column("need")).to_numpy() == 0)
    if not len(finished):
        return None
    sizes = columns.column("audio_bytes").to_numpy(zero_copy_only=False)[finished]
    smallest = int(finished[np.argmin(np.nan_to_num(sizes.astype(np.float64), nan=np.inf))])
    return planned_row(plan.rows.take([smallest]).to_pylist()[0])


def as_stream(plan: Plan, positions: Sequence[int]) -> bytes:
    """Rows of the plan as an Arrow stream."""
    table = plan.rows.take(positions)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())
