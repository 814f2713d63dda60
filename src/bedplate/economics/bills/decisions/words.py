"""A decision said in sentences: the answer first, then its reasons, then what would flip it; and as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bedplate.economics.bills.decisions.breakeven import BreakEvenVolume
from bedplate.economics.bills.decisions.decision import INTERVAL, Decision, OptionOutcome
from bedplate.economics.bills.decisions.exclusions import RULES
from bedplate.economics.bills.decisions.formulas import FORMULAS
from bedplate.economics.bills.decisions.sensitivity import NOTHING_FEASIBLE, NOTHING_PAYS, Flip, Sensitivity
from bedplate.economics.numbers.money import figures, number, usd

_SMALL_LINE = 0.05
_NOTHING = 0.0005


def answer(decision: Decision) -> str:
    """One sentence."""
    best, days = decision.chosen, f"over {number(decision.days)} days"
    if decision.answer == NOTHING_FEASIBLE:
        return f"None of the {len(decision.outcomes)} options will do: {_why_out(decision)}."
    if best is None:
        first = decision.outcome(decision.ranking[0])
        return f"None of them pays: the best, {first.name}, would lose {usd(first.net_usd)} {days}."
    low, high = best.total_interval
    span = "" if high - low <= 1e-9 * high else f" ({INTERVAL:.0%}: {usd(low)} to {usd(high)})"
    said = (
        f"{best.method.capitalize()}: {best.name} costs {usd(best.total_usd)} {days}{span}, "
        f"{usd(best.cost_per_call)} a call"
    )
    if best.doubts:
        said += ", on a report without a PASS that holds"
    if best.profit_usd is not None:
        said += f", and brings in {usd(best.profit_usd)} more than it costs"
    if len(decision.ranking) > 1:
        second = decision.outcome(decision.ranking[1])
        said += f"; next is {second.name}, which costs {_more(second.net_usd - best.net_usd)}"
    elif len(decision.outcomes) > 1:
        said += "; no other option is feasible"
    return f"{said}."


def reasons(decision: Decision) -> list[str]:
    """Why: constraints and what they cost, who misses a bar, where the others' money goes, who pays back when."""
    lines = [f"{one.name} rests on no PASS: {'; '.join(one.doubts)}." for one in decision.outcomes if one.doubts]
    for name, because in decision.case.constraints.items():
        out = [one.name for one in decision.outcomes if name in one.broken]
        lines.append(f"{name} ({because}): {RULES[name].says}. Ruled out: {', '.join(out) or 'none'}.")
    if decision.case.constraints and decision.unconstrained != decision.answer:
        lines.append(_price_of_constraints(decision))
    lines += [
        f"{one.name} is out: {'; '.join(short.text for short in one.short)}."
        for one in decision.outcomes
        if one.short and not one.broken
    ]
    best = decision.chosen
    if best is not None:
        others = [decision.outcome(name) for name in decision.ranking if name != best.name]
        lines += [_compared(one, best) for one in others]
    lines += [
        f"{one.name}: {one.machines} reserved {'machine is' if one.machines == 1 else 'machines are'} paid day and "
        f"night and busy {figures(100 * one.busy, 2)}% of the time."
        for one in decision.outcomes
        if one.machines is not None and one.busy is not None and not one.broken
    ]
    if best is not None and len(decision.ranking) > 1:
        drawn = any(not each.input.exact for each in decision.sensitivities)
        if drawn:
            lines.append(f"{best.name} is the answer in {best.best_in:.0%} of the draws from the stated ranges.")
    return lines


def _why_out(decision: Decision) -> str:
    parts: list[str] = []
    for one in decision.outcomes:
        why = [*one.broken, *(short.text for short in one.short)]
        parts.append(f"{one.name} ({'; '.join(why)})")
    return ", ".join(parts)


def _price_of_constraints(decision: Decision) -> str:
    names = " and ".join(decision.case.constraints)
    if decision.unconstrained in {NOTHING_FEASIBLE, NOTHING_PAYS}:
        return f"Without {names} it would be {decision.unconstrained}."
    free, best = decision.outcome(decision.unconstrained), decision.chosen
    less = "" if best is None else f": {names} costs {usd(best.net_usd - free.net_usd)}"
    return f"Without {names} it would be {free.name} at {usd(free.total_usd)}{less}."


def _compared(one: OptionOutcome, best: OptionOutcome) -> str:
    """Where the difference lies: lines of more than a twentieth of the sum of all differences, then the rest."""
    ours, theirs = _by_name(best), _by_name(one)
    differences = {what: theirs.get(what, 0.0) - ours.get(what, 0.0) for what in dict.fromkeys([*theirs, *ours])}
    whole = sum(abs(amount) for amount in differences.values())
    told = sorted(
        ((what, amount) for what, amount in differences.items() if abs(amount) > _SMALL_LINE * whole),
        key=lambda pair: -pair[1],
    )
    parts = [f"{'+' if amount > 0 else '-'}{usd(abs(amount))} {what}" for what, amount in told]
    rest = sum(differences.values()) - sum(amount for _, amount in told)
    if abs(rest) > _NOTHING * whole:
        parts.append(f"{'+' if rest > 0 else '-'}{usd(abs(rest))} all else")
    told_apart = f": {', '.join(parts)}" if parts else ""
    return f"{one.name} costs {_more(one.net_usd - best.net_usd)}{told_apart}."


def _more(dollars: float) -> str:
    return f"{usd(dollars)} more" if dollars else "as much"


def _by_name(one: OptionOutcome) -> dict[str, float]:
    found: dict[str, float] = {}
    for when, what, amount in one.lines:
        name = f"{what} (calls)" if when == "calls" else what
        found[name] = found.get(name, 0.0) + amount
    found["wrong answers less revenue"] = one.net_usd - one.total_usd
    return found


def break_even(one: BreakEvenVolume) -> str:
    """One line."""
    if one.calls_per_day is None:
        said = f"{one.option} against {one.against}: never; {one.reason}"
    elif one.calls_per_day == 0:
        said = f"{one.option} against {one.against}: at any volume"
    else:
        said = f"{one.option} against {one.against}: from {number(one.calls_per_day)} calls a day"
        if one.interval is not None:
            low, high = ("never" if end is None else number(end) for end in one.interval)
            said += "" if low == high else f" ({low} to {high})"
    if one.windows:
        lows, highs = zip(*one.windows, strict=True)
        said += f"; not for good already at some volumes from {number(min(lows))} to {number(max(highs))}"
    if one.calls_per_day:
        days = (
            "not within ten years" if one.days is None else f"after {number(one.days)} days" if one.days else "at once"
        )
        said += f"; at this volume {days}"
    return f"{said}."


def flips(each: Sensitivity) -> str:
    """One line: where the answer changes, or that it does not."""
    one = each.input
    assert one.search is not None
    found = [text for text in (_flip("below", each.below), _flip("above", each.above)) if text]
    if not found:
        low, high = one.search
        return f"{one.name} (now {number(one.value)}): does not flip in [{number(low)}, {number(high)}]"
    return f"{one.name} (now {number(one.value)}): {'; '.join(found)}"


def _flip(side: str, flip: Flip | None) -> str:
    if flip is None:
        return ""
    return f"{side} {number(flip.at)} {flip.to}{' (within its stated range)' if flip.within else ''}"


def as_values(decision: Decision) -> dict[str, Any]:
    """The decision for --json: numbers in USD, days and tokens; null is unknown, or never where a reason says so."""
    case = decision.case
    return {
        "case": case.case,
        "file": None if case.path is None else str(case.path),
        "answer": decision.answer if decision.chosen is not None else None,
        "sentence": answer(decision),
        "method": None if decision.chosen is None else decision.chosen.method,
        "unconstrained": decision.unconstrained,
        "calls": decision.calls,
        "days": decision.days,
        "interval": INTERVAL,
        "reasons": reasons(decision),
        "ranking": list(decision.ranking),
        "options": [_option(one) for one in decision.outcomes],
        "break_evens": [{**asdict(one), "text": break_even(one)} for one in decision.break_evens],
        "flips": [_sensitivity(each) for each in decision.sensitivities],
        "tornado": [
            {
                "input": swing.input.name,
                "low": swing.low,
                "high": swing.high,
                "lead_at_low_usd": swing.lead_at_low,
                "lead_at_high_usd": swing.lead_at_high,
                "assumed_range": swing.assumed,
            }
            for swing in decision.tornado
        ],
        "warnings": list(decision.warnings),
        "formulas": {name: {"formula": text, "source": source} for name, (text, source) in FORMULAS.items()},
    }


def _option(one: OptionOutcome) -> dict[str, Any]:
    values = asdict(one)
    values["lines"] = [{"when": when, "what": what, "usd": amount} for when, what, amount in one.lines]
    return values


def _sensitivity(each: Sensitivity) -> dict[str, Any]:
    one = each.input
    return {
        "input": one.name,
        "value": one.value,
        "stated_range": None if one.exact else [one.low, one.high],
        "searched": None if one.search is None else list(one.search),
        "source": one.source,
        "below": None if each.below is None else asdict(each.below),
        "above": None if each.above is None else asdict(each.above),
        "text": flips(each),
    }
