"""The charts of a report, as Bokeh figures. Takes what was collected; knows nothing of the page around them.

Colours are told apart by those who see few of them, and charts have no colours of their own for text, axes and ground:
the page sets those, in light and dark.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, CustomJS, DataRange1d, FactorRange, HoverTool, NumeralTickFormatter, TapTool
from bokeh.palettes import Colorblind8, Viridis256
from bokeh.plotting import figure

from hfprep.tools.report.collect import Collected, Group

BARS = 20
BINS = 60
MOST_USED = 30
HEIGHT = 260
INK = "#3d8fd1"  # stands out from white and from near black
NONE_COLOUR = "#8a8a8a"
SHOW_ROW = CustomJS(
    args={}, code="window.hfprep.show('samples', cb_data.source.data['row'][cb_data.source.selected.indices[0]])"
)


def new_figure(title: str, x: str, y: str, **options: Any) -> figure:
    """An empty chart with its axes named."""
    chart = figure(
        title=title, height=HEIGHT, sizing_mode="stretch_width", tools="pan,wheel_zoom,box_zoom,reset,save",
        active_scroll=None, x_axis_label=x, y_axis_label=y, output_backend="canvas", **options,
    )  # fmt: skip
    chart.toolbar.logo = None
    chart.toolbar.autohide = True
    return chart


def bars(title: str, names: Sequence[str], values: Sequence[float], unit: str, details: Sequence[str]) -> figure:
    """Horizontal bars, largest first as they come, each with a line of details."""
    names = [name[:40] for name in names]
    unique = [name if names.index(name) == at else f"{name} ({at})" for at, name in enumerate(names)]
    source = ColumnDataSource({"name": unique, "value": list(values), "details": list(details)})
    chart = new_figure(title, unit, "", y_range=FactorRange(factors=unique[::-1]), x_range=DataRange1d(start=0))
    chart.height = max(HEIGHT // 2, 60 + 24 * len(unique))
    chart.hbar(y="name", right="value", height=0.75, source=source, color=INK)
    chart.add_tools(HoverTool(tooltips=[("", "@name"), (unit, "@value{0,0.[00]}"), ("", "@details")]))
    chart.ygrid.visible = False
    return chart


def group_bars(kind: str, groups: dict[str, Group]) -> figure:
    """Hours by language, speaker or split, the largest first; the rest in one bar."""
    ranked = sorted(groups.items(), key=lambda item: -item[1].seconds)
    shown, rest = ranked[:BARS], ranked[BARS:]
    if rest:
        others = Group(sum(group.samples for _, group in rest), sum(group.seconds for _, group in rest))
        shown.append((f"{len(rest)} more", others))
    hours = [group.seconds / 3600 for _, group in shown]
    details = [f"{group.samples:,} samples" for _, group in shown]
    chart = bars(f"Hours by {kind}", [name for name, _ in shown], hours, "hours", details)
    chart.xaxis.formatter = NumeralTickFormatter(format="0,0.[000]")
    return chart


def histogram(
    title: str, values: np.ndarray, unit: str, limit: int | None = None, *, counted: str = "samples"
) -> figure:
    """How often each length occurs among what is `counted`; `limit` is the model's number of positions."""
    top = float(np.quantile(values, 0.999)) if len(values) > 1000 else float(values.max())
    counts, edges = np.histogram(np.minimum(values, top), bins=min(BINS, max(8, len(values))), range=(0, top or 1.0))
    source = ColumnDataSource({"top": counts, "left": edges[:-1], "right": edges[1:]})
    last = ", the longest 0.1% in the last bar" if len(values) > 1000 else ""
    chart = new_figure(f"{title} (mean {values.mean():.1f}{last})", unit, counted, y_range=DataRange1d(start=0))
    chart.quad(top="top", bottom=0, left="left", right="right", source=source, color=INK, line_color=None)
    chart.add_tools(HoverTool(tooltips=[(unit, "@left{0,0.[00]} to @right{0,0.[00]}"), (counted, "@top{0,0}")]))
    if limit is not None and limit < top * 1.5:
        chart.vspan(x=[limit], line_color="#d55e00", line_dash="dashed", line_width=2)
    return chart


def lengths_scatter(found: Collected) -> figure:
    """Text against codes, a point a sample: what lies apart is a wrong text or a long silence."""
    rows = found.points.rows
    source = ColumnDataSource(_row_columns(found) | {
        "x": [row["text_len"] for row in rows], "y": [row["code_len"] for row in rows],
    })  # fmt: skip
    chart = new_figure("Codes against text ids (click a point)", "text ids", "codes")
    chart.height = 380
    _scatter(chart, source, "x", "y", INK)
    return chart


def emotion_map(found: Collected, by: str) -> figure:
    """The emotion vectors' two main directions, coloured by speaker or language."""
    centred = found.points.emo_vec - found.points.emo_vec.mean(axis=0)
    places, shares = main_directions(centred)
    source = ColumnDataSource(_row_columns(found) | {
        "x": places[:, 0], "y": places[:, 1], "colour": colours([row[by] for row in found.points.rows]),
    })  # fmt: skip
    axes = [
        f"{name} direction, {share:.0%} of the variance"
        for name, share in zip(("first", "second"), shares, strict=True)
    ]
    chart = new_figure(f"Emotion vectors by {by} (click a point)", *axes)
    chart.height = 420
    _scatter(chart, source, "x", "y", "colour", legend=by)
    return chart


def similarity_strip(found: Collected) -> figure:
    """How like its speaker's mean each sample's conditioning latents are; low ones may be another voice or noise."""
    speakers = [row["speaker"] for row in found.points.rows]
    latents = found.points.latents / np.maximum(np.linalg.norm(found.points.latents, axis=1, keepdims=True), 1e-12)
    similarity = np.empty(len(speakers))
    labels = np.array(speakers)
    for speaker in set(speakers):
        mine = labels == speaker
        centre = latents[mine].mean(axis=0)
        similarity[mine] = latents[mine] @ centre / max(float(np.linalg.norm(centre)), 1e-12)
    ranked = [
        str(name) for name, _ in sorted(zip(*np.unique(labels, return_counts=True), strict=True), key=lambda x: -x[1])
    ]
    shown = ranked[:BARS]
    keep = np.flatnonzero(np.isin(labels, shown))
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(keep))
    columns = {name: [values[at] for at in keep] for name, values in _row_columns(found).items()}
    source = ColumnDataSource(columns | {
        "x": similarity[keep], "y": [(speakers[at], offset) for at, offset in zip(keep, jitter, strict=True)],
        "similarity": similarity[keep],
    })  # fmt: skip
    chart = new_figure("Conditioning latents (click a point)", "cosine with the speaker's mean", "",
                       y_range=FactorRange(factors=shown[::-1]))  # fmt: skip
    chart.height = max(200, 80 + 26 * len(shown))
    _scatter(chart, source, "x", "y", INK, extra=[("cosine", "@similarity{0.0000}")])
    return chart


def codebook_bars(found: Collected) -> figure:
    """The codes that occur most."""
    total = max(1, int(found.code_counts.sum()))
    order = np.argsort(-found.code_counts, kind="stable")[:MOST_USED]
    order = order[found.code_counts[order] > 0]
    shares = 100 * found.code_counts[order] / total
    details = [f"{found.code_counts[code]:,} times" for code in order]
    return bars("Most used codes", [str(code) for code in order], [float(x) for x in shares], "% of all codes", details)


def codebook_curve(found: Collected) -> figure:
    """How much of all codes the most used rows of the codebook make up."""
    ranked = np.sort(found.code_counts)[::-1]
    shares = np.cumsum(ranked) / max(1, ranked.sum())
    at = np.unique(np.linspace(0, len(ranked) - 1, 400).astype(int))
    source = ColumnDataSource({"x": at + 1, "y": shares[at]})
    chart = new_figure("Share of all codes by the most used rows", "rows of the codebook", "share of codes")
    chart.line("x", "y", source=source, line_width=2, color=INK)
    chart.add_tools(HoverTool(tooltips=[("rows", "@x{0,0}"), ("share", "@y{0.0%}")], mode="vline"))
    chart.yaxis.formatter = NumeralTickFormatter(format="0%")
    return chart


def rejected_bars(found: Collected) -> figure:
    """Rejected lines by reason; a click shows some of them."""
    names = list(found.rejected)
    chart = bars("Rejected lines by reason (click a bar)", names, [float(x) for x in found.rejected.values()], "lines",
                 ["" for _ in names])  # fmt: skip
    callback = CustomJS(
        args={}, code="window.hfprep.rejected(cb_data.source.data['name'][cb_data.source.selected.indices[0]])"
    )
    chart.add_tools(TapTool(callback=callback))
    return chart


def timeline_charts(found: Collected) -> list[figure]:
    """Throughput, batch size, padding and out-of-memory events over the time that builds were running."""
    batches, clock, start, previous = [], 0.0, None, None
    for row in found.timeline:
        if row.get("start") or previous is None:
            start = row["time"]
        else:
            clock += max(0.0, row["time"] - previous)
        previous = row["time"]
        if "rows" in row and start is not None:
            batches.append({**row, "clock": clock})
    if not batches:
        return []
    clocks = np.array([row["clock"] for row in batches])
    audio = np.array([float(row.get("audio_seconds", 0.0)) for row in batches])
    edges = np.linspace(0, max(float(clocks[-1]), 1e-6), min(120, max(2, len(batches))) + 1)
    per_bin, _ = np.histogram(clocks, bins=edges, weights=audio)
    rate = per_bin / (edges[1] - edges[0])
    speed = new_figure("Throughput while building", "seconds of building", "times real time")
    speed.quad(top="top", bottom=0, left="left", right="right", color=INK, line_color=None,
               source=ColumnDataSource({"top": rate, "left": edges[:-1], "right": edges[1:]}))  # fmt: skip
    speed.add_tools(HoverTool(tooltips=[("times real time", "@top{0,0.0}"), ("seconds", "@left{0,0} to @right{0,0}")]))
    padding = [1 - row["num_frames"] / row["padded_frames"] if row.get("padded_frames") else 0.0 for row in batches]
    sizes = new_figure("Batches", "seconds of building", "samples a batch")
    shown = _thinned(len(batches))
    source = ColumnDataSource({
        "x": clocks[shown], "y": [batches[at]["rows"] for at in shown], "padding": [padding[at] for at in shown],
        "colour": ["#d55e00" if batches[at].get("out_of_memory_events") else INK for at in shown],
        "oom": [batches[at].get("out_of_memory_events", 0) for at in shown],
    })  # fmt: skip
    sizes.scatter("x", "y", source=source, size=6, color="colour", alpha=0.7)
    sizes.add_tools(HoverTool(tooltips=[
        ("samples", "@y"), ("padding", "@padding{0.0%}"), ("out of memory", "@oom"), ("seconds", "@x{0,0.0}"),
    ]))  # fmt: skip
    percent = 100 * np.array(padding)
    return [speed, sizes, histogram("Padding of a batch, in percent", percent, "% padding", counted="batches")]


def main_directions(centred: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Principal components: places (N, 2) of centred vectors (N, D), and each direction's share of the variance."""
    values, vectors = np.linalg.eigh(centred.T @ centred / max(1, len(centred)))
    if len(values) < 2:
        return np.pad(centred, ((0, 0), (0, 1))), (1.0, 0.0)
    total = max(float(values.sum()), 1e-30)
    return centred @ vectors[:, [-1, -2]], (float(values[-1]) / total, float(values[-2]) / total)


def colours(labels: Sequence[str]) -> list[str]:
    """A colour for each label: eight that anyone can tell apart, and a scale where there are more."""
    names = sorted(set(labels) - {"(none)"}, key=lambda name: -labels.count(name) if len(labels) < 5000 else 0)
    if len(names) <= len(Colorblind8) - 1:
        palette = list(Colorblind8)
    else:
        palette = [Viridis256[math.floor(255 * at / max(1, len(names) - 1))] for at in range(len(names))]
    table = dict(zip(names, palette, strict=False)) | {"(none)": NONE_COLOUR}
    return [table[label] for label in labels]


def _row_columns(found: Collected) -> dict[str, list[Any]]:
    rows = found.points.rows
    names = ("id", "speaker", "language", "seconds")
    return {name: [row[name] for row in rows] for name in names} | {"row": list(range(len(rows)))}


def _scatter(
    chart: figure,
    source: ColumnDataSource,
    x: str,
    y: str,
    colour: str,
    extra: Sequence[tuple[str, str]] = (),
    legend: str | None = None,
) -> None:
    """Points that tell who they are when hovered over, and show their row when clicked."""
    few = legend is not None and len(set(source.data[legend])) <= len(Colorblind8)
    named: dict[str, Any] = {"legend_group": legend} if few else {}
    chart.scatter(x, y, source=source, size=7, color=colour, alpha=0.7, nonselection_alpha=0.4, name="points", **named)
    if few:
        chart.add_layout(chart.legend[0], "right")
    tips = [("id", "@id"), ("speaker", "@speaker"), ("language", "@language"), ("seconds", "@seconds"), *extra]
    chart.add_tools(HoverTool(tooltips=tips), TapTool(callback=SHOW_ROW.clone()))


def _thinned(count: int, most: int = 3000) -> list[int]:
    step = max(1, math.ceil(count / most))
    return list(range(0, count, step))
