"""Ways to install: what setup prints, sdist and wheel, what the demo brings, without CUDA, the Dockerfile."""

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.test_packaging import ROOT, locked, project

GPU_ONLY = re.compile(r"(nvidia|cuda)-.+|triton")
DOCUMENTED = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")


def closure(requirement: str) -> set[str]:
    """Canonical names of what pip installs for a requirement, apart from what torch needs for GPUs alone.

    As the installed packages declare it, hfprep itself as pyproject.toml does.
    """
    found, waiting = set[str](), [Requirement(requirement)]
    seen = set[str]()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if str(wanted) in seen or GPU_ONLY.fullmatch(name):
            continue
        seen.add(str(wanted))
        found.add(name)
        if name == "hfprep":
            metadata = project()["project"]
            declared = list(metadata["dependencies"])
            declared += [item for extra in wanted.extras for item in metadata["optional-dependencies"][extra]]
        else:
            declared = importlib.metadata.requires(name) or []
        for item in map(Requirement, declared):
            extras = [{"extra": extra} for extra in ("", *wanted.extras)]
            if item.marker is None or any(item.marker.evaluate(extra) for extra in extras):
                waiting.append(item)
    return found


def test_the_demo_installs_nothing_that_only_tests_or_clusters_need() -> None:
    names = {entry.partition("==")[0] for entry in locked("requirements.lock")}
    assert {"torch", "transformers", "wetextprocessing"} <= names
    assert not names & {"mypy", "moto", "selenium", "ray", "pytest", "mkdocs", "torchaudio", "pynini"}


def test_pip_brings_no_pynini() -> None:
    for extra in project()["project"]["optional-dependencies"]:
        assert not {"pynini", "wetextprocessing"} & closure(f"hfprep[{extra}]")


def test_a_build_needs_nothing_of_cuda_and_nothing_beyond_its_extra(tmp_path: Path) -> None:
    """The demo with every other installed package out of reach, in all processes of the build."""
    allowed = closure("hfprep[build]")
    assert {"torch", "transformers", "av"} <= allowed
    modules = importlib.metadata.packages_distributions()
    hidden = {
        module
        for module, distributions in modules.items()
        if not {canonicalize_name(name) for name in distributions} & (allowed | {"hfprep", "wetextprocessing"})
    }
    assert {"triton", "torchaudio", "ray", "bokeh"} <= hidden
    (tmp_path / "sitecustomize.py").write_text(
        f"""
import sys
from importlib.machinery import PathFinder
class Shown(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden!r} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Shown
"""
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hfprep", "demo", "demo", "--num-samples", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "demo" / "features" / "train_manifest.jsonl").stat().st_size


def test_setup_prints_a_line_a_step_and_names_the_log(tmp_path: Path) -> None:
    """Where pip finds nothing: its own lines are in the log, apart from the error."""
    nothing_to_find = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    venv = tmp_path / "venv"
    done = subprocess.run(
        [str(ROOT / "scripts/setup"), str(venv)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | nothing_to_find | {"PYTHON": sys.executable},
    )
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["setup:", "setup:", "ERROR:", "ERROR:", "setup:"]
    assert lines[-1] == f"setup: error: pip failed; its output is in {venv}/setup.log"
    assert lines[-2] in (venv / "setup.log").read_text()


def test_the_sdist_makes_the_wheel_with_schemas_and_types(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("hfprep-*.whl")
    assert len(list(tmp_path.glob("hfprep-*.tar.gz"))) == 1
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = {name for name in names if name.endswith("/METADATA")}
        metadata = archive.read(info).decode()
    schemas = {f"hfprep/schemas/{path.name}" for path in (ROOT / "schemas").iterdir()}
    assert len(schemas) > 5
    assert schemas | {"hfprep/py.typed"} <= names
    assert "\nProject-URL: " in metadata


# The Dockerfile, as far as no engine is needed


def instructions() -> list[tuple[str, str]]:
    """Each instruction's name and arguments."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines) if name]


def commands_of_dockerfile() -> list[str]:
    found = [part.strip() for name, rest in instructions() if name == "RUN" for part in rest.split("&&")]
    return [command.replace(" --no-cache-dir", "") for command in found]


def copied() -> set[str]:
    return {source for name, rest in instructions() if name == "COPY" for source in shlex.split(rest)[:-1]}


def test_the_dockerfile_is_of_known_instructions_and_stages() -> None:
    assert {name for name, _ in instructions()} <= {"FROM", "WORKDIR", "COPY", "ARG", "RUN", "ENTRYPOINT"}
    stages: list[str] = []
    for base, name in (rest.split(" AS ") for kind, rest in instructions() if kind == "FROM"):
        image = re.fullmatch(r"python:(\d+\.\d+)-slim", base)
        assert base in stages or (image and image[1] in SpecifierSet(project()["project"]["requires-python"]))
        stages.append(name)
    assert stages == ["source", "cpu", "cuda"]
    (script,) = {rest for kind, rest in instructions() if kind == "ENTRYPOINT"}
    assert script == '["hfprep"]'
    assert "hfprep" in project()["project"]["scripts"]
    arguments = {rest for kind, rest in instructions() if kind == "ARG"}
    used = set(re.findall(r"\$(\w+)", " ".join(commands_of_dockerfile())))
    assert arguments == used


def test_the_commands_of_the_dockerfile_are_the_documented_ones() -> None:
    documented = {line.strip() for line in DOCUMENTED.splitlines()}
    pips = [command for command in commands_of_dockerfile() if command.startswith("pip ")]
    assert len(pips) == 5
    assert not [command for command in pips if command not in documented]
    for stage in ("cpu", "cuda"):
        assert f"docker build --target {stage}" in DOCUMENTED


def test_what_is_copied_into_the_image_exists_and_makes_the_wheel(tmp_path: Path) -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore[0] == "*"
    shown = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    assert copied() == set(shown)
    for name in copied():
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "out", "."]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert len(list((tmp_path / "out").glob("hfprep-*.whl"))) == 1


@pytest.mark.slow
def test_without_cuda_it_takes_less_than_2_gb_and_computes(tmp_path: Path) -> None:
    """The documented commands, with the CPU build that pip finds here; left out where it finds none."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    programs = tmp_path / "venv" / "bin"
    listed = subprocess.run([programs / "pip", "index", "versions", "torch"], capture_output=True, text=True).stdout
    versions = re.findall(r"[\d.]+\+cpu", listed)
    if not versions:
        pytest.skip("pip finds no CPU build of torch here")
    cpu = [command for command in commands_of_dockerfile() if command.startswith("pip ")][:3]
    assert cpu[0] == 'pip install torch --index-url "$TORCH_INDEX"'
    for command in (f"pip install torch=={versions[0]}", *cpu[1:]):
        subprocess.run([str(programs / "pip"), *shlex.split(command)[1:]], cwd=ROOT, check=True, capture_output=True)
    installed = sum(path.lstat().st_size for path in (tmp_path / "venv").rglob("*"))
    assert installed < 2e9, f"{installed / 1e9:.2f} GB"
    demo = [str(programs / "hfprep"), "demo", "demo", "--num-samples", "2"]
    done = subprocess.run(demo, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 0, done.stdout + done.stderr
