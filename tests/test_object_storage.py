"""Builds from and to an S3 server: the tree of a local build, whatever dies, and never a list of what is not there."""

import contextlib
import hashlib
import io
import json
import logging
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hfprep
from hfprep.errors import ConfigError, RejectedSample, StoreError
from hfprep.formats import remote_shards
from hfprep.formats.formats import open_set
from hfprep.formats.samples import SPLITS
from hfprep.io import lease, object_storage
from hfprep.io.lease import Lease
from hfprep.io.object_storage import is_url, joined, url_of
from hfprep.pipeline.dry_run import preview
from hfprep.store import remote
from hfprep.store.fingerprints import AudioIdentity
from tests.crash_child import CrashServer
from tests.s3_server import S3Server, s3_server
from tests.sample_sets import samples_of

pytestmark = pytest.mark.usefixtures("two_layers")

GOLDEN = Path(__file__).resolve().parent / "golden-small"
ROWS = [json.loads(line) for line in (GOLDEN / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
Build = Callable[..., hfprep.Summary]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """A server with the golden set in the folder `in`, and credentials for it in the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with s3_server() as running:
        running.put_folder(GOLDEN / "audio", "in/audio")
        running.put("in/manifest.jsonl", (GOLDEN / "manifest.jsonl").read_bytes())
        yield running


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build without object storage."""
    output = tmp_path_factory.mktemp("local") / "out"
    hfprep.build(config_of(manifest=GOLDEN / "manifest.jsonl", output_dir=output))
    return output


@pytest.fixture
def output(request: pytest.FixtureRequest) -> str:
    """A folder on the server that no other test uses."""
    return str(request.node.name).replace("[", "-").replace("]", "")


def config_of(**options: Any) -> hfprep.BuildConfig:
    values: dict[str, Any] = {"models": GOLDEN / "checkpoints", "val_ratio": 0.3, "batch_size": 1}
    if not isinstance(options["output_dir"], Path):
        values |= {"format": "arrow", "max_shard_size": "12KB"}
    return hfprep.BuildConfig(**values | options)


@pytest.fixture
def build(server: S3Server, output: str, tmp_path: Path) -> Build:
    """Build the golden set on the server into `output` there; `folder` stands for a machine."""

    def run(folder: str = "here", **options: Any) -> hfprep.Summary:
        values = {"manifest": server.url("in/manifest.jsonl"), "output_dir": server.url(output)}
        return hfprep.build(config_of(**values | {"work_dir": tmp_path / folder} | options))

    return run


def says(folder: Path) -> dict[str, Any]:
    """What an output says, whatever its format: samples and numbers of each split in order, and what is listed."""
    found: dict[str, Any] = {split: samples_of(folder, split) for split in SPLITS}
    for name in ("rejected.jsonl", ".preprocessing_progress.txt"):
        found[name] = (folder / name).read_bytes()
    stats = json.loads((folder / "stats.json").read_bytes())
    return found | {"stats": {name: stats[name] for name in ("total", "hours", "accepted", "codebook", "rejected")}}


@pytest.fixture
def there(server: S3Server, output: str, tmp_path: Path) -> Callable[[], dict[str, Any]]:
    """What the output on the server says."""

    def read() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            return says(server.download(output, Path(folder) / "copy"))

    return read


def check_listed(server: S3Server, output: str) -> int:
    """Hold what the set and the last snapshot on the server speak of against what is there; gives listed samples."""
    names = set(server.names(output))
    if ".hfprep/state.sqlite" in names:
        with tempfile.NamedTemporaryFile() as file:
            file.write(server.get(f"{output}/.hfprep/state.sqlite"))
            file.flush()
            with contextlib.closing(sqlite3.connect(file.name)) as state:
                shards = state.execute(
                    "SELECT name, num_bytes FROM shard_files WHERE sha256 != '' AND split != 'unlisted'"
                ).fetchall()
        for name, size in shards:
            assert len(server.get(f"{output}/arrow/{name}")) == size, f"the snapshot speaks of {name}"
    if "arrow/dataset_dict.json" not in names:
        return 0
    index = json.loads(server.get(f"{output}/arrow/index.json"))
    listed = 0
    for name, split in index["splits"].items():
        listed += split["samples"]
        files = json.loads(server.get(f"{output}/arrow/{name}/state.json"))["_data_files"]
        assert [f"{name}/{file['filename']}" for file in files] == [shard["name"] for shard in split["shards"]]
        for shard in split["shards"]:
            content = server.get(f"{output}/arrow/{shard['name']}")
            assert hashlib.sha256(content).hexdigest() == shard["sha256"]
    return listed


def test_a_build_from_s3_to_s3_says_what_the_local_one_says(
    build: Build, server: S3Server, output: str, local: Path, tmp_path: Path, there: Callable[[], Any]
) -> None:
    summary = build()
    assert (summary.accepted, summary.rejected, summary.url) == (8, {}, server.url(output))
    assert there() == says(local)
    assert check_listed(server, output) == 8
    assert not list((tmp_path / "here").rglob("*.arrow"))  # what is uploaded does not stay here
    assert not [name for name in server.names(output) if name.endswith(("lease.json", "-journal", "sqlite.tmp"))]
    names = server.names(output)
    again = build()
    assert (again.reused, again.tally.done) == (8, 0)
    assert sorted(server.names(output)) == sorted(names)
    elsewhere = build("elsewhere")
    assert (elsewhere.reused, elsewhere.tally.done) == (8, 0)
    assert there() == says(local)
    copy = server.download(output, tmp_path / "copy")
    gone_on = hfprep.build(config_of(manifest=server.url("in/manifest.jsonl"), output_dir=copy, format="arrow"))
    assert (gone_on.reused, gone_on.tally.done) == (8, 0)
    assert says(copy) == says(local)


@pytest.mark.slow
def test_webdataset_goes_there_too(build: Build, local: Path, there: Callable[[], Any]) -> None:
    build(format="webdataset")
    assert there() == says(local)


def changed_manifest(server: S3Server, output: str) -> str:
    """The golden set with another text in the second line; and all audio by another name."""
    rows = [row | {"text": "Hello again, and more of it."} if n == 1 else row for n, row in enumerate(ROWS)]
    changed = [row | {"audio": server.url(f"in/{row['audio']}")} for row in rows]
    server.put(f"{output}-in/changed.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in changed))
    return server.url(f"{output}-in/changed.jsonl")


@pytest.mark.slow
def test_the_store_never_lists_what_it_does_not_hold(
    build: Build, server: S3Server, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at after every single write, with a snapshot after each batch, also while samples are replaced."""
    seen: list[int] = []

    def checked(original: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **options: Any) -> None:
            if str(arguments[0]).endswith(".arrow"):
                time.sleep(0.05)  # what is to come after it would be first if it did not wait
            original(*arguments, **options)
            seen.append(check_listed(server, output))

        return call

    monkeypatch.setattr(remote, "SNAPSHOT_SECONDS", 0.0)
    monkeypatch.setattr(remote, "SNAPSHOT_SHARE", 0)
    monkeypatch.setattr(remote, "FILES_IN_FLIGHT", 1)  # else other files arrive while one is being looked at
    for module in (remote, remote_shards):
        for name in ("write", "upload", "remove"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, checked(getattr(module, name)))
    build(max_samples=4)
    assert {0, 4} == set(seen)
    seen.clear()
    summary = build(manifest=changed_manifest(server, output), max_samples=4)
    assert summary.changed == 4  # one by its text, all by the name of their audio
    assert {0, 4} == set(seen)
    assert seen[0] == seen[-1] == 4
    for ratio in (1.0, 0.0):  # every sample changes sides
        build(manifest=changed_manifest(server, output), max_samples=4, val_ratio=ratio)
        index = json.loads(server.get(f"{output}/arrow/index.json"))
        shards = {f"arrow/{shard['name']}" for split in index["splits"].values() for shard in split["shards"]}
        assert {name for name in server.names(output) if name.endswith(".arrow")} == shards
    assert check_listed(server, output) == 4


DIES = """
import os, signal
from hfprep.store import remote
original, count = remote.upload, 0
def upload(source, url):
    global count
    count += str(source).endswith(".arrow")
    if count == {nth}:
        os.kill(os.getpid(), signal.SIGKILL)
    original(source, url)
remote.upload = upload
remote.SNAPSHOT_SECONDS = remote.SNAPSHOT_SHARE = {seconds}
"""


@pytest.fixture(scope="module")
def crashing(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashServer]:
    with CrashServer(tmp_path_factory.mktemp("crash")) as running:
        yield running


def arguments_for(server: S3Server, output: str, folder: Path) -> list[object]:
    arguments: list[object] = ["build", "--manifest", server.url("in/manifest.jsonl"), "--work-dir", folder]
    arguments += ["--output-dir", server.url(output), "--models", GOLDEN / "checkpoints", "--val-ratio", 0.3]
    return [*arguments, "--batch-size", 1, "--format", "arrow", "--max-shard-size", "12KB"]


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 2, 4, 5])
def test_killed_and_continued_here_and_elsewhere(
    crashing: CrashServer, build: Build, server: S3Server, output: str, local: Path, tmp_path: Path, nth: int,
    monkeypatch: pytest.MonkeyPatch, there: Callable[[], Any],
) -> None:  # fmt: skip
    """kill -9 before the nth shard is sent: an empty folder loses no more than what no snapshot knows."""
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.2)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    patches = {"dies": DIES.format(nth=nth, seconds=0)}
    ended = crashing.run(arguments_for(server, output, tmp_path / "here"), patches=patches)
    assert ended.status == -9, ended.stderr
    assert ".hfprep/lease.json" in server.names(output)
    check_listed(server, output)
    shards = [name for name in server.names(output) if name.endswith(".arrow")]
    elsewhere = build("elsewhere", max_samples=6)
    assert elsewhere.reused <= 2 * len(shards)
    assert check_listed(server, output) == 6
    here = build("here")  # is now behind the store, and made anew from it
    assert here.accepted == 8
    assert here.tally.done <= 8 - elsewhere.accepted + 2
    assert there() == says(local)


def test_killed_and_continued_in_the_same_folder(
    crashing: CrashServer, build: Build, server: S3Server, output: str, local: Path, tmp_path: Path,
    there: Callable[[], Any],
) -> None:  # fmt: skip
    """Without any snapshot in between all that was computed is kept: it is here, sent or not."""
    patches = {"dies": DIES.format(nth=3, seconds=1000)}
    ended = crashing.run(arguments_for(server, output, tmp_path / "here"), patches=patches)
    assert ended.status == -9, ended.stderr
    assert check_listed(server, output) == 0
    summary = build()
    assert summary.reused >= 3
    assert summary.reused >= len(ended.computed) - 2  # what was being computed, and the batch in flight
    assert there() == says(local)


@pytest.mark.slow
def test_what_is_being_replaced_stays_until_a_snapshot_knows_it(
    build: Build, server: S3Server, output: str, monkeypatch: pytest.MonkeyPatch, there: Callable[[], Any]
) -> None:
    """New samples are computed, and the run breaks off: another machine goes on with what the old snapshot says."""
    build("a", manifest=server.url("in/manifest.jsonl"), max_samples=4)
    before = there()

    def breaks_off(self: remote.Mirror, state: Any) -> None:
        self.drain()
        raise StoreError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(remote.Mirror, "snapshot", breaks_off)
        with pytest.raises(StoreError, match="is gone"):
            build("a", manifest=changed_manifest(server, output), max_samples=4)
    assert check_listed(server, output) == 4
    summary = build("b", max_samples=4)
    assert (summary.reused, summary.tally.done) == (4, 0)
    assert there() == before


def test_a_store_that_refuses_what_is_there_in_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        there = True

        def pipe_file(self, path: str, content: bytes, mode: str) -> None:
            raise OSError(22, "precondition failed")

        def invalidate_cache(self) -> None:
            """Nothing is remembered."""

        def exists(self, path: str) -> bool:
            return self.there

    store = Refusing()
    monkeypatch.setattr(object_storage, "opened", lambda url: (store, url))
    with pytest.raises(FileExistsError):
        object_storage.write("s3://bucket/key", b"", only_new=True)
    store.there = False
    with pytest.raises(StoreError, match="precondition failed"):
        object_storage.write("s3://bucket/key", b"", only_new=True)


@pytest.mark.slow
def test_a_folder_that_fell_behind_is_brought_up_to_date(
    build: Build, server: S3Server, output: str, local: Path, there: Callable[[], Any]
) -> None:
    assert build("a", max_samples=3).tally.done == 3
    assert build("b").tally.done == 5
    again = build("a")
    assert (again.reused, again.tally.done) == (8, 0)
    assert there() == says(local)


@pytest.mark.slow
def test_shards_that_went_from_the_store_are_made_again(
    build: Build, server: S3Server, output: str, local: Path, there: Callable[[], Any]
) -> None:
    """Whoever deleted them: what they held is computed again, and nothing that is gone stays listed."""
    assert build().tally.done == 8
    shards = sorted(name for name in server.names(output) if name.endswith(".arrow"))
    server.delete(f"{output}/{shards[0]}")
    again = build()
    assert 0 < again.tally.done < 8
    assert check_listed(server, output) == 8
    assert there() == says(local)


def test_a_missing_object_is_one_rejection(build: Build, server: S3Server, output: str) -> None:
    rows = [ROWS[0] | {"audio": server.url("in/" + ROWS[0]["audio"])}, ROWS[1] | {"audio": server.url("in/none.wav")}]
    rows += [ROWS[2] | {"audio": "nosuchstore://a/b.wav"}, ROWS[3] | {"audio": "s3://No_Such/b.wav"}]
    rows += [ROWS[4] | {"audio": "https://example.invalid/a.wav"}]
    server.put(f"{output}-in/m.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    summary = build(manifest=server.url(f"{output}-in/m.jsonl"))
    assert (summary.accepted, summary.rejected) == (1, {"audio_missing": 4})
    rejected = [json.loads(line) for line in server.get(f"{output}/rejected.jsonl").splitlines()]
    assert [(row["line"], row["reason"]) for row in rejected] == [(n, "audio_missing") for n in (2, 3, 4, 5)]
    assert server.url("in/none.wav") in rejected[0]["message"]


@pytest.mark.parametrize(
    ("where", "nth"),
    [
        pytest.param("planning", 5, marks=pytest.mark.slow),
        pytest.param("reading", 5, marks=pytest.mark.slow),
        ("writing", 2),
    ],
)
def test_a_store_that_goes_away_ends_the_run_and_the_rerun_continues(
    build: Build, server: S3Server, output: str, local: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    where: str, nth: int, there: Callable[[], Any],
) -> None:  # fmt: skip
    """No sample is rejected for it, whichever thread meets it first."""
    names = {"planning": "info", "reading": "cat_file", "writing": "put_file"}
    store = object_storage._store("s3", "{}")
    original, calls = getattr(store, names[where]), 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            server.stop()
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store, names[where], call)
        with pytest.raises(StoreError, match="cannot be reached"):
            build()
    assert calls >= nth
    rejected = tmp_path / "here" / "rejected.jsonl"
    assert not rejected.exists() or not rejected.read_bytes()
    server.start()
    if where != "planning":
        assert check_listed(server, output) == 0
    summary = build()
    assert (summary.accepted, summary.rejected) == (8, {})
    assert there() == says(local)


@pytest.mark.slow
def test_one_run_at_a_time(
    build: Build, server: S3Server, output: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.1)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 2.0)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    url = server.url(f"{output}/.hfprep/lease.json")
    with Lease(url, "another machine"), pytest.raises(StoreError, match="another run is writing to s3://"):
        build()
    assert not server.names(output)
    server.put(f"{output}/.hfprep/lease.json", b'{"holder": "a machine that is gone", "host": "far", "pid": 1}')
    assert build(max_samples=1).accepted == 1
    with Lease(url, "one") as held:
        server.put(f"{output}/.hfprep/lease.json", b'{"holder": "two", "host": "far", "pid": 2}')
        held._thread.join(timeout=5)
        with pytest.raises(StoreError, match="another run took over"):
            held.check()
    assert server.names(output + "/.hfprep").count("lease.json") == 1  # the other's lease stays


@pytest.mark.slow
def test_other_formats_of_input_and_clips_inside_files(
    build: Build, server: S3Server, output: str, local: Path, tmp_path: Path
) -> None:
    """CSV, Parquet with the audio inside, and a range of a tar: the features are those of the files."""
    clip = (GOLDEN / ROWS[0]["audio"]).read_bytes()
    table = f'id,text,language,audio\n{ROWS[0]["id"]},"{ROWS[0]["text"]}",{ROWS[0]["language"]},../in/audio/'
    server.put(f"{output}-in/rows.csv", (table + Path(ROWS[0]["audio"]).name + "\n").encode())
    sink = io.BytesIO()
    row = {name: [ROWS[0][name]] for name in ("id", "text", "language")}
    pq.write_table(pa.table(row | {"audio": [{"bytes": clip, "path": "clip.wav"}]}), sink)
    server.put(f"{output}-in/rows.parquet", sink.getvalue())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("clip.wav")
        member.size = len(clip)
        archive.addfile(member, io.BytesIO(clip))
    server.put(f"{output}-in/clips.tar", packed.getvalue())
    reference = f"clips.tar#clip.wav@{tarfile.BLOCKSIZE}+{len(clip)}"
    beyond = f"clips.tar#clip.wav@{len(packed.getvalue()) + 5}+10"
    lines = [json.dumps(ROWS[0] | {"audio": reference}), json.dumps({"id": "x", "text": "x", "audio": beyond})]
    server.put(f"{output}-in/rows.jsonl", "\n".join(lines).encode())
    for name, rejected in (("rows.csv", {}), ("rows.parquet", {}), ("rows.jsonl", {"audio_unreadable": 1})):
        summary = build(name, manifest=server.url(f"{output}-in/{name}"), output_dir=server.url(f"{output}/{name}"))
        assert (summary.accepted, summary.rejected) == (1, rejected)
        found = open_set(server.download(f"{output}/{name}", tmp_path / f"copy-{name}"))
        sample = next(sample for split in SPLITS for sample in found.split(split).samples())
        for column, array in sample.arrays.items():
            np.testing.assert_array_equal(array, np.load(local / column / f"{ROWS[0]['id']}.npy"))
    with pytest.raises(ConfigError, match="are not read from object storage"):
        build(manifest=server.url(f"{output}-in/clips.tar"))
    with pytest.raises(ConfigError, match=f"'{server.url('none.jsonl')}' cannot be read"):
        build(manifest=server.url("none.jsonl"))


@pytest.mark.slow
def test_a_changed_object_is_computed_again(
    build: Build, server: S3Server, output: str, there: Callable[[], Any]
) -> None:
    first, second = (GOLDEN / ROWS[index]["audio"] for index in (0, 7))
    server.put(f"{output}-in/clip.wav", first.read_bytes())
    row = ROWS[0] | {"audio": "clip.wav", "duration": None}
    server.put(f"{output}-in/m.jsonl", json.dumps(row).encode())
    manifest = server.url(f"{output}-in/m.jsonl")
    build(manifest=manifest)
    before = there()
    server.put(f"{output}-in/clip.wav", first.read_bytes())
    assert build(manifest=manifest).reused == 1  # the same content, put there again
    server.put(f"{output}-in/clip.wav", second.read_bytes())
    assert build(manifest=manifest).changed == 1
    assert there()["train"] != before["train"] or there()["validation"] != before["validation"]
    plan = preview(config_of(manifest=manifest, output_dir=server.url(output)))
    assert (plan.reused, plan.pending) == (1, 0)
    assert preview(config_of(manifest=manifest, output_dir=server.url("nothing-yet"))).pending == 1


@pytest.mark.slow
def test_processes_of_this_machine_read_and_write_there(
    build: Build, server: S3Server, output: str, tmp_path: Path, there: Callable[[], Any], spawned_workers: None
) -> None:
    """With spawned workers, because a connection to object storage cannot be used after a fork."""
    hfprep.build(config_of(manifest=GOLDEN / "manifest.jsonl", output_dir=tmp_path, num_processes=2))
    assert build(num_processes=2).accepted == 8
    assert there() == says(tmp_path)


def test_a_bucket_that_is_missing_is_named(build: Build) -> None:
    with pytest.raises(StoreError, match="does the bucket exist"):
        build(output_dir="s3://no-such-bucket/out")
    with pytest.raises(ConfigError, match="cannot be read"):
        build(manifest="s3://no-such-bucket/m.jsonl")


def test_content_hashes_of_objects(server: S3Server) -> None:
    path = GOLDEN / ROWS[0]["audio"]
    here = AudioIdentity.of(str(path), by_content=True)
    there = AudioIdentity.of(server.url("in/" + ROWS[0]["audio"]), by_content=True)
    assert (here.size, here.sha256) == (there.size, there.sha256)


def test_what_does_not_go_with_object_storage_is_refused(tmp_path: Path, build: Build) -> None:
    with pytest.raises(ConfigError, match="--work-dir"):
        config_of(manifest="m.jsonl", output_dir=tmp_path, work_dir=tmp_path)
    for options in ({"skip_existing": True}, {"format": "npy"}, {"format": "arrow,webdataset"}):
        with pytest.raises(ConfigError, match="object storage"):
            config_of(manifest="m.jsonl", output_dir="s3://b/out", **options)
    with pytest.raises(ConfigError, match="add --format arrow; `export-npy` converts a local copy"):
        hfprep.BuildConfig(manifest=Path("m.jsonl"), output_dir=Path("s3://b/out"), models=GOLDEN / "checkpoints")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "thesis.tex").write_text("dear to somebody")
    with pytest.raises(StoreError, match="contains other files"):
        build()
    assert (tmp_path / "here" / "thesis.tex").read_text() == "dear to somebody"


def test_npy_files_of_the_first_version_are_said(build: Build, server: S3Server, output: str) -> None:
    first = Path(__file__).resolve().parent / "data" / "outputs-0.1.0" / "npy-complete"
    server.put(f"{output}/.hfprep/state.sqlite", (first / ".hfprep" / "state.sqlite").read_bytes())
    server.put(f"{output}/.hfprep/snapshot.json", b'{"id": "first", "val_ratio": 0.3}')
    with pytest.raises(StoreError, match=r"contains npy files from hfprep 0\.1\.0; copy it to a disk"):
        build()


def test_a_work_dir_belongs_to_one_output(build: Build, server: S3Server, output: str) -> None:
    build(max_samples=1)
    with pytest.raises(StoreError, match="use another --work-dir"):
        build(output_dir=server.url(f"{output}-2"))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(scheme: str) -> None:
        raise ImportError(f"Install {scheme}")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    with pytest.raises(ConfigError, match=r"s3:// needs .* pip install 'hfprep\[s3\]'"):
        object_storage.read("s3://bucket/key")


def test_names_of_urls() -> None:
    assert url_of(Path("s3://bucket/a/b.jsonl")) == "s3://bucket/a/b.jsonl"
    assert url_of("s3://bucket/a b#c.jsonl") == "s3://bucket/a b#c.jsonl"
    assert [url_of(text) for text in ("a/b", "/a/b", "C:/x", "s3:x", "http://a/b", "file:///a")] == [None] * 6
    assert is_url("s3://b/x.tar#a.wav@512+10")
    assert joined("s3://bucket/in/sub", "../a/./b.wav") == "s3://bucket/in/a/b.wav"


def test_a_store_without_permission_is_no_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def info(self, path: str) -> None:
            raise PermissionError("Access Denied")

    monkeypatch.setattr(object_storage, "opened", lambda url: (Refusing(), url))
    with pytest.raises(StoreError, match="Access Denied; check its permissions"):
        object_storage.status("s3://bucket/key")
    assert not issubclass(StoreError, RejectedSample)
