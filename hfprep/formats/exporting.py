"""Exports a sample set as shards, with the same writers as builds."""

import dataclasses
from array import array
from pathlib import Path
from typing import TypeVar

import numpy as np

from hfprep.formats.folders import atomic_folder
from hfprep.formats.samples import SPLITS, SampleSet, lengths_of
from hfprep.formats.shards import ShardFormat, ShardOptions, SplitWriter
from hfprep.io.chunks import chunks_of
from hfprep.store.shard_index import Shard

SAMPLES_TOGETHER = 64

Options = TypeVar("Options", bound=ShardOptions)


def stored_dtype(options: Options, source: SampleSet) -> Options:
    """The options, but with dtype float16 if the source's vectors are float16."""
    return dataclasses.replace(options, dtype="float16") if source.origin.latents_dtype == "float16" else options


def export(source: SampleSet, target: Path, shards: ShardFormat) -> dict[str, int]:
    """Write a sample set as shards into a folder that is created atomically; returns the number of samples per split.

    Replaces an earlier set of that format. Raises StoreError if `target` contains anything else.
    """
    origin = dataclasses.replace(source.origin, latents_dtype=shards.options.dtype)
    splits: dict[str, list[Shard]] = {}
    places: dict[str, np.ndarray] = {}
    with atomic_folder(target, shards.replaceable) as folder:
        for name in SPLITS:
            splits[name], places[name] = _export_split(source, folder, name, shards)
        return shards.describe(folder, splits, places, origin)


def _export_split(source: SampleSet, folder: Path, name: str, shards: ShardFormat) -> tuple[list[Shard], np.ndarray]:
    splits: list[Shard] = []

    def new() -> Shard:
        number = len(splits)
        splits.append(Shard(number, name, number, shards.shard_name(name, number)))
        return splits[-1]

    writer = SplitWriter(shards, folder, new)
    table = array("q")
    try:
        first_row = 0
        for chunk in chunks_of(source.split(name).samples(), SAMPLES_TOGETHER):
            for sample, place in zip(chunk, writer.append(shards.encode(chunk)), strict=True):
                if place.row == 0 and place.shard.number:
                    first_row += splits[place.shard.number - 1].samples
                lengths = lengths_of(source.schema, sample.entry.record)
                number = place.shard.number
                table.extend(shards.place_of((place.row, place.start, place.size), number, first_row, lengths))
        if not splits and shards.empty_splits:
            writer.opened()
        writer.finish()
    finally:
        writer.close()
    return splits, np.frombuffer(table, np.int64).reshape(-1, len(shards.place_columns))
