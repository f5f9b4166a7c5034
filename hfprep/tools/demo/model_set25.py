"""A RANDOM model set in IndexTTS-2.5's layout, made from a seed.

Provides `make_model_set25`: at small width for the demo, at the published width for measuring. Its vocabulary has
single bytes and the prefixes of the words in the demo's sentences, so the set is recognised by its tensors, not by its
vocabulary size.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

import yaml

from hfprep.models.campplus import CampplusConfig
from hfprep.recipes.finding import CONFIG_FILE, SEMANTIC_FOLDER
from hfprep.recipes.indextts25.campplus import PUBLISHED, campplus_shapes
from hfprep.recipes.indextts25.checkpoints import expected_shapes
from hfprep.recipes.indextts25.config import (
    CAMPPLUS_FILE,
    CODEC_FILE,
    GPT_FILE,
    STATISTICS_FILE,
    VOCABULARY_FILE,
    Config,
)
from hfprep.recipes.indextts25.vocabulary import LANGUAGES, special_tokens
from hfprep.tools.demo.model_set import (
    MARK_FILE,
    README,
    README_FILE,
    SIZES,
    Size,
    config_values,
    read_mark,
    unneeded_gpt,
    write_semantic,
)
from hfprep.tools.demo.random_weights import Shapes, write_torch_file
from hfprep.tools.demo.sentences import SENTENCES

VERSION = 1  # raise it when the numbers made from a seed change
SPEAKER: dict[str, CampplusConfig] = {
    "small": CampplusConfig(
        head_channels=4, channels=16, bottleneck=16, context=8, growth=4, num_layers=(3, 4, 3), vector=24
    ),
    "published": PUBLISHED,
}
MAX_TEXT_TOKENS = 600
_WORD = re.compile(r" ?\w+")
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]


def make_model_set25(folder: str | Path, *, seed: int = 0, size: Size = "small") -> Path:
    """Write a model set to `folder` and return its path; keeps a complete one with the same seed and size.

    In the published size, the GPT's own weights are zeros, and codec.pth has no optimizer state.
    Raises ValueError for another size.
    """
    if size not in SIZES:
        raise ValueError(f"size is {size!r}; it must be one of {', '.join(SIZES)}")
    folder = Path(folder)
    mark = {"random": True, "recipe": "indextts-2.5", "seed": seed, "size": size, "version": VERSION}
    if read_mark(folder) == mark:
        return folder
    (folder / SEMANTIC_FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / MARK_FILE).unlink(missing_ok=True)
    (folder / README_FILE).write_text(README.format(seed=seed, size=size), encoding="utf-8")
    num_tokens = _write_vocabulary(folder / VOCABULARY_FILE)
    config = _write_config(folder / CONFIG_FILE, num_tokens, size)
    semantic = write_semantic(folder, size, seed=seed)
    needed = expected_shapes(config, semantic)
    gpt = _unneeded_gpt(config, size)
    holes = gpt.keys() if size == "published" else ()  # 2 GB that take no disk space
    write_torch_file(folder / GPT_FILE, {**needed[GPT_FILE], **gpt}, seed=seed, holes=holes)
    write_torch_file(folder / CODEC_FILE, needed[CODEC_FILE], seed=seed, under="model")
    write_torch_file(folder / CAMPPLUS_FILE, campplus_shapes(SPEAKER[size]), seed=seed)
    (folder / MARK_FILE).write_text(json.dumps(mark) + "\n", encoding="utf-8")
    return folder


def _write_vocabulary(path: Path) -> int:
    """Write the ranks; returns the number of tokens, including special ones."""
    rest = [byte for byte in range(256) if byte not in set(_PRINTABLE)]
    tokens = dict.fromkeys(bytes([byte]) for byte in (*_PRINTABLE, *rest))
    words = sorted({word for texts in SENTENCES.values() for text in texts for word in _WORD.findall(text.lower())})
    for word in words:
        encoded = word.encode()
        tokens |= dict.fromkeys(encoded[:end] for end in range(2, len(encoded) + 1))
    lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    path.write_bytes(b"".join(lines))
    return len(tokens) + len(special_tokens())


def _write_config(path: Path, num_tokens: int, size: Size) -> Config:
    values: dict[str, Any] = config_values(SIZES[size])
    values["gpt"] |= {"number_text_tokens": num_tokens, "max_text_tokens": MAX_TEXT_TOKENS}
    values |= {"gpt_checkpoint": GPT_FILE, "w2v_stat": STATISTICS_FILE, "version": 2.5}
    text = yaml.safe_dump(values, sort_keys=False)
    path.write_text(f"# RANDOM models: every number in this folder was drawn at random.\n{text}")
    return Config.read(path)


def _unneeded_gpt(config: Config, size: Size) -> Shapes:
    """The tensors of the GPT, including the speaker vector's projection and the language embedding."""
    gpt = unneeded_gpt(
        width=config.model_dim, num_tokens=config.number_text_tokens, num_codes=config.semantic_codec.codebook_size,
        code_positions=config.max_mel_tokens, text_positions=config.max_text_tokens, layers=SIZES[size].layers,
    )  # fmt: skip
    shapes = {name: shape for name, shape in gpt.items() if name != "speed_emb.weight"}
    return {
        **shapes,
        "spk_emb_proj.weight": (config.model_dim, SPEAKER[size].vector),
        "spk_emb_proj.bias": (config.model_dim,),
        "lang_embedding.weight": (len(LANGUAGES) + 1, config.model_dim),
    }
