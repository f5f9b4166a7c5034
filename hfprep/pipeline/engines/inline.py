"""A worker in the calling process, for debugging: the same loop, without a supervising process.

A sample that crashes the process ends the build.
"""

import contextlib
from collections import deque
from collections.abc import Callable
from pathlib import Path

from hfprep.errors import StopRequested
from hfprep.pipeline.background import BackgroundWriter
from hfprep.pipeline.breaker import Breaker
from hfprep.pipeline.devices import torch_threads_kept
from hfprep.pipeline.engines.messages import Assignment, WorkerSetup
from hfprep.pipeline.engines.rows import control_of, units_of
from hfprep.pipeline.engines.spec import NO_COST, ExtractorSpec, Models, Sink, Watcher
from hfprep.pipeline.engines.worker import Computed, Worker
from hfprep.pipeline.plan import Plan


def run_inline(
    spec: ExtractorSpec,
    plan: Plan,
    sink: Sink,
    *,
    watch: Watcher,
    models: Models,
    work: Path,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Compute the pending rows of a plan in this process, with `models` that may be loaded already.

    `sink` runs in a thread: on an accelerator while the next batch computes, on a CPU before it does, so that a kill
    loses one batch. Raises StopRequested after the batch in flight once `stop()` is true, and errors of the sink.
    """
    units = deque(Assignment(unit.number, tuple(int(row) for row in unit.rows)) for unit in units_of(plan, 1))
    setup = WorkerSetup(spec=spec, device=None, plan=plan.path, folder=work / "stage", control=control_of(plan))
    breaker = Breaker()
    assert spec.staging is not None
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch_threads_kept())
        worker = stack.enter_context(contextlib.closing(Worker(setup, models, tell=lambda news: watch(0, news))))
        stage = stack.enter_context(contextlib.closing(spec.staging.open(work / "stage")))
        writer = stack.enter_context(contextlib.closing(BackgroundWriter(overlap=worker.extractor.looks_ahead)))

        def take(found: Computed) -> None:
            final = breaker.take(computed=len(found.computed), rejections=found.rejections)
            watch(0, None)
            sink(stage.write(found.computed), final, found.cost)

        try:
            for found in worker.work(lambda _wait: units.popleft() if units else None):
                writer.submit(lambda found=found: take(found))  # type: ignore[misc]
                if stop():
                    raise StopRequested
        finally:
            writer.flush()
        for rejection in breaker.finish():
            sink([], [rejection], NO_COST)
