"""The command line: its commands, and exit codes.

0: done. 1: an error, or rejected lines with --strict, or nothing accepted. 2: wrong usage. 130, 143: interrupted.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
import typer.core

from hfprep.cli.build import build, log_to_stderr, run_build
from hfprep.cli.check import check
from hfprep.cli.doctor import doctor, download
from hfprep.cli.finished import COMMANDS
from hfprep.cli.output import keep_streams, say
from hfprep.cli.tokenizer import extend_checkpoint, tokenizer
from hfprep.errors import HfprepError
from hfprep.pipeline.config import BuildConfig, flag
from hfprep.tools.demo.model_sets import DEMOS

ABOUT = "Turn recordings and transcripts into the features that speech models train on."
ORDER = (
    "build", "check", "verify", "report", "pairs", "export-npy", "export-arrow", "export-webdataset",
    "export-npz", "export-manifests", "push", "merge", "retokenize", "tokenizer", "extend-checkpoint", "download",
    "doctor", "demo", "bench",
)  # fmt: skip


class InOrder(typer.core.TyperGroup):
    """Commands in the order of use."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Names of all commands."""
        return sorted(super().list_commands(ctx), key=ORDER.index)


app = typer.Typer(cls=InOrder, no_args_is_help=True, help=ABOUT, pretty_exceptions_enable=False)
for command in (build, check, *COMMANDS, extend_checkpoint, download, doctor):
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
    log_to_stderr(as_json=False)
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
