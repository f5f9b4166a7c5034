"""index.json beside the shards of an export: every shard with its samples, bytes and SHA-256.

Written last, so that a folder that has it is complete. Knows nothing of what a shard holds; each format has a name of
its own in it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hfprep.formats.shard_files import WrittenShard
from hfprep.io import atomic

INDEX = "index.json"
INDEX_VERSION = 1

Shard = dict[str, Any]  # name, samples, bytes, sha256


def read_index(root: Path, format_name: str) -> dict[str, Any] | None:
    """The index of a folder of shards; None where there is none of that format."""
    try:
        index = json.loads((root / INDEX).read_bytes())
    except (OSError, ValueError):
        return None
    return index if isinstance(index, dict) and index.get("format") == format_name else None


def listed(shards: Iterable[WrittenShard], names: Iterable[str]) -> list[Shard]:
    """What an index says of finished shards; `names` are their paths below its folder, with forward slashes."""
    return [
        {"name": name, "samples": shard.samples, "bytes": shard.num_bytes, "sha256": shard.sha256}
        for name, shard in zip(names, shards, strict=True)
    ]


def shards_in(index: Mapping[str, Any], split: str) -> list[Shard]:
    """The shards of a split, in the order of their samples."""
    return list(index.get("splits", {}).get(split, {}).get("shards", ()))


def write_index(
    root: Path, format_name: str, splits: Mapping[str, list[Shard]], more: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Write and sync the index of all splits, with what else is to stand in it; gives the samples of each split."""
    counts = {name: sum(shard["samples"] for shard in shards) for name, shards in splits.items()}
    described = {name: {"samples": counts[name], "shards": shards} for name, shards in splits.items()}
    index = {"format": format_name, "version": INDEX_VERSION, "splits": described} | dict(more or {})
    atomic.write_bytes(root / INDEX, json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n")
    return counts
