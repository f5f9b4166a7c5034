"""Merges learnt on top of a segmentation."""

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hfprep.tools.tokenizer.merges import learn_merges, merged

Words = dict[tuple[str, ...], int]


def everything(_piece: str) -> bool:
    return True


def test_the_most_frequent_pair_comes_first_and_builds_on_what_came_before() -> None:
    # a b 5 + 3 = 8; then ab c 3, ab d 5: abd before abc.
    words: Words = {("a", "b", "c"): 3, ("a", "b", "d"): 5, ("c", "d"): 2}
    assert learn_merges(words, 10, everything) == ["ab", "abd", "abc", "cd"]
    assert learn_merges(words, 2, everything) == ["ab", "abd"]
    assert learn_merges(words, 0, everything) == []


def test_what_occurs_once_is_not_learnt_and_ties_go_to_what_sorts_first() -> None:
    words: Words = {("x", "y"): 1, ("b", "a"): 2, ("a", "b"): 2}
    assert learn_merges(words, 10, everything) == ["ab", "ba"]


def test_only_what_is_allowed_is_learnt() -> None:
    words: Words = {("a", "b", "c"): 9}
    assert learn_merges(words, 10, lambda piece: piece != "ab") == ["bc", "abc"]


def test_a_piece_is_counted_however_it_is_put_together() -> None:
    # "abc" is made of ab + c in one word and of a + bc in another: 2 + 2, more than anything else but its parts.
    words: Words = {("ab", "c"): 2, ("a", "bc"): 2, ("x", "y"): 3}
    assert learn_merges(words, 1, everything) == ["abc"]


def test_a_merge_of_a_low_rank_comes_before_one_to_its_left() -> None:
    assert merged(["a", "b", "c"], {"bc": 0, "ab": 1}) == ["a", "bc"]
    assert merged(["a", "a", "a"], {"aa": 0}) == ["aa", "a"]
    assert merged(["a", "b", "c"], {"bc": 0, "ab": 1, "abc": 2}) == ["abc"]


def simple_learner(words: Words, most: int) -> list[str]:
    """The same without anything remembered: all counted anew for each piece."""
    ranks: dict[str, int] = {}
    while len(ranks) < most:
        counts = Counter[str]()
        for word, times in words.items():
            symbols = merged(word, ranks)
            for left, right in pairwise(symbols):
                counts[left + right] += times
        best = min(counts, key=lambda piece: (-counts[piece], piece), default=None)
        if best is None or counts[best] < 2:
            break
        ranks[best] = len(ranks)
    return list(ranks)


@given(st.dictionaries(st.lists(st.sampled_from("abc"), max_size=7).map(tuple), st.integers(1, 4), max_size=8))
def test_counting_only_what_changes_gives_what_counting_everything_gives(words: Words) -> None:
    assert learn_merges(words, 12, everything) == simple_learner(words, 12)
