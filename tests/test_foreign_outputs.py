"""Outputs that others made: what they say of files leads nowhere else, and no host is reached for them."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import hfprep
from hfprep.errors import ConfigError, StoreError
from hfprep.formats.arrow_writer import ArrowOptions, export_arrow
from hfprep.formats.formats import open_set
from hfprep.pipeline.building import build
from hfprep.pipeline.merging import merge
from hfprep.pipeline.parts import ROWS
from hfprep.pipeline.retokenizing import last_config, retokenize
from tests.sample_sets import make_output

SECRET = b"of somebody else\n" * 100


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "secret"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


@pytest.fixture(scope="module")
def rows(golden_small: Path) -> list[dict[str, Any]]:
    lines = (golden_small / "manifest.jsonl").read_bytes().splitlines()
    return [row | {"audio": str(golden_small / row["audio"])} for row in map(json.loads, lines)][:4]


def config_of(folder: Path, rows: list[dict[str, Any]], golden_small: Path, **options: Any) -> hfprep.BuildConfig:
    manifest = folder / "rows.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values: dict[str, Any] = {"models": golden_small / "checkpoints"}
    return hfprep.BuildConfig(**{"manifest": manifest, "output_dir": folder / "out"} | values | options)


def change_state(output: Path, statement: str, *values: Any) -> None:
    with sqlite3.connect(output / ".hfprep" / "state.sqlite") as database:
        assert database.execute(statement, values).rowcount > 0


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], golden_small: Path) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    hfprep.build(config_of(folder, rows, golden_small, format="arrow"))
    return folder / "out"


@pytest.mark.parametrize("name", ["../../home/secret", "/{home}/secret", "train/../../../home/secret", ""])
def test_shards_are_below_their_folder(
    sharded: Path, tmp_path: Path, secret: Path, rows: list[dict[str, Any]], golden_small: Path, name: str
) -> None:
    shutil.copytree(sharded, tmp_path / "out")
    change_state(tmp_path / "out", "UPDATE shard_files SET name = ?", name.replace("/{home}", str(secret.parent)))
    rows = [rows[0] | {"text": "Other words."}, *rows[2:]]
    with pytest.raises(StoreError, match="which is not a shard of this output"):
        build(config_of(tmp_path, rows, golden_small, format="arrow"))
    assert secret.read_bytes() == SECRET
    assert list(secret.parent.iterdir()) == [secret]


def test_an_open_shard_is_not_written_through_a_link(
    sharded: Path, tmp_path: Path, secret: Path, rows: list[dict[str, Any]], golden_small: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(sharded, output)
    for shard in output.rglob("data-*.arrow"):
        shard.with_name(f"{shard.name}.open").symlink_to(secret)
        shard.unlink()
    change_state(output, "UPDATE shard_files SET sha256 = '', used = 10")
    build(config_of(tmp_path, [*rows, rows[0] | {"id": "new"}], golden_small, format="arrow"))
    assert secret.read_bytes() == SECRET


@pytest.mark.parametrize("name", ["arrow", "arrow/train"])
def test_files_behind_a_linked_folder_are_let_alone(
    sharded: Path, tmp_path: Path, rows: list[dict[str, Any]], golden_small: Path, name: str
) -> None:
    output, theirs = tmp_path / "out", tmp_path / "theirs"
    shutil.copytree(sharded, output)
    shutil.move(output / name, theirs)
    (theirs / "mine.arrow").write_bytes(SECRET)
    (output / name).symlink_to(theirs)
    before = sorted((path, path.is_file() and path.read_bytes()) for path in theirs.rglob("*"))
    with pytest.raises(StoreError, match="it is a symbolic link"):
        build(config_of(tmp_path, [*rows, rows[0] | {"id": "new"}], golden_small, format="arrow"))
    assert sorted((path, path.is_file() and path.read_bytes()) for path in theirs.rglob("*")) == before


def test_the_format_that_is_kept_is_one_of_ours(
    sharded: Path, tmp_path: Path, rows: list[dict[str, Any]], golden_small: Path
) -> None:
    shutil.copytree(sharded, tmp_path / "out")
    shutil.copytree(sharded / "arrow", tmp_path / "elsewhere")
    change_state(tmp_path / "out", "UPDATE meta SET value = ? WHERE key = 'packed_format'", '"../elsewhere"')
    with pytest.raises(StoreError, match="contains no finished sample set"):
        open_set(tmp_path / "out")
    with pytest.raises(StoreError, match=r"has the unknown format '\.\./elsewhere'"):
        build(config_of(tmp_path, rows, golden_small, format="arrow"))


# Parts


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], golden_small: Path) -> Path:
    folder = tmp_path_factory.mktemp("part")
    hfprep.build(config_of(folder, rows, golden_small, shard="0/1"))
    return folder / "out"


def rename_sample(part: Path, sample_id: str) -> None:
    path = part / ".hfprep" / ROWS
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    before = table.column("id")[0].as_py()
    ids = pa.array([sample_id, *table.column("id").to_pylist()[1:]], table.column("id").type)
    table = table.set_column(table.schema.names.index("id"), "id", ids)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    change_state(part, "UPDATE samples SET id = ? WHERE id = ?", sample_id, before)


def link_artifact(part: Path, target: Path) -> None:
    path = next((part / "codes").iterdir())
    target.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(target)


PARTS: dict[str, Callable[[Path, Path], object]] = {
    "id": lambda part, _: rename_sample(part, "../../home/new"),
    "link": lambda part, secret: link_artifact(part, secret.parent / "array"),
    "rows": lambda part, _: (part / ".hfprep" / ROWS).write_bytes(b"no rows"),
    "rejected": lambda part, _: (part / "rejected.jsonl").write_text('{"no": "line"}\n'),
    "stats": lambda part, _: (part / "stats.json").write_text("[]"),
}


@pytest.mark.parametrize("what", PARTS)
def test_a_part_of_others_is_joined_within_the_output_or_refused(
    part: Path, tmp_path: Path, secret: Path, what: str
) -> None:
    theirs = tmp_path / "part"
    shutil.copytree(part, theirs)
    PARTS[what](theirs, secret)
    before = sorted(secret.parent.iterdir())
    with pytest.raises(StoreError) as caught:
        merge([theirs], tmp_path / "whole")
    assert str(theirs) in str(caught.value)
    assert sorted(secret.parent.iterdir()) == before


# New text ids


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], golden_small: Path) -> Path:
    folder = tmp_path_factory.mktemp("built")
    (folder / "damaged.wav").write_bytes(b"RIFF" + bytes(1000))
    damaged = rows[0] | {"id": "damaged", "audio": str(folder / "damaged.wav")}
    hfprep.build(config_of(folder, [*rows, damaged], golden_small))
    return folder / "out"


def tokenizer_of(golden_small: Path) -> Path:
    return next((golden_small / "checkpoints").glob("*.model"))


@pytest.mark.parametrize("beside", [False, True])
def test_new_text_ids_read_no_audio(
    built: Path, tmp_path: Path, rows: list[dict[str, Any]], golden_small: Path, beside: bool
) -> None:
    """Whatever manifest the output names: of recordings that it has no features of none are made."""
    output, target = tmp_path / "out", tmp_path / "new" if beside else None
    shutil.copytree(built, output)
    before = (output / "rejected.jsonl").read_bytes()
    assert retokenize(output, tokenizer_of(golden_small), output_dir=target).accepted == 4
    assert ((target or output) / "rejected.jsonl").read_bytes() == before
    private = tmp_path / "private.jsonl"
    private.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[1] | {"id": "mine", "text": "Private."}) + "\n")
    paths = json.dumps({"manifest": str(private), "models": str(golden_small / "checkpoints")})
    change_state(output, "UPDATE meta SET value = ? WHERE key = 'paths'", paths)
    if target is not None:
        shutil.rmtree(target)
    summary = retokenize(output, tokenizer_of(golden_small), output_dir=target)
    assert (summary.accepted, summary.rejected) == (1, {"compute_failed": 1})
    listed = b"".join(path.read_bytes() for path in (target or output).glob("*_manifest.jsonl"))
    assert b"Private" not in listed
    assert not list((target or output).rglob("mine.npy"))


def test_an_output_chooses_no_host(built: Path, tmp_path: Path, golden_small: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(built, output)
    stats = json.loads((output / "stats.json").read_bytes())
    stats["settings"] |= {"engine": "ray", "ray_address": "host:10001", "device": "cuda", "num_processes": 50}
    (output / "stats.json").write_text(json.dumps(stats))
    config = last_config(output)
    assert (config.engine, config.ray_address, config.device, config.num_processes) == ("local", None, "auto", 0)
    paths = json.dumps({"manifest": "s3://theirs/rows.jsonl", "models": str(golden_small / "checkpoints")})
    change_state(output, "UPDATE meta SET value = ? WHERE key = 'paths'", paths)
    with pytest.raises(ConfigError, match=r"was built from s3://theirs/rows\.jsonl; to read it, give it"):
        retokenize(output, tokenizer_of(golden_small))
    manifest = built.parent / "rows.jsonl"
    assert retokenize(output, tokenizer_of(golden_small), manifest=manifest).accepted == 4


def test_nothing_but_audio_goes_into_a_set_with_audio(tmp_path: Path, secret: Path) -> None:
    output = make_output(tmp_path / "out", change=lambda record, _: record | {"audio_path": str(secret)})
    with pytest.raises(StoreError, match="is it audio"):
        export_arrow(open_set(output), tmp_path / "set", ArrowOptions(find_audio=str))
    assert not (tmp_path / "set").exists()
