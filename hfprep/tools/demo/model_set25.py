"""A RANDOM model set in IndexTTS-2.5's layout, made from a seed.

Provides `make_model_set25`: at small width for the demo, at the published width for measuring. Its vocabulary has
single bytes and the prefixes of the words in the demo's sentences, so the set is recognised by its tensors, not by its
vocabulary size.
"""

import base64
import re
from pathlib import Path

from hfprep.models.campplus import CampplusConfig
from hfprep.recipes.finding import CONFIG_FILE, GPT_FILE
from hfprep.recipes.indextts25.campplus import PUBLISHED, campplus_shapes
from hfprep.recipes.indextts25.checkpoints import expected_shapes
from hfprep.recipes.indextts25.config import CAMPPLUS_FILE, CODEC_FILE, VOCABULARY_FILE, Config
from hfprep.recipes.indextts25.vocabulary import LANGUAGES, special_tokens
from hfprep.tools.demo.model_set import (
    Size,
    config_values,
    make_marked,
    unneeded_gpt,
    write_config,
    write_gpt,
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
    mark = {"random": True, "recipe": "indextts-2.5", "seed": seed, "size": size, "version": VERSION}
    return make_marked(Path(folder), mark, _write_files)


def _write_files(folder: Path, size: Size, seed: int) -> None:
    num_tokens = _write_vocabulary(folder / VOCABULARY_FILE)
    values = config_values(size)
    values["gpt"] |= {"number_text_tokens": num_tokens, "max_text_tokens": MAX_TEXT_TOKENS}
    write_config(folder, values | {"version": 2.5})
    config = Config.read(folder / CONFIG_FILE)
    needed = expected_shapes(config, write_semantic(folder, size, seed=seed))
    write_gpt(folder, needed[GPT_FILE], _unneeded_gpt(config, size), size, seed)
    write_torch_file(folder / CODEC_FILE, needed[CODEC_FILE], seed=seed, under="model")
    write_torch_file(folder / CAMPPLUS_FILE, campplus_shapes(SPEAKER[size]), seed=seed)


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


def _unneeded_gpt(config: Config, size: Size) -> Shapes:
    """The tensors of the GPT, including the speaker vector's projection and the language embedding."""
    shapes = {name: shape for name, shape in unneeded_gpt(config, size).items() if name != "speed_emb.weight"}
    return {
        **shapes,
        "spk_emb_proj.weight": (config.model_dim, SPEAKER[size].vector),
        "spk_emb_proj.bias": (config.model_dim,),
        "lang_embedding.weight": (len(LANGUAGES) + 1, config.model_dim),
    }
