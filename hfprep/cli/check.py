"""`python -m hfprep check`: what a build would reject in a manifest, before GPU time is spent."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from hfprep.cli.options import options_of
from hfprep.cli.output import PlainTable, cell, say
from hfprep.cli.output import show as show_table
from hfprep.io.words import count, duration, size
from hfprep.tools.check.options import CheckOptions

if TYPE_CHECKING:
    from hfprep.schema import Schema
    from hfprep.tools.check.estimates import Estimate
    from hfprep.tools.check.findings import Preflight
    from hfprep.tools.shares import Share

WORST_CHARACTERS = 12
WORST_PACES = 5
MOST_ROWS = 15
TEXT_WIDTH = 60


@options_of(CheckOptions, arguments={"manifest": "MANIFEST"}, with_context=False)
def check(**values: Any) -> None:
    """Check every line, text and audio header; exit status 1 if a build would reject any."""
    from hfprep.tools.check.scan import check as run

    options = CheckOptions(**values)
    with _progress() as advance:
        result = run(options, advance)
    show(result.findings, result.expected, decoded=options.decode)
    if result.problem is not None:
        say(f"There is no time estimate, because a build would not start: {result.problem}")
    if options.fix is not None:
        say(f"{options.fix}: {count(result.findings.accepted, 'line')} that a build would accept")
    raise typer.Exit(1 if result.findings.rejected else 0)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Show the number of lines checked so far, in a terminal only."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from hfprep.pipeline.console import console

    columns = (SpinnerColumn(), TextColumn("{task.completed:,} lines checked"), TimeElapsedColumn())
    hidden = not console().is_terminal
    with Progress(*columns, console=console(), transient=True, disable=hidden) as live:
        task = live.add_task("check", total=None)
        yield lambda done: live.update(task, completed=done)


def show(found: "Preflight", expected: "Estimate | None", *, decoded: bool) -> None:
    """Print the findings: counts, then rejected and suspicious rows with examples."""
    show_table(_overview(found, expected))
    if found.accepted:
        show_table(_shares("language", found.languages))
        show_table(_shares("speaker", found.speakers))
    if found.texts:
        show_table(_texts(found))
    if found.rejected:
        show_table(_rejections(found))
    for line in _oddities(found, decoded=decoded):
        say(line)


def _table(title: str, *columns: str) -> PlainTable:
    return PlainTable(title, *columns, numbers={"lines", "samples", "audio", "number"}, title_style="bold")


def _overview(found: "Preflight", expected: "Estimate | None") -> PlainTable:
    table = _table("Manifest", "what", "number", "details")
    table.add_row("lines", f"{found.lines_read:,}", f"{found.capped:,} beyond --max-samples" if found.capped else "")
    table.add_row("to accept", f"{found.accepted:,}", f"{duration(found.seconds.total)} of audio")
    table.add_row("to reject", f"{found.rejected.total():,}", "")
    if not found.accepted:
        return table
    seconds = found.seconds
    table.add_row("seconds", f"{seconds.mean:.1f}", f"mean; from {seconds.least:.2f} to {seconds.most:.2f}")
    for name, lengths in found.lengths.items():
        what = f"mean; from {lengths.least:.0f} to {lengths.most:.0f}"
        limit = found.schema.limits.get(name)
        table.add_row(_plural(found.schema, name), f"{lengths.mean:.0f}", f"{what}; limit {limit}" if limit else what)
    if found.num_tokens:
        share = f"{found.unknown_rate:.3%} of all tokens, in {count(found.unknown_rows, 'sample')}"
        table.add_row("unknown", f"{found.unknown_tokens:,}", share)
    for name, counts in (("rates, Hz", found.sampling_rates), ("channels", found.channels), ("formats", found.formats)):
        details = ", ".join(f"{value}: {number:,}" for value, number in counts.most_common(8))
        table.add_row(name, str(len(counts)), details)
    table.add_row("disk", size(found.disk_bytes), "for the features")
    if expected is not None:
        _add_time(table, expected)
    return table


def _add_time(table: PlainTable, expected: "Estimate") -> None:
    measured = f"{count(expected.timed, 'clip')} computed on {expected.device} in {expected.precision}"
    parts = f"{measured}; {duration(expected.starting_seconds)} of it for starting"
    table.add_row("time", f"about {duration(expected.seconds)}", parts)
    if expected.busy:
        load = f"load per core: {expected.load:.1f}"
        table.add_row("", "", f"other programs use this machine ({load}), so it takes longer now")


def _plural(schema: "Schema", length: str) -> str:
    """A readable name of what a length counts."""
    kinds = {"tokens": "text ids", "codes": "codes"}
    found = [kinds.get(column.kind) for column in schema.columns if length in column.lengths]
    return next((words for words in found if words is not None), length)


def _shares(what: str, shares: "dict[str, Share]") -> PlainTable:
    table = _table(f"By {what}", what, "samples", "audio")
    ranked = sorted(shares.items(), key=lambda item: -item[1].seconds)
    for name, share in ranked[:MOST_ROWS]:
        table.add_row(name, f"{share.samples:,}", duration(share.seconds))
    if len(ranked) > MOST_ROWS:
        rest = [share for _, share in ranked[MOST_ROWS:]]
        seconds = sum(share.seconds for share in rest)
        table.add_row(f"{len(rest):,} more", f"{sum(share.samples for share in rest):,}", duration(seconds))
    return table


def _texts(found: "Preflight") -> PlainTable:
    table = _table("Texts, normalised and tokenized", "language", "text", "normalised", "pieces")
    ranked = sorted(found.texts.items(), key=lambda item: -found.languages[item[0]].samples)
    for language, examples in ranked[:MOST_ROWS]:
        for example in examples:
            cells = (example.text, example.normalized, " ".join(example.pieces))
            table.add_row(language, *(text[:TEXT_WIDTH] + ("…" if len(text) > TEXT_WIDTH else "") for text in cells))
    return table


def _text_rules(found: "Preflight") -> list[str]:
    """Results of text normalisation that are rarely intended."""
    lines = []
    for doubtful, number in found.doubtful.most_common():
        line = f"{count(number, 'sample')} {doubtful}"
        if example := found.doubtful_examples.get(doubtful):
            line += f", such as {example.id}: {example.text[:TEXT_WIDTH]!r} -> {example.normalized[:TEXT_WIDTH]!r}"
        lines.append(line)
    if found.doubtful:
        advice = "set `language` in the manifest, or --language, to change it"
        lines.append(f"  The published front end does the same; {advice}.")
    for language, number in found.digits_left.most_common():
        left = f"in {language} with digits left after normalisation, such as {found.digit_examples[language]}"
        lines.append(f"{count(number, 'sample')} {left}")
    return lines


def _rejections(found: "Preflight") -> PlainTable:
    table = _table("A build would reject", "reason", "lines", "for example")
    for reason, number in found.rejected.most_common():
        examples = [f"line {item.line} ({item.id or 'no id'}): {item.message}" for item in found.rejections[reason]]
        table.add_row(reason.value, f"{number:,}", cell(*examples))
    return table


def _oddities(found: "Preflight", *, decoded: bool) -> list[str]:
    """Warnings about rows that a build accepts but that may be wrong."""
    lines = []
    for name, over in found.overlong.items():
        named = ", ".join(f"{sample_id} ({length})" for sample_id, length in over.examples)
        what = f"has more {_plural(found.schema, name)} than the model's {found.schema.limits[name]} positions"
        what = what if over.count == 1 else what.replace("has", "have", 1)
        lines.append(f"{count(over.count, 'sample')} {what}: {named} (--drop-overlong)")
    lines += _costs(found)
    if number := found.wrong_durations.count:
        examples = found.wrong_durations.examples
        named = ", ".join(f"{name} ({said:.2f} s, audio: {has:.2f} s)" for name, said, has in examples)
        differ = "duration differs from the audio" if number == 1 else "durations differ from the audio"
        lines.append(f"{number:,} {differ}: {named}")
    if found.flat.count:
        flat = count(found.flat.count, "sample is silent or constant", "samples are silent or constant")
        lines.append(f"{flat}: {', '.join(found.flat.examples)}")
    lines += _paces(found)
    if found.unknown_characters:
        lines.append("Unknown to the tokenizer, by character:")
        for character, number in found.unknown_characters.most_common(WORST_CHARACTERS):
            sample_id, text = found.unknown_examples[character]
            lines.append(f"  {character!r} U+{ord(character):04X} x {number}, as in {sample_id}: {text[:TEXT_WIDTH]}")
    lines += _text_rules(found)
    if found.accepted and not found.num_tokens:
        lines.append("Texts were not checked: give --tokenizer or --models to check them.")
    if not decoded:
        lines.append("Only audio headers were read; --decode also finds truncated and damaged files, and NaN.")
    return lines


def _costs(found: "Preflight") -> list[str]:
    """Languages whose texts need many ids: how many characters fit, and how many samples are too long."""
    limit = next((found.schema.limits[name] for name in found.text_lengths if name in found.schema.limits), None)
    if limit is None:
        return []
    lines = []
    for language, cost in found.dense.items():
        rate = f"{cost.rate:.1f} text ids per character"
        lines.append(f"{language}: {rate}, room for {limit / cost.rate:.0f} characters;")
        lines.append(f"  {count(cost.overlong, 'sample')} beyond the model's {limit} positions")
    return lines


def _paces(found: "Preflight") -> list[str]:
    """Samples whose text is far too long or too short for their audio."""
    outliers = found.pace.outliers()
    if not outliers:
        return []
    lines = ["Unlikely pace (wrong text, or long silence):"]
    for sample_id, language, pace, usual in outliers[:WORST_PACES]:
        lines.append(f"  {sample_id}: {pace:.1f} characters per second; usual for {language} is {usual:.0f}")
    if len(outliers) > WORST_PACES:
        lines.append(f"  and {len(outliers) - WORST_PACES} more")
    return lines
