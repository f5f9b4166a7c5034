"""The samples of IndexTTS-2: text ids, semantic codes at 50 Hz, conditioning latents and an emotion vector."""

from hfprep.models.conditioner import NUM_LATENTS
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.schema import Column, Group, Schema

NAME = "indextts-2"
TEXT, CODES, LATENTS = "text", "codes", "latents"
GROUPS = (Group(TEXT, "text"), Group(CODES, "audio"), Group(LATENTS, "audio"))
FRAME_RATE = 50.0


def schema_of(config: ModelConfig) -> Schema:
    """The schema that a checkpoint's config.yaml gives."""
    return Schema(
        recipe=NAME,
        columns=(
            Column("text_ids", "int32", ("text_len",), TEXT, "tokens", size=config.number_text_tokens),
            Column("codes", "int32", ("code_len",), CODES, "codes", size=config.semantic_codec.codebook_size),
            Column("condition", "float32", ("condition_len", config.model_dim), LATENTS, "vector"),
            Column("emo_vec", "float32", (config.model_dim,), LATENTS, "vector"),
        ),
        groups=GROUPS,
        frame_rate=FRAME_RATE,
        code_rate=FRAME_RATE,
        limits={"text_len": config.max_text_tokens, "code_len": config.max_mel_tokens},
        fixed={"condition_len": NUM_LATENTS},
    )
