"""`tokenizer compare`: what each tokenizer makes of a manifest's texts, by language."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hfprep.cli import app as cli
from hfprep.errors import ConfigError, Reason
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.tools.shares import NONE_GIVEN
from hfprep.tools.tokenizer.compare import compare
from hfprep.tools.tokenizer.extend import ExtendOptions, extend
from tests.tokenizers import AMHARIC, train_base, write_manifest


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """A base, the base with byte fallback, and the base extended by Amharic."""
    paths = [tmp_path / f"{name}.model" for name in ("plain", "bytes", "extended")]
    paths[0].write_bytes(train_base())
    paths[1].write_bytes(train_base(byte_fallback=True))
    manifest = write_manifest(tmp_path / "am.jsonl", AMHARIC)
    extend(ExtendOptions(base=paths[0], manifests=(manifest,), output=paths[2]))
    return paths


def test_the_counts_are_those_of_the_texts(models: list[Path], tmp_path: Path) -> None:
    amharic = write_manifest(tmp_path / "a.jsonl", ["ሰላም ሰላም", "ቡና"], "am")
    mixed = write_manifest(tmp_path / "b.jsonl", ["Say ሰ", " "])
    found = compare(models, [amharic, mixed], limit=3)
    assert list(found.languages) == ["am", NONE_GIVEN]
    plain, in_bytes, extended = found.languages["am"]
    assert (plain.texts, plain.characters, plain.unknown, plain.in_bytes) == (2, 8, 8, 0)
    assert plain.unknown_rate == 1.0
    assert plain.worst == {"ሰ": 2, "ላ": 2, "ም": 2, "ቡ": 1, "ና": 1}
    assert plain.ids == 6  # a space and a run of unknown characters, three times
    assert (in_bytes.unknown, in_bytes.in_bytes, in_bytes.ids) == (0, 8, 3 + 3 * 8)
    assert (in_bytes.longest, in_bytes.longest_id, in_bytes.over_limit) == (2 + 3 * 6, "row0", 2)
    assert in_bytes.worst == plain.worst
    ids = [TextTokenizer(models[2]).encode(text).tolist() for text in ("ሰላም ሰላም", "ቡና")]
    assert (extended.unknown, extended.ids, extended.longest) == (0, sum(map(len, ids)), max(map(len, ids)))
    assert extended.ids_per_character == extended.ids / 8
    assert found.languages[NONE_GIVEN][0].unknown == 1
    assert (found.read, found.rejected) == (4, {Reason.EMPTY_TEXT: 1})


def test_a_language_for_all_rows_and_names_of_fields_are_taken(models: list[Path], tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "a.jsonl", ["ሰላም"])
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"text"', '"sentence"'), encoding="utf-8")
    found = compare(models[:1], [manifest], language="am", field_map="text=sentence")
    assert found.languages["am"][0].texts == 1


def test_the_command_shows_them_side_by_side(models: list[Path], tmp_path: Path, golden_small: Path) -> None:
    manifest = write_manifest(tmp_path / "a.jsonl", ["ሰላም ሰላም", " "], "am")
    config = golden_small / "checkpoints" / "config.yaml"
    arguments = ["tokenizer", "compare", "--manifest", str(manifest), "--config", str(config), *map(str, models)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "Language am: 1 texts, 6 characters" in result.output
    assert "100.00%" in result.output
    assert "unknown characters" in result.output
    assert "over 100 ids" in result.output
    assert "1 of 2 lines were omitted: empty_text 1" in result.output
    assert "ሰ 2" in result.output


def test_wrong_files_are_named(models: list[Path], tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "a.jsonl", ["ሰላም"])
    with pytest.raises(ConfigError, match=r"tokenizer not found: .*none\.model"):
        compare([models[0], tmp_path / "none.model"], [manifest])
    with pytest.raises(ConfigError, match="no tokenizer is given"):
        compare([], [manifest])
    with pytest.raises(ConfigError, match=r"is empty"):
        compare(models, [write_manifest(tmp_path / "empty.jsonl", [])])
