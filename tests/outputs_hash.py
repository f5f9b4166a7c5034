"""Builds one small manifest in every way there is and says, as a hash, what each output says: all must say the same.

The program behind scripts/outputs-hash. It drives the command line alone, of this checkout or of another, so that a
change can be held against the version before it. The manifest is golden-small with lines that are rejected, an id with
a folder, fields left out and fields of its own; batch size 1, on the CPU in float32, one thread.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.outputs_content import PROGRESS, Content, digest, read_content

TESTS = Path(__file__).resolve().parent
GOLDEN = TESTS / "golden-small"
FORMATS = ("npy", "arrow", "webdataset")
SECONDS_A_RUN = 300
KILL_WITHIN_SECONDS = 0.3  # from the first listed sample on; the eight samples take about twice that
KILLS = 2
NOT_COMPARED_BETWEEN_VERSIONS = ("messages", "exact")  # wording may change; `exact` is part of `samples`

# Ids and hashes of what hfprep.load gives for each of the folders named, in its order.
LOADER = """
import hashlib, json, sys
import numpy as np
import hfprep
found = {}
for way, folder in json.load(sys.stdin).items():
    found[way] = {}
    for split in ("train", "validation"):
        rows = found[way][split] = []
        data = hfprep.load(folder, split)
        for index in range(len(data)):
            sample, hashes = data[index], []
            for name in ("text_ids", "codes", "condition", "emo_vec"):
                array = np.asarray(sample[name])
                array = array.astype(np.int32) if array.dtype.kind == "i" else array
                hashes.append(hashlib.sha256(np.ascontiguousarray(array)).hexdigest())
            rows.append([sample["id"], *hashes])
print(json.dumps(found))
"""


class WayError(Exception):
    """An output could not be made or read."""


def write_manifest(folder: Path, ids: Iterable[str] = ()) -> Path:
    """golden-small's rows (or those of these ids) with all that a row may have or lack, and four rejected lines."""
    folder.mkdir(parents=True)
    (folder / "audio").symlink_to(GOLDEN / "audio")
    lines = (GOLDEN / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["id"]: row for row in map(json.loads, lines)}
    rows["synth0"]["note"] = "a field of its own"
    rows["synth1"]["id"] = "folder/synth1"
    rows["synth2"]["take"] = 3
    del rows["synth4"]["speaker"], rows["synth5"]["duration"], rows["synth6"]["language"]
    chosen = [rows[sample_id] for sample_id in ids or rows]
    chosen[3:3] = [
        {"id": "lost", "text": "gone", "audio": "audio/nowhere.wav"},
        {"id": chosen[0]["id"], "text": "twice", "audio": "audio/synth0.wav"},
        {"id": "unreadable", "text": "no sound", "audio": "manifest.jsonl"},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in chosen]
    lines.insert(5, '{"id": "torn')
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return manifest


@dataclass
class Maker:
    """Makes outputs in `root` with the hfprep of one checkout; each folder once."""

    root: Path
    checkout: Path
    python: str
    draw: random.Random
    models: Path = GOLDEN / "checkpoints"
    ids: Iterable[str] = ()
    kills: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.manifest = write_manifest(self.root / "data", self.ids)
        self.environment = os.environ | {
            "PYTHONPATH": str(self.checkout),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "COLUMNS": "120",
        }

    def start(self, *words: object) -> "subprocess.Popen[str]":
        """Python in a session of its own, in the manifest's folder: no other hfprep is found from there."""
        return subprocess.Popen(
            [self.python, *map(str, words)],
            cwd=self.manifest.parent,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: object, stdin: str = "") -> str:
        """What a program prints; WayError, with the end of what it said, where it fails."""
        process = self.start(*words)
        try:
            stdout, stderr = process.communicate(stdin, timeout=SECONDS_A_RUN)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if process.returncode != 0:
            raise WayError(f"exit status {process.returncode}: {' | '.join(stderr.splitlines()[-3:])}")
        return stdout

    def build_words(self, name: str, *options: object) -> list[object]:
        words = ["-m", "hfprep", "build", "--manifest", self.manifest, "--models", self.models]
        words += ["--batch-size", 1, "--device", "cpu", "--precision", "fp32", "--val-ratio", 0.3]
        return [*words, "--output-dir", self.root / name, *options]

    def build(self, name: str, *options: object) -> Path:
        """A finished build in the folder of that name."""
        folder = self.root / name
        if not (folder / "stats.json").exists():
            self.run(*self.build_words(name, *options))
        return folder

    def killed(self, name: str, *options: object) -> Path:
        """A build ended by SIGKILL `KILLS` times, each with another sample listed at least, and then continued."""
        kills = 0
        for attempt in range(20):
            folder = f"{name}-{attempt}"
            while kills < KILLS and self.killed_once(folder, KILL_WITHIN_SECONDS / (1 + attempt), options):
                kills += 1
            if kills:
                return self.build(folder, *options)
        raise WayError("20 builds ended before they could be killed")

    def killed_once(self, name: str, within: float, options: tuple[object, ...]) -> bool:
        """Whether a build was killed within so many seconds of a listed sample, rather than reaching its end."""
        progress = self.root / name / PROGRESS
        before = listed(progress)
        process = self.start(*self.build_words(name, *options))
        while process.poll() is None and listed(progress) <= before:
            time.sleep(0.002)
        time.sleep(self.draw.uniform(0.0, within))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            self.kills.append(f"{name}: killed with {listed(progress)} samples listed")
        elif process.returncode != 0:
            raise WayError(f"a build that was to be killed ended with exit status {process.returncode}")
        return process.returncode == -signal.SIGKILL

    def merged(self, name: str) -> Path:
        """Two parts, merged."""
        parts = [self.build(f"{name}-{part}-of-2", "--shard", f"{part}/2") for part in (0, 1)]
        self.run("-m", "hfprep", "merge", *parts, "--output-dir", self.root / name)
        return self.root / name

    def exported(self, source: str, target: str) -> Path:
        """A build in one format, exported to another."""
        folder = self.root / f"{source}-to-{target}"
        built = self.build(source, "--format", source)
        self.run("-m", "hfprep", f"export-{target}", built, folder)
        return folder

    def loaded(self, folders: dict[str, Path]) -> dict[str, dict[str, list[Any]]]:
        """What hfprep.load gives from each of these folders."""
        request = json.dumps({way: str(folder) for way, folder in folders.items()})
        found: dict[str, dict[str, list[Any]]] = json.loads(self.run("-c", LOADER, stdin=request).splitlines()[-1])
        return found


def listed(progress: Path) -> int:
    """How many samples a progress file lists; a line that is half written is not one."""
    return progress.read_bytes().count(b"\n") if progress.exists() else 0


Way = Callable[[Maker], Path]


def all_ways() -> dict[str, tuple[str, Way]]:
    """Each way by its name: the format to read, and what makes the folder."""
    ways: dict[str, tuple[str, Way]] = {}
    for kind in FORMATS:
        ways[kind] = (kind, _build(kind, "--format", kind))
    for kind in FORMATS:
        ways[f"all three: {kind}"] = (kind, _build("all-three", "--format", ",".join(FORMATS)))
    for kind in ("npy", "arrow"):
        options = ("--format", kind, "--num-processes", 2)
        ways[f"two processes: {kind}"] = (kind, _build(f"processes-{kind}", *options))
        ways[f"ray: {kind}"] = (kind, _build(f"ray-{kind}", *options, "--engine", "ray"))
    for kind in FORMATS:
        ways[f"killed: {kind}"] = (kind, _kill(f"killed-{kind}", "--format", kind))
    ways["merged parts"] = ("npy", lambda maker: maker.merged("merged"))
    for source in FORMATS:
        for target in FORMATS:
            if (source, target) != ("npy", "npy"):  # there is no such export
                ways[f"export: {source} to {target}"] = (target, _export(source, target))
    return ways


def _build(name: str, *options: object) -> Way:
    return lambda maker: maker.build(name, *options)


def _kill(name: str, *options: object) -> Way:
    return lambda maker: maker.killed(name, *options)


def _export(source: str, target: str) -> Way:
    return lambda maker: maker.exported(source, target)


@dataclass
class Comparison:
    """What the outputs said, and where they disagree."""

    contents: dict[str, Content] = field(default_factory=dict)
    hashes: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, way: str, content: Content) -> None:
        """Take in what a way says; a part that an earlier way said otherwise is a fault."""
        found = content.hashes()
        for part, value in found.items():
            for other, earlier in self.hashes.items():
                if earlier.get(part, value) != value:
                    details = self._different_samples(content, self.contents[other]) if part == "samples" else ""
                    self.faults.append(f"{way}: {part} is not that of {other!r}{details}")
                    break
        self.contents[way], self.hashes[way] = content, found

    @staticmethod
    def _different_samples(ours: Content, theirs: Content) -> str:
        names = [*theirs.samples, *(name for name in ours.samples if name not in theirs.samples)]
        says = [{n: s.says(numbers="all") for n, s in content.samples.items()} for content in (ours, theirs)]
        return ": " + ", ".join(name for name in names if says[0].get(name) != says[1].get(name))

    def add_loaded(self, loaded: dict[str, dict[str, list[Any]]]) -> None:
        """What hfprep.load gave must be what was read, in the manifest's order."""
        for way, found in loaded.items():
            if found != self.contents[way].loaded():
                self.faults.append(f"{way}: hfprep.load gives other numbers, or another order")

    def total(self) -> str:
        """One hash of all that is compared between versions."""
        parts = {part: value for found in self.hashes.values() for part, value in found.items()}
        return digest({part: parts[part] for part in parts if part not in NOT_COMPARED_BETWEEN_VERSIONS})


def compare(maker: Maker, names: list[str], say: Callable[[str], None]) -> Comparison:
    """Make and read the outputs of these ways."""
    comparison, folders = Comparison(), dict[str, Path]()
    ways = all_ways()
    for name in names:
        kind, make = ways[name]
        try:
            folder = make(maker)
            content = read_content(folder, kind, maker.manifest, maker.root)
        except (WayError, OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
            comparison.faults.append(f"{name}: {error}")
            say(f"{'failed':32}  {name}")
            continue
        comparison.add(name, content)
        inner = folder / kind
        folders[name] = inner if inner.is_dir() else folder
        say(f"{comparison.hashes[name]['samples']}  {name}")
    try:
        comparison.add_loaded(maker.loaded(folders))
    except WayError as error:
        comparison.faults.append(f"hfprep.load: {error}")
    return comparison


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/outputs-hash", description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument(
        "--only", metavar="PATTERN", default="", help="only ways whose name has this regular expression"
    )
    parser.add_argument("--without", metavar="PATTERN", action="append", default=[], help="leave these ways out: ray")
    parser.add_argument("--checkout", type=Path, default=TESTS.parent, help="whose hfprep is run; default: this one")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs hfprep")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all hashes there")
    parser.add_argument("--folder", type=Path, help="a new folder that keeps the outputs; default: one that is removed")
    parser.add_argument("--seed", type=int, help="of the moments of the kills; default: another each time")
    parser.add_argument("--list", action="store_true", help="print the names of the ways")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Print a line for each way and one for all; 1 where two of them disagree or one failed."""
    arguments = parse_arguments(words)
    names = [name for name in all_ways() if re.search(arguments.only, name)]
    names = [name for name in names if not any(re.search(pattern, name) for pattern in arguments.without)]

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    if arguments.list or not names:
        say("\n".join(names or ["no way has such a name; --list prints them"]))
        return 0 if arguments.list else 2
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    with tempfile.TemporaryDirectory(prefix="outputs-hash-") as temporary:
        root = (arguments.folder or Path(temporary)).resolve()
        maker = Maker(root, arguments.checkout.resolve(), arguments.python, random.Random(seed))
        where = maker.run("-c", "import hfprep; print(hfprep.__file__)").strip()
        if not Path(where).is_relative_to(maker.checkout):
            say(f"{arguments.python} imports hfprep from {where}, not from {maker.checkout}")
            return 2
        comparison = compare(maker, names, say)
    for line in maker.kills:
        say(f"# {line}")
    for fault in comparison.faults:
        say(f"DIFFERS  {fault}")
    if comparison.hashes:
        say(f"{comparison.total()}  all of it, of {len(comparison.hashes)} ways (kills: --seed {seed})")
    if arguments.json:
        content = {"total": comparison.total(), "ways": comparison.hashes, "faults": comparison.faults, "seed": seed}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 1 if comparison.faults else 0


if __name__ == "__main__":
    sys.exit(main())
