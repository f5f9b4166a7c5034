"""Examples of the documentation that need more than a folder with data, each run for real in a way of its own.

Above such an example stands `<!-- run: WAY -->`, or `<!-- run: WAY (slow) -->` where that takes more than some seconds.
`WAYS` has a function for each: it takes the example's text and a `Place`, runs it in a shell, and looks at what came of
it. What an example names that only its reader has (a host, a number of jobs, a port) is put in before it runs.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hfprep.recipes.indextts2.recipe import locate
from hfprep.recipes.options import ModelOptions
from tests.fake_hub import TOKEN, serve_hub
from tests.fake_model_hub import hub_environment, serve_models

ROOT = Path(__file__).resolve().parent.parent
# What `...` stands for in the examples: the options of one's own build.
USUAL = ("--manifest", "data/manifest.jsonl", "--output-dir", "OUT", "--models", "checkpoints")
JOBS = 3
PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True)
class Place:
    """A copy of the folder that all examples are run in, and an empty folder for what else is needed."""

    folder: Path
    beside: Path


def started(body: str, folder: Path, environment: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
    """A shell at work on an example, in a group of processes of its own; `...` gets its options."""
    given = os.environ | {"PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"} | dict(environment or {})
    command = ["sh", "-euc", body.replace("...", " ".join(USUAL))]
    return subprocess.Popen(
        command, cwd=folder, env=given, text=True, start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]", seconds: float = 300) -> str:
    """What a shell printed; AssertionError with it where the shell failed."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        end(process)
        raise
    assert process.returncode == 0, output
    return output


def shell(body: str, folder: Path, environment: Mapping[str, str] | None = None) -> str:
    return finish(started(body, folder, environment))


def end(process: "subprocess.Popen[str]", number: int = signal.SIGKILL) -> None:
    """End a shell and all that it has started, if need be by force: interrupts are ignored where the tests run in the
    background of a script.
    """
    for last in (number, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, last)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)
            return


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def download(body: str, place: Place) -> None:
    """With a hub on this machine that has random models under the published names."""
    (place.folder / "checkpoints").unlink()
    with serve_models(place.folder / "demo" / "models-RANDOM") as hub:
        shell(body, place.folder, hub_environment(hub.url))
    found = locate(ModelOptions(models=place.folder / "checkpoints"))
    assert found.gpt_checkpoint.is_relative_to(place.folder / "checkpoints")
    assert hub.bodies["gpt.pth"] == 1


def push(body: str, place: Place) -> None:
    """With a hub on this machine and the login that it knows."""
    with serve_hub() as hub:
        shell(body, place.folder, hub_environment(hub.url) | {"HF_TOKEN": TOKEN, "HF_HOME": str(place.beside)})
    assert hub.repositories["USER/NAME"].private
    assert "dataset_dict.json" in hub.repositories["USER/NAME"].files


def array_of_jobs(body: str, place: Place) -> None:
    """What names the job's number runs at once in as many shells as there are jobs, the rest after them."""
    lines = body.replace("/16", f"/{JOBS}").replace("\\\n", " ").splitlines()
    job = "\n".join(line for line in lines if "$SLURM_ARRAY_TASK_ID" in line)
    assert job
    running = [started(job, place.folder, {"SLURM_ARRAY_TASK_ID": str(number)}) for number in range(JOBS)]
    for process in running:
        finish(process)
    assert f"from {JOBS} parts" in shell("\n".join(line for line in lines if line not in job), place.folder)


def cluster(body: str, place: Place) -> None:
    """With a cluster of one node here, whose one GPU is a number in its books: the models compute on the CPU."""
    folder = tempfile.mkdtemp(prefix="r")  # short: sockets lie in it
    address = f"127.0.0.1:{free_port()}"
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    }
    head = started(
        f"ray start --head --node-ip-address=127.0.0.1 --port={address.rpartition(':')[2]} --num-cpus=2 --num-gpus=1 "
        f"--include-dashboard=false --disable-usage-stats --object-store-memory=200000000 --temp-dir={folder} --block",
        place.beside, environment,
    )  # fmt: skip
    try:
        wait_for(lambda: socket.create_connection(tuple(address.split(":")), timeout=1).close(), head)  # type: ignore[arg-type]
        before = shutil.copytree(place.folder / "OUT", place.beside / "before")
        shutil.rmtree(place.folder / "OUT")
        shell(body.replace("HOST:6379", address), place.folder, environment)
        made = (place.folder / "OUT" / "train_manifest.jsonl").read_bytes()
        assert made == (before / "train_manifest.jsonl").read_bytes()
    finally:
        end(head)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(attempt: Callable[[], object], process: "subprocess.Popen[str]", seconds: float = 120) -> None:
    """Try again until it raises no OSError, while the process is there."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            attempt()
            return
        except OSError:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "it does not answer"
            time.sleep(0.2)


def environment(body: str, place: Place) -> None:
    """In an environment that has all packages but hfprep, which pip finds as the wheel that this checkout makes."""
    wheels, venv = place.beside / "wheels", place.beside / "venv"
    shell(f"python -m hatchling build -t wheel -d {wheels}", ROOT)
    shell(f"python -m venv --without-pip {venv}", place.beside)
    packages = next(venv.glob("lib/python*/site-packages"))
    for path in Path(os.__file__.replace("os.py", "")), *map(Path, sys.path):
        if path.name == "site-packages":
            for item in path.iterdir():
                if not item.name.startswith(("hfprep", "_hfprep", "__editable__")) and item.suffix != ".pth":
                    with contextlib.suppress(FileExistsError):
                        (packages / item.name).symlink_to(item)
    pip = venv / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nexec "{venv}/bin/python" -m pip "$@"\n')
    pip.chmod(0o755)
    given = {"PATH": f"{venv}/bin{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": "", "VIRTUAL_ENV": str(venv)}
    nothing_fetched = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_NO_DEPS": "1"}
    said = shell(body, place.folder, given | nothing_fetched)
    assert "Successfully installed hfprep-" in said
    assert "does not provide the extra" not in said
    tried = shell("python -c 'import hfprep; print(hfprep.__file__)'; hfprep --help", place.beside, given)
    assert str(packages) in tried


def server(body: str, place: Place) -> None:
    """Started on a free port, asked for a page, and stopped."""
    port = free_port()
    process = started(f"{body.strip()} --dev-addr 127.0.0.1:{port}", ROOT, {"NO_MKDOCS_2_WARNING": "1"})
    pages = list[bytes]()

    def fetch() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            pages.append(answer.read())

    try:
        wait_for(fetch, process)
    finally:
        end(process, signal.SIGINT)
    assert b"<title>hfprep</title>" in pages[0]


def checkout(body: str, place: Place) -> None:
    """In a copy of the checkout whose environment is up to date, with one file of tests and the data of gpu-check."""
    root = place.beside / "checkout"
    (root / "tests").mkdir(parents=True)
    kept = ("conftest.py", "engines.py", "test_text_punctuation.py", "golden-small", "golden25-small")
    files = ("hfprep", "scripts", "requirements.lock", "requirements-dev.lock", "pyproject.toml", "README.md")
    for name in (*files, *(f"tests/{name}" for name in kept)):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    venv = root / ".venv"
    venv.mkdir()
    for item in Path(sys.prefix).iterdir():
        if item.name != ".hfprep-stamp":
            (venv / item.name).symlink_to(item)
    (venv / ".hfprep-stamp").write_text(setup_fingerprint(root) + "\n")
    shell(body, root, {"PYTHONPATH": str(root), "HFPREP_VENV": str(venv)})
    assert (venv / ".hfprep-stamp").read_text() == setup_fingerprint(root) + "\n"


def setup_fingerprint(root: Path) -> str:
    """What `scripts/setup --dev` writes when it is through, by which it knows that there is nothing to do."""
    files = [str(root / name) for name in ("pyproject.toml", "scripts/setup", "requirements-dev.lock")]
    digest = hashlib.sha256("\0".join([sys.version, str(root), "dev", *files]).encode())
    for path in files:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


Way = Callable[[str, Place], None]
WAYS: dict[str, Way] = {
    "download": download,
    "push": push,
    "array of jobs": array_of_jobs,
    "cluster": cluster,
    "environment": environment,
    "server": server,
    "checkout": checkout,
}
