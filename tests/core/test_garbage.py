"""The collector of cycles waits while a process starts."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from bedplate.core.garbage import left_alone


@pytest.fixture(autouse=True)
def frozen() -> Iterator[int]:
    """How many objects were frozen before; the run's own are frozen again afterwards, and no others."""
    count = gc.get_freeze_count()
    yield count
    gc.unfreeze()
    if count:
        gc.freeze()


class Node:
    def __init__(self) -> None:
        self.itself = self


def test_nothing_is_collected_meanwhile_and_what_comes_later_is(frozen: int) -> None:
    with left_alone():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
    later = weakref.ref(Node())
    gc.collect()
    assert later() is None
    with pytest.raises(ValueError, match="x"), left_alone():
        raise ValueError("x")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with left_alone():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
