"""What an older script, or a lost record, leaves to `--skip-existing`: codes of some chain, worker folders."""

import contextlib
import json
import logging
import os
from pathlib import Path

from hfprep.errors import ConfigError
from hfprep.io.atomic import explained
from hfprep.pipeline.config import BuildConfig
from hfprep.store.layout import STATS, NpyOutput

log = logging.getLogger(__name__)

WORKER_FOLDERS = "worker_*"  # each worker of the older scripts wrote to one, and merged it at the end


def check_chain(config: BuildConfig, root: Path) -> None:
    """Say by which resampling chain adopted codes are taken to be made, so that two are never mixed unseen.

    Raises ConfigError where the output says that it was another than this build's.
    """
    made, ours = _recorded_chain(root), config.resample_via
    if made is not None and made != ours:
        raise ConfigError(
            f"--skip-existing: the codes in {str(root)!r} were made with --audio-sr {made}, and this build would "
            f"compute others with {ours} beside them. Give --audio-sr {made}, or build without --skip-existing"
        )
    if made is None and config.audio_sr is None:
        log.warning(
            "--skip-existing: codes that are adopted are taken to be made with --audio-sr %d, straight from the files' "
            "rates, as new ones are. Older scripts went by way of 24 kHz: if so, stop, and give --audio-sr 24000",
            ours,
        )
    else:
        log.info("--skip-existing: codes that are adopted are taken to be made with --audio-sr %d", ours)


def adopt_workers(output: NpyOutput) -> None:
    """Move the artifacts of an older script's worker folders to where a build looks for them."""
    moved = 0
    for folder in sorted(output.root.glob(WORKER_FOLDERS)):
        for column in output.schema.by_name:
            moved += _move(folder / column, output.root / column)
    if moved:
        log.info("moved %d files from worker folders to their final place", moved)


def _move(source: Path, target: Path) -> int:
    """Move the files below one folder to another, but for those that are there already; gives their number."""
    moved = 0
    for path, _, names in os.walk(source, topdown=False):
        place = target / os.path.relpath(path, source)
        for name in names:
            if not (place / name).exists():
                with explained(place / name):
                    place.mkdir(parents=True, exist_ok=True)
                    os.rename(Path(path, name), place / name)
                moved += 1
        with contextlib.suppress(OSError):  # what was there already stays where it is
            os.rmdir(path)
    return moved


def _recorded_chain(root: Path) -> int | None:
    """The rate that a build of hfprep has written down; None where there is none, or another program's."""
    try:
        found = json.loads((root / STATS).read_bytes())["settings"]["audio_sr"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None
