"""The npy layout: in which order a batch becomes final, what counts as whole, and listings that change at once."""

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hfprep.errors import Reason, StoreError
from hfprep.io import atomic
from hfprep.io.npy_format import npy_bytes, npy_size
from hfprep.pipeline.breaker import Unproven
from hfprep.pipeline.intake import Loaded, Task
from hfprep.schema import Features, Rejection, Segment, Utterance
from hfprep.store.fingerprints import AudioIdentity
from hfprep.store.layout import (
    PROGRESS,
    REJECTED,
    TRAIN,
    VAL,
    NpyOutput,
    PlannedRow,
    Publisher,
    Stage,
    is_validation,
)
from hfprep.store.listing import Listing, entry_of
from hfprep.store.state import State
from tests.sample_schemas import speech_schema

SCHEMA = speech_schema(4)
ALL = SCHEMA.all_groups
PRINTS = {"text": "t" * 32, "codes": "c" * 32, "latents": "l" * 32}
COLUMNS = ("text_ids", "codes", "condition", "emo_vec")


def records() -> Iterator[object]:
    """One of each record that processes exchange for a sample, with values that are not the defaults."""
    row = Utterance(7, "a", "text", "a.wav", "/a.wav", "speaker", "en", 1.5, '{"x": 1}', 2.5)
    yield row
    yield Segment(2.5, None)
    yield AudioIdentity(10, 20, "ab")
    yield PlannedRow(row, PRINTS, AudioIdentity(10, 20, None), frozenset({"text"}))
    yield Task.of(SCHEMA, row, frozenset({"codes"}), 10)
    yield Loaded(Task.of(SCHEMA, row), None, None, 1.5, 75)
    yield Features({}, 1.5)
    yield Rejection(7, None, Reason.TEXT_FAILED, "no text")
    yield Unproven(7, "a", Reason.COMPUTE_FAILED, "failed", "a kind")


@pytest.mark.parametrize("record", list(records()), ids=lambda record: type(record).__name__)
def test_records_are_the_same_in_another_process(record: object) -> None:
    again = pickle.loads(pickle.dumps(record))
    assert again == record
    assert type(again) is type(record)


@pytest.fixture
def output(tmp_path: Path) -> NpyOutput:
    place = NpyOutput(tmp_path / "out", SCHEMA)
    place.reset_work()
    return place


@pytest.fixture
def state(output: NpyOutput) -> Iterator[State]:
    database = State(output.state_file, SCHEMA)
    yield database
    database.close()


def row(sample_id: str, line: int = 1, need: frozenset[str] = ALL) -> PlannedRow:
    utterance = Utterance(line=line, id=sample_id, text="words", audio="./a.wav", path="/a.wav", speaker="s")
    return PlannedRow(utterance, PRINTS, AudioIdentity(1, 2), need)


def features(length: int = 5) -> Features:
    codes = np.arange(length, dtype=np.int32)
    condition = np.ones((32, 4), np.float32)
    arrays = {"text_ids": codes[:3], "codes": codes, "condition": condition, "emo_vec": condition[0]}
    return Features(arrays, length / 50)


def publish(output: NpyOutput, state: State, *rows: PlannedRow, rejections: tuple[Rejection, ...] = ()) -> None:
    stage, publisher = Stage(output.work / "stage"), Publisher(output, state, 0.5)
    try:
        publisher.publish(stage.write([(item, features()) for item in rows]), rejections)
    finally:
        publisher.close()
        stage.close()


def ids_in(output: NpyOutput, name: str) -> list[str]:
    return [json.loads(line)["id"] for line in (output.root / name).read_text().splitlines()]


def test_a_batch_becomes_final_in_the_order_that_a_crash_may_interrupt(output: NpyOutput, state: State) -> None:
    """Synced before renamed, renamed and the folder synced before it is known, known before it is listed."""
    reached: list[str] = []

    def observe(point: str, path: str) -> None:
        relative = Path(path).relative_to(output.root)
        reached.append(
            f"{point} {'stage' if 'stage' in relative.parts else relative.parts[0] if relative.parts else '.'}"
        )

    atomic.set_observer(observe)
    try:
        publish(output, state, row("a"), row("folder/b"))
    finally:
        atomic.set_observer(None)

    def last(event: str) -> int:
        return len(reached) - 1 - reached[::-1].index(event)

    begun, known = (index for index, event in enumerate(reached) if event == "after-commit .hfprep")
    assert last("after-sync stage") < begun < reached.index("before-rename codes")
    for column in COLUMNS:
        assert last(f"after-rename {column}") < reached.index(f"before-sync-folder {column}") < known
    assert last("after-sync-folder .") < known
    listed = min(reached.index(f"before-append {name}") for name in (TRAIN, VAL) if f"before-append {name}" in reached)
    assert known < listed
    assert max(
        last(f"after-append {name}") for name in (TRAIN, VAL) if f"after-append {name}" in reached
    ) < reached.index(f"before-append {PROGRESS}")


def test_a_published_batch_is_on_disk_known_and_listed(output: NpyOutput, state: State) -> None:
    rejection = Rejection(3, "c", Reason.AUDIO_EMPTY, "nothing there")
    publish(output, state, row("a"), row("folder/b"), rejections=(rejection,))
    for sample_id in ("a", "folder/b"):
        for column, array in features().arrays.items():
            np.testing.assert_array_equal(np.load(output.root / column / f"{sample_id}.npy"), array)
        sample = state.sample(sample_id)
        assert sample is not None
        assert (sample.missing(PRINTS), output.incomplete(sample_id, sample)) == (frozenset(), frozenset())
    assert sorted(ids_in(output, TRAIN) + ids_in(output, VAL)) == ["a", "folder/b"]
    assert (output.root / PROGRESS).read_text() == "a\nfolder/b\n"
    assert json.loads((output.root / REJECTED).read_text()) == rejection.record()


def test_a_sample_with_columns_missing_is_never_listed(output: NpyOutput, state: State) -> None:
    stage, publisher = Stage(output.work / "stage"), Publisher(output, state, 0.0)
    half = Features({"codes": np.zeros(4, np.int32)}, 0.1)
    with pytest.raises(StoreError, match="'a' was published with columns missing"):
        publisher.publish(stage.write([(row("a"), half)]), [])
    publisher.close()
    stage.close()
    assert ids_in(output, TRAIN) == []
    assert (output.root / PROGRESS).read_bytes() == b""


@pytest.mark.parametrize(
    ("column", "lost"),
    [("text_ids", "text"), ("codes", "codes"), ("condition", "latents"), ("emo_vec", "latents")],
)
@pytest.mark.parametrize("damage", ["gone", "cut", "longer", "a folder"])
def test_artifacts_that_are_not_whole_are_noticed(
    output: NpyOutput, state: State, column: str, lost: str, damage: str
) -> None:
    publish(output, state, row("a"))
    path = output.root / column / "a.npy"
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes(content[:-1] if damage == "cut" else content + b"x")
    sample = state.sample("a")
    assert sample is not None
    assert output.incomplete("a", sample) == {lost}


def test_sizes_of_arrays_are_those_of_numpy() -> None:
    for dtype, shape in (("int32", (0,)), ("int32", (12345,)), ("float32", (32, 1280)), ("float32", (1280,))):
        assert npy_size(dtype, shape) == len(npy_bytes(np.zeros(shape, dtype)))
    assert npy_size("float32", (10**13, 4)) == 128 + 16 * 10**13  # as a damaged state may claim: no such array is made


def test_the_split_goes_by_the_sha1_of_the_id() -> None:
    share = int(hashlib.sha1(b"LJ001-0001").hexdigest(), 16) % 1_000_000 / 1_000_000
    assert is_validation("LJ001-0001", share + 1e-9)
    assert not is_validation("LJ001-0001", share)
    assert not is_validation("LJ001-0001", 0.0)
    assert is_validation("LJ001-0001", 1.0)


def test_leftovers_of_a_killed_run_go(output: NpyOutput) -> None:
    for name in (f"{TRAIN}.tmp", f"{TRAIN}.staying", f"{VAL}.tmp", "stats.json.tmp", f"{PROGRESS}.tmp"):
        (output.root / name).write_bytes(b"half a li")
    (output.work / "stage").mkdir()
    (output.work / "stage" / "0-codes").write_bytes(b"half")
    (output.root / "mine.tmp").write_bytes(b"not ours")
    output.reset_work()
    assert sorted(path.name for path in output.root.iterdir()) == [".hfprep", "mine.tmp"]
    assert list(output.work.iterdir()) == []


class Interrupted(BaseException):
    """Stands for a kill."""


RATIOS = (0.2, 0.7, 0.4, 0.4, 1.0, 0.0)


@pytest.mark.parametrize("nth", range(1, 9))
def test_no_interrupted_change_of_ratio_ever_puts_an_id_in_both(output: NpyOutput, state: State, nth: int) -> None:
    """Several changes, each broken off after its nth rename: a listing is made of old and new files, never of both."""
    rows = [row(f"id-{number}", line=number) for number in range(60)]
    publish(output, state, *rows)

    def relist(ratio: float) -> None:
        with Listing(output, state, ratio) as listing:
            for item, sample in zip(rows, state.samples(item.utterance.id for item in rows), strict=True):
                assert sample is not None
                listing.add(entry_of(output.schema, item.utterance, sample))

    relist(0.5)
    for ratio in RATIOS:
        renames = 0

        def observe(point: str, _: str) -> None:
            nonlocal renames
            renames += point == "after-rename"
            if renames == nth:
                raise Interrupted

        atomic.set_observer(observe)
        try:
            relist(ratio)
        except Interrupted:
            pass
        finally:
            atomic.set_observer(None)
        train, val = set(ids_in(output, TRAIN)), set(ids_in(output, VAL))
        assert not train & val, (ratio, nth)
    relist(0.5)
    train, val = set(ids_in(output, TRAIN)), set(ids_in(output, VAL))
    assert (len(train) + len(val), train & val) == (60, set())
    assert val == {item.utterance.id for item in rows if is_validation(item.utterance.id, 0.5)}
    assert (output.root / PROGRESS).read_text().split() == [item.utterance.id for item in rows]


def listed_again(output: NpyOutput, state: State, rows: list[PlannedRow], new: set[str]) -> Listing:
    """List some rows, publish the others, and list all of them again without the state of those that were listed."""
    known = list(zip(rows, state.samples(item.utterance.id for item in rows), strict=True))
    with Listing(output, state, 0.5) as first:
        for item, sample in known:
            if sample is not None:
                first.add(entry_of(SCHEMA, item.utterance, sample))
    publish(output, state, *(item for item in reversed(rows) if item.utterance.id in new))
    with Listing(output, state, 0.5, repeated=first.listed) as again:
        for item in rows:
            if item.utterance.id in new:
                sample = state.sample(item.utterance.id)
                assert sample is not None
                again.add(entry_of(SCHEMA, item.utterance, sample))
            else:
                again.keep([item.utterance.id])
    return again


def test_samples_are_listed_again_between_new_ones(output: NpyOutput, state: State) -> None:
    rows = [row(f"id-{number}", line=number) for number in range(40)]
    new = {f"id-{number}" for number in (0, 1, 13, 20, 39)}
    publish(output, state, *(item for item in rows if item.utterance.id not in new))
    again = listed_again(output, state, rows, new)
    names = (TRAIN, VAL, PROGRESS)
    found = [(output.root / name).read_bytes() for name in names]
    with Listing(output, state, 0.5) as whole:
        for item, sample in zip(rows, state.samples(item.utterance.id for item in rows), strict=True):
            assert sample is not None
            whole.add(entry_of(SCHEMA, item.utterance, sample))
    assert [(output.root / name).read_bytes() for name in names] == found
    assert (again.listed, again.listed.train + again.listed.val) == (whole.listed, 40)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data.replace(b': "id-', b': "it-', 1)])
def test_a_manifest_that_was_changed_meanwhile_is_not_listed_again(
    output: NpyOutput, state: State, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    rows = [row(f"id-{number}", line=number) for number in range(9)]
    publish(output, state, *rows)
    train = output.root / TRAIN
    close = Publisher.close

    def changed(publisher: Publisher) -> None:
        close(publisher)
        train.write_bytes(damage(train.read_bytes()))

    monkeypatch.setattr(Publisher, "close", changed)
    with pytest.raises(StoreError, match="changed by another program"):
        listed_again(output, state, rows, set())
