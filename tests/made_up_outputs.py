"""An output of samples that no recipe makes, as a build leaves it, for what has to go by the schema alone."""

import json
from pathlib import Path

import numpy as np

from hfprep.schema import Column, Group, RecordField, Schema, manifest_record
from hfprep.store.layout import PROGRESS, REJECTED, STATS, TRAIN, VAL, NpyOutput, is_validation, json_line
from hfprep.store.state import Finished, State
from hfprep.store.statistics import codebook_summary

MADE_UP = Schema(
    recipe="made-up",
    columns=(
        Column("phones", "int16", ("phone_len",), "words", "tokens", size=50),
        Column("layers", "int32", ("codebooks", "code_len"), "sound", "codes", size=16),
        Column("pose", "float32", (3, 5), "sound", "vector"),
    ),
    groups=(Group("words", "text"), Group("sound", "audio", numerics=7)),
    code_rate=12.5,
    limits={"phone_len": 12},
    fixed={"codebooks": 4},
    record_fields=(RecordField("tongue", "language", {"en": 1, "zh": 2}, 0),),
)
IDS = [f"s/{number}" for number in range(8)]
VAL_RATIO = 0.4
COUNTS = ("total", "train", "val", "lines_read", "accepted", "capped", "pending")


def arrays_of(number: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(number)
    return {
        "phones": generator.integers(0, 50, 3 + number, np.int16),
        "layers": generator.integers(0, 16, (4, 6 + number), np.int32),
        "pose": generator.normal(size=(3, 5)).astype(np.float32),
    }


def write_made_up(root: Path) -> Path:
    """Write eight samples of the made-up schema."""
    npy = NpyOutput(root, MADE_UP)
    lines: dict[str, list[bytes]] = {TRAIN: [], VAL: []}
    npy.private.mkdir(parents=True)
    state = State(npy.state_file, MADE_UP)
    counts = np.zeros(16, np.int64)
    with state.transaction():
        for number, sample_id in enumerate(IDS):
            arrays = arrays_of(number)
            counts += np.bincount(arrays["layers"].reshape(-1), minlength=16)
            for name, array in arrays.items():
                npy.artifact(name, sample_id).parent.mkdir(parents=True, exist_ok=True)
                np.save(npy.artifact(name, sample_id), array)
            lengths = MADE_UP.lengths_of(arrays)
            groups = {
                name: Finished(
                    f"{number:032x}", MADE_UP.lengths_of({x.name: arrays[x.name] for x in MADE_UP.columns_of([name])})
                )
                for name in MADE_UP.group_names
            }
            state.finish(sample_id, groups, seconds=1.5, source="{}")
            metadata = {"id": sample_id, "audio_path": "a.wav", "text": "t", "speaker": None, "duration": 1.5,
                        "language": "en" if number % 2 else None}  # fmt: skip
            name = VAL if is_validation(sample_id, VAL_RATIO) else TRAIN
            lines[name].append(json_line(manifest_record(MADE_UP, metadata, lengths)))
    state.put("schema", MADE_UP.record())
    state.put("val_ratio", VAL_RATIO)
    state.close()
    assert all(lines.values())
    for name, content in lines.items():
        (root / name).write_bytes(b"".join(content))
    (root / PROGRESS).write_text("".join(f"{sample_id}\n" for sample_id in IDS))
    (root / REJECTED).touch()
    numbers = dict.fromkeys(COUNTS, 0) | dict.fromkeys(("total", "lines_read", "accepted"), len(IDS))
    stats = numbers | {"train": len(lines[TRAIN]), "val": len(lines[VAL]), "hours": round(len(IDS) * 1.5 / 3600, 6),
                       "rejected": {}, "settings": {"val_ratio": VAL_RATIO}, "sha256": {},
                       "codebook": codebook_summary(counts), "schema": MADE_UP.record()}  # fmt: skip
    (root / STATS).write_text(json.dumps(stats))
    return root
