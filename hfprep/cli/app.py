"""The command line: arguments -> config -> one call, and exit codes.

0: done. 1: an error, or rejected lines with --strict, or nothing accepted. 2: wrong usage. 130, 143: interrupted.
The flags, their defaults and their help come from `BuildConfig`.
"""

import dataclasses
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from hfprep.cli import formats
from hfprep.cli.check import check
from hfprep.cli.doctor import doctor, download
from hfprep.cli.extend_checkpoint import extend_checkpoint
from hfprep.cli.many import run_many, shared_workers
from hfprep.cli.merge import merge
from hfprep.cli.options import NO_DEFAULT, RunFile, options_of, read_options
from hfprep.cli.options import write_options as keep_options
from hfprep.cli.output import keep_streams, say, show
from hfprep.cli.report import report
from hfprep.cli.tokenizer import tokenizer
from hfprep.cli.verify import verify
from hfprep.errors import HfprepError
from hfprep.pipeline.config import BuildConfig, flag
from hfprep.pipeline.data_sets import ManyOptions, config_of_each
from hfprep.tools.demo.model_sets import DEMOS

ABOUT = "Turn recordings and transcripts into the features that speech models train on."
ORDER = (
    "build", "check", "verify", "report", "pairs", "export-npy", "export-arrow", "export-webdataset",
    "export-npz", "export-manifests", "push", "merge", "retokenize", "tokenizer", "extend-checkpoint", "download",
    "doctor", "demo",
)  # fmt: skip


class InOrder(typer.core.TyperGroup):
    """Commands in the order of use."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Names of all commands."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


app = typer.Typer(cls=InOrder, no_args_is_help=True, help=ABOUT, pretty_exceptions_enable=False)
# Default paths without --models, as in the older scripts.
USUAL_FILES = {"config": Path("checkpoints/config.yaml"), "gpt_checkpoint": Path("checkpoints/gpt.pth")}
formats.register(app)
for command in (check, verify, report, merge, extend_checkpoint, download, doctor):
    app.command()(command)
app.add_typer(tokenizer, name="tokenizer")


def _show_version(wanted: bool) -> None:
    if wanted:
        from hfprep import __version__

        say(f"hfprep {__version__}")
        raise typer.Exit


@app.callback()
def every_command(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Turn recordings and transcripts into the features that speech models train on."""
    del version


@app.command()
@options_of(BuildConfig, ManyOptions, RunFile)
def build(context: typer.Context, options: Path | None, write_options: Path | None, **values: Any) -> None:
    """Compute the features of a manifest, or of several; run the same command again to continue."""
    if options is not None:
        values = read_options(options, values, context)
    if write_options is not None:
        defaults = {item.name: item.default for kind in (BuildConfig, ManyOptions) for item in dataclasses.fields(kind)}
        keep_options(write_options, values, defaults)
    dataset, output_root = values.pop("dataset"), Path(values.pop("output_root"))
    _log_to_stderr(as_json=values["log_json"])
    values |= _usual_files(values)
    if dataset:
        configs = config_of_each(dataset, output_root, **values)
    else:
        if output_root != Path():
            raise typer.BadParameter(
                "it is only for --dataset; with --manifest, use --output-dir", param_hint="--output-root"
            )
        for name in NO_DEFAULT:
            if values[name] is None:
                raise typer.BadParameter(
                    "it is missing (or use --dataset, for several data sets)", param_hint=flag(name)
                )
        configs = [BuildConfig(**values)]
    if values["dry_run"]:
        from hfprep.cli.plan import show_plan

        raise typer.Exit(max([show_plan(config) for config in configs]))
    raise typer.Exit(run_many(configs) if dataset else run_build(configs[0]))


def _usual_files(options: dict[str, Any]) -> dict[str, Path]:
    """The config and checkpoint in checkpoints/, if they exist and no others are given."""
    if options["models"] is not None:
        return {}
    found = {name: path for name, path in USUAL_FILES.items() if options[name] is None and path.is_file()}
    for name, path in found.items():
        logging.getLogger("hfprep").info("%s is not given: using %s", flag(name), path)
    return found


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench() -> None:
    """Moved: scripts/bench in a checkout."""
    raise HfprepError("the benchmark is no longer part of the package; run scripts/bench in a checkout of hfprep")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Folder for models, data and features.")] = Path("demo"),
    num_samples: Annotated[int, typer.Option(help="Number of good samples to make.")] = 24,
    recipe: Annotated[str, typer.Option(help=f"Model family: {', '.join(DEMOS)}.")] = DEMOS[0],
) -> None:
    """Make RANDOM models and sample data, and run a real build on them."""
    from hfprep.tools.demo.dataset import make_dataset
    from hfprep.tools.demo.model_sets import make_models

    if recipe not in DEMOS:
        raise typer.BadParameter(f"it is {recipe!r}; it must be {' or '.join(DEMOS)}", param_hint="--recipe")
    _log_to_stderr(as_json=False)
    data, models, output = folder / "data", folder / "models-RANDOM", folder / "features"
    given = make_models(recipe, models)
    made = make_dataset(data, num_samples=num_samples)
    status = run_build(BuildConfig(manifest=made.manifest, output_dir=output, val_ratio=0.1, **given))
    theirs = " ".join(f"{flag(name)} DIR" for name in given)
    print(
          f"\nThe models are RANDOM: the features have the right format but are meaningless.\n\n"
          f"  {data}/manifest.jsonl   sample data, including some invalid lines\n"
          f"  {models}/   the model files; yours have the same layout\n"
          f"  {output}/   the features, one folder per column, and the manifests\n"
          f"  {output}/rejected.jsonl   what was rejected, and why\n\n"
          f"Your own data:\n  {_this_python()} -m hfprep build --manifest YOURS.jsonl --output-dir OUT {theirs}"
    )  # fmt: skip
    raise typer.Exit(status)


def _this_python() -> str:
    """The path of this Python, relative to the working directory if possible."""
    python, here = Path(sys.executable), Path.cwd()
    return str(python.relative_to(here)) if python.is_relative_to(here) else str(python)


def run_build(config: BuildConfig) -> int:
    """Run a build and print its summary; returns the exit status."""
    with shared_workers(config.engine) as shared:
        from hfprep.cli.summary import summary_table
        from hfprep.pipeline.building import build as build_features

        summary = build_features(config, shared=shared)

    show(summary_table(summary))
    if summary.interrupted_by is not None:
        say(f"Interrupted with {summary.pending} lines left. Run the same command again to continue.")
        return 128 + summary.interrupted_by
    if not summary.accepted and (summary.lines_read or config.part is None):
        say(f"No sample was accepted; see {summary.output_dir / 'rejected.jsonl'}.", error=True)
        return 1
    if config.strict and summary.rejected:
        say(f"--strict: lines were rejected; see {summary.output_dir / 'rejected.jsonl'}.", error=True)
        return 1
    return 0


def _log_to_stderr(*, as_json: bool) -> None:
    from hfprep.pipeline.logs import log_handler

    handler = log_handler(as_json=as_json)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("hfprep").setLevel(logging.INFO)


def main() -> None:
    """Entry point of `hfprep` and `python -m hfprep`; prints hfprep's own errors without a traceback."""
    keep_streams()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports from clusters that a build starts
    try:
        app()
    except HfprepError as error:
        say(f"hfprep: {error}", error=True)
        sys.exit(1)
