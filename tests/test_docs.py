"""README.md and docs/: every example runs, every reason and error has its remedy, the site builds without a fault."""

import contextlib
import functools
import http.server
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from hfprep import errors
from hfprep.errors import HfprepError, Reason
from tests.doc_ways import USUAL, WAYS, Place

if TYPE_CHECKING:
    from hfprep.tools.demo.dataset import DemoDataset

pytestmark = pytest.mark.usefixtures("one_clip_is_timed", "normalised_once")

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = re.compile(r"(?:<!--([^>]*)-->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN, TEXT = {"sh", "python"}, {"", "text", "json"}
WAY, STATUS = re.compile(r"run: ([a-z ]+?)(?: \((slow)\))?"), "exit status:"
SHELL_WORDS = re.compile(r"[|&;<>$`]|^(?:for|while|if|export|cd)\b")


@dataclass(frozen=True)
class Example:
    """A block of a page that is to be run, with what the comment above it says."""

    page: Path
    line: int
    kind: str
    body: str
    comment: str

    @property
    def way(self) -> str | None:
        """The way of its own in which the example is run, one of `WAYS`."""
        match = WAY.fullmatch(self.comment)
        return match[1] if match else None

    @property
    def slow(self) -> bool:
        match = WAY.fullmatch(self.comment)
        return bool(match and match[2])

    @property
    def statuses(self) -> set[int]:
        """The exit statuses that are right."""
        if not self.comment.startswith(STATUS):
            return {0}
        return {int(number) for number in re.findall(r"\d+", self.comment.partition("(")[0])}

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def examples(page: Path) -> list[Example]:
    text = page.read_text(encoding="utf-8")
    return [
        Example(page, text.count("\n", 0, match.start(2)) + 1, match[2], match[3], (match[1] or "").strip())
        for match in EXAMPLES.finditer(text)
        if match[2] not in TEXT
    ]


def quiet_run(arguments: list[str]) -> tuple[int, str]:
    """Exit status and output of `python -m hfprep ARGUMENTS`, in this process."""
    from hfprep.cli import app as cli

    result = CliRunner().invoke(cli.app, arguments)
    if isinstance(result.exception, HfprepError):
        return 1, f"{result.output}\nhfprep: {result.exception}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def commands(body: str) -> Iterator[str]:
    """The commands of a shell block: a line each, or as many as a backslash or an open quote makes it."""
    held = ""
    for line in body.splitlines():
        held += line + "\n"
        try:
            words = shlex.split(held, comments=True)
        except ValueError:
            continue
        if line.endswith("\\"):
            continue
        if words:
            yield held.strip().replace("\\\n", " ")
        held = ""
    assert not held.strip(), f"a quote is not closed: {held}"


def run_command(command: str) -> tuple[int, str]:
    words = shlex.split(command, comments=True)
    words = [new for word in words for new in (USUAL if word == "..." else [word])]
    if words[:3] == ["python", "-m", "hfprep"] and not SHELL_WORDS.search(re.sub(r"'[^']*'|#.*", "", command)):
        return quiet_run(words[3:])
    assert words[0] not in {"pip", "apt-get", "hf", "git"}, f"{words[0]} changes this machine: give it a way of its own"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-euc", command], capture_output=True, text=True, timeout=120, env=os.environ | {"PATH": path}
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread for torch: with more than there are idle cores, small products spend their time waiting."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples find in the folder that they are run in: what scripts/demo makes, and names that pages use."""
    from hfprep.tools.demo.dataset import make_dataset
    from hfprep.tools.demo.sentences import train_tokenizer

    folder = tmp_path_factory.mktemp("docs") / "world"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        status, output = quiet_run(["demo", "--num-samples", "4"])
        assert status == 0, output
        made = make_dataset("data", num_samples=4, max_seconds=1.0)
        _with_speakers(made)
        make_dataset("data_ja", num_samples=2, max_seconds=1.0, bad_lines=False)
        os.symlink("demo/models-RANDOM", "checkpoints")
        status, output = quiet_run(["build", *USUAL])
        assert status == 0, output
        Path("NEW.model").write_bytes(train_tokenizer())
        for command in (["export-arrow", "OUT", "DATASET"], ["export-webdataset", "OUT", "SHARDS"]):
            status, output = quiet_run(command)
            assert status == 0, output
    return folder


def _with_speakers(made: "DemoDataset") -> None:
    """Give the special lines that are to be accepted a speaker, as pairs need."""
    lines = made.manifest.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if number not in made.rejected and b'"speaker"' not in line:
            lines[number - 1] = line.replace(b"{", b'{"speaker": "tenor", ', 1)
    made.manifest.write_bytes(b"".join(lines))


def hub_cache(folder: Path, models: Path) -> None:
    """Make a Hub cache that holds the demo's models under the names of the published ones."""
    for name, source in (("facebook--w2v-bert-2.0", models / "w2v-bert-2.0"), ("amphion--MaskGCT", models)):
        snapshot = folder / f"models--{name}" / "snapshots" / "0"
        wanted = source if source != models else models / "semantic_codec"
        shutil.copytree(wanted, snapshot if source != models else snapshot / "semantic_codec")
        (folder / f"models--{name}" / "refs").mkdir()
        (folder / f"models--{name}" / "refs" / "main").write_text("0")


@pytest.fixture
def folder(world: Path) -> Path:
    """A copy of `world` at the same place for each page, with the same model files, so that they stay loaded."""
    folder, kept = world.parent / "here", world.parent / "models"
    if folder.exists():
        (folder / "demo" / "models-RANDOM").replace(kept)
        shutil.rmtree(folder)
    else:
        shutil.copytree(world / "demo" / "models-RANDOM", kept)
    shutil.copytree(world, folder, symlinks=True, ignore=shutil.ignore_patterns("models-RANDOM"))
    kept.replace(folder / "demo" / "models-RANDOM")
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=lambda page: page.name)
def test_the_examples_run(page: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_cache(tmp_path / "hub", folder / "demo" / "models-RANDOM")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(folder)
    with contextlib.ExitStack() as stack:
        if "s3://bucket/" in page.read_text(encoding="utf-8"):
            from tests.s3_server import s3_server

            stack.enter_context(s3_server("bucket")).put_folder(folder / "data", "data")
            monkeypatch.setenv("HOME", str(tmp_path))  # the cache folder is in it
        _run_examples(page)


def _run_examples(page: Path) -> None:
    """Run them in order, those of Python in one namespace."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for example in examples(page):
        if example.way:
            continue
        if example.kind == "python":
            program = compile("\n" * example.line + example.body, str(page), "exec")
            with redirect_stdout(io.StringIO()):
                exec(program, names)
            continue
        for command in commands(example.body):
            status, output = run_command(command)
            assert status in example.statuses, f"{example.where}: {command}\nexit status {status}\n{output}"


@pytest.mark.slow
def test_the_notebook_runs(world: Path, tmp_path: Path) -> None:
    """Its cells from top to bottom, in a process without Jupyter; they are kept without outputs."""
    notebook = json.loads((ROOT / "docs" / "first-batch.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None]
    shutil.copytree(world, tmp_path / "here", symlinks=True)
    program = "\n".join("".join(cell["source"]) for cell in cells)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path / "here",
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^[1-9]\d* accepted, \d+ rejected of \d+ lines$", done.stdout, re.MULTILINE)
    assert "codes: " in done.stdout


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(example, id=f"{example.where} {example.way}", marks=[pytest.mark.slow] if example.slow else [])
        for page in PAGES
        for example in examples(page)
        if example.way
    ],
)
def test_an_example_runs_in_its_own_way(example: Example, world: Path, tmp_path: Path) -> None:
    folder, beside = tmp_path / "here", tmp_path / "beside"
    shutil.copytree(world, folder, symlinks=True)
    beside.mkdir()
    assert example.kind == "sh"
    WAYS[str(example.way)](example.body, Place(folder, beside))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_of_a_kind_that_is_known(page: Path) -> None:
    """A block of another kind (bash, console, py) would not be run, and nobody would notice."""
    text = page.read_text(encoding="utf-8")
    found = EXAMPLES.findall(text)
    assert {kind for _, kind, _ in found} <= RUN | TEXT
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(found)
    for comment, _, _ in found:
        if comment.strip():
            match = WAY.fullmatch(comment.strip())
            assert comment.strip().startswith(STATUS) or (match and match[1] in WAYS), comment


def test_every_reason_has_its_remedy() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\w+)\n+(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL))
    assert {reason.value for reason in Reason} <= set(sections)
    assert all(len(sections[reason.value].split()) >= 10 for reason in Reason)


def test_every_kind_of_error_has_its_remedies() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, HfprepError) and kind is not HfprepError:
            assert name in text, f"docs/troubleshooting.md does not speak of {name}"


def test_every_link_leads_to_a_file_of_the_checkout() -> None:
    """As on a forge, without the site: pages, pictures, schemas, and the files that define the names of the API."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for shown, link in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", text):
            if re.match(r"https?:|#", link):
                continue
            target = page.parent / link.partition("#")[0]
            assert target.is_file(), f"{page.relative_to(ROOT)}: {link}"
            if target.suffix == ".py":
                name = shown.strip("`").rpartition(".")[2]
                assert re.search(rf"^(?:class|def) {name}\b", target.read_text(encoding="utf-8"), re.MULTILINE), shown


# The site


@pytest.fixture(scope="module")
def generated() -> Any:
    """The program that writes the reference pages."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("docs_pages", ROOT / "scripts" / "docs_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_pages"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_troubleshooting_quotes_messages_that_exist(generated: Any) -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    known = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "hfprep").rglob("*.py"))
    known = re.sub(r'"\s*\n\s*f?"', "", known)  # a literal that goes on in the next line
    quoted = re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    assert len(quoted) > 50
    missing = [message for message in quoted if message.removesuffix(" ...") not in known]
    assert not missing


def test_the_page_of_messages_has_every_place_that_raises(generated: Any) -> None:
    """Counted a second way, by text: what is raised or made with arguments, of each class."""
    found = Counter((item.module, item.error) for item in generated.messages(ROOT / "hfprep"))
    classes = "ConfigError|CheckpointError|StoreError|HfprepError|DeviceError|RejectedSample"
    counted: Counter[tuple[str, str]] = Counter()
    for path in (ROOT / "hfprep").rglob("*.py"):
        # apart from definitions and docstrings
        for name in re.findall(rf"(?<!class )(?<!Raise )\b({classes})\((?=[^)])", path.read_text(encoding="utf-8")):
            counted[path.relative_to(ROOT).as_posix(), name] += 1
    assert {key: count for key, count in found.items() if key[1] != "ValueError"} == dict(counted)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as CI and readers build it; any broken link is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class _Links(HTMLParser):
    """What a page loads by itself, and its ids."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if values.get("id"):
            self.ids.add(str(values["id"]))
        if tag in {"script", "img", "iframe", "source"} and values.get("src"):
            self.loaded.append(str(values["src"]))
        if tag == "link" and values.get("rel") in {"stylesheet", "preconnect", "icon", "preload"}:
            self.loaded.append(str(values["href"]))


def parsed(path: Path) -> _Links:
    links = _Links()
    links.feed(path.read_text(encoding="utf-8"))
    return links


def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(site: Path) -> None:
    names = [page.relative_to(ROOT / "docs").with_suffix(".html") for page in PAGES[1:]]
    for name in names:
        loaded = parsed(site / name).loaded
        assert loaded
        assert not [link for link in loaded if link.startswith(("http:", "https:", "//"))]


def test_the_reference_has_what_it_is_about(site: Path) -> None:
    from typer.main import get_command_name

    from hfprep.cli.app import app

    assert {f"{reason.value}" for reason in Reason} <= parsed(site / "troubleshooting.html").ids
    files = parsed(site / "reference" / "formats.html").ids
    assert {path.name.removesuffix(".schema.json") for path in (ROOT / "schemas").iterdir()} <= files
    commands = [(command.name, command.callback) for command in app.registered_commands]
    registered = {name or get_command_name(callback.__name__) for name, callback in commands if callback}
    assert {"build", "check", "verify"} <= registered <= parsed(site / "reference" / "commands.html").ids
    public = parsed(site / "reference" / "api.html").ids
    import hfprep

    assert {name for name in hfprep.__all__ if not any(name in item.split(".") for item in public)} == set()


def test_tables_show_bars_and_backticks_as_they_are(site: Path) -> None:
    text = (site / "reference" / "formats.html").read_text(encoding="utf-8")
    assert "<code>^(train|validation)-[0-9]{6}\\.tar$</code>" in text
    assert "<code>build --shard</code>" not in text
    errors_page = (site / "reference" / "errors.html").read_text(encoding="utf-8")
    assert "<code>no parts are given; name the output directories of all `build --shard` runs</code>" in errors_page


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The site's address on a server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def wait_for(browser: Any, script: str, seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := browser.execute_script(script):
            return found
        time.sleep(0.1)
    raise AssertionError(f"nothing came of it in {seconds} s: {script}")


@pytest.mark.slow
def test_pages_open_in_a_browser_without_errors(browser: Any, served: str, site: Path) -> None:
    for path in sorted(site.rglob("*.html")):
        if path.name == "404.html":  # its links start from the root of a host
            continue
        browser.get(f"{served}/{path.relative_to(site).as_posix()}")
        assert wait_for(browser, "return document.readyState == 'complete' && document.title")
        wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.execute_script(wide) <= 1, f"{path.name} is wider than the window"
        phone = {"width": 375, "height": 800, "deviceScaleFactor": 2, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        try:
            assert browser.execute_script(wide) <= 1, f"{path.name} is wider than a phone"
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert not [entry for entry in browser.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]


@pytest.mark.slow
def test_the_site_can_be_searched_and_darkened(browser: Any, served: str) -> None:
    browser.get(f"{served}/index.html")
    light = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    wait_for(browser, "return document.querySelector('label.md-header__button[for^=__palette]:not([hidden])')").click()
    dark = "return document.body.dataset.mdColorScheme == 'slate' && getComputedStyle(document.body).backgroundColor"
    assert wait_for(browser, dark) != light
    browser.execute_script("document.querySelector('#__search').click()")
    box = wait_for(browser, "return document.querySelector('input.md-search__input')")
    box.send_keys("audio_not_finite")
    found = "[...document.querySelectorAll('.md-search-result__link')].map((link) => link.href)"
    wait_for(browser, f"return {found}.some((link) => /troubleshooting.html.*#audio_not_finite$/.test(link))")
