"""A worker in the calling process, for debugging: the same loop, without a supervising process.

A sample that crashes the process ends the build.
"""

import contextlib
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from hfprep.errors import StopRequested
from hfprep.pipeline.background import BackgroundWriter
from hfprep.pipeline.breaker import Breaker
from hfprep.pipeline.devices import torch_threads_kept
from hfprep.pipeline.engines.messages import Assignment, Batch, WorkerSetup
from hfprep.pipeline.engines.spec import NO_COST, ExtractorSpec, Models
from hfprep.pipeline.engines.work_units import cut
from hfprep.pipeline.engines.worker import Worker

if TYPE_CHECKING:
    from hfprep.pipeline.engines.choice import Job


def run_inline(job: "Job", spec: ExtractorSpec, models: Models) -> None:
    """Compute the pending rows of a job in this process, with `models` that may be loaded already.

    The sink runs in a thread: on an accelerator while the next batch computes, on a CPU before it does, so that a kill
    loses one batch. Raises StopRequested after the batch in flight once `job.stop()` is true, and errors of the sink.
    """
    units = deque(Assignment(unit.number, tuple(map(int, unit.rows))) for unit in cut(job.plan.pending_positions(), 1))
    folder = job.work / "stage"
    setup = WorkerSetup(spec=spec, plan=job.plan.path, folder=folder, control=job.plan.control())
    breaker = Breaker()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch_threads_kept())
        worker = stack.enter_context(contextlib.closing(Worker(setup, models, tell=lambda news: job.watch(0, news))))
        stage = stack.enter_context(contextlib.closing(job.staging.open(folder)))
        writer = stack.enter_context(contextlib.closing(BackgroundWriter(overlap=worker.extractor.looks_ahead)))

        def take(batch: Batch) -> None:
            final = breaker.take(computed=len(batch.computed), rejections=batch.rejections)
            job.watch(0, None)
            job.sink(stage.write(batch.computed), final, batch.cost)

        try:
            for batch in worker.work(lambda _wait: units.popleft() if units else None):
                writer.submit(partial(take, batch))
                if job.stop():
                    raise StopRequested
        finally:
            writer.flush()
        for rejection in breaker.finish():
            job.sink([], [rejection], NO_COST)
