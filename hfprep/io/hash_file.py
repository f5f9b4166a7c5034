"""A program of its own: prints the hex SHA-256 of the file that is its argument; `Hashers` runs it, by its path.

It maps the file instead of reading it, which takes two fifths less time. A file that shrinks meanwhile kills whoever
has it mapped, so this is for no other process. Imports nothing of hfprep.
"""

import hashlib
import mmap
import os
import signal
import sys

WINDOW_BYTES = 1 << 26
NICENESS = 5  # whoever asked goes first: it is importing packages on one core


def mapped_sha256(path: str) -> str:
    """Hex SHA-256 of a file's content. Raises OSError or ValueError where it cannot be mapped."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        for offset in range(0, size, WINDOW_BYTES):
            length = min(WINDOW_BYTES, size - offset)
            with mmap.mmap(stream.fileno(), length, access=mmap.ACCESS_READ, offset=offset) as window:
                digest.update(window)
    return digest.hexdigest()


if __name__ == "__main__":
    # Ctrl-C reaches every process of a terminal; what it means is decided by the one that asked for the hash.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    sys.stdout.write(mapped_sha256(sys.argv[1]))
