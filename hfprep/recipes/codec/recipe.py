"""Neural codecs in transformers: the codes of a codec's codebooks, and text ids if there is a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hfprep.errors import ConfigError
from hfprep.recipes.base import Outline, Recipe, resampling, via_rate
from hfprep.recipes.codec.config import MIN_FRAMES, CodecAudio, CodecConfig
from hfprep.recipes.codec.schema import CODES, NAME, PUBLISHED, TEXT, schema_of
from hfprep.recipes.codec.text import PlainText, tokenizer_file
from hfprep.recipes.finding import Missing, find_model
from hfprep.recipes.options import ModelOptions
from hfprep.schema import Schema

if TYPE_CHECKING:
    import torch

    from hfprep.recipes.codec.model import CodecModel

CONFIG = "config.json"
COPY = "copy it from the codec's repository"


@dataclass(frozen=True)
class Codec:
    """The files of one codec, found and checked."""

    folder: Path
    weights: tuple[Path, ...]
    config: CodecConfig
    num_codebooks: int
    tokenizer: Path | None = None
    precisions = ("fp32",)

    @cached_property
    def schema(self) -> Schema:
        encoder = self.text_encoder()
        return schema_of(self.config, self.num_codebooks, None if encoder is None else encoder.vocab_size)

    @cached_property
    def files(self) -> Mapping[str, Path]:
        found = {f"codec/{path.name}": path for path in (self.folder / CONFIG, *self.weights)}
        return found if self.tokenizer is None else found | {"tokenizer": self.tokenizer}

    @property
    def audio(self) -> CodecAudio:
        return CodecAudio(self.config)

    def packs(self, device: torch.device) -> bool:
        del device
        return False

    def settings(self, sha256: Mapping[str, str], *, precision: str, audio_sr: int) -> dict[str, dict[str, str]]:
        codec = {name: value for name, value in sha256.items() if name.startswith("codec/")}
        via = via_rate(audio_sr, self.audio)
        codec |= {"audio_sr": "straight" if via is None else resampling(via)}
        codes = codec | {"num_codebooks": str(self.num_codebooks), "precision": precision}
        return {CODES: codes} if self.tokenizer is None else {CODES: codes, TEXT: {"tokenizer": sha256["tokenizer"]}}

    def check(self) -> None:
        """Nothing to do: `find` has checked everything."""

    def text_encoder(self) -> PlainText | None:
        return None if self.tokenizer is None else PlainText(self.tokenizer)

    def num_codes(self, num_frames: int) -> int:
        return num_frames

    def load(self, device: torch.device, precision: str) -> CodecModel:
        from hfprep.recipes.codec.model import CodecModel

        return CodecModel.load(self.folder, self.config, self.num_codebooks, device=device, precision=precision)

    def reference(self) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
        from hfprep.recipes.codec.model import encode_plainly

        return encode_plainly(self.folder, self.config, self.num_codebooks)


class CodecRecipe(Recipe):
    """The recipe."""

    name = NAME
    published = PUBLISHED
    optional = frozenset({TEXT})

    def recognises(self, options: ModelOptions) -> bool:
        return options.codec_model is not None

    def find(self, options: ModelOptions, *, fetch: bool = True) -> Codec:
        if not options.codec_model:
            raise ConfigError("--codec-model is missing; give the folder or hub id of a codec, such as kyutai/mimi")
        missing = Missing(fetch)
        asked = "the codec: give a folder or a hub id with --codec-model"
        found = find_model(options.codec_model, (CONFIG,), missing, wanted=asked, copy=COPY)
        missing.raise_any()
        assert found is not None  # otherwise raise_any has raised
        config = CodecConfig.read(found[0] / CONFIG)
        wanted, least, most = options.num_codebooks, config.fewest_codebooks, config.num_codebooks
        if wanted is not None and not least <= wanted <= most:
            raise ConfigError(f"--num-codebooks is {wanted}; for this codec it must be from {least} to {most}")
        tokenizer = None if options.tokenizer is None else tokenizer_file(options.tokenizer)
        return Codec(*found, config, most if wanted is None else wanted, tokenizer)

    def outline(self, options: ModelOptions) -> Outline:
        models = self.find(options, fetch=False)
        longest = models.config.max_frames
        return Outline(models.schema, models.audio, models.num_codes, models.text_encoder(), MIN_FRAMES, longest)


RECIPE = CodecRecipe()
