"""Text streams whose writes never fail, so that a run continues after its terminal or pipe is closed."""

import contextlib
import io
import os
from typing import Any


class LenientStream(io.TextIOWrapper):
    """A text stream whose writes never fail: after the first failure all output is discarded."""

    def write(self, text: str) -> int:
        with self._forgiving():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._forgiving():
            super().flush()

    @contextlib.contextmanager
    def _forgiving(self) -> Any:
        try:
            yield
        except (OSError, ValueError):  # a pipe whose reader is gone, a full disk, a closed file
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())  # buffered output is discarded, too
                os.close(nowhere)


def lenient(stream: Any, descriptor: int) -> LenientStream:
    """A lenient stream to replace `stream` (or None), which writes to `descriptor`; `stream` is detached."""
    buffer = io.BufferedWriter(io.FileIO(descriptor, "wb", closefd=False)) if stream is None else stream.detach()
    terminal = os.isatty(descriptor)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return LenientStream(buffer, encoding, "backslashreplace", line_buffering=terminal or descriptor == 2)
