"""verify knows of a sample what its schema says, and nothing else: here one that no recipe has."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfprep.errors import ConfigError
from hfprep.schema import artifact_path
from hfprep.store.layout import STATS, TRAIN, VAL, json_line
from hfprep.store.state import State
from hfprep.tools.verify.checking import verify
from hfprep.tools.verify.faults import FaultKind
from hfprep.tools.verify.options import VerifyOptions
from tests.made_up_outputs import IDS, MADE_UP, write_made_up


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return write_made_up(tmp_path / "out")


def broken(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / artifact_path(name, IDS[0])
        np.save(path, change(np.load(path)))

    return damage


def put(index: tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


def other_record(**changes: Any) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        for name in (TRAIN, VAL):
            rows = [json.loads(line) for line in (root / name).read_text().splitlines()]
            rows = [row | changes if row["id"] == IDS[0] else row for row in rows]
            (root / name).write_bytes(b"".join(map(json_line, rows)))

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], None], FaultKind, str]] = {
    "token outside the vocabulary": (broken("phones", put((1,), 50)), FaultKind.OUT_OF_RANGE, "words"),
    "another integer type": (broken("phones", lambda x: x.astype(np.int32)), FaultKind.ARTIFACT_DTYPE, "words"),
    "code outside the codebook": (broken("layers", put((3, 2), 16)), FaultKind.OUT_OF_RANGE, "sound"),
    "a codebook too few": (broken("layers", lambda x: x[:3]), FaultKind.ARTIFACT_LENGTH, "sound"),
    "codes too short": (broken("layers", lambda x: x[:, :-1]), FaultKind.ARTIFACT_LENGTH, "sound"),
    "codes without codebooks": (broken("layers", lambda x: x[0]), FaultKind.ARTIFACT_SHAPE, "sound"),
    "a vector of another shape": (broken("pose", lambda x: x[:, :4]), FaultKind.ARTIFACT_SHAPE, "sound"),
    "a vector that is not finite": (broken("pose", put((2, 4), np.nan)), FaultKind.NOT_FINITE, "sound"),
    "a vector of zeros": (broken("pose", put((1,), 0.0)), FaultKind.ALL_ZERO, "sound"),
    "half precision": (broken("pose", lambda x: x.astype(np.float16)), FaultKind.ARTIFACT_DTYPE, "sound"),
}


def test_a_sound_output_has_no_faults(output: Path) -> None:
    verdict = verify(VerifyOptions(output_dir=output))
    assert [fault.line() for fault in verdict.faults] == []
    assert (verdict.samples, verdict.notes) == (len(IDS), [])


@pytest.mark.parametrize("name", DAMAGES)
def test_an_array_that_is_not_as_the_schema_says(name: str, output: Path) -> None:
    damage, kind, group = DAMAGES[name]
    damage(output)
    verdict = verify(VerifyOptions(output_dir=output, repair=True))
    assert {(fault.kind, fault.id) for fault in verdict.faults} == {(kind, IDS[0])}
    state = State(output / ".hfprep" / "state.sqlite", MADE_UP)
    wanted = dict.fromkeys(MADE_UP.group_names, f"{0:032x}")
    known = list(state.samples(IDS))
    state.close()
    assert known[0] is not None
    assert known[0].missing(wanted) == {group}, "that group, and no other, is to be computed again"
    assert all(sample is not None and sample.finished == MADE_UP.all_groups for sample in known[1:])
    listed = (output / TRAIN).read_text() + (output / VAL).read_text()
    assert f'"{IDS[0]}"' not in listed
    assert all(f'"{sample_id}"' in listed for sample_id in IDS[1:])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pose_path": "pose/other.npy"}, "pose_path is 'pose/other.npy'; it must be 'pose/s/0.npy'"),
        ({"phone_len": 0}, "phone_len is 0; it must be a whole number from 1"),
        ({"codebooks": "4"}, "codebooks is '4'"),
        ({"tongue": 2}, "tongue is 2; it must be 0"),
    ],
)
def test_a_record_that_is_not_as_the_schema_says(changes: dict[str, Any], said: str, output: Path) -> None:
    other_record(**changes)(output)
    faults = verify(VerifyOptions(output_dir=output)).faults
    assert said in next(fault.message for fault in faults if fault.kind == FaultKind.RECORD_INVALID)


def test_the_fixed_length_holds_against_the_record_too(output: Path) -> None:
    """Record and array agree, but the schema says that every sample has four codebooks."""
    other_record(codebooks=3)(output)
    broken("layers", lambda x: x[:3])(output)
    found = {(fault.kind, fault.file) for fault in verify(VerifyOptions(output_dir=output)).faults}
    assert (FaultKind.ARTIFACT_SHAPE, "layers/s/0.npy") in found


def test_the_schema_is_found_without_stats(output: Path) -> None:
    (output / STATS).unlink()
    assert {fault.kind for fault in verify(VerifyOptions(output_dir=output)).faults} == {FaultKind.UNFINISHED}


def test_without_any_description_it_is_not_taken_for_another(output: Path) -> None:
    (output / STATS).unlink()
    shutil.rmtree(output / ".hfprep")
    with pytest.raises(ConfigError, match=r"neither stats.json nor .hfprep/state.sqlite"):
        verify(VerifyOptions(output_dir=output, repair=True))
