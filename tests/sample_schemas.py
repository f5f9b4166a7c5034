"""Schemas for tests: one with the columns of IndexTTS-2 at any width, and a made-up one of another form."""

from hfprep.schema import Column, Group, Schema


def speech_schema(width: int = 4, latents: int = 32, codebook: int = 8192, vocabulary: int = 12000) -> Schema:
    """Text ids, codes, latents and a vector, as IndexTTS-2 has them."""
    return Schema(
        recipe="indextts-2",
        columns=(
            Column("text_ids", "int32", ("text_len",), "text", "tokens", size=vocabulary),
            Column("codes", "int32", ("code_len",), "codes", "codes", size=codebook),
            Column("condition", "float32", ("condition_len", width), "latents", "vector"),
            Column("emo_vec", "float32", (width,), "latents", "vector"),
        ),
        groups=(Group("text", "text"), Group("codes", "audio"), Group("latents", "audio")),
        code_rate=50.0,
        limits={"text_len": 600, "code_len": 1815},
        fixed={"condition_len": latents},
    )


MADE_UP = Schema(
    recipe="made-up",
    columns=(
        Column("letters", "int32", ("num_letters",), "words", "tokens", size=128, pad=5),
        Column("layers", "int16", ("codebooks", "num_steps"), "sound", "codes", size=64, pad=63),
        Column("colour", "float32", (3, 5), "sound", "vector"),
    ),
    groups=(Group("words", "text"), Group("sound", "audio")),
    frame_rate=100.0,
    code_rate=12.5,
    limits={"num_letters": 40, "num_steps": 100},
    fixed={"codebooks": 4},
)
