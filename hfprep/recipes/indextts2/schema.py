"""The samples of IndexTTS-2: text ids, semantic codes at 50 Hz, conditioning latents and an emotion vector."""

from hfprep.models.configs import NUM_LATENTS
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.schema import Column, Group, Schema

NAME = "indextts-2"
TEXT, CODES, LATENTS = "text", "codes", "latents"
GROUPS = (Group(TEXT, "text"), Group(CODES, "audio"), Group(LATENTS, "audio"))
FRAME_RATE = 50.0


def make_schema(*, vocabulary: int, codebook: int, width: int, text_positions: int, code_positions: int) -> Schema:
    """The schema of models with these sizes."""
    return Schema(
        recipe=NAME,
        columns=(
            Column("text_ids", "int32", ("text_len",), TEXT, "tokens", size=vocabulary,
                   about="token ids of the normalised text"),
            Column("codes", "int32", ("code_len",), CODES, "codes", size=codebook,
                   about="rows of the semantic codec's codebook, 50 a second"),
            Column("condition", "float32", ("condition_len", width), LATENTS, "vector", about="conditioning latents"),
            Column("emo_vec", "float32", (width,), LATENTS, "vector", about="emotion vector"),
        ),
        groups=GROUPS,
        frame_rate=FRAME_RATE,
        code_rate=FRAME_RATE,
        limits={"text_len": text_positions, "code_len": code_positions},
        fixed={"condition_len": NUM_LATENTS},
    )  # fmt: skip


PUBLISHED = make_schema(vocabulary=12000, codebook=8192, width=1280, text_positions=600, code_positions=1815)


def schema_of(config: ModelConfig) -> Schema:
    """The schema for a checkpoint's config.yaml."""
    return make_schema(
        vocabulary=config.number_text_tokens,
        codebook=config.semantic_codec.codebook_size,
        width=config.model_dim,
        text_positions=config.max_text_tokens,
        code_positions=config.max_mel_tokens,
    )
