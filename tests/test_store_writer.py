"""The thread that publishes: in order, one batch behind or none, and silent after an error."""

import logging
import threading
import time

import pytest

from hfprep.pipeline.background import BackgroundWriter


def test_jobs_run_in_order_and_one_waits_at_most() -> None:
    writer, done, gate = BackgroundWriter(overlap=True), list[int](), threading.Event()

    def job(number: int) -> None:
        gate.wait(5)
        done.append(number)

    writer.submit(lambda: job(0))
    blocked = threading.Thread(target=lambda: writer.submit(lambda: job(1)))
    blocked.start()
    time.sleep(0.05)
    assert blocked.is_alive()  # a second batch is not taken before the first is on disk
    gate.set()
    blocked.join(5)
    writer.submit(lambda: job(2))
    writer.flush()
    assert done == [0, 1, 2]
    writer.close()


def test_without_overlap_a_job_is_done_when_it_is_taken() -> None:
    writer, done = BackgroundWriter(overlap=False), list[int]()

    def slow(number: int) -> None:
        time.sleep(0.02)
        done.append(number)

    for number in range(3):
        writer.submit(lambda: slow(number))  # noqa: B023 - it has run before the next number
        assert done == list(range(number + 1))
    with pytest.raises(ZeroDivisionError):
        writer.submit(lambda: done.append(1 // 0))
    writer.close()


def test_an_error_is_raised_at_the_next_call_and_every_one_after() -> None:
    writer, done = BackgroundWriter(overlap=True), list[str]()

    def fail() -> None:
        raise OSError("the disk is full")

    writer.submit(fail)
    for _ in range(3):
        with pytest.raises(OSError, match="the disk is full"):
            writer.submit(lambda: done.append("must not run"))
    with pytest.raises(OSError, match="the disk is full"):
        writer.flush()
    writer.close()
    assert done == []


def test_closing_finishes_what_is_queued() -> None:
    """After an error elsewhere, such as a broken device, what was computed is still written."""
    writer, done = BackgroundWriter(overlap=True), list[int]()

    def slow() -> None:
        time.sleep(0.05)
        done.append(1)

    writer.submit(slow)
    writer.close()
    assert done == [1]


def test_an_error_that_nobody_waited_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    writer = BackgroundWriter(overlap=True)

    def fail() -> None:
        raise OSError("the disk is full")

    writer.submit(fail)
    with caplog.at_level(logging.ERROR, logger="hfprep"):
        writer.close()
    assert caplog.messages == ["the disk is full"]
