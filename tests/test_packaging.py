"""The project's own files: what is committed, the lock, the scripts, and the wheel that is built from them."""

import ast
import os
import re
import stat
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock")
SCRIPTS = ("scripts/setup", "scripts/test", "scripts/demo", ".ci/run")

# Put together here, so that this file does not name them itself.
REGISTRY_HOSTS = (
    "pypi" + ".org",
    "pythonhosted" + ".org",
    "download.pytorch" + ".org",
    "registry.npmjs" + ".org",
    "deb.debian" + ".org",
    "anaconda" + ".org",
    "proxy.golang" + ".org",
)
MACHINE_PATHS = re.compile(rb"(?<![\w.$}])/(?:work|root|opt)/")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def project() -> dict:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [path for name in listing.decode().split("\0") if name and (path := ROOT / name).is_file()]


def locked(lock: str = "requirements-dev.lock") -> dict[str, list[str]]:
    """Each requirement of a lock, as written before its hashes, with its hashes."""
    text = (ROOT / lock).read_text(encoding="ascii")
    entries: dict[str, list[str]] = {}
    for entry in re.sub(r"\\\n", " ", text).splitlines():
        if entry and not entry.startswith("#"):
            entries[entry.partition(" --hash")[0].strip()] = HASH.findall(entry)
            assert not HASH.sub("", entry.partition(" --hash")[2]).replace("=sha256:", "").strip(" 0123456789abcdef")
    return entries


def test_nothing_committed_names_a_registry_or_a_path_of_one_machine() -> None:
    files = tracked_files()
    assert ROOT / "pyproject.toml" in files
    found = []
    for path in files:
        content = path.read_bytes()
        found += [f"{path.relative_to(ROOT)}: {host}" for host in REGISTRY_HOSTS if host.encode() in content]
        found += [f"{path.relative_to(ROOT)}: {match[0].decode()}" for match in MACHINE_PATHS.finditer(content)]
    assert not found


@pytest.mark.parametrize(
    ("content", "matches"),
    [
        (b"open('/" + b"work/x')", True),
        (b"see /" + b"opt/wheels", True),
        (b'"$root/' + b'root/x"', False),
        (b"a network/" + b"work", False),
    ],
)
def test_a_path_of_one_machine_is_recognised(content: bytes, matches: bool) -> None:
    assert bool(MACHINE_PATHS.search(content)) is matches


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_release_is_pinned_and_hashed(lock: str) -> None:
    entries = locked(lock)
    assert len(entries) > 50
    for entry, hashes in entries.items():
        assert re.fullmatch(r"[a-z0-9-]+==[0-9a-z.+]+( ; .+)?", entry), entry
        assert hashes, f"{entry} has no hash"


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_names_no_place(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="ascii")
    for word in ("://", "--index", "--extra-index", "--find-links", "file:", "git+", ".org", ".com", ".io", ".dev"):
        assert word not in text


@pytest.mark.parametrize(
    ("lock", "extras", "groups"),
    [
        ("requirements.lock", ("build", "report"), ("grammars", "setup")),
        ("requirements-dev.lock", ("build", "dev", "docs", "ja", "ray", "report", "s3"), ("grammars", "setup")),
    ],
)
def test_the_lock_holds_every_dependency_at_a_version_that_the_project_allows(
    lock: str, extras: tuple[str, ...], groups: tuple[str, ...]
) -> None:
    entries = map(Requirement, locked(lock))
    pins: dict[str, list[Version]] = {}
    for entry in entries:
        pins.setdefault(entry.name, []).append(Version(str(entry.specifier)[2:]))
    metadata = project()
    wanted = [*metadata["project"]["dependencies"], *metadata["build-system"]["requires"]]
    wanted += [item for extra in extras for item in metadata["project"]["optional-dependencies"][extra]]
    wanted += [item for group in groups for item in metadata["dependency-groups"][group]]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{requirement} is not in {lock}; make it anew with the command in its head"
        assert all(requirement.specifier.contains(pin) for pin in pins[name]), f"{name} is locked outside {requirement}"


def test_both_locks_agree() -> None:
    """So that what a demo runs is what the tests ran."""
    demo, tests = ({entry.partition(" ;")[0] for entry in locked(lock)} for lock in LOCKS)
    assert demo <= tests


IMPORT_NAMES = {"pyyaml": "yaml", "huggingface-hub": "huggingface_hub", "unidic-lite": "unidic_lite", "s3fs": "fsspec"}
STANDARD = sys.stdlib_module_names | {"hfprep"}


def imported_by(folder: Path) -> set[str]:
    """Top-level names that the modules below a folder import, anywhere."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - STANDARD


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    extras = project()["project"]["optional-dependencies"]
    required = [*project()["project"]["dependencies"], *extras["build"]]
    optional = [item for extra in ("ja", "ray", "report", "s3") for item in extras[extra]]
    names = {kind: {canonicalize_name(Requirement(item).name) for item in items} for kind, items in
             (("required", required), ("optional", optional))}  # fmt: skip
    modules = {kind: {IMPORT_NAMES.get(name, name) for name in found} for kind, found in names.items()}
    imported = imported_by(ROOT / "hfprep")
    with_torch = {"triton"}  # torch brings it where it can be used
    assert imported - with_torch <= modules["required"] | modules["optional"]
    assert modules["required"] <= imported


def test_a_trainer_needs_three_packages() -> None:
    """`hfprep.load`, `collate` and the sampler, with everything else out of reach."""
    code = """
import importlib.abc, sys
allowed = {"hfprep", "numpy", "pyarrow", "torch"} | sys.stdlib_module_names
declared = set(sys.argv[1].split(","))
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in declared - allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
import hfprep
from hfprep import LengthBucketedBatchSampler, collate, load
try:
    hfprep.build
except ImportError as error:
    print(error)
sys.argv = ["hfprep", "--help"]
from hfprep.__main__ import main
main()
"""
    extras = project()["project"]["optional-dependencies"]
    declared = {canonicalize_name(Requirement(item).name) for items in extras.values() for item in items}
    names = ",".join(sorted(IMPORT_NAMES.get(name, name) for name in declared))
    found = subprocess.run([sys.executable, "-c", code, names], capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.returncode == 1
    assert "pip install 'hfprep[build]'" in found.stdout
    assert "pip install 'hfprep[build]'" in found.stderr


def test_torch_and_torchaudio_are_locked_as_a_pair() -> None:
    pins = dict(entry.partition(" ;")[0].split("==") for entry in locked())
    assert pins["torch"] == pins["torchaudio"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_executable_and_plain(name: str) -> None:
    path = ROOT / name
    assert stat.S_IMODE(path.stat().st_mode) & 0o111 == 0o111
    text = path.read_bytes().decode("ascii")
    assert re.search(r"^set -eu", text, re.MULTILINE)
    subprocess.run([text.splitlines()[0].removeprefix("#!").split()[-1], "-n", str(path)], check=True)


def run_setup(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "scripts/setup"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        env=os.environ | environment,
    )


def test_setup_leaves_a_folder_alone_that_is_no_environment(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    result = run_setup(str(tmp_path))
    assert result.returncode == 1
    assert f"{tmp_path} exists and is not a virtual environment" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_setup_names_the_pythons_it_tried(tmp_path: Path) -> None:
    """false stands for an interpreter that does not run, as a version manager's placeholder does."""
    result = run_setup(str(tmp_path / "venv"), PYTHON="false no-such-python")
    assert result.returncode == 1
    assert "no Python 3.11 to 3.14 was found among: false no-such-python" in result.stderr


def test_setup_says_how_it_is_used_when_called_wrongly() -> None:
    result = run_setup("a", "b")
    assert result.returncode == 1
    assert "usage: scripts/setup [--dev] [VENV_DIR]" in result.stderr


def test_license_is_apache_2(repository: Path) -> None:
    text = (repository / "LICENSE").read_text(encoding="ascii")
    assert text.split("\n\n")[0].split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text
    assert project()["project"]["license"] == "Apache-2.0"


def test_the_wheel_holds_the_package_and_its_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("hfprep-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"hfprep-{project()['project']['version']}.dist-info"
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hfprep").rglob("*.py")}
    assert modules <= names
    assert "hfprep/py.typed" in names
    assert f"{info}/licenses/LICENSE" in names
    assert not [name for name in names if not name.startswith(("hfprep/", f"{info}/"))]
    assert "hfprep = hfprep.__main__:main" in entry_points
    assert metadata["Requires-Python"] == ">=3.11"
