"""What every test stands on: nothing leaves the machine, few threads, fixed seeds, and where the golden numbers are."""

import atexit
import gc
import logging
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Most of what tests write is a few bytes with a sync, which takes a third of their time on a disk; in memory, SIGKILL
# loses nothing either. With TMPDIR set, they write there.
_MEMORY, _ENOUGH_BYTES = Path("/dev/shm"), 4 << 30
if "TMPDIR" not in os.environ and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ENOUGH_BYTES:
    os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="hfprep-tests-", dir=_MEMORY)
    tempfile.tempdir = None  # it may have been chosen already
    atexit.register(shutil.rmtree, os.environ["TMPDIR"], ignore_errors=True)

# Hugging Face's libraries and torch read these once, at import: they are set before any test module is loaded, and
# hold for the processes that tests start. The hub cache is an empty folder of this run, not the user's.
_HF_HOME = tempfile.mkdtemp(prefix="hfprep-tests-")
atexit.register(shutil.rmtree, _HF_HOME, ignore_errors=True)
for _outside in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_CACHE", "HF_TOKEN"):
    os.environ.pop(_outside, None)
os.environ |= {
    "HF_HOME": _HF_HOME,
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRITON_INTERPRET": "1",  # kernels for a GPU are interpreted: slow, and the same on every machine
    # Models this small wait for each other's threads longer than they compute.
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    "COLUMNS": "120",  # what a terminal program prints does not depend on the window that pytest runs in
}

# A million objects of what the tests import are walked less often.
gc.set_threshold(50_000, 20, 100)

import numpy as np  # noqa: E402
import pytest  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


MOST_WORKERS = 4


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a third of the time a test waits for processes, disks and pages."""
    return min((os.cpu_count() or 1) + 1, MOST_WORKERS)


def pytest_collection_finish() -> None:
    """Have torch's loggers propagate: pytest adds its handlers to each that does not, six times in every test."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "torch" and isinstance(logger, logging.Logger):
            logger.propagate = True


def pytest_unconfigure() -> None:
    """Leave nothing to the collections with which pytest ends: each would walk a million objects."""
    gc.freeze()


@pytest.fixture(scope="module")
def quick_collections() -> Iterator[None]:
    """For modules whose tests run the garbage collector: it need not walk all that was imported, for half a second."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seeds() -> None:
    """The same random numbers in every test, whichever tests run beside it."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        # Not torch.manual_seed, which also formats the stack for a GPU that is not there: 2 ms a test.
        sys.modules["torch"].default_generator.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def one_worker_is_inline() -> None:
    """Builds of the tests' own process with one worker compute there: patches hold, and no process has to start.

    The fixture `real_workers` leaves them to processes.
    """
    if "torch" in sys.modules:  # imported by the tests that were chosen
        from tests.engines import one_worker_inline

        one_worker_inline(dict.__setitem__)


@pytest.fixture
def real_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of this test have worker processes, also where there is one: forks, with this process's patches."""
    from hfprep.pipeline.engines import choice
    from tests.engines import ForkedWorkers

    monkeypatch.setitem(choice.ENGINES, "local", ForkedWorkers())


@pytest.fixture
def spawned_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of this test have worker processes that start as a user's do, without this process's patches."""
    from hfprep.pipeline.engines import choice

    monkeypatch.setitem(choice.ENGINES, "local", choice.LocalEngine())


@pytest.fixture(scope="module")
def two_layers() -> Iterator[None]:
    """Builds of the module's tests compute two of the semantic encoder's 17 layers.

    For tests that compare builds with each other and with no published number.
    """
    from tests.engines import limit_layers, one_worker_inline

    with pytest.MonkeyPatch.context() as patch:
        limit_layers(2, patch.setattr)
        one_worker_inline(patch.setitem)  # a new engine, so that no model with all layers is reused
        yield


@pytest.fixture(scope="module")
def normalised_once() -> Iterator[None]:
    """A text that the module's tests normalise again is looked up: the grammars take 40 ms for a sentence."""
    from hfprep.inputs.text.normalizer import TextNormalizer

    normalize, known = TextNormalizer.normalize, dict[tuple[str, str | None], str]()

    def look_up(normalizer: TextNormalizer, text: str, language_hint: str | None = None) -> str:
        key = text, language_hint
        if key not in known:
            known[key] = normalize(normalizer, text, language_hint)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextNormalizer, "normalize", look_up)
        yield


@pytest.fixture
def tables_are_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are read in the tests' process, through the messages that another one would send."""
    from hfprep.inputs.manifest import guarded

    monkeypatch.setattr(guarded, "run", lambda steps: guarded.decoded(guarded.encoded(steps)))


@pytest.fixture
def one_clip_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` computes one clip to estimate a build's time."""
    monkeypatch.setattr("hfprep.tools.check.estimates.FRAMES", {"cpu": (1,)})


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def golden_small() -> Path:
    """A small model set, eight synthetic recordings, and what the published code computes from them."""
    return REPOSITORY / "tests" / "golden-small"


@pytest.fixture(scope="session")
def shared_golden() -> Path | None:
    """The larger golden set over real speech, where it lies beside the checkout."""
    golden = SHARED / "golden"
    return golden if golden.is_dir() else None


@pytest.fixture(scope="session")
def golden25_small() -> Path:
    """As golden_small, for IndexTTS-2.5, with four recordings."""
    return REPOSITORY / "tests" / "golden25-small"


@pytest.fixture(scope="session")
def shared_golden25() -> Path | None:
    """The larger set for IndexTTS-2.5."""
    golden = SHARED / "golden25"
    return golden if golden.is_dir() else None


@pytest.fixture(scope="session")
def crash_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A `CrashServer` for the small model set, which takes seconds to start."""
    from tests.crash_child import CrashServer

    with CrashServer(tmp_path_factory.mktemp("crash-server")) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; the tests are left out where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("there is no Chromium with its driver here: apt-get install chromium chromium-driver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1280,1000"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()
