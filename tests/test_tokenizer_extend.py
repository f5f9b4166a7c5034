"""`tokenizer extend`: the base's ids and texts stay, the new language gets pieces, all from the texts alone."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hfprep.cli import app as cli
from hfprep.errors import ConfigError, RejectedSample
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.tools.tokenizer.extend import Extended, ExtendOptions, extend
from hfprep.tools.tokenizer.vocabulary import Vocabulary
from tests.tokenizers import AMHARIC, train_base, write_manifest

pytestmark = pytest.mark.usefixtures("normalised_once")

# Scripts that neither the trained base nor the golden one writes: Amharic letters that are rare, Russian, Hindi, Thai,
# Arabic, Korean.
OTHER_SCRIPTS = (
    *AMHARIC,
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Привет, как дела? Привет, мир!",
    "नमस्ते, आप कैसे हैं? नमस्ते दुनिया।",
    "สวัสดีครับ วันนี้อากาศดีมาก สวัสดี",
    "مرحبا بالعالم، كيف حالك اليوم؟ مرحبا",
    "안녕하세요, 오늘은 날씨가 좋습니다. 안녕",
    "ጸሐፊው ጉዳዩን ፈጽሞ ረሳው፤ ጸሐፊው ጠፋ።",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "bpe.model"
    path.write_bytes(train_base())
    return path


def extended_by(base: Path, folder: Path, texts: tuple[str, ...] = AMHARIC, **options: object) -> tuple[Extended, Path]:
    manifest = write_manifest(folder / "manifest.jsonl", texts)
    output = folder / "new.model"
    return extend(ExtendOptions(base=base, manifests=(manifest,), output=output, **options)), output  # type: ignore[arg-type]


def opened(path: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def pieces_of(path: Path) -> list[str]:
    model = opened(path)
    return [model.id_to_piece(number) for number in range(model.get_piece_size())]


def test_every_id_of_the_base_stays_and_every_text_of_the_language_is_known(base: Path, tmp_path: Path) -> None:
    found, output = extended_by(base, tmp_path)
    before, after = pieces_of(base), pieces_of(output)
    assert after == [*before, *found.characters, *found.merges]
    assert len(found.characters) > 50
    assert len(found.merges) > 10
    assert len(set(after)) == len(after)
    tokenizer = TextTokenizer(output)
    assert not any(tokenizer.tokenize(text).unknown for text in AMHARIC)
    assert any(TextTokenizer(base).tokenize(text).unknown for text in AMHARIC)
    assert found.ids_after == sum(len(tokenizer.encode(text)) for text in AMHARIC)
    assert found.ids_before == sum(len(TextTokenizer(base).encode(text)) for text in AMHARIC)
    assert (found.texts, found.skipped, found.size) == (len(AMHARIC), 0, len(after))


def test_the_file_is_a_valid_model_of_the_right_size(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf")
    proto: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    found, output = extended_by(base, tmp_path)
    old, new = proto.ModelProto(), proto.ModelProto()
    old.ParseFromString(base.read_bytes())
    new.ParseFromString(output.read_bytes())
    assert list(new.pieces)[: found.base_size] == list(old.pieces)
    added = list(new.pieces)[found.base_size :]
    assert new.trainer_spec.vocab_size == len(new.pieces) == found.size
    assert {piece.type for piece in added} == {proto.ModelProto.SentencePiece.NORMAL}
    lowest = min(piece.score for piece in old.pieces)
    assert [piece.score for piece in added] == [lowest - 1 - number for number in range(len(added))]
    new.trainer_spec.vocab_size = old.trainer_spec.vocab_size
    assert new.trainer_spec == old.trainer_spec
    assert new.normalizer_spec == old.normalizer_spec


def test_the_same_texts_give_the_same_bytes(base: Path, tmp_path: Path) -> None:
    once, again = tmp_path / "once", tmp_path / "again"
    once.mkdir()
    again.mkdir()
    assert extended_by(base, once)[1].read_bytes() == extended_by(base, again)[1].read_bytes()


def test_the_model_writes_the_texts_as_they_were_segmented_while_it_was_learnt(base: Path, tmp_path: Path) -> None:
    """Each merge is reached: without it, some text takes more ids."""
    found, output = extended_by(base, tmp_path, OTHER_SCRIPTS)
    tokenizer = TextTokenizer(output)
    used = {piece for text in OTHER_SCRIPTS for piece in tokenizer.tokenize(text).pieces}
    merged_into = {piece for longer in found.merges for piece in found.merges if piece != longer and piece in longer}
    assert set(found.merges) <= used | merged_into
    assert used & set(found.merges)


def test_more_pieces_leave_the_earlier_ones_alone(base: Path, tmp_path: Path) -> None:
    few, _ = extended_by(base, tmp_path, new_pieces=90)
    many, _ = extended_by(base, tmp_path, new_pieces=95)
    assert few.size == few.base_size + 90
    assert (*many.characters, *many.merges)[:90] == (*few.characters, *few.merges)


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_golden_texts_have_their_ids_still(
    shared: bool, repository: Path, shared_golden: Path | None, tmp_path: Path
) -> None:
    data = repository / "tests" / "data"
    model, texts = data / "text-bpe.model", data / "text.jsonl"
    if shared:
        if shared_golden is None:
            pytest.skip("the larger golden set is not beside the checkout")
        model, texts = shared_golden / "checkpoints" / "bpe.model", shared_golden / "text.jsonl"
    found, output = extended_by(model, tmp_path, OTHER_SCRIPTS)
    assert len(found.merges) > 40
    before, after = TextTokenizer(model), TextTokenizer(output)
    same = 0
    for row in map(json.loads, texts.read_text(encoding="utf-8").splitlines()):
        text, language = row["text"], row["language"]
        if row["ids"]:
            new = set(found.characters) & set("".join(before.tokenize(text, language).unknown))
            assert (after.encode(text, language).tolist() == row["ids"]) is not bool(new), text
            same += not new
    assert same > 60


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_no_text_of_the_base_changes_whatever_is_in_it(byte_fallback: bool, tmp_path: Path) -> None:
    base = tmp_path / "base.model"
    base.write_bytes(train_base(byte_fallback=byte_fallback))
    _, output = extended_by(base, tmp_path, OTHER_SCRIPTS)
    before, after = opened(base), opened(output)
    characters = [*sorted(Vocabulary(base, "--base").alone - {"\u2581"}), " "]

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.sampled_from(characters), max_size=60).map("".join))
    def same(text: str) -> None:
        assert before.encode(text, out_type=int) == after.encode(text, out_type=int)

    same()


def test_characters_in_bytes_get_an_id(tmp_path: Path) -> None:
    base = tmp_path / "base.model"
    base.write_bytes(train_base(byte_fallback=True))
    found, output = extended_by(base, tmp_path)
    assert {"ሰ", "ላ", "ም"} <= set(found.characters)
    assert not any(opened(output).is_byte(number) for text in AMHARIC for number in TextTokenizer(output).encode(text))
    assert found.ids_after < found.ids_before / 3


def test_rare_characters_may_stay_without_an_id(base: Path, tmp_path: Path) -> None:
    texts = ("ሰላም " * 50, "ሰላም ጸ")
    found, output = extended_by(base, tmp_path, texts, character_coverage=0.99)
    assert found.left_out == ("ጸ",)
    assert TextTokenizer(output).tokenize("ሰላም ጸ").unknown
    everything, _ = extended_by(base, tmp_path, texts)
    assert not everything.left_out


def test_a_text_with_a_new_character_is_named_as_changed(base: Path, tmp_path: Path) -> None:
    unchanged = write_manifest(tmp_path / "english.jsonl", ["Say ሰላም to her.", "Say nothing."], "en")
    found, output = extended_by(base, tmp_path, unchanged=(unchanged,))
    assert [text.name for text in found.changed] == ["row0"]
    assert found.held == 2 + 18
    arguments = ["tokenizer", "extend", "--base", str(base), "--manifest", str(tmp_path / "manifest.jsonl")]
    result = CliRunner().invoke(cli.app, [*arguments, "--unchanged", str(unchanged), "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert "1 of 20 texts in the base's languages have different ids now" in result.output
    assert "row0" in result.output


def test_lines_that_a_build_would_reject_are_counted(base: Path, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "manifest.jsonl", [*AMHARIC, " ", "half \ud800"[:5]])
    manifest.write_text(manifest.read_text(encoding="utf-8") + "no row\n", encoding="utf-8")
    found = extend(ExtendOptions(base=base, manifests=(manifest,), output=tmp_path / "new.model"))
    assert (found.texts, found.skipped) == (len(AMHARIC) + 1, 2)


def test_what_cannot_be_extended_is_refused_and_nothing_is_written(base: Path, tmp_path: Path) -> None:
    unigram = tmp_path / "unigram.model"
    unigram.write_bytes(train_base("unigram"))
    with pytest.raises(ConfigError, match=r"--base is '.*unigram\.model'; it must be a BPE model"):
        extended_by(unigram, tmp_path)
    with pytest.raises(ConfigError, match="there is nothing to add"):
        extended_by(base, tmp_path, ("Hello there.",))
    with pytest.raises(ConfigError, match=r"special tokens from the number of lines"):
        ExtendOptions(base=Path("a.tiktoken"), manifests=(), output=tmp_path / "x")
    with pytest.raises(ConfigError, match="--new-pieces is 0; it must be"):
        extended_by(base, tmp_path, new_pieces=0)
    with pytest.raises(ConfigError, match=r"--character-coverage is 1\.5; it must be"):
        extended_by(base, tmp_path, character_coverage=1.5)
    with pytest.raises(ConfigError, match="is empty"):
        extended_by(base, tmp_path, ())
    assert not (tmp_path / "new.model").exists()


def test_a_text_that_is_rejected_is_rejected_still(base: Path, tmp_path: Path) -> None:
    _, output = extended_by(base, tmp_path)
    with pytest.raises(RejectedSample):
        TextTokenizer(output).encode("speaker 1: ")
