"""Pushing to the Hub over real HTTP, and reading back from it; the server is tests/fake_hub.py, on this machine."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hfprep
from hfprep.errors import ConfigError
from hfprep.formats.hub import PushOptions
from hfprep.formats.published import public_value
from tests.fake_hub import TOKEN, Hub, serve_hub
from tests.sample_sets import AWKWARD_IDS, make_output

READ_BACK = """
import json, sys, datasets
assert "hfprep" not in sys.modules
data = datasets.load_dataset(sys.argv[1])
rows = [row.get("json", row) for row in data["train"]]
codes = [row.get("codes.npy", row.get("codes")) for row in data["train"]]
print(json.dumps([[row["id"] for row in rows], codes, sorted(data)]))
"""
LOAD_BACK = """
import json, sys, hfprep
data = hfprep.load(sys.argv[1])
print(json.dumps([[data[index]["id"] for index in range(len(data))],
                  [data[index]["codes"].tolist() for index in range(len(data))],
                  len(hfprep.load(sys.argv[1], "validation"))]))
"""


def local_paths(record: dict[str, Any], number: int) -> dict[str, Any]:
    """Records as they are on somebody's machine."""
    return record | {
        "audio_path": f"/home/someone/secret/wavs/{number}.wav" if number % 2 else f"../secret/{number}.wav"
    }


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as running:
        yield running


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output with local paths in records, stats and other fields, and with rejected lines."""
    root = make_output(tmp_path / "out", change=local_paths)
    kept = root / ".hfprep" / "extra.jsonl"
    lines = [json.loads(line) for line in kept.read_bytes().splitlines()]
    for line in lines:
        extra = json.loads(line["extra"]) | {"origin": {"file": "/home/someone/secret/origin.flac"}}
        line["extra"] = json.dumps(extra, ensure_ascii=False)
    kept.write_bytes(b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines))
    (root / "rejected.jsonl").write_text('{"line": 1, "id": "REJECTED", "message": "/home/someone/secret"}\n')
    return root


def run(hub: Hub, home: Path, *arguments: str | Path, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    """Run Python against the server, with a Hub cache of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": os.getcwd()}
    environment |= {"NO_PROXY": "127.0.0.1"} | ({"HF_TOKEN": token} if token else {})
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=home.parent)


def push(hub: Hub, home: Path, *arguments: str | Path, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    return run(hub, home, "-m", "hfprep", "push", *arguments, token=token)


@pytest.mark.parametrize("data_format", [pytest.param("arrow", marks=pytest.mark.slow), "webdataset"])
def test_what_is_pushed_can_be_loaded_back(hub: Hub, output: Path, tmp_path: Path, data_format: str) -> None:
    home = tmp_path / "hf"
    pushed = push(hub, home, output, "user/features", "--format", data_format, "--private")
    assert pushed.returncode == 0, pushed.stderr
    repository = hub.repositories["user/features"]
    assert repository.private
    assert not (tmp_path / ".out.push").exists()
    train = [sample_id for number, sample_id in enumerate(AWKWARD_IDS) if number % 3 != 2]
    codes = [len(row) for row in check_loaded(run(hub, home, "-c", READ_BACK, "user/features"), train)]
    assert codes == [len(row) for row in check_loaded(run(hub, home, "-c", LOAD_BACK, "user/features"), train)]
    everything = b"\n".join([*repository.files.values(), *(name.encode() for name in repository.files)])
    assert "ሰላም".encode() in everything
    for secret in (b"/home/someone", b"secret", b"REJECTED", b"rejected", str(tmp_path).encode()):
        assert secret not in everything
    assert hub.unknown == []


def check_loaded(process: subprocess.CompletedProcess[str], train: list[str]) -> list[list[int]]:
    assert process.returncode == 0, process.stderr
    ids, codes, rest = json.loads(process.stdout.splitlines()[-1])
    assert ids == train
    assert rest in (4, ["train", "validation"])
    return list(codes)


@pytest.mark.slow
def test_the_working_directory_can_be_pushed(hub: Hub, output: Path, tmp_path: Path) -> None:
    done = run(hub, output / "home", "-m", "hfprep", "push", ".", "someone/here")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob(".*.push"))


@pytest.mark.slow
def test_an_output_without_npy_is_pushed_as_it_is(hub: Hub, golden_small: Path, tmp_path: Path) -> None:
    home, built = tmp_path / "hf", tmp_path / "built"
    manifest, models = golden_small / "manifest.jsonl", golden_small / "checkpoints"
    summary = hfprep.build(
        hfprep.BuildConfig(manifest=manifest, output_dir=built, models=models, val_ratio=0.3, format="arrow")
    )
    pushed = push(hub, home, built, "user/features")
    assert pushed.returncode == 0, pushed.stderr
    process = run(hub, home, "-c", LOAD_BACK, "user/features")
    assert process.returncode == 0, process.stderr
    ids, codes, validation = json.loads(process.stdout.splitlines()[-1])
    train = hfprep.load(built)
    assert (len(ids), validation) == (summary.train, summary.val)
    assert codes == [train[index]["codes"].tolist() for index in range(len(train))]
    assert "rejected.jsonl" not in hub.repositories["user/features"].files


@pytest.mark.slow
def test_a_broken_upload_is_resumed(hub: Hub, output: Path, tmp_path: Path) -> None:
    home = tmp_path / "hf"
    arguments = (output, "user/features", "--format", "webdataset", "--max-shard-size", "15KB")
    hub.break_after = 2
    broken = push(hub, home, *arguments)
    assert broken.returncode == 1
    assert "push again to resume" in broken.stderr
    assert hub.repositories["user/features"].files == {}
    sent = list(hub.uploads)
    assert sent
    hub.break_after = None
    assert push(hub, home, *arguments).returncode == 0
    assert len(hub.uploads) == len(set(hub.uploads)) > len(sent)
    uploads = len(hub.uploads)
    assert push(hub, home, *arguments).returncode == 0
    assert len(hub.uploads) == uploads  # nothing new, nothing sent


@pytest.mark.slow
def test_files_of_an_earlier_push_do_not_stay(hub: Hub, output: Path, tmp_path: Path) -> None:
    home = tmp_path / "hf"
    assert (
        push(hub, home, output, "user/features", "--format", "webdataset", "--max-shard-size", "15KB").returncode == 0
    )
    assert "train-000001.tar" in hub.repositories["user/features"].files
    assert push(hub, home, output, "user/features").returncode == 0
    names = sorted(hub.repositories["user/features"].files)
    assert [name for name in names if name.endswith(".tar")] == []
    assert json.loads(hub.repositories["user/features"].files["index.json"])["format"] == "hfprep-arrow"
    assert "train/data-00000.arrow" in names


@pytest.mark.slow
def test_the_card_says_what_it_is(hub: Hub, output: Path, tmp_path: Path) -> None:
    import yaml

    assert push(hub, tmp_path / "hf", output, "user/features", "--dtype", "float16").returncode == 0
    text = hub.repositories["user/features"].files["README.md"].decode()
    _, header, body = text.split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["language"] == ["en"]
    assert metadata["size_categories"] == ["n<1K"]
    assert metadata["configs"][0]["data_files"][0] == {"split": "train", "path": "train/*.arrow"}
    seconds = sum(number if number % 4 == 0 else number + 0.1 for number in range(12) if number % 3 != 2)
    assert f"| train | 8 | {seconds / 3600:.2f} |" in body
    assert "| validation | 4 |" in body
    assert "en (6)" in body
    assert "0" * 64 in body
    assert "float16, 32 x 6" in body
    assert 'hfprep.load("user/features", "train")' in body


@pytest.mark.slow
def test_a_push_is_private_unless_public_is_given(hub: Hub, output: Path, tmp_path: Path) -> None:
    home = tmp_path / "hf"
    assert push(hub, home, output, "user/one").returncode == 0
    assert hub.repositories["user/one"].private
    opened = push(hub, home, output, "user/two", "--public")
    assert opened.stdout.startswith(
        "To user/two, a new public repository: 12 samples (8 train, 4 validation) in 10 files"
    )
    assert not hub.repositories["user/two"].private
    uploads, commits = len(hub.uploads), len(hub.repositories["user/two"].commits)
    refused = push(hub, home, output, "user/two", "--dtype", "float16")
    assert refused.returncode == 1
    assert "user/two exists and is public; give --public to push there, or another name" in refused.stderr
    assert (len(hub.uploads), len(hub.repositories["user/two"].commits)) == (uploads, commits)
    again = push(hub, home, output, "user/one", "--public")
    assert again.stdout.startswith("To user/one, the private repository: ")
    assert hub.repositories["user/one"].private, "a repository that is there keeps its visibility"


def test_without_a_login_the_command_is_named(hub: Hub, output: Path, tmp_path: Path) -> None:
    refused = push(hub, tmp_path / "hf", output, "user/features", token=None)
    assert refused.returncode == 1
    assert refused.stderr.strip() == "hfprep: you are not logged in to the Hub; run: hf auth login"
    wrong = push(hub, tmp_path / "hf", output, "user/features", token="hf_" + "b" * 34)
    assert wrong.returncode == 1
    assert "log in with a write token: hf auth login" in wrong.stderr
    assert hub.repositories == {}


@pytest.mark.slow
def test_no_connection_is_said_so(output: Path, tmp_path: Path) -> None:
    with serve_hub() as gone:
        pass
    failed = push(gone, tmp_path / "hf", output, "user/features")
    assert failed.returncode == 1
    assert failed.stderr.startswith("hfprep: pushing to user/features failed: ")


def test_bad_arguments_are_named(hub: Hub, output: Path, tmp_path: Path) -> None:
    refused = push(hub, tmp_path / "hf", output, "no-user")
    assert refused.returncode == 1
    assert "it must be USER/NAME" in refused.stderr
    with pytest.raises(ConfigError, match=re.escape("--format is 'npy'; it must be arrow or webdataset")):
        PushOptions(format="npy")


def test_only_local_paths_are_cut() -> None:
    value: dict[str, Any] = {
        "a": "/x/y.wav",
        "b": ["~/z", "../up/file", "C:\\data\\f.wav", "file:///q/r"],
        "c": "wavs/1.wav",
    }
    value |= {"d": "and/or ...", "e": 1.5, "f": None, "g": "a..b"}
    assert public_value(value) == {
        "a": "y.wav", "b": ["z", "file", "f.wav", "r"], "c": "wavs/1.wav", "d": "and/or ...", "e": 1.5, "f": None,
        "g": "a..b",
    }  # fmt: skip
