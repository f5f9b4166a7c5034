"""The command line: arguments -> config -> one call, and exit codes.

0: done. 1: an error, or rejected lines with --strict, or nothing accepted. 2: wrong usage. 130, 143: interrupted.
The flags, their defaults and their help come from `BuildConfig`.
"""

import dataclasses
import inspect
import logging
import operator
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from hfprep.cli import formats, scale, trust
from hfprep.cli.extend_checkpoint import extend_checkpoint
from hfprep.cli.many import run_many
from hfprep.cli.output import keep_streams, say, show
from hfprep.cli.tokenizer import tokenizer
from hfprep.errors import HfprepError
from hfprep.pipeline.config import BuildConfig, flag
from hfprep.pipeline.data_sets import ManyOptions, config_of_each

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="From a manifest of speech to IndexTTS-2 training features.",
    pretty_exceptions_enable=False,
)
_NOT_WITH_DATASET = ("manifest", "output_dir")
formats.register(app)
scale.register(app)
trust.register(app)
app.command("extend-checkpoint")(extend_checkpoint)
app.add_typer(tokenizer, name="tokenizer")


def options_of(*configs: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each field of the config dataclasses; it is called with their values."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = []
        for config in configs:
            hints = get_type_hints(config)
            for item in dataclasses.fields(config):
                annotation = operator.getitem(Annotated, (hints[item.name], typer.Option(help=item.metadata["help"])))
                default = None if item.name in _NOT_WITH_DATASET else item.default
                kind = inspect.Parameter.KEYWORD_ONLY
                parameters.append(inspect.Parameter(item.name, kind, default=default, annotation=annotation))

        def call(**values: Any) -> None:
            command(**values)

        call.__name__, call.__doc__ = command.__name__, command.__doc__
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return decorate


@app.callback()
def every_command() -> None:
    """From a manifest of speech to IndexTTS-2 training features."""


@app.command()
@options_of(BuildConfig, ManyOptions)
def build(dataset: list[str] | None, output_root: Path, **options: Any) -> None:
    """Compute all features of a manifest, or of several; run the same command again to continue."""
    _log_to_stderr(as_json=options["log_json"])
    if dataset:
        configs = config_of_each(dataset, output_root, **options)
    else:
        if output_root != Path():
            raise typer.BadParameter(
                "it goes with --dataset; with --manifest, use --output-dir", param_hint="--output-root"
            )
        for name in _NOT_WITH_DATASET:
            if options[name] is None:
                raise typer.BadParameter(
                    "it is missing (or use --dataset, for several data sets)", param_hint=flag(name)
                )
        configs = [BuildConfig(**options)]
    if options["dry_run"]:
        from hfprep.cli.plan import show_plan

        raise typer.Exit(max([show_plan(config) for config in configs]))
    raise typer.Exit(run_many(configs) if dataset else run_build(configs[0]))


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench() -> None:
    """Moved: scripts/bench in a checkout."""
    raise HfprepError("the benchmark is no longer part of the package; run scripts/bench in a checkout of hfprep")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where models, data and features go.")] = Path("demo"),
    num_samples: Annotated[int, typer.Option(help="Good samples to make.")] = 24,
) -> None:
    """Make RANDOM models and sample data, and run the real build on them."""
    from hfprep.tools.demo.dataset import make_dataset
    from hfprep.tools.demo.model_set import make_model_set

    _log_to_stderr(as_json=False)
    data, models, output = folder / "data", folder / "models-RANDOM", folder / "features"
    made = make_dataset(data, num_samples=num_samples)
    make_model_set(models)
    status = run_build(BuildConfig(manifest=made.manifest, output_dir=output, models=models, val_ratio=0.1))
    print(
          f"\nThe models are RANDOM numbers: the features have the right form and mean nothing.\n\n"
          f"  {data}/manifest.jsonl   sample data, with some lines bad on purpose\n"
          f"  {models}/   the model set; yours has the same layout\n"
          f"  {output}/   the features: text_ids/, codes/, condition/, emo_vec/, the manifests\n"
          f"  {output}/rejected.jsonl   what was rejected, and why\n\n"
          f"Your own data:\n  {_this_python()} -m hfprep build --manifest YOURS.jsonl --output-dir OUT --models DIR"
    )  # fmt: skip
    raise typer.Exit(status)


def _this_python() -> str:
    """How to call the Python that runs this from the working directory."""
    python, here = Path(sys.executable), Path.cwd()
    return str(python.relative_to(here)) if python.is_relative_to(here) else str(python)


def run_build(config: BuildConfig) -> int:
    """Run one build, print its summary, and give the exit status."""
    from hfprep.pipeline.engines.pool import WorkerPool

    with WorkerPool() as pool:
        if config.engine == "local":
            pool.prepare(1)  # its imports run beside those of this process
        from hfprep.cli.summary import summary_table
        from hfprep.pipeline.building import Shared
        from hfprep.pipeline.building import build as build_features
        from hfprep.pipeline.engines.choice import Workers

        summary = build_features(config, shared=Shared(workers=Workers(pool)))

    show(summary_table(summary), 100)
    if summary.interrupted_by is not None:
        say(f"Interrupted; {summary.pending} lines are left. Run the same command again to continue.")
        return 128 + summary.interrupted_by
    if not summary.accepted and (summary.lines_read or config.part is None):
        say(f"No sample was accepted; see {summary.output_dir / 'rejected.jsonl'}.", error=True)
        return 1
    if config.strict and summary.rejected:
        say(f"--strict: lines were rejected; see {summary.output_dir / 'rejected.jsonl'}.", error=True)
        return 1
    return 0


def _log_to_stderr(*, as_json: bool) -> None:
    from hfprep.pipeline.logs import PlainFormatter, formatter

    if as_json or not sys.stderr.isatty():
        handler: logging.Handler = logging.StreamHandler()
        handler.setFormatter(formatter(as_json))
    else:
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False)
        handler.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("hfprep").setLevel(logging.INFO)


def main() -> None:
    """Entry point of `hfprep` and `python -m hfprep`: errors that hfprep raises on purpose are printed, not traced."""
    keep_streams()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that a build starts reports to nobody
    try:
        app()
    except HfprepError as error:
        say(f"hfprep: {error}", error=True)
        sys.exit(1)
