"""The collector of cycles waits while a process starts."""

from __future__ import annotations

import gc
import weakref

import pytest

from bedplate.core.garbage import left_alone


class Node:
    def __init__(self) -> None:
        self.itself = self


def test_nothing_is_collected_meanwhile_and_what_comes_later_is() -> None:
    frozen = gc.get_freeze_count()
    try:
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
    finally:
        gc.unfreeze()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with left_alone():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
