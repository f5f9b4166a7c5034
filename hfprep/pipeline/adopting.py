"""Support for `--skip-existing`: checks how existing codes were made, and collects worker folders of older scripts."""

import contextlib
import logging
import os
from pathlib import Path

from hfprep.errors import ConfigError, StoreError
from hfprep.io.atomic import explained
from hfprep.pipeline.config import BuildConfig
from hfprep.store.layout import NpyOutput
from hfprep.store.statistics import read_stats

log = logging.getLogger(__name__)

WORKER_FOLDERS = "worker_*"  # one per worker of the older scripts, which merged them at the end


def check_chain(config: BuildConfig, root: Path) -> None:
    """Log which resampling adopted codes are assumed to have, so that two kinds are never mixed unnoticed.

    Raises ConfigError if the output records another one than this build uses.
    """
    recorded, ours = _recorded_chain(root), config.resample_via
    if recorded is not None and recorded != ours:
        raise ConfigError(
            f"--skip-existing: the codes in {str(root)!r} were made with --audio-sr {recorded}, but this build would "
            f"compute others with {ours}. Give --audio-sr {recorded}, or build without --skip-existing"
        )
    if recorded is None and config.audio_sr is None:
        log.warning(
            "--skip-existing assumes that existing codes were made with --audio-sr %d (resampled directly), like new "
            "ones. Older scripts resampled to 24 kHz first: if these codes are theirs, stop and give --audio-sr 24000",
            ours,
        )
    else:
        log.info("--skip-existing assumes that existing codes were made with --audio-sr %d", ours)


def adopt_workers(output: NpyOutput) -> None:
    """Move the artifacts in an older script's worker folders to their places in the output."""
    moved = 0
    for folder in sorted(output.root.glob(WORKER_FOLDERS)):
        for column in output.schema.by_name:
            moved += _move(folder / column, output.root / column)
    if moved:
        log.info("moved %d files out of worker folders", moved)


def _move(source: Path, target: Path) -> int:
    """Move the files below one folder to another, except those that exist there; returns how many were moved."""
    moved = 0
    for path, _, names in os.walk(source, topdown=False):
        place = target / os.path.relpath(path, source)
        for name in names:
            if not (place / name).exists():
                with explained(place / name):
                    place.mkdir(parents=True, exist_ok=True)
                    os.rename(Path(path, name), place / name)
                moved += 1
        with contextlib.suppress(OSError):  # not empty: files that exist in the target stay
            os.rmdir(path)
    return moved


def _recorded_chain(root: Path) -> int | None:
    """`audio_sr` in the stats.json of an hfprep build; None if there is none."""
    with contextlib.suppress(OSError, StoreError):
        found = (read_stats(root) or {}).get("settings", {}).get("audio_sr")
        return found if isinstance(found, int) else None
    return None
