"""Features that a build keeps in shards: appended batch by batch, killed anywhere, changed in every way.

The builds here have no models: numbers are made from a sample's text and audio. What the output says must be the same
after any history, and no row in it is dead.
"""

import contextlib
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from hfprep.errors import StoreError
from hfprep.formats.arrow import ArrowRows
from hfprep.formats.feature_stores import open_store
from hfprep.formats.formats import open_set
from hfprep.formats.positioned import PositionedFile
from hfprep.formats.samples import SPLITS, Origin
from hfprep.formats.webdataset import scan
from hfprep.io import atomic
from hfprep.schema import Features, Utterance
from hfprep.store.fingerprints import AudioIdentity
from hfprep.store.layout import TRAIN, VAL, NpyOutput, PlannedRow, is_validation
from hfprep.store.state import State
from tests.test_formats_schema import MADE_UP

FORMATS = ("arrow", "webdataset")
SHARD_BYTES = {"arrow": 14_000, "webdataset": 30_000}


@dataclass
class Row:
    """A manifest row: from `text` follow the words, from `sound` the frames and the voice."""

    id: str
    text: str
    sound: str
    speaker: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def planned(self, line: int, state: State, tokenizer: str) -> PlannedRow:
        fingerprints = {"words": digest(tokenizer, self.text), "sound": digest(self.sound)}
        known = state.sample(self.id)
        need = frozenset(fingerprints) if known is None else known.missing(fingerprints)
        utterance = Utterance(
            line, self.id, self.text, f"{self.sound}.wav", "", self.speaker, extra=json.dumps(self.extra)
        )
        return PlannedRow(utterance, fingerprints, AudioIdentity(1, 2), need)

    def arrays(self, tokenizer: str) -> dict[str, np.ndarray]:
        words = np.random.default_rng(int(digest(tokenizer, self.text), 16))
        sound = np.random.default_rng(int(digest(self.sound), 16))
        return {
            "words": words.integers(0, 100, 1 + len(self.text) % 9, dtype=np.int32),
            "frames": sound.integers(0, 16, (4, 50 + len(self.sound)), dtype=np.int32),
            "voice": sound.standard_normal((3, 5)).astype(np.float32),
        }

    def computed(self, need: frozenset[str], tokenizer: str) -> Features:
        arrays = {column.name: self.arrays(tokenizer)[column.name] for column in MADE_UP.columns_of(need)}
        return Features(arrays, 1.5 if "sound" in need else None)


def digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


class FakePlan:
    """A plan's rows as `kept` sees them."""

    def __init__(self, path: Path, rows: list[PlannedRow]) -> None:
        self.path = path
        self.rows = rows
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(repr(rows))
        self.table = pa.table({"extra": [row.utterance.extra for row in rows] or ["{}"]})

    def chunks(self) -> Iterator[list[PlannedRow]]:
        for start in range(0, len(self.rows), 5):
            yield self.rows[start : start + 5]


@dataclass
class Output:
    """An output directory that is built again and again. `rejected` are ids that cannot be computed."""

    root: Path
    format: str
    computed: list[tuple[str, frozenset[str]]] = field(default_factory=list)

    def build(
        self,
        rows: Sequence[Row],
        *,
        val_ratio: float = 0.3,
        tokenizer: str = "one",
        batch: int = 3,
        stop_after: int | None = None,
        rejected: Sequence[str] = (),
        formats: str | None = None,
        shard_bytes: int | None = None,
    ) -> bool:
        """As a build does it; whether it came to its end."""
        output = NpyOutput(self.root, MADE_UP)
        output.reset_work()
        state = State(output.state_file, output.schema)
        size = shard_bytes or SHARD_BYTES[self.format]
        kept = open_store(output, state, (formats or self.format).split(","), size)
        try:
            planned = [row.planned(line, state, tokenizer) for line, row in enumerate(rows, start=1)]
            plan = FakePlan(output.work / "rows.arrow", planned)
            kept.begin(plan, val_ratio)
            stage = kept.staging.open(output.work)
            publisher: Any = kept.publisher()
            with contextlib.closing(publisher), contextlib.closing(stage):
                pending = [(row, item) for row, item in zip(rows, planned, strict=True) if item.need]
                random.Random(len(pending)).shuffle(pending)
                for start in range(0, len(pending), batch):
                    if stop_after is not None and start >= stop_after:
                        return False
                    done = [(row, item) for row, item in pending[start : start + batch] if row.id not in rejected]
                    self.computed += [(row.id, item.need) for row, item in done]
                    publisher.publish(
                        stage.write([(item, row.computed(item.need, tokenizer)) for row, item in done]), []
                    )
            if not kept.finish(plan, lambda: False):
                return False
            kept.publish(Origin({"sha256": {}}, {"words": {"tokenizer": tokenizer}}))
            return True
        finally:
            kept.close()
            state.close()

    def check(
        self, rows: Sequence[Row], *, val_ratio: float = 0.3, tokenizer: str = "one", rejected: Sequence[str] = ()
    ) -> None:
        """The set has exactly these samples, in source order, each once on the disk."""
        found = open_set(self.root)
        assert found.format == self.format
        assert found.schema == MADE_UP
        for split in SPLITS:
            expected = [
                row
                for row in rows
                if is_validation(row.id, val_ratio) == (split == "validation") and row.id not in rejected
            ]
            samples = list(found.split(split).samples())
            assert [sample.entry.id for sample in samples] == [row.id for row in expected]
            for sample, row in zip(samples, expected, strict=True):
                record = sample.entry.record
                assert (record["text"], record["speaker"]) == (row.text, row.speaker)
                assert json.loads(sample.entry.extra) == row.extra
                for name, array in row.arrays(tokenizer).items():
                    np.testing.assert_array_equal(sample.arrays[name], array)
            assert found.split(split).lengths("code_len").tolist() == [50 + len(row.sound) for row in expected]
        ids = sorted(row.id for row in rows if row.id not in rejected)
        assert sorted(ids_on_disk(self.root / self.format)) == ids  # each once: no row is dead
        assert not [path for path in self.root.rglob("*") if path.name.endswith((".open", ".tmp"))]
        if self.format == "arrow":
            loaded = datasets.load_from_disk(str(self.root / "arrow"))
            assert sorted(name for split in loaded.values() for name in split["id"]) == ids
            order = np.load(self.root / "arrow" / "places.npy")[: len(loaded["train"]), 0]
            in_order = [entry.id for entry in found.split("train").entries()]
            assert loaded["train"].select(order)["id"] == in_order  # as docs/formats.md says
            assert all(
                str(path["filename"]).startswith(str(self.root)) for s in loaded.values() for path in s.cache_files
            )


def shards_of(output: Output) -> list[Path]:
    """The closed shards of the set."""
    folder = output.root / output.format
    return sorted(path for path in folder.rglob("*") if path.suffix in (".arrow", ".tar"))


def ids_on_disk(folder: Path) -> list[str]:
    """Ids of all rows in all shards, whether anything lists them or not."""
    found = []
    for path in folder.rglob("*.arrow"):
        found += [name for batch in ArrowRows(path.parent, [path.name]).batches() for name in batch["id"].to_pylist()]
    for path in folder.rglob("*.tar"):
        file = PositionedFile(path)
        for start, _ in scan(file):
            size = int(file.read(start + 124, 11), 8)
            found.append(json.loads(file.read(start + 512, size))["id"])
    return found


def rows_of(count: int, **fields: Any) -> list[Row]:
    return [Row(f"some/{number}" if number % 5 == 0 else f"id-{number}", f"text {number}" * (number % 3 + 1),
                f"sound-{number}", **fields) for number in range(count)]  # fmt: skip


@pytest.fixture(params=FORMATS)
def output(tmp_path: Path, request: pytest.FixtureRequest) -> Output:
    return Output(tmp_path / "out", request.param)


@pytest.fixture(autouse=True)
def no_observer() -> Iterator[None]:
    yield
    atomic.set_observer(None)


def test_a_quiet_build_says_what_was_computed(output: Output) -> None:
    rows = rows_of(20)
    rows[3].extra = {"take": 3}
    rows[7].extra = {"take": "four", "other": [1]}
    assert output.build(rows)
    output.check(rows)
    assert len(list((output.root / output.format).rglob("*.*"))) > 6
    assert len(output.computed) == 20
    before = {path: path.stat().st_mtime_ns for path in shards_of(output)}
    assert len(before) > 4
    assert output.build(rows)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(output.computed) == 20
    output.check(rows)


def test_no_npy_file_is_ever_written(output: Output) -> None:
    seen = set()
    atomic.set_observer(lambda _, path: seen.add(Path(path).suffix))
    output.build(rows_of(8))
    assert seen & {".open", ".tar", ".arrow"}
    assert not list(output.root.rglob("*.npy")) or [p.name for p in output.root.rglob("*.npy")] == ["places.npy"]


Edit = Callable[[list[Row], dict[str, Any]], Any]
EDITS: dict[str, tuple[int, Edit]] = {
    "append": (3, lambda rows, _: rows.extend(rows_of(23)[20:])),
    "text": (1, lambda rows, _: setattr(rows[6], "text", "another")),
    "sound": (1, lambda rows, _: setattr(rows[4], "sound", "other")),
    "speaker": (0, lambda rows, _: setattr(rows[1], "speaker", "somebody")),
    "remove": (0, lambda rows, _: rows.__delitem__(slice(2, 5))),
    "reverse": (0, lambda rows, _: rows.reverse()),
    "val_ratio": (0, lambda _, options: options.update(val_ratio=0.8)),
    "new field": (0, lambda rows, _: setattr(rows[9], "extra", {"score": 1.5})),
    "field of another type": (0, lambda rows, _: setattr(rows[8], "extra", {"score": "high"})),
    "tokenizer": (20, lambda _, options: options.update(tokenizer="two")),
    "first row": (1, lambda rows, _: rows.insert(0, Row("new", "new", "new"))),
}


@pytest.mark.parametrize("name", EDITS)
def test_whatever_changes_the_set_is_that_of_a_quiet_build(output: Output, name: str) -> None:
    rows, options = rows_of(20), dict[str, Any]()
    output.build(rows)
    output.computed.clear()
    count, edit = EDITS[name]
    edit(rows, options)
    assert output.build(rows, **options)
    assert len(output.computed) == count
    output.check(rows, **options)


def test_one_change_after_another(output: Output) -> None:
    rows, options = rows_of(20), dict[str, Any]()
    output.build(rows)
    for name, (_, edit) in EDITS.items():
        if name != "tokenizer":
            edit(rows, options)
            output.build(rows, **options)
            output.check(rows, val_ratio=options.get("val_ratio", 0.3))


def test_another_tokenizer_computes_text_alone(output: Output) -> None:
    rows = rows_of(9)
    output.build(rows)
    output.computed.clear()
    output.build(rows, tokenizer="two")
    assert {need for _, need in output.computed} == {frozenset({"words"})}
    output.check(rows, tokenizer="two")


def test_a_changed_row_leaves_other_shards_alone(output: Output) -> None:
    rows = rows_of(40)
    output.build(rows)
    shards = {path: path.stat().st_ino for path in shards_of(output)}
    rows[10].text = "another"
    output.build(rows)
    output.check(rows)
    same = [path for path, inode in shards.items() if path.exists() and path.stat().st_ino == inode]
    assert len(same) >= len(shards) - 3


def test_rows_that_are_left_out_for_a_while_are_not_computed_again(output: Output) -> None:
    rows = rows_of(20)
    output.build(rows)
    output.computed.clear()
    output.build(rows[:3])
    output.check(rows[:3])
    output.build(rows[5:], val_ratio=0.5)
    output.check(rows[5:], val_ratio=0.5)
    output.build(rows)
    output.check(rows)
    assert output.computed == []
    assert not (output.root / ".hfprep" / "shards").exists()


def test_a_row_that_cannot_be_computed_any_more_is_not_listed(output: Output) -> None:
    rows = rows_of(9)
    output.build(rows)
    rows[2].sound = "broken"
    output.build(rows, rejected=[rows[2].id])
    output.check(rows, rejected=[rows[2].id])


def test_stopped_and_continued(output: Output) -> None:
    rows = rows_of(20)
    for stop_after in (6, 3, 9):
        assert not output.build(rows, stop_after=stop_after)
        with pytest.raises(StoreError, match="contains no finished sample set"):
            open_set(output.root)
    assert output.build(rows)
    assert len(output.computed) == 20
    output.check(rows)


class Killed(BaseException):
    """Stands for a kill: nothing in the program catches it."""


@pytest.mark.parametrize("every", ["kind", pytest.param("place", marks=pytest.mark.slow)])
def test_killed_at_every_point(output: Output, every: str) -> None:
    """At points of a build and of one with changes: a kill costs the batch in flight, and no more.

    The quick set has each kind of point and file once, now in the one build and now in the other, the slow set all.
    """
    rows, changed = rows_of(9), rows_of(12)
    changed[1].text = "another"
    changed[4].speaker = "somebody"
    del changed[6]
    points: list[str] = []

    def history(stop: int) -> bool:
        """Whether a kill struck."""

        def kill(point: str, path: str) -> None:
            points.append(f"{point} {re.sub('[0-9]+', '0', Path(path).name)}")
            if len(points) == stop:
                raise Killed

        folder = output.root.with_name(f"out-{stop}")
        trial = Output(folder, output.format)
        points.clear()
        atomic.set_observer(kill)
        struck = False
        for build in (rows, changed):
            try:
                trial.build(build, batch=2, val_ratio=0.3 if build is rows else 0.5)
            except Killed:
                struck = True
                atomic.set_observer(None)
                trial.build(build, batch=2, val_ratio=0.3 if build is rows else 0.5)
        atomic.set_observer(None)
        trial.check(changed, val_ratio=0.5)
        assert len(trial.computed) <= 9 + 5 + (2 if struck else 0)
        return struck

    assert not history(0)
    assert len(points) > 150
    places: dict[str, list[int]] = {}
    for number, point in enumerate(points, 1):
        places.setdefault(point, []).append(number)
    some = [numbers[kind % len(numbers)] for kind, numbers in enumerate(places.values())]
    for stop in some if every == "kind" else range(1, len(points)):
        assert history(stop), stop


def test_killed_before_anything_is_known(output: Output) -> None:
    """Twice in a row, before the first batch: the folder that is there by then is still the output's own."""
    rows = rows_of(4)
    for stop in range(1, 14):
        left = stop

        def kill(point: str, path: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        for number in (stop, stop + 3, 5):
            left = number
            atomic.set_observer(kill)
            with contextlib.suppress(Killed):
                output.build(rows)
    atomic.set_observer(None)
    output.build(rows)
    output.check(rows)


@pytest.mark.slow
def test_killed_again_and_again_at_random_points(output: Output) -> None:
    draw = random.Random(5)
    rows, options, counted = rows_of(20), dict[str, Any](), 0
    edits = [edit for name, (_, edit) in EDITS.items() if name != "tokenizer"]
    for edit in edits * 2:
        with contextlib.suppress(IndexError):
            edit(rows, options)
        rows[:] = {row.id: row for row in rows}.values()
        for _ in range(6):
            left = draw.randrange(1, 120)

            def kill(point: str, path: str) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Killed

            atomic.set_observer(kill)
            try:
                output.build(rows, batch=draw.choice([1, 2, 5]), **options)
            except Killed:
                counted += 1
        atomic.set_observer(None)
        output.build(rows, **options)
        output.check(rows, val_ratio=options.get("val_ratio", 0.3))
    assert counted > 15


def test_a_torn_tail_is_cut_off(output: Output) -> None:
    rows = rows_of(12)
    output.build(rows, stop_after=6)
    for path in output.root.rglob("*.open"):
        with open(path, "ab") as stream:
            stream.write(b"half of a block")
    output.build(rows)
    output.check(rows)
    assert len(output.computed) == 12


def test_a_shard_that_is_gone_costs_its_samples_alone(output: Output) -> None:
    rows = rows_of(20)
    output.build(rows)
    output.computed.clear()
    shards = shards_of(output)
    lost = set(ids_on_disk(output.root / output.format))
    shards[0].unlink()
    lost -= set(ids_on_disk(output.root / output.format))
    shards[1].write_bytes(shards[1].read_bytes()[:-3000])
    output.build(rows)
    assert lost < {sample_id for sample_id, _ in output.computed}
    assert len(output.computed) < 12
    output.check(rows)


def test_the_npy_layout_and_back(output: Output) -> None:
    rows = rows_of(12)
    output.build(rows)
    output.computed.clear()
    npy = Output(output.root, output.format)
    assert npy.build(rows, formats="npy")
    assert npy.computed == []
    for name in (TRAIN, VAL):
        (output.root / name).unlink()
    assert len(list(output.root.rglob("*.npy"))) >= 36
    assert output.build(rows, val_ratio=0.4)
    output.check(rows, val_ratio=0.4)
    assert output.computed == []
    assert not [path for path in output.root.rglob("*.npy") if path.name != "places.npy"]


def test_what_an_earlier_build_asked_for_stays(output: Output, caplog: pytest.LogCaptureFixture) -> None:
    rows = rows_of(4)
    output.build(rows)
    other = next(name for name in FORMATS if name != output.format)
    output.build(rows, formats=other)
    assert f"keeps its features as {output.format}" in caplog.text
    output.check(rows)


def test_something_else_in_its_place_is_left_alone(output: Output) -> None:
    (output.root / output.format).mkdir(parents=True)
    (output.root / output.format / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not a set that hfprep wrote"):
        output.build(rows_of(2))
    assert (output.root / output.format / "thesis.txt").read_text() == "mine"


def test_the_disk_never_holds_much_more_than_the_features(output: Output) -> None:
    """While every row changes sides, shards go one by one."""
    rows = rows_of(60)
    output.build(rows)
    size = sum(path.stat().st_size for path in shards_of(output))
    most = 0

    def measure(point: str, path: str) -> None:
        nonlocal most
        if point == "after-append":
            folder = output.root / output.format
            found = [item.stat().st_size for item in folder.rglob("*") if item.suffix in (".arrow", ".tar", ".open")]
            most = max(most, sum(found))

    atomic.set_observer(measure)
    output.build(rows, val_ratio=1.0)
    atomic.set_observer(None)
    output.check(rows, val_ratio=1.0)
    assert most < size + 4 * SHARD_BYTES[output.format]
