"""Charts of the builds over time: throughput, batch size, padding, out-of-memory events. Takes timeline rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool
from bokeh.models.annotations import LegendItem
from bokeh.plotting import figure

from hfprep.tools.report.charts import BEYOND, INK, add_legend, histogram, new_figure
from hfprep.tools.report.collect import MOST_POINTS


def timeline_charts(timeline: Sequence[dict[str, Any]]) -> list[figure]:
    """Charts over the running time of builds; none if there are no batches."""
    batches, clock, start, previous = [], 0.0, None, None
    for row in timeline:
        if row.get("start") or previous is None:
            start = row["time"]
        else:
            clock += max(0.0, row["time"] - previous)
        previous = row["time"]
        if "rows" in row and start is not None:
            batches.append({**row, "clock": clock})
    if not batches:
        return []
    padding = [1 - row["num_frames"] / row["padded_frames"] if row.get("padded_frames") else 0.0 for row in batches]
    percent = 100 * np.array(padding)
    return [
        _throughput(batches),
        _batches(batches, padding),
        histogram("Padding of a batch, in percent", percent, "% padding", counted="batches"),
    ]


def _throughput(batches: Sequence[dict[str, Any]]) -> figure:
    clocks = np.array([row["clock"] for row in batches])
    audio = np.array([float(row.get("audio_seconds", 0.0)) for row in batches])
    edges = np.linspace(0, max(float(clocks[-1]), 1e-6), min(120, max(2, len(batches))) + 1)
    per_bin, _ = np.histogram(clocks, bins=edges, weights=audio)
    rate = per_bin / (edges[1] - edges[0])
    chart = new_figure("Throughput while building", "seconds of building", "times real time")
    chart.quad(top="top", bottom=0, left="left", right="right", color=INK, line_color=None,
               source=ColumnDataSource({"top": rate, "left": edges[:-1], "right": edges[1:]}))  # fmt: skip
    chart.add_tools(HoverTool(tooltips=[("times real time", "@top{0,0.0}"), ("seconds", "@left{0,0} to @right{0,0}")]))
    return chart


def _batches(batches: Sequence[dict[str, Any]], padding: Sequence[float]) -> figure:
    chart = new_figure("Batches", "seconds of building", "samples per batch")
    items = []
    for label, split, colour, marker in (("whole", False, INK, "circle"), ("out of memory", True, BEYOND, "diamond")):
        numbers = [at for at, row in enumerate(batches) if bool(row.get("out_of_memory_events")) is split]
        shown = numbers[:: max(1, -(-len(numbers) // MOST_POINTS))]
        if not shown:
            continue
        source = ColumnDataSource({
            "x": [batches[at]["clock"] for at in shown], "y": [batches[at]["rows"] for at in shown],
            "padding": [padding[at] for at in shown],
            "oom": [batches[at].get("out_of_memory_events", 0) for at in shown],
        })  # fmt: skip
        drawn: Any = chart.scatter("x", "y", source=source, size=7, color=colour, marker=marker, alpha=0.7)
        items.append(LegendItem(label=label, renderers=[drawn]))
    chart.add_tools(HoverTool(tooltips=[
        ("samples", "@y"), ("padding", "@padding{0.0%}"), ("out of memory", "@oom"), ("seconds", "@x{0,0.0}"),
    ]))  # fmt: skip
    add_legend(chart, items if len(items) > 1 else [])
    return chart
