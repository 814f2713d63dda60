"""A pass that one core computes in a moment is not divided between threads, which would wait for each other."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from tests.tiny import write_tiny_base

from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Embed
from bedplate.models.checkpoints.base import load_base


@pytest.fixture
def two_threads() -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("hidden", "length", "threads"), [(48, 30, 1), (48, 500, 2), (768, 30, 2)])
def test_a_small_pass_runs_on_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_threads: None, hidden: int, length: int, threads: int
) -> None:
    """Every pass of a tiny base woke a second thread dozens of times: it took longer, and the other core spun."""
    base = write_tiny_base(tmp_path / "tiny", hidden_size=hidden)
    with Engine(load_base(base), kernel="torch") as engine:
        model, seen = engine.base.model, list[int]()
        forward = type(model).forward

        def counted(*arguments: object, **options: object) -> object:
            seen.append(torch.get_num_threads())
            return forward(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(type(model), "forward", counted)
        engine.run([Embed(tuple(10 + number % 200 for number in range(length)))])
        assert set(seen) == {threads}
    assert torch.get_num_threads() == 2
