"""Rewrites manifests for use from another folder: with absolute paths, or paths relative to that folder.

A build's records have array paths relative to the output, and audio paths as in the source manifest.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError, StoreError
from hfprep.formats.formats import no_manifests
from hfprep.formats.npy import MANIFESTS, check_inside, is_npy_output
from hfprep.formats.positioned import LineFile
from hfprep.formats.samples import parse_entry
from hfprep.inputs.manifest.rows import AudioFinder
from hfprep.io.atomic import write_lines
from hfprep.io.object_storage import check_local, is_url
from hfprep.io.references import file_of, moved, parse_reference
from hfprep.store.layout import STATE_FILE, json_line
from hfprep.store.state import read_value
from hfprep.store.values import parse_paths

RELATIVE, ABSOLUTE = "relative", "absolute"
PATHS = (RELATIVE, ABSOLUTE)
AUDIO_PATH = "audio_path"  # suffix of all audio fields; other fields that end in _path are arrays


def audio_finder(output: Path, *, manifest: Path | None = None, audio_root: Path | None = None) -> Callable[[str], str]:
    """A function that finds a record's audio: below `audio_root`, if it is given, or else as the last build did.

    `manifest` is the build's manifest, if it has moved.
    """
    if audio_root is not None:
        return AudioFinder(audio_root / "manifest.jsonl").find
    paths = read_value(output / STATE_FILE, "paths", parse_paths) or {}
    found = manifest or Path(paths.get("manifest") or output / "manifest.jsonl")
    return AudioFinder(found, paths.get("audio_root"), paths.get("folder")).find


def check_paths(paths: str) -> None:
    """Raise ConfigError if `paths` is not in `PATHS`."""
    if paths not in PATHS:
        raise ConfigError(f"--paths is {paths!r}; it must be {' or '.join(PATHS)}")


@dataclass
class PathWriter:
    """Rewrites the paths in an output's records: absolute, or relative to `folder`.

    `missing` collects audio paths without a file; they are not changed in the record.
    """

    output: Path
    folder: Path
    paths: str
    audio_root: Path | None = None
    missing: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        check_paths(self.paths)
        self._find: Callable[[str], str] = audio_finder(self.output, audio_root=self.audio_root)
        self._root, self._base = os.path.abspath(self.output), os.path.abspath(self.folder)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record of a sample or a pair with rewritten paths; raises ValueError for a path outside the output."""
        changed = {}
        for name, value in record.items():
            if name.endswith(AUDIO_PATH):
                changed[name] = self._audio(value)
            elif name.endswith("_path"):
                check_inside(self.output, value)
                changed[name] = self._place(os.path.join(self._root, value))
        return record | changed

    def _audio(self, audio: str) -> str:
        if is_url(audio):
            return audio
        found = self._find(audio)
        file = file_of(found)
        if not os.path.exists(file):
            self.missing.add(audio)
            return audio
        reference = parse_reference(found)
        return self._place(file) if reference is None else moved(reference, self._place(file))

    def _place(self, path: str) -> str:
        absolute = os.path.normpath(os.path.abspath(path))
        return Path(absolute if self.paths == ABSOLUTE else os.path.relpath(absolute, self._base)).as_posix()


@dataclass(frozen=True)
class ExportedManifests:
    """The number of records in each file, by name, and the audio paths without a file."""

    files: dict[str, int]
    missing: tuple[str, ...]


def export_manifests(
    output: Path, target: Path, *, paths: str = RELATIVE, audio_root: Path | None = None, pairs: tuple[str, ...] = ()
) -> ExportedManifests:
    """Write both manifests of an npy output, and its pair files with these names, to another folder.

    Replaces files with the same names. Raises StoreError if the output has no manifests, ConfigError if the folder is
    the output itself.
    """
    if not is_npy_output(output):
        raise StoreError(no_manifests(output))
    check_local(target, written=True)
    if target.resolve() == output.resolve():
        raise ConfigError(f"DIR is {str(target)!r}, the output itself; give another folder")
    writer = PathWriter(output, target, paths, audio_root)
    files = {}
    for name in (*MANIFESTS.values(), *pairs):
        lines = LineFile(output / name)
        write_lines(target / name, _rewritten(lines, writer))
        files[name] = len(lines)
    return ExportedManifests(files, tuple(sorted(writer.missing)))


def _rewritten(lines: LineFile, writer: PathWriter) -> Iterator[bytes]:
    for number, line in enumerate(lines.lines(), start=1):
        try:
            yield json_line(writer(parse_entry(line).record))
        except ValueError as error:
            raise StoreError(f"{lines.path}, line {number}: {error}; run the build again") from None
