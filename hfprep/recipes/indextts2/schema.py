"""The samples of IndexTTS-2: text ids, semantic codes at 50 Hz, conditioning latents and an emotion vector."""

from hfprep.models.configs import NUM_LATENTS
from hfprep.recipes.indextts2 import config
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.schema import Column, Group, Schema

NAME = "indextts-2"
TEXT, CODES, LATENTS = "text", "codes", "latents"
GROUPS = (Group(TEXT, "text"), Group(CODES, "audio"), Group(LATENTS, "audio"))
FRAME_RATE = 50.0


def schema_of(config: ModelConfig) -> Schema:
    """The schema for a checkpoint's config.yaml."""
    width = config.model_dim
    return Schema(
        recipe=NAME,
        columns=(
            Column("text_ids", "int32", ("text_len",), TEXT, "tokens", size=config.number_text_tokens,
                   about="token ids of the normalised text"),
            Column("codes", "int32", ("code_len",), CODES, "codes",
                   size=config.semantic_codec.codebook_size,
                   about="rows of the semantic codec's codebook, 50 a second"),
            Column("condition", "float32", ("condition_len", width), LATENTS, "vector", about="conditioning latents"),
            Column("emo_vec", "float32", (width,), LATENTS, "vector", about="emotion vector"),
        ),
        groups=GROUPS,
        frame_rate=FRAME_RATE,
        code_rate=FRAME_RATE,
        limits={"text_len": config.max_text_tokens, "code_len": config.max_mel_tokens},
        fixed={"condition_len": NUM_LATENTS},
    )  # fmt: skip


PUBLISHED = schema_of(config.PUBLISHED)
