"""Whole ladders on a tiny base and a simulated machine, whose clock moves by the tokens that are read and trained on:
under every budget the time is used, something servable comes first, and test takes about what was kept for it."""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tests.adaptation.conftest import write_task

import bedplate.adaptation
from bedplate.adaptation.context import throughput
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import OutOfTime
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.report.report import Report
from bedplate.adaptation.rungs import RUNGS as LADDER
from bedplate.adaptation.rungs import lora, probe
from bedplate.adaptation.search import run_all
from bedplate.core import executor
from bedplate.inference.engine.engine import Engine
from bedplate.inference.predict import predictor

RUNGS = ["majority", "from_scratch", "zero_shot", "few_shot", "probe", "lora"]
TRAINED, DEPTH = 3.3, 5 / 6
"""A training token against one that is read, and how far a probe reads. What all rows begin with is computed once."""


class Machine:
    """token: seconds to read one; row: tokens of a row without the beginning that all share, as batches had them; call:
    seconds that every step takes beside. busy: until this second everything takes three times as long, because of what
    else the machine does."""

    def __init__(self, token: float, call: float, busy: float = 0.0) -> None:
        self.token, self.call, self.busy = token, call, busy
        self.clock_time, self.row = 1000.0, math.inf
        self.start = self.clock_time
        self.climbed: list[str] = []

    def works(self, tokens: float, calls: int = 1) -> None:
        seconds = tokens * self.token + calls * self.call
        busy = min(seconds, max(0.0, self.busy - (self.clock_time - self.start)) / 3)
        self.clock_time += 3 * busy + (seconds - busy)

    @property
    def time(self) -> Any:
        def read() -> float:
            return self.clock_time

        return SimpleNamespace(monotonic=read, perf_counter=read, process_time=read, time=read)


def _modules() -> Iterator[ModuleType]:
    for module_info in pkgutil.walk_packages(bedplate.adaptation.__path__, "bedplate.adaptation."):
        yield importlib.import_module(module_info.name)
    yield from (executor, predictor)


@pytest.fixture(scope="module", autouse=True)
def fewest_seeds() -> None:
    """Low-rank weights are fitted from three seeds, which take what is left of long budgets."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    fake_machine = Machine(token=1e-3, call=0.02)
    for module in _modules():
        if getattr(module, "time", None) is time:
            monkeypatch.setattr(module, "time", fake_machine.time)
    run, batches, train = Engine.run, probe._batches, lora.train

    def running(self: Engine, requests: Any, *args: Any, **kwargs: Any) -> Any:
        results = run(self, requests, *args, **kwargs)
        tokens = [result.usage.prompt_tokens - result.usage.cached_tokens for result in results]
        if len(tokens) > 3:
            fake_machine.row = min(fake_machine.row, max(1.0, sum(tokens) / len(tokens)))
        answers = (count - 1 for result in results for count in getattr(result, "token_counts", ()))
        fake_machine.works(sum(tokens) + sum(answers))
        return results

    def reading(*arguments: Any) -> Iterator[list[int]]:
        for batch in batches(*arguments):
            fake_machine.works(len(batch) * fake_machine.row * DEPTH)
            yield batch

    def training(*arguments: Any, **kwargs: Any) -> Any:
        result = train(*arguments, **kwargs)
        fake_machine.works(result.examples * fake_machine.row * TRAINED)
        return result

    monkeypatch.setattr(throughput, "_slowest_passes", lambda _: None, raising=False)  # of the real machine
    monkeypatch.setattr(Engine, "run", running)
    monkeypatch.setattr(probe, "_batches", reading)
    monkeypatch.setattr(lora, "train", training)

    def shown(outcome: Any, train: int, show: Any = run_all._print_outcome) -> None:
        fake_machine.climbed.append(outcome.rung)
        show(outcome, train)

    monkeypatch.setattr(run_all, "_print_outcome", shown)
    return fake_machine


def climb(base: Path, tmp_path: Path, seconds: float, rungs: Sequence[str] = RUNGS, groups: int = 240) -> Report:
    budget = {"p95_ms": 60000, "max_prompt_tokens": 400, "train_minutes": seconds / 60}
    task = write_task(tmp_path / "task", base, groups=groups, budget=budget, formats="none")
    return adapt(task, tmp_path / "out", rungs=rungs)


def check(report: Report, machine: Machine, seconds: float) -> None:
    timing, verdict = report.data["timing"], report.verdict
    reasons = [omission["reason"] for omission in report.data["not_tried"] if omission["kind"] == "budget"]
    left_out = [reason for reason in reasons if "prompt tokens" not in reason]  # more time would not change these
    assert timing["seconds"] <= 1.1 * seconds + 1
    assert timing["seconds"] >= 0.85 * seconds or not left_out, left_out
    rungs_with_skin = [
        name for name in machine.climbed if report.row(name)["skin"] is not None and report.row(name)["base"]
    ]
    assert rungs_with_skin[0] == "probe"
    assert verdict["status"] in ("PASS", "FAIL", "INSUFFICIENT_DATA")
    assert report.data["nominees"]["nominees"]
    tests = sum(timing["tests"].values())
    assert 0.7 * tests <= timing["reserved"] <= 1.3 * tests


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "token"), [(10, 3e-4), (20, 1e-3), (60, 3e-3), (180, 5e-3), (480, 2e-2), (3600, 1e-1), (3600, 1e-3)]
)
def test_every_budget_is_used_and_ends_in_a_verdict(
    machine: Machine, tiny_base: Path, tmp_path: Path, seconds: float, token: float
):
    machine.token = token
    check(climb(tiny_base, tmp_path, seconds), machine, seconds)


@pytest.fixture
def seems_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed is measured in a moment in which everything takes a hundred times as long."""
    measure, times = throughput.measure_throughput, 100.0

    def measured(*arguments: Any) -> throughput.Throughput:
        speed = measure(*arguments)
        return replace(speed, token=times * speed.token, call=times * speed.call)

    monkeypatch.setattr(throughput, "measure_throughput", measured)


@pytest.mark.usefixtures("seems_slow")
def test_where_nothing_seems_to_fit_the_smallest_probe_is_made(machine: Machine, tiny_base: Path, tmp_path: Path):
    report = climb(tiny_base, tmp_path, 40, groups=120)
    assert report.row("probe")["status"] == "done"
    assert report.data["timing"]["seconds"] <= 44
    assert report.data["ledger"] is None
    assert report.verdict["status"] == "OUT_OF_BUDGET"
    assert report.verdict["reason"].startswith(
        "No rung with a base had the time for more than a few rows, so test stays closed. Continue with --budget "
    )
    assert report.verdict["reason"].endswith("Or judge what there is: --rungs from_scratch,probe.")
    (reason,) = (part["reason"] for part in report.data["not_tried"] if part["rung"] == "probe")
    assert reason == "56 of 120 train rows were left out: no time"


@pytest.mark.usefixtures("seems_slow", "machine")
@pytest.mark.slow
def test_an_interrupted_smallest_probe_still_stops_when_it_is_made_again(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    judged, smallest = probe.judged, list[bool]()

    def interrupted(context: Any, *arguments: Any) -> Any:
        smallest.append(context.smallest)
        if len(smallest) == 1:
            raise KeyboardInterrupt
        return judged(context, *arguments)

    monkeypatch.setattr(probe, "judged", interrupted)
    with pytest.raises(KeyboardInterrupt):
        climb(tiny_base, tmp_path, 40, groups=30)
    report = climb(tiny_base, tmp_path, 40, groups=30)
    assert smallest == [True, True]
    reasons = [part["reason"] for part in report.data["not_tried"] if part["rung"] == "probe"]
    assert reasons == ["its smallest version was fitted: no time for more"]


@pytest.mark.usefixtures("seems_slow", "machine")
def test_the_smallest_probe_leaves_the_time_that_what_follows_the_bases_needs(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def reserved(_: run_all.Ascent) -> float:
        return 40.0

    monkeypatch.setattr(run_all.Ascent, "_seconds_for_the_last", reserved)
    assert climb(tiny_base, tmp_path, 40, groups=30).row("probe")["status"] == "skipped"


def test_a_smallest_fit_stops_where_others_or_test_would_have_no_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.perf_counter", lambda: 120.0)

    def check_time(seconds_left: float, until: float, then: int = 0) -> None:
        """At second 120 of a fit that began at 0 and read 240 rows, half a second each."""
        clock = SimpleNamespace(seconds_left=seconds_left, used=100.0)
        context: Any = SimpleNamespace(smallest=True, clock=clock, until=until, outer_clock=None, exhaustive=False)
        context.fit_seconds_left = Context.fit_seconds_left.fget(context)  # pyright: ignore
        Context.check_time(context, 0.0, 240, 480, then)

    check_time(1.0, math.inf)
    check_time(121.0, 300.0, then=240)
    for stopped in ((-1.0, math.inf, 0), (50.0, 99.0, 0), (119.0, math.inf, 240), (200.0, 219.0, 240)):
        with pytest.raises(OutOfTime, match="about 240 s"):
            check_time(*stopped)


def test_a_fit_ends_with_the_budget_whatever_it_was_expected_to_take(
    machine: Machine,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """The machine becomes twelve times slower when the probe begins: it learns from the rows that it has read."""
    machine.token = 2e-3
    fit = type(LADDER["probe"]).fit

    def slower(self: Any, context: Any, plan: Any, directory: Path) -> Any:
        machine.token *= 12
        return fit(self, context, plan, directory)

    monkeypatch.setattr(type(LADDER["probe"]), "fit", slower)
    report = climb(tiny_base, tmp_path, 120, rungs=["majority", "probe"])
    row = report.row("probe")
    assert row["status"] == "done"
    printed = capsys.readouterr().err
    begins = re.search(r"^probe         begins with (\d+) rows, about (\d+) s$", printed, re.M)
    assert begins is not None
    rows = f"from {report.data['details']['probe']['rows']} of {report.data['data']['counts']['train']} train rows"
    assert re.search(rf"^probe         accuracy [\d.]+ on valid, \d+ s, {rows}$", printed, re.M)
    assert 0 < int(begins[2]) <= 120
    (reason,) = (part["reason"] for part in report.data["not_tried"] if part["rung"] == "probe")
    assert reason.endswith("train rows were left out: no time")
    plan = json.loads((tmp_path / "out/rungs/probe/plan.json").read_text())  # by which it can be made again
    assert plan["settings"]["rows"] == report.data["details"]["probe"]["rows"]
    assert report.data["timing"]["seconds"] <= 1.1 * 120


def test_what_cannot_be_made_smaller_is_left_out_when_its_time_is_over(
    machine: Machine, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fit = type(LADDER["few_shot"]).fit

    def slower(self: Any, context: Any, plan: Any, directory: Path) -> Any:
        machine.token *= 20
        return fit(self, context, plan, directory)

    monkeypatch.setattr(type(LADDER["few_shot"]), "fit", slower)
    report = climb(tiny_base, tmp_path, 60, rungs=["majority", "from_scratch", "few_shot"], groups=60)
    assert report.row("few_shot")["status"] == "skipped"
    assert report.data["timing"]["seconds"] <= 66


def test_seeds_that_are_finished_stand_when_the_time_is_over(
    machine: Machine, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train, calls = lora.train, list[int]()

    def slower(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        machine.token *= 1 if len(calls) == 1 else 40
        return train(*arguments, **options)

    monkeypatch.setattr(lora, "train", slower)
    report = climb(tiny_base, tmp_path, 120, rungs=["majority", "lora"], groups=60)
    row = report.row("lora")
    assert (row["status"], len(calls), len(row["seeds"])) == ("done", 2, 1)
    reasons = [part["reason"] for part in report.data["not_tried"] if part["rung"] == "lora"]
    assert "2 of 3 seeds were left out: no time" in reasons


def test_the_time_before_an_interrupt_counts(
    machine: Machine, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    judged, interrupts = probe.judged, [KeyboardInterrupt()]

    def interrupted(*arguments: Any) -> Any:
        if interrupts:
            machine.clock_time += 70
            raise interrupts.pop()
        return judged(*arguments)

    monkeypatch.setattr(probe, "judged", interrupted)
    rungs = ["majority", "probe"]
    with pytest.raises(KeyboardInterrupt):
        climb(tiny_base, tmp_path, 80, rungs, groups=60)
    start = machine.clock_time
    report = climb(tiny_base, tmp_path, 80, rungs, groups=60)
    assert machine.clock_time - start <= 18
    assert report.data["timing"]["seconds"] >= 70


def test_formats_take_no_rungs_time():
    """They would take 290 s of 540 s: a rung that is left out for them costs more."""
    clock, speed = SimpleNamespace(limit=540.0), SimpleNamespace(rows=lambda n: n * 1.0)
    context: Any = SimpleNamespace(
        format_gain=2.0, throughput=speed, valid=[None] * 240, timing=12.5, for_test=60.0, clock=clock
    )
    assert Context.test_reserve.fget(context) == 60 + 54  # pyright: ignore[reportOptionalCall]


def test_a_budget_that_nothing_fits_says_which_would(machine: Machine, tiny_base: Path, tmp_path: Path):
    machine.token = 0.03
    report = climb(tiny_base, tmp_path, 10)
    assert report.verdict["status"] == "OUT_OF_BUDGET"
    assert report.data["ledger"] is None
    said = "it needs about ([0-9]+) s; ([0-9]+) s of the budget are left, ([0-9]+) s of them for test, the report and"
    match = re.match(said, report.row("lora")["reason"])
    assert match is not None
    seconds, left, reserved = map(int, match.groups())
    assert 10 >= left >= reserved > left - seconds
    assert machine.clock_time - machine.start < 15


@pytest.mark.parametrize(
    ("seconds", "token", "believed"),
    [
        (10, 3e-2, 1.0),
        (30, 3e-2, 0.3),  # the base is slower than is believed of a busy machine
        pytest.param(60, 2e-2, 0.5, marks=pytest.mark.slow),
        pytest.param(90, 5e-2, 0.3, marks=pytest.mark.slow),
    ],
)
def test_the_budget_that_is_proposed_is_enough(
    machine: Machine,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    token: float,
    believed: float,
):
    """It was of the fewest rows of valid, which keep test closed, with the reserve of the smaller budget, and without
    what was done after it was computed: three runs in a row ended without a verdict."""
    measure = throughput.measure_throughput

    def measured(*arguments: Any) -> throughput.Throughput:
        speed = measure(*arguments)
        return replace(speed, token=believed * speed.token, call=believed * speed.call)

    monkeypatch.setattr(throughput, "measure_throughput", measured)
    machine.token = token
    report = climb(tiny_base, tmp_path, seconds)
    assert report.verdict["status"] == "OUT_OF_BUDGET"
    proposed = re.search(r"Continue with --budget (\d+)m: what is finished is kept", report.verdict["reason"])
    assert proposed is not None
    machine.climbed.clear()
    report = climb(tiny_base, tmp_path, 60 * int(proposed[1]))
    assert report.verdict["status"] in ("PASS", "FAIL", "INSUFFICIENT_DATA")
    assert report.data["ledger"]["number"] == 1
    assert (
        any(row["base"] and row["split"] == "test" for row in report.rungs) or report.row("probe")["status"] == "done"
    )


@pytest.mark.slow
def test_what_a_busy_beginning_leaves_unused_goes_to_a_larger_fit(machine: Machine, tiny_base: Path, tmp_path: Path):
    """The speed is read beside other work, so the first fit is planned three times too small."""
    machine.token, machine.busy = 4e-3, 10
    report = climb(tiny_base, tmp_path, 240)
    check(report, machine, 240)
    assert machine.climbed.count("lora") == 2
    assert "a smaller fit before scored" in report.row("lora")["reason"]
    rerun = climb(tiny_base, tmp_path, 240)
    for key in report.data:
        if key != "timing":
            assert rerun.data[key] == report.data[key], key
