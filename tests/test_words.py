"""Numbers as a person reads them."""

import pytest

from hfprep.io.words import count, duration, size


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (0.25, "0.25 s"), (18, "18 s"), (89.4, "89 s"), (90, "2 min"), (1200, "20 min"), (5399, "90 min"),
     (5400, "1.5 h"), (11520, "3.2 h"), (3_600_000, "1,000 h")],
)  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("num_bytes", "said"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (177_000_000, "177 MB"), (5_977_000_000, "6.0 GB"),
     (2e15, "2000 TB")],
)  # fmt: skip
def test_sizes(num_bytes: float, said: str) -> None:
    assert size(num_bytes) == said


def test_counts_have_their_plural() -> None:
    assert [count(number, "line") for number in (0, 1, 2, 1200)] == ["0 lines", "1 line", "2 lines", "1,200 lines"]
    assert count(2, "has", "have") == "2 have"
