"""Builds from other inputs give the arrays that a build from plain files gives, and are continued as those are."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import hfprep
from hfprep.cli import app as cli
from hfprep.pipeline.building import build
from hfprep.pipeline.engines import spool
from hfprep.pipeline.engines.choice import Shared
from hfprep.tools.check.scan import CheckOptions, check

pytestmark = pytest.mark.usefixtures("two_layers")

Build = Callable[..., hfprep.Summary]


@pytest.fixture(scope="module")
def run(golden_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Build an input; the models are loaded once for this module."""
    shared = Shared()

    def run(manifest: Path, output: Path, **options: Any) -> hfprep.Summary:
        models = golden_small / "checkpoints"
        given = {"val_ratio": 0.3, "batch_size": 1} | options  # alone: the same bytes
        config = hfprep.BuildConfig(manifest=manifest, output_dir=output, models=models, **given)
        return build(config, shared=shared)

    return run


@pytest.fixture(scope="module")
def plain(run: Build, golden_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of the small golden set from its own files."""
    return run(golden_small / "manifest.jsonl", tmp_path_factory.mktemp("plain") / "out").output_dir


@pytest.fixture
def rows(golden_small: Path) -> list[dict[str, Any]]:
    lines = (golden_small / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        row | {"audio": {"bytes": (golden_small / row["audio"]).read_bytes(), "path": row["audio"]}} for row in rows
    ]


def save_arrow(rows: list[dict[str, Any]], folder: Path) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return folder / "saved"


def save_parquet(rows: list[dict[str, Any]], folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=3)
    return folder / "rows.parquet"


def save_tar(rows: list[dict[str, Any]], folder: Path) -> Path:
    with tarfile.open(folder / "rows.tar", "w") as archive:
        for row in rows:
            fields = {name: value for name, value in row.items() if name != "audio"}
            clip = (Path(row["audio"]["path"]).suffix, row["audio"]["bytes"])
            for suffix, content in ((".json", json.dumps(fields).encode()), clip):
                member = tarfile.TarInfo(row["id"] + suffix)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder / "rows.tar"


def records(output: Path) -> list[dict[str, Any]]:
    files = (output / "train_manifest.jsonl", output / "val_manifest.jsonl")
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def assert_same_features(output: Path, plain: Path) -> None:
    """Same files byte for byte, and the same records but for where the audio is."""
    for name in ("text_ids", "codes", "condition", "emo_vec"):
        files = {path.name: path.read_bytes() for path in (plain / name).iterdir()}
        assert len(files) == 8
        assert {path.name: path.read_bytes() for path in (output / name).iterdir()} == files
    without_audio = [{k: v for k, v in record.items() if k != "audio_path"} for record in records(plain)]
    assert [{k: v for k, v in record.items() if k != "audio_path"} for record in records(output)] == without_audio


@pytest.mark.parametrize("save", [save_arrow, save_parquet, save_tar])
def test_the_features_are_those_of_the_files_and_a_rerun_keeps_them(
    run: Build, plain: Path, rows: list[dict[str, Any]], tmp_path: Path, save: Callable[..., Path]
) -> None:
    manifest = save(rows, tmp_path)
    first = run(manifest, tmp_path / "out")
    assert (first.accepted, first.tally.done) == (8, 8)
    assert_same_features(tmp_path / "out", plain)
    assert not (tmp_path / "out" / ".hfprep" / "work").exists()
    again = run(manifest, tmp_path / "out", batch_size=3, workers=2)
    assert (again.reused, again.tally.done) == (8, 0)


def test_a_new_container_is_computed_again_unless_its_clips_are_known_by_content(
    run: Build, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    rows = rows[4:7]  # the shortest
    manifest = save_tar(rows, tmp_path)
    run(manifest, tmp_path / "out")
    run(manifest, tmp_path / "hashed", hash_audio=True)
    save_tar([rows[0] | {"audio": rows[1]["audio"]}, *rows[1:]], tmp_path)
    os.utime(manifest, ns=(1, 1))
    assert run(manifest, tmp_path / "out").tally.done == 3
    hashed = run(manifest, tmp_path / "hashed", hash_audio=True)
    assert (hashed.reused, hashed.tally.done) == (2, 1)


def test_clips_of_one_length_that_change_places_are_told_apart(
    run: Build, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Also by a run without --hash-audio after one with it, when the tar has its old size and time."""
    clip = rows[5]["audio"]
    other = clip | {"bytes": clip["bytes"][:-4000] + bytes(4000)}
    output = tmp_path / "out"
    codes = []
    for order, hash_audio in ((rows[5:7], True), (rows[6:4:-1], False)):
        manifest = save_tar([order[0] | {"audio": clip}, order[1] | {"audio": other}], tmp_path)
        os.utime(manifest, ns=(1, 1))
        assert run(manifest, output, hash_audio=hash_audio).tally.done == 2
        codes.append([(output / "codes" / f"{row['id']}.npy").read_bytes() for row in rows[5:7]])
    assert codes[0] == codes[1][::-1]
    assert codes[0] != codes[1]


def test_only_some_clips_of_parquet_are_set_out_at_a_time(
    run: Build, plain: Path, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 150_000
    monkeypatch.setattr(spool, "MAX_SPOOL_BYTES", limit)
    sizes: list[int] = []
    spooled = spool.spooled

    left: list[int] = []

    def watched(planned: Any, folder: Path, audio_groups: frozenset[str]) -> Any:
        for part in spooled(planned, folder, audio_groups):
            files = sorted(folder.glob("clips-*"), key=lambda path: path.stat().st_mtime_ns)
            sizes.append(files[-1].stat().st_size)
            left.append(len(files))
            yield part

    monkeypatch.setattr("hfprep.pipeline.engines.worker.spooled", watched)
    run(save_parquet(rows, tmp_path), tmp_path / "out")
    assert max(left) <= 3  # one part is computed, one is being loaded, and one is set out meanwhile
    assert not list((tmp_path / "out").rglob("clips-*"))
    clips = [len(row["audio"]["bytes"]) for row in rows]
    assert sizes == [sum(clips[:2]), sum(clips[2:6]), sum(clips[6:])]  # each part ends with the clip that reaches it
    assert limit <= min(sizes)
    assert_same_features(tmp_path / "out", plain)


@pytest.mark.parametrize("save", [save_arrow, save_parquet, save_tar])
def test_a_bad_clip_is_named_by_its_own_name(
    run: Build, rows: list[dict[str, Any]], tmp_path: Path, save: Callable[..., Path]
) -> None:
    rows[1]["audio"]["bytes"] = b"RIFF, but not audio at all"
    rows[2]["audio"]["bytes"] = b""
    rows[3]["text"] = "  "
    summary = run(save(rows[:5], tmp_path), tmp_path / "out")
    found = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(item["line"], item["id"], item["reason"]) for item in found] == [
        (2, rows[1]["id"], "audio_unreadable"),
        (3, rows[2]["id"], "audio_empty"),
        (4, rows[3]["id"], "empty_text"),
    ]
    assert f"#{Path(rows[1]['audio']['path']).name}@" in found[0]["message"]
    assert "spool" not in found[0]["message"]
    assert "/proc/" not in found[0]["message"]
    assert (summary.accepted, summary.lines_read) == (2, 5)


def test_a_csv_under_a_map_builds_and_checks_like_its_jsonl(
    run: Build, plain: Path, golden_small: Path, tmp_path: Path
) -> None:
    lines = (golden_small / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    names = ("id", "text", "audio", "speaker", "language", "duration")
    table = ["utt\tsentence\tpath\tspeaker\tlanguage\tduration"]
    for row in map(json.loads, lines):
        row["audio"] = golden_small / row["audio"]
        table.append("\t".join("" if row.get(name) is None else str(row[name]) for name in names))
    table.append("bad\tno audio\tgone.wav\t\t\t")
    (tmp_path / "rows.tsv").write_text("\n".join(table) + "\n", encoding="utf-8")
    mapping = "id=utt,text=sentence,audio=path"
    summary = run(tmp_path / "rows.tsv", tmp_path / "out", map=mapping)
    assert (summary.accepted, summary.rejected) == (8, {"audio_missing": 1})
    assert_same_features(tmp_path / "out", plain)
    found = check(CheckOptions(manifest=tmp_path / "rows.tsv", map=mapping, fix=tmp_path / "clean.jsonl"))
    assert (found.findings.accepted, found.rejected_lines) == (8, {10: "audio_missing"})
    clean = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["utt"] for row in clean] == [json.loads(line)["id"] for line in lines]
    summary = run(tmp_path / "clean.jsonl", tmp_path / "again", map=mapping)
    assert (summary.accepted, summary.rejected) == (8, {})


@pytest.mark.slow
def test_workers_read_clips_inside_files_too(
    run: Build, plain: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    run(save_parquet(rows, tmp_path), tmp_path / "out", num_processes=2)
    assert_same_features(tmp_path / "out", plain)


@pytest.mark.parametrize("with_root", [False, True])
def test_an_export_has_the_audio_that_the_build_read(
    with_root: bool, run: Build, golden_small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the build's working directory, or of its audio root, wherever a clip of that name lies besides."""
    (row,) = (json.loads(line) for line in (golden_small / "manifest.jsonl").read_text("utf-8").splitlines()[:1])
    clip = (golden_small / row["audio"]).read_bytes()
    there, others = tmp_path / ("root" if with_root else "work"), ("data", "elsewhere", "work" if with_root else "root")
    for folder in (there, *(tmp_path / name for name in others)):
        (folder / row["audio"]).parent.mkdir(parents=True)
        (folder / row["audio"]).write_bytes(clip if folder == there else b"another clip")
    (tmp_path / "data" / "manifest.jsonl").write_text(json.dumps(row), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "work")
    run(tmp_path / "data" / "manifest.jsonl", tmp_path / "out", audio_root=tmp_path / "root" if with_root else None)
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = CliRunner().invoke(cli.app, ["export-arrow", "../out", "set", "--with-audio"])
    assert done.exit_code == 0, done.output
    exported = datasets.load_from_disk("set")
    (found,) = [item for part in exported.values() for item in part.cast_column("audio", datasets.Audio(decode=False))]
    assert found["audio"]["bytes"] == clip
    done = CliRunner().invoke(cli.app, ["export-manifests", "../out", "manifests", "--paths", "absolute"])
    assert done.exit_code == 0, done.output
    lines = [line for path in Path("manifests").glob("*_manifest.jsonl") for line in path.read_bytes().splitlines()]
    assert [json.loads(line)["audio_path"] for line in lines] == [str(there / row["audio"])]
