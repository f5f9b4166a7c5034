"""The glossary of a model set (glossary.yaml): terms and how they are pronounced.

Provides `Glossary`. A term has one reading for all languages, or a reading for each of "zh" and "en".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from hfprep.errors import ConfigError

FILE = "glossary.yaml"

Reading = str | Mapping[str, str]


@dataclass(frozen=True)
class Glossary:
    """Terms and their readings, and the SHA-256 of their file ("none" without a file)."""

    readings: Mapping[str, Reading] = field(default_factory=dict)
    sha256: str = "none"

    @classmethod
    def read(cls, path: Path) -> Glossary:
        """Read a glossary.yaml. Raises ConfigError with the file and what is wrong with it."""
        try:
            content = path.read_bytes()
            values = yaml.safe_load(content.decode("utf-8-sig"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: is not a YAML file ({error})") from error
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: contains a {type(values).__name__}, not a mapping of terms to readings")
        for term, reading in values.items():
            readings = list(reading.values()) if isinstance(reading, dict) else [reading]
            if not isinstance(term, str) or not term or not all(isinstance(value, str) for value in readings):
                raise ConfigError(
                    f"{path}: {term!r} has the reading {reading!r}; both must be text (write them in quotes), "
                    "or the reading one for each of zh and en"
                )
        return cls(values, hashlib.sha256(content).hexdigest())

    def apply(self, text: str, language: str) -> str:
        """The text with each term replaced by its reading in that language; ignores case, longest terms first."""
        for term in sorted(self.readings, key=len, reverse=True):
            reading = self.readings[term]
            spoken = reading if isinstance(reading, str) else reading.get(language, term)
            # A backslash in a reading is literal.
            text = re.sub(re.escape(term), spoken.replace("\\", r"\\"), text, flags=re.IGNORECASE)
        return text
