"""The collector of cycles waits while a process starts."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.tiny import write_tiny_base

from bedplate.cli.main import main
from bedplate.core.memory import left_alone
from bedplate.serving.server import app


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


def test_a_server_looks_for_garbage_once_it_is_ready_and_not_among_what_it_loaded(
    frozen: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gc_states: list[bool] = []

    def serve(*_: object, on_ready: Callable[[str, object], None]) -> bool:
        gc_states.append(gc.isenabled())
        on_ready("http://here", SimpleNamespace(registry=SimpleNamespace(models=["tiny"])))
        gc_states.extend((gc.isenabled(), gc.get_freeze_count() > frozen))
        return True

    monkeypatch.setattr(app, "serve", serve)
    with pytest.raises(SystemExit, match="0"):
        main(["serve", str(write_tiny_base(tmp_path / "tiny"))])
    assert "serving tiny at http://here" in capsys.readouterr().out
    assert gc_states == [False, True, True]


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with left_alone():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
