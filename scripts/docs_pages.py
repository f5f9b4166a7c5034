"""Generates the reference pages of the documentation from the code while MkDocs builds the site.

Provides `command_page` (from the command line), `formats_page` (from schemas/), `messages_page` (from `raise`
statements) and `options_table` (from BuildConfig), and the MkDocs hooks `on_files` and `on_page_markdown`.
"""

import ast
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OPTIONS_PLACE = "<!-- the options of BuildConfig -->"
# A name with the file that defines it, followed by options for mkdocstrings.
API_LINK = re.compile(
    r"^- \[`(?P<name>[\w.]+)`\]\(\.\./\.\./hfprep/[^)]*\)\n(?:<!-- ::: options\n(?P<options>.*?)-->\n)?",
    re.MULTILINE | re.DOTALL,
)
SCHEMA_ORDER = (
    "manifest", "record-indextts-2", "rejected", "stats", "pair-record", "npz-record", "npz-pair-record", "arrow-index",
    "webdataset-index",
)  # fmt: skip


def on_files(files: Any, config: Any) -> Any:
    """MkDocs hook: replace placeholders in docs/ with the generated pages."""
    from mkdocs.structure.files import File

    pages = {
        "reference/commands.md": command_page(),
        "reference/formats.md": formats_page(ROOT / "schemas"),
        "reference/errors.md": messages_page(ROOT / "hfprep"),
    }
    for path, content in pages.items():
        files.remove(files.get_file_from_path(path))
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_context: Any) -> str:
    """MkDocs hook: insert the table of options, and the documentation of linked Python names."""
    markdown = markdown.replace(OPTIONS_PLACE, options_table()) if OPTIONS_PLACE in markdown else markdown
    return API_LINK.sub(_directive, markdown)


def _directive(link: re.Match[str]) -> str:
    """The mkdocstrings directive for a name."""
    return f"::: {link['name']}\n" + (f"    options:\n{link['options']}" if link["options"] else "")


def cell(text: str) -> str:
    """Escape text for a table cell."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("\n", " ")
    return re.sub(r"([*_`])", r"\\\1", escaped)


def code(text: str) -> str:
    """Text as code in a table cell, also if it contains backticks (bars need no escaping in code)."""
    fence = "``" if "`" in text else "`"
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("\n", " ")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a table."""
    names = list(head)
    lines = [" | ".join(names), " | ".join("---" for _ in names), *(" | ".join(row) for row in rows)]
    return [*(f"| {line} |" for line in lines), ""]


# Commands


def command_page() -> str:
    """Every command of the program with its arguments, options and defaults."""
    import typer

    from hfprep.cli.app import app

    program = typer.main.get_command(app)
    lines = ["# Commands", "", "Run them as `python -m hfprep COMMAND` or `hfprep COMMAND`.", ""]
    for name, command in sorted(program.commands.items()):  # type: ignore[attr-defined]
        for below, inner in sorted(getattr(command, "commands", {"": command}).items()):
            lines += _command(f"{name} {below}".strip(), inner)
    return "\n".join(lines)


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [item for item in command.params if item.param_type_name == "argument"]
    options = [item for item in command.params if item.param_type_name == "option" and item.name != "help"]
    places = [_place(item) if item.required else f"[{_place(item)}]" for item in arguments]
    yield from (f"## {name}", "", (command.help or "").strip(), "")
    yield from (
        "```text",
        " ".join(["python -m hfprep", name, *places, *(["[OPTIONS]"] if options else [])]),
        "```",
        "",
    )
    if arguments:
        rows = [(code(_place(item)), _default(item), cell(item.help or "")) for item in arguments]
        yield from table(("argument", "default", "meaning"), rows)
    if options:
        rows = [(code(_flag(item)) + "{.flag}", _default(item), cell(item.help or "")) for item in options]
        yield from table(("option", "default", "meaning"), rows)


def _place(item: Any) -> str:
    return str(item.metavar or item.name.upper())


def _flag(item: Any) -> str:
    return ", ".join(sorted(item.opts, key=len))


def _default(item: Any) -> str:
    if item.required:
        return "required"
    if isinstance(item.default, bool) or item.default in (None, ()) or str(item.default) == "":
        return ""
    return code(str(item.default))


def options_table() -> str:
    """A table of the fields of BuildConfig, with type, default and meaning."""
    from hfprep.pipeline.config import BuildConfig

    rows = []
    for item in dataclasses.fields(BuildConfig):
        kind = item.type if isinstance(item.type, str) else getattr(item.type, "__name__", str(item.type))
        kind = kind if "|" not in str(item.type) else str(item.type)
        default = "required" if item.default == Path() else code(repr(item.default))
        rows.append((code(item.name), code(kind.replace("pathlib.", "")), default, cell(item.metadata["help"])))
    return "\n".join(table(("field", "type", "default", "meaning"), rows))


# Files


def formats_page(folder: Path) -> str:
    """All file formats with a schema, field by field."""
    paths = {path.name.removesuffix(".schema.json"): path for path in folder.glob("*.schema.json")}
    lines = [
        "# Files", "",
        "What hfprep reads and writes, field by field, from the JSON Schemas in `schemas/`. "
        "Tests validate every output against them.", "",
    ]  # fmt: skip
    for name in [*SCHEMA_ORDER, *sorted(set(paths) - set(SCHEMA_ORDER))]:
        schema = json.loads(paths[name].read_text(encoding="utf-8"))
        lines += [f"## {schema['title']} {{#{name}}}", "", cell(schema["description"]), ""]
        lines += [f"Schema: `schemas/{paths[name].name}`", ""]
        lines += _fields(schema, schema, prefix="")
        lines += _choices(schema)
    return "\n".join(lines)


def _fields(schema: dict[str, Any], root: dict[str, Any], *, prefix: str) -> list[str]:
    return table(("field", "", "type", "meaning"), _field_rows(schema, root, prefix=prefix))


def _field_rows(schema: dict[str, Any], root: dict[str, Any], *, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    required = set(schema.get("required", ()))
    for name, field in schema.get("properties", {}).items():
        resolved = _resolve(field, root)
        presence = "required" if name in required else "optional"
        yield code(prefix + name), presence, cell(_type(resolved)), _meaning(resolved)
        inner = _resolve(resolved.get("items", resolved), root)
        if "properties" in inner:
            yield from _field_rows(inner, root, prefix=f"{prefix}{name}{'[]' if inner is not resolved else ''}.")


def _resolve(field: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """A field with its $ref resolved."""
    if "$ref" not in field:
        return field
    target: Any = root
    for part in field["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return {**target, **{key: value for key, value in field.items() if key != "$ref"}}


def _type(field: dict[str, Any]) -> str:
    if "const" in field:
        return json.dumps(field["const"])
    choices = field.get("enum") or [choice["const"] for choice in field.get("oneOf", ()) if "const" in choice]
    if 0 < len(choices) <= 4:
        return " or ".join(map(json.dumps, choices))
    if choices:
        return "one of the values below"
    kinds = field.get("type", "any")
    return kinds if isinstance(kinds, str) else " or ".join(kinds)


def _meaning(field: dict[str, Any]) -> str:
    parts = [field.get("description", "")]
    if "minimum" in field and field["minimum"] != 0:
        parts.append(f"At least {field['minimum']}.")
    text = cell(" ".join(part for part in parts if part))
    if "examples" in field:
        text += " For example " + ", ".join(code(json.dumps(value)) for value in field["examples"]) + "."
    if "pattern" in field and len(field["pattern"]) < 40:
        text += f" Matches {code(field['pattern'])}."
    return text.strip()


def _choices(schema: dict[str, Any]) -> list[str]:
    """A table for each field with described values; reasons are linked to Troubleshooting."""
    lines: list[str] = []
    for name, field in schema.get("properties", {}).items():
        choices = [choice for choice in field.get("oneOf", ()) if "const" in choice]
        if choices:
            lines += [f"Values of `{name}`, with links to what to do:", ""]
            links = [f"[{code(choice['const'])}](../troubleshooting.md#{choice['const']})" for choice in choices]
            rows = [(link, cell(choice["description"])) for link, choice in zip(links, choices, strict=True)]
            lines += table((name, "meaning"), rows)
    return lines


# Messages


@dataclass(frozen=True)
class Message:
    """A `raise` in the code: the error's class, the reason of a rejection, and the message's template."""

    module: str
    line: int
    error: str
    reason: str | None
    form: str


GROUPS = (
    ("ConfigError", "An option, a path or a value in config.yaml is wrong. Nothing was computed or changed."),
    ("CheckpointError", "A model file is missing, incomplete, or of an architecture that hfprep does not support."),
    ("StoreError", "A folder cannot be used as requested; files on disk are unchanged."),
    ("HfprepError", "The run cannot continue. Finished samples are kept: run the same command again."),
    ("ValueError", "A Python function got an invalid argument."),
)  # fmt: skip
OTHERS = {"DeviceError": "HfprepError"}


def messages_page(package: Path) -> str:
    """All messages with which hfprep ends or rejects a sample."""
    # Without templates that only pass on another message.
    found = [item for item in messages(package) if re.search(r"[a-z]", re.sub(r"\{[^}]*\}", "", item.form))]
    lines = [
        "# Messages", "",
        "All messages that end a command or reject a sample; `{...}` stands for a value. Each message gives the cause, "
        "the value and the next step. [Troubleshooting](../troubleshooting.md) explains the most common ones.", "",
        "## Reasons of rejected lines", "",
    ]  # fmt: skip
    rejections = [item for item in found if item.error == "RejectedSample"]
    rows = [(_reason(item.reason), code(item.form)) for item in sorted(rejections, key=lambda x: x.reason or "~")]
    lines += table(("reason", "message"), dict.fromkeys(rows))
    for name, meaning in GROUPS:
        group = [item for item in found if OTHERS.get(item.error, item.error) == name]
        lines += [f"## {name}", "", meaning, ""]
        lines += table(("message", "module"), dict.fromkeys((code(item.form), code(item.module)) for item in group))
    return "\n".join(lines)


def _reason(reason: str | None) -> str:
    return f"[{code(reason)}](../troubleshooting.md#{reason})" if reason else "any"


def messages(package: Path) -> Iterator[Message]:
    """All places that create one of hfprep's errors, ordered by module and line."""
    classes = {name for name, _ in GROUPS} | {"RejectedSample", *OTHERS}
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = path.relative_to(package.parent).as_posix()
        found = []
        for function in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))]:
            for node in _own_nodes(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in classes:
                    found.append(_message(node, node.func.id, function, module))
        yield from sorted((item for item in found if item is not None), key=lambda item: item.line)


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function (or module), without its inner functions."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from _own_nodes(child)


def _message(call: ast.Call, error: str, function: ast.AST, module: str) -> Message | None:
    arguments = list(call.args)
    if not arguments:
        return None
    reason = None
    if error == "RejectedSample":
        first = arguments.pop(0)
        reason = first.attr.lower() if isinstance(first, ast.Attribute) and first.attr.isupper() else None
    text = _form(arguments[0], function)
    return Message(module, call.lineno, error, reason, re.sub(r"\s+", " ", text).strip())


def _form(node: ast.expr, function: ast.AST) -> str:
    """The text of an expression, with {name} for runtime values."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_form(part, function) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        known = len(_assigned(node.value, function)) == 1  # with several assignments, the value is ambiguous
        return _form(node.value, function) if known else "{" + _name(node.value) + "}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _form(node.left, function) + _form(node.right, function)
    joined = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "join"
    value = next(iter(_assigned(node.args[0] if joined else node, function)[-1:]), None)
    if isinstance(value, ast.List) and joined:
        return " ".join(_form(part, function) for part in value.elts)
    if isinstance(value, ast.JoinedStr) or (isinstance(value, ast.Constant) and isinstance(value.value, str)):
        return _form(value, function)
    return "{" + _name(node) + "}"


def _assigned(node: ast.expr, function: ast.AST) -> list[ast.expr]:
    """The values assigned to a local name before this use, ordered by line."""
    if not isinstance(node, ast.Name):
        return []
    found = [
        (item.lineno, item.value)
        for item in _own_nodes(function)
        if isinstance(item, ast.Assign) and any(isinstance(x, ast.Name) and x.id == node.id for x in item.targets)
    ]
    return [value for line, value in sorted(found, key=lambda pair: pair[0]) if line < node.lineno]


def _name(node: ast.expr) -> str:
    """A name for a value: the last name in its expression."""
    if isinstance(node, ast.Attribute | ast.Name):
        return (node.attr if isinstance(node, ast.Attribute) else node.id).strip("_").lower()
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    if isinstance(node, ast.BoolOp | ast.IfExp):
        return _name(node.values[-1] if isinstance(node, ast.BoolOp) else node.body)
    if isinstance(node, ast.Call) and node.args:
        return _name(node.args[0])
    return "..."
