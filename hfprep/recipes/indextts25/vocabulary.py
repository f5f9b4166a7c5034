"""The tokens of IndexTTS-2.5: the ranks of its .tiktoken file, the special tokens after them, and language ids.

Provides `Vocabulary` (text to ids) and `language_id`. The file has only the ranks; the special tokens and their order
are part of the model. Source: Whisper's tokenizer with CosyVoice's ranks and tokens, as in IndexTTS-2.5.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from hfprep.errors import ConfigError

if TYPE_CHECKING:
    import tiktoken

NUM_TOKENS = 60_509  # gpt.number_text_tokens of the published model: 58,836 ranks and 1,673 special tokens
DROPPED_IDS = (0, 1)  # the model's start and stop tokens, which it removes from texts
MAX_CHARACTERS = 20_000
"""Longer texts are rejected untokenized: they never fit 600 positions, and long runs of one character are slow."""

PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

_CODES = """
en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml cy
sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am yi lo
uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su
yue minnan wuyu dialect zh/en en/zh common
"""
LANGUAGES = tuple(_CODES.split())
"""The language codes in the order of their ids; the first `NUM_LANGUAGE_TOKENS` have a token."""
NUM_LANGUAGE_TOKENS = 99
COMMON_LANGUAGE = LANGUAGES.index("common")
_SPECIAL = re.compile(r"<\|[^|]+\|>")

_EVENTS = ["ASR", "AED", "SER", "Speech", "/Speech", "BGM", "/BGM", "Laughter", "/Laughter", "Applause", "/Applause"]
_EMOTIONS = ["HAPPY", "SAD", "ANGRY", "NEUTRAL"]
_TASKS = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
_SOUNDS = ["TTS/B", "TTS/O", "TTS/Q", "TTS/A", "TTS/CO", "TTS/CL", "TTS/H", *(f"TTS/SP{n:02d}" for n in range(1, 14))]


def special_tokens() -> list[str]:
    """The special tokens in the order of their ids, which follow the ranks."""
    names = [
        "endoftext",
        "startoftranscript",
        *LANGUAGES[:NUM_LANGUAGE_TOKENS],
        *_EVENTS,
        *_EMOTIONS,
        *_TASKS,
        *(f"SPECIAL_TOKEN_{number}" for number in range(1, 31)),
        *_SOUNDS,
        *(f"{step * 0.02:.2f}" for step in range(1501)),
    ]
    return [f"<|{name}|>" for name in names]


def language_id(language: str | None) -> int:
    """The id of a language code, ignoring case; that of "common" for None and unknown codes."""
    code = (language or "").lower()
    return LANGUAGES.index(code) if code in LANGUAGES else COMMON_LANGUAGE


class Vocabulary:
    """Text to ids. Thread-safe, and picklable (a copy reads the file again)."""

    def __init__(self, path: Path) -> None:
        """Read the ranks. Raises ConfigError if the file is missing or is not a vocabulary."""
        self.path = Path(path)
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"vocabulary not found: {path} ({error.strerror}). It is multilingual_zh_ja_yue_char_del.tiktoken of "
                "the model set (hub repository IndexTeam/IndexTTS-2.5)"
            ) from error
        self._encoding = _encoding(self.path, content)
        self._special = self._encoding.special_tokens_set
        self.size = self._encoding.n_vocab

    def __reduce__(self) -> tuple[Callable[[Path], Vocabulary], tuple[Path]]:
        return Vocabulary, (self.path,)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the ranks file, in hexadecimal."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, in which special tokens are recognised."""
        # With "all", tiktoken copies the set of special tokens for every text, which takes longer than the rest.
        allowed = self._special.intersection(_SPECIAL.findall(text))
        return self._encoding.encode(text, allowed_special=allowed, disallowed_special=())

    def pieces(self, ids: list[int]) -> list[str]:
        """The text of each id; incomplete characters are U+FFFD."""
        return [self._encoding.decode_single_token_bytes(number).decode(errors="replace") for number in ids]


_EMPTY = b"="  # the published file's form of the empty token, at rank 48,474


@lru_cache(maxsize=2)
def _encoding(path: Path, content: bytes) -> tiktoken.Encoding:
    """The encoder of a ranks file and the special tokens; takes a fifth of a second."""
    import tiktoken

    ranks = _read_ranks(path, content)
    special = {token: len(ranks) + place for place, token in enumerate(special_tokens())}
    return tiktoken.Encoding(
        path.name,
        pat_str=PATTERN,
        mergeable_ranks=ranks,
        special_tokens=special,
        explicit_n_vocab=len(ranks) + len(special),
    )


def _read_ranks(path: Path, content: bytes) -> dict[bytes, int]:
    """The file's lines: a token in base64, a space, its rank."""
    lines = content.splitlines()
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            token, rank = line.split()
            ranks[b"" if token == _EMPTY else base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ConfigError(
                f"{path} is not a tiktoken vocabulary: line {number} is not a token in base64 and its rank ({error})"
            ) from error
    if sorted(ranks.values()) != list(range(len(lines))) or not all(bytes([byte]) in ranks for byte in range(256)):
        raise ConfigError(
            f"{path} is incomplete: its {len(lines):,} lines must have every rank from 0 exactly once, and a "
            "token for every single byte"
        )
    return ranks
