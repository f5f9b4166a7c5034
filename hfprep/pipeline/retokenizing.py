"""Computes text ids again with another tokenizer: a build of the same manifest that only changes the text columns.

`retokenize` repeats the last build of an output with another tokenizer, in place or in a copy that shares the other
artifacts by hard links.
"""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError, StoreError
from hfprep.formats.folders import atomic_folder
from hfprep.formats.npy import is_npy_output
from hfprep.io.atomic import check_writable
from hfprep.io.object_storage import any_url, check_local
from hfprep.pipeline.building import build
from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.provenance import ELSEWHERE
from hfprep.pipeline.summary import Summary
from hfprep.store.layout import PRIVATE, STATE, STATE_FILE
from hfprep.store.state import copy_state, read_value
from hfprep.store.statistics import read_stats
from hfprep.store.values import parse_paths

NOT_COPIED = {"lock", "build.log", STATE, "work"}


def retokenize(output: Path, tokenizer: Path, *, output_dir: Path | None = None, **changes: Any) -> Summary:
    """Compute the text ids of an output again, in place or in a new folder; `changes` are other options of the build.

    No audio is read: samples whose audio features are not finished are rejected. Raises ConfigError if the output does
    not record what it was built from.
    """
    config = dataclasses.replace(last_config(output), tokenizer=tokenizer, **changes)
    if "manifest" not in changes and any_url(config.manifest) is not None:  # the output may not be trusted
        raise ConfigError(
            f"{str(output)!r} was built from {any_url(config.manifest)}; to read it, give it with --manifest"
        )
    if output_dir is None:
        check_writable(output, "give a folder for the result: --output-dir DIR")
        return build(config, with_audio=False)
    check_local(output_dir, written=True)
    if (output_dir / STATE_FILE).is_file():  # an earlier run, complete or not
        earlier = last_config(output_dir)
        if earlier.manifest != config.manifest:
            raise StoreError(f"--output-dir {str(output_dir)!r} contains features of {earlier.manifest}; use another")
    else:
        copy_output(output, output_dir)
    return build(dataclasses.replace(config, output_dir=output_dir), with_audio=False)


def last_config(output: Path) -> BuildConfig:
    """The options of the last build of an output, except those that only decide where it runs (`ELSEWHERE`)."""
    check_local(output)
    if not is_npy_output(output):
        raise ConfigError(f"{str(output)!r} is not an output of `build` in the npy layout")
    paths, settings = read_value(output / STATE_FILE, "paths", parse_paths), {}
    if not paths:
        raise ConfigError(
            f"{str(output)!r} does not record what it was built from; run `build` on its manifest with the new "
            "--tokenizer and --skip-existing, which keeps the audio features"
        )
    stats = read_stats(output)
    if stats is not None:
        settings = stats.get("settings", {}) | {"precision": stats.get("precision", "fp32")}
    known = {item.name for item in dataclasses.fields(BuildConfig)} - ELSEWHERE
    options = {name: value for name, value in (settings | paths).items() if name in known and value is not None}
    try:
        return BuildConfig(**options | {"output_dir": output})
    except (TypeError, AttributeError) as error:
        raise StoreError(f"the build options in {str(output)!r} are damaged: {error}; run `build` again") from error


def copy_output(source: Path, target: Path) -> None:
    """Copy an output: artifacts as hard links, other files as copies."""
    with atomic_folder(target, lambda _: False) as folder:
        for path, folders, files in os.walk(source):
            place = folder / os.path.relpath(path, source)
            place.mkdir(exist_ok=True)
            inside = os.path.relpath(path, source) == PRIVATE
            folders[:] = [name for name in folders if not (inside and name in NOT_COPIED)]
            for name in (*folders, *files):
                if Path(path, name).is_symlink():  # an output from others could include any file in this way
                    raise StoreError(f"{Path(path, name)} is a symbolic link; remove it or replace it with its file")
            for name in files:
                if not (inside and name in NOT_COPIED):
                    _link(Path(path, name), place / name)
        copy_state(source / STATE_FILE, folder / STATE_FILE)


def _link(source: Path, target: Path) -> None:
    """Hard-link an artifact; copy other files, which a build appends to, and all files if links do not work."""
    if source.suffix == ".npy":
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    shutil.copyfile(source, target)
