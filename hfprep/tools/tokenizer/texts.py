"""The texts of manifests, prepared for SentencePiece as in a build: cleaned, normalised, in upper case.

Audio is ignored. Rows that a build could not parse, or would reject for their text,
are counted and skipped.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.opening import open_source
from hfprep.inputs.manifest.rows import NoLookup, parse_line
from hfprep.inputs.text.language import language_option
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.schema import Rejection, Utterance


@dataclass
class ManifestTexts:
    """Iterates over the texts of manifests; `read` and `rejected` count lines.

    `language`, if given, overrides the language of every row; `field_map` maps field names as in a build.
    """

    manifests: Sequence[Path]
    tokenizer: TextTokenizer
    language: str | None = None
    field_map: str | None = None
    read: int = 0
    rejected: Counter[Reason] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[tuple[Utterance, str]]:
        """Each row with its prepared text.

        Raises ConfigError if a manifest cannot be read or is empty, or the language is not valid.
        """
        fields, language = FieldMap.parse(self.field_map), language_option(self.language)
        self.read, self.rejected = 0, Counter()
        for manifest in self.manifests:
            before = self.read
            finder = NoLookup(manifest)
            for number, raw in open_source(manifest, fields):
                self.read += 1
                row = parse_line(number, raw, finder, language)
                if isinstance(row, Rejection):
                    self.rejected[row.reason] += 1
                    continue
                try:
                    stages = self.tokenizer.prepare(row.text, row.language)
                except RejectedSample as error:
                    self.rejected[error.reason] += 1
                    continue
                yield row, stages.tokenizer_input
            if self.read == before:
                raise ConfigError(f"--manifest {str(manifest)!r} is empty; give one JSON object per line")
