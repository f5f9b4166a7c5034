"""check: what it foretells is what a build does; what it counts is what is there."""

import json
import shutil
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
from hfprep.errors import CheckpointError, ConfigError, Reason
from hfprep.models.semantic_config import NUM_LAYERS, SemanticEncoderConfig
from hfprep.pipeline.building import build
from hfprep.pipeline.config import BuildConfig
from hfprep.recipes.base import Outline
from hfprep.recipes.indextts2 import outline as outlines
from hfprep.recipes.indextts2.outline import PUBLISHED_CONFIG, BatchTimer
from hfprep.recipes.indextts2.schema import PUBLISHED, schema_of
from hfprep.recipes.semantic_audio import SemanticAudio
from hfprep.schema import Utterance
from hfprep.tools.check import estimates, scan
from hfprep.tools.check.estimates import Work, estimate
from hfprep.tools.check.inspecting import samples_of_header
from hfprep.tools.check.options import CheckOptions
from hfprep.tools.check.scan import check
from hfprep.tools.demo.dataset import DemoDataset, make_dataset

ONLY_DECODING_SHOWS = {"truncated_flac", "nan_samples"}


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
    assert found.overlong["code_len"].limit == 200  # of golden-small's model
    assert found.unknown_tokens == 1
    assert dict(found.unknown_characters) == {"\u2603": 1}
    assert found.unknown_examples["\u2603"] == ("two", "Hello \u2603")
    assert [(name, said) for name, said, _ in found.wrong_durations] == [("two", 3.0)]
    assert found.wrong_duration_count == 1


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


def test_the_work_of_the_published_models() -> None:
    assert schema_of(PUBLISHED_CONFIG) == PUBLISHED
    published = BatchTimer(PUBLISHED_CONFIG, SemanticEncoderConfig())
    assert published.encoder + published.rest == pytest.approx(590e6, rel=0.02)


def test_the_layer_that_is_timed_does_the_work_of_a_real_one(
    golden_small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's own count, at the sizes of golden-small, whose config.json is not that of the published model."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from hfprep.models import operators
    from hfprep.models.masking import FrameMask
    from hfprep.models.semantic_encoder import SemanticEncoder

    # The counter knows torch's own products only, and attention as two products.
    monkeypatch.setattr(operators, "_has_onednn_linear", lambda: False)
    config = SemanticEncoderConfig.read(golden_small / "checkpoints" / "w2v-bert-2.0" / "config.json")
    encoder = SemanticEncoder(config).to_empty(device="cpu")
    mask = FrameMask.from_lengths(torch.tensor([128]), 128, torch.device("cpu"))
    features = torch.zeros(1, 128, 160)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as real:
            encoder(features, mask)
        with FlopCounterMode(display=False) as timed:
            outlines.timed_encoder(config, torch.device("cpu"))(features, mask)
    projection = 2 * 128 * 160 * config.hidden_size  # ahead of the layers
    layer = timed.get_total_flops() - projection
    assert NUM_LAYERS * layer == real.get_total_flops() - projection
    by_weights = 2 * 128 * (4 * config.hidden_size * config.intermediate_size + 7 * config.hidden_size**2)
    assert layer > by_weights


def test_a_batch_takes_what_its_layers_and_the_rest_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlines, "layer_seconds", lambda config, rows, length, device, precision: 0.01)
    timer = BatchTimer(PUBLISHED_CONFIG, SemanticEncoderConfig())
    expected = 17 * 0.01 * (1 + timer.rest / timer.encoder)
    assert timer(1, 200, None, "fp32") == pytest.approx(expected)  # type: ignore[arg-type]


def utterances(count: int) -> list[Utterance]:
    return [Utterance(line, str(line), "text", "a.wav", "a.wav") for line in range(1, count + 1)]


def test_the_time_is_that_of_a_batch_and_of_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    measured: list[tuple[int, int, str]] = []

    def seconds_of_batch(rows: int, frames: int, device: Any, precision: str) -> float:
        measured.append((rows, frames, precision))
        return 0.5

    monkeypatch.setattr(estimates, "reading_seconds", lambda rows, outline, on_gpu: 0.04 * len(rows))
    outline = Outline(PUBLISHED, SemanticAudio(), int, seconds_of_batch=seconds_of_batch)
    work = Work(clips=250, num_frames=50_000, audio_seconds=1000.0, rows=utterances(8))
    found = estimate(outline, work, device=torch.device("cpu"), precision="fp32", workers=2)
    assert measured == [(1, 200, "fp32")]  # the mean clip
    assert found.compute_seconds == pytest.approx(250 * 0.5)
    assert found.reading_seconds == pytest.approx(250 * 0.04 / 2)
    assert found.seconds == pytest.approx(4 + 125 + 5), "on a CPU both take the same cores"
    assert (found.timed_frames, found.timed_rows) == (200, 8)
    found = estimate(outline, work, device=torch.device("cuda"), precision="exact", workers=2)
    assert measured[-1] == (40, 200, "exact")
    assert found.compute_seconds == pytest.approx(250 / 40 * 0.5)
    assert found.seconds == pytest.approx(15 + 5), "a GPU computes while the CPU reads"
    untimed = estimate(
        Outline(PUBLISHED, SemanticAudio(), int), work, device=torch.device("cpu"), precision="fp32", workers=2
    )
    assert untimed.compute_seconds is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layer_can_be_timed_here(precision: str) -> None:
    import torch

    config = SemanticEncoderConfig(hidden_size=32, intermediate_size=48, num_attention_heads=4)
    assert 0 < outlines.layer_seconds(config, 2, 30, torch.device("cpu"), precision) < 10
    with pytest.raises(ConfigError, match="computes only fp32 and bf16"):
        outlines.layer_seconds(config, 2, 30, torch.device("cpu"), "fp16")


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
    copy = tmp_path / "models"
    shutil.copytree(models, copy)
    (copy / "w2v-bert-2.0" / "config.json").write_text('{"hidden_size": "wide"}')
    with pytest.raises(CheckpointError, match="hidden_size is 'wide'"):
        check(CheckOptions(manifest=empty, models=copy))


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


def test_what_is_shown_is_for_a_person(runner: CliRunner, models: Path, tmp_path: Path) -> None:
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
    assert "Read at an unlikely pace" in said
    assert "slow: 0.5 characters a second, usual for en is 1" in said
    assert "models on cpu in fp32" in said
    assert "limit 200" in said
    refused = runner.invoke(app, ["check", str(manifest), "--precision", "fp64"])
    assert isinstance(refused.exception, ConfigError)
