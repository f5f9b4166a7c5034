"""Numbers, dates, money and the like as words, by the compiled grammars of WeTextProcessing, run by kaldifst.

Gives one class a language: text in, spoken form out, the same as `tn.english.normalizer.Normalizer()` and
`tn.chinese.normalizer.Normalizer(remove_interjections=False, remove_erhua=False)` of WeTextProcessing 1.0.4.1. Takes
the folder of that package's .fst files (its Python, and so pynini, is never imported). Does not know languages' codes,
punctuation tables or tokens.

A grammar is two transducers. The tagger cuts a text into `name { key: "value" ... }` tokens, whose keys are then put
into the order in which they are spoken; the verbalizer writes the tokens out.
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
    """The grammar has no reading of a text; the message says which step gave none."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a tagger: its name and its fields in the order in which they were written."""

    name: str
    fields: tuple[tuple[str, str], ...]

    def write(self, spoken_order: tuple[str, ...] | None) -> str:
        """Return the token for the verbalizer, its fields in the spoken order where there is one."""
        values = dict(self.fields)
        keys = [key for key, _ in self.fields]
        if spoken_order is not None and values.get("preserve_order") != "true":
            keys = [key for key in spoken_order if key in values]
        return f"{self.name} {{" + "".join(f' {key}: "{values[key]}"' for key in keys) + " }"


_FIELD = r' *([A-Za-z_]+): "((?:[^"\\]|\\.)*)"'
_FIELD_PATTERN = re.compile(_FIELD, re.DOTALL)
_TOKEN_PATTERN = re.compile(rf" *([A-Za-z_]+) \{{((?:{_FIELD})*) *\}}", re.DOTALL)


def parse_tokens(tagged: str) -> Iterator[Token]:
    """Yield the tokens of a tagger's output; raises GrammarFailed where it is not a row of tokens."""
    position, end = 0, len(tagged.rstrip(" "))
    while position < end:
        match = _TOKEN_PATTERN.match(tagged, position)
        if match is None:
            raise GrammarFailed(f"the tagger wrote no token at {position}: {tagged[position : position + 60]!r}")
        yield Token(match[1], tuple(_FIELD_PATTERN.findall(match[2])))
        position = match.end()


class _Transducer:
    """A compiled .fst, loaded when it is first used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._run: Any = None

    def __call__(self, text: str) -> str:
        if self._run is None:
            self._load()
        result: str = self._run(text)
        return result

    def _load(self) -> None:
        import kaldifst

        with self._lock:
            if self._run is None:
                self._run = kaldifst.TextNormalizer(str(self.path))


class _Grammar:
    """Tag, reorder, verbalize: what the languages share."""

    prefix: ClassVar[str]
    spoken_orders: ClassVar[dict[str, tuple[str, ...]]]

    def __init__(self, folder: Path) -> None:
        self.files = tuple(folder / f"{self.prefix}_{step}.fst" for step in ("tagger", "verbalizer"))
        missing = [str(path) for path in self.files if not path.is_file()]
        if missing:
            raise ConfigError(f"grammar file missing: {', '.join(missing)}. Reinstall it: {_INSTALL}")
        self._tagger, self._verbalizer = map(_Transducer, self.files)

    def normalize(self, text: str) -> str:
        """Return the spoken form of a text; raises GrammarFailed where there is none."""
        return self.verbalize(self.tag(text)) if text else ""

    def tag(self, text: str) -> list[Token]:
        """Return the tokens of a text; raises GrammarFailed where the tagger accepts no reading of it."""
        tokens = list(parse_tokens(self._tagger(text)))
        if text.strip() and not tokens:
            raise GrammarFailed("the tagger has no reading of it")
        return tokens

    def verbalize(self, tokens: list[Token]) -> str:
        """Return tokens as they are spoken; raises GrammarFailed where the verbalizer has no reading of them."""
        written = " ".join(token.write(self.spoken_orders.get(token.name)) for token in tokens)
        spoken = self._verbalizer(written) if written else ""
        if written and not spoken:
            raise GrammarFailed(f"the verbalizer has no reading of {written[:200]!r}")
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

    The package ships it with both removed, and would build the other from source (minutes of CPU, gigabytes). But the
    taggers are the same file, byte for byte, and the verbalizers differ on three tokens alone: `char` 呃, `char` 啊
    and `whitelist { erhua: "儿" }`, which the shipped one deletes. Since it writes each token out by itself, those
    three are written here and the rest is left to it.
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
        """Return tokens as they are spoken, the three kept ones as they stand."""
        spoken, run = [], list[Token]()
        for token in tokens:
            if token in self._kept:
                spoken += [super().verbalize(run), self._kept[token]]
                run = []
            else:
                run.append(token)
        return "".join([*spoken, super().verbalize(run)])


# Alone: its Python, and so pynini (413 MB), is never imported.
_INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"


def grammar_folder() -> Path:
    """Return the folder of the installed package's .fst files; raises ConfigError where it is not there as locked."""
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
