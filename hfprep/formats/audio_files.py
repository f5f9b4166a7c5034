"""Finds the audio of a finished output, whose records have the source manifest's (possibly relative) paths."""

from collections.abc import Callable
from pathlib import Path

from hfprep.formats.npy import read_state_value
from hfprep.inputs.manifest.rows import AudioFinder


def audio_finder(output: Path, audio_root: Path | None) -> Callable[[str], str]:
    """A function that finds a record's audio: below `audio_root`, or else as the build did, or else from the output."""
    paths = None if audio_root is not None else read_state_value(output, "paths")
    paths = paths or {}
    manifest = paths.get("manifest")
    found = Path(manifest) if manifest else (audio_root or output) / "manifest.jsonl"
    return AudioFinder(found, paths.get("audio_root")).find
