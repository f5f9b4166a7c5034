"""`python -m hfprep check`: what a build would make of a manifest, before any GPU hour is spent."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hfprep.cli.output import PlainTable, cell, say
from hfprep.cli.output import show as show_table

if TYPE_CHECKING:
    from rich.table import Table

    from hfprep.tools.check.estimates import Estimate
    from hfprep.tools.check.findings import Preflight, Share

GIB = 1 << 30
WORST_CHARACTERS = 12
MOST_ROWS = 15
TEXT_WIDTH = 60


def check(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Manifest, of any form that build takes.")],
    tokenizer: Annotated[Path | None, typer.Option(help="SentencePiece model; without it texts are skipped.")] = None,
    models: Annotated[Path | None, typer.Option(help="Folder with all model files: tokenizer and limits.")] = None,
    config: Annotated[Path | None, typer.Option(help="config.yaml: the model's limits.")] = None,
    language: Annotated[str | None, typer.Option(help="Language of all rows, as for build.")] = None,
    map_: Annotated[str | None, typer.Option("--map", help="Names of fields, as for build.")] = None,
    audio_root: Annotated[Path | None, typer.Option(help="As for build.")] = None,
    audio_sr: Annotated[int, typer.Option(help="As for build.")] = 16000,
    max_samples: Annotated[int | None, typer.Option(min=1, help="As for build.")] = None,
    drop_overlong: Annotated[bool, typer.Option("--drop-overlong", help="As for build.")] = False,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode all audio too: finds cut-off and damaged files.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one a CPU core.")] = 0,
    device: Annotated[str, typer.Option(help="Whose time to expect: auto, cpu, cuda or cuda:N.")] = "auto",
    fix: Annotated[Path | None, typer.Option(help="Write the lines that a build would take to this manifest.")] = None,
) -> None:
    """Look at every line, text and audio header; exit status 1 when a build would reject anything."""
    from hfprep.tools.check.scan import CheckOptions
    from hfprep.tools.check.scan import check as run

    options = CheckOptions(
        manifest=manifest,
        tokenizer=tokenizer,
        models=models,
        config=config,
        language=language,
        map=map_,
        audio_root=audio_root,
        audio_sr=audio_sr,
        max_samples=max_samples,
        drop_overlong=drop_overlong,
        decode=decode,
        workers=workers,
        device=device,
        fix=fix,
    )
    with _progress() as advance:
        result = run(options, advance)
    show(result.findings, result.expected, decoded=decode, with_text=options.tokenizer_path is not None)
    if fix is not None:
        say(f"{fix}: {result.findings.accepted} lines that a build would take")
    raise typer.Exit(1 if result.findings.rejected else 0)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Show the number of lines looked at while inside, in a terminal only."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed} lines"), TimeElapsedColumn())
    hidden = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as live:
        task = live.add_task("check", total=None)
        yield lambda done: live.update(task, completed=done)


def show(found: "Preflight", expected: "Estimate | None", *, decoded: bool, with_text: bool) -> None:
    """Print the findings: the counts, then what is wrong or odd, with examples."""
    show_table(_overview(found, expected))
    if found.accepted:
        show_table(_shares("language", found.languages))
        show_table(_shares("speaker", found.speakers))
    if found.texts:
        show_table(_texts(found))
    if found.rejected:
        show_table(_rejections(found))
    for line in _oddities(found, with_text=with_text, decoded=decoded):
        say(line)


def _table(title: str, *columns: str) -> "Table":
    table = PlainTable(title, title_style="bold")
    for column in columns:
        table.add_column(
            column, justify="right" if column in {"lines", "samples", "hours"} else "left", overflow="fold"
        )
    return table


def _overview(found: "Preflight", expected: "Estimate | None") -> "Table":
    table = _table("Manifest", "what", "count", "details")
    table.add_row("lines", str(found.lines_read), f"{found.capped} beyond --max-samples" if found.capped else "")
    table.add_row("to accept", str(found.accepted), f"{found.hours:.2f} h of audio")
    table.add_row("to reject", str(found.rejected.total()), "")
    if not found.accepted:
        return table
    seconds, tokens, frames = found.seconds, found.tokens, found.frames
    table.add_row("seconds", f"{seconds.mean:.1f}", f"mean; from {seconds.least:.2f} to {seconds.most:.2f}")
    if tokens.most:
        table.add_row("text ids", f"{tokens.mean:.0f}", f"mean; from {tokens.least:.0f} to {tokens.most:.0f}")
        share = f"{found.unknown_rate:.3%} of all tokens, in {found.unknown_rows} samples"
        table.add_row("unknown", str(found.unknown_tokens), share)
    table.add_row("codes", f"{frames.mean:.0f}", f"mean; from {frames.least:.0f} to {frames.most:.0f}")
    for name, counts in (("rates", found.sampling_rates), ("channels", found.channels), ("formats", found.formats)):
        details = ", ".join(f"{value}: {count}" for value, count in counts.most_common(8))
        table.add_row(name, str(len(counts)), details)
    table.add_row("disk", f"{found.disk_bytes / GIB:.2f} GiB", "for the features")
    if expected is not None:
        busy = f"models on {expected.device} {_time(expected.compute_seconds)}"
        reading = f"reading in {expected.workers} threads {_time(expected.reading_seconds)}"
        table.add_row("time", _time(expected.seconds), f"{busy}, {reading}; both at once")
        measured = f"one encoder layer over {expected.timed_frames} frames, {expected.timed_files} files read"
        table.add_row("", "", f"measured here: {measured}; starting and writing not counted")
    return table


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _shares(what: str, shares: "dict[str, Share]") -> "Table":
    table = _table(f"By {what}", what, "samples", "hours")
    ranked = sorted(shares.items(), key=lambda item: -item[1].seconds)
    for name, share in ranked[:MOST_ROWS]:
        table.add_row(name, str(share.samples), f"{share.seconds / 3600:.2f}")
    if len(ranked) > MOST_ROWS:
        rest = [share for _, share in ranked[MOST_ROWS:]]
        hours = sum(share.seconds for share in rest) / 3600
        table.add_row(f"{len(rest)} more", str(sum(share.samples for share in rest)), f"{hours:.2f}")
    return table


def _texts(found: "Preflight") -> "Table":
    table = _table("Texts, as they are read and tokenized", "language", "text", "normalised", "pieces")
    for language, examples in sorted(found.texts.items(), key=lambda item: -found.languages[item[0]].samples)[
        :MOST_ROWS
    ]:
        for example in examples:
            cells = (example.text, example.normalized, " ".join(example.pieces))
            table.add_row(language, *(text[:TEXT_WIDTH] + ("…" if len(text) > TEXT_WIDTH else "") for text in cells))
    return table


def _text_rules(found: "Preflight") -> list[str]:
    """What the text rules do that hardly anybody wants."""
    lines = []
    for doubtful, count in found.doubtful.most_common():
        grammar = {"en": "English", "zh": "Chinese"}[doubtful.language]
        example = found.doubtful_examples.get(doubtful)
        shown = (
            f", such as {example.id}: {example.text[:TEXT_WIDTH]!r} -> {example.normalized[:TEXT_WIDTH]!r}"
            if example
            else ""
        )
        lines.append(
            f"{count} samples without a language are read as {grammar}, by their script ({doubtful.script}){shown}"
        )
    if found.doubtful:
        lines.append(
            "  The published front end does the same; a `language` in the manifest, or --language, gives others."
        )
    for language, count in found.digits_left.most_common():
        example_id = found.digit_examples[language]
        lines.append(f"{count} samples in {language} have digits left after normalisation, such as {example_id}")
    return lines


def _rejections(found: "Preflight") -> "Table":
    table = _table("A build would reject", "reason", "lines", "for example")
    for reason, count in found.rejected.most_common():
        examples = [f"line {item.line} ({item.id or 'no id'}): {item.message}" for item in found.rejections[reason]]
        table.add_row(reason.value, str(count), cell(*examples))
    return table


def _oddities(found: "Preflight", *, with_text: bool, decoded: bool) -> list[str]:
    """What a build takes, but a person should know."""
    lines = []
    for what, count, examples, limit in (
        ("text", found.over_text_count, found.over_text, found.positions.max_text_tokens),
        ("code", found.over_codes_count, found.over_codes, found.positions.max_codes),
    ):
        if count:
            named = ", ".join(f"{sample_id} ({length})" for sample_id, length in examples)
            lines.append(f"{count} samples are over the model's {limit} {what} positions: {named} (--drop-overlong)")
    if found.wrong_duration_count:
        named = ", ".join(f"{name} says {said:.2f} s, has {has:.2f} s" for name, said, has in found.wrong_durations)
        lines.append(f"{found.wrong_duration_count} durations are not those of the audio: {named}")
    if found.unknown_characters:
        lines.append("Unknown to the tokenizer, by character:")
        for character, count in found.unknown_characters.most_common(WORST_CHARACTERS):
            sample_id, text = found.unknown_examples[character]
            lines.append(f"  {character!r} U+{ord(character):04X} x {count}, as in {sample_id}: {text[:TEXT_WIDTH]}")
    lines += _text_rules(found)
    if not with_text:
        lines.append("Texts were not looked at: give --tokenizer or --models for that.")
    if not decoded:
        lines.append(
            "Audio headers were read; --decode finds what only decoding shows (cut-off or damaged files, NaN)."
        )
    return lines
