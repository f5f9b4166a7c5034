"""Splits Japanese text into words as IndexTTS-2.5 does: with fugashi and the dictionary unidic-lite.

Provides `JapaneseWords`. Both packages are an extra (`pip install 'hfprep[ja]'`); without them Japanese texts are
rejected.
"""

from __future__ import annotations

import importlib.metadata
import re
import threading
from pathlib import Path
from typing import Any

from hfprep.errors import Reason, RejectedSample

INSTALL = "pip install 'hfprep[ja]'"
_PACKAGES = ("fugashi", "unidic-lite")
_SPACES = re.compile("( +)")


class JapaneseWords:
    """Puts spaces between the words of a text. Loads the dictionary on first use. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tagger: Any = None

    def __call__(self, text: str) -> str:
        """The text with a space between words; existing runs of spaces are kept.

        Raises RejectedSample, text_failed, if the packages are not installed or the dictionary loses characters.
        """
        return "".join(part if part.startswith(" ") else self._words(part) for part in _SPACES.split(text) if part)

    def _words(self, part: str) -> str:
        with self._lock:  # a tagger keeps the current sentence as state
            if self._tagger is None:
                self._tagger = _open_tagger()
            words = [word.surface for word in self._tagger(part)]
        if _bare("".join(words)) != _bare(part):
            raise RejectedSample(Reason.TEXT_FAILED, f"the Japanese dictionary loses characters of {part[:60]!r}")
        return " ".join(words)


def _bare(text: str) -> str:
    return "".join(text.split())


def versions() -> str:
    """The packages and their versions, for the fingerprint."""
    try:
        return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in _PACKAGES)
    except importlib.metadata.PackageNotFoundError:
        return "no Japanese words"


def _open_tagger() -> Any:
    try:
        import fugashi
        import unidic_lite
    except ImportError as error:
        raise RejectedSample(Reason.TEXT_FAILED, f"Japanese text needs fugashi and unidic-lite: {INSTALL}") from error
    # Explicitly: fugashi prefers another installed dictionary, which splits words differently.
    folder = Path(unidic_lite.DICDIR)
    return fugashi.Tagger(f'-r "{folder / "mecabrc"}" -d "{folder}"')
