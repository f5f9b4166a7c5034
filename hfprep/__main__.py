"""Entry point of `hfprep` and `python -m hfprep`."""

import sys

BUILD = "pip install 'hfprep[build]'"


def main() -> None:
    """Run the command line; if a package is missing, exit with the command that installs it."""
    try:
        from hfprep.cli.app import main as run

        run()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "hfprep"):
            raise
        sys.exit(f"hfprep: the package {package!r} is not installed; commands that compute features need: {BUILD}")


if __name__ == "__main__":
    main()
