"""Command options from config dataclasses, under headings; reading and writing options files."""

import dataclasses
import inspect
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from hfprep.errors import ConfigError
from hfprep.pipeline.config import DEBUGGING, INPUT, PANELS, flag
from hfprep.recipes.base import option

NO_DEFAULT = ("manifest", "output_dir")  # not required with --dataset
KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY


def options_of(
    *configs: type, arguments: Mapping[str, str] | None = None, with_context: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option to a command for each field of the config dataclasses; it is called with context and values.

    `arguments` are positional arguments, with their names in the usage line. Without `with_context`, the command is
    called with the values only.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        found = []
        shown: Any
        default: Any
        for config in configs:
            hints = get_type_hints(config)
            for item in dataclasses.fields(config):
                panel, help_text = item.metadata.get("panel"), item.metadata["help"].replace("[", r"\[")  # no markup
                if arguments and item.name in arguments:
                    shown = typer.Argument(metavar=arguments[item.name], help=help_text)
                    default = inspect.Parameter.empty
                else:
                    shown = typer.Option(help=help_text, rich_help_panel=panel)
                    default = None if item.name in NO_DEFAULT and with_context else item.default
                annotation = operator.getitem(Annotated, (hints[item.name], shown))
                parameter = inspect.Parameter(item.name, KEYWORD_ONLY, default=default, annotation=annotation)
                found.append((PANELS.index(panel) if panel in PANELS else -1, parameter))
        found.sort(key=lambda pair: pair[0])  # a command's own panel comes first
        parameters = [parameter for _, parameter in found]
        if with_context:
            parameters.insert(0, inspect.Parameter("context", KEYWORD_ONLY, annotation=typer.Context))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of the command itself: a file of options, so that a run can be repeated, and the plan alone."""

    options: Path | None = option(None, "YAML file with options by name; the command line takes precedence.", INPUT)
    write_options: Path | None = option(None, "Write the options of this run to a YAML file.", DEBUGGING)
    dry_run: bool = option(False, "Show the plan without loading a model.", DEBUGGING)


def read_options(path: Path, values: Mapping[str, Any], context: typer.Context) -> dict[str, Any]:
    """The values of a command's options: from the command line, or else from the file.

    Raises ConfigError if the file cannot be read or has an option that does not exist.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--options {str(path)!r} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--options {str(path)!r} must contain options by name, such as batch-size: 8")
    given = {str(name).removeprefix("--").replace("-", "_"): value for name, value in found.items()}
    unknown = sorted(given.keys() - values.keys())
    if unknown:
        raise ConfigError(f"--options {str(path)!r}: unknown option {', '.join(map(flag, unknown))}")
    result = dict(values)
    for name, value in given.items():
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            result[name] = value
    return result


def write_options(path: Path, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Write options that differ from their defaults, by flag name."""
    import yaml

    chosen = {}
    for name, value in values.items():
        if value != defaults.get(name):
            chosen[name.replace("_", "-")] = str(value) if isinstance(value, Path) else value
    path.write_text(yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True), encoding="utf-8")
