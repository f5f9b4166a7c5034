"""Options that decide on rows and splits: filters, --val-count, larger tokenizers, doubtful texts, pairs."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.formats.pair_files import make_pairs, pair_files
from hfprep.formats.pairs import PairOptions
from hfprep.pipeline.building import build
from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.filters import RowFilters
from hfprep.pipeline.summary import Summary
from hfprep.pipeline.validation import ratio_for_count
from hfprep.store.layout import is_validation
from hfprep.tools.check.options import CheckOptions
from hfprep.tools.check.scan import check
from tests.tokenizers import train_base

pytestmark = pytest.mark.usefixtures("two_layers", "one_clip_is_timed")


@pytest.fixture
def clips(golden_small: Path) -> list[str]:
    return sorted(str(path) for path in (golden_small / "audio").iterdir())[:4]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(clips: list[str], texts: list[str], **fields: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"r{number}", "text": text, "audio": clips[number % len(clips)], "speaker": f"s{number % 2}"} | fields
        for number, text in enumerate(texts)
    ]


def run(golden_small: Path, manifest: Path, output: Path, **options: Any) -> Summary:
    return build(
        BuildConfig(**{"manifest": manifest, "output_dir": output, "models": golden_small / "checkpoints"} | options)
    )


def listed(output: Path, name: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / f"{name}_manifest.jsonl").read_bytes().splitlines()]


def test_each_bound_has_its_own_reason() -> None:
    filters = RowFilters(min_seconds=1.0, max_seconds=10.0, max_chars_per_second=20.0)
    filters.check(1.0, "x" * 20)
    filters.check(10.0, " " + "x" * 200 + "\n")
    filters.check(None, "x" * 1000)
    for seconds, text, reason in (
        (0.99, "x", Reason.UNDER_MIN_SECONDS),
        (10.01, "x", Reason.OVER_MAX_SECONDS),
        (2.0, "x" * 41, Reason.OVER_MAX_CHARS_PER_SECOND),
    ):
        with pytest.raises(RejectedSample) as error:
            filters.check(seconds, text)
        assert error.value.reason is reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_seconds": 0.0}, "--min-seconds is 0.0; it must be"),
        ({"max_chars_per_second": -1.0}, "--max-chars-per-second is -1.0"),
        ({"max_seconds": float("nan")}, "--max-seconds is nan"),
        ({"min_seconds": 3.0, "max_seconds": 2.0}, "--max-seconds is 2.0; it must be at least --min-seconds, 3.0"),
    ],
)
def test_wrong_bounds_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BuildConfig(manifest=Path("m"), output_dir=Path("o"), **options)  # type: ignore[arg-type]


def test_a_build_leaves_out_what_is_over_a_bound_and_takes_it_back(
    golden_small: Path, clips: list[str], tmp_path: Path
) -> None:
    manifest = write(tmp_path / "m.jsonl", rows_of(clips, ["Hello there, this is a sentence."] * 4, language="en"))
    out = tmp_path / "out"
    assert run(golden_small, manifest, out).accepted == 4
    seconds = {record["id"]: record["duration"] for record in listed(out)}
    shortest, longest = min(seconds.values()), max(seconds.values())
    middle = (shortest + longest) / 2
    for options, reason, wrong in (
        ({"min_seconds": middle}, "under_min_seconds", {name for name, value in seconds.items() if value < middle}),
        ({"max_seconds": middle}, "over_max_seconds", {name for name, value in seconds.items() if value > middle}),
        (
            {"max_chars_per_second": 32 / middle},
            "over_max_chars_per_second",
            {name for name, value in seconds.items() if 32 / value > 32 / middle},
        ),
    ):
        summary = run(golden_small, manifest, out, **options)
        assert summary.rejected == {reason: len(wrong)}
        assert {record["id"] for record in listed(out)} == seconds.keys() - wrong
        fresh = run(golden_small, manifest, tmp_path / f"fresh-{reason}", **options)
        assert fresh.rejected == summary.rejected
        assert listed(tmp_path / f"fresh-{reason}") == listed(out)
        assert summary.reused == 4 - len(wrong)
    again = run(golden_small, manifest, out)
    assert (again.accepted, again.reused) == (4, 4)


def test_val_count_takes_the_ids_of_smallest_hash(golden_small: Path, tmp_path: Path) -> None:
    rows = [{"id": f"row{number}", "text": "x", "audio": "none.wav"} for number in range(500)]
    manifest = write(tmp_path / "m.jsonl", [*rows, *rows[:50], {"id": 3}])  # some ids twice, and a bad line
    config = BuildConfig(manifest=manifest, output_dir=tmp_path / "out", val_count=1)
    for count in (1, 7, 499, 500):
        ratio = ratio_for_count(config, count)
        assert sum(is_validation(row["id"], ratio) for row in rows) == count
    assert ratio_for_count(config, 0) == 0.0
    assert ratio_for_count(config, 501) == 1.0
    capped = BuildConfig(manifest=manifest, output_dir=tmp_path / "out", val_count=1, max_samples=100)
    assert sum(is_validation(row["id"], ratio_for_count(capped, 10)) for row in rows[:100]) == 10


def test_a_build_with_val_count_and_an_empty_split_is_told(
    golden_small: Path, clips: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = write(tmp_path / "m.jsonl", rows_of(clips, ["Hello."] * 6, language="en"))
    out = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        assert run(golden_small, manifest, out).val == 0
    assert "the validation split is empty: too few samples (6) for --val-ratio 0.01; use --val-count N" in caplog.text
    summary = run(golden_small, manifest, out, val_count=2)
    assert (summary.train, summary.val, summary.reused) == (4, 2, 6)
    stats = json.loads((out / "stats.json").read_bytes())
    assert stats["settings"]["val_count"] == 2
    assert {record["id"] for record in listed(out, "val")} == {
        f"r{number}" for number in range(6) if is_validation(f"r{number}", stats["settings"]["val_ratio"])
    }
    caplog.clear()
    assert run(golden_small, manifest, out, val_count=0).val == 0
    assert "the validation split is empty" not in caplog.text


def test_pairs_follow_a_build_that_changes_rows_or_texts(
    golden_small: Path, clips: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_of(clips, ["Hello there."] * 8, language="en")
    manifest, out = write(tmp_path / "m.jsonl", rows), tmp_path / "out"
    run(golden_small, manifest, out, val_count=4)
    make_pairs(out, PairOptions())
    before = (out / "train_pairs.jsonl").read_bytes()
    run(golden_small, manifest, out, val_count=4)
    assert (out / "train_pairs.jsonl").read_bytes() == before
    write(manifest, [row | {"text": "Another, longer text for every row."} for row in rows])
    with caplog.at_level(logging.WARNING):
        run(golden_small, manifest, out, val_count=4)
    assert "pairs: made train_pairs.jsonl, val_pairs.jsonl again" in caplog.text
    lengths = {record["id"]: record["text_len"] for record in listed(out)}
    pairs = [json.loads(line) for line in (out / "train_pairs.jsonl").read_bytes().splitlines()]
    assert all(pair["target_text_len"] == lengths[pair["target_id"]] for pair in pairs)
    run(golden_small, manifest, out, val_count=4, max_samples=3)
    assert "pairs: removed train_pairs.jsonl, val_pairs.jsonl" in caplog.text
    assert not pair_files(out)


def test_a_larger_tokenizer_is_taken_with_a_line_that_names_both_sizes(
    golden_small: Path, clips: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The rows of the checkpoint decide, not config.yaml."""
    models = golden_small / "checkpoints"
    manifest = write(tmp_path / "m.jsonl", rows_of(clips, ["Hello there."], language="en"))
    small = torch.load(models / "gpt.pth", weights_only=True)
    small["text_embedding.weight"] = small["text_embedding.weight"][:91].clone()
    torch.save(small, tmp_path / "gpt.pth")
    (tmp_path / "base.model").write_bytes(train_base())
    with caplog.at_level(logging.WARNING):
        summary = run(golden_small, manifest, tmp_path / "out", gpt_checkpoint=tmp_path / "gpt.pth")
    assert summary.accepted == 1
    assert f"bpe.model has 900 pieces, but the checkpoint {tmp_path / 'gpt.pth'} has rows for 90" in caplog.text
    assert "the trainer will have to grow text_embedding and text_head" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = check(CheckOptions(manifest=manifest, models=models, gpt_checkpoint=tmp_path / "gpt.pth")).findings
    assert found.accepted == 1
    assert "bpe.model has 900 pieces" in caplog.text
    caplog.clear()
    config = (models / "config.yaml").read_text().replace("number_text_tokens: 900", "number_text_tokens: 9")
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "wav2vec2bert_stats.pt").symlink_to(models / "wav2vec2bert_stats.pt")
    run(golden_small, manifest, tmp_path / "out2", config=tmp_path / "config.yaml")
    assert "rows for" not in caplog.text


def test_a_build_warns_once_of_texts_with_a_grammar_by_script_alone(
    golden_small: Path, clips: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_of(clips, ["Hello.", "150 рублей", "200 рублей", "Größe: 3,50 Euro"])
    manifest = write(tmp_path / "m.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        run(golden_small, manifest, tmp_path / "out")
    (line,) = [message for message in caplog.messages if "their grammar is chosen by script" in message]
    assert line.startswith("3 of 4 rows have no language")
    assert "Chinese for Cyrillic: 2, English for Latin with non-English letters: 1; the first is line 2" in line
    caplog.clear()
    run(golden_small, manifest, tmp_path / "hinted", language="ru")
    assert "their grammar is chosen by script" not in caplog.text
