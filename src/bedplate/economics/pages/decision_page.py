"""The page of a decision file: its inputs, and the cost formulas as JavaScript, so that it computes the same costs."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from bedplate.core.config import key_path
from bedplate.economics.costs.decisions.break_even import CLOSE, DAYS, DRAW_RATIO, MACHINE_STEPS, VOLUMES
from bedplate.economics.costs.decisions.case_inputs import CaseInputs
from bedplate.economics.costs.decisions.constraints import RULES, Bars, broken_constraints
from bedplate.economics.costs.decisions.decision import DRAWS, INTERVAL, decide
from bedplate.economics.costs.decisions.decision_file import Case
from bedplate.economics.costs.decisions.decision_inputs import Input
from bedplate.economics.costs.decisions.explanation import FORMULAS
from bedplate.economics.costs.decisions.option_costs import OptionCosts, option_costs
from bedplate.economics.costs.decisions.sensitivity import NOTHING_FEASIBLE, NOTHING_PAYS, SEARCHED_PLACES
from bedplate.economics.numbers.formula import Formula, javascript, total
from bedplate.economics.numbers.prices import Prices
from bedplate.report.pages import interactive_page

_SLIDERS = 5
"""How many sliders there are for numbers that the answer turns on, besides volume and horizon."""
_ALWAYS = ("traffic.calls_per_day", "traffic.horizon_days")
_TEXT = ("instructions", "examples", "input", "output")
_SCRIPTS = ("decision_costs.js", "decision_text.js", "decision.js")


def decision_page(
    case: Case, prices: Prices, today: datetime.date | None = None, *, command: Sequence[str] = ()
) -> str:
    """The page as HTML. ConfigError as of `decide`. command: what answers the same in the terminal."""
    shared = CaseInputs(case, prices)
    options = option_costs(shared)
    folder = files("bedplate.economics.pages")
    scripts = [_formulas(shared.calls, options), *(folder / name for name in _SCRIPTS)]
    decision = decide(case, prices, today)
    turning = [sensitivity.input.name for sensitivity in decision.sensitivities]
    return interactive_page(case.case, scripts, _data(shared, options, turning, decision.warnings, command))


def _data(
    shared: CaseInputs,
    options: Sequence[OptionCosts],
    turning: Sequence[str],
    warnings: Sequence[str],
    command: Sequence[str],
) -> dict[str, Any]:
    """What the page computes with. turning: names of inputs, those that the answer turns on first."""
    case, inputs = shared.case, shared.inputs
    bases, derived = (frozenset(name for pair in _derivations(case) for name in pair[i]) for i in (0, 1))
    rows = [_row(row, bases, derived) for row in inputs.rows]
    movable = {row["name"] for row in rows if row["moves"]}
    sliders = [name for name in turning if name in movable and name not in _ALWAYS]
    bars = Bars(shared.bar_quality, shared.bar_p95_ms)
    draws = inputs.draws(DRAWS, case.seed)
    columns = {place: [draw[place] for draw in draws] for place, row in enumerate(inputs.rows) if not row.exact}
    return {
        "case": case.case,
        "rows": rows,
        "draws": {"count": DRAWS, "columns": columns, "interval": INTERVAL},
        "search": {
            "volumes": VOLUMES,
            "days": DAYS,
            "close": CLOSE,
            "places": SEARCHED_PLACES,
            "draw_ratio": DRAW_RATIO,
            "machine_steps": MACHINE_STEPS,
        },
        "bars": asdict(bars),
        "options": [_option(option, case, bars) for option in options],
        "constraints": [
            {"name": name, "because": because, "says": RULES[name].explanation}
            for name, because in case.constraints.items()
        ],
        "must_pay": case.value.usd_per_call is not None,
        "nothing": {"feasible": NOTHING_FEASIBLE, "pays": NOTHING_PAYS},
        "sliders": [*_ALWAYS, *sliders[:_SLIDERS]],
        "warnings": list(warnings),
        "formulas": {name: {"formula": text, "source": source} for name, (text, source) in FORMULAS.items()},
        "command": list(command),
    }


def _row(row: Input, bases: frozenset[str], derived: frozenset[str]) -> dict[str, Any]:
    """search: where a flipping point is looked for, and how far a slider goes. said: whether an override may say it."""
    return {**asdict(row), "moves": row.name not in bases, "said": row.name not in derived}


def _derivations(case: Case) -> Iterator[tuple[list[str], list[str]]]:
    """Inputs that others were computed from when the files were read (speeds of a data sheet rest on the tokens of the
    text, hours on the tokens of a run), and those others. In the page none of the former is moved without the latter;
    the latter stand in no file."""
    for name, option in case.options.items():
        key, use, pretraining = key_path(["options", name]), option.machine, option.pretraining
        if use is not None and (use.measured is not None or use.planned is not None):
            texts = [f"{prefix}text.{field}" for prefix in ("", f"{key}.") for field in _TEXT]
            yield (
                [*texts, f"{key}.tokens_per_unit", f"{key}.retrieval.passages"],
                [f"{key}.machine.{phase}_tokens_per_second" for phase in ("prefill", "decode")],
            )
        if pretraining is not None and pretraining.run is not None:
            yield [f"{key}.pretraining.run.tokens"], [f"{key}.pretraining.run.device_hours_per_token"]


def _option(option: OptionCosts, case: Case, bars: Bars) -> dict[str, Any]:
    return {
        "name": option.name,
        "method": option.method,
        "method_in_short": option.method_in_short,
        "broken": list(broken_constraints(option.option, case.constraints)),
        "lines": [{"when": line.period, "what": line.part} for line in option.lines],
        "quality": None if option.quality is None else asdict(option.quality),
        "p95_ms": None if option.p95_ms is None else asdict(option.p95_ms),
        "uses": sorted(bars.places(option)),
        "doubted": bool(option.doubts),
        "notes": [*option.doubts, *option.notes],
        "has": {
            "hosted": option.option.machine is None,
            "reserved": option.machines is not None,
            "refresh": any(line.part == "tuning again" for line in option.lines),
            "pretraining": option.option.pretraining is not None,
        },
    }


def _formulas(calls: Formula, options: Sequence[OptionCosts]) -> str:
    """`COSTS`: total calls, and of each option its lines, totals, machines and the cost of one more call."""
    by_option = [
        {
            "amounts": [line.usd for line in option.lines],
            "total": option.total,
            "net": option.net,
            "call": total(option.per_call.values()),
            "machines": option.machines,
            "busy": option.busy,
            "capacities": option.capacities,
        }
        for option in options
    ]
    return javascript("COSTS", {"calls": calls, "options": by_option})
