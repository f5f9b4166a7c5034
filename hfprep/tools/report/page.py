"""Renders a self-contained HTML page: numbers, charts, tables, the rows behind the points, provenance.

Takes the collected data and returns the page as text. It loads nothing except audio files, which its
Content-Security-Policy enforces.
"""

import html
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.embed import components
from bokeh.plotting import figure
from bokeh.resources import Resources

from hfprep.io.words import count, duration
from hfprep.schema import Schema
from hfprep.store.statistics import perplexity
from hfprep.tools.report import charts
from hfprep.tools.report.collect import MOST_POINTS, Collected
from hfprep.tools.report.outliers import outliers
from hfprep.tools.report.timeline_charts import timeline_charts
from hfprep.tools.shares import NONE_GIVEN, Share

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; media-src file:; connect-src 'none'"
)
WORST_CHARACTERS = 24
REJECTED_SHOWN = 60
Section = tuple[str, str, list[figure], str]  # title, note, charts and other content


def render(found: Collected) -> str:
    """The whole page."""
    sections = list(_sections(found))
    figures = [chart for _, _, drawn, _ in sections for chart in drawn]
    document = Document()
    with document.models.freeze():  # otherwise each root that is added has the earlier ones searched again
        for chart in figures:
            document.add_root(chart)
    script, divs = components(figures)
    parts = iter(divs)
    body = "".join(_section(title, note, [next(parts) for _ in drawn], extra) for title, note, drawn, extra in sections)
    here = Path(__file__).parent
    name = html.escape(found.name)
    data = {"samples": found.points.rows, "rejected": found.rejected_rows}
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name} (hfprep)</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>\n{(here / 'page.css').read_text(encoding='utf-8')}</style>\n"
        f"{Resources(mode='inline', components=['bokeh']).render_js()}\n</head>\n<body>\n"
        f'<header><h1>{name}</h1><button id="theme" type="button">light / dark</button></header>\n'
        f'<p class="note">{html.escape(str(found.root))}, {html.escape(found.schema.recipe)}</p>\n'
        f"{_numbers(found)}\n{body}\n{_provenance(found)}\n"
        '<aside id="row" hidden></aside>\n'
        f'<script type="application/json" id="data">{_json(data)}</script>\n'
        f"<script>\n{(here / 'page.js').read_text(encoding='utf-8')}</script>\n{script}\n</body>\n</html>\n"
    )


def _sections(found: Collected) -> Iterator[Section]:
    lengths, points = found.lengths, len(found.points.rows)
    part = f"{points:,} of {len(lengths):,} samples, chosen at random, with the extremes."
    part = "" if points == len(lengths) else part
    yield "Overview", "", [charts.group_bars(kind, groups) for kind, groups in found.groups.items()], ""
    everything = f"All {len(lengths):,} samples"
    note = f"{everything}; the scatter: {part}" if part else f"{everything}."
    yield "Lengths", f"{note} Click a point for its sample.", _lengths(found), ""
    yield from _outliers(found, part)
    for name, counts in found.code_counts.items():
        together = counts.sum(axis=0)
        yield f"Codebook: {name}", _codebook_note(found, counts), charts.codebook_charts(together, name), ""
    if points > 1 and found.points.vectors:
        yield "Vectors", f"{part} Click a point for its sample.".strip(), _vectors(found), ""
    if found.texts.shown:
        yield _texts(found)
    if found.schema.of_kind("tokens"):
        yield _unknown_tokens(found)
    if found.rejected:
        yield _rejected(found)
    drawn = timeline_charts(found.timeline)
    events = sum(int(row.get("out_of_memory_events", 0)) for row in found.timeline)
    note = count(events, "out-of-memory event") + "." if drawn else "There is no record of the batches."
    yield "Build", note, drawn, ""


def _lengths(found: Collected) -> list[figure]:
    lengths, schema = found.lengths, found.schema
    drawn = [charts.histogram("Duration", lengths.seconds, "seconds")]
    for name, values in lengths.by_name.items():
        title = length_title(schema, name)
        drawn.append(charts.histogram(title, values, title.lower(), schema.limits.get(name)))
    if lengths.pace is not None:
        drawn.append(charts.histogram("Codes per text id", lengths.pace, "codes per text id"))
    scatter = charts.lengths_scatter(found)
    return drawn if scatter is None else [*drawn, scatter]


def length_title(schema: Schema, name: str) -> str:
    """A readable name of what a length counts."""
    titles = {"tokens": "Text ids", "codes": "Codes"}
    kinds = [column.kind for column in schema.columns if name in column.lengths]
    return next((titles[kind] for kind in kinds if kind in titles), name)


def _codebook_note(found: Collected, counts: np.ndarray) -> str:
    counted = "all samples" if found.codes_counted == len(found.lengths) else f"{found.codes_counted:,} samples"
    used = [f"{int((book > 0).sum()):,}" for book in counts]
    spread = [f"{perplexity(book):,.1f}" for book in counts]
    size = counts.shape[1]
    if len(counts) == 1:
        return f"{used[0]} of {size:,} codes are used, perplexity {spread[0]}; in {counted}."
    return (
        f"By codebook, of {size:,} codes each, in {counted}: used {', '.join(used)}; perplexity {', '.join(spread)}. "
        "The charts combine them."
    )


def _vectors(found: Collected) -> list[figure]:
    """Maps by speaker and by language for columns with a vector per sample; similarity by speaker for all columns."""
    drawn = []
    for column in found.schema.of_kind("vector"):
        if column.ndim == 1:
            drawn += [charts.direction_map(found, column.name, by) for by in ("speaker", "language")]
    return drawn + [charts.similarity_strip(found, column.name) for column in found.schema.of_kind("vector")]


def _outliers(found: Collected, part: str) -> Iterator[Section]:
    rows = found.points.rows
    odd = outliers(found)
    if not odd:
        return
    heard = f" Silence and clipping: from {found.audio_looked_at:,} samples." if found.audio_looked_at else ""
    note = f"Samples far from the rest. {part}{heard} Click a line for the sample."
    cells = [(one.what, one.value, rows[one.point]["id"], rows[one.point]["text"]) for one in odd]
    table = _table(("what", "how much", "id", "text"), cells, ("sample", [one.point for one in odd]))
    yield "Listen to these first", note, [], table


def _section(title: str, note: str, divs: list[str], extra: str) -> str:
    drawn = f'<div class="charts">{"".join(f"<div>{div}</div>" for div in divs)}</div>' if divs else ""
    said = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{said}{drawn}{extra}</section>\n"


def _numbers(found: Collected) -> str:
    lengths, stats = found.lengths, found.stats
    rejected = sum(found.rejected.values())
    values = {
        "samples": f"{len(lengths):,}",
        "of audio": duration(float(lengths.seconds.sum(dtype=np.float64))),
        "train": f"{found.groups['split'].get('train', Share()).samples:,}",
        "validation": f"{found.groups['split'].get('validation', Share()).samples:,}",
        "speakers": f"{len(found.groups['speaker'].keys() - {NONE_GIVEN}):,}",
        "languages": f"{len(found.groups['language'].keys() - {NONE_GIVEN}):,}",
        "rejected": f"{rejected:,}",
        "lines read": f"{stats['lines_read']:,}" if "lines_read" in stats else "?",
    }
    return f'<div class="numbers">{"".join(f"<div><b>{v}</b><span>{k}</span></div>" for k, v in values.items())}</div>'


def _texts(found: Collected) -> Section:
    looked_at = count(found.texts.looked_at, "text was checked", "texts were checked")
    parts = [f"{looked_at}; below are examples for each language, normalised and tokenized."]
    for doubtful, number in found.texts.doubtful.most_common():
        parts.append(f"{count(number, 'sample')} {doubtful}.")
    for language, number in found.texts.digits_left.most_common():
        parts.append(f"{count(number, 'sample')} in {language} with digits after normalisation.")
    rows = [(language, *cells) for language, shown in sorted(found.texts.shown.items()) for cells in shown]
    return "Texts", " ".join(parts), [], _table(("language", "id", "text", "normalised", "pieces"), rows)


def _unknown_tokens(found: Collected) -> Section:
    texts = found.texts
    if texts.unknown_tokens is None:
        return "Unknown tokens", "The build's tokenizer was not found, so texts were not checked.", [], ""
    part = "all" if texts.looked_at == len(found.lengths) else f"{texts.looked_at:,} (at most {MOST_POINTS:,})"
    note = f"{count(texts.unknown_tokens, 'unknown token')} in the texts of {part} samples."
    worst = texts.unknown.most_common(WORST_CHARACTERS)
    rows = [(repr(char)[1:-1], f"U+{ord(char):04X}", times) for char, times in worst]
    return "Unknown tokens", note, [], _table(("character", "code point", "times"), rows) if rows else ""


def _rejected(found: Collected) -> Section:
    total, shown = sum(found.rejected.values()), min(REJECTED_SHOWN, len(found.rejected_rows))
    listed = "all are listed" if shown == total else f"{shown} are listed, with examples for each reason,"
    note = f"{count(total, 'line')}; {listed} below. Click a bar or a line for more."
    names = ("line", "id", "reason", "message")
    rows = [[row.get(name) for name in names] for row in found.rejected_rows[:REJECTED_SHOWN]]
    return "Rejected", note, [charts.rejected_bars(found)], _table(names, rows, ("rejected", range(len(rows))))


def _provenance(found: Collected) -> str:
    stats = found.stats
    rows: list[tuple[Any, ...]] = [("format", found.format), ("recipe", found.schema.recipe)]
    for name in ("precision", "tokenizer", "gpt_checkpoint"):
        if name in stats:
            rows.append((name, stats[name]))
    for group in ("settings", "versions", "sha256"):
        rows += [(f"{group}: {name}", value) for name, value in stats.get(group, {}).items() if value is not None]
    return f"<section><h2>Provenance</h2>{_table(('what', 'value'), rows)}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], numbers: tuple[str, Sequence[int]] | None = None) -> str:
    """A table; on narrow screens a list of rows in which each cell shows its column name.

    With `numbers` (a kind of row, and the number of each), a click on a line shows its details.
    """
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = []
    for at, row in enumerate(rows):
        shown = "" if numbers is None else f' data-{numbers[0]}="{numbers[1][at]}"'
        cells = (
            f'<td data-name="{html.escape(name)}">{html.escape("" if cell is None else str(cell))}</td>'
            for name, cell in zip(head, row, strict=True)
        )
        lines.append(f"<tr{shown}>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _json(value: Any) -> str:
    """JSON that is safe inside a script element."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
