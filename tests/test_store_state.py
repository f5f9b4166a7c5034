"""The database of what is finished: what it claims, what it forgets, and what becomes of a damaged one."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from hfprep.errors import Reason, StoreError
from hfprep.schema import Rejection
from hfprep.store.state import STATE_VERSION, Finished, State, read_value
from hfprep.store.values import parse_paths, ratio, whole_number
from tests.sample_schemas import speech_schema

SCHEMA = speech_schema(4)
PRINTS = {"text": "t" * 32, "codes": "c" * 32, "latents": "l" * 32}
GROUPS = {
    "text": Finished(PRINTS["text"], {"text_len": 5}),
    "codes": Finished(PRINTS["codes"], {"code_len": 50}),
    "latents": Finished(PRINTS["latents"], {"condition_len": 32}),
}
ALL = frozenset(GROUPS)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state.sqlite", SCHEMA)


def finish(state: State, sample_id: str) -> None:
    state.finish(sample_id, GROUPS, seconds=1.0, source="{}")


def test_a_finished_sample_is_known_with_its_lengths(state: State) -> None:
    finish(state, "a")
    sample = state.sample("a")
    assert sample is not None
    assert sample.lengths == {"text_len": 5, "code_len": 50, "condition_len": 32}
    assert (sample.finished, sample.missing(PRINTS)) == (ALL, frozenset())
    assert sample.missing(PRINTS | {"text": "x" * 32, "latents": "y" * 32}) == {"text", "latents"}
    assert (sample.seconds, sample.source, sample.fingerprints) == (1.0, "{}", PRINTS)


def test_what_is_begun_does_not_count_until_it_is_finished(state: State) -> None:
    finish(state, "a")
    state.begin([("a", {"codes"}), ("b", ALL)])
    known, new = state.samples(["a", "b"])
    assert known is not None
    assert new is not None
    assert (known.finished, new.finished) == (frozenset({"text", "latents"}), frozenset())
    assert known.missing(PRINTS) == {"codes"}
    state.finish("a", {"codes": Finished(PRINTS["codes"], {"code_len": 7})})
    again = state.sample("a")
    assert again is not None
    assert again.lengths == {"text_len": 5, "code_len": 7, "condition_len": 32}
    assert (again.finished, again.seconds, again.source) == (ALL, 1.0, "{}")


def test_samples_come_in_the_order_asked_for(state: State) -> None:
    ids = [f"speaker/{number}" for number in range(1500)]  # more than one block of a query
    with state.transaction():
        for sample_id in ids[::3]:
            finish(state, sample_id)
    found = list(state.samples(reversed(ids)))
    assert [sample is not None for sample in found] == [number % 3 == 0 for number in reversed(range(1500))]
    assert state.sample('odd "quotes" and ሰላም') is None


def test_a_transaction_is_kept_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    state = State(tmp_path / "state.sqlite", SCHEMA)

    def half() -> None:
        with state.transaction():
            finish(state, "a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert state.is_empty()
    with state.transaction():
        finish(state, "b")
    state.close()
    assert State(tmp_path / "state.sqlite", SCHEMA).sample("b") is not None


def test_rejections_and_ids_seen_are_of_this_run_alone(tmp_path: Path) -> None:
    first = State(tmp_path / "state.sqlite", SCHEMA, tmp_path / "scan-1.sqlite")
    assert first.first_lines([("a", 1), ("b", 2)]) == [1, 2]
    assert first.first_lines([("c", 3), ("a", 4), ("d", 5), ("d", 6)]) == [3, 1, 5, 5]
    first.reject(Rejection(9, "a", Reason.DUPLICATE_ID, "again"))
    first.reject(Rejection(2, None, Reason.INVALID_JSON, "what"))
    first.reject(Rejection(2, "x", Reason.INVALID_JSON, "said better"))
    assert [(item.line, item.id) for item in first.rejections()] == [(2, "x"), (9, "a")]
    assert first.rejection_counts() == {"duplicate_id": 1, "invalid_json": 1}
    first.close()
    second = State(tmp_path / "state.sqlite", SCHEMA, tmp_path / "scan-2.sqlite")
    assert list(second.rejections()) == []
    assert second.first_lines([("a", 9)]) == [9]


def test_values_are_kept_as_json(state: State) -> None:
    assert state.get("settings") is None
    state.put("settings", {"text": {"tokenizer": "ß"}})
    assert state.get("settings") == {"text": {"tokenizer": "ß"}}


@pytest.mark.parametrize("content", [b"no database at all " * 300, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_database_is_set_aside(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.sqlite"
    path.write_bytes(content)
    state = State(path, SCHEMA)
    assert state.is_empty()
    assert (tmp_path / "state.sqlite.damaged").read_bytes() == content
    assert "no sample counts as finished" in caplog.text


def test_damage_found_later_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    state = State(path, SCHEMA)
    with state.transaction():
        for number in range(3000):
            finish(state, f"sample-{number:05d}")
    state.close()
    content = bytearray(path.read_bytes())
    content[8192 : len(content) - 8192] = b"\xaa" * (len(content) - 16384)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="move it away and run the same command again"):
        list(State(path, SCHEMA).samples(f"sample-{number:05d}" for number in range(3000)))


def test_another_version_is_refused(tmp_path: Path) -> None:
    State(tmp_path / "state.sqlite", SCHEMA).close()
    with sqlite3.connect(tmp_path / "state.sqlite") as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'version'", (str(STATE_VERSION + 1),))
    with pytest.raises(StoreError, match=f"format {STATE_VERSION + 1}"):
        State(tmp_path / "state.sqlite", SCHEMA)


def test_a_state_of_the_first_version_is_brought_into_the_present_form(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with sqlite3.connect(path) as db:
        db.executescript("""
            CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
            CREATE TABLE samples (
                id TEXT PRIMARY KEY, text BLOB, codes BLOB, latents BLOB, text_len INTEGER, code_len INTEGER,
                condition_len INTEGER, model_dim INTEGER, seconds REAL, source TEXT
            ) WITHOUT ROWID;
            INSERT INTO meta VALUES ('version', '1');
            INSERT INTO samples VALUES
                ('whole', x'0A', x'0b', x'0c', 5, 50, 32, 40, 1.0, '{}'),
                ('begun', x'0a', NULL, NULL, 5, 50, 32, 40, NULL, NULL),
                ('nothing', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
        """)
    db.close()
    state = State(path, SCHEMA)
    whole, begun, nothing = state.samples(["whole", "begun", "nothing"])
    state.close()
    assert whole is not None
    assert begun is not None
    assert nothing is not None
    assert whole.groups == {
        "text": ("0a", {"text_len": 5}), "codes": ("0b", {"code_len": 50}), "latents": ("0c", {"condition_len": 32}),
    }  # fmt: skip
    assert (whole.seconds, whole.source) == (1.0, "{}")
    assert begun.groups == {"text": ("0a", {"text_len": 5})}
    assert nothing.groups == {}
    again = State(path, SCHEMA)
    assert again.get("version") == STATE_VERSION
    assert again.sample("whole") == whole


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE samples SET finished = '{' WHERE id = 'a'",
        "UPDATE samples SET finished = 'null' WHERE id = 'a'",
        "UPDATE samples SET finished = x'ff00' WHERE id = 'a'",
        "UPDATE samples SET finished = CAST(x'ff00' AS TEXT) WHERE id = 'a'",
        """UPDATE samples SET finished = '{"text": 5}' WHERE id = 'a'""",
        """UPDATE samples SET finished = '{"text": [7, {"text_len": 5}]}' WHERE id = 'a'""",
        """UPDATE samples SET finished = '{"text": ["t", {"text_len": "five"}]}' WHERE id = 'a'""",
        """UPDATE samples SET finished = '{"text": ["t", {}]}' WHERE id = 'a'""",
        """UPDATE samples SET finished = '{"text": ["t", {"code_len": 5}]}' WHERE id = 'a'""",
        """UPDATE samples SET finished = '{"text": ["t", {"text_len": 5, "code_len": 5}]}' WHERE id = 'a'""",
        """UPDATE samples SET finished = '{"text": ["t", {"text_len": -1}]}' WHERE id = 'a'""",
        """UPDATE samples SET finished = '{"text": ["t", {"text_len": 9999999999}]}' WHERE id = 'a'""",
        "UPDATE samples SET seconds = 9e999 WHERE id = 'a'",
        "UPDATE samples SET seconds = -1 WHERE id = 'a'",
        "UPDATE samples SET seconds = 1e300 WHERE id = 'a'",
        "UPDATE samples SET seconds = 'long' WHERE id = 'a'",
        "UPDATE samples SET source = x'ff' WHERE id = 'a'",
        "UPDATE samples SET source = 'somewhere' WHERE id = 'a'",
    ],
)
def test_a_damaged_value_costs_its_sample(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.sqlite"
    state = State(path, SCHEMA)
    for sample_id in ("a", "b"):
        finish(state, sample_id)
    state.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(damage)
    for _ in range(2):
        again = State(path, SCHEMA)
        known = list(again.samples(["a", "b"]))
        assert known[0] is None
        assert known[1] is not None
        again.close()
    assert caplog.text.count("is damaged") == 1


@pytest.mark.parametrize("value", ["{", "x'ff00'", "CAST(x'ff' AS TEXT)", "5" * 5000, "[" * 5000])
@pytest.mark.parametrize("key", ["version", "settings"])
def test_a_damaged_setting_counts_as_absent(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "state.sqlite"
    state = State(path, SCHEMA)
    finish(state, "a")
    state.put("settings", {"text": {}})
    state.close()
    quoted = value if value.startswith(("x'", "CAST")) else f"'{value}'"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"UPDATE meta SET value = {quoted} WHERE key = '{key}'")
    again = State(path, SCHEMA)
    assert again.get(key) in (None, STATE_VERSION)
    assert again.sample("a") is not None
    again.put(key, STATE_VERSION)
    again.close()
    assert State(path, SCHEMA).get(key) == STATE_VERSION


def test_groups_of_another_version_are_left_out(state: State) -> None:
    """Their lengths are not those of a column."""
    state.finish("a", GROUPS | {"later": Finished("f", {"code_len": 7})})
    sample = state.sample("a")
    assert sample is not None
    assert (sample.finished, sample.lengths["code_len"]) == (ALL, 50)


@pytest.mark.parametrize("source", [None, "{]}", '{"a": }', "{1}"])
def test_a_damaged_source_is_unknown(state: State, source: str | None) -> None:
    state.finish("a", GROUPS, source=source)
    sample = state.sample("a")
    assert sample is not None
    assert sample.computed_from == {}


@pytest.mark.parametrize(
    ("parse", "fits", "damaged"),
    [
        (whole_number, 7, [True, 1.5, "7", None, [7], {}]),
        (ratio, 0.25, [-0.1, 1.1, float("inf"), float("nan"), "x", None, [0.5], {}]),
        (parse_paths, {"models": "/m", "tokenizer": None}, [7, True, "x", ["x"], {"manifest": 7}, {"models": ["/m"]}]),
    ],
)
def test_a_value_of_another_kind_counts_as_absent(
    state: State, parse: Any, fits: Any, damaged: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    state.put("key", fits)
    assert state.get("key", parse) == fits == read_value(state.path, "key", parse)
    for value in damaged:
        state.put("key", value)
        assert state.get("key", parse) is None, value
        assert "'key' is damaged" in caplog.text
        caplog.clear()
