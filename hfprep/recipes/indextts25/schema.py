"""The samples of IndexTTS-2.5: text ids, semantic codes at 25 Hz, a speaker vector and an emotion vector."""

from pathlib import Path

from hfprep.models.tensor_shapes import read_shapes
from hfprep.recipes.indextts25.config import Config
from hfprep.recipes.indextts25.vocabulary import COMMON_LANGUAGE, LANGUAGES, NUM_TOKENS
from hfprep.schema import Column, Group, RecordField, Schema

NAME = "indextts-2.5"
TEXT, CODES, SPEAKER, EMOTION = "text", "codes", "speaker", "emotion"
GROUPS = (Group(TEXT, "text"), Group(CODES, "audio"), Group(SPEAKER, "audio"), Group(EMOTION, "audio"))
FRAME_RATE, CODE_RATE = 50.0, 25.0
PUBLISHED_VECTOR = 192
SPEAKER_VECTOR = "xvector.dense.linear.weight"
"""The tensor of CAM++ with a row for each value of the speaker vector."""
LANGUAGE_ID = RecordField(
    name="lang_id",
    source="language",
    values={code: number for number, code in enumerate(LANGUAGES)},
    default=COMMON_LANGUAGE,
)


def make_schema(
    *, vocabulary: int, codebook: int, width: int, vector: int, text_positions: int, code_positions: int
) -> Schema:
    """The schema of models with these sizes."""
    return Schema(
        recipe=NAME,
        columns=(
            Column("text_ids", "int32", ("text_len",), TEXT, "tokens", size=vocabulary,
                   about="token ids of the normalised text, without the model's start and stop token"),
            Column("codes", "int32", ("code_len",), CODES, "codes", size=codebook,
                   about="rows of the semantic codec's codebook, 25 a second"),
            Column("spk_emb", "float32", (vector,), SPEAKER, "vector", about="speaker vector of CAM++, not normalised"),
            Column("emo_vec", "float32", (width,), EMOTION, "vector", about="emotion vector"),
        ),
        groups=GROUPS,
        frame_rate=FRAME_RATE,
        code_rate=CODE_RATE,
        limits={"text_len": text_positions, "code_len": code_positions},
        record_fields=(LANGUAGE_ID,),
    )  # fmt: skip


PUBLISHED = make_schema(
    vocabulary=NUM_TOKENS, codebook=8192, width=1280, vector=PUBLISHED_VECTOR, text_positions=600, code_positions=1815
)


def schema_of(config: Config, campplus: Path | None) -> Schema:
    """The schema for a config.yaml and the speaker network's file; without the file, with the published width."""
    network = {} if campplus is None else read_shapes(campplus)
    return make_schema(
        vocabulary=config.number_text_tokens,
        codebook=config.semantic_codec.codebook_size,
        width=config.model_dim,
        vector=(network.get(SPEAKER_VECTOR) or (PUBLISHED_VECTOR,))[0],
        text_positions=config.max_text_tokens,
        code_positions=config.max_mel_tokens,
    )
