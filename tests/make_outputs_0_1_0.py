"""Makes tests/data/outputs-0.1.0: outputs of hfprep 0.1.0, complete and interrupted, that later versions continue.

A program, run once, with a checkout of version 0.1.0:

    python -m tests.make_outputs_0_1_0 --checkout DIR

It works in a folder whose name tells nothing, since the outputs have it inside. content.json says what each output
holds when 0.1.0 itself has finished it, and how many samples that had to compute.
"""

import argparse
import json
import random
import shutil
import sys
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


def make(maker: Maker, kind: str) -> dict[str, dict[str, Any]]:
    """The complete and the interrupted output of one format; what finishing them comes to, by name."""
    found = {f"{kind}-complete": finish(maker, maker.build(f"{kind}-complete", *command_line(kind)), kind)}
    first = maker.build(f"{kind}-first", *command_line(kind), "--max-samples", IN_FIRST_BUILD)
    for _ in range(20):
        folder = maker.root / f"{kind}-interrupted"
        for earlier in (folder, folder.with_name(f"{folder.name}-finished")):
            shutil.rmtree(earlier, ignore_errors=True)
        shutil.copytree(first, folder, symlinks=True)
        killed = maker.killed_once(folder.name, 0.05, tuple(command_line(kind)))
        if killed and IN_FIRST_BUILD < listed(folder / PROGRESS) < len(CLIPS):
            found[folder.name] = finish(maker, folder, kind)
            if found[folder.name]["computed"] >= 1:
                return found
    raise SystemExit(f"{kind}: no build was interrupted in the middle")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkout", type=Path, required=True, help="of hfprep 0.1.0")
    checkout = parser.parse_args().checkout.resolve()
    shutil.copytree(GOLDEN / "checkpoints", ROOT / "models")
    maker = Maker(ROOT, checkout, sys.executable, random.Random(0), ROOT / "models", CLIPS)
    content: dict[str, Any] = {}
    for kind in FORMATS:
        content |= make(maker, kind)
    for name in content:
        shutil.rmtree(FIXTURES / name, ignore_errors=True)
        shutil.copytree(ROOT / name, FIXTURES / name)
    shutil.copy(maker.manifest, FIXTURES / "manifest.jsonl")
    (FIXTURES / "content.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
