"""IndexTTS-2.5's text: every golden row, what is rejected, and what the ids depend on."""

import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hfprep.recipes.indextts25.text as text_module
from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.recipes.indextts25 import japanese
from hfprep.recipes.indextts25.text import TextEncoder
from hfprep.recipes.indextts25.vocabulary import DROPPED_IDS, MAX_CHARACTERS, language_id

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parent.parent / "shared/golden25"
FILE = "checkpoints/multilingual_zh_ja_yue_char_del.tiktoken"
SMALL = TESTS / "golden25-small"
ROWS = [
    json.loads(line)
    for folder in (SMALL, SHARED)
    if folder.is_dir()
    for line in (folder / "text.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(SMALL / FILE)


def test_every_row_is_here() -> None:
    assert len(ROWS) == 104 + 106 * SHARED.is_dir()


@pytest.mark.parametrize("row", ROWS, ids=[f"{number}-{row['language']}" for number, row in enumerate(ROWS, 1)])
def test_row(encoder: TextEncoder, row: dict[str, Any]) -> None:
    language = row["language"]
    stages = encoder.stages(row["text"], language)
    assert stages.cleaned == row["cleaned"]
    assert language_id(language) == row["lang_id"]
    if "unstable" in row and stages.tokenizer_input != row["final"]:
        assert stages.tokenizer_input in row["unstable"]
        return
    assert stages.normalized == row["normalized"]
    assert stages.tokenizer_input == row["final"]
    assert encoder.all_ids(stages, language) == row["ids"]
    assert [number for number in row["ids"] if number not in DROPPED_IDS] == row["model_ids"]
    if row["text"].strip() and stages.normalized.strip():
        tokenized = encoder.tokenize(row["text"], language)
        assert tokenized.ids.tolist() == encoder.encode(row["text"], language).tolist() == row["model_ids"]
        assert str(tokenized.ids.dtype) == "int32"


@pytest.mark.parametrize("folder", [SMALL, SHARED], ids=lambda folder: folder.name)
def test_golden_manifests(encoder: TextEncoder, folder: Path) -> None:
    if not folder.is_dir():
        pytest.skip("the shared golden set does not lie beside this checkout")
    expected = json.loads((folder / "expected/text_ids.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    got = {
        row["id"]: {"ids": encoder.encode(row["text"], row["language"]).tolist(),
                    "lang_id": language_id(row["language"])}
        for row in rows
    }  # fmt: skip
    assert got == expected


def test_no_language_is_an_empty_code(encoder: TextEncoder) -> None:
    assert encoder.encode("no language given").tolist() == encoder.encode("no language given", "").tolist()
    assert language_id(None) == language_id("klingon") == language_id("COMMON") == 105


@pytest.mark.parametrize(
    ("text", "language", "reason", "message"),
    [
        ("", "en", Reason.EMPTY_TEXT, "nothing is spoken"),
        (" \n", "ar", Reason.EMPTY_TEXT, "nothing is spoken"),
        ("\x00", "zh", Reason.TEXT_FAILED, "zh grammar cannot parse"),
        ("abc\ud83d", "de", Reason.TEXT_FAILED, r"U\+D83D at position 3"),
        ("日\x00本", "ja", Reason.TEXT_FAILED, "loses characters"),
        ("a" * (MAX_CHARACTERS + 1), "fr", Reason.TEXT_TOO_LONG, "20,001 characters"),
        ("7" * 5001, "zh", Reason.TEXT_TOO_LONG, "5001 characters"),
    ],
)
def test_rejects(encoder: TextEncoder, text: str, language: str, reason: Reason, message: str) -> None:
    with pytest.raises(RejectedSample, match=message) as rejected:
        encoder.encode(text, language)
    assert rejected.value.reason is reason


@pytest.mark.parametrize("text", ["a", " ", "!", "a1", "你", " \n", "'s"])
def test_the_longest_text_is_read_in_no_time(encoder: TextEncoder, text: str) -> None:
    """Nor does a run of one character end the process."""
    longest = (text * MAX_CHARACTERS)[:MAX_CHARACTERS]
    assert len(encoder.all_ids(encoder.stages(longest, "de"), "de")) > 600


def test_japanese_without_its_packages_is_rejected_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(SMALL / FILE)
    monkeypatch.setitem(sys.modules, "fugashi", None)
    with pytest.raises(RejectedSample, match=r"pip install 'hfprep\[ja\]'") as rejected:
        encoder.encode("足が長く", "ja")
    assert rejected.value.reason is Reason.TEXT_FAILED
    assert len(encoder.encode("long legs", "en")) == 3


def test_japanese_words_come_from_one_dictionary_whatever_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import fugashi
    import unidic_lite

    monkeypatch.setattr(fugashi, "Tagger", lambda options: options)
    assert f'-d "{unidic_lite.DICDIR}"' in japanese._open_tagger()


def test_spaces_between_japanese_words_stay() -> None:
    assert japanese.JapaneseWords()("  速い  です ") == "  速い  です "


def test_hidden_readings_come_back_many_of_them_and_in_place(encoder: TextEncoder) -> None:
    readings = " ".join(f"<w{number}|R{number}>" for number in range(30))
    assert encoder.stages(f"5 {readings}", "en").normalized == f"five {readings}"


def test_hyphens_in_words_are_no_minus(encoder: TextEncoder) -> None:
    assert encoder.stages("a-5 是 B-2-c", "zh").normalized == "a-五 是 B-二-c"
    assert encoder.stages("well-known F-16", "en").normalized == "well-known F-sixteen"


def test_glossary(tmp_path: Path) -> None:
    glossary = tmp_path / "glossary.yaml"
    glossary.write_text("M.2:\n  en: M dot two\n  zh: M 二\nNVMe: N-V-M-E\nM: never\n", encoding="utf-8")
    encoder = TextEncoder(SMALL / FILE, glossary=glossary)
    assert encoder.stages("an m.2 NVME", "en").normalized == "an never dot two N-V-never-E"
    assert encoder.stages("m.2 盘", "zh").normalized == "never 二 盘"
    assert encoder.stages("m.2", "de").normalized == "m.2"  # a language without a grammar
    assert encoder.fingerprint() != TextEncoder(SMALL / FILE).fingerprint()


def test_glossary_readings_are_no_patterns(tmp_path: Path) -> None:
    glossary = tmp_path / "glossary.yaml"
    glossary.write_text("C++: 'C \\1 \\g'\nB: {zh: 'x'}\n", encoding="utf-8")
    encoder = TextEncoder(SMALL / FILE, glossary=glossary)
    assert encoder.stages("my c++ b", "en").normalized == "my C \\one \\g B"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n", "contains a list"),
        (b"a: [1]\n", "'a' has the reading"),
        (b"a: 5\n", "'a' has the reading 5"),
        (b"5: a\n", "5 has the reading 'a'"),
        (b"a: {zh: 5}\n", "'a' has the reading"),
        (b"a: {\n", "is not a YAML file"),
        (b"\xff\xfe\xff", "is not a YAML file"),
    ],
)
def test_a_wrong_glossary_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    glossary = tmp_path / "glossary.yaml"
    glossary.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        TextEncoder(SMALL / FILE, glossary=glossary)
    assert str(glossary) in str(error.value)


def test_an_empty_glossary_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "glossary.yaml").write_text("# none\n")
    encoder = TextEncoder(SMALL / FILE, glossary=tmp_path / "glossary.yaml")
    assert encoder.stages("M.2", "en").normalized == TextEncoder(SMALL / FILE).stages("M.2", "en").normalized


def test_threads_and_pickles_agree(encoder: TextEncoder) -> None:
    rows = [(row["text"], row["language"]) for row in ROWS[:104]]
    alone = [encoder.stages(*row) for row in rows]
    fresh = pickle.loads(pickle.dumps(encoder))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda row: fresh.stages(*row), rows * 2)) == alone * 2


def test_fingerprint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fingerprints = [TextEncoder(SMALL / FILE).fingerprint()]
    other = tmp_path / "other.tiktoken"
    other.write_bytes((SMALL / FILE).read_bytes().replace(b"IGRpbGlnZW50 48470", b"IGRpbGlnZW51 48470"))
    fingerprints.append(TextEncoder(other).fingerprint())
    monkeypatch.setattr(text_module, "TEXT_VERSION", "other")
    fingerprints.append(TextEncoder(SMALL / FILE).fingerprint())
    monkeypatch.setattr(japanese, "importlib", SimpleNamespace(metadata=SimpleNamespace(version=lambda name: "0")))
    fingerprints.append(TextEncoder(SMALL / FILE).fingerprint())
    assert len(set(fingerprints)) == 4
    assert "WeTextProcessing 1.0.4.1" in fingerprints[0]
