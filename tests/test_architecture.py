"""The house rules that a machine can check: who may import whom, sizes, and what `import hfprep` may cost."""

import ast
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "hfprep"

# From the bottom up; a room imports only from the levels before its own, and from itself.
LEVELS = ("errors", "schema", "io", "inputs", "models", "recipes", "store", "formats", "pipeline", "tools", "cli")
LEVEL_OF = {room: level for level, room in enumerate(LEVELS)}
# Rooms that do not see each other although one comes before the other.
APART = {"models": {"inputs"}, "store": {"models", "recipes"}, "formats": {"models", "recipes"}}
FRONT = {"__init__", "__main__"}  # the package's own front door: it may open onto every room
HEAVY = {"datasets", "pandas", "ray", "torch", "transformers", "webdataset"}
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


def module_of(path: Path) -> str:
    """The dotted name of a module."""
    return ".".join(["hfprep", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


def top_level_imports(path: Path) -> set[str]:
    """Modules, and names that may be modules, that a module imports when it is loaded."""
    found = set()
    for node in tree_of(path).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def imported_rooms(path: Path) -> set[str]:
    """The rooms of hfprep that a module imports from; "" stands for the package itself (its version)."""
    rooms = set()
    for name in imported_names(path):
        top, _, rest = name.partition(".")
        if top == "hfprep":
            room = rest.partition(".")[0]
            rooms.add("" if room == "__version__" else room)
    return rooms - {""}


def test_rooms_import_only_downward() -> None:
    upward = []
    for path in MODULES:
        room = room_of(path)
        if room in FRONT:
            assert imported_rooms(path) <= set(LEVEL_OF)
            continue
        assert room in LEVEL_OF, f"{name_of(path)} is a room that LEVELS does not know; give it a place in the order"
        upward += [
            f"{name_of(path)} imports from {other}"
            for other in sorted(imported_rooms(path) - {room})
            if LEVEL_OF.get(other, len(LEVELS)) >= LEVEL_OF[room] or other in APART.get(room, ())
        ]
    assert not upward


def test_modules_import_each_other_without_a_cycle() -> None:
    """At their top: an import inside a function may look back at what imports its module."""
    modules = {module_of(path): path for path in MODULES if room_of(path) not in FRONT}
    needs = {name: top_level_imports(path) & modules.keys() - {name} for name, path in modules.items()}
    while leaves := [name for name, found in needs.items() if not found]:
        for name in leaves:
            del needs[name]
        needs = {name: found - set(leaves) for name, found in needs.items()}
    assert not needs, f"modules in a cycle, or that import one: {sorted(needs)}"


def test_modules_and_functions_are_short() -> None:
    long = []
    for path in MODULES:
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length >= MAX_MODULE_LINES:
            long.append(f"{name_of(path)}: {length} lines")
        long += [
            f"{name_of(path)}: {node.name}: {size} lines"
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (size := (node.end_lineno or node.lineno) - node.lineno + 1) >= MAX_FUNCTION_LINES
        ]
    assert not long


# What belongs to one model family: names of its columns, and its sizes. Outside of the rooms below nothing names them;
# the rest of the package goes by an output's schema.
FAMILY_ROOMS = ("recipes/", "models/", "tools/demo/")
FAMILY_NAMES = re.compile(r"\b(condition|emo_vec)(?![a-z])|\b50 Hz")
FAMILY_SIZES = {8192, 600, 1815}


def docstrings_of(tree: ast.Module) -> set[int]:
    """Where docstrings are, by the identity of their nodes."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented) and node.body]
    return {id(body[0].value) for body in bodies if isinstance(body[0], ast.Expr)}


def family_words(tree: ast.Module) -> Iterator[str]:
    """Where code (not prose) names what is one model family's."""
    prose = docstrings_of(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in prose and (found := FAMILY_NAMES.search(text)):
                yield f"line {node.lineno}: {found[0]}"
            case ast.Constant(value=int(number)) if number in FAMILY_SIZES:
                yield f"line {node.lineno}: {number}"
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                if name == "emo_vec":
                    yield f"line {node.lineno}: {name}"


def test_only_recipes_name_what_is_a_model_family_s() -> None:
    named = []
    for path in MODULES:
        name = name_of(path)
        if not name.startswith(FAMILY_ROOMS):
            named += [f"{name} {found}" for found in family_words(tree_of(path))]
    assert not named


def test_family_words_are_seen_in_code_and_not_in_prose() -> None:
    code = '''"""emo_vec, 50 Hz."""
paths = {"condition_path": 8192, "conditions": 60}
row.emo_vec = f"{x}/emo_vec"  # condition
if condition: rate = "50 Hz"
'''
    found = list(family_words(ast.parse(code)))
    assert [item.partition(": ")[0] for item in sorted(found)] == [f"line {line}" for line in (2, 2, 3, 3, 4)]
    assert {item.partition(": ")[2] for item in found} == {"condition", "8192", "emo_vec", "50 Hz"}


def test_modules_say_what_they_are() -> None:
    trees = {name_of(path): tree_of(path) for path in MODULES}
    assert not [name for name, tree in trees.items() if tree.body and not ast.get_docstring(tree)]


def test_only_the_command_line_prints_and_reads_the_environment() -> None:
    found = []
    for path in MODULES:
        if room_of(path) in {"cli", "__main__"}:
            continue
        for node in ast.walk(tree_of(path)):
            match node:
                case ast.Call(func=ast.Name(id="print")):
                    found.append(f"{name_of(path)} line {node.lineno}: print")
                case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "environb" | "getenv" | "getenvb" as name):
                    found.append(f"{name_of(path)} line {node.lineno}: os.{name}")
                case ast.ImportFrom(module="os", names=names) if {"environ", "getenv"} & {x.name for x in names}:
                    found.append(f"{name_of(path)} line {node.lineno}: from os import the environment")
    assert not found


PATCHED = re.compile(
    r'(?:setattr|setitem|patch\.object)\(\s*(?:"[\w.]+\.(_[a-zA-Z]\w*)"|[\w.]+\.(_[a-zA-Z]\w*),|[\w.]+,\s*"(_[a-zA-Z]\w*)")'
)
FOREIGN = {"_modules", "_patch_lang_tensor"}  # torch's and Triton's, which have no other seam


def patched_names(code: str) -> set[str]:
    """The private names that code replaces."""
    return {name for match in PATCHED.finditer(code) for name in match.groups() if name} - FOREIGN


def test_tests_patch_public_names() -> None:
    """A private name may change with whatever it is part of."""
    files = (path for path in sorted(Path(__file__).parent.glob("*.py")) if path != Path(__file__))
    found = {path.name: patched_names(path.read_text(encoding="utf-8")) for path in files}
    assert not {name: names for name, names in found.items() if names}
    code = 'p.setattr(m, "_a", 1); p.setattr("x.y._b", 1); p.setitem(m._C, 1, 2); patch.object(\n m, "_d")'
    assert patched_names(code) == {"_a", "_b", "_C", "_d"}


def test_the_checks_see_what_they_look_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative, nested and plain imports are all seen, so a module cannot slip past by the way it is written."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    module = tmp_path / "text" / "sample.py"
    module.parent.mkdir()
    module.write_text(
        "import hfprep.cli.app\nfrom hfprep import store, __version__\nfrom ..models import codec\n"
        "from . import tokens\ndef lazy():\n    from hfprep.pipeline.engines.local import build\n",
        encoding="utf-8",
    )
    assert imported_rooms(module) == {"cli", "store", "models", "text", "pipeline"}
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
    assert "hfprep.cli.app" in loaded
    assert not HEAVY.intersection(loaded)


def test_a_driver_reads_the_manifest_without_waiting_for_torch() -> None:
    """What computes is in the workers."""
    code = "import sys, hfprep.cli.build, hfprep.pipeline.building; print(*sorted(sys.modules))"
    loaded = run_python("-c", code).stdout.split()
    assert "hfprep.pipeline.engines.local" in loaded
    assert not HEAVY.intersection(loaded)


def test_a_driver_needs_no_torch(golden_small: Path, golden25_small: Path, tmp_path: Path) -> None:
    """Also where the recipe looks into a checkpoint."""
    code = """
import pathlib, sys, hfprep
from hfprep.pipeline.inputs import find_inputs
from hfprep.store.remote import open_folder
first, second, output = map(pathlib.Path, sys.argv[1:])
def config(golden):
    models, folder = golden / "checkpoints", output / golden.name
    return hfprep.BuildConfig(manifest=golden / "manifest.jsonl", models=models, output_dir=folder, max_samples=2)
built, other = hfprep.build(config(first)).accepted, config(second)
print(built, find_inputs(other, open_folder(other.output_dir, None)).schema.recipe, *sorted(sys.modules))
"""
    done = run_python("-c", code, *map(str, (golden_small, golden25_small, tmp_path)))
    built, found, *loaded = done.stdout.split()
    assert (built, found) == ("2", "indextts-2.5")
    assert not (HEAVY - {"pandas"}).intersection(loaded)  # pyarrow imports pandas when it converts lists


@pytest.fixture(scope="module")
def program(golden_small: Path, tmp_path_factory: pytest.TempPathFactory) -> "subprocess.CompletedProcess[str]":
    """A program that builds two clips in its own process and prints the modules that it has loaded then."""
    code = """
import logging, sys, hfprep
manifest, models, output = sys.argv[1:]
config = hfprep.BuildConfig(manifest=manifest, models=models, output_dir=output, engine="inline", max_samples=2)
hfprep.build(config)
assert not logging.getLogger().handlers and not logging.getLogger("hfprep").handlers
print(*sorted(sys.modules))
"""
    paths = golden_small / "manifest.jsonl", golden_small / "checkpoints", tmp_path_factory.mktemp("program") / "out"
    return run_python("-c", code, *map(str, paths))


def test_a_build_loads_neither_the_compiler_nor_the_model_library(program: "subprocess.CompletedProcess[str]") -> None:
    """Each takes a second and 60 MB in every process: torch's compiler is imported where weights are drawn on meta."""
    loaded = program.stdout.split()
    assert "torch" in loaded
    assert not {"torch._dynamo", "torch._inductor", "transformers", "datasets"}.intersection(loaded)


def test_a_program_that_configures_no_logging_sees_the_lines(program: "subprocess.CompletedProcess[str]") -> None:
    assert re.search(r" INFO \d+ lines: 2 to compute", program.stderr)
    assert re.search(r" INFO 2/2, .* elapsed\n", program.stderr)
    assert "\x1b" not in program.stderr
    assert program.stdout.count("\n") == 1


def test_help_takes_less_than_a_second() -> None:
    """In processor time, which is what it takes on a machine with nothing else to do; the least of up to three runs."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_python("-m", "hfprep", "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if seconds[-1] < 1:
            break
    assert min(seconds) < 1, f"python -m hfprep --help took {seconds} seconds"


def test_every_public_name_exists() -> None:
    import hfprep

    assert hfprep.__all__
    missing = [name for name in hfprep.__all__ if not hasattr(hfprep, name)]
    assert not missing
