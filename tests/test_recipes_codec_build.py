"""Builds with codecs: every code of the library, in each format, killed and resumed, in processes and in parts."""

import functools
import html
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece as spm
import soundfile
import torch
from typer.testing import CliRunner

import hfprep
from hfprep.cli.app import app
from hfprep.errors import ConfigError
from hfprep.formats.arrow_writer import ArrowOptions, export_arrow
from hfprep.formats.card import card
from hfprep.formats.formats import open_set
from hfprep.formats.npy import export_npy
from hfprep.formats.webdataset_writer import WebDatasetOptions, export_webdataset
from hfprep.inputs.audio.decode import load_waveform
from hfprep.pipeline.merging import merge
from hfprep.recipes.codec.text import PlainText
from hfprep.tools.demo.codec import NUM_CODEBOOKS
from tests.random_codecs import CODECS, random_codec, save_codec
from tests.tokenizers import train_base

pytestmark = pytest.mark.usefixtures("one_clip_is_timed")

SIZES = {"mimi": (24_000, 1920), "encodec": (24_000, 320), "dac": (16_000, 512)}
SECONDS = (0.9, 0.05, 1.3, 2.0, 1.3, 0.4, 0.004, 1.0, 2.0, 0.61)
FORMATS = ("npy", "arrow", "webdataset")


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of codecs, by family."""
    folder = tmp_path_factory.mktemp("codecs")
    return {family: str(save_codec(family, folder / family)) for family in CODECS}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of several lengths and rates, the last row without its file."""
    folder, rows = tmp_path_factory.mktemp("data"), []
    for number, seconds in enumerate(SECONDS):
        rate = (16_000, 24_000, 44_100)[number % 3]
        noise = np.random.default_rng(number).standard_normal(round(seconds * rate)).astype(np.float32)
        soundfile.write(folder / f"{number}.flac", noise / 10, rate)
        rows.append({"id": f"clip-{number}", "text": f"words of clip {number}", "audio": f"{number}.flac"})
    rows.append({"id": "gone", "text": "gone", "audio": "gone.flac"})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "bpe.model"
    path.write_bytes(train_base())
    return path


def build(manifest: Path, codec: str, output: Path, **options: Any) -> hfprep.Summary:
    values: dict[str, Any] = {"manifest": manifest, "codec_model": codec, "output_dir": output, "val_ratio": 0.3}
    return hfprep.build(hfprep.BuildConfig(**values | {"num_processes": 1} | options))


@functools.cache
def plainly(family: str, manifest: Path) -> dict[str, np.ndarray]:
    """The codes of each clip, (codebooks, T), by the library alone, clip by clip."""
    (rate, hop), codec, found = SIZES[family], random_codec(family), {}
    options = {"encodec": {"bandwidth": 1.8}}.get(family, {})
    for number in range(len(SECONDS)):
        samples = torch.from_numpy(load_waveform(manifest.parent / f"{number}.flac", sampling_rate=rate).samples)
        whole = torch.nn.functional.pad(samples, (0, -len(samples) % hop))
        with torch.no_grad():
            codes = codec.encode(whole[None, None], **options).audio_codes
        found[f"clip-{number}"] = codes.reshape(NUM_CODEBOOKS, -1).numpy()
    return found


def items(output: Path, split: str) -> list[dict[str, Any]]:
    found = hfprep.load(output, split)
    return [found[index] for index in range(len(found))]


def quiet_run(arguments: list[str]) -> tuple[int, str]:
    """Exit status and output of a command."""
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def samples_of(output: Path, column: str = "codes") -> dict[str, np.ndarray]:
    """A column of an output in any format, by id."""
    found = [item for split in ("train", "validation") for item in items(output, split)]
    return {item["id"]: np.asarray(item[column]) for item in found}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, codes in found.items():
        np.testing.assert_array_equal(codes, expected[name], err_msg=name)


@pytest.mark.parametrize("family", CODECS)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_code_is_the_library_s(
    codecs: dict[str, str], manifest: Path, tmp_path: Path, family: str, batch_size: int
) -> None:
    summary = build(manifest, codecs[family], tmp_path / "out", batch_size=batch_size)
    assert (summary.accepted, summary.rejected) == (len(SECONDS), {"audio_missing": 1})
    expected = plainly(family, manifest)
    assert_same({name: np.load(tmp_path / "out" / "codes" / f"{name}.npy") for name in expected}, expected)
    assert {np.load(path).dtype.name for path in (tmp_path / "out" / "codes").iterdir()} == {"int16"}
    assert not (tmp_path / "out" / "text_ids").exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_two_dimensions_in_every_format(
    codecs: dict[str, str], manifest: Path, tokenizer: Path, tmp_path: Path, kind: str
) -> None:
    output = tmp_path / "out"
    build(manifest, codecs["mimi"], output, format=kind, tokenizer=tokenizer)
    shown = output if kind == "npy" else output / kind
    assert_same(samples_of(shown), plainly("mimi", manifest))
    texts = samples_of(shown, "text_ids")
    assert len({ids.tobytes() for ids in texts.values()}) == len(SECONDS)
    batch = hfprep.collate(items(shown, "train")[:3])
    assert batch["codes"].shape[:2] == (3, NUM_CODEBOOKS)
    assert set(batch) >= {"code_lengths", "text_ids", "text_lengths"}
    for codes, length in zip(batch["codes"], batch["code_lengths"], strict=True):
        assert bool((codes[:, length:] == 64).all())
        assert int(codes[:, :length].max()) < 64


def test_from_one_format_to_the_next_and_back(
    codecs: dict[str, str], manifest: Path, tokenizer: Path, tmp_path: Path
) -> None:
    source = tmp_path / "out"
    build(manifest, codecs["encodec"], source, tokenizer=tokenizer)
    export_arrow(open_set(source), tmp_path / "arrow", ArrowOptions(max_shard_bytes=2000))
    export_webdataset(open_set(tmp_path / "arrow"), tmp_path / "shards", WebDatasetOptions(max_shard_samples=3))
    export_npy(open_set(tmp_path / "shards"), tmp_path / "back")
    for column in ("codes", "text_ids"):
        before = {path.name: path.read_bytes() for path in (source / column).iterdir()}
        assert len(before) == len(SECONDS)
        assert {path.name: path.read_bytes() for path in (tmp_path / "back" / column).iterdir()} == before


def test_another_number_of_codebooks_computes_codes_again(
    codecs: dict[str, str], manifest: Path, tokenizer: Path, tmp_path: Path
) -> None:
    expected = {name: codes[:2] for name, codes in plainly("mimi", manifest).items()}
    for kind in FORMATS:
        output = tmp_path / kind
        build(manifest, codecs["mimi"], output, format=kind, tokenizer=tokenizer)
        build(manifest, codecs["mimi"], output, format=kind, tokenizer=tokenizer, num_codebooks=2)
        assert_same(samples_of(output if kind == "npy" else output / kind), expected)


def test_an_output_with_other_columns_is_refused(
    codecs: dict[str, str], manifest: Path, tokenizer: Path, tmp_path: Path
) -> None:
    build(manifest, codecs["mimi"], tmp_path / "out", max_samples=1)
    with pytest.raises(ConfigError, match=r"contains samples with codes \(int16\).*text_ids \(int32\); give another"):
        build(manifest, codecs["mimi"], tmp_path / "out", tokenizer=tokenizer)


@pytest.mark.slow
def test_processes_and_parts_give_the_same(codecs: dict[str, str], manifest: Path, tmp_path: Path) -> None:
    expected = plainly("dac", manifest)
    build(manifest, codecs["dac"], tmp_path / "two", engine="local", num_processes=2)
    assert_same(samples_of(tmp_path / "two"), expected)
    parts = [tmp_path / f"part{index}" for index in range(2)]
    for index, part in enumerate(parts):
        build(manifest, codecs["dac"], part, shard=f"{index}/2")
    merge(parts, tmp_path / "merged")
    assert_same(samples_of(tmp_path / "merged"), expected)


@pytest.mark.slow
def test_ray_makes_the_same(codecs: dict[str, str], manifest: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        build(manifest, codecs["mimi"], tmp_path / "out", engine="ray")
    finally:
        ray.shutdown()
    assert_same(samples_of(tmp_path / "out"), plainly("mimi", manifest))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npy", "arrow"])
def test_killed_and_run_again(codecs: dict[str, str], manifest: Path, tmp_path: Path, kind: str) -> None:
    output = tmp_path / "out"
    command = [
        sys.executable, "-m", "hfprep", "build", "--manifest", str(manifest), "--output-dir", str(output),
        "--recipe", "codec", "--codec-model", codecs["encodec"], "--engine", "inline", "--batch-size", "1",
        "--format", kind, "--val-ratio", "0.3",
    ]  # fmt: skip
    progress = output / ".preprocessing_progress.txt"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if progress.is_file() and len(progress.read_bytes().splitlines()) >= 3:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.001)
    assert len(progress.read_bytes().splitlines()) >= 3
    summary = build(manifest, codecs["encodec"], output, format=kind, batch_size=8)
    assert summary.accepted == len(SECONDS)
    assert_same(samples_of(output if kind == "npy" else output / kind), plainly("encodec", manifest))


def test_what_an_output_says_of_itself(codecs: dict[str, str], manifest: Path, tmp_path: Path) -> None:
    build(manifest, codecs["mimi"], tmp_path / "out", num_codebooks=3)
    stats = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert (stats["recipe"], stats["schema"]["code_rate"], stats["schema"]["fixed"]) == (
        "codec",
        12.5,
        {"codebooks": 3},
    )
    assert set(stats["sha256"]) == {"codec/config.json", "codec/model.safetensors"}
    record = json.loads((tmp_path / "out" / "train_manifest.jsonl").read_text().splitlines()[0])
    assert (record["codebooks"], "text_len" in record) == (3, False)
    assert record["code_len"] == np.load(tmp_path / "out" / record["codes_path"]).shape[1]


def test_a_clip_that_is_too_long_is_rejected(codecs: dict[str, str], tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.flac", np.zeros(301 * 8000, np.float32), 8000)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"id": "a", "text": "b", "audio": "long.flac"}) + "\n")
    assert build(tmp_path / "manifest.jsonl", codecs["mimi"], tmp_path / "out").rejected == {"audio_too_long": 1}
    message = json.loads((tmp_path / "out" / "rejected.jsonl").read_text())["message"]
    assert "3763 frames of 80 ms; the models take up to 3750" in message


@pytest.mark.parametrize(
    "family", ["mimi", *(pytest.param(name, marks=pytest.mark.slow) for name in ("encodec", "dac"))]
)
def test_verified_against_the_library_checked_and_reported(
    codecs: dict[str, str], manifest: Path, tokenizer: Path, tmp_path: Path, family: str
) -> None:
    output = tmp_path / "out"
    flags = ["--recipe", "codec", "--codec-model", codecs[family], "--tokenizer", str(tokenizer)]
    build(manifest, codecs[family], output, tokenizer=tokenizer)
    status, said = quiet_run(["verify", str(output), "--parity", "4", "--reference", "10", "--device", "cpu"])
    assert status == 0, said
    path = next((output / "codes").iterdir())
    codes = np.load(path)
    np.save(path, np.where(codes == 3, 4, 3).astype(codes.dtype))
    assert quiet_run(["verify", str(output), "--reference", "10"])[0] == 1
    np.save(path, codes.astype(np.int32))
    assert quiet_run(["verify", str(output)])[0] == 1
    np.save(path, codes)
    status, said = quiet_run(["check", str(manifest), *flags])
    assert status == 1, said  # a row is to be rejected
    assert "audio_missing" in said
    assert quiet_run(["report", str(output), "--output", str(tmp_path / "report.html")])[0] == 0
    page = html.unescape((tmp_path / "report.html").read_text())
    record = json.loads((output / "train_manifest.jsonl").read_text().splitlines()[0])
    pieces = " ".join(spm.SentencePieceProcessor(model_file=str(tokenizer)).encode(record["text"], out_type=str))
    assert f'<td data-name="pieces">{pieces}</td>' in page
    assert "unknown token" in page


def test_a_report_of_codes_alone_does_not_speak_of_texts(
    codecs: dict[str, str], manifest: Path, tmp_path: Path
) -> None:
    build(manifest, codecs["mimi"], tmp_path / "out")
    assert quiet_run(["report", str(tmp_path / "out"), "--output", str(tmp_path / "report.html")])[0] == 0
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Codebook: codes</h2>" in page
    assert "<h2>Unknown tokens</h2>" not in page
    assert "tokenizer was not found" not in page


@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizers"])
def test_pieces_of_a_plain_text_and_what_is_unknown(tokenizer: Path, tmp_path: Path, kind: str) -> None:
    path = tokenizer
    if kind == "tokenizers":
        from tokenizers import Tokenizer, models, pre_tokenizers

        words = Tokenizer(models.WordLevel({"[UNK]": 0, "HELLO": 1, "THERE": 2}, unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        path = tmp_path / "tokenizer.json"
        words.save(str(path))
    encoder = PlainText(path)
    known = encoder.tokenize("HELLO THERE")
    assert known.ids.tolist() == encoder.encode("HELLO THERE").tolist()
    assert len(known.pieces) == len(known.ids)
    assert "".join(known.pieces).replace("\u2581", "").startswith("HELLO")
    assert known.stages.normalized == "HELLO THERE"
    assert len(encoder.tokenize("HELLO \U0001f9ff").unknown) == 1


def test_the_card_says_what_the_codes_are(codecs: dict[str, str], manifest: Path, tmp_path: Path) -> None:
    build(manifest, codecs["mimi"], tmp_path / "out", num_codebooks=3, format="arrow")
    said = card(open_set(tmp_path / "out" / "arrow"), "me/codes", data_format="arrow", dtype="float32")
    assert "| `codes` | int16, 3 x code_len | codes of the audio, 12.5 per second |" in said
    assert "recipe codec" in said


def test_the_demo_makes_a_codec(tmp_path: Path) -> None:
    status, said = quiet_run(["demo", str(tmp_path / "demo"), "--recipe", "codec", "--num-samples", "2"])
    assert status == 0, said
    assert "--codec-model DIR" in said
    stats = json.loads((tmp_path / "demo" / "features" / "stats.json").read_text())
    assert (stats["recipe"], stats["accepted"] > 2) == ("codec", True)
    assert quiet_run(["demo", str(tmp_path / "other"), "--recipe", "nothing"])[0] == 2
