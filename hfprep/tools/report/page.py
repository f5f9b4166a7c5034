"""One self-contained HTML page around the charts: numbers, tables, the rows behind the points, provenance.

Takes what was collected, gives the page as text. Everything is inside: no address is ever opened but those of audio
files, and the page's own policy forbids the browser any other.
"""

import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.embed import components
from bokeh.plotting import figure
from bokeh.resources import Resources

from hfprep.store.statistics import perplexity
from hfprep.tools.report import charts
from hfprep.tools.report.collect import MOST_POINTS, Collected

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; media-src file:; connect-src 'none'"
)
TEXT_POSITIONS, CODE_POSITIONS = 600, 1815  # of the published model
WORST_CHARACTERS = 24
REJECTED_SHOWN = 60


def render(found: Collected) -> str:
    """The whole page."""
    sections = list(_sections(found))
    figures = [chart for _, _, drawn, _ in sections for chart in drawn]
    script, divs = components(figures)
    parts = iter(divs)
    body = "".join(_section(title, note, [next(parts) for _ in drawn], extra) for title, note, drawn, extra in sections)
    here = Path(__file__).parent
    name = html.escape(str(found.root))
    data = {"samples": found.points.rows, "rejected": found.rejected_rows}
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>hfprep: {name}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>\n{(here / 'page.css').read_text(encoding='utf-8')}</style>\n"
        f"{Resources(mode='inline', components=['bokeh']).render_js()}\n</head>\n<body>\n"
        f'<header><h1>{name}</h1><button id="theme" type="button">light / dark</button></header>\n'
        f"{_numbers(found)}\n{body}\n{_provenance(found)}\n"
        '<aside id="row" hidden></aside>\n'
        f'<script type="application/json" id="data">{_json(data)}</script>\n'
        f"<script>\n{(here / 'page.js').read_text(encoding='utf-8')}</script>\n{script}\n</body>\n</html>\n"
    )


def _sections(found: Collected) -> Iterable[tuple[str, str, list[figure], str]]:
    """Title, note, charts and more of each part of the page."""
    lengths, points = found.lengths, len(found.points.rows)
    part = (
        "" if points == len(lengths) else f"{points:,} of {len(lengths):,} samples, drawn at random with the extremes."
    )
    yield "What there is", "", [charts.group_bars(kind, groups) for kind, groups in found.groups.items()], ""
    yield (
        "Lengths",
        f"All {len(lengths):,} samples; the scatter: {part}" if part else f"All {len(lengths):,} samples.",
        [
            charts.histogram("Duration", lengths.seconds, "seconds"),
            charts.histogram("Text ids", lengths.text_len, "text ids", TEXT_POSITIONS),
            charts.histogram("Codes", lengths.code_len, "codes", CODE_POSITIONS),
            charts.histogram("Codes per text id", lengths.codes_per_token, "codes per text id"),
            charts.lengths_scatter(found),
        ],
        "",
    )
    used, size = int((found.code_counts > 0).sum()), len(found.code_counts)
    counted = (
        "all samples" if found.codes_counted == len(lengths) else f"{found.codes_counted:,} samples drawn at random"
    )
    note = f"{used:,} of {size:,} codes are used, perplexity {perplexity(found.code_counts):,.1f}; in {counted}."
    yield "Codebook", note, [charts.codebook_bars(found), charts.codebook_curve(found)], ""
    if points > 1:
        drawn = [charts.emotion_map(found, "speaker"), charts.emotion_map(found, "language")]
        yield "Voices and emotions", part, [*drawn, charts.similarity_strip(found)], ""
    if found.texts.shown:
        yield "Texts", _texts_note(found), [], _texts_table(found)
    yield "Unknown tokens", _unknown_note(found), [], _unknown_table(found)
    if found.rejected:
        yield "Rejected", _rejected_note(found), [charts.rejected_bars(found)], _rejected_table(found)
    drawn = charts.timeline_charts(found)
    events = sum(int(row.get("out_of_memory_events", 0)) for row in found.timeline)
    note = f"Out-of-memory events: {events}. Orange: a batch that was split." if drawn else "No record of the batches."
    yield "Building", note, drawn, ""


def _section(title: str, note: str, divs: list[str], extra: str) -> str:
    drawn = f'<div class="charts">{"".join(f"<div>{div}</div>" for div in divs)}</div>' if divs else ""
    said = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{said}{drawn}{extra}</section>\n"


def _numbers(found: Collected) -> str:
    lengths, stats = found.lengths, found.stats
    rejected = sum(found.rejected.values())
    values = {
        "samples": f"{len(lengths):,}",
        "hours": f"{float(lengths.seconds.sum(dtype=np.float64)) / 3600:,.2f}",
        "train": f"{found.groups['split'].get('train', charts.Group()).samples:,}",
        "validation": f"{found.groups['split'].get('validation', charts.Group()).samples:,}",
        "speakers": f"{len(found.groups['speaker'].keys() - {'(none)'}):,}",
        "languages": f"{len(found.groups['language'].keys() - {'(none)'}):,}",
        "rejected": f"{rejected:,}",
        "lines read": f"{stats['lines_read']:,}" if "lines_read" in stats else "?",
    }
    return f'<div class="numbers">{"".join(f"<div><b>{v}</b><span>{k}</span></div>" for k, v in values.items())}</div>'


def _texts_note(found: Collected) -> str:
    parts = [f"{found.texts_looked_at:,} texts were looked at; some of each language, as they are read and tokenized."]
    for doubtful, count in found.texts.doubtful.most_common():
        grammar = {"en": "English", "zh": "Chinese"}[doubtful.language]
        parts.append(f"{count:,} without a language are read as {grammar}, by their script ({doubtful.script}).")
    for language, count in found.texts.digits_left.most_common():
        parts.append(f"{count:,} in {language} have digits left.")
    return " ".join(parts)


def _texts_table(found: Collected) -> str:
    rows = [(language, *cells) for language, shown in sorted(found.texts.shown.items()) for cells in shown]
    return _table(("language", "id", "text", "normalised", "pieces"), rows)


def _unknown_note(found: Collected) -> str:
    if found.unknown_tokens is None:
        return "The tokenizer of the build is not where it was; texts were not looked at."
    part = (
        "all" if found.texts_looked_at == len(found.lengths) else f"{found.texts_looked_at:,} (at most {MOST_POINTS:,})"
    )
    return f"{found.unknown_tokens:,} unknown tokens in the texts of {part} samples."


def _unknown_table(found: Collected) -> str:
    if not found.unknown:
        return ""
    rows = [
        (repr(char)[1:-1], f"U+{ord(char):04X}", count) for char, count in found.unknown.most_common(WORST_CHARACTERS)
    ]
    return _table(("character", "code point", "times"), rows)


def _rejected_note(found: Collected) -> str:
    total, shown = sum(found.rejected.values()), min(REJECTED_SHOWN, len(found.rejected_rows))
    listed = "all of them" if shown == total else f"{shown} of them, some for each reason,"
    return f"{total:,} lines; {listed} below. Click a bar or a line for more."


def _rejected_table(found: Collected) -> str:
    lines = []
    for number, row in enumerate(found.rejected_rows[:REJECTED_SHOWN]):
        cells = "".join(
            f"<td>{html.escape(str('' if row.get(name) is None else row[name]))}</td>"
            for name in ("line", "id", "reason", "message")
        )
        lines.append(f'<tr data-rejected="{number}">{cells}</tr>')
    head = "".join(f"<th>{name}</th>" for name in ("line", "id", "reason", "message"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _provenance(found: Collected) -> str:
    stats = found.stats
    rows: list[tuple[Any, ...]] = [("format", found.format)]
    for name in ("precision", "tokenizer", "gpt_checkpoint"):
        if name in stats:
            rows.append((name, stats[name]))
    for group in ("settings", "versions", "sha256"):
        rows += [(f"{group}: {name}", value) for name, value in stats.get(group, {}).items()]
    return f"<section><h2>Provenance</h2>{_table(('what', 'value'), rows)}</section>"


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"


def _json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
