"""What the garbage collector leaves out while a build runs, and that nothing of it stays."""

import gc

from hfprep.pipeline.collector import imports_frozen


def test_what_is_there_before_is_not_walked_meanwhile() -> None:
    assert not gc.get_freeze_count()
    with imports_frozen():
        assert gc.get_freeze_count() > 10_000
    assert not gc.get_freeze_count()


def test_what_a_program_had_left_out_itself_stays_so() -> None:
    gc.freeze()
    try:
        count = gc.get_freeze_count()  # a frozen object that dies is counted no more: other threads may let go of some
        newer: list[list[int]] = [[] for _ in range(1000)]  # a second freeze would count these
        with imports_frozen():
            assert 0 < gc.get_freeze_count() <= count
        del newer
        assert 0 < gc.get_freeze_count() <= count
    finally:
        gc.unfreeze()
