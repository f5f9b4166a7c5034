"""Writes a report: the implementation of `python -m hfprep report`."""

from pathlib import Path

from hfprep.errors import ConfigError
from hfprep.io.atomic import write_bytes
from hfprep.io.object_storage import check_local
from hfprep.tools.report.collect import collect
from hfprep.tools.report.outliers import listen


def write_report(root: Path, target: Path, *, with_audio: bool = False) -> int:
    """Write the report on a finished output (in any format) to `target`; returns its size in bytes.

    `with_audio`: points and rows play their source audio if it is found on this machine. Raises ConfigError if Bokeh is
    not installed, StoreError if the output is damaged.
    """
    try:
        from hfprep.tools.report.page import render
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "bokeh":
            raise
        raise ConfigError("a report needs the bokeh package: pip install 'hfprep[report]'") from error
    check_local(target, written=True)
    found = collect(root, with_audio=with_audio)
    if with_audio:
        listen(found)
    page = render(found).encode("utf-8", "replace")
    write_bytes(target, page)
    return len(page)
