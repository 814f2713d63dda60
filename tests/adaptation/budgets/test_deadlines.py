"""Cascades, endpoints, formats and calls that are timed again look at the clock as well."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bedplate.adaptation.context.outcome import OutOfTime, latency
from bedplate.adaptation.rungs import answers, cascade, hosted
from bedplate.adaptation.search import formats, run_rung
from bedplate.inference.predict.predictor import Predictor

ROWS = [SimpleNamespace(inputs={}, id=str(number)) for number in range(400)]


class Slow(Predictor):
    """A skin on a machine of its own time, in which each row takes `seconds` of the clock."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        self.clock, self.seconds, self.asked, self.left_out = clock, seconds, 0, ()

    def predict(self, rows: Any, *, one_by_one: bool = False, tenant: str = "") -> list[Any]:
        self.clock[0] += self.seconds * len(rows)
        self.asked += len(rows)
        return [SimpleNamespace(seconds=self.seconds, passed_on=False, usd=0.0)] * len(rows)

    def __enter__(self) -> Slow:
        return self

    def close(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have passed, as the modules see them."""
    seconds = [0.0]
    fake = SimpleNamespace(perf_counter=lambda: seconds[0])
    for module in (answers, cascade, formats, hosted):
        monkeypatch.setattr(module, "time", fake)
    return seconds


def context_with(passed: list[float], limit: float, **fields: Any) -> Any:
    """A context with so many seconds in all."""

    class Timed(SimpleNamespace):
        fit_seconds_left = property(lambda _: limit - passed[0])
        seconds_before_test = property(lambda _: limit - passed[0])

        def check_time(self, start: float, done: int, rows: int, then: int = 0, left: float | None = None) -> None:
            if (limit - passed[0] if left is None else left) < then * (passed[0] - start) / done:
                raise OutOfTime(0.0)

    return Timed(
        smallest=False,
        valid=ROWS,
        test_n=100,
        latency_calls=64,
        timing_limit=10.0,
        ordered=lambda examples, _: list(examples),
        **fields,
    )


def test_a_cascade_ends_with_the_time(clock: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = Slow(clock, 1.0)
    skin = SimpleNamespace(provenance=SimpleNamespace(model_copy=lambda **_: None))
    for name in ("pair_of", "read_skin", "skin_id", "cascaded", "export"):
        monkeypatch.setattr(cascade, name, lambda *_: SimpleNamespace(**vars(skin), threshold=0.5))
    monkeypatch.setattr(cascade, "_Opened", lambda *_: slow)
    parts = dict.fromkeys(("a", "b"), SimpleNamespace(directory=tmp_path))
    task = SimpleNamespace(task="t")
    context = context_with(clock, 60.0, climbed=parts, parents=(), seed=0, task=task, out=tmp_path)
    plan: Any = SimpleNamespace(settings={"cheap": "a", "dear": "b", "threshold": 0.5})
    with pytest.raises(OutOfTime):
        cascade.Cascade().fit(context, plan, tmp_path)
    assert clock[0] <= 61.0


def test_an_endpoint_ends_with_the_time_and_is_paid(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow, charged = Slow(clock, 1.0), list[float]()
    monkeypatch.setattr(hosted, "Skin", lambda **_: None)
    monkeypatch.setattr(hosted, "export", lambda *_: None)
    monkeypatch.setattr(hosted, "HostedPredictor", lambda *_, **__: slow)
    monkeypatch.setattr(hosted.Hosted, "_account", lambda *_: SimpleNamespace(spent=0.25))
    output = SimpleNamespace(bare=lambda: None)
    context = context_with(
        clock,
        60.0,
        hosted=SimpleNamespace(reference=None),
        task_prompt=lambda _: (None, output),
        skin_name=str,
        task=SimpleNamespace(inputs={}),
        provenance=lambda *_: None,
        seed=0,
        out=tmp_path,
        clock=SimpleNamespace(charge=charged.append),
    )
    with pytest.raises(OutOfTime):
        hosted.Hosted().fit(context, None, tmp_path)  # type: ignore[arg-type]
    assert clock[0] <= 61.0
    assert charged == [0.25]


def test_calls_are_timed_again_for_as_long_as_timing_may_take(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine that has become slower is no reason to go on, and what a few calls say is not compared with many."""
    monkeypatch.setattr(run_rung.rung_files, "config_of", lambda *_: "configuration")
    slow = Slow(clock, 5.0)
    rung = SimpleNamespace(name="lora", predictor=lambda *_: slow)
    context = context_with(clock, math.inf, out=tmp_path)
    candidate: Any = SimpleNamespace(rung=rung, context=context, rung_result=lambda result: result)
    result: Any = SimpleNamespace(skin_id="skin", latency=latency([0.1] * 64))
    assert run_rung.retimed(candidate, result) is result
    assert clock[0] <= 10.0 + 5.0 * (1 + answers.FEWEST_TIMED)


def test_a_format_is_left_out_when_the_time_is_over(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It was expected to fit; the machine has become slower since."""
    engine = SimpleNamespace(weights="bfloat16", kernel="torch")
    slow = Slow(clock, 1.0)
    monkeypatch.setattr(formats, "_opened", lambda *_: slow)
    climbed = SimpleNamespace(
        base=SimpleNamespace(in_format=lambda _: SimpleNamespace(engine=None), model=SimpleNamespace(engine=engine)),
        rung_result=SimpleNamespace(),
        directory=tmp_path / "lora",
    )
    for name, value in {
        "read_skin": lambda *_: SimpleNamespace(output=SimpleNamespace(answered_by="score")),
        "worth_trying": lambda *_, **__: {"int8": 2.0},
        "too_few": lambda *_: None,
        "_unfit": lambda _: None,
        "kept_trial": lambda *_: None,
        "expected_seconds": lambda *_: 30.0,
        "export": lambda *_: None,
        "evaluated_now": lambda _: None,
        "replace": lambda value, **_: value,
    }.items():
        monkeypatch.setattr(formats, name, value)
    spec = SimpleNamespace(formats=SimpleNamespace(allowed=("int8",)))
    open_task = {"spec": spec, "out": tmp_path, "format_reason": None}
    context = context_with(clock, 60.0, **open_task, backbone=SimpleNamespace(fixed_format=None))
    result = SimpleNamespace(
        skin="skins/lora", skin_id="s", child=None, parts=(), evaluation=SimpleNamespace(n=400), details={}
    )
    climbed.result = result
    candidate: Any = SimpleNamespace(context=context, climbed=climbed, name="lora", rung=SimpleNamespace(name="lora"))
    outcome, kept = formats.choose(candidate)
    assert clock[0] <= 61.0
    assert kept is result
    assert [(part.weights, part.kind) for part in outcome.left_out] == [("int8", "budget")]
