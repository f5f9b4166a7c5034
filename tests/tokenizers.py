"""Small tokenizers and texts of a language that they do not know, for what extends and compares them."""

import io
import json
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from hfprep.inputs.text.tokenizer import space_cjk
from hfprep.tools.demo.sentences import SENTENCES

AMHARIC = (
    *SENTENCES["am"],
    "ሰላም ለሁሉም፣ ዛሬ ወደ ገበያ እንሄዳለን።",
    "ልጆቹ ቡና አይጠጡም፤ ልጆቹ ወተት ይጠጣሉ።",
    "ሰላም! መጽሐፉን ለልጆቹ አንብብላቸው።",
    "ነገ ጠዋት ዝናብ ከዘነበ ወደ ወንዙ አንሄድም።",
)


def train_base(model_type: str = "bpe", *, byte_fallback: bool = False) -> bytes:
    """A model trained on English and Chinese, with the ids of the published one for start, end and unknown."""
    lines = [space_cjk(sentence) for language in ("en", "zh") for sentence in SENTENCES[language]]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type=model_type,
        vocab_size=900 if model_type == "bpe" else 250,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=byte_fallback,
        bos_id=0,
        eos_id=1,
        unk_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_manifest(path: Path, texts: Iterable[str], language: str | None = None) -> Path:
    """A manifest of these texts, of audio that nobody looks for."""
    rows = [
        {"id": f"row{number}", "text": text, "audio": "none.wav"} | ({"language": language} if language else {})
        for number, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
