"""Which ids a file system accepts as file names, and which of them it treats as the same name.

Tested once per output directory, by creating a few files in it.
"""

import contextlib
import errno
import os
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from hfprep.errors import Reason, RejectedSample
from hfprep.io.atomic import explained

# Errors for names that a file system does not accept.
UNNAMEABLE = frozenset({errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG})
DOUBTFUL = '\\:*?"<>|'  # legal on Linux, but refused by other systems' file systems
SUFFIX = ".npy"
LONGEST_COLUMN = 24  # bytes for a column's folder and a temporary suffix


@dataclass(frozen=True, slots=True)
class NameRules:
    """A file system's rules for names: characters it refuses, differences it ignores, and the longest path."""

    refused: str = ""
    folds_case: bool = False
    composes: bool = False
    longest_name: int = 255
    longest_path: int = 4095

    @classmethod
    def of(cls, folder: Path, root: Path) -> "NameRules":
        """The rules in `folder`, which can be written to; ids become paths below `root`. Raises StoreError."""
        with explained(folder), tempfile.TemporaryDirectory(prefix="names-", dir=folder) as place:
            longest_name, longest_path = 255, 4096
            with contextlib.suppress(OSError, ValueError):
                longest_name, longest_path = os.pathconf(place, "PC_NAME_MAX"), os.pathconf(place, "PC_PATH_MAX")
            refused = "".join(letter for letter in DOUBTFUL if not _made(os.path.join(place, f"a{letter}b")))
            _made(os.path.join(place, "Case"))
            _made(os.path.join(place, "\u00e9"))
            return cls(
                refused=refused,
                folds_case=os.path.exists(os.path.join(place, "cASE")),
                composes=os.path.exists(os.path.join(place, "e\u0301")),
                longest_name=longest_name,
                longest_path=longest_path - len(os.fsencode(os.path.abspath(root))) - LONGEST_COLUMN,
            )

    @property
    def folds(self) -> bool:
        """Whether two different ids can have the same files."""
        return self.folds_case or self.composes

    def key(self, sample_id: str) -> str:
        """A key that is equal for ids with the same files."""
        name = unicodedata.normalize("NFC", sample_id) if self.composes else sample_id
        if not self.folds_case:
            return name
        return "".join(lower if len(lower := letter.lower()) == 1 else letter for letter in name)

    def check(self, sample_id: str) -> None:
        """Raise RejectedSample for an id whose files cannot be named here."""
        size = len(os.fsencode(sample_id)) + len(SUFFIX)
        if found := {letter for letter in self.refused if letter in sample_id}:
            raise unnameable(sample_id, f"it contains {''.join(sorted(found))!r}")
        longest = self.longest_name
        if size > longest and any(len(os.fsencode(part + SUFFIX)) > longest for part in sample_id.split("/")):
            raise unnameable(sample_id, f"a part of it is longer than {longest - len(SUFFIX)} bytes")
        if size > self.longest_path:
            raise unnameable(sample_id, "its path is too long")


def unnameable(sample_id: str, problem: str) -> RejectedSample:
    """The rejection of an id that the output's file system does not accept as a file name."""
    message = f"id {sample_id[:80]!r} cannot be a file name in the output: {problem}; rename it"
    return RejectedSample(Reason.INVALID_ID, message)


def _made(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError as error:
        if error.errno in UNNAMEABLE:
            return False
        raise
    return True
