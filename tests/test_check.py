"""check: what it foretells is what a build does; what it counts is what is there."""

import dataclasses
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from rich.cells import cell_len
from typer.testing import CliRunner

from hfprep.cli.app import app
from hfprep.errors import ConfigError, Reason
from hfprep.pipeline.building import build
from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.engines.spec import ExtractorSpec
from hfprep.pipeline.features import BatchResult, FeatureExtractor
from hfprep.pipeline.intake import Task
from hfprep.recipes.indextts2.schema import PUBLISHED
from hfprep.recipes.options import ModelOptions
from hfprep.recipes.registry import recipe
from hfprep.schema import Utterance
from hfprep.tools.check import estimates, scan
from hfprep.tools.check.estimates import estimate
from hfprep.tools.check.inspecting import samples_of_header
from hfprep.tools.check.options import CheckOptions
from hfprep.tools.check.scan import check
from hfprep.tools.demo.dataset import DemoDataset, make_dataset
from tests.random_codecs import save_codec

pytestmark = pytest.mark.usefixtures("two_layers", "one_clip_is_timed")

ONLY_DECODING_SHOWS = {"nan_samples"}
FRAMES = estimates.FRAMES


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    return make_dataset(tmp_path_factory.mktemp("demo"), num_samples=8, max_seconds=1.5)


@pytest.fixture(scope="module")
def models(golden_small: Path) -> Path:
    return golden_small / "checkpoints"


def rejected_by_build(output: Path) -> dict[int, str]:
    rows = map(json.loads, (output / "rejected.jsonl").read_text().splitlines())
    return {row["line"]: row["reason"] for row in rows}


def rejected_by_check(options: CheckOptions) -> dict[int, str]:
    return {line: reason.value for line, reason in check(options).rejected_lines.items()}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def tone(path: Path, seconds: float, rate: int = 16000, channels: int = 1) -> str:
    wave = 0.1 * np.sin(np.arange(round(seconds * rate)) * 0.05)
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate)
    return path.name


@pytest.mark.parametrize("drop_overlong", [False, True])
def test_foretells_the_demo_s_rejections(demo: DemoDataset, models: Path, tmp_path: Path, drop_overlong: bool) -> None:
    config = BuildConfig(
        manifest=demo.manifest, output_dir=tmp_path, models=models, device="cpu", drop_overlong=drop_overlong
    )
    build(config)
    options = CheckOptions(manifest=demo.manifest, models=models, decode=True, drop_overlong=drop_overlong)
    found = rejected_by_check(options)
    assert found == rejected_by_build(tmp_path)
    assert len(found) >= len(demo.rejected) > 10
    if not drop_overlong:
        assert found == {line: reason.value for line, reason in demo.rejected.items()}


def test_headers_alone_miss_only_what_decoding_shows(demo: DemoDataset, models: Path) -> None:
    rows = demo.manifest.read_bytes().splitlines()
    whole = rejected_by_check(CheckOptions(manifest=demo.manifest, models=models, decode=True))
    headers = rejected_by_check(CheckOptions(manifest=demo.manifest, models=models))
    missed = {json.loads(rows[line - 1])["id"] for line in whole.keys() - headers.keys()}
    assert missed == ONLY_DECODING_SHOWS
    assert headers.items() <= whole.items()


# Lines that a person, a script or a disk might produce, good and bad ones mixed.
AUDIO = st.sampled_from(["good.wav", "./good.wav", "short.wav", "gone.wav", "letter.wav", ".", "", "long.wav", "\0"])
ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(-3, 10**20), st.floats(), st.text(max_size=5), st.just([]))
FIELDS = {
    "id": st.one_of(
        st.text(max_size=4), st.integers(0, 5), st.sampled_from(["a", "b", "a/b", "../a", "x.npy/y"]), ANYTHING
    ),
    "text": st.one_of(
        st.sampled_from(["Hello there.", "你好", "  ", "\u3000", "...", "a", "1.5"]), st.text(max_size=6), ANYTHING
    ),
    "audio": st.one_of(AUDIO, ANYTHING),
}
OPTIONAL = {
    "speaker": st.one_of(st.sampled_from(["s", ""]), ANYTHING),
    "language": st.one_of(st.sampled_from(["en", "zh", "xx"]), ANYTHING),
    "duration": ANYTHING,
}
ROWS = st.fixed_dictionaries(FIELDS, optional=OPTIONAL)
GOOD_ROWS = st.builds(
    lambda row, name: row | {"id": name, "text": "Good day", "audio": "good.wav"}, ROWS, st.text("abc/", max_size=3)
)
LINES = st.one_of(
    ROWS.map(lambda row: json.dumps(row).encode()),
    GOOD_ROWS.map(lambda row: json.dumps(row).encode()),
    ROWS.map(lambda row: json.dumps(row).encode()[:-3]),
    ROWS.map(lambda row: json.dumps(dict(list(row.items())[1:])).encode()),
    st.binary(max_size=8).map(lambda data: data.replace(b"\n", b"")),
)


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    tone(folder / "good.wav", 0.3)
    tone(folder / "short.wav", 0.03)
    tone(folder / "long.wav", 201.0)
    (folder / "letter.wav").write_text("Dear Sir or Madam")
    return folder


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(lines=st.lists(LINES, min_size=20, max_size=60))
def test_foretells_a_build_s_rejections_of_fuzzed_manifests(
    lines: list[bytes], fuzz_folder: Path, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    manifest = fuzz_folder / "manifest.jsonl"
    manifest.write_bytes(b"\n".join([b"{}", *lines]))
    output = tmp_path_factory.mktemp("out")
    build(BuildConfig(manifest=manifest, output_dir=output, models=models, device="cpu"))
    assert rejected_by_check(CheckOptions(manifest=manifest, models=models, decode=True)) == rejected_by_build(output)


def test_counts_by_hand(tmp_path: Path, models: Path) -> None:
    (tmp_path / "a").mkdir()
    rows: list[dict[str, Any]] = [
        {"id": "one", "text": "Hello", "audio": tone(tmp_path / "1.wav", 2.0), "speaker": "x", "language": "en"},
        {"id": "two", "text": "Hello \u2603", "audio": tone(tmp_path / "2.wav", 1.0, 24000, 2), "duration": 3.0},
        {"id": "six", "text": "Hello", "audio": tone(tmp_path / "3.flac", 3.0), "speaker": "x", "language": "en"},
        {"id": "ten", "text": "Hello", "audio": tone(tmp_path / "4.wav", 5.0), "speaker": "y"},
        {"id": "six", "text": "Hello", "audio": "1.wav"},
    ]
    found = check(CheckOptions(manifest=write(tmp_path / "m.jsonl", rows), models=models)).findings
    assert (found.lines_read, found.accepted, dict(found.rejected)) == (5, 4, {Reason.DUPLICATE_ID: 1})
    assert found.seconds.total == pytest.approx(11)
    assert {name: (share.samples, share.seconds) for name, share in found.speakers.items()} == {
        "x": (2, 5.0),
        "y": (1, 5.0),
        "(none)": (1, 1.0),
    }
    assert {name: share.samples for name, share in found.languages.items()} == {"en": 2, "(none)": 2}
    assert dict(found.sampling_rates) == {16000: 3, 24000: 1}
    assert dict(found.channels) == {1: 3, 2: 1}
    assert dict(found.formats) == {"WAV": 3, "FLAC": 1}
    assert found.lengths["code_len"].most == 249  # (80,000 - 400) // 160 + 1 = 498 frames of 10 ms, two by two
    assert found.overlong.keys() == {"code_len"}
    assert found.overlong["code_len"].examples == [("ten", 249)]
    assert found.schema.limits["code_len"] == 200  # of golden-small's model
    assert found.unknown_tokens == 1
    assert dict(found.unknown_characters) == {"\u2603": 1}
    assert found.unknown_examples["\u2603"] == ("two", "Hello \u2603")
    assert [(name, said) for name, said, _ in found.wrong_durations.examples] == [("two", 3.0)]
    assert found.wrong_durations.count == 1


def test_max_samples_caps_as_in_a_build(demo: DemoDataset, models: Path, tmp_path: Path) -> None:
    summary = build(
        BuildConfig(manifest=demo.manifest, output_dir=tmp_path, models=models, device="cpu", max_samples=9)
    )
    found = check(CheckOptions(manifest=demo.manifest, models=models, max_samples=9, decode=True)).findings
    assert found.capped == summary.capped > 0
    assert (found.lines_read, found.accepted) == (summary.lines_read, summary.accepted)


def test_disk_is_what_a_build_takes(demo: DemoDataset, models: Path, tmp_path: Path) -> None:
    build(BuildConfig(manifest=demo.manifest, output_dir=tmp_path, models=models, device="cpu"))
    taken = sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*.npy"))
    found = check(CheckOptions(manifest=demo.manifest, models=models, decode=True)).findings
    assert taken <= found.disk_bytes <= 1.5 * taken


def test_processes_find_what_one_finds(demo: DemoDataset, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = check(CheckOptions(manifest=demo.manifest, models=models))
    monkeypatch.setattr(scan, "FEW_ROWS", 10)
    monkeypatch.setattr(scan, "CHUNK_ROWS", 3)
    seen: list[int] = []
    together = check(CheckOptions(manifest=demo.manifest, models=models, workers=2), seen.append)
    assert seen == sorted(seen)
    assert len(seen) > 3, "the counter moves"
    assert seen[-1] == together.findings.lines_read
    assert together.findings == alone.findings
    assert together.rejected_lines == alone.rejected_lines


@pytest.mark.parametrize("elsewhere", [False, True])
def test_fix_writes_what_a_build_takes(demo: DemoDataset, models: Path, tmp_path: Path, elsewhere: bool) -> None:
    fixed = tmp_path / "deep" / "down" / "fixed.jsonl" if elsewhere else demo.folder / "fixed.jsonl"
    check(CheckOptions(manifest=demo.manifest, models=models, decode=True, fix=fixed))
    summary = build(BuildConfig(manifest=fixed, output_dir=tmp_path / "out", models=models, device="cpu"))
    assert summary.rejected == {}
    assert summary.accepted == len(demo.accepted_ids)
    original = demo.manifest.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
    kept = fixed.read_bytes().splitlines(keepends=True)
    assert all(line in original for line in kept) is not elsewhere
    again = check(CheckOptions(manifest=fixed, models=models, decode=True))
    assert not again.rejected_lines


def test_without_tokenizer_texts_are_left_alone(demo: DemoDataset) -> None:
    found = check(CheckOptions(manifest=demo.manifest)).findings
    assert found.num_tokens == 0
    assert found.accepted
    assert found.schema == PUBLISHED


@pytest.mark.parametrize(
    ("seconds", "rate", "via"), [(1.0, 16000, None), (0.73, 44100, None), (0.51, 8000, None), (0.73, 44100, 24000)]
)
def test_frames_of_a_header_are_those_of_the_audio(tmp_path: Path, seconds: float, rate: int, via: int | None) -> None:
    from hfprep.inputs.audio.decode import load_waveform, read_header
    from hfprep.models.input_features import num_input_frames

    path = tmp_path / "x.wav"
    tone(path, seconds, rate)
    header = read_header(path)
    exact = num_input_frames(len(load_waveform(path, via=via).samples))
    assert num_input_frames(samples_of_header(header.seconds, header.sampling_rate, 16000, via)) == exact


def short_clips(folder: Path, models: Path) -> CheckOptions:
    rows = [
        {"id": str(n), "text": "Hello there.", "audio": tone(folder / f"{n}.wav", 0.6 + n / 10), "language": "en"}
        for n in range(4)
    ]
    codec = (models / "model.safetensors").is_file()
    manifest = write(folder / "m.jsonl", rows)
    if codec:
        return CheckOptions(manifest=manifest, codec_model=str(models), device="cpu")
    return CheckOptions(manifest=manifest, models=models, device="cpu")


@pytest.mark.parametrize("recipe", ["indextts-2", "indextts-2.5", "codec"])
def test_the_time_of_a_build_is_measured_for_every_recipe(
    tmp_path: Path, golden_small: Path, golden25_small: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "FRAMES", FRAMES)
    folders = {"indextts-2": golden_small / "checkpoints", "indextts-2.5": golden25_small / "checkpoints"}
    found = check(short_clips(tmp_path, folders.get(recipe) or save_codec("mimi", tmp_path / "mimi")))
    assert found.problem is None
    assert found.expected is not None
    assert (found.expected.device, found.expected.precision, found.expected.timed) == ("cpu", "fp32", 4)
    assert 0 < found.expected.working_seconds < 30
    assert found.expected.seconds > found.expected.working_seconds


def utterances(count: int) -> list[Utterance]:
    return [Utterance(line, str(line), "text", "a.wav", "a.wav") for line in range(1, count + 1)]


def test_what_check_itself_does_does_not_count_as_load(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = os.cpu_count() or 1
    loads = itertools.chain([(0.25 * cores, 0.0, 0.0)], itertools.repeat((8.0 * cores, 0.0, 0.0)))
    monkeypatch.setattr(os, "getloadavg", lambda: next(loads))
    quiet = check(short_clips(tmp_path, models)).expected
    assert quiet is not None
    assert not quiet.busy
    busy = check(short_clips(tmp_path, models)).expected
    assert busy is not None
    assert busy.busy


@pytest.mark.parametrize("slow", [True, False])
def test_the_time_is_cpu_time_by_frames(models: Path, monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    """Each measurement is made to take 3 CPU seconds, or none: then more clips are computed."""
    import torch

    monkeypatch.setattr(estimates, "FRAMES", FRAMES)
    clips = [(row, 30 + 5 * n) for n, row in enumerate(utterances(40))]
    computed: list[int] = []

    def extract(_: FeatureExtractor, tasks: Sequence[Task]) -> Iterator[BatchResult]:
        computed.append(len(tasks))
        assert torch.get_num_threads() == 1
        return iter(())

    monkeypatch.setattr(FeatureExtractor, "extract", extract)
    now = itertools.count(0, 3 if slow else 0)
    monkeypatch.setattr(time, "process_time", lambda: float(next(now)))
    model_set = recipe("indextts-2").find(ModelOptions(models=models), fetch=False)
    spec = ExtractorSpec(model_set=model_set, staging=None, need=model_set.schema.all_groups, device="cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = estimate(10_000, clips, spec)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    first = 7  # 30 + 35 + ... + 60 = 315 frames
    if slow:
        assert computed == [first, first]
        assert found.working_seconds == pytest.approx(3 / 2 / 315 * 10_000)
    else:
        more = sum(1 for total in itertools.accumulate(n for _, n in clips) if total < 3000) + 1
        assert computed == [first, first, more, more]
        assert found.working_seconds == 0


def test_errors_come_before_any_line(tmp_path: Path, models: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        check(CheckOptions(manifest=tmp_path / "none.jsonl"))
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(ConfigError, match="is empty"):
        check(CheckOptions(manifest=empty, fix=tmp_path / "fixed.jsonl"))
    assert not (tmp_path / "fixed.jsonl").exists()
    with pytest.raises(ConfigError, match="tokenizer"):
        check(CheckOptions(manifest=empty, tokenizer=tmp_path / "bpe.model"))


def test_a_build_that_would_not_start_is_said_beside_the_findings(tmp_path: Path, models: Path) -> None:
    """Models that are missing or broken do not keep a check from looking at the rows."""
    copy = tmp_path / "models"
    shutil.copytree(models, copy)
    options = short_clips(tmp_path, copy)
    (copy / "gpt.pth").unlink()
    found = check(options)
    assert found.findings.accepted == 4
    assert found.expected is None
    assert "gpt.pth" in str(found.problem)
    unfit = check(dataclasses.replace(short_clips(tmp_path, models), precision="fp16"))
    assert "supports only fp32 and bf16" in str(unfit.problem)


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


def test_exit_status_says_whether_a_build_would_reject(
    runner: CliRunner, demo: DemoDataset, models: Path, tmp_path: Path
) -> None:
    fixed = tmp_path / "fixed.jsonl"
    bad = runner.invoke(app, ["check", str(demo.manifest), "--models", str(models), "--decode", "--fix", str(fixed)])
    assert bad.exit_code == 1, bad.output
    assert "audio_not_finite" in bad.output
    assert "U+" in bad.output
    assert max(cell_len(line) for line in bad.output.splitlines() if str(fixed) not in line) <= 80
    good = runner.invoke(app, ["check", str(fixed), "--models", str(models), "--decode"])
    assert good.exit_code == 0, good.output
    assert "would reject" not in good.output


def test_what_is_shown_is_for_a_person(
    runner: CliRunner, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "FRAMES", {"cpu": (10_000,)})  # all clips
    rows: list[dict[str, Any]] = [
        {"id": f"r{n}", "text": "Hello there, how are you", "audio": tone(tmp_path / f"{n}.wav", 1.5), "language": "en"}
        for n in range(24)
    ]
    rows.append({"id": "slow", "text": "Hello", "audio": tone(tmp_path / "slow.wav", 10.0), "language": "en"})
    manifest = write(tmp_path / "m.jsonl", rows)
    shown = runner.invoke(app, ["check", str(manifest), "--models", str(models)])
    assert shown.exit_code == 0, shown.output
    said = " ".join(shown.output.replace("│", " ").split())
    assert "to accept 25 46 s of audio" in said
    assert "1 sample has more codes than the model's 200 positions: slow (499) (--drop-overlong)" in said
    assert "Unlikely pace" in said
    assert "slow: 0.5 characters per second; usual for en is 1" in said
    assert "25 clips computed on cpu in fp32" in said
    assert "limit 200" in said
    refused = runner.invoke(app, ["check", str(manifest), "--precision", "fp64"])
    assert isinstance(refused.exception, ConfigError)
