"""`python -m hfprep tokenizer` and `extend-checkpoint`: a tokenizer and a checkpoint for another language."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hfprep.cli.output import PlainTable, say, show

if TYPE_CHECKING:
    from hfprep.tools.tokenizer.compare import Comparison, TextCounts
    from hfprep.tools.tokenizer.extend import Extended

SHOWN = 10
WORST_CHARACTERS = 8

tokenizer = typer.Typer(no_args_is_help=True, help="Compare tokenizers on a manifest's texts, or extend one.")

Manifests = Annotated[list[Path], typer.Option(help="Manifest in any form that build accepts; may be repeated.")]
Language = Annotated[str | None, typer.Option(help="Language of all rows, as for build.")]
Map = Annotated[str | None, typer.Option("--map", help="Names of fields, as for build.")]


@tokenizer.command("extend")
def extend(
    base: Annotated[Path, typer.Option(help="The SentencePiece model to extend (bpe.model).")],
    manifest: Manifests,
    output: Annotated[Path, typer.Option(help="File for the extended model.")],
    language: Language = None,
    map_: Map = None,
    new_pieces: Annotated[int, typer.Option(help="Maximum pieces to add, including characters.")] = 4000,
    character_coverage: Annotated[
        float, typer.Option(help="Fraction of the texts' characters that get an id; the rarest do not.")
    ] = 1.0,
    unchanged: Annotated[
        list[Path] | None,
        typer.Option(help="Manifest whose texts must keep their ids; may be repeated."),
    ] = None,
) -> None:
    """Add pieces for a manifest's language to a tokenizer; the base's ids do not change."""
    from hfprep.tools.tokenizer.extend import ExtendOptions
    from hfprep.tools.tokenizer.extend import extend as run

    options = ExtendOptions(
        base=base,
        manifests=tuple(manifest),
        output=output,
        language=language,
        map=map_,
        new_pieces=new_pieces,
        character_coverage=character_coverage,
        unchanged=tuple(unchanged or ()),
    )
    for line in _extended_lines(run(options), output):
        say(line)


@tokenizer.command("compare")
def compare(
    models: Annotated[list[Path], typer.Argument(help="SentencePiece models.")],
    manifest: Manifests,
    language: Language = None,
    map_: Map = None,
    config: Annotated[Path | None, typer.Option(help="config.yaml, for the model's text positions.")] = None,
) -> None:
    """Compare how tokenizers encode a manifest's texts, by language."""
    from hfprep.recipes.options import ModelOptions
    from hfprep.recipes.registry import choose_recipe
    from hfprep.tools.tokenizer.compare import compare as run

    options = ModelOptions(config=config)
    limit = choose_recipe(None, options).outline(options).schema.max_length("tokens")
    found = run(models, manifest, language=language, field_map=map_, limit=limit)
    for name, counts in sorted(found.languages.items()):
        show(_comparison_table(name, counts, found))
    if found.rejected:
        reasons = ", ".join(f"{reason} {count}" for reason, count in found.rejected.most_common())
        say(f"{found.rejected.total()} of {found.read} lines were omitted: {reasons}")
    if not found.languages:
        raise typer.Exit(1)


def extend_checkpoint(
    gpt_checkpoint: Annotated[Path, typer.Option(help="gpt.pth of the checkpoint.")],
    config: Annotated[Path, typer.Option(help="Its config.yaml.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the new files; not the checkpoint's folder.")],
    base: Annotated[Path | None, typer.Option(help="IndexTTS-2: the tokenizer of the checkpoint.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="IndexTTS-2: the extended one (`tokenizer extend`).")] = None,
    language: Annotated[str | None, typer.Option(help="IndexTTS-2.5: the language without a trained row.")] = None,
    like: Annotated[str | None, typer.Option(help="IndexTTS-2.5: the language whose row is copied.")] = None,
) -> None:
    """Add rows to a checkpoint for an extended tokenizer (IndexTTS-2) or a language (IndexTTS-2.5)."""
    from hfprep.tools.extend_checkpoint import CheckpointOptions
    from hfprep.tools.extend_checkpoint import extend_checkpoint as run

    options = CheckpointOptions(
        gpt_checkpoint=gpt_checkpoint,
        config=config,
        output_dir=output_dir,
        base=base,
        tokenizer=tokenizer,
        language=language,
        like=like,
    )
    found = run(options)
    if language is None:
        say(f"{found.text_ids} text ids (before: {found.text_ids_before}), {found.new_rows} rows initialised")
    else:
        say(f"the row of {language} is initialised from that of {like}")
    for path in found.files:
        say(path)


def _extended_lines(found: "Extended", output: Path) -> list[str]:
    lines = [
        f"{output}: {found.size} pieces: {found.base_size} from the base, {len(found.characters)} new characters and "
        f"{len(found.merges)} new merges",
        f"{found.texts} texts: {found.ids_before} ids with the base, {found.ids_after} with the extended model"
        + (f"; {found.skipped} lines were skipped" if found.skipped else ""),
    ]
    if found.left_out:
        named = " ".join(found.left_out[:WORST_CHARACTERS])
        lines.append(f"{len(found.left_out)} characters still have no id: {named}")
    if found.changed:
        lines.append(f"{len(found.changed)} of {found.held} texts in the base's languages have different ids now:")
        for text in found.changed[:SHOWN]:
            lines.append(f"  {text.name[:60]}: {' '.join(text.before)} -> {' '.join(text.after)}")
    else:
        lines.append(f"{found.held} texts in the base's languages have the same ids as before")
    return lines


def _comparison_table(language: str, counts: "list[TextCounts]", found: "Comparison") -> PlainTable:
    first = counts[0]
    title = f"Language {language}: {first.texts} texts, {first.characters} characters"
    table = PlainTable(title, "", *(path.name for path in found.tokenizers), title_style="bold")
    table.add_row("unknown characters", *(f"{count.unknown_rate:.2%}" for count in counts))
    if any(count.in_bytes for count in counts):
        table.add_row("characters in bytes", *(f"{count.in_bytes / (count.characters or 1):.2%}" for count in counts))
    table.add_row("ids per character", *(f"{count.ids_per_character:.2f}" for count in counts))
    table.add_row("longest", *((f"{count.longest} ids: {count.longest_id}") for count in counts))
    if found.limit is not None:
        table.add_row(f"over {found.limit} ids", *(f"{count.over_limit} samples" for count in counts))
    table.add_row("worst characters", *(_worst(count) for count in counts))
    return table


def _worst(counts: "TextCounts") -> str:
    return ", ".join(f"{character} {count}" for character, count in counts.worst.most_common(WORST_CHARACTERS))
