"""The charts of a report, as Bokeh figures.

The page sets the colours of text, axes and background, for light and dark mode. Every colour here has a contrast of at
least 3 with both backgrounds. Any two differ by at least 19 in CIELAB, also for readers with one type of cone missing;
the first ones, which are used most, differ more. Markers differ as well.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    CustomJS,
    DataRange1d,
    FactorRange,
    HoverTool,
    NumeralTickFormatter,
    TapTool,
)
from bokeh.models.annotations import Legend, LegendItem
from bokeh.plotting import figure

from hfprep.io.words import duration
from hfprep.tools.report.collect import Collected, first_of
from hfprep.tools.shares import NONE_GIVEN, Share

INK = "#2d86c9"
BEYOND = "#c2620a"  # for limits, overflow, split batches
OTHERS = "#84878c"
PALETTE = (INK, "#84780c", "#9018fc", "#e46c90", "#547848", "#846cfc", "#cc0090")
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star")
THE_REST = "others"
BARS = 20
BINS = 60
MOST_USED = 15
HEIGHT = 260
USUAL = 0.995  # quantile of the values up to which they count as usual
FAR = 1.5  # ratio to the usual values from which a length is beyond the axes
FLATTENING = 5.0  # the same for points of a map
SHOW_ROW = CustomJS(
    args={}, code="window.hfprep.show('samples', cb_data.source.data['row'][cb_data.source.selected.indices[0]])"
)


def new_figure(title: str, x: str, y: str, **options: Any) -> figure:
    """An empty chart with labelled axes."""
    chart = figure(
        title=title, height=HEIGHT, sizing_mode="stretch_width", tools="pan,wheel_zoom,box_zoom,reset,save",
        active_scroll=None, x_axis_label=x, y_axis_label=y, output_backend="canvas", **options,
    )  # fmt: skip
    chart.toolbar.logo = None
    chart.toolbar.autohide = True
    return chart


def whole_numbers(axis: Any) -> None:
    """Restrict the ticks of an axis to integers."""
    axis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)


def bars(title: str, names: Sequence[str], values: Sequence[float], unit: str, details: Sequence[str]) -> figure:
    """Horizontal bars in the given order, each with a line of details."""
    names = [name[:40] for name in names]
    unique = [name if names.index(name) == at else f"{name} ({at})" for at, name in enumerate(names)]
    source = ColumnDataSource({"name": unique, "value": list(values), "details": list(details)})
    chart = new_figure(title, unit, "", y_range=FactorRange(factors=unique[::-1]), x_range=DataRange1d(start=0))
    chart.height = max(HEIGHT // 2, 60 + 24 * len(unique))
    chart.hbar(y="name", right="value", height=0.75, source=source, color=INK)
    chart.add_tools(HoverTool(tooltips=[("", "@name"), (unit, "@value{0,0.[00]}"), ("", "@details")]))
    chart.ygrid.visible = False
    return chart


def group_bars(kind: str, groups: dict[str, Share]) -> figure:
    """Audio by language, speaker or split, the largest first; the rest in a single bar."""
    ranked = sorted(groups.items(), key=lambda item: -item[1].seconds)
    shown, rest = ranked[:BARS], ranked[BARS:]
    if rest:
        others = Share(sum(group.samples for _, group in rest), sum(group.seconds for _, group in rest))
        shown.append((f"{len(rest)} more", others))
    unit, length = unit_of(max(group.seconds for _, group in shown))
    details = [f"{duration(group.seconds)}, {group.samples:,} samples" for _, group in shown]
    chart = bars(f"Audio by {kind}", [name for name, _ in shown], [group.seconds / length for _, group in shown],
                 unit, details)  # fmt: skip
    chart.xaxis.formatter = NumeralTickFormatter(format="0,0.[00]")
    return chart


def unit_of(seconds: float) -> tuple[str, float]:
    """A suitable unit for a duration, and its length in seconds, with the same bounds as `duration`."""
    if seconds < 90:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 5400 else ("hours", 3600.0)


def axis_end(values: np.ndarray, far: float = FAR) -> float:
    """The end of an axis: the largest value, without a few that are far beyond the rest."""
    usual = float(np.quantile(values, USUAL, method="lower"))
    return float(values[values <= far * usual].max()) if usual > 0 else float(values.max())


def usual_range(values: np.ndarray) -> tuple[float, float]:
    """The ends of an axis of all values, without a few that would squeeze the rest."""
    away = np.abs(values - np.median(values))
    kept = values[away <= axis_end(away, FLATTENING)]
    low, high = float(kept.min()), float(kept.max())
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def beyond_axes(x: np.ndarray, y: np.ndarray, ends: Sequence[tuple[float, float]]) -> str:
    """For a chart's title: the number of points outside its axes; "" if there are none."""
    within = [(values >= low) & (values <= high) for values, (low, high) in zip((x, y), ends, strict=True)]
    beyond = int((~(within[0] & within[1])).sum())
    return f" ({beyond:,} beyond the axes)" if beyond else ""


def histogram(
    title: str, values: np.ndarray, unit: str, limit: int | None = None, *, counted: str = "samples"
) -> figure:
    """A histogram of lengths; `limit` is the model's number of positions, `counted` the unit of the counts.

    Values far beyond the rest are counted in a separate bar at the end.
    """
    end = axis_end(values)
    beyond = int((values > end).sum())
    bins = min(BINS, max(8, len(values)))
    counts, edges = np.histogram(values[values <= end], bins=bins, range=(0, end or 1.0))
    source = ColumnDataSource({"top": counts, "left": edges[:-1], "right": edges[1:]})
    told = f"{title} (mean {values.mean():.1f}{'' if limit is None else f', limit {limit:,}'})"
    chart = new_figure(told, unit, counted, y_range=DataRange1d(start=0))
    whole_numbers(chart.yaxis[0])
    tips = [(unit, "@left{0,0.[00]} to @right{0,0.[00]}"), (counted, "@top{0,0}")]
    drawn = chart.quad(top="top", bottom=0, left="left", right="right", source=source, color=INK, line_color=None)
    chart.add_tools(HoverTool(tooltips=tips, renderers=[drawn]))
    legend: list[LegendItem] = []
    if beyond:
        width = edges[-1] * 0.03
        left, right = edges[-1] + width / 2, edges[-1] + 1.5 * width
        extra: Any = chart.quad(top=[beyond], bottom=0, left=[left], right=[right], color=BEYOND, line_color=None)
        said = f"{end:,.4g} to {float(values.max()):,.4g}"
        chart.add_tools(HoverTool(tooltips=[(unit, said), (counted, "@top{0,0}")], renderers=[extra]))
        legend.append(LegendItem(label=f"{beyond:,} beyond, up to {float(values.max()):,.4g}", renderers=[extra]))
    if limit is not None and limit < end * FAR:
        line: Any = chart.vspan(x=[limit], line_color=BEYOND, line_dash="dashed", line_width=2)
        legend.append(LegendItem(label=f"limit {limit:,}", renderers=[line]))
    add_legend(chart, legend)
    return chart


def add_legend(chart: figure, items: Sequence[LegendItem]) -> None:
    """Add a legend above a chart, if there are any items."""
    if items:
        legend = Legend(items=list(items), orientation="horizontal", margin=2, label_text_font_size="11px")
        legend.ncols = 4
        chart.add_layout(legend, "above")


def lengths_scatter(found: Collected) -> figure | None:
    """Codes over text ids, one point per sample; outliers are wrong texts or long silences. None without both."""
    tokens, codes = first_of(found.schema, "tokens"), first_of(found.schema, "codes")
    if tokens is None or codes is None:
        return None
    rows = found.points.rows
    x, y = (np.array([row[column.lengths[-1]] for row in rows]) for column in (tokens, codes))
    source = ColumnDataSource(_row_columns(found) | {"x": x, "y": y})
    ends = [(0.0, axis_end(values) * 1.05) for values in (x, y)]
    title = f"Codes against text ids{beyond_axes(x, y, ends)}"
    chart = new_figure(title, "text ids", "codes", x_range=ends[0], y_range=ends[1])
    chart.height = 380
    _scatter(chart, source)
    return chart


def direction_map(found: Collected, column: str, by: str) -> figure:
    """The first two principal components of a vector column, coloured by speaker or language."""
    vectors = found.points.vectors[column]
    places, shares = main_directions(vectors - vectors.mean(axis=0))
    labels = labels_shown([row[by] for row in found.points.rows])
    axes = [
        f"{name} direction, {share:.0%} of the variance"
        for name, share in zip(("first", "second"), shares, strict=True)
    ]
    ends = [usual_range(places[:, 0]), usual_range(places[:, 1])]
    title = f"{column} by {by}{beyond_axes(places[:, 0], places[:, 1], ends)}"
    chart = new_figure(title, *axes, x_range=ends[0], y_range=ends[1])
    chart.height = 420
    columns, items = _row_columns(found), []
    for label, (colour, marker) in looks(labels).items():
        keep = [at for at, other in enumerate(labels) if other == label]
        source = ColumnDataSource(
            {name: [values[at] for at in keep] for name, values in columns.items()}
            | {"x": places[keep, 0], "y": places[keep, 1]}
        )
        items.append(LegendItem(label=label[:24], renderers=[_scatter(chart, source, colour, marker)]))
    add_legend(chart, items)
    return chart


def labels_shown(labels: Sequence[str]) -> list[str]:
    """The legend's label for each label: itself if it is among the most frequent, or "others"."""
    frequent = [name for name, _ in Counter(labels).most_common() if name != NONE_GIVEN]
    kept = {*frequent[: len(PALETTE)], NONE_GIVEN}
    return [label if label in kept else THE_REST for label in labels]


def looks(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each label in the legend, the most frequent first, then "others" and "(none)"."""
    frequent = [name for name, _ in Counter(labels).most_common() if name not in {NONE_GIVEN, THE_REST}]
    found = dict(zip(frequent, zip(PALETTE, MARKERS, strict=True), strict=False))
    for name, marker in ((THE_REST, "x"), (NONE_GIVEN, "cross")):
        if name in labels:
            found[name] = (OTHERS, marker)
    return found


def similarity_strip(found: Collected, column: str) -> figure:
    """The similarity of each sample's vector to its speaker's mean; low values may be another voice or noise."""
    speakers = [row["speaker"] for row in found.points.rows]
    vectors = found.points.vectors[column]
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similarity = np.empty(len(speakers))
    labels = np.array(speakers)
    for speaker in set(speakers):
        mine = labels == speaker
        centre = vectors[mine].mean(axis=0)
        similarity[mine] = vectors[mine] @ centre / max(float(np.linalg.norm(centre)), 1e-12)
    ranked = [name for name, _ in Counter(speakers).most_common() if name != NONE_GIVEN] or [NONE_GIVEN]
    shown = ranked[:BARS]
    keep = np.flatnonzero(np.isin(labels, shown))
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(keep))
    columns = {name: [values[at] for at in keep] for name, values in _row_columns(found).items()}
    source = ColumnDataSource(columns | {
        "x": similarity[keep], "y": [(speakers[at], offset) for at, offset in zip(keep, jitter, strict=True)],
        "similarity": similarity[keep],
    })  # fmt: skip
    chart = new_figure(f"{column} of each speaker", "cosine with the speaker's mean", "",
                       y_range=FactorRange(factors=shown[::-1]))  # fmt: skip
    chart.height = max(200, 80 + 26 * len(shown))
    _scatter(chart, source, extra=[("cosine", "@similarity{0.0000}")])
    return chart


def codebook_charts(counts: np.ndarray, name: str) -> list[figure]:
    """The most frequent codes, and the cumulative share of the most used ones; counts: int64 (size,)."""
    total = max(1, int(counts.sum()))
    order = np.argsort(-counts, kind="stable")[:MOST_USED]
    order = order[counts[order] > 0]
    shares = [float(share) for share in 100 * counts[order] / total]
    details = [f"{counts[code]:,} times" for code in order]
    used = bars(f"Most used {name}", [str(code) for code in order], shares, "% of all", details)
    cumulative = np.cumsum(np.sort(counts)[::-1]) / total
    at = np.unique(np.linspace(0, len(counts) - 1, 400).astype(int))
    source = ColumnDataSource({"x": at + 1, "y": cumulative[at]})
    chart = new_figure(f"Share of the most used {name}", f"number of {name}, most used first", "share of all")
    chart.height = used.height
    chart.line("x", "y", source=source, line_width=2, color=INK)
    chart.add_tools(HoverTool(tooltips=[(name, "@x{0,0}"), ("share", "@y{0.0%}")], mode="vline"))
    chart.yaxis.formatter = NumeralTickFormatter(format="0%")
    return [used, chart]


def rejected_bars(found: Collected) -> figure:
    """Rejected lines by reason; a click shows examples."""
    names = list(found.rejected)
    chart = bars("Rejected lines by reason", names, [float(x) for x in found.rejected.values()], "lines",
                 ["" for _ in names])  # fmt: skip
    whole_numbers(chart.xaxis[0])
    callback = CustomJS(
        args={}, code="window.hfprep.rejected(cb_data.source.data['name'][cb_data.source.selected.indices[0]])"
    )
    chart.add_tools(TapTool(callback=callback))
    return chart


def main_directions(centred: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """The first two principal components (N, 2) of centred vectors (N, D), and their shares of the variance."""
    values, vectors = np.linalg.eigh(centred.T @ centred / max(1, len(centred)))
    if len(values) < 2:
        return np.pad(centred, ((0, 0), (0, 1))), (1.0, 0.0)
    total = max(float(values.sum()), 1e-30)
    return centred @ vectors[:, [-1, -2]], (float(values[-1]) / total, float(values[-2]) / total)


def _row_columns(found: Collected) -> dict[str, list[Any]]:
    rows = found.points.rows
    names = ("id", "speaker", "language", "seconds")
    return {name: [row[name] for row in rows] for name in names} | {"row": list(range(len(rows)))}


def _scatter(
    chart: figure,
    source: ColumnDataSource,
    colour: str = INK,
    marker: str = "circle",
    extra: Sequence[tuple[str, str]] = (),
) -> Any:
    """Points with a tooltip, which show their row when clicked."""
    drawn = chart.scatter("x", "y", source=source, size=8, color=colour, marker=marker, alpha=0.85,
                          nonselection_alpha=0.5, name="points")  # fmt: skip
    tips = [("id", "@id"), ("speaker", "@speaker"), ("language", "@language"), ("seconds", "@seconds"), *extra]
    tap = TapTool(callback=SHOW_ROW.clone(), renderers=[drawn])
    chart.add_tools(HoverTool(tooltips=tips, renderers=[drawn]), tap)
    return drawn
