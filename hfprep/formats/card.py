"""The data set card (README.md) of a set on the Hub: what it contains, how it was made, how to load it."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hfprep.formats.samples import SPLITS, SampleSet
from hfprep.io.printable import markdown
from hfprep.schema import Column, Schema

SECONDS_PER_HOUR = 3600.0
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
DATA_FILES = {"arrow": "{split}/*.arrow", "webdataset": "{split}-*.tar"}
_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")
FORMAT_TEXT = {
    "arrow": ("column", "| `id`, `text`, `speaker`, `language`, `audio_path` | string | the utterance |\n"
              "| `duration` | float64 | seconds |"),
    "webdataset": ("member", "| `json` | object | `id`, `text`, `speaker`, `language`, `audio_path`, `duration`, "
                   "lengths, other fields (`extra`) |"),
}  # fmt: skip


@dataclass
class _Totals:
    samples: dict[str, int] = field(default_factory=dict)
    hours: dict[str, float] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)
    speakers: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, source: SampleSet) -> "_Totals":
        totals = cls()
        for split in SPLITS:
            seconds, count = 0.0, 0
            for entry in source.split(split).entries():
                values = entry.metadata(source.schema)
                seconds, count = seconds + (values["duration"] or 0.0), count + 1
                totals.languages[values["language"] or ""] += 1
                if values["speaker"]:
                    totals.speakers.add(values["speaker"])
            totals.samples[split], totals.hours[split] = count, seconds / SECONDS_PER_HOUR
        return totals


def card(source: SampleSet, repo: str, *, data_format: str, dtype: str) -> str:
    """The card of a set pushed to `repo` in this format and vector dtype: Markdown with a YAML header."""
    totals = _Totals.of(source)
    schema = source.schema
    rows = "\n".join(f"| {split} | {totals.samples[split]} | {totals.hours[split]:.2f} |" for split in SPLITS)
    known = {name: count for name, count in totals.languages.most_common() if name}
    languages = ", ".join(f"{markdown(name)} ({count})" for name, count in known.items()) or "not given"
    return f"""{_header(totals, repo, data_format, schema)}
# {repo.partition("/")[2]}

Training features for a text-to-speech model, made by hfprep with the recipe {schema.recipe}. It contains no audio.

| split | samples | hours |
|---|---|---|
{rows}

Languages (samples): {languages}. Speakers: {len(totals.speakers) or "not given"}.

## Load it

```python
import datasets

data = datasets.load_dataset("{repo}")
```

or, for a trainer:

```python
import hfprep

data = hfprep.load("{repo}", "train")
```

## Features

{_columns(schema, data_format, dtype)}

## How it was made

{_models(source.origin.stats)}
"""


def _columns(schema: Schema, data_format: str, dtype: str) -> str:
    name, first = FORMAT_TEXT[data_format]
    lines = [f"| {name} | type | content |", "|---|---|---|", first]
    if data_format == "arrow":
        lengths = ", ".join(f"`{length}`" for length in schema.lengths)
        lines += [f"| {lengths} | int32 | lengths of the features |"] if lengths else []
    for column in schema.columns:
        shown = f"`{column.name}`" if data_format == "arrow" else f"`{column.name}.npy`"
        shape = " x ".join(str(schema.fixed.get(str(dim), dim)) for dim in column.dims)
        kind = dtype if column.kind == "vector" else column.dtype
        lines.append(f"| {shown} | {kind}, {shape} | {_content(schema, column)} |")
    return "\n".join(lines)


def _content(schema: Schema, column: Column) -> str:
    if column.kind == "tokens":
        return "token ids of the text"
    if column.kind == "codes":
        return "codes of the audio" + (f", {schema.code_rate:g} per second" if schema.code_rate else "")
    source = next(group.source for group in schema.groups if group.name == column.group)
    return f"vector of the {source}" if column.ndim == 1 else f"vectors of the {source}"


def _header(totals: _Totals, repo: str, data_format: str, schema: Schema) -> str:
    count = sum(totals.samples.values())
    size = next((name for bound, name in SIZES if count < bound), "n>10M")
    files = [
        {"split": split, "path": DATA_FILES[data_format].format(split=split)}
        for split in SPLITS
        if totals.samples[split] or data_format == "arrow"
    ]
    header: dict[str, Any] = {
        "pretty_name": repo.partition("/")[2],
        "task_categories": ["text-to-speech"],
        "tags": ["speech", "features", schema.recipe, "hfprep"],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    codes = sorted(name for name in totals.languages if _LANGUAGE_CODE.fullmatch(name))
    if codes:
        header["language"] = codes
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in header.items()]
    return "\n".join(["---", *lines, "---"])


def _models(stats: dict[str, Any] | None) -> str:
    if not stats:
        return "Not recorded."
    hashes = stats.get("sha256") or {}
    versions = stats.get("versions") or {}
    lines = [
        "| file | sha256 |",
        "|---|---|",
        *(f"| {markdown(name)} | {markdown(value)} |" for name, value in hashes.items()),
    ]
    made = ", ".join(f"{markdown(name)} {markdown(version)}" for name, version in versions.items())
    return "\n".join([*lines, "", f"Precision: {markdown(stats.get('precision', 'not recorded'))}. {made}"]).rstrip()
