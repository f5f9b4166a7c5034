"""Commands for finished outputs: checks, reports, merging, format conversions, pairs, new text ids, the Hub."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfprep.cli.options import options_of
from hfprep.cli.output import say
from hfprep.io.words import count, size
from hfprep.tools.verify.options import VerifyOptions

if TYPE_CHECKING:
    from hfprep.tools.verify.checking import Verdict

Source = Annotated[Path, typer.Argument(help="A finished set: an output of build, a saved data set, or shards.")]
ShardSize = Annotated[str, typer.Option(help="Maximum size of a shard, such as 500MB or 2GB.")]
Dtype = Annotated[str, typer.Option(help="Type of the latents: float32, or float16 (half the size, rounded).")]
MostText = Annotated[
    int | None, typer.Option(help="Leave out utterances with more text ids; default: the model's positions.")
]
MostCodes = Annotated[
    int | None, typer.Option(help="Leave out utterances with more codes; default: the model's positions.")
]
CrossLingual = Annotated[
    bool, typer.Option("--cross-lingual", help="Every other prompt is in another language of the speaker.")
]
Form = Annotated[
    str, typer.Option(help="auto (depends on OUT), arrays, or npz (export OUT to OUT/npz and write the pairs there).")
]


@options_of(VerifyOptions, arguments={"output_dir": "OUT"}, with_context=False)
def verify(**options: Any) -> None:
    """Check every array, record and count of a finished output; prints a line per fault, with exit status 1."""
    from hfprep.tools.verify.checking import verify as run

    verdict = run(VerifyOptions(**options))
    _show_verdict(verdict, options["output_dir"])
    raise typer.Exit(1 if verdict.faults else 0)


def _show_verdict(verdict: "Verdict", output_dir: Path) -> None:
    """Print a line for each fault, then what was done, noted and compared."""
    for fault in verdict.faults:
        say(fault.line())
    for action in verdict.repairs:
        say(f"repair: {action}")
    for note in verdict.notes:
        say(f"note: {note}")
    if (found := verdict.parity) is not None:
        say(
            f"parity: {count(found.samples, 'sample')} computed again alone: {found.codes_differing} of {found.codes} "
            f"codes differ; the largest relative difference of a vector is {found.largest_difference:.1e}"
        )
    if (reference := verdict.reference) is not None:
        say(
            f"reference: {count(reference.samples, 'sample')} computed with the published library: "
            f"{reference.codes_differing:,} of {reference.codes:,} codes differ ({reference.agreement:.2%} agree)"
        )
    samples, faults = count(verdict.samples, "sample"), count(len(verdict.faults), "fault")
    say(f"{output_dir}: {verdict.format}, {samples}, {faults}")
    if verdict.repairs:
        say("Run the build command again: it computes only what was moved aside.")


def report(
    output_dir: Annotated[Path, typer.Argument(metavar="OUT", help="A build's output directory, or an export.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file; default: OUT/report.html.")] = None,
    audio: Annotated[
        bool, typer.Option("--audio", help="Add players for the source audio; measure silence and clipping.")
    ] = False,
) -> None:
    """Write a self-contained HTML file: hours, lengths, codebook, voices, rejections, batches, provenance."""
    from hfprep.io.atomic import check_writable
    from hfprep.tools.report.writing import write_report

    if output is None:
        check_writable(output_dir, "give the report's file: --output FILE")
    target = output or output_dir / "report.html"
    num_bytes = write_report(output_dir, target, with_audio=audio)
    say(f"{target}: {num_bytes / 1e6:.1f} MB; open it in a browser")


def merge(
    parts: Annotated[list[Path], typer.Argument(metavar="PART...", help="Output directories of all the parts.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the result; a rerun continues there.")],
    copy: Annotated[bool, typer.Option("--copy", help="Copy files instead of making hard links.")] = False,
) -> None:
    """Join the outputs of `build --shard` into the output of one build; run it again to continue."""
    from hfprep.pipeline.merging import merge as run

    done = run(parts, output_dir, copy=copy)
    say(
        f"{done.output_dir}: {done.train + done.val} samples ({done.train} train, {done.val} val, {done.hours:.3f} h) "
        f"from {done.parts} parts, {done.rejected} lines rejected; files: {done.linked} linked, {done.copied} copied; "
        f"{done.reused} samples were already merged"
    )


def export_npy(
    dataset: Annotated[str, typer.Argument(help="A saved Arrow data set, shards, or a Hub data set id.")],
    out: Annotated[Path, typer.Argument(help="A new folder for the npy layout.")],
) -> None:
    """Write a data set (Arrow or WebDataset, local or from the Hub) in the npy layout."""
    from hfprep.formats.formats import open_set
    from hfprep.formats.loading.dataset import local_folder
    from hfprep.formats.npy import export_npy as export

    source, there = open_set(local_folder(dataset)), out.exists() and any(out.iterdir())
    counts = export(source, out)
    if there:
        say(f"{out} already contains these samples; nothing was written")
    if source.origin.latents_dtype != "float32":
        say(f"The latents were stored as {source.origin.latents_dtype}, so the float32 values have that precision.")
    _say_counts(counts, out)


def export_arrow(
    out: Source,
    dataset: Annotated[Path, typer.Argument(help="Folder for the data set; an earlier export is replaced.")],
    max_shard_size: ShardSize = "500MB",
    dtype: Dtype = "float32",
    with_audio: Annotated[bool, typer.Option("--with-audio", help="Add the audio files, decoded when read.")] = False,
    audio_root: Annotated[Path | None, typer.Option(help="Folder for relative audio paths.")] = None,
) -> None:
    """Write a finished set as a saved Arrow data set (datasets.load_from_disk)."""
    from hfprep.formats.arrow_writer import ArrowOptions
    from hfprep.formats.arrow_writer import export_arrow as export
    from hfprep.formats.formats import open_set
    from hfprep.formats.manifest_paths import audio_finder
    from hfprep.io.words import parse_size

    find = audio_finder(out, audio_root=audio_root) if with_audio else None
    options = ArrowOptions(max_shard_bytes=parse_size(max_shard_size), dtype=dtype, find_audio=find)
    with _reading(out):
        _say_counts(export(open_set(out), dataset, options), dataset)


def export_webdataset(
    out: Source,
    shards: Annotated[Path, typer.Argument(help="Folder for the shards; an earlier export is replaced.")],
    max_shard_size: ShardSize = "500MB",
    max_shard_samples: Annotated[int, typer.Option(help="Maximum samples in a shard.")] = 10_000,
    dtype: Dtype = "float32",
) -> None:
    """Write a finished set as WebDataset tar shards with an index."""
    from hfprep.formats.formats import open_set
    from hfprep.formats.webdataset_writer import WebDatasetOptions
    from hfprep.formats.webdataset_writer import export_webdataset as export
    from hfprep.io.words import parse_size

    options = WebDatasetOptions(
        max_shard_bytes=parse_size(max_shard_size), max_shard_samples=max_shard_samples, dtype=dtype
    )
    with _reading(out):
        _say_counts(export(open_set(out), shards, options), shards)


def export_npz(
    out: Source,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the files; an earlier export is replaced.")],
) -> None:
    """Write a finished set as one .npz file per sample, for public fine-tuning code of IndexTTS-2.5."""
    from hfprep.formats.formats import open_set
    from hfprep.formats.npz import export_npz as export

    with _reading(out):
        _say_counts(export(open_set(out), folder), folder)


def pairs(
    out: Annotated[Path, typer.Argument(help="An output of build, or of export-npz.")],
    pairs_per_target: Annotated[int, typer.Option(help="Prompts for each target.")] = 2,
    min_text_len: Annotated[int, typer.Option(help="Leave out utterances with fewer text ids.")] = 1,
    min_code_len: Annotated[int, typer.Option(help="Leave out utterances with fewer codes.")] = 1,
    max_text_len: MostText = None,
    max_code_len: MostCodes = None,
    max_pairs: Annotated[
        int | None, typer.Option(help="Maximum pairs per split, divided evenly among speakers; 0: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for choosing prompts.")] = 0,
    speaker_from: Annotated[
        str | None, typer.Option(help="For records without a speaker: folder, id:EXPRESSION or audio:EXPRESSION.")
    ] = None,
    paths: Annotated[str, typer.Option(help="relative (as in the manifests) or absolute.")] = "relative",
    audio_root: Annotated[
        Path | None, typer.Option(help="With --paths absolute: folder for relative audio paths.")
    ] = None,
    cross_lingual: CrossLingual = False,
    form: Form = "auto",
    train_output_name: Annotated[str, typer.Option(help="Name of the file in OUT.")] = "train_pairs.jsonl",
    val_output_name: Annotated[str, typer.Option(help="Name of the file in OUT.")] = "val_pairs.jsonl",
) -> None:
    """Write prompt and target pairs for a trainer; builds that change the samples update them."""
    from hfprep.formats.pair_files import make_pairs
    from hfprep.formats.pairs import PairOptions, folder_for_pairs

    options = PairOptions(
        pairs_per_target=pairs_per_target,
        min_text_len=min_text_len,
        min_code_len=min_code_len,
        max_text_len=max_text_len,
        max_code_len=max_code_len,
        max_pairs=max_pairs,
        seed=seed,
        speaker_from=speaker_from,
        paths=paths,
        audio_root=None if audio_root is None else str(audio_root.absolute()),
        cross_lingual=cross_lingual,
        train_output_name=train_output_name,
        val_output_name=val_output_name,
    )
    with _reading(out):
        folder = folder_for_pairs(out, form)
        for split, counts in make_pairs(folder, options).items():
            say(f"{folder / options.names[split]}: {counts.line()}")


def export_manifests(
    out: Annotated[Path, typer.Argument(help="An output of build.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the manifests.")],
    paths: Annotated[str, typer.Option(help="relative (to DIR) or absolute.")] = "relative",
    audio_root: Annotated[Path | None, typer.Option(help="Folder for relative audio paths.")] = None,
) -> None:
    """Write an output's manifests and pairs with paths relative to DIR, or absolute, including those of audio."""
    from hfprep.formats.manifest_paths import export_manifests as export
    from hfprep.formats.pair_files import pair_files

    with _reading(out):
        found = export(out, folder, paths=paths, audio_root=audio_root, pairs=tuple(pair_files(out)))
    for name, lines in found.files.items():
        say(f"{folder / name}: {lines} lines")
    if found.missing:
        say(
            f"{len(found.missing)} audio paths were not changed, because the files do not exist: {found.missing[0]} "
            "(give their folder with --audio-root)"
        )


def retokenize(
    out: Annotated[Path, typer.Argument(help="An output of build.")],
    tokenizer: Annotated[Path, typer.Option(help="The new SentencePiece model.")],
    output_dir: Annotated[Path | None, typer.Option(help="A new folder for the result; default: in place.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="The manifest, if it has moved or is at a URL.")] = None,
    config: Annotated[Path | None, typer.Option(help="config.yaml of the model, if it has moved.")] = None,
    language: Annotated[str | None, typer.Option(help="Language of all rows, as for build.")] = None,
) -> None:
    """Compute text ids again with another tokenizer, without audio; rerun it to resume."""
    from hfprep.pipeline.retokenizing import retokenize as run

    given = {"manifest": manifest, "config": config, "language": language}
    changes = {name: value for name, value in given.items() if value is not None}
    summary = run(out, tokenizer, output_dir=output_dir, **changes)
    _say_counts({"train": summary.train, "validation": summary.val}, output_dir or out)


def push(
    source: Source,
    repo: Annotated[str, typer.Argument(help="USER/NAME on the Hub.")],
    public: Annotated[bool, typer.Option("--public/--private", help="Visibility of a new repository.")] = False,
    format: Annotated[str, typer.Option(help="arrow or webdataset.")] = "arrow",  # noqa: A002 - the flag's name
    max_shard_size: ShardSize = "500MB",
    dtype: Dtype = "float32",
) -> None:
    """Upload a finished set to the Hugging Face Hub with a data set card, privately; rerun it to resume."""
    from hfprep.formats.hub import Parcel, PushOptions
    from hfprep.formats.hub import push as run
    from hfprep.io.words import count, parse_size

    def report(parcel: Parcel) -> None:
        splits = ", ".join(f"{number:,} {split}" for split, number in parcel.samples.items())
        kind = f"{'a new' if parcel.is_new else 'the'} {'private' if parcel.private else 'public'} repository"
        say(
            f"To {repo}, {kind}: {count(sum(parcel.samples.values()), 'sample')} ({splits}) "
            f"in {count(parcel.num_files, 'file')}, {size(parcel.num_bytes)}"
        )

    options = PushOptions(private=not public, format=format, max_shard_bytes=parse_size(max_shard_size), dtype=dtype)
    with _reading(source):
        url = run(source, repo, options, report=report)
    say(f"Pushed to {url}\nRead it with: hfprep.load({repo!r}) or datasets.load_dataset({repo!r})")


def _reading(out: Path) -> AbstractContextManager[Any]:
    """Lock an output for reading, so that no build changes it."""
    from hfprep.io.lock import OutputLock
    from hfprep.store.layout import PRIVATE

    return OutputLock(out / PRIVATE / "lock", reading=True)


def _say_counts(counts: dict[str, int], where: Path) -> None:
    say(f"{where}: {counts['train']} train, {counts['validation']} validation")


COMMANDS = (
    verify, report, merge, export_npy, export_arrow, export_webdataset, export_npz, export_manifests, pairs, retokenize,
    push,
)  # fmt: skip
