"""Makes tests/data/outputs-0.1.0: outputs of hfprep 0.1.0, complete and interrupted, that later versions continue.

A program, run once, with a checkout of version 0.1.0:

    python -m tests.make_outputs_0_1_0 --checkout DIR

It works in a folder whose name tells nothing, since the outputs have it inside. content.json says what each output
holds when 0.1.0 itself has finished it, and how many samples that had to compute.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.outputs_content import PROGRESS, Content, digest, read_content
from tests.outputs_hash import FORMATS, GOLDEN, TESTS, Maker, listed

FIXTURES = TESTS / "data" / "outputs-0.1.0"
ROOT = Path("/tmp/outputs-0.1.0")
CLIPS = ("synth1", "synth3", "synth2", "synth4", "synth6")  # the first and the third are in the validation split
IN_FIRST_BUILD = 2  # of an interrupted output: they are in shards already when the second build begins
# Small shards, so that a build of a few samples has several, and is interrupted between them.
OPTIONS = {"val_ratio": 0.3, "batch_size": 1, "device": "cpu", "hash_audio": True, "max_shard_size": "8KB"}

FINISH = """
import json, sys
import hfprep
summary = hfprep.build(hfprep.BuildConfig(**json.load(sys.stdin)))
print(json.dumps({"reused": summary.reused, "computed": summary.accepted - summary.reused}))
"""


def content_json(content: Content) -> dict[str, Any]:
    """What is kept of an output's content: hashes of the whole and of each sample."""
    hashes = {part: value for part, value in content.hashes().items() if part != "messages"}
    samples = {name: digest(sample.says(numbers="all")) for name, sample in content.samples.items()}
    return {"hashes": hashes, "samples": samples}


def finish(maker: Maker, folder: Path, kind: str) -> dict[str, Any]:
    """Let the version that made an output finish a copy of it; what it says then, and what was left to do."""
    copy = folder.with_name(f"{folder.name}-finished")
    shutil.copytree(folder, copy, symlinks=True)
    config = {"manifest": maker.manifest, "output_dir": copy, "models": maker.models, "format": kind} | OPTIONS
    counts = json.loads(maker.run("-c", FINISH, stdin=json.dumps(config, default=str)).splitlines()[-1])
    return counts | content_json(read_content(copy, kind, maker.manifest, maker.root))


def command_line(kind: str) -> list[object]:
    words: list[object] = ["--val-ratio", OPTIONS["val_ratio"], "--hash-audio"]
    return [*words, "--max-shard-size", OPTIONS["max_shard_size"], "--format", kind]


def make_complete(maker: Maker, kind: str) -> dict[str, Any]:
    """A build that comes to its end."""
    return finish(maker, maker.build(f"{kind}-complete", *command_line(kind)), kind)


def make_interrupted(maker: Maker, kind: str) -> dict[str, Any]:
    """Two samples finished by a first build; a second one is killed after it has listed one or two of three more."""
    first = maker.build(f"{kind}-first", *command_line(kind), "--max-samples", IN_FIRST_BUILD)
    for folder in attempts(maker, f"{kind}-interrupted"):
        shutil.copytree(first, folder, symlinks=True)
        killed = maker.killed_once(folder.name, 0.05, tuple(command_line(kind)))
        if killed and IN_FIRST_BUILD < listed(folder / PROGRESS) < len(CLIPS):
            found = finish(maker, folder, kind)
            if found["computed"] >= 1:
                return found
    raise AssertionError


def make_packing(maker: Maker, kind: str) -> dict[str, Any]:
    """A build of all samples, killed while it moves them from npy files to shards, which nothing names yet."""
    for folder in attempts(maker, f"{kind}-packing"):
        process = maker.start(*maker.build_words(folder.name, *command_line(kind)))
        while process.poll() is None and not half_packed(folder):
            time.sleep(0.0002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if half_packed(folder):
            return finish(maker, folder, kind)
    raise AssertionError


def half_packed(folder: Path) -> bool:
    """Whether a shard is written and the npy files of its samples, and of no others, are gone."""
    whole = [path for path in (folder / ".hfprep" / "shards").glob("*") if path.suffix != ".tmp"]
    return bool(whole) and 0 < len(list((folder / "codes").rglob("*.npy"))) < len(CLIPS)


def attempts(maker: Maker, name: str) -> Iterator[Path]:
    """A folder that is not there, some times over."""
    for _ in range(20):
        for earlier in (name, f"{name}-finished"):
            shutil.rmtree(maker.root / earlier, ignore_errors=True)
        yield maker.root / name
    raise SystemExit(f"{name}: no build was killed at the right moment")


MAKERS: dict[str, Callable[[Maker, str], dict[str, Any]]] = {
    "complete": make_complete,
    "interrupted": make_interrupted,
    "packing": make_packing,
}
NAMES = (*(f"{kind}-{state}" for kind in FORMATS for state in ("complete", "interrupted")), "arrow-packing")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkout", type=Path, required=True, help="of hfprep 0.1.0")
    parser.add_argument("names", nargs="*", default=NAMES, help="default: all that are kept")
    arguments = parser.parse_args()
    shutil.copytree(GOLDEN / "checkpoints", ROOT / "models")
    maker = Maker(ROOT, arguments.checkout.resolve(), sys.executable, random.Random(0), ROOT / "models", CLIPS)
    described = FIXTURES / "content.json"
    content = json.loads(described.read_bytes()) if described.exists() else {}
    for name in arguments.names:
        kind, state = name.split("-")
        content[name] = MAKERS[state](maker, kind)
        shutil.rmtree(FIXTURES / name, ignore_errors=True)
        shutil.copytree(ROOT / name, FIXTURES / name)
    shutil.copy(maker.manifest, FIXTURES / "manifest.jsonl")
    described.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
