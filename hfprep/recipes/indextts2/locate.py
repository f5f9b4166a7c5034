"""Finds IndexTTS-2's files: in a models folder, by individual paths, or in the hub's cache.

Provides `locate`, which downloads what is not on this machine. Cached files are found without network access. Of the
files' contents, only the names in config.yaml are used.
"""

from __future__ import annotations

from hfprep.recipes.finding import (
    CONFIG_FILE,
    GPT_FILE,
    Missing,
    ModelFiles,
    find_file,
    find_semantic_model,
    given_path,
    models_folder,
    remedy,
)
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.options import ModelOptions

SEMANTIC_CODEC = "amphion/MaskGCT"
CODEC_FILE = "semantic_codec/model.safetensors"


def locate(options: ModelOptions, *, fetch: bool = True) -> ModelFiles:
    """Find every model file. Models given by hub id, or not given, come from the hub's cache or the hub.

    If not `fetch`, files that are not on this machine count as missing.

    `models` is a folder with config.yaml, gpt.pth (or the name that the config gives), the statistics, w2v-bert-2.0/
    and semantic_codec/model.safetensors; the other options override single files of it. `semantic_model` is a folder
    or hub id, `semantic_codec` a file, a folder or a hub id. Raises ConfigError if a required option is missing or
    config.yaml is not valid, and CheckpointError with a list of missing files and the commands that get them.
    """
    folder = models_folder(options.models)
    config_path = given_path(options.config, folder, CONFIG_FILE, "--config")
    model_config = ModelConfig.read(config_path)
    missing = Missing(fetch)
    gpt = given_path(options.gpt_checkpoint, folder, model_config.gpt_checkpoint or GPT_FILE, "--gpt-checkpoint")
    if not gpt.is_file():
        missing.add(str(gpt), f"the GPT checkpoint: {remedy(folder, '--gpt-checkpoint')}")
    statistics = config_path.parent / model_config.w2v_stat
    if not statistics.is_file():
        beside = f"put the file beside {config_path}"
        missing.add(str(statistics), f"the statistics that w2v_stat names: {remedy(folder, beside=beside)}")
    semantic = find_semantic_model(options.semantic_model, folder, missing)
    wanted = "the semantic codec: give a .safetensors file or a hub id with --semantic-codec"
    codec = find_file(options.semantic_codec, folder, (CODEC_FILE,), SEMANTIC_CODEC, missing, wanted)
    missing.raise_any()
    assert semantic is not None  # otherwise raise_any has raised
    assert codec is not None
    return ModelFiles(
        config=config_path,
        gpt_checkpoint=gpt,
        w2v_stat=statistics,
        semantic_model=semantic[0],
        semantic_weights=semantic[1],
        semantic_codec=codec,
    )
