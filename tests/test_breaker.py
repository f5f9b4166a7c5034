"""Failures of one sample, and failures that are nobody's but the machine's."""

import pickle

import pytest

from hfprep.errors import Reason
from hfprep.pipeline.breaker import MAX_HELD, MAX_IN_A_ROW, Breaker, SystematicFailureError, Unproven
from hfprep.schema import Rejection


def failed(line: int, kind: str = "RuntimeError") -> Unproven:
    return Unproven(line, f"clip-{line}", Reason.COMPUTE_FAILED, f"{kind}: no", kind)


def test_what_is_foreseen_is_rejected_at_once() -> None:
    rejection = Rejection(1, "a", Reason.AUDIO_EMPTY, "empty")
    assert Breaker().take(computed=0, rejections=[rejection] * 40) == [rejection] * 40


def test_a_failure_waits_for_a_success_and_is_then_a_plain_rejection() -> None:
    breaker = Breaker()
    assert breaker.take(computed=0, rejections=[failed(1)]) == []
    (found,) = breaker.take(computed=3, rejections=[])
    assert found == Rejection(1, "clip-1", Reason.COMPUTE_FAILED, "RuntimeError: no")
    assert breaker.take(computed=1, rejections=[failed(2)]) == [failed(2).proven()]
    assert breaker.finish() == []


def test_so_many_in_a_row_end_the_run_and_are_not_rejected() -> None:
    breaker = Breaker()
    breaker.take(computed=8, rejections=[])
    for line in range(1, MAX_IN_A_ROW):
        assert breaker.take(computed=0, rejections=[failed(line)]) == []
    with pytest.raises(SystematicFailureError, match=f"{MAX_IN_A_ROW} samples failed one after another.*hfprep doct"):
        breaker.take(computed=0, rejections=[failed(9)])


def test_a_success_between_them_begins_the_count_again() -> None:
    breaker, rejected = Breaker(), 0
    for line in range(100):
        rejected += len(breaker.take(computed=line % MAX_IN_A_ROW == 0, rejections=[failed(line)]))
    assert rejected + len(breaker.finish()) == 100


def test_failures_of_many_kinds_end_the_run_later() -> None:
    breaker = Breaker()
    for line in range(1, MAX_HELD):
        assert breaker.take(computed=0, rejections=[failed(line, "AB"[line % 2])]) == []
    with pytest.raises(SystematicFailureError):
        breaker.take(computed=0, rejections=[failed(99, "C")])


def test_at_the_end_one_is_a_rejection_and_two_of_a_kind_without_any_success_are_none() -> None:
    one, two, different, after_success = Breaker(), Breaker(), Breaker(), Breaker()
    one.take(computed=0, rejections=[failed(1)])
    assert one.finish() == [failed(1).proven()]
    two.take(computed=0, rejections=[failed(1), failed(2)])
    with pytest.raises(SystematicFailureError, match="2 samples failed"):
        two.finish()
    different.take(computed=0, rejections=[failed(1), failed(2, "ValueError")])
    assert len(different.finish()) == 2
    after_success.take(computed=1, rejections=[])
    after_success.take(computed=0, rejections=[failed(1), failed(2)])
    assert len(after_success.finish()) == 2


def test_it_travels_between_processes() -> None:
    assert pickle.loads(pickle.dumps(failed(1))) == failed(1)
