"""What must hold of an output directory after a run was killed, and after it was run again.

`Trials` runs builds of a small manifest (five good clips, lines that are wrong) in the fork server of crash_child and
holds what they leave against a quiet run's tree.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.crash_child import COLUMN_FOLDERS, CrashServer, Ended, Fault

GOLDEN = Path(__file__).resolve().parent / "golden-small"
GOLDEN25 = GOLDEN.parent / "golden25-small"
CLIPS = ("synth1", "synth2", "synth3", "synth4", "synth6")
CLIPS25 = ("synth3", "synth4", "synth5", "synth6")
COLUMNS = ("text_ids", "codes", "condition", "emo_vec")
COLUMNS25 = ("text_ids", "codes", "spk_emb", "emo_vec")
SPLITS = ("train_manifest.jsonl", "val_manifest.jsonl")
PROGRESS = ".preprocessing_progress.txt"
TOP_FILES = {*SPLITS, PROGRESS, "rejected.jsonl", "stats.json", ".hfprep", *COLUMNS, *COLUMNS25}
VAL_RATIO = 0.3
CODES_THAT_MAY_FLIP = 0.001  # as compare_builds.py allows between batch sizes
RELATIVE_DIFFERENCE = 1e-4


def write_manifest(path: Path, golden: Path, ids: Iterable[str]) -> Path:
    """Golden clips by absolute path, an id with a folder, and three lines that are rejected."""
    rows = {}
    for line in (golden / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows[row["id"]] = row | {"audio": str(golden / row["audio"])}
    chosen = [rows[sample_id] for sample_id in ids]
    chosen[1] = chosen[1] | {"id": f"folder/{chosen[1]['id']}"}
    lines = [json.dumps(row, ensure_ascii=False) for row in chosen]
    unreadable = json.dumps({"id": "not-audio", "text": "no sound", "audio": str(golden / "manifest.jsonl")})
    lines[2:2] = ['{"id": "torn', unreadable, json.dumps({"id": "lost", "text": "gone", "audio": "nowhere.wav"})]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def same_numbers(found: Path, expected: Path, *, exact: bool) -> str | None:
    """What is wrong with an artifact, None where it is whole and has the expected numbers."""
    if exact:
        return None if found.read_bytes() == expected.read_bytes() else f"{found} differs"
    try:
        ours, theirs = np.load(found, allow_pickle=False), np.load(expected, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        return f"{found} cannot be read: {error}"
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return f"{found} is {ours.dtype} {ours.shape}, not {theirs.dtype} {theirs.shape}"
    if ours.dtype == np.int32:
        flipped = int((ours != theirs).sum())
        return f"{found}: {flipped} differ" if flipped > CODES_THAT_MAY_FLIP * ours.size else None
    distance = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    return f"{found}: {distance:.1e} away" if distance > RELATIVE_DIFFERENCE else None


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that end; a torn tail is not one."""
    if not path.exists():
        return []
    return path.read_bytes().decode("utf-8", "replace").split("\n")[:-1]


@dataclass
class Trials:
    """Builds of one manifest, and the tree that they must come to."""

    server: CrashServer
    folder: Path
    batch_size: int = 2
    golden: Path = GOLDEN
    clips: tuple[str, ...] = CLIPS
    columns: tuple[str, ...] = COLUMNS
    manifest: Path = field(init=False)
    quiet: Path = field(init=False)
    quiet_run: Ended = field(init=False)
    full_seconds: float = field(init=False)
    counts: Counter[str] = field(default_factory=Counter)
    number: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manifest = write_manifest(self.folder / "manifest.jsonl", self.golden, self.clips)
        self.quiet = self.folder / "quiet"
        self.quiet_run = self.build(self.quiet)
        assert self.quiet_run.status == 0, self.quiet_run.stderr
        self.full_seconds = self.quiet_run.seconds

    def fresh(self) -> Path:
        """A name for an output directory that is not there yet."""
        self.number += 1
        return self.folder / f"out-{self.number}"

    def build(self, output: Path, fault: Fault | None = None, *options: object, **patches: Any) -> Ended:
        """One run of the command line."""
        chosen: list[object] = ["--manifest", self.manifest, "--models", self.golden / "checkpoints"]
        given = {str(word) for word in options}
        for name, value in (("--batch-size", self.batch_size), ("--val-ratio", VAL_RATIO), ("--workers", 1)):
            chosen += [] if name in given else [name, value]
        return self.server.run(["build", "--output-dir", output, *chosen, *options], fault, **patches)

    def points(self) -> dict[tuple[str, str], int]:
        """Every named point by kind of file, and how often a quiet run comes by."""
        return Counter(self.quiet_run.points)

    def check_after_kill(self, output: Path, *, exact: bool) -> None:
        """No artifact is half there under its name; nothing is listed that is not whole, or twice."""
        known = tuple(TOP_FILES)  # with a suffix: a file that was being written
        faults = [f"{path} is not of a build" for path in output.iterdir() if not path.name.startswith(known)]
        for column in self.columns:
            for found in (output / column).rglob("*"):
                if found.is_file():
                    faults.append(same_numbers(found, self.quiet / found.relative_to(output), exact=exact) or "")
        listed = []
        for name in SPLITS:
            for line in whole_lines(output / name):
                record = json.loads(line)
                listed.append(record["id"])
                lengths = {"text_ids": record["text_len"], "codes": record["code_len"]}
                for column in self.columns:
                    array = np.load(output / record[f"{column}_path"], allow_pickle=False)
                    if column in lengths and len(array) != lengths[column]:
                        faults.append(f"{record['id']}: {column} holds {len(array)}")
        faults += [f"{sample_id} is listed {count} times" for sample_id, count in Counter(listed).items() if count > 1]
        for sample_id in whole_lines(output / PROGRESS):
            missing = [x for x in self.columns if not (output / x / f"{sample_id}.npy").exists()]
            faults += [f"progress has {sample_id} without {missing}"] if missing else []
        for line in whole_lines(output / "rejected.jsonl"):
            json.loads(line)
        faults = [fault for fault in faults if fault]
        assert not faults, faults

    def check_final(self, output: Path, *, exact: bool) -> None:
        """The tree is the quiet run's: the same files, records, order, splits and numbers; nothing is left over."""
        assert public_tree(output) == public_tree(self.quiet)
        assert not (output / ".hfprep" / "work").exists()
        for name in (*SPLITS, PROGRESS, "rejected.jsonl"):
            assert (output / name).read_bytes() == (self.quiet / name).read_bytes(), name
        stats, expected = (json.loads((root / "stats.json").read_bytes()) for root in (output, self.quiet))
        for content in (stats, expected):
            content["settings"].pop("batch_size", None)
            if not exact:
                content.pop("codebook")
        assert stats == expected
        faults = [
            same_numbers(output / name, self.quiet / name, exact=exact)
            for name in public_tree(output)
            if name.endswith(".npy")
        ]
        assert not any(faults), [fault for fault in faults if fault]

    def check_finished_once(self, runs: list[Ended], batch_size: int) -> None:
        """Of what a run began to compute, later ones computed no more again than the batch in flight."""
        for index, run in enumerate(runs[:-1]):
            again = set(run.computed) & {sample_id for later in runs[index + 1 :] for sample_id in later.computed}
            assert len(again) <= batch_size, (index, again)

    def kill_and_continue(self, faults: Iterable[Fault], *options: object, kills: int = 4, exact: bool = False) -> int:
        """Strike builds with each of the faults, up to `kills` times the same one; run each to its end.

        All checks are made all along. A fault that did not strike because too little was left to do strikes a fresh
        build. A kill must end the process, an injected error must end it with a message and no traceback. Gives how
        many struck.
        """
        struck = 0
        output, runs = self.fresh(), list[Ended]()
        for fault in faults:
            runs.append(self.build(output, fault, *options))
            if runs[-1].status == 0:
                self._finish(output, runs, exact=exact)
                output, runs = self.fresh(), [self.build(self.folder / f"out-{self.number}", fault, *options)]
            if runs[-1].status == 0:  # a moment after the end: the machine is faster now than it was
                self.full_seconds = runs[-1].seconds
                self._finish(output, runs, exact=exact)
                output, runs = self.fresh(), []
                continue
            self._check_end(fault, runs[-1])
            struck += 1
            if output.exists():
                self.check_after_kill(output, exact=exact)
            if len(runs) == kills:
                runs.append(self.build(output, None, *options))
                self._finish(output, runs, exact=exact)
                output, runs = self.fresh(), []
        if runs:
            runs.append(self.build(output, None, *options))
            self._finish(output, runs, exact=exact)
        self.counts["kills"] += struck
        return struck

    @staticmethod
    def _check_end(fault: Fault, ended: Ended) -> None:
        if fault.do == "kill":
            assert ended.status == -9, (fault, ended.status, ended.stderr)
            return
        assert ended.status == 1, (fault, ended.status, ended.stderr)
        assert "Traceback" not in ended.stderr, (fault, ended.stderr)
        last = ended.stderr.splitlines()[-1]
        assert last.startswith("hfprep: "), (fault, last)
        assert "run the same command again" in last, (fault, last)

    def _finish(self, output: Path, runs: list[Ended], *, exact: bool) -> None:
        assert runs[-1].status == 0, runs[-1].stderr
        self.check_final(output, exact=exact)
        self.check_finished_once(runs, self.batch_size)
        self.counts["builds"] += 1
        self.counts["runs"] += len(runs)
        shutil.rmtree(output)

    def every_point(self, seed: int, per_point: int | None = None, do: str = "kill") -> list[Fault]:
        """A kill (or what `do` says) at each named point, `per_point` times, at random occurrences; in a run's order.

        Without `per_point` once at each, where the four columns, whose files are all written alike, count as one.
        """
        draw = random.Random(seed)
        faults, seen = [], set()
        for (point, kind), count in self.points().items():
            alike = (point, "column" if kind in COLUMN_FOLDERS and per_point is None else kind)
            if alike in seen:
                continue
            seen.add(alike)
            chosen = draw.sample(range(1, count + 1), min(per_point or 1, count))
            faults += [Fault(do=do, point=point, kind=kind, nth=nth) for nth in chosen]
        return faults

    def random_moments(self, seed: int, number: int) -> Iterator[Fault]:
        """Kills at random times within the length of an undisturbed run, as last seen."""
        draw = random.Random(seed)
        for _ in range(number):
            yield Fault(after_seconds=draw.uniform(0.0, self.full_seconds))


def public_tree(output: Path) -> set[str]:
    """Names of all files of an output, but for hfprep's own folder."""
    files = (path.relative_to(output) for path in output.rglob("*") if path.is_file())
    return {str(path) for path in files if path.parts[0] != ".hfprep"}
