"""Appends pieces and settings to a SentencePiece model file.

The file is a protobuf message, and concatenating such messages merges them: repeated fields are appended, fields of
nested messages overwritten. So a model can be changed by appending bytes, without a protobuf package (the version that
SentencePiece's generated module needs conflicts with index-tts's pins). Field numbers are from
sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any

PIECES, TRAINER, NORMALIZER = 1, 2, 3  # of ModelProto
PIECE_TEXT, PIECE_SCORE = 1, 2  # of SentencePiece; a piece without a type is a normal one
MODEL_TYPE, VOCAB_SIZE = 3, 4  # of TrainerSpec
ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES = 3, 4  # of NormalizerSpec
UNIGRAM, BPE = 1, 2  # values of model_type; unigram is the default
SPACE_PIECE = "\u2581"  # stands for a space


class _Wire(IntEnum):
    VARINT = 0
    EIGHT_BYTES = 1
    BYTES = 2
    FOUR_BYTES = 5


def with_pieces(model: bytes, pieces: Sequence[tuple[str, float]], vocab_size: int) -> bytes:
    """The model with normal pieces (text, score) appended; `vocab_size` is the new total."""
    appended = b"".join(
        _nested(
            PIECES, _nested(PIECE_TEXT, text.encode()) + _key(PIECE_SCORE, _Wire.FOUR_BYTES) + struct.pack("<f", score)
        )
        for text, score in pieces
    )
    return model + appended + _nested(TRAINER, _number(VOCAB_SIZE, vocab_size))


def without_added_spaces(model: bytes) -> bytes:
    """The model without whitespace changes: no space is added before a text, and none removed."""
    return model + _nested(NORMALIZER, _number(ADD_DUMMY_PREFIX, 0) + _number(REMOVE_EXTRA_WHITESPACES, 0))


def model_type(model: bytes) -> int:
    """The model type in the training settings, such as `BPE`; the model must be valid."""
    found = UNIGRAM
    for field, trainer in _fields(model):
        if field == TRAINER:
            found = dict(_fields(trainer)).get(MODEL_TYPE, found)
    return found


def open_bytes(model: bytes) -> Any:
    """The SentencePiece processor of a model in memory."""
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)


def decoded(byte_pieces: Iterable[str]) -> str:
    """The characters that a model with byte fallback writes as these pieces, such as <0xE1>."""
    return bytes(int(piece[3:5], 16) for piece in byte_pieces).decode("utf-8", "replace")


def _key(field: int, wire: _Wire) -> bytes:
    return _varint(field << 3 | wire)


def _number(field: int, value: int) -> bytes:
    return _key(field, _Wire.VARINT) + _varint(value)


def _nested(field: int, content: bytes) -> bytes:
    return _key(field, _Wire.BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int, or the bytes of a nested message (or fixed-size value)."""
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        wire = key & 7
        if wire == _Wire.VARINT:
            value, position = _read_varint(message, position)
            yield key >> 3, value
            continue
        if wire == _Wire.BYTES:
            length, position = _read_varint(message, position)
        else:
            length = {_Wire.EIGHT_BYTES: 8, _Wire.FOUR_BYTES: 4}[_Wire(wire)]
        yield key >> 3, message[position : position + length]
        position += length


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
