"""Moves broken files aside, so that the next build computes exactly those again.

Takes the faults of an npy output. Nothing is deleted: files are moved to .hfprep/broken/<number>/, with their paths.
The manifests keep only intact samples, so that a trainer can use them at once.
"""

import itertools
import os
import shutil
from collections import defaultdict
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from hfprep.io import atomic
from hfprep.store.layout import PROGRESS, STATE_FILE, NpyOutput, json_line
from hfprep.store.state import State
from hfprep.tools.verify.faults import OF_ARTIFACT, FaultKind, Findings
from hfprep.tools.verify.listing import MANIFESTS, Listing

# Faults of files that every build rewrites from the state.
OF_LISTING = frozenset(
    {
        FaultKind.RECORD_INVALID,
        FaultKind.DUPLICATE_ID,
        FaultKind.IN_BOTH_SPLITS,
        FaultKind.WRONG_SPLIT,
        FaultKind.FILE_MISSING,
        FaultKind.PROGRESS_DISAGREES,
    }
)


def repair_npy(output: NpyOutput, findings: Findings, listing: Listing, broken_exports: Collection[str]) -> list[str]:
    """Move broken files to .hfprep/broken and forget them; returns a line per action. The caller holds the lock.

    `broken_exports` are folders of other formats below the output; they are moved whole, and exported again by a build.
    """
    broken = _Aside(output)
    for name in sorted(broken_exports):
        broken.move(name)
    schema = output.schema
    needs: dict[str, frozenset[str]] = defaultdict(frozenset)
    for fault in findings.faults:
        if fault.kind in OF_ARTIFACT and fault.id is not None and fault.column is not None:
            needs[fault.id] |= {schema.by_name[fault.column].group}
            broken.move(fault.file)
        elif fault.kind == FaultKind.STATE_DISAGREES and fault.id is not None:
            needs[fault.id] |= schema.all_groups
        elif fault.kind == FaultKind.UNLISTED_FILE:
            broken.move(fault.file)
        elif fault.kind == FaultKind.FILE_INVALID:
            broken.move(fault.file.partition(":")[0])  # without a line number
    if needs and output.state_file.is_file():
        with closing(State(output.state_file, schema)) as state, state.transaction():
            state.begin(needs.items())
    if needs or any(findings.of(*OF_LISTING)):
        _list_intact(output, listing, set(needs), broken)
    if any(findings.of(FaultKind.UNFINISHED)):
        output.remove_work()
    actions = [f"moved {name} to {broken.folder.relative_to(output.root)}" for name in broken.moved]
    for sample_id, groups in sorted(needs.items()):
        names = ", ".join(name for name in schema.group_names if name in groups)
        actions.append(f"{sample_id}: {names} will be computed again")
    if STATE_FILE in broken.moved:
        actions.append("the record of finished samples is gone: build with --skip-existing to adopt the intact files")
    return actions


def _list_intact(output: NpyOutput, listing: Listing, broken_ids: set[str], broken: "_Aside") -> None:
    """Rewrite both manifests and the progress file without broken samples; the old files are copied aside."""
    misplaced = {fault.id for fault in listing.findings.of(FaultKind.WRONG_SPLIT)}
    gone = broken_ids | listing.suspect | misplaced
    lines: dict[str, list[bytes]] = {name: [] for name in (PROGRESS, *MANIFESTS)}
    for split, record in listing.records():
        if record["id"] not in gone:
            lines[split].append(json_line(record))
            lines[PROGRESS].append(record["id"].encode() + b"\n")
    for name in lines:
        broken.copy(name)
    for name, content in lines.items():
        atomic.write_lines(output.root / name, content)


class _Aside:
    """A new folder in the output's private folder, to which files are moved with their paths."""

    def __init__(self, output: NpyOutput) -> None:
        self.root = output.root
        base = output.private / "broken"
        self.folder = next(folder for number in itertools.count(1) if not (folder := base / str(number)).exists())
        self.moved: list[str] = []

    def _target(self, name: str) -> Path:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def move(self, name: str) -> None:
        """Move a file (or a folder in its place) aside, if it exists."""
        source = self.root / name
        if name in self.moved or not os.path.lexists(source):
            return
        with atomic.explained(source):
            os.rename(source, self._target(name))
            atomic.sync_folder(source.parent)
        self.moved.append(name)

    def copy(self, name: str) -> None:
        """Copy a file that is about to be rewritten."""
        if (self.root / name).is_file():
            with atomic.explained(self.folder):
                shutil.copy2(self.root / name, self._target(name))
