"""The house rules that a machine can check: who may import whom, sizes, and what `import hfprep` may cost."""

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "hfprep"

# From the bottom up; a room imports only from the levels before its own, and from itself.
LEVELS = (
    {"errors"},
    {"chunks", "object_storage", "records", "references"},
    {"config", "data_sets", "field_map", "model_config", "sizes"},
    {"manifest"},
    {"text"},
    {"audio"},
    {"sources"},
    {"models"},
    {"batching", "devices", "intake", "intake_processes", "prefetch", "transfers"},
    {"features"},
    {"store"},
    {"exporters"},
    {"packing", "pairs", "retokenizing"},
    {"inputs", "inspection", "logs", "planning", "progress", "signals"},
    {"engines", "parts"},
    {"precision_choice"},
    {"building", "building_many"},
    {"doctor", "download", "dry_run", "merging", "preflight", "verify"},
    {"loading"},
    {"report", "summary"},
    {"demo"},
    {"bench"},
    {"cli", "commands"},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FRONT = {"__init__", "__main__"}  # the package's own front door: it may open onto every room
HEAVY = {"datasets", "pandas", "ray", "torch", "torchaudio", "transformers", "webdataset"}
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 50

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    """The room that a module belongs to: its folder in the package, or its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_names(path: Path) -> Iterator[str]:
    """Every dotted name that a module imports, at its top or inside a function, relative imports resolved."""
    package = ["hfprep", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*origin, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported_rooms(path: Path) -> set[str]:
    """The rooms of hfprep that a module imports from; "" stands for the package itself (its version)."""
    rooms = set()
    for name in imported_names(path):
        top, _, rest = name.partition(".")
        if top == "hfprep":
            room = rest.partition(".")[0]
            rooms.add("" if room == "__version__" else room)
    return rooms - {""}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_rooms_import_only_downward(path: Path) -> None:
    room = room_of(path)
    if room in FRONT:
        assert imported_rooms(path) <= set(LEVEL_OF)
        return
    assert room in LEVEL_OF, f"{name_of(path)} is a room that LEVELS does not know; give it a place in the order"
    upward = {
        other
        for other in imported_rooms(path) - {room}
        if LEVEL_OF.get(other, len(LEVELS)) >= LEVEL_OF[room] and other not in LEVELS[LEVEL_OF[room]]
    }
    assert not upward, f"{name_of(path)} imports from {sorted(upward)}, which do not lie below {room!r}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_and_functions_are_short(path: Path) -> None:
    length = len(path.read_text(encoding="utf-8").splitlines())
    assert length < MAX_MODULE_LINES, f"{name_of(path)} has {length} lines"
    long = {
        node.name: size
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (size := (node.end_lineno or node.lineno) - node.lineno + 1) >= MAX_FUNCTION_LINES
    }
    assert not long, f"functions of {name_of(path)} with {MAX_FUNCTION_LINES} lines or more: {long}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_say_what_they_are(path: Path) -> None:
    tree = tree_of(path)
    assert not tree.body or ast.get_docstring(tree), f"{name_of(path)} has no docstring"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if room_of(path) not in {"cli", "commands", "__main__"}], ids=name_of
)
def test_only_the_command_line_prints_and_reads_the_environment(path: Path) -> None:
    found = []
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.Call(func=ast.Name(id="print")):
                found.append(f"line {node.lineno}: print")
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "environb" | "getenv" | "getenvb" as name):
                found.append(f"line {node.lineno}: os.{name}")
            case ast.ImportFrom(module="os", names=names) if {"environ", "getenv"} & {alias.name for alias in names}:
                found.append(f"line {node.lineno}: from os import the environment")
    assert not found, f"{name_of(path)}: {found}"


def test_the_checks_see_what_they_look_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative, nested and plain imports are all seen, so a module cannot slip past by the way it is written."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    module = tmp_path / "text" / "sample.py"
    module.parent.mkdir()
    module.write_text(
        "import hfprep.cli\nfrom hfprep import store, __version__\nfrom ..models import codec\nfrom . import tokens\n"
        "def lazy():\n    from hfprep.engines.local import build\n",
        encoding="utf-8",
    )
    assert imported_rooms(module) == {"cli", "store", "models", "text", "engines"}
    assert room_of(module) == "text"


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=120, check=True
    )


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = run_python("-c", "import sys, hfprep; print(*sorted(sys.modules))").stdout.split()
    assert "hfprep" in loaded
    assert not HEAVY.intersection(loaded)


def test_help_loads_nothing_heavy() -> None:
    report = run_python("-X", "importtime", "-m", "hfprep", "--help").stderr
    loaded = {line.rpartition("|")[2].strip() for line in report.splitlines() if line.startswith("import time:")}
    assert "hfprep.cli" in loaded
    assert not HEAVY.intersection(loaded)


def test_a_build_loads_neither_the_compiler_nor_the_model_library(golden_small: Path, tmp_path: Path) -> None:
    """Each takes a second and 60 MB in every process: torch's compiler is imported where weights are drawn on meta."""
    code = """
import pathlib, sys, hfprep
folder = pathlib.Path(sys.argv[1])
config = hfprep.BuildConfig(
    manifest=folder / "manifest.jsonl", models=folder / "checkpoints", output_dir=pathlib.Path(sys.argv[2])
)
print(hfprep.build(config).accepted, *sorted(sys.modules))
"""
    accepted, *loaded = run_python("-c", code, str(golden_small), str(tmp_path / "out")).stdout.split()
    assert int(accepted)
    assert "torch" in loaded
    assert not {"torch._dynamo", "torch._inductor", "transformers"}.intersection(loaded)


def test_help_takes_less_than_a_second() -> None:
    """In processor time, which is what it takes on a machine with nothing else to do; the least of three runs."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_python("-m", "hfprep", "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1, f"python -m hfprep --help took {seconds} seconds"


def test_every_public_name_exists() -> None:
    import hfprep

    assert hfprep.__all__
    missing = [name for name in hfprep.__all__ if not hasattr(hfprep, name)]
    assert not missing
