"""Python that is translated for a page means the same there."""

from __future__ import annotations

import math
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from tests.economics.decisions.builders import case_values, parsed

from bedplate.economics.costs.decisions import Decision, explanation, load_case
from bedplate.economics.costs.decisions.decision import solve
from bedplate.economics.costs.decisions.question import read_question
from bedplate.economics.numbers import money
from bedplate.economics.numbers.javascript import script

EXAMPLES = Path(__file__).parents[2] / "examples/decide"


def lists(xs: list[float]) -> list[Any]:
    ordered, pairs = sorted(xs), [(x, -n) for n, x in enumerate(xs)]
    ordered.append(1e9)
    first, *rest = ordered
    last = ordered.pop()
    return [
        *ordered[1:-1],
        *ordered[::2],
        first,
        last,
        ordered[-1],
        len(rest),
        sum(x for x in xs if x > 0),
        sorted(pairs, key=lambda pair: -pair[0])[:2],
        [sorted(pairs), max(pairs), min(xs), min(3.0, *xs)],
        [x * y for x in xs[:2] for y in xs if y != x],
        any(x > 5 for x in xs) and all(x > -99 for x in xs),
        sorted({round_down(x) for x in xs}),
        xs.index(min(xs)),
        [list(range(3)), list(range(1, 9, 3)), list(map(round_down, xs)), list(zip(xs, ordered, strict=False))],
    ]


def round_down(x: float) -> int:
    return math.floor(x / 2)


def truth(xs: list[float]) -> list[Any]:
    empty: list[float] = []
    table = {"a": 0.0, "b": xs[0]}
    for x in xs:
        if x < -2 or not xs:
            continue
        if x > 8:
            break
        table["b"] += x
        table[f"x{x:.1f}"] = x if -1 < x <= 1 or x in (2, 3) else None or -x
    while len(empty) < 3:
        empty.append(len(empty) ** 2)
    both = {key: value for key, value in table.items() if value}
    return [
        empty or "none",
        table["a"] or 7,
        xs and 1,
        "b" in table,
        "q" not in table,
        table.get("q", 4.0),
        table.get("q") is None,
        [*both],
        list(both.values()),
        not empty,
    ]


def texts(xs: list[float]) -> list[str]:
    def shown(x: float, places: int = 2) -> str:
        return f"{x:.{places}f} ${x:,.0f} {x:.3g} {x:g} {x:.1%}"

    return [*(shown(x) for x in xs), shown(1234.5, 3), ", ".join(["`", "\\", "${}"]), "aBC".capitalize(), f"{'x'}`"]


FUNCTIONS = (lists, truth, texts)


def opened(browser: Browser, **exports: object) -> Page:
    page, runtime = browser.new_page(), files("bedplate.economics.pages") / "python.js"
    text = (files("bedplate.report") / "assets" / "numbers.js").read_text("utf-8") + runtime.read_text("utf-8")
    page.add_script_tag(content=text + script(figures=money.figures, **exports))
    return page


def flat(values: Any) -> list[Any]:
    return [part for value in values for part in (flat(value) if isinstance(value, list | tuple) else [value])]


def test_a_translated_function_gives_what_python_gives(browser: Browser) -> None:
    page, rng = opened(browser, **{function.__name__: function for function in FUNCTIONS}), random.Random(1)
    for function in FUNCTIONS:
        for size in (2, 5, 9):
            xs = [rng.choice([0.0, 2.0, 2.5, rng.uniform(-10, 10), rng.uniform(-1, 1) * 1e7]) for _ in range(size)]
            shown = page.evaluate(f"(xs) => {function.__name__}(xs)", xs)
            assert flat(shown) == pytest.approx(flat(function(xs))), (function.__name__, xs)
    page.close()


BY_USE = {"paid": "by_use", "utilisation": 0.7}
SHRINKING = case_values(  # what the examples have not
    {
        'a.b "c"': {"model": "large", "quality": {"value": 0.9, "low": 0.85, "high": 0.94}},
        "__proto__": {"model": "small", "quality": 0.8, "setup": {"hours": 20, "evaluation_labels": 50}},
        "7": {
            "machine": {"name": "box", "seconds_per_call": {"value": 0.2, "low": 0.1, "high": 0.4}, **BY_USE},
            "quality": 0.88,
            "p95_ms": 300,
        },
        "shrunk": {
            "machine": {"name": "node", "seconds_per_call": 2.5, "utilisation": 0.5},
            "quality": 0.95,
            "tuning": {"labels": 900, "machine_hours": 3, "refresh": {"every_days": 30, "labels": 90, "hours": 2}},
        },
    },
    traffic={"calls_per_day": 30000, "horizon_days": 400, "growth_per_year": -0.3, "waiting_share": 0.4},
    value={"usd_per_call": 0.02, "margin": 0.6, "earned_by": "right_answer", "usd_per_wrong_answer": 0.005},
)
SENTENCES = (explanation.answer, explanation.reasons, explanation.break_even, explanation.flips)


def said(decision: Decision) -> list[Any]:
    totals = [[*outcome.total_interval, outcome.net_usd, outcome.best_in] for outcome in decision.outcomes]
    pairs, flips = map(explanation.break_even, decision.break_evens), map(explanation.flips, decision.sensitivities)
    return [explanation.answer(decision), explanation.reasons(decision), [*pairs], [*flips], totals]


def test_a_decision_is_what_python_decides(browser: Browser) -> None:
    for case in (load_case(EXAMPLES / "retrieval_as_knowledge_changes.yaml"), parsed(SHRINKING)):
        question, rng = read_question(*case), random.Random(2)
        page = opened(browser, question=question, solve=solve, **{each.__name__: each for each in SENTENCES})
        for count in (0, 1, 4):
            moved = {row.name: rng.uniform(*row.search) for row in rng.sample(question.inputs, count)}
            shown = page.evaluate(
                """(moved) => {
                  const made = solve(question.moved(new Map(Object.entries(moved))));
                  const totals = made.outcomes.map((one) => [...one.total_interval, one.net_usd, one.best_in]);
                  const flips_ = made.sensitivities.map(flips);
                  return [answer(made), reasons(made), made.break_evens.map(break_even), flips_, totals];
                }""",
                moved,
            )
            assert flat(shown) == pytest.approx(flat(said(solve(question.moved(moved))))), (question.title, moved)
        page.close()
