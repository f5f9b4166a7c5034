"""Which ids a file system can hold as names of files, and which of them it takes for the same one.

Found out once for an output directory, by making a few files in it. Knows nothing of what is in the files.
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

# What a file system says of a name that it cannot hold, whatever else is right.
UNNAMEABLE = frozenset({errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG})
DOUBTFUL = '\\:*?"<>|'  # legal on Linux, and refused by file systems of other systems
SUFFIX = ".npy"
LONGEST_COLUMN = 24  # letters of a column's folder, and of what a temporary name adds


@dataclass(frozen=True, slots=True)
class NameRules:
    """What a file system does to names: letters it refuses, differences it does not see, and the longest path."""

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
        """Whether two different ids can come to the same files."""
        return self.folds_case or self.composes

    def key(self, sample_id: str) -> str:
        """The same for ids whose files are the same."""
        name = unicodedata.normalize("NFC", sample_id) if self.composes else sample_id
        if not self.folds_case:
            return name
        return "".join(lower if len(lower := letter.lower()) == 1 else letter for letter in name)

    def check(self, sample_id: str) -> None:
        """Raise RejectedSample for an id whose files cannot be named here."""
        found = set(self.refused).intersection(sample_id)
        problem = None
        if found:
            problem = f"holds {''.join(sorted(found))!r}"
        elif any(len(os.fsencode(part + SUFFIX)) > self.longest_name for part in sample_id.split("/")):
            problem = f"has a part longer than {self.longest_name - len(SUFFIX)} bytes"
        elif len(os.fsencode(sample_id + SUFFIX)) > self.longest_path:
            problem = "makes a path that is too long"
        if problem:
            raise unnameable(sample_id, problem)


def unnameable(sample_id: str, problem: str) -> RejectedSample:
    """What to say of an id that the output's file system cannot hold."""
    message = f"id {sample_id[:80]!r} {problem}, which the output's file system cannot hold as a name; rename it"
    return RejectedSample(Reason.INVALID_ID, message)


def _made(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError as error:
        if error.errno in UNNAMEABLE:
            return False
        raise
    return True
