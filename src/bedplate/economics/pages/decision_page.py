"""The page of a decision file: its sheet of numbers and each option's places in it, so that the page computes bills,
break-evens, flipping points and the answer by the same arithmetic, whatever is moved."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from bedplate.core.config import key_path
from bedplate.economics.costs.decisions.calls import HostedCalls
from bedplate.economics.costs.decisions.case import Case
from bedplate.economics.costs.decisions.decision import DRAWS, INTERVAL, decide
from bedplate.economics.costs.decisions.exclusions import RULES, broken_constraints
from bedplate.economics.costs.decisions.formulas import FORMULAS
from bedplate.economics.costs.decisions.resolve import Resolver
from bedplate.economics.costs.decisions.resolved_option import Resolved
from bedplate.economics.costs.decisions.sensitivity import NOTHING_FEASIBLE, NOTHING_PAYS
from bedplate.economics.costs.decisions.sheet import Input
from bedplate.economics.numbers.prices import Prices
from bedplate.report.interactive import interactive_page

_SLIDERS = 5
"""Of the numbers that the answer turns on, besides volume and horizon."""
_TEXT = ("instructions", "examples", "input", "output")
_SCRIPTS = ("bills.js", "answers.js", "words.js", "decision.js")


def decision_page(data: Mapping[str, Any]) -> str:
    """The page of `decision_data`, as HTML."""
    folder = files("bedplate.economics.pages")
    return interactive_page(str(data["case"]), [folder / name for name in _SCRIPTS], data)


def decision_data(
    case: Case, prices: Prices, today: datetime.date | None = None, *, command: Sequence[str] = ()
) -> dict[str, Any]:
    """What the page computes with. ConfigError as of `decide`. command: what the terminal is asked for the same."""
    decision = decide(case, prices, today)
    resolver = Resolver(case, prices)
    options = resolver.options()
    bases, derived = (frozenset(name for pair in _derivations(case) for name in pair[i]) for i in (0, 1))
    rows = [_row(factor, bases, derived) for factor in resolver.sheet.inputs]
    names = [row["name"] for row in rows]
    ordered = [sensitivity.input.name for sensitivity in decision.sensitivities if sensitivity.flips]
    ordered += [swing.input.name for swing in decision.tornado]
    always = ["traffic.calls_per_day", "traffic.horizon_days"]
    movable = [name for name in dict.fromkeys(ordered) if name not in always and rows[names.index(name)]["moves"]]
    return {
        "case": case.case,
        "rows": rows,
        "draws": {"count": DRAWS, "columns": _columns(resolver, case.seed), "interval": INTERVAL},
        "shared": asdict(resolver.shared),
        "options": [_option(option, case) for option in options],
        "constraints": [
            {"name": name, "because": because, "says": RULES[name].explanation}
            for name, because in case.constraints.items()
        ],
        "must_pay": case.value.usd_per_call is not None,
        "nothing": {"feasible": NOTHING_FEASIBLE, "pays": NOTHING_PAYS},
        "sliders": [*always, *movable[:_SLIDERS]],
        "warnings": list(decision.warnings),
        "formulas": {name: {"formula": text, "source": source} for name, (text, source) in FORMULAS.items()},
        "command": list(command),
    }


def _columns(resolver: Resolver, seed: int) -> dict[str, list[float]]:
    """Of each number that has a range, its draws."""
    draws = resolver.sheet.draws(DRAWS, seed)
    return {
        str(place): [values[place] for values in draws]
        for place, factor in enumerate(resolver.sheet.inputs)
        if not factor.exact
    }


def _row(factor: Input, bases: frozenset[str], derived: frozenset[str]) -> dict[str, Any]:
    """search: where a flipping point is looked for, and how far a slider goes. said: whether an override may say it."""
    return {
        "name": factor.name,
        "value": factor.value,
        "low": factor.low,
        "high": factor.high,
        "search": None if factor.search is None else list(factor.search),
        "source": factor.source,
        "moves": factor.search is not None and factor.name not in bases,
        "said": factor.name not in derived,
    }


def _derivations(case: Case) -> Iterator[tuple[list[str], list[str]]]:
    """Rows that others were computed from when the files were read (speeds of a data sheet rest on the tokens of the
    text, hours on the tokens of a run), and those others. In the page none of the former is moved without the latter;
    the latter stand in no file."""
    for name, option in case.options.items():
        at, use, pretraining = key_path(["options", name]), option.machine, option.pretraining
        if use is not None and (use.measured is not None or use.planned is not None):
            texts = [f"{prefix}text.{field}" for prefix in ("", f"{at}.") for field in _TEXT]
            yield (
                [*texts, f"{at}.tokens_per_unit", f"{at}.retrieval.passages"],
                [f"{at}.machine.{phase}_tokens_per_second" for phase in ("prefill", "decode")],
            )
        if pretraining is not None and pretraining.run is not None:
            yield [f"{at}.pretraining.run.tokens"], [f"{at}.pretraining.run.device_hours_per_token"]


def _option(option: Resolved, case: Case) -> dict[str, Any]:
    def places(part: Any) -> dict[str, Any] | None:
        return None if part is None else asdict(part)

    call_type = "hosted" if isinstance(option.calls, HostedCalls) else "machine"
    return {
        "name": option.name,
        "method": option.method,
        "method_in_short": option.method_in_short,
        "broken": list(broken_constraints(option.option, case.constraints)),
        "tokens": asdict(option.tokens),
        "calls": {"kind": call_type, **asdict(option.calls)},
        "setup": asdict(option.setup),
        "tuning": places(option.tuning),
        "retrieval": places(option.retrieval),
        "pretraining": places(option.pretraining),
        "quality": places(option.quality),
        "p95_ms": places(option.p95_ms),
        "uses": sorted(option.uses),
        "doubted": bool(option.doubts),
        "notes": [*option.doubts, *option.notes],
    }
