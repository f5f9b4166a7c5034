"""verify: every kind of damage is found by its name, and repair plus a build restores it and nothing else."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hfprep.cli.app import app
from hfprep.errors import ConfigError, StoreError
from hfprep.io.lock import OutputLock
from hfprep.pipeline.building import build
from hfprep.pipeline.config import BuildConfig
from hfprep.tools.verify.checking import VerifyOptions, verify
from hfprep.tools.verify.comparing import draw
from hfprep.tools.verify.faults import FaultKind

BAD_LINES = '{"id": "broken\n' + json.dumps({"id": "gone", "text": "Hello there", "audio": "gone.wav"}) + "\n"
VAL_RATIO = 0.3


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, golden_small: Path) -> BuildConfig:
    """A build of golden-small with two bad lines, done once."""
    folder = tmp_path_factory.mktemp("verify")
    rows = [json.loads(line) for line in (golden_small / "manifest.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"audio": str(golden_small / row["audio"])}) + "\n" for row in rows]
    (folder / "manifest.jsonl").write_text("".join(lines) + BAD_LINES)
    made = BuildConfig(
        manifest=folder / "manifest.jsonl",
        output_dir=folder / "features",
        models=golden_small / "checkpoints",
        val_ratio=VAL_RATIO,
        device="cpu",
        batch_size=4,
    )
    summary = build(made)
    assert (summary.accepted, summary.rejected) == (8, {"audio_missing": 1, "invalid_json": 1})
    assert summary.train, summary.val
    return made


@pytest.fixture
def output(config: BuildConfig, tmp_path: Path) -> Path:
    """A copy of that build to damage."""
    return Path(shutil.copytree(config.output_dir, tmp_path / "features"))


def again(config: BuildConfig, output: Path) -> BuildConfig:
    return BuildConfig(
        manifest=config.manifest, output_dir=output, models=config.models, val_ratio=VAL_RATIO, device="cpu"
    )


def content(output: Path) -> dict[str, bytes]:
    """Everything that a build is for: arrays, manifests, statistics, rejections."""
    files = [path for path in output.rglob("*") if path.is_file() and ".hfprep" not in path.parts]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def records(output: Path, name: str = "train_manifest.jsonl") -> list[dict]:
    return [json.loads(line) for line in (output / name).read_text().splitlines()]


def write_records(output: Path, rows: list[dict], name: str = "train_manifest.jsonl") -> None:
    (output / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def array(output: Path, column: str) -> Path:
    """The array of the first training sample."""
    return output / column / f"{records(output)[0]['id']}.npy"


def change_array(column: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def damage(output: Path) -> None:
        path = array(output, column)
        np.save(path, change(np.load(path)))

    return damage


def change_bytes(column: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(output: Path) -> None:
        path = array(output, column)
        path.write_bytes(change(path.read_bytes()))

    return damage


def put(index: tuple[int, ...] | int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[index] = value
        return values

    return change


def remove_array(output: Path) -> None:
    array(output, "emo_vec").unlink()


def replace_by_folder(output: Path) -> None:
    array(output, "codes").unlink()
    array(output, "codes").mkdir()


def pickle_inside(output: Path) -> None:
    np.save(array(output, "codes"), np.array([{"a": 1}], dtype=object), allow_pickle=True)


def swap_codes(output: Path) -> None:
    first, second = (output / "codes" / f"{row['id']}.npy" for row in records(output)[:2])
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def tear_manifest(output: Path) -> None:
    path = output / "train_manifest.jsonl"
    path.write_bytes(path.read_bytes()[:-40])


def point_elsewhere(output: Path) -> None:
    rows = records(output)
    rows[0]["codes_path"] = rows[1]["codes_path"]
    write_records(output, rows)


def drop_field(output: Path) -> None:
    rows = records(output)
    del rows[0]["text"]
    write_records(output, rows)


def repeat_record(output: Path) -> None:
    rows = records(output)
    write_records(output, [*rows, rows[0]])


def list_in_both(output: Path) -> None:
    name = "val_manifest.jsonl"
    write_records(output, [*records(output, name), records(output)[0]], name)


def move_to_other_split(output: Path) -> None:
    rows = records(output)
    write_records(output, rows[1:])
    write_records(output, [*records(output, "val_manifest.jsonl"), rows[0]], "val_manifest.jsonl")


def reorder_manifest(output: Path) -> None:
    rows = records(output)
    write_records(output, rows[::-1])


def drop_record(output: Path) -> None:
    write_records(output, records(output)[1:])


def remove(name: str) -> Callable[[Path], None]:
    return lambda output: (output / name).unlink()


def forget_progress(output: Path) -> None:
    path = output / ".preprocessing_progress.txt"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def invent_progress(output: Path) -> None:
    with open(output / ".preprocessing_progress.txt", "a") as stream:
        stream.write("nobody\n")


def change_stats(**values: object) -> Callable[[Path], None]:
    def damage(output: Path) -> None:
        stats = json.loads((output / "stats.json").read_text())
        (output / "stats.json").write_text(json.dumps(stats | values))

    return damage


def tear_stats(output: Path) -> None:
    path = output / "stats.json"
    path.write_bytes(path.read_bytes()[:100])


def cut_rejected(output: Path) -> None:
    path = output / "rejected.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])


def unknown_reason(output: Path) -> None:
    path = output / "rejected.jsonl"
    path.write_text(path.read_text().replace("audio_missing", "bad_mood"))


def stray_array(output: Path) -> None:
    shutil.copy(array(output, "codes"), output / "codes" / "stray.npy")


def leftover(output: Path) -> None:
    (output / "train_manifest.jsonl.tmp").write_bytes(b"{")


def killed_run(output: Path) -> None:
    (output / ".hfprep" / "work").mkdir()


def with_state(statement: str) -> Callable[[Path], None]:
    def damage(output: Path) -> None:
        database = sqlite3.connect(output / ".hfprep" / "state.sqlite")
        database.execute(statement, (records(output)[0]["id"],))
        database.commit()
        database.close()

    return damage


def overwrite_state(output: Path) -> None:
    (output / ".hfprep" / "state.sqlite").write_bytes(b"not a database, " * 300)


# fmt: off
DAMAGES: dict[str, tuple[Callable[[Path], None], FaultKind]] = {
    "array missing": (remove_array, FaultKind.ARTIFACT_MISSING),
    "array empty": (change_bytes("condition", lambda data: b""), FaultKind.ARTIFACT_UNREADABLE),
    "array truncated": (change_bytes("condition", lambda data: data[:-7]), FaultKind.ARTIFACT_UNREADABLE),
    "array header broken": (change_bytes("text_ids", lambda data: b"RIFF" + data[4:]), FaultKind.ARTIFACT_UNREADABLE),
    "array is a folder": (replace_by_folder, FaultKind.ARTIFACT_UNREADABLE),
    "array is a pickle": (pickle_inside, FaultKind.ARTIFACT_UNREADABLE),
    "bytes after the array": (change_bytes("codes", lambda data: data + b"tail"), FaultKind.ARTIFACT_SIZE),
    "array of another dtype": (change_array("codes", lambda x: x.astype(np.int64)), FaultKind.ARTIFACT_DTYPE),
    "array of another rank": (change_array("emo_vec", lambda x: x[None]), FaultKind.ARTIFACT_SHAPE),
    "array of another width": (change_array("emo_vec", lambda x: x[:-1]), FaultKind.ARTIFACT_SHAPE),
    "latents missing": (change_array("condition", lambda x: x[:-1]), FaultKind.ARTIFACT_LENGTH),
    "codes too short": (change_array("codes", lambda x: x[:-1]), FaultKind.ARTIFACT_LENGTH),
    "text ids too long": (change_array("text_ids", lambda x: np.append(x, x[:1])), FaultKind.ARTIFACT_LENGTH),
    "codes of two samples swapped": (swap_codes, FaultKind.ARTIFACT_LENGTH),
    "NaN": (change_array("condition", put((3, 1), np.nan)), FaultKind.NOT_FINITE),
    "infinity": (change_array("emo_vec", put(0, np.inf)), FaultKind.NOT_FINITE),
    "zeros": (change_array("condition", put(5, 0.0)), FaultKind.ALL_ZERO),
    "code outside the codebook": (change_array("codes", put(2, 8192)), FaultKind.OUT_OF_RANGE),
    "code below zero": (change_array("codes", put(2, -1)), FaultKind.OUT_OF_RANGE),
    "token outside the vocabulary": (change_array("text_ids", put(0, 12000)), FaultKind.OUT_OF_RANGE),
    "manifest torn": (tear_manifest, FaultKind.RECORD_INVALID),
    "record points at another's file": (point_elsewhere, FaultKind.RECORD_INVALID),
    "record without a field": (drop_field, FaultKind.RECORD_INVALID),
    "record twice": (repeat_record, FaultKind.DUPLICATE_ID),
    "sample in both splits": (list_in_both, FaultKind.IN_BOTH_SPLITS),
    "sample in the wrong split": (move_to_other_split, FaultKind.WRONG_SPLIT),
    "manifest in another order": (reorder_manifest, FaultKind.PROGRESS_DISAGREES),
    "record missing": (drop_record, FaultKind.PROGRESS_DISAGREES),
    "manifest missing": (remove("val_manifest.jsonl"), FaultKind.FILE_MISSING),
    "progress missing": (remove(".preprocessing_progress.txt"), FaultKind.FILE_MISSING),
    "progress lacks an id": (forget_progress, FaultKind.PROGRESS_DISAGREES),
    "progress has an id too many": (invent_progress, FaultKind.PROGRESS_DISAGREES),
    "stats missing": (remove("stats.json"), FaultKind.UNFINISHED),
    "stats torn": (tear_stats, FaultKind.FILE_INVALID),
    "stats count wrong": (change_stats(train=7), FaultKind.STATS_DISAGREE),
    "hours wrong": (change_stats(hours=1.0), FaultKind.STATS_DISAGREE),
    "codebook use wrong": (change_stats(codebook={"size": 8192, "used": 3, "perplexity": 1.0}),
                           FaultKind.STATS_DISAGREE),
    "build not finished": (change_stats(pending=2), FaultKind.UNFINISHED),
    "rejected missing": (remove("rejected.jsonl"), FaultKind.FILE_MISSING),
    "rejected cut": (cut_rejected, FaultKind.REJECTED_DISAGREES),
    "rejected for an unknown reason": (unknown_reason, FaultKind.FILE_INVALID),
    "array that nothing lists": (stray_array, FaultKind.UNLISTED_FILE),
    "unfinished manifest left": (leftover, FaultKind.UNLISTED_FILE),
    "work of a killed run left": (killed_run, FaultKind.UNFINISHED),
    "state forgot a sample": (with_state("DELETE FROM samples WHERE id = ?"), FaultKind.STATE_DISAGREES),
    "state has another length": (
        with_state("UPDATE samples SET finished = json_set(finished, '$.codes[1].code_len', 3) WHERE id = ?"),
        FaultKind.STATE_DISAGREES,
    ),
    "state has a damaged row": (
        with_state("UPDATE samples SET finished = '{\"codes\": 7}' WHERE id = ?"),
        FaultKind.STATE_DISAGREES,
    ),
    "state overwritten": (overwrite_state, FaultKind.FILE_INVALID),
}
# fmt: on

# The samples that have to be computed again after a repair: one, unless it says otherwise here.
RECOMPUTED = {"codes of two samples swapped": 2, "state overwritten": 8}


def recomputed(name: str) -> int:
    kind = DAMAGES[name][1]
    of_one = kind.value.startswith("artifact") or kind in {
        FaultKind.NOT_FINITE,
        FaultKind.ALL_ZERO,
        FaultKind.OUT_OF_RANGE,
        FaultKind.STATE_DISAGREES,
    }
    return RECOMPUTED.get(name, int(of_one))


def test_a_sound_output_has_no_faults(output: Path) -> None:
    before = content(output)
    verdict = verify(VerifyOptions(output_dir=output))
    assert [fault.line() for fault in verdict.faults] == []
    assert (verdict.format, verdict.samples, verdict.notes) == ("npy", 8, [])
    assert content(output) == before


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(name: str, output: Path) -> None:
    damage, kind = DAMAGES[name]
    first = records(output)[0]["id"]
    damage(output)
    before = content(output)
    found = verify(VerifyOptions(output_dir=output)).faults
    assert kind in {fault.kind for fault in found}, [fault.line() for fault in found]
    assert content(output) == before, "verify without --repair must change nothing"
    if recomputed(name) and name != "state overwritten":
        named = [fault for fault in found if fault.kind == kind and fault.id == first]
        assert named, [fault.line() for fault in found]
        assert first in named[0].line()
        assert named[0].file in named[0].line()


@pytest.mark.parametrize("name", DAMAGES)
def test_repair_and_build_mend_exactly_the_damage(name: str, output: Path, config: BuildConfig) -> None:
    whole = content(output)
    DAMAGES[name][0](output)
    untouched = {path for path, data in content(output).items() if whole.get(path) == data and path.endswith(".npy")}
    times = {path: (output / path).stat().st_mtime_ns for path in untouched}
    verdict = verify(VerifyOptions(output_dir=output, repair=True))
    assert verdict.faults
    summary = build(again(config, output))
    assert summary.accepted - summary.reused == recomputed(name)
    assert [fault.line() for fault in verify(VerifyOptions(output_dir=output)).faults] == []
    restored = content(output)
    assert restored.keys() == whole.keys()
    differing = [path for path in whole if restored[path] != whole[path] and path != "stats.json"]
    assert not [path for path in differing if not path.startswith(("condition/", "emo_vec/"))]
    for path in differing:  # another batch size sums in another order
        np.testing.assert_allclose(np.load(output / path), np.load(config.output_dir / path), rtol=1e-4, atol=1e-5)
    if recomputed(name) <= 1:
        broken = records(output)[0]["id"]
        same = {path for path in untouched if Path(path).stem != broken}
        assert {path: (output / path).stat().st_mtime_ns for path in same} == {path: times[path] for path in same}


def test_repaired_manifests_hold_the_intact_samples_at_once(output: Path) -> None:
    broken = records(output)[0]["id"]
    remove_array(output)
    verdict = verify(VerifyOptions(output_dir=output, repair=True))
    listed = [row["id"] for name in ("train_manifest.jsonl", "val_manifest.jsonl") for row in records(output, name)]
    assert len(listed) == 7
    assert broken not in listed
    assert any(broken in line for line in verdict.repairs)
    kept = list((output / ".hfprep" / "broken").rglob("train_manifest.jsonl"))
    assert len(kept) == 1
    assert broken in kept[0].read_text()


def test_broken_files_are_moved_not_deleted(output: Path) -> None:
    path = array(output, "codes")
    path.write_bytes(b"precious")
    verify(VerifyOptions(output_dir=output, repair=True))
    assert not path.exists()
    assert (output / ".hfprep" / "broken" / "1" / "codes" / path.name).read_bytes() == b"precious"


def test_parity_of_a_sound_output(output: Path) -> None:
    verdict = verify(VerifyOptions(output_dir=output, parity=3, device="cpu"))
    assert not verdict.faults
    assert verdict.parity is not None
    assert verdict.parity.samples == 3
    assert verdict.parity.codes_differing == 0
    assert verdict.parity.largest_difference < 1e-5


def test_parity_finds_numbers_that_are_not_the_samples_own(output: Path, config: BuildConfig) -> None:
    """Sound in form, wrong in content: one code, and a vector that is off by a hundredth."""
    path = array(output, "codes")
    codes = np.load(path)
    codes[3] = (codes[3] + 1) % 8192
    np.save(path, codes)
    vector = array(output, "emo_vec")
    np.save(vector, np.load(vector) * np.float32(1.01))
    verdict = verify(VerifyOptions(output_dir=output, parity=8, device="cpu", repair=True))
    wrong = {(fault.kind, fault.file) for fault in verdict.faults if fault.kind == FaultKind.PARITY}
    assert wrong == {(FaultKind.PARITY, str(item.relative_to(output))) for item in (path, vector)}
    assert build(again(config, output)).reused == 7
    assert not verify(VerifyOptions(output_dir=output, parity=8, device="cpu")).faults


def test_the_published_library_computes_the_same_codes(output: Path) -> None:
    verdict = verify(VerifyOptions(output_dir=output, reference=4))
    assert [fault.line() for fault in verdict.faults] == []
    found = verdict.reference
    assert found is not None
    assert found.samples == 4
    assert found.codes > 200
    assert found.agreement > 0.99


def test_codes_that_the_published_library_does_not_compute_are_faults(output: Path) -> None:
    """The codes of one sample are off by one, which parity alone would find, too; the others are as they were."""
    path = array(output, "codes")
    np.save(path, (np.load(path) + 1) % 128)
    verdict = verify(VerifyOptions(output_dir=output, reference=8))
    assert {(fault.kind, fault.column) for fault in verdict.faults if fault.id == records(output)[0]["id"]} == {
        (FaultKind.REFERENCE, "codes")
    }
    assert verdict.reference is not None
    assert 0.5 < verdict.reference.agreement < 1
    assert np.load(path).size == verdict.reference.codes_differing


def test_numbers_of_samples_are_checked() -> None:
    with pytest.raises(ConfigError, match="--reference is -1"):
        VerifyOptions(output_dir=Path("x"), reference=-1)


def test_parity_with_other_models_is_refused(output: Path, golden_small: Path, tmp_path: Path) -> None:
    models = Path(shutil.copytree(golden_small / "checkpoints", tmp_path / "models"))
    with open(models / "config.yaml", "a") as stream:
        stream.write("# another file\n")
    with pytest.raises(ConfigError, match=r"not the models.*config"):
        verify(VerifyOptions(output_dir=output, parity=1, models=models))


def test_samples_are_drawn_evenly_and_by_the_seed() -> None:
    rows = [{"id": str(number)} for number in range(10)]
    drawn = [row["id"] for seed in range(400) for row in draw(rows, 3, seed)]
    counts = [drawn.count(str(number)) for number in range(10)]
    assert sum(counts) == 1200
    assert min(counts) > 80  # 120 expected, standard deviation 9
    assert max(counts) < 160
    assert draw(rows, 3, 1) == draw(rows, 3, 1)
    assert draw(rows, 20, 1) == rows


def test_what_is_no_output_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        verify(VerifyOptions(output_dir=tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="contains no features"):
        verify(VerifyOptions(output_dir=tmp_path))


def test_verify_waits_for_no_running_build(output: Path) -> None:
    with OutputLock(output / ".hfprep" / "lock"), pytest.raises(StoreError, match="another run"):
        verify(VerifyOptions(output_dir=output))


def test_samples_kept_from_a_larger_manifest_are_a_note(output: Path, config: BuildConfig, tmp_path: Path) -> None:
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text("".join(config.manifest.read_text().splitlines(keepends=True)[:5]))
    build(BuildConfig(manifest=shorter, output_dir=output, models=config.models, val_ratio=VAL_RATIO, device="cpu"))
    verdict = verify(VerifyOptions(output_dir=output))
    assert not verdict.faults
    assert verdict.samples == 5
    assert any("3 finished samples are kept" in note for note in verdict.notes)


def test_the_command_prints_a_line_a_fault_and_exits_1(output: Path) -> None:
    runner = CliRunner()
    sound = runner.invoke(app, ["verify", str(output)])
    assert sound.exit_code == 0
    assert "8 samples, 0 faults" in sound.output
    broken = array(output, "emo_vec").name.removesuffix(".npy")
    remove_array(output)
    result = runner.invoke(app, ["verify", str(output)])
    assert result.exit_code == 1
    assert f"{broken}: emo_vec/{broken}.npy: the file does not exist [artifact_missing]" in result.output.splitlines()
