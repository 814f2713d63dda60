"""How many threads compute: the process's cores, unless the user has said how many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from bedplate.core.processor import processor
from bedplate.inference.execution import threads
from bedplate.inference.execution.threads import engine_threads, use_cores


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    yield
    torch.set_num_threads(before)


def set_processor(monkeypatch: pytest.MonkeyPatch, cores: int, quota: float | None = None) -> None:
    limited = replace(processor(), cores=cores, quota=quota)
    monkeypatch.setattr(threads, "processor", lambda: limited)


@pytest.mark.parametrize(("cores", "quota", "expected"), [(1, None, 1), (3, None, 3), (128, 2.5, 2), (4, 0.5, 1)])
def test_our_own_process_uses_its_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, quota: float | None, expected: int
) -> None:
    set_processor(monkeypatch, cores, quota)
    use_cores()
    assert (torch.get_num_threads(), engine_threads()) == (expected, expected)


def test_what_the_user_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    set_processor(monkeypatch, 2)
    torch.set_num_threads(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    use_cores()
    assert (torch.get_num_threads(), engine_threads()) == (4, 4)


def test_in_others_processes_torchs_number_is_capped_by_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    set_processor(monkeypatch, 2)
    torch.set_num_threads(4)
    assert (engine_threads(), torch.get_num_threads()) == (2, 4)
    torch.set_num_threads(1)
    assert engine_threads() == 1
