"""A RANDOM model set in the published layout, made from a seed.

Provides `make_model_set`: the real architecture at small width (takes seconds, a few megabytes) for the demo and the
tests, or at the published width (3.8 GB on disk) to measure speed and memory. Its features vary with the audio but are
meaningless.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml

from hfprep.models.configs import NUM_LAYERS, ConditionConfig, SemanticCodecConfig, SemanticEncoderConfig
from hfprep.models.input_features import FEATURE_DIM, PREPROCESSOR_VALUES, extract_input_features
from hfprep.models.masking import FrameMask
from hfprep.models.semantic_encoder import SemanticEncoder
from hfprep.recipes.config_file import CONDITION_TYPE, INPUT_LAYER, GptConfig
from hfprep.recipes.finding import (
    CONFIG_FILE,
    GPT_FILE,
    SEMANTIC_FILE,
    SEMANTIC_FOLDER,
    STATISTICS_FILE,
    TOKENIZER_FILE,
)
from hfprep.recipes.indextts2.checkpoints import expected_shapes
from hfprep.recipes.indextts2.config import CODEC_FILE, PUBLISHED, ModelConfig
from hfprep.recipes.networks import load_semantic_encoder, semantic_shapes
from hfprep.tools.demo.random_weights import Shapes, write_safetensors, write_torch_file
from hfprep.tools.demo.sentences import VOCABULARY_SIZE, train_tokenizer
from hfprep.tools.demo.voice import SPEAKERS, speak

Size = Literal["small", "published"]

MARK_FILE, README_FILE = "RANDOM.json", "README.md"
VERSION = 2  # raise it when the numbers made from a seed change

CALIBRATION_SECONDS = 3.0
STATISTICS_DIGITS = 3  # rounded, so that the file does not depend on the number of threads

README = """# RANDOM models
Every number in this folder was drawn at random (seed {seed}, {size} size). The files have the layout of the published
checkpoints, so that programs can be tried and measured. Features computed with them mean nothing: do not train on them.
"""


@dataclass(frozen=True)
class Sizes:
    """The configs of a size, and what only the other parts of its files depend on: the layers and heads of the GPT."""

    config: ModelConfig
    semantic: SemanticEncoderConfig
    num_semantic_layers: int
    layers: int
    heads: int


_SMALL = ModelConfig(
    path=Path(CONFIG_FILE),
    model_dim=48,
    max_mel_tokens=600,
    max_text_tokens=200,
    number_text_tokens=VOCABULARY_SIZE,
    condition=ConditionConfig(output_size=32, linear_units=64, attention_heads=4, num_blocks=2, perceiver_mult=2),
    emotion=ConditionConfig(output_size=24, linear_units=48, attention_heads=2, num_blocks=1, perceiver_mult=2),
    semantic_codec=SemanticCodecConfig(
        codebook_size=256,
        hidden_size=48,
        codebook_dim=8,
        vocos_dim=32,
        vocos_intermediate_dim=64,
        vocos_num_layers=2,
    ),
    w2v_stat=STATISTICS_FILE,
    gpt_checkpoint=GPT_FILE,
)
_SMALL_ENCODER = SemanticEncoderConfig(hidden_size=48, intermediate_size=96, num_attention_heads=4)
SIZES = {
    "small": Sizes(_SMALL, _SMALL_ENCODER, NUM_LAYERS + 1, layers=1, heads=4),
    "published": Sizes(PUBLISHED, SemanticEncoderConfig(), 24, layers=24, heads=20),
}


def make_model_set(folder: str | Path, *, seed: int = 0, size: Size = "small") -> Path:
    """Write a model set to `folder` and return its path; keeps a complete one with the same seed and size.

    The published size takes a minute and 3.8 GB on disk. Its files are as long as the published ones, 5.9 GB, except
    that the codec's decoder has only one block; the GPT's own weights are zeros. Raises ValueError for another size.
    """
    return make_marked(Path(folder), {"random": True, "seed": seed, "size": size, "version": VERSION}, _write_files)


def make_marked(folder: Path, mark: dict[str, Any], write: Callable[[Path, Size, int], None]) -> Path:
    """Write a model set with `write(folder, size, seed)`, and its mark; keeps a set that has this mark."""
    seed, size = mark["seed"], mark["size"]
    if size not in SIZES:
        raise ValueError(f"size is {size!r}; it must be one of {', '.join(SIZES)}")
    if _read_mark(folder) == mark:
        return folder
    (folder / SEMANTIC_FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / MARK_FILE).unlink(missing_ok=True)
    (folder / README_FILE).write_text(README.format(seed=seed, size=size), encoding="utf-8")
    write(folder, size, seed)
    (folder / MARK_FILE).write_text(json.dumps(mark) + "\n", encoding="utf-8")
    return folder


def _write_files(folder: Path, size: Size, seed: int) -> None:
    (folder / CODEC_FILE).parent.mkdir(exist_ok=True)
    (folder / TOKENIZER_FILE).write_bytes(train_tokenizer())
    write_config(folder, config_values(size))
    config = ModelConfig.read(folder / CONFIG_FILE)
    needed = expected_shapes(config, write_semantic(folder, size, seed=seed))
    write_gpt(folder, needed[GPT_FILE], unneeded_gpt(config, size), size, seed)
    write_safetensors(folder / CODEC_FILE, {**needed[CODEC_FILE], **_unneeded_codec(needed[CODEC_FILE])}, seed=seed)


def write_gpt(folder: Path, needed: Shapes, unneeded: Shapes, size: Size, seed: int) -> None:
    """Write gpt.pth."""
    holes = unneeded.keys() if size == "published" else ()  # 2 GB that take no disk space
    write_torch_file(folder / GPT_FILE, {**needed, **unneeded}, seed=seed, holes=holes)


def _read_mark(folder: Path) -> Any:
    try:
        return json.loads((folder / MARK_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_config(folder: Path, values: dict[str, Any]) -> None:
    """Write a config.yaml that says that the models are random."""
    text = yaml.safe_dump(values, sort_keys=False)
    (folder / CONFIG_FILE).write_text(f"# RANDOM models: every number in this folder was drawn at random.\n{text}")


def write_semantic(folder: Path, size: Size, *, seed: int) -> SemanticEncoderConfig:
    """Write the semantic encoder's folder and the statistics of its output; returns its config."""
    semantic = folder / SEMANTIC_FOLDER
    _write_json(semantic / "config.json", _semantic_values(size))
    # The published file pads with 1, but padded frames are masked.
    _write_json(semantic / "preprocessor_config.json", {**PREPROCESSOR_VALUES, "padding_value": 1, "random": True})
    config = SemanticEncoderConfig.read(semantic / "config.json")
    needed = semantic_shapes(SemanticEncoder(config))
    shapes = {**needed, **_unneeded_layers(needed, SIZES[size].num_semantic_layers)}
    write_safetensors(folder / SEMANTIC_FILE, shapes, seed=seed)
    write_statistics(folder, config)
    return config


def config_values(size: Size) -> dict[str, Any]:
    """The content of config.yaml; that of IndexTTS-2.5 differs in a few values."""
    config, codebook_size = SIZES[size].config, SIZES[size].config.semantic_codec.codebook_size
    branches = {"condition_module": config.condition, "emo_condition_module": config.emotion}
    return {
        "random": True,
        "gpt": {
            "model_dim": config.model_dim,
            "heads": SIZES[size].heads,
            "layers": SIZES[size].layers,
            "max_mel_tokens": config.max_mel_tokens,
            "max_text_tokens": config.max_text_tokens,
            "number_text_tokens": config.number_text_tokens,
            "number_mel_codes": codebook_size + 2,
            "start_mel_token": codebook_size,
            "stop_mel_token": codebook_size + 1,
            "start_text_token": 0,
            "stop_text_token": 1,
            "condition_type": CONDITION_TYPE,
            **{name: asdict(branch) | {"input_layer": INPUT_LAYER} for name, branch in branches.items()},
        },
        "semantic_codec": asdict(config.semantic_codec),
        "gpt_checkpoint": config.gpt_checkpoint,
        "w2v_stat": config.w2v_stat,
        "version": 2.0,
    }


def _semantic_values(size: Size) -> dict[str, Any]:
    return {
        "architectures": ["Wav2Vec2BertModel"],
        "model_type": "wav2vec2-bert",
        "random": True,
        "add_adapter": False,
        "feature_projection_input_dim": FEATURE_DIM,
        "hidden_act": "swish",
        "max_source_positions": 5000,
        "num_hidden_layers": SIZES[size].num_semantic_layers,
        "output_hidden_size": SIZES[size].semantic.hidden_size,
        "position_embeddings_type": "relative_key",
        "use_intermediate_ffn_before_adapter": False,
        **asdict(SIZES[size].semantic),
    }


def unneeded_gpt(config: GptConfig, size: Size) -> Shapes:
    """The tensors of the GPT, which hfprep does not need."""
    width = config.model_dim
    text, codes = config.number_text_tokens + 1, config.semantic_codec.codebook_size + 2
    shapes: dict[str, tuple[int, ...]] = {
        "mel_pos_embedding.emb.weight": (config.max_mel_tokens + 3, width),
        "text_pos_embedding.emb.weight": (config.max_text_tokens + 2, width),
        "speed_emb.weight": (2, width),
        "text_embedding.weight": (text, width),
        "mel_embedding.weight": (codes, width),
        "text_head.weight": (text, width),
        "text_head.bias": (text,),
        "mel_head.weight": (codes, width),
        "mel_head.bias": (codes,),
    }
    norms = ["gpt.ln_f", "final_norm"]
    for layer in (f"gpt.h.{number}" for number in range(SIZES[size].layers)):
        norms += [f"{layer}.ln_1", f"{layer}.ln_2"]
        products = (("attn.c_attn", 1, 3), ("attn.c_proj", 1, 1), ("mlp.c_fc", 1, 4), ("mlp.c_proj", 4, 1))
        for name, inner, outer in products:
            shapes[f"{layer}.{name}.weight"] = (inner * width, outer * width)
            shapes[f"{layer}.{name}.bias"] = (outer * width,)
    for norm in norms:
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return shapes


def _unneeded_codec(needed: Shapes) -> Shapes:
    """The first block of the decoder and the codebook's output projection, which hfprep ignores."""
    first = "encoder.0.convnext.0."
    decoder = {name.replace("encoder", "decoder", 1): shape for name, shape in needed.items() if name.startswith(first)}
    width, size, _ = needed["quantizer.quantizers.0.in_project.weight_v"]
    out = "quantizer.quantizers.0.out_project."
    return {**decoder, f"{out}bias": (size,), f"{out}weight_g": (size, 1, 1), f"{out}weight_v": (size, width, 1)}


def _unneeded_layers(needed: Shapes, num_layers: int) -> Shapes:
    """The semantic encoder's layers that hfprep does not need."""
    first = "encoder.layers.0."
    shapes = {
        name.replace(".0.", f".{layer}.", 1): shape
        for layer in range(NUM_LAYERS, num_layers)
        for name, shape in needed.items()
        if name.startswith(first)
    }
    return {**shapes, "masked_spec_embed": needed["feature_projection.projection.bias"]}


def write_statistics(folder: Path, semantic_config: SemanticEncoderConfig) -> None:
    """Measure mean and variance of the encoder's output over some demo speech.

    Random layers return nearly the same large vector for every frame, so codes would hardly vary without them.
    """
    path, size = folder / STATISTICS_FILE, semantic_config.hidden_size
    torch.save({"mean": torch.zeros(size), "var": torch.ones(size)}, path)
    encoder = load_semantic_encoder(folder / SEMANTIC_FOLDER / "config.json", [folder / SEMANTIC_FILE], path)
    outputs = []
    with torch.inference_mode():
        for number, speaker in enumerate(SPEAKERS[:3]):
            sound = speak(speaker, CALIBRATION_SECONDS, 16_000, np.random.default_rng(number)).astype(np.float32)
            features = torch.from_numpy(extract_input_features(sound))[None]
            num_frames = features.shape[1]
            mask = FrameMask.from_lengths(torch.tensor([num_frames]), num_frames, features.device)
            outputs.append(encoder(features, mask)[0])
    output = torch.cat(outputs).double()
    statistics = {"mean": _rounded(output.mean(dim=0)), "var": _rounded(output.var(dim=0))}
    torch.save(statistics, path)


def _rounded(values: torch.Tensor) -> torch.Tensor:
    return torch.tensor([float(f"{value:.{STATISTICS_DIGITS - 1}e}") for value in values.tolist()])


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
