"""Finds the audio of a finished output, whose records have the source manifest's (possibly relative) paths."""

import os
from collections.abc import Callable
from pathlib import Path

from hfprep.inputs.manifest.rows import AudioFinder
from hfprep.store.layout import STATE_FILE
from hfprep.store.state import read_value
from hfprep.store.values import parse_paths


def audio_finder(output: Path, audio_root: Path | None) -> Callable[[str], str]:
    """A function that finds a record's audio: below `audio_root`, or else as the build did, or else from the output."""
    paths = None if audio_root is not None else read_value(output / STATE_FILE, "paths", parse_paths)
    paths = paths or {}
    manifest = paths.get("manifest")
    found = Path(manifest) if manifest else (audio_root or output) / "manifest.jsonl"
    return AudioFinder(found, paths.get("audio_root")).find


def build_audio_finder(output: Path, manifest: Path | None = None) -> Callable[[str], str]:
    """A function that finds a record's audio as the last build did, in that build's working directory first.

    `manifest`: the build's manifest, if it has moved.
    """
    paths = read_value(output / STATE_FILE, "paths", parse_paths) or {}
    finder = AudioFinder(manifest or Path(paths.get("manifest") or output / "manifest.jsonl"), paths.get("audio_root"))

    def find(audio: str) -> str:
        beside = os.path.join(paths.get("folder") or "", audio)
        return beside if paths.get("folder") and os.path.exists(beside) else finder.find(audio)

    return find
