"""Samples read at an unlikely pace are found by language, whatever their number."""

from hfprep.schema import Utterance
from hfprep.tools.check.outliers import FEWEST, KEPT, Pace


def row(sample_id: str, text: str, language: str | None = "en") -> Utterance:
    return Utterance(1, sample_id, text, "a.wav", "/a.wav", language=language)


def test_the_usual_pace_is_that_of_the_language() -> None:
    pace = Pace()
    for number in range(200):
        pace.add(row(f"en{number}", "a" * 15), 1.0)
        pace.add(row(f"zh{number}", "好" * 4, "zh"), 1.0)
    pace.add(row("fast", "a" * 100), 1.0)
    pace.add(row("silent", "a" * 30), 20.0)
    pace.add(row("too much text", "好" * 15, "zh"), 1.0)
    found = {sample_id: (language, value, usual) for sample_id, language, value, usual in pace.outliers()}
    assert found.keys() == {"fast", "silent", "too much text"}
    assert found["fast"][:2] == ("en", 100.0)
    assert found["silent"][:2] == ("en", 1.5)
    assert 14 < found["fast"][2] < 16.5
    assert 3.5 < found["too much text"][2] < 4.5
    assert next(item[0] for item in pace.outliers()) == "silent", "ten times from the usual, the others less"


def test_spaces_are_not_spoken_and_nothing_is_divided_by_zero() -> None:
    pace = Pace()
    pace.add(row("blank", "  \n"), 1.0)
    pace.add(row("no audio", "a"), 0.0)
    assert pace.languages == {}
    pace.add(row("one", "a b  c"), 1.0)
    assert pace.languages["en"].fastest[0][0] == 3.0


def test_a_few_samples_have_no_usual_pace() -> None:
    pace = Pace()
    for number in range(FEWEST - 2):
        pace.add(row(str(number), "a" * 10), 1.0)
    pace.add(row("odd", "a" * 90), 1.0)
    assert pace.outliers() == []
    pace.add(row("last", "a" * 10), 1.0)
    assert [item[0] for item in pace.outliers()] == ["odd"]


def test_memory_does_not_grow_with_the_rows() -> None:
    pace = Pace()
    for number in range(10_000):
        pace.add(row(str(number), "a" * (1 + number % 97)), 1.0)
    found = pace.languages["en"]
    assert len(found.fastest) == len(found.slowest) == KEPT
    assert len(found.bins) < 100
