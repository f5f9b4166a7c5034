"""Finished outputs in the npy layout, made from numbers: for what reads, converts and loads them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.formats.extra_fields import write_extra_fields
from hfprep.formats.formats import open_set
from hfprep.io.npy_format import npy_bytes
from hfprep.schema import Utterance, manifest_record, metadata_of
from hfprep.store.first_version import first_schema
from hfprep.store.layout import TRAIN, VAL, json_line

ROWS, DIM = 32, 6
AWKWARD_IDS = (
    "plain",
    "with.dots.in.it",
    "a/b/c",
    "a/b.d",
    "x" * 200,
    "ሰላም/ዓለም",
    "日本語。text",
    "space and 'quotes' \"two\" %20",
    "-dash",
    "trailing.npy",
    "emoji 🙂",
    "combining é",
)
STATS = {
    "total": 12,
    "tokenizer": "/home/someone/bpe.model",
    "gpt_checkpoint": "/home/someone/gpt.pth",
    "sha256": {"tokenizer": "0" * 64, "gpt_checkpoint": "1" * 64},
    "hours": 0.123456,
    "settings": {"val_ratio": 0.3, "models": "/home/someone/models"},
}
EXTRAS = (1, 2.5, "text", None, [1, 2], {"a": "ü"}, True, 10**30)


def make_output(
    root: Path,
    *,
    ids: tuple[str, ...] = AWKWARD_IDS,
    extra: bool = True,
    dim: int = DIM,
    change: Callable[[dict[str, Any], int], dict[str, Any]] = lambda record, _: record,
    line_of: Callable[[dict[str, Any]], bytes] = json_line,
) -> Path:
    """An output with a sample for each id, every third in validation; the same numbers for the same arguments."""
    schema = first_schema(dim)
    manifests: dict[str, list[bytes]] = {TRAIN: [], VAL: []}
    extras = []
    for number, sample_id in enumerate(ids):
        random = np.random.default_rng(int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:4]))
        arrays = {
            "text_ids": random.integers(0, 99, 3 + number % 40, dtype=np.int32),
            "codes": random.integers(0, 8192, 5 + 7 * number % 31, dtype=np.int32),
            "condition": random.standard_normal((ROWS, dim)).astype(np.float32),
            "emo_vec": random.standard_normal(dim).astype(np.float32),
        }
        utterance = Utterance(
            line=number + 1,
            id=sample_id,
            text=f"Text {number}: “ሰላም”, 日本\u2028語",
            audio=f"wavs/{number}.wav",
            path="",
            speaker=None if number < 8 else f"speaker-{number % 2}",
            language=None if number % 2 else "en",
            duration=number if number % 4 == 0 else number + 0.1,
        )
        record = manifest_record(schema, metadata_of(utterance, 1.0), schema.lengths_of(arrays))
        record = change(record, number)
        for name, array in arrays.items():
            path = root / record[f"{name}_path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(npy_bytes(array))
        manifests[VAL if number % 3 == 2 else TRAIN].append(line_of(record))
        fields = {"score": EXTRAS[number % len(EXTRAS)], "take": number, "codes": "a name that is taken"}
        extras.append((sample_id, json.dumps(fields, ensure_ascii=False) if extra and number % 5 else "{}"))
    for name, lines in manifests.items():
        (root / name).write_bytes(b"".join(lines))
    (root / "stats.json").write_text(json.dumps(STATS, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_extra_fields(root, extras)
    return root


def public_files(root: Path) -> dict[str, bytes]:
    """Content of every file that a conversion must give back, by path: manifests, stats and artifacts."""
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in files.items()
        if not name.startswith((".hfprep/", ".preprocessing")) and name != "rejected.jsonl"
    }


def samples_of(output: Path, split: str) -> list[tuple[dict[str, Any], dict[str, bytes]]]:
    """Records and arrays of a split, whatever the output's format."""
    samples = open_set(output).split(split).samples()
    return [(x.entry.record, {name: array.tobytes() for name, array in x.arrays.items()}) for x in samples]
