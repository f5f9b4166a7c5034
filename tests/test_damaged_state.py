"""A state with values that no build wrote: they count as absent, nothing crashes, and nothing wrong is listed."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import hfprep
from hfprep.errors import HfprepError
from hfprep.tools.verify.checking import VerifyOptions, verify
from tests.engines import one_worker_inline

CLIPS = 3
OF_CELLS = ["NULL", "'text'", "''", "-1", "1.5", "9e999", "1000000000000000000", "x'ff00'", "'{}'", "'[[1]]'", "'null'"]
OF_VALUES = ["{", "{}", "[]", "5", "-1", "true", '"x"', "[null]", '[{"a": 1}]', '{"a": {"b": 1}}', "1e400"]
COLUMNS = {
    "samples": ("id", "finished", "seconds", "source"),
    "shard_files": ("serial", "split", "number", "name", "samples", "used", "num_bytes", "sha256", "layout"),
    "places": ("id", "shard", "row", "start", "size", "entry", "stale"),
}
REFUSED = ("written by another version", "has the unknown format", "which is not a shard of this output")


def damages(state: Path) -> list[str]:
    """SQL statements, each of which damages one value of the database."""
    with closing(sqlite3.connect(state)) as database:
        keys = [key for (key,) in database.execute("SELECT key FROM meta")]
        filled = [table for table in COLUMNS if database.execute(f"SELECT 1 FROM {table}").fetchone()]
    found = [f"UPDATE meta SET value = '{value}' WHERE key = '{key}'" for key in keys for value in OF_VALUES]
    for table in filled:
        key = COLUMNS[table][0]
        found += [
            f"UPDATE OR IGNORE {table} SET {column} = {value} WHERE {key} = (SELECT min({key}) FROM {table})"
            for column in COLUMNS[table]
            for value in OF_CELLS
        ]
    return found


def listed(output: Path) -> dict[str, bytes]:
    names = ("train_manifest.jsonl", "val_manifest.jsonl", ".preprocessing_progress.txt")
    return {name: (output / name).read_bytes() for name in names if (output / name).exists()}


@pytest.mark.parametrize(
    "every", [pytest.param(34, id="every thirty-fourth"), pytest.param(1, id="all", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", ["npy", "arrow", "webdataset"])
def test_damaged_values_cost_no_more_than_their_samples(
    kind: str, every: int, tmp_path: Path, golden_small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_worker_inline(monkeypatch.setitem)

    def build(output: Path) -> hfprep.Summary:
        config = hfprep.BuildConfig(
            manifest=golden_small / "manifest.jsonl", models=golden_small / "checkpoints", output_dir=output,
            workers=1, max_samples=CLIPS, val_ratio=0.4, format=kind,
        )  # fmt: skip
        return hfprep.build(config)

    build(tmp_path / "whole")
    expected, tried = listed(tmp_path / "whole"), 0
    for statement in damages(tmp_path / "whole" / ".hfprep" / "state.sqlite")[::every]:
        output = tmp_path / "output"
        shutil.copytree(tmp_path / "whole", output)
        try:
            with closing(sqlite3.connect(output / ".hfprep" / "state.sqlite", isolation_level=None)) as database:
                database.execute(statement)
        except sqlite3.IntegrityError:  # not even SQLite takes this value
            shutil.rmtree(output)
            continue
        tried += 1
        verify(VerifyOptions(output_dir=output))
        refusal = ""
        try:
            summary = build(output)
        except HfprepError as error:
            refusal = str(error)
        if refusal:
            assert any(words in refusal for words in REFUSED), (statement, refusal)
        else:
            assert (summary.accepted, summary.pending) == (CLIPS, 0), statement
            assert listed(output) == expected, statement
        shutil.rmtree(output)
    assert tried > 100 / every
