"""The published front end's own results: tests/data/text.jsonl line by line, and the golden sets' token ids.

tests/data/text-bpe.model is that set's tokenizer without the training paths that its file carried.
"""

import json
from pathlib import Path

import pytest

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.text.tokenizer import TextTokenizer

DATA = Path(__file__).parent / "data"
CASES = [json.loads(line) for line in (DATA / "text.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(DATA / "text-bpe.model")


def test_every_case_is_here() -> None:
    assert len(CASES) == 85


@pytest.mark.parametrize("case", CASES, ids=[f"{number}-{case['language']}" for number, case in enumerate(CASES, 1)])
def test_case(tokenizer: TextTokenizer, case: dict) -> None:
    if not case["ids"]:
        with pytest.raises(RejectedSample) as rejected:
            tokenizer.encode(case["text"], case["language"])
        assert rejected.value.reason is Reason.EMPTY_TEXT
        return
    result = tokenizer.tokenize(case["text"], case["language"])
    assert result.stages.cleaned == case["cleaned"]
    assert result.stages.normalized == case["normalized"]
    assert result.ids.tolist() == case["ids"]


def _check_set(folder: Path) -> None:
    expected = json.loads((folder / "expected" / "text_ids.json").read_text(encoding="utf-8"))
    tokenizer = TextTokenizer(folder / "checkpoints" / "bpe.model")
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    got = {row["id"]: tokenizer.encode(row["text"], row.get("language")).tolist() for row in rows}
    assert got == expected


def test_golden_small(golden_small: Path) -> None:
    _check_set(golden_small)


def test_shared_golden(shared_golden: Path | None) -> None:
    if shared_golden is None:
        pytest.skip("the shared golden set does not lie beside this checkout")
    _check_set(shared_golden)
