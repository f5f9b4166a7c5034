"""`--val-count N`: the validation ratio that selects the N ids with the smallest hashes.

It only depends on the manifest and N, not on which samples are finished or rejected later, so that the split does not
depend on earlier runs.
"""

import dataclasses
import heapq
from collections.abc import Iterator

from hfprep.inputs.manifest.opening import open_source
from hfprep.inputs.manifest.rows import NoLookup, parse_line
from hfprep.pipeline.config import BuildConfig
from hfprep.schema import Utterance
from hfprep.store.layout import SPLIT_BUCKETS, split_bucket


def ratio_for_count(config: BuildConfig, count: int) -> float:
    """The smallest --val-ratio that selects `count` ids of a manifest (or a few more, if hashes are equal).

    Reads every line. Keeps `count` ids in memory, and with --max-samples that many more.
    """
    if not count:
        return 0.0
    smallest = list[tuple[int, str]]()  # a heap of negative hashes: the largest of the `count` smallest hashes is first
    held = set[str]()
    for sample_id in _ids(config):
        bucket = split_bucket(sample_id)
        if sample_id in held or (len(smallest) == count and bucket >= -smallest[0][0]):
            continue
        held.add(sample_id)
        if len(smallest) < count:
            heapq.heappush(smallest, (-bucket, sample_id))
        else:
            held.discard(heapq.heapreplace(smallest, (-bucket, sample_id))[1])
    if len(smallest) < count:
        return 1.0
    return (1 - smallest[0][0]) / SPLIT_BUCKETS


def with_split(config: BuildConfig) -> BuildConfig:
    """The config with the ratio for --val-count."""
    if config.val_count is None:
        return config
    return dataclasses.replace(config, val_ratio=ratio_for_count(config, config.val_count))


def _ids(config: BuildConfig) -> Iterator[str]:
    """The ids of valid rows, up to --max-samples; without a cap, an id may occur twice."""
    finder, taken = NoLookup(config.manifest), set[str]()
    for number, raw in open_source(config.manifest, config.field_map):
        row = parse_line(number, raw, finder, config.language)
        if isinstance(row, Utterance) and row.id not in taken:
            yield row.id
            if config.max_samples is not None:
                taken.add(row.id)
                if len(taken) == config.max_samples:
                    return
