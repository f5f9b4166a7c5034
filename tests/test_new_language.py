"""The whole way to a new language: compare, extend, extend the checkpoint, build, pairs, load a batch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from torch.utils.data import DataLoader
from typer.testing import CliRunner

import hfprep
from hfprep.cli import app as cli
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.tools.tokenizer.compare import compare
from tests.tokenizers import AMHARIC, train_base

pytestmark = pytest.mark.usefixtures("two_layers")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def manifest(golden_small: Path, tmp_path: Path) -> Path:
    """Twenty Amharic rows of two speakers, and two English ones."""
    clips = sorted((golden_small / "audio").iterdir())
    texts = [*AMHARIC, *AMHARIC, "Good morning.", "It's raining."]
    rows = [
        {
            "id": f"row{number:02d}",
            "text": text,
            "audio": str(clips[number % len(clips)]),
            "speaker": f"speaker{number % 2}",
            "language": "amharic" if number < 20 else "en",
        }
        for number, text in enumerate(texts)
    ]
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_from_raw_text_to_a_batch(golden_small: Path, manifest: Path, tmp_path: Path) -> None:
    models = golden_small / "checkpoints"
    base, new, extended, out = (tmp_path / name for name in ("bpe.model", "new.model", "extended", "out"))
    base.write_bytes(train_base())
    run("tokenizer", "extend", "--base", base, "--manifest", manifest, "--output", new)
    assert "Language am: 20 texts" in run("tokenizer", "compare", "--manifest", manifest, base, new)
    before, after = compare([base, new], [manifest]).languages["am"]
    assert before.unknown_rate > 0.8
    assert after.unknown == 0
    run(
        "extend-checkpoint", "--gpt-checkpoint", models / "gpt.pth", "--config", models / "config.yaml",
        "--base", base, "--tokenizer", new, "--output-dir", extended,
    )  # fmt: skip
    files = ["--config", extended / "config.yaml", "--gpt-checkpoint", extended / "gpt.pth"]
    common = ["--manifest", manifest, "--models", models, "--val-ratio", 0.4]
    run("build", *common, *files, "--tokenizer", extended / "bpe.model", "--output-dir", out)
    run("pairs", out)
    run("verify", out)

    processor = sentencepiece.SentencePieceProcessor(model_file=str(new))
    tokenizer = TextTokenizer(base)
    records = read(out / "train_manifest.jsonl") + read(out / "val_manifest.jsonl")
    assert len(records) == 22
    for record in records:
        ids = np.load(out / record["text_ids_path"])
        prepared = tokenizer.prepare(record["text"], record["language"]).tokenizer_input
        assert ids.tolist() == processor.encode(prepared, out_type=int)
        assert record["language"] in ("am", "en")
        if record["language"] == "en":
            assert ids.tolist() == tokenizer.encode(record["text"], "en").tolist()
        else:
            assert processor.unk_id() not in ids
            assert ids.max() >= tokenizer.vocab_size

    rows = torch.load(extended / "gpt.pth", weights_only=True)["text_embedding.weight"].shape[0]
    data = hfprep.load(out / "train_pairs.jsonl")
    batch = next(iter(DataLoader(data, batch_size=4, collate_fn=hfprep.collate)))
    assert batch["text_ids"].shape[0] == 4
    assert batch["text_ids"].max() < rows


def test_nothing_but_text_ids_depends_on_the_rows(golden_small: Path, manifest: Path, tmp_path: Path) -> None:
    """Codes, conditions and emotions are those that the checkpoint gave before it was extended."""
    models = golden_small / "checkpoints"
    base, new, extended = (tmp_path / name for name in ("bpe.model", "new.model", "extended"))
    base.write_bytes(train_base())
    run("tokenizer", "extend", "--base", base, "--manifest", manifest, "--output", new)
    run(
        "extend-checkpoint", "--gpt-checkpoint", models / "gpt.pth", "--config", models / "config.yaml",
        "--base", base, "--tokenizer", new, "--output-dir", extended,
    )  # fmt: skip
    common = ["build", "--manifest", manifest, "--models", models]
    run(*common, "--tokenizer", base, "--output-dir", tmp_path / "before")
    files = ["--config", extended / "config.yaml", "--gpt-checkpoint", extended / "gpt.pth", "--tokenizer", new]
    run(*common, *files, "--output-dir", tmp_path / "after")
    compared = 0
    for column in ("codes", "condition", "emo_vec"):
        for path in sorted((tmp_path / "before" / column).iterdir()):
            assert path.read_bytes() == (tmp_path / "after" / column / path.name).read_bytes()
            compared += 1
    assert compared == 3 * 22
