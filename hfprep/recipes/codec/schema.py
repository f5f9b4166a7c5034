"""The samples of a neural codec: codes of several codebooks and, with a tokenizer, text ids."""

from hfprep.recipes.codec.config import CodecConfig
from hfprep.schema import Column, Group, Schema

NAME = "codec"
CODES, TEXT = "codes", "text"


def schema_of(config: CodecConfig, num_codebooks: int, vocabulary: int | None = None) -> Schema:
    """The schema of the first `num_codebooks` codebooks; with text ids if a `vocabulary` size is given."""
    size = config.codebook_size
    codes = Column("codes", config.code_dtype, ("codebooks", "code_len"), CODES, "codes", size=size, pad=size,
                   about=f"rows of the codec's codebooks, {config.code_rate:g} a second")  # fmt: skip
    text = Column("text_ids", "int32", ("text_len",), TEXT, "tokens", size=vocabulary, about="token ids of the text")
    return Schema(
        recipe=NAME,
        columns=(codes,) if vocabulary is None else (codes, text),
        groups=(Group(CODES, "audio"),) if vocabulary is None else (Group(CODES, "audio"), Group(TEXT, "text")),
        frame_rate=config.code_rate,
        code_rate=config.code_rate,
        fixed={"codebooks": num_codebooks},
    )


PUBLISHED = schema_of(
    CodecConfig(family="mimi", sampling_rate=24_000, hop_length=1920, codebook_size=2048, num_codebooks=32),
    num_codebooks=32,
    vocabulary=12_000,
)
