"""What simulations of the gate ask of bounds, against the bounds themselves."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bedplate.core.statistics import bootstrap, clusters


@pytest.fixture
def gate_rows(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent.parent / "benchmarks"))
    monkeypatch.delitem(sys.modules, "gate_rows", raising=False)
    return import_module("gate_rows")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("truth", [0.9, 0.97])
def test_a_bound_is_beyond_a_bar_where_its_value_is(gate_rows: ModuleType, truth: float, weighted: bool) -> None:
    rng, seen = np.random.default_rng(0), set[tuple[str, bool]]()
    for sizes in (gate_rows.zipf(200, 60), gate_rows.equal(200, 60), gate_rows.GIANT, gate_rows.equal(100, 100)):
        codes = np.repeat(np.arange(sizes.size), sizes)
        weights = 1.0 + rng.poisson(0.5, codes.size) ** 2 if weighted else None
        for _ in range(4):
            answers = (rng.random(codes.size) < truth).astype(float)
            for side in ("lower", "upper"):
                options: dict[str, Any] = {"minimum_groups": 2, "weights": weights}
                value = clusters.effective_n_bound(answers, codes, 0.9, side, **options).value
                for bar in (value - 0.01, value - 1e-3, value + 1e-3, value + 0.01):
                    is_beyond = value > bar if side == "lower" else value < bar
                    if 0 < bar < 1:
                        assert gate_rows.beyond(bar, answers, codes, 0.9, side, **options) == is_beyond
                        seen.add((side, is_beyond))
            low, high = clusters.effective_n_interval(answers, codes, 0.9, **options)
            assert gate_rows.covers((low + high) / 2, answers, codes, 0.9, **options)
            assert not gate_rows.covers(low - 1e-3, answers, codes, 0.9, **options)
    assert len(seen) == 4


def test_resamples_that_are_drawn_once_bound_alike(gate_rows: ModuleType) -> None:
    rows = np.stack([np.random.default_rng(0).random(80), np.ones(80)], axis=1)
    plain = bootstrap.bca_of_sums(rows, bootstrap.mean_of_sums, range(80))
    with gate_rows.same_resamples():
        again = [bootstrap.bca_of_sums(rows, bootstrap.mean_of_sums, range(80)) for _ in range(2)]
    assert again == [plain, plain]
