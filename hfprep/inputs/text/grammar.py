"""Verbalizes numbers, dates, money and so on with the compiled grammars of WeTextProcessing, run by kaldifst.

Provides one class per language: text in, spoken form out, the same as `tn.english.normalizer.Normalizer()` and
`tn.chinese.normalizer.Normalizer(remove_interjections=False, remove_erhua=False)` of WeTextProcessing 1.0.4.1. Takes
the folder of that package's .fst files; its Python code, and so pynini, is never imported. Knows nothing about language
codes, punctuation tables or token ids.

A grammar is two transducers. The tagger splits a text into tokens, `name { key: "value" ... }`, whose keys are put into
spoken order; the verbalizer turns the tokens into words.
"""

import importlib.metadata
import importlib.util
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfprep.errors import ConfigError

PACKAGE, VERSION = "WeTextProcessing", "1.0.4.1"


class GrammarFailed(Exception):
    """The grammar cannot parse a text; the message says which step failed."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a tagger: its name and its fields in the order in which they were written."""

    name: str
    fields: tuple[tuple[str, str], ...]

    def write(self, spoken_order: tuple[str, ...] | None) -> str:
        """Return the token for the verbalizer, with its fields in spoken order if there is one."""
        values = dict(self.fields)
        keys = [key for key, _ in self.fields]
        if spoken_order is not None and values.get("preserve_order") != "true":
            keys = [key for key in spoken_order if key in values]
        return f"{self.name} {{" + "".join(f' {key}: "{values[key]}"' for key in keys) + " }"


_FIELD = r' *([A-Za-z_]+): "((?:[^"\\]|\\.)*)"'
_FIELD_PATTERN = re.compile(_FIELD, re.DOTALL)
_TOKEN_PATTERN = re.compile(rf" *([A-Za-z_]+) \{{((?:{_FIELD})*) *\}}", re.DOTALL)


def parse_tokens(tagged: str) -> Iterator[Token]:
    """Yield the tokens of a tagger's output; raises GrammarFailed if it is not a sequence of tokens."""
    position, end = 0, len(tagged.rstrip(" "))
    while position < end:
        match = _TOKEN_PATTERN.match(tagged, position)
        if match is None:
            raise GrammarFailed(f"the tagger's output has no token at {position}: {tagged[position : position + 60]!r}")
        yield Token(match[1], tuple(_FIELD_PATTERN.findall(match[2])))
        position = match.end()


class _Transducer:
    """A compiled .fst, loaded when it is first used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._run: Any = None

    def __call__(self, text: str) -> str:
        with self._lock:
            if self._run is None:
                import kaldifst

                self._run = kaldifst.TextNormalizer(str(self.path))
        result: str = self._run(text)
        return result


class _Grammar:
    """Tag, reorder, verbalize: common to all languages."""

    prefix: ClassVar[str]
    spoken_orders: ClassVar[dict[str, tuple[str, ...]]]

    def __init__(self, folder: Path) -> None:
        self.files = tuple(folder / f"{self.prefix}_{step}.fst" for step in ("tagger", "verbalizer"))
        missing = [str(path) for path in self.files if not path.is_file()]
        if missing:
            raise ConfigError(f"grammar file missing: {', '.join(missing)}. Reinstall it: {_INSTALL}")
        self._tagger, self._verbalizer = map(_Transducer, self.files)

    def normalize(self, text: str) -> str:
        """Return the spoken form of a text; raises GrammarFailed if the grammar cannot parse it."""
        return self.verbalize(self.tag(text)) if text else ""

    def tag(self, text: str) -> list[Token]:
        """Return the tokens of a text; raises GrammarFailed if the tagger cannot parse it."""
        tokens = list(parse_tokens(self._tagger(text)))
        if text.strip() and not tokens:
            raise GrammarFailed("the tagger cannot parse it")
        return tokens

    def verbalize(self, tokens: list[Token]) -> str:
        """Return the spoken form of tokens; raises GrammarFailed if the verbalizer rejects them."""
        written = " ".join(token.write(self.spoken_orders.get(token.name)) for token in tokens)
        spoken = self._verbalizer(written) if written else ""
        if written and not spoken:
            raise GrammarFailed(f"the verbalizer rejects {written[:200]!r}")
        return spoken


class EnglishGrammar(_Grammar):
    """The English grammar as the package ships it."""

    prefix = "en_tn"
    spoken_orders: ClassVar = {
        "date": ("preserve_order", "text", "day", "month", "year"),
        "money": ("integer_part", "fractional_part", "quantity", "currency_maj"),
    }


class ChineseGrammar(_Grammar):
    """The Chinese grammar with interjections and erhua kept.

    The package ships it with both removed, and builds the other variant from source (minutes of CPU, gigabytes). But
    the taggers are identical files, and the verbalizers differ only in three tokens that the shipped one deletes:
    `char` 呃, `char` 啊 and `whitelist { erhua: "儿" }`. As tokens are verbalized independently, these three are
    written here and the shipped verbalizer does the rest.
    """

    prefix = "zh_tn"
    spoken_orders: ClassVar = {
        "date": ("year", "month", "day"),
        "fraction": ("denominator", "numerator"),
        "measure": ("denominator", "numerator", "value"),
        "money": ("value", "currency"),
        "time": ("noon", "hour", "minute", "second"),
    }
    _kept: ClassVar = {
        Token("char", (("value", "呃"),)): "呃",
        Token("char", (("value", "啊"),)): "啊",
        Token("whitelist", (("erhua", "儿"),)): "儿",
    }

    def verbalize(self, tokens: list[Token]) -> str:
        """Return the spoken form of tokens, with the three kept ones unchanged."""
        spoken, run = [], list[Token]()
        for token in tokens:
            if token in self._kept:
                spoken += [super().verbalize(run), self._kept[token]]
                run = []
            else:
                run.append(token)
        return "".join([*spoken, super().verbalize(run)])


# Without dependencies: pynini (413 MB) is not needed.
_INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"


def grammar_folder() -> Path:
    """Return the folder of the package's .fst files; raises ConfigError if it is missing or the wrong version."""
    try:
        found = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"the English and Chinese grammars are missing: {_INSTALL}") from error
    if found != VERSION:
        raise ConfigError(f"{PACKAGE} {found} is installed, but the published tokens come from {VERSION}: {_INSTALL}")
    spec = importlib.util.find_spec("tn")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{PACKAGE} {found} is installed without its package tn: {_INSTALL}")
    return Path(spec.submodule_search_locations[0])
