"""The engine of one process: `datasets.map` over the pending rows, here and now.

Maps windows of rows through the extractor and hands each batch to the sink as it completes, so that work is
durable batch by batch although `datasets.map` itself keeps nothing of a map that dies.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import datasets

from hfprep.errors import HfprepError, StopRequested
from hfprep.io.atomic import explained
from hfprep.pipeline.background import BackgroundWriter
from hfprep.pipeline.engines.spec import ExtractorSpec, Models, Sink, cost_of
from hfprep.pipeline.engines.spool import by_its_own_name, spooled
from hfprep.pipeline.features import BatchResult, FeatureExtractor, Task
from hfprep.pipeline.planning import planned_row
from hfprep.schema import Features, Rejection
from hfprep.store.layout import PlannedRow

WINDOW_ROWS = 2048  # rows among which samples of like length find each other
DONE = datasets.Features({"id": datasets.Value("string"), "rejected": datasets.Value("string")})

Deliver = Callable[[list[tuple[PlannedRow, Features]], list[Rejection], BatchResult], None]


def run_local(
    spec: ExtractorSpec,
    pending: datasets.Dataset,
    sink: Sink,
    *,
    work: Path,
    stop: Callable[[], bool] = lambda: False,
    models: Models | None = None,
) -> None:
    """Compute every pending row in this process, with `models` that may be loaded already.

    `sink` runs in a thread of its own: on an accelerator while the next batch computes, on a CPU before it does, so
    that a kill costs one batch. Raises StopRequested after the batch in flight once `stop()` is true, and whatever the
    sink raises.
    """
    with contextlib.ExitStack() as stack:
        extractor = spec.open(models=models)
        stage, writer = spec.staging.open(work / "stage"), BackgroundWriter(overlap=extractor.looks_ahead)
        for closing in (stage.close, writer.close, extractor.close):
            stack.callback(closing)
        counted = 0

        def deliver(
            computed: list[tuple[PlannedRow, Features]], rejections: list[Rejection], result: BatchResult
        ) -> None:
            nonlocal counted
            features = [item for _, item in computed]
            cost = cost_of(result, features, extractor.schema, extractor.out_of_memory_events - counted)
            counted = extractor.out_of_memory_events
            writer.submit(lambda: sink(stage.write(computed), rejections, cost))
            if stop():
                writer.flush()
                raise StopRequested

        map_rows(pending, extractor, deliver, cache_file=work / "done.arrow")
        writer.flush()


def run_rows(
    rows: list[dict[str, Any]], extractor: FeatureExtractor, *, spool: Path | None = None
) -> Generator[tuple[list[tuple[PlannedRow, Features]], list[Rejection], BatchResult], None, None]:
    """Run the extractor over rows of the plan: what was computed, what was rejected, and the whole, batch by batch.

    With `spool`, a file that may be written meanwhile, clips inside Parquet files are read in their order.
    """
    planned = {row["line"]: planned_row(row) for row in rows}
    with contextlib.ExitStack() as stack:
        every = list(planned.values())
        parts = None
        if spool is not None:
            parts = stack.enter_context(contextlib.closing(spooled(every, spool, extractor.schema.audio_groups)))
        for part in parts or [every]:
            used = {row.utterance.line: row for row in part}
            results = extractor.extract(
                [Task.of(extractor.schema, row.utterance, row.need, row.audio.size) for row in part]
            )
            stack.callback(results.close)
            for result in results:
                computed, rejections = [], []
                for task, outcome in result.outcomes:
                    line = task.utterance.line
                    if isinstance(outcome, Features):
                        computed.append((planned[line], outcome))
                    else:
                        rejections.append(by_its_own_name(outcome, planned[line], used[line]))
                yield computed, rejections, result


@contextlib.contextmanager
def _first_error() -> Iterator[None]:
    """Raise what ended a `map`, not what `datasets` met when it closed its own file after that."""
    try:
        yield
    except HfprepError:
        raise
    except Exception as error:
        cause: BaseException | None = error.__context__
        while cause is not None:
            if isinstance(cause, (HfprepError, OSError)):
                raise cause  # noqa: B904 - the later error is of no interest
            cause = cause.__context__
        raise


def map_rows(
    pending: datasets.Dataset, extractor: FeatureExtractor, deliver: Deliver, *, cache_file: Path
) -> datasets.Dataset:
    """Run the extractor over a Dataset of planned rows, delivering each batch as it completes.

    Gives the mapped Dataset: `id` and `rejected` (the reason, or None), in source order.
    """

    def process(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        rejected: dict[int, str] = {}
        with contextlib.closing(run_rows(rows, extractor, spool=cache_file.with_suffix(".spool"))) as batches:
            for computed, rejections, result in batches:
                rejected |= {rejection.line: rejection.reason.value for rejection in rejections}
                deliver(computed, rejections, result)
        return {"id": columns["id"], "rejected": [rejected.get(line) for line in columns["line"]]}

    with explained(cache_file), _first_error():  # of all that happens here only the map's own file raises an OSError
        return pending.map(
            process,
            batched=True,
            batch_size=WINDOW_ROWS,
            remove_columns=pending.column_names,
            features=DONE,
            cache_file_name=str(cache_file),
            load_from_cache_file=False,
            new_fingerprint=pending._fingerprint + "-done",  # hashing the function would pickle the model
        )
