"""Each format read by its own library, in a process that never imports hfprep; and the kills that a process gets."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hfprep.formats.arrow_writer import ArrowOptions, export_arrow
from hfprep.formats.formats import open_set
from hfprep.formats.samples import Sample
from hfprep.formats.webdataset_writer import WebDatasetOptions, export_webdataset
from tests.sample_sets import AWKWARD_IDS, DIM, ROWS, STATS, make_output, public_files

CONVERT = """
def plain(value):
    return value.tolist() if hasattr(value, "tolist") else value
"""
READ_ARROW = """
import json, sys, datasets
data = datasets.load_from_disk(sys.argv[1])
rows = {name: [dict(row) for row in split.with_format(None)] for name, split in data.items()}
for part in rows.values():
    for row in part:
        row.pop("audio", None)
print(json.dumps({"rows": rows, "features": {name: str(value) for name, value in data["train"].features.items()},
                  "description": data["train"].info.description, "files": len(data["train"].cache_files),
                  "hfprep": "hfprep" in sys.modules}))
"""
READ_WEBDATASET = """
import glob, json, sys, webdataset
shards = sorted(glob.glob(sys.argv[1] + "/train-*.tar"))
rows = []
for sample in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode():
    rows.append({name: value.tolist() if hasattr(value, "tolist") else value for name, value in sample.items()
                 if not name.startswith("__")} | {"key": sample["__key__"]})
print(json.dumps({"rows": rows, "hfprep": "hfprep" in sys.modules}))
"""
READ_DATASETS_WEBDATASET = """
import json, sys, datasets
data = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2])
other = datasets.load_dataset("webdataset", data_files={"train": sys.argv[1] + "/train-*.tar"}, cache_dir=sys.argv[2])
rows = {name: [dict(row) for row in split] for name, split in data.items()}
assert [row["json"] for row in other["train"]] == [row["json"] for row in rows["train"]]
for part in rows.values():
    for row in part:
        row.pop("__url__")
print(json.dumps({"rows": rows, "hfprep": "hfprep" in sys.modules}))
"""


def run_elsewhere(script: str, *arguments: str | Path) -> dict[str, Any]:
    """What a script prints as JSON, run by a Python process of its own, outside the checkout."""
    process = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=120, cwd="/"
    )
    assert process.returncode == 0, process.stderr
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    assert not result["hfprep"]
    return result


def samples_of(source: Path, split: str) -> list[Sample]:
    return list(open_set(source).split(split).samples())


def test_datasets_reads_the_arrow_export(tmp_path: Path) -> None:
    source = make_output(tmp_path / "out")
    export_arrow(open_set(source), tmp_path / "arrow", ArrowOptions(max_shard_bytes=3000))
    result = run_elsewhere(READ_ARROW, tmp_path / "arrow")
    for split in ("train", "validation"):
        for row, sample in zip(result["rows"][split], samples_of(source, split), strict=True):
            record = sample.entry.record
            assert {name: row[name] for name in ("id", "text", "speaker", "language", "duration", "audio_path")} == {
                name: record[name] for name in ("id", "text", "speaker", "language", "duration", "audio_path")
            }
            for name, array in sample.arrays.items():
                np.testing.assert_array_equal(np.asarray(row[name], array.dtype), array)
    features = result["features"]
    assert features["text_ids"] == features["codes"] == "List(Value('int32'))"
    assert features["condition"] == f"Array2D(shape=({ROWS}, {DIM}), dtype='float32')"
    assert features["emo_vec"] == f"List(Value('float32'), length={DIM})"
    assert features["take"] == "Value('int64')"
    assert features["score"] == "Value('string')"  # of several types: JSON text
    provenance = json.loads(result["description"].splitlines()[1])
    assert provenance["stats"] == STATS
    assert provenance["latents_dtype"] == "float32"


def test_arrow_shards_keep_the_bound(tmp_path: Path) -> None:
    source = make_output(tmp_path / "out", ids=tuple(f"{number:04d}" for number in range(400)), extra=False)
    export_arrow(open_set(source), tmp_path / "arrow", ArrowOptions(max_shard_bytes=60_000))
    result = run_elsewhere(READ_ARROW, tmp_path / "arrow")
    assert result["files"] >= 2
    assert [row["id"] for row in result["rows"]["train"]] == [
        f"{number:04d}" for number in range(400) if number % 3 != 2
    ]
    assert all(path.stat().st_size < 70_000 for path in (tmp_path / "arrow" / "train").glob("*.arrow"))


def test_audio_is_embedded(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    source = make_output(tmp_path / "out", ids=("a", "b"))
    for number in range(2):
        (tmp_path / "wavs").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "wavs" / f"{number}.wav", np.full(1600, number / 10, np.float32), 16_000)
    options = ArrowOptions(find_audio=lambda path: str(tmp_path / path))
    export_arrow(open_set(source), tmp_path / "arrow", options)
    data = datasets.load_from_disk(str(tmp_path / "arrow"))["train"]
    assert isinstance(data.features["audio"], datasets.Audio)
    rows = data.cast_column("audio", datasets.Audio(decode=False))
    assert [row["audio"] for row in rows] == [
        {"bytes": (tmp_path / "wavs" / f"{number}.wav").read_bytes(), "path": f"{number}.wav"} for number in range(2)
    ]
    assert run_elsewhere(READ_ARROW.replace("data.items()}", "data.remove_columns('audio').items()}", 1),
                         tmp_path / "arrow")["features"]["audio"].startswith("Audio(")  # fmt: skip


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    source = make_output(tmp_path / "out")
    export_webdataset(open_set(source), tmp_path / "shards", WebDatasetOptions(max_shard_samples=3))
    rows = run_elsewhere(READ_WEBDATASET, tmp_path / "shards")["rows"]
    samples = samples_of(source, "train")
    for row, sample in zip(rows, samples, strict=True):
        assert row["key"] == hashlib.blake2b(sample.entry.id.encode(), digest_size=12).hexdigest()
        assert row["json"]["id"] == sample.entry.id
        assert json.loads(row["json"]["extra"]) == json.loads(sample.entry.extra)
        for name, array in sample.arrays.items():
            np.testing.assert_array_equal(np.asarray(row[f"{name}.npy"], array.dtype), array)
    assert {row["json"]["id"] for row in rows} <= set(AWKWARD_IDS)


def test_datasets_reads_the_shards(tmp_path: Path) -> None:
    """With speakers that are missing in the first samples only, and durations of both kinds of number."""
    source = make_output(tmp_path / "out", ids=tuple(f"{number}" for number in range(24)))
    export_webdataset(open_set(source), tmp_path / "shards", WebDatasetOptions(max_shard_samples=7))
    rows = run_elsewhere(READ_DATASETS_WEBDATASET, tmp_path / "shards", tmp_path / "cache")["rows"]
    assert sorted(rows) == ["train", "validation"]
    for split in rows:
        for row, sample in zip(rows[split], samples_of(source, split), strict=True):
            assert row["json"]["id"] == sample.entry.id
            assert row["json"]["speaker"] == (sample.entry.record["speaker"] or "")
            for name, array in sample.arrays.items():
                np.testing.assert_array_equal(np.asarray(row[f"{name}.npy"], array.dtype), array)


def test_the_index_tells_the_truth(tmp_path: Path, repository: Path) -> None:
    import jsonschema

    source = make_output(tmp_path / "out")
    export_webdataset(open_set(source), tmp_path / "shards", WebDatasetOptions(max_shard_samples=3, dtype="float16"))
    index = json.loads((tmp_path / "shards" / "index.json").read_bytes())
    schema = json.loads((repository / "schemas" / "webdataset-index.schema.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(index, schema)
    assert index["latents_dtype"] == "float16"
    assert [shard["samples"] for shard in index["splits"]["train"]["shards"]] == [3, 3, 2]
    shards = [shard for split in index["splits"].values() for shard in split["shards"]]
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == sorted(
        ["index.json", "places.npy", *(shard["name"] for shard in shards)]
    )
    for shard in shards:
        data = (tmp_path / "shards" / shard["name"]).read_bytes()
        assert len(data) == shard["bytes"]
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]


def test_shards_keep_the_size(tmp_path: Path) -> None:
    source = make_output(tmp_path / "out", ids=tuple(f"{number}" for number in range(30)), extra=False)
    export_webdataset(open_set(source), tmp_path / "shards", WebDatasetOptions(max_shard_bytes=20_000))
    sizes = [path.stat().st_size for path in (tmp_path / "shards").glob("train-*.tar")]
    assert len(sizes) > 2
    assert max(sizes) <= 20_000


KILLED_EXPORT = """
import os, signal, sys
from pathlib import Path
from hfprep.formats.arrow_writer import ArrowOptions, export_arrow
from hfprep.formats.formats import open_set
from hfprep.formats.npy import export_npy
from hfprep.formats.webdataset_writer import WebDatasetOptions, export_webdataset
from hfprep.io import atomic
kind, source, target, stop = sys.argv[1], open_set(Path(sys.argv[2])), Path(sys.argv[3]), int(sys.argv[4])
seen = 0
def kill(point, path):
    global seen
    seen += 1
    if seen == stop:
        os.kill(os.getpid(), signal.SIGKILL)
atomic.set_observer(kill)
if kind == "arrow":
    export_arrow(source, target, ArrowOptions(max_shard_bytes=2000))
elif kind == "webdataset":
    export_webdataset(source, target, WebDatasetOptions(max_shard_samples=3))
else:
    export_npy(source, target)
"""


@pytest.mark.parametrize(("kind", "stop"), [("arrow", 9), ("webdataset", 13), ("npy", 30)])
def test_a_killed_export_leaves_nothing_under_its_name_and_can_be_rerun(tmp_path: Path, kind: str, stop: int) -> None:
    source = make_output(tmp_path / "out")
    export_webdataset(open_set(source), tmp_path / "shards")
    origin = tmp_path / "shards" if kind == "npy" else source
    target = tmp_path / "target"
    command = [sys.executable, "-c", KILLED_EXPORT, kind, str(origin), str(target)]
    killed = subprocess.run([*command, str(stop)], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    assert (tmp_path / ".target.unfinished").exists()
    rerun = subprocess.run([*command, "0"], capture_output=True, text=True, timeout=120)
    assert rerun.returncode == 0, rerun.stderr
    assert not (tmp_path / ".target.unfinished").exists()
    assert sorted(entry.id for name in ("train", "validation") for entry in open_set(target).split(name).entries()) == (
        sorted(AWKWARD_IDS)
    )
    if kind == "npy":
        assert public_files(target) == public_files(source)
