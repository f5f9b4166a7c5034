"""A manifest of a million rows whose samples are finished but for the last few: memory and start-up of the real build.

A program for scripts/soak, not a test. The finished samples are hard links to a few arrays, with a state as the build
itself would have written it; they look finished to the planner, which opens none of them. Prints what it measures.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from hfprep import BuildConfig
from hfprep.inputs.manifest.rows import AudioFinder, parse_line
from hfprep.io.atomic import write_all
from hfprep.io.npy_format import npy_bytes
from hfprep.pipeline.building import find_inputs
from hfprep.schema import Utterance
from hfprep.store.fingerprints import AudioIdentity, Fingerprinter, source_of
from hfprep.store.layout import OutputFolder
from hfprep.store.state import Finished, State

GOLDEN = Path(__file__).resolve().parent / "golden-small"
LINKS_PER_FILE = 50_000  # ext4 allows 65,000
ROWS_PER_FOLDER = 1000
NEW_ROWS = ("synth1", "synth2", "synth4", "synth6")
TEXT_LEN, CODE_LEN = 24, 20
MAX_RESIDENT_BYTES, MAX_STARTUP_SECONDS = 1 << 30, 60.0

CHILD = """
import resource, sys, time
started = float(sys.argv.pop(1))
from hfprep import cli
from hfprep.io import atomic
first = []
def observe(point, path):
    if point == "before-append" and not first:
        first.append(time.time() - started)
        print(f"MEASURED first_batch {first[0]:.1f}", flush=True)
atomic.set_observer(observe)
try:
    cli.main()
finally:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    anonymous = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
    print(f"MEASURED peak {peak}")
    print(f"MEASURED anonymous_at_end {anonymous}")
    print(f"MEASURED total {time.time() - started:.1f}")
"""


class LinkedFile:
    """One content under a million names."""

    def __init__(self, folder: Path, name: str, content: bytes) -> None:
        self.folder, self.name, self.content = folder, name, content
        self.links = 0
        self.source = ""

    def link(self, target: str) -> None:
        if self.links % LINKS_PER_FILE == 0:
            self.source = str(self.folder / f"{self.name}-{self.links}")
            descriptor = os.open(self.source, os.O_WRONLY | os.O_CREAT)
            write_all(descriptor, self.content)
            os.close(descriptor)
        os.link(self.source, target)
        self.links += 1


def fabricate(folder: Path, rows: int) -> tuple[Path, Path]:
    """The manifest and an output directory in which all of its rows but the last few are finished."""
    manifest, output = folder / "manifest.jsonl", folder / "out"
    (folder / "same").mkdir(parents=True)
    place = OutputFolder(output)
    place.reset_work()
    config = BuildConfig(manifest=manifest, output_dir=output, models=GOLDEN / "checkpoints")
    inputs = find_inputs(config, place)
    schema = inputs.schema
    fingerprinter = Fingerprinter(schema, inputs.settings(config))
    lengths = {"text_len": TEXT_LEN, "code_len": CODE_LEN, **schema.fixed}
    arrays = {
        x.name: LinkedFile(folder / "same", x.name, npy_bytes(np.zeros(schema.shape(x, lengths), x.dtype)))
        for x in schema.columns
    }
    own_lengths = {
        group: {name: lengths[name] for column in schema.columns_of([group]) for name in column.lengths}
        for group in schema.group_names
    }
    clip = LinkedFile(folder / "same", "clip", (GOLDEN / "audio" / "synth6.ogg").read_bytes())
    finder = AudioFinder(manifest)
    state = State(place.private / "state.sqlite")
    state.put("settings", fingerprinter.settings)
    with open(manifest, "w", encoding="utf-8") as lines, state.transaction():
        for number in range(rows):
            if number % ROWS_PER_FOLDER == 0:
                part = f"part-{number // ROWS_PER_FOLDER:05d}"
                for name in arrays:
                    (output / name / part).mkdir(parents=True)
                (folder / "audio" / part).mkdir(parents=True)
            sample_id = f"{part}/utterance-{number:07d}"
            clip.link(f"{folder}/audio/{sample_id}.ogg")
            for name, array in arrays.items():
                array.link(f"{output}/{name}/{sample_id}.npy")
            row = {"id": sample_id, "text": f"This is sentence number {number} of a million.", "speaker": part}
            line = json.dumps(row | {"audio": f"audio/{sample_id}.ogg", "language": "en", "duration": 0.41})
            lines.write(line + "\n")
            utterance = parse_line(number + 1, line.encode(), finder, None)
            assert isinstance(utterance, Utterance)
            audio = AudioIdentity.of(utterance.path, by_content=False)
            prints = fingerprinter.of(utterance, audio)
            groups = {name: Finished(prints[name], own) for name, own in own_lengths.items()}
            state.finish(sample_id, groups, seconds=0.41, source=source_of(utterance, audio))
        for row_line in (GOLDEN / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(row_line)
            if row["id"] in NEW_ROWS:
                lines.write(json.dumps(row | {"audio": str(GOLDEN / row["audio"])}) + "\n")
    state.close()
    return manifest, output


def measure(manifest: Path, output: Path) -> dict[str, float]:
    """One real build: seconds to the first finished batch and to the end, bytes of memory at the most."""
    options = ["--manifest", manifest, "--output-dir", output, "--models", GOLDEN / "checkpoints", "--batch-size", "2"]
    command = [sys.executable, "-c", CHILD, str(time.time()), "build", *map(str, options)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("MEASURED")]
    return {name: float(value) for _, name, value in lines}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where a few gigabytes of small files may go")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--keep", action="store_true", help="keep the folder, and use it again")
    arguments = parser.parse_args()
    work = arguments.folder / f"rows-{arguments.rows}"
    started = time.monotonic()
    if (work / "ready").exists():
        manifest, output = work / "manifest.jsonl", work / "out"
    else:
        shutil.rmtree(work, ignore_errors=True)
        manifest, output = fabricate(work, arguments.rows)
        (work / "ready").touch()
    sys.stdout.write(f"{arguments.rows} finished samples made in {time.monotonic() - started:.0f} s\n")
    for sample_id in NEW_ROWS:  # finished by an earlier measurement of a folder that was kept
        (output / "codes" / f"{sample_id}.npy").unlink(missing_ok=True)
    good = True
    for what in ("a few new rows", "nothing new"):
        found = measure(manifest, output)
        peak, first = found["peak"], found.get("first_batch", found["total"])
        good = good and peak < MAX_RESIDENT_BYTES and first < MAX_STARTUP_SECONDS
        sys.stdout.write(
            f"{what}: first batch after {first:.1f} s, all done after {found['total']:.1f} s, "
            f"at most {peak / 2**20:.0f} MiB resident, of which {found['anonymous_at_end'] / 2**20:.0f} MiB its own\n"
        )
    if not arguments.keep:
        shutil.rmtree(work)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
