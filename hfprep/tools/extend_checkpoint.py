"""Adds rows for a new language to a checkpoint: the implementation of `extend-checkpoint`.

For IndexTTS-2, these are rows for an extended tokenizer: it takes gpt.pth, its config.yaml, the tokenizer that it was
trained with and the extended one, and writes a folder for builds and trainers. IndexTTS-2.5 has a row for each language
instead, which can be initialised from another language's. Only the tensors with changed rows are loaded into memory;
the others are copied from the memory-mapped file byte for byte. Pickles are never executed.
"""

import copy
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from hfprep.errors import CheckpointError, ConfigError, StoreError
from hfprep.inputs.text.language import canonical_language
from hfprep.io import atomic
from hfprep.models.tensor_files import load_torch_file, state_dict_of
from hfprep.recipes.finding import CONFIG_FILE, GPT_FILE, TOKENIZER_FILE
from hfprep.recipes.indextts import LANGUAGE_EMBEDDING, TEXT_EMBEDDING, TEXT_ROWS
from hfprep.recipes.indextts25.vocabulary import COMMON_LANGUAGE, LANGUAGES, language_id
from hfprep.tools.tokenizer.vocabulary import Vocabulary

VOCABULARY_KEY = "number_text_tokens"
_VOCABULARY_LINE = re.compile(rf"^(\s*{VOCABULARY_KEY}\s*:\s*)\d+", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """The model files, the extension, and the output folder.

    IndexTTS-2: `base`, the tokenizer that it was trained with, and `tokenizer`, the extended one. IndexTTS-2.5:
    `language`, whose row is initialised from that of `like`.
    """

    gpt_checkpoint: Path
    config: Path
    output_dir: Path
    base: Path | None = None
    tokenizer: Path | None = None
    language: str | None = None
    like: str | None = None

    def __post_init__(self) -> None:
        if self.output_dir.resolve() in {self.gpt_checkpoint.resolve().parent, self.config.resolve().parent}:
            raise ConfigError(f"--output-dir {str(self.output_dir)!r} is the checkpoint's own folder; give another one")
        by_tokenizer, by_language = (self.base, self.tokenizer), (self.language, self.like)
        whole = [pair for pair in (by_tokenizer, by_language) if None not in pair]
        if len(whole) != 1 or any(
            value is not None for pair in (by_tokenizer, by_language) if pair not in whole for value in pair
        ):
            raise ConfigError("give --base and --tokenizer (IndexTTS-2), or --language and --like (IndexTTS-2.5)")


@dataclass(frozen=True)
class ExtendedCheckpoint:
    """The written files, the number of text ids before and after, and the number of initialised rows."""

    files: tuple[Path, ...]
    text_ids_before: int
    text_ids: int
    new_rows: int


def extend_checkpoint(options: CheckpointOptions) -> ExtendedCheckpoint:
    """Write gpt.pth, config.yaml, the tokenizer and the statistics named in the config to a folder.

    The checkpoint is written last. Raises ConfigError if the tokenizers, the language or the config do not match,
    CheckpointError if gpt.pth does not match, StoreError if the folder cannot be written.
    """
    if options.base is not None and options.tokenizer is not None:
        return _extend_text(options, Vocabulary(options.base, "--base"), Vocabulary(options.tokenizer, "--tokenizer"))
    assert options.language is not None  # checked in CheckpointOptions
    assert options.like is not None
    return _start_language(options, options.language, options.like)


def _extend_text(options: CheckpointOptions, base: Vocabulary, extended: Vocabulary) -> ExtendedCheckpoint:
    """Add rows for a tokenizer's new pieces, each the mean of the rows that encoded the same text before."""
    pieces = new_pieces(base, extended)
    values = load_torch_file(options.gpt_checkpoint)
    tensors = state_dict_of(values, options.gpt_checkpoint)
    rows = _text_rows(tensors, options.gpt_checkpoint)
    if base.size > rows - 1:
        raise ConfigError(
            f"--base {str(options.base)!r} has {base.size} pieces, but {options.gpt_checkpoint} has rows for "
            f"{rows - 1}: it was trained with another tokenizer"
        )
    sources = [base.ids(piece) or [base.processor.unk_id()] for piece in pieces]
    text_ids = max(rows - 1, base.size + len(pieces))
    text, settings = _config(options.config)
    _check_marks(settings, base.size, base.size + len(pieces), options.config)
    grown = {name: grow(tensors[name], sources, first=base.size, rows=text_ids + 1) for name in TEXT_ROWS}
    contents = {CONFIG_FILE: _with_number(text, settings, text_ids).encode(), TOKENIZER_FILE: extended.model}
    checkpoint = Path(settings.get("gpt_checkpoint") or GPT_FILE).name
    files = _write(options, settings, contents, checkpoint, _replaced(values, tensors, grown))
    return ExtendedCheckpoint(files, rows - 1, text_ids, len(pieces))


def _start_language(options: CheckpointOptions, language: str, like: str) -> ExtendedCheckpoint:
    """Copy the row of one language to another."""
    target, source = _language_row("--language", language), _language_row("--like", like)
    values = load_torch_file(options.gpt_checkpoint)
    tensors = state_dict_of(values, options.gpt_checkpoint)
    rows = tensors.get(LANGUAGE_EMBEDDING)
    if not isinstance(rows, Tensor):
        raise ConfigError(
            f"--language is for IndexTTS-2.5: {options.gpt_checkpoint} has no {LANGUAGE_EMBEDDING}. For IndexTTS-2, "
            "give --base and --tokenizer"
        )
    if len(rows) <= max(target, source):
        raise CheckpointError(
            f"{options.gpt_checkpoint}: {LANGUAGE_EMBEDDING} has {len(rows)} rows, too few for {language}"
        )
    changed = rows.clone()
    changed[target] = rows[source]
    text, settings = _config(options.config)
    content = _replaced(values, tensors, {LANGUAGE_EMBEDDING: changed})
    files = _write(options, settings, {CONFIG_FILE: text.encode()}, GPT_FILE, content)
    text_ids = settings["gpt"][VOCABULARY_KEY]
    return ExtendedCheckpoint(files, text_ids, text_ids, 1)


def _language_row(option: str, language: str) -> int:
    """The row of a language in IndexTTS-2.5's embedding; raises ConfigError if it has no own row."""
    code = canonical_language(language) or ""
    row = language_id(code)
    if row == COMMON_LANGUAGE:
        raise ConfigError(
            f"{option} is {language!r}; it must be a language that IndexTTS-2.5 has a row for (others share that of "
            f"`common`): {', '.join(LANGUAGES[:COMMON_LANGUAGE])}"
        )
    return row


def new_pieces(base: Vocabulary, extended: Vocabulary) -> list[str]:
    """The pieces that a tokenizer adds to its base; raises ConfigError if it adds none or is not an extension."""
    before, after = base.pieces, extended.pieces
    for number, (old, new) in enumerate(zip(before, after, strict=False)):
        if old != new:
            raise ConfigError(
                f"--tokenizer {str(extended.path)!r} is not an extension of --base {str(base.path)!r}: id {number} is "
                f"{new!r} and was {old!r}"
            )
    if len(after) <= len(before):
        raise ConfigError(
            f"--tokenizer {str(extended.path)!r} has {len(after)} pieces and --base {str(base.path)!r} {len(before)}: "
            "there is nothing to extend"
        )
    return after[len(before) :]


def grow(old: Tensor, sources: Sequence[Sequence[int]], *, first: int, rows: int) -> Tensor:
    """Extend a tensor (old rows, ...) to `rows` rows: from `first` on, each is the mean of the rows in `sources`.

    The last row, which belongs to no token, stays last.
    """
    grown = torch.empty(rows, *old.shape[1:], dtype=old.dtype)
    grown[: len(old) - 1] = old[:-1]
    grown[-1] = old[-1]
    for number, source in enumerate(sources, start=first):
        grown[number] = old[list(source)].float().mean(dim=0).to(old.dtype)
    return grown


def _write(
    options: CheckpointOptions, settings: Mapping[str, Any], contents: Mapping[str, bytes], checkpoint: str, values: Any
) -> tuple[Path, ...]:
    """Write files with these contents, copy the statistics, and write the checkpoint last; returns all paths.

    The statistics named in the config are copied if they are beside the old config.
    """
    files = [options.output_dir / name for name in contents]
    for path, content in zip(files, contents.values(), strict=True):
        atomic.write_bytes(path, content)
    name = settings.get("w2v_stat")
    if isinstance(name, str) and Path(name).name == name and (options.config.parent / name).is_file():
        files.append(options.output_dir / name)
        with atomic.explained(files[-1]):
            shutil.copyfile(options.config.parent / name, files[-1])
    path = options.output_dir / checkpoint
    with atomic.replacing(path):
        try:
            # A path, because with a stream torch would copy each tensor into memory.
            torch.save(values, path.with_name(f"{path.name}.{atomic.TEMPORARY[0]}"))
        except RuntimeError as error:
            raise StoreError(f"cannot write {path}: {error}; free some space and run the same command again") from error
    return (*files, path)


def _text_rows(tensors: Mapping[str, Any], path: Path) -> int:
    """The number of rows of the text embedding; raises CheckpointError if the tensors of text ids do not match."""
    missing = [name for name in TEXT_ROWS if not isinstance(tensors.get(name), Tensor)]
    if missing:
        raise CheckpointError(f"{path}: has no {', '.join(missing)}; give the GPT's own checkpoint (gpt.pth)")
    shapes = {name: tuple(tensors[name].shape) for name in TEXT_ROWS}
    rows = shapes[TEXT_EMBEDDING][0]
    if any(shape[0] != rows for shape in shapes.values()):
        raise CheckpointError(f"{path}: the tensors of text ids have different numbers of rows: {shapes}")
    return rows


def _replaced(values: Any, tensors: Mapping[str, Any], grown: Mapping[str, Tensor]) -> Any:
    """The content of the file with some tensors replaced."""
    state = {**tensors, **grown}
    return state if values is tensors else {**values, "model": state}


def _config(path: Path) -> tuple[str, dict[str, Any]]:
    """A config.yaml as text and as values; raises ConfigError if it is not a model's."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {str(path)!r} cannot be read: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("gpt"), dict):
        raise ConfigError(f"--config {str(path)!r} has no gpt section; give the model's config.yaml")
    if not isinstance(values["gpt"].get(VOCABULARY_KEY), int):
        raise ConfigError(f"--config {str(path)!r} has no gpt.{VOCABULARY_KEY}; give the model's config.yaml")
    return text, values


def _check_marks(settings: Mapping[str, Any], first: int, end: int, path: Path) -> None:
    """Raise ConfigError if the start or stop token is one of the new ids."""
    for name in ("start_text_token", "stop_text_token"):
        value = settings["gpt"].get(name)
        if isinstance(value, int) and first <= value < end:
            raise ConfigError(f"gpt.{name} in {path} is {value}, which would be the id of a new piece")


def _with_number(text: str, settings: Mapping[str, Any], number: int) -> str:
    """The config with another vocabulary size; everything else, including comments, is unchanged."""
    wanted = copy.deepcopy(dict(settings))
    wanted["gpt"][VOCABULARY_KEY] = number
    changed = _VOCABULARY_LINE.sub(rf"\g<1>{number}", text)
    if yaml.safe_load(changed) == wanted:
        return changed
    return yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)
