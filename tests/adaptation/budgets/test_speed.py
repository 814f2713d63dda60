"""How fast a base is, as plans take it: reading a prompt is told from scoring its answers, and what a busy moment
showed is held against the roofline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bedplate.adaptation.context import throughput
from bedplate.adaptation.context.throughput import Throughput, measure_throughput
from bedplate.inference.engine.requests import Score

SECONDS, PROMPT, ANSWERS = 2e-3, 20, (9, 11, 1)
"""Of each token that is read; new tokens of a row; tokens of its answers, the first of which the prompt scores."""


class Asked:
    """As much of a predictor as is timed: every token takes its time, those of answers too, and a call 5 ms more."""

    def __init__(self, times: float = 1.0) -> None:
        weights = SimpleNamespace(numel=lambda: SECONDS * 80e9 / 2, element_size=lambda: 1)
        model = SimpleNamespace(parameters=lambda: [weights])
        base = SimpleNamespace(device=SimpleNamespace(type="cpu"), model=model)
        self.engine, self.times, self.asked = SimpleNamespace(base=base, run=self.run), times, 0
        self.now = 0.0
        self.skin = SimpleNamespace(output=SimpleNamespace(answered_by="score", all_labels=("a", "b", "c")))

    def request(self, row: Any) -> Score:
        return Score(tuple(range(PROMPT)), tuple(tuple(range(count)) for count in ANSWERS))

    def run(self, requests: Sequence[Score]) -> None:
        self.now += sum(self.times * SECONDS * len(request.tokens) for request in requests)

    def predict(self, rows: Sequence[Any], *, one_by_one: bool = False, tenant: str = "") -> list[Any]:
        self.asked += len(rows)
        seconds = self.times * (SECONDS * (PROMPT + sum(ANSWERS) - len(ANSWERS)) + 5e-3 * one_by_one)
        return [SimpleNamespace(seconds=seconds, prompt_tokens=PROMPT, cached_tokens=0)] * len(rows)


def measured(monkeypatch: pytest.MonkeyPatch, times: float, room: float = math.inf) -> tuple[Throughput, int]:
    """The speed that plans take, where everything takes so many times as long as on a quiet machine of two cores; and
    the number of rows that were asked for it."""
    predictor: Any = Asked(times)
    monkeypatch.setattr(throughput, "engine_threads", lambda: 2, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: predictor.now, monotonic=lambda: 0.0))
    rows, written = [{"text": ""}] * 100, SimpleNamespace(mean=0.0, max_tokens=0)
    return measure_throughput(predictor, rows, written, room), predictor.asked  # type: ignore[arg-type]


def test_a_probe_is_not_planned_as_if_it_read_every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    speed, _ = measured(monkeypatch, 1.0)
    assert speed.passes(100) == pytest.approx(100 * PROMPT * SECONDS)
    assert speed.rows(100) == pytest.approx(100 * (PROMPT + 18) * SECONDS)


@pytest.mark.parametrize(("times", "slower"), [(3.0, 3.0), (40.0, 4.0)])
def test_a_busy_moment_is_believed_within_bounds(monkeypatch: pytest.MonkeyPatch, times: float, slower: float) -> None:
    quiet, speed = measured(monkeypatch, 1.0)[0], measured(monkeypatch, times)[0]
    assert speed.token / quiet.token == pytest.approx(slower, rel=0.05)
    assert slower * 0.95 < speed.call / quiet.call < 2 * slower
    assert speed.first_calls == times * quiet.first_calls  # what later calls are compared with


def test_where_a_pass_takes_so_long_that_measuring_would_eat_the_time_none_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    believed, asked = measured(monkeypatch, 40.0)
    assert asked > 10
    assumed, asked = measured(monkeypatch, 40.0, room=9.0)
    assert asked == 0
    assert (assumed.token, assumed.call) == pytest.approx((believed.token, believed.call))
    assert (assumed.tokens, assumed.scored) == (believed.tokens, believed.scored)
    assert not assumed.first_calls  # nothing that later calls could be compared with
