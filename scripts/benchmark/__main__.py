"""`python -m scripts.benchmark`, from the root of a checkout."""

import typer

from hfprep.cli.options import options_of
from scripts.benchmark.command import bench
from scripts.benchmark.config import BenchConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(options_of(BenchConfig)(bench))

if __name__ == "__main__":
    app()
