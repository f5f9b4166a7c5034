"""The engine of one process: `datasets.map` over the pending rows, here and now.

Maps windows of rows through the extractor and hands each batch to the writer as it completes, so that work is
durable batch by batch although `datasets.map` itself keeps nothing of a map that dies.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets

from hfprep.features import BatchResult, FeatureExtractor, Task
from hfprep.planning import planned_row
from hfprep.records import Features, Rejection
from hfprep.store.layout import PlannedRow

WINDOW_ROWS = 2048  # rows among which samples of like length find each other
DONE = datasets.Features({"id": datasets.Value("string"), "rejected": datasets.Value("string")})

Publish = Callable[[list[tuple[PlannedRow, Features]], list[Rejection], BatchResult], None]


class StopRequested(Exception):
    """The run was asked to stop; everything handed to the writer so far counts."""


def run_local(
    pending: datasets.Dataset,
    extractor: FeatureExtractor,
    publish: Publish,
    *,
    work: Path,
    stop: Callable[[], bool] = lambda: False,
) -> datasets.Dataset:
    """Compute every pending row; gives the mapped Dataset: `id` and `rejected` (reason or None), in source order.

    `publish` gets each batch as it completes: what is finished, what was rejected, and its cost. Raises
    StopRequested after the batch in flight once `stop()` is true.
    """

    def process(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [planned_row(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
        by_line = {row.utterance.line: row for row in rows}
        rejected: dict[int, str] = {}
        results = extractor.extract([Task(row.utterance, row.need) for row in rows])
        with contextlib.closing(results):
            for result in results:
                finished, rejections = [], []
                for task, outcome in result.outcomes:
                    row = by_line[task.utterance.line]
                    if isinstance(outcome, Features):
                        finished.append((row, outcome))
                    else:
                        rejections.append(outcome)
                        rejected[outcome.line] = outcome.reason.value
                publish(finished, rejections, result)
                if stop():
                    raise StopRequested
        return {"id": columns["id"], "rejected": [rejected.get(line) for line in columns["line"]]}

    return pending.map(
        process,
        batched=True,
        batch_size=WINDOW_ROWS,
        remove_columns=pending.column_names,
        features=DONE,
        cache_file_name=str(work / "done.arrow"),
        load_from_cache_file=False,
        new_fingerprint=pending._fingerprint + "-done",  # hashing the function would pickle the model
    )
