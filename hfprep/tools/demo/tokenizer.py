"""A small tokenizer for the demo, trained on the demo's own sentences.

Provides `train_tokenizer`. Characters that were not in the training text are encoded as bytes, so no text is unknown.
"""

import io
import string

import sentencepiece

from hfprep.tools.demo.sentences import SENTENCES

VOCABULARY_SIZE = 1200
START_TOKEN, STOP_TOKEN, UNKNOWN_TOKEN = 0, 1, 2  # as in the published tokenizer


def train_tokenizer() -> bytes:
    """Train a BPE model with byte fallback and return the bytes of its .model file. Deterministic.

    The text is prepared like in the text pipeline: upper case, spaces around Chinese characters.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_training_lines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY_SIZE,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        required_chars=string.ascii_uppercase + string.digits + "'!,-.?…",
        bos_id=START_TOKEN,
        eos_id=STOP_TOKEN,
        unk_id=UNKNOWN_TOKEN,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _training_lines() -> list[str]:
    lines = [sentence.upper() for sentences in SENTENCES.values() for sentence in sentences]
    return ["".join(f" {char} " if "\u4e00" <= char <= "\u9fff" else char for char in line) for line in lines]
