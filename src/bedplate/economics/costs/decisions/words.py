"""A decision said in sentences: the answer first, then its reasons, then what would flip it; and as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bedplate.economics.costs.decisions.breakeven import BreakEvenVolume
from bedplate.economics.costs.decisions.decision import INTERVAL, Decision, OptionOutcome
from bedplate.economics.costs.decisions.exclusions import RULES
from bedplate.economics.costs.decisions.formulas import FORMULAS
from bedplate.economics.costs.decisions.sensitivity import NOTHING_FEASIBLE, NOTHING_PAYS, Flip, Sensitivity
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
    sentence = (
        f"{best.method.capitalize()}: {best.name} costs {usd(best.total_usd)} {days}{span}, "
        f"{usd(best.cost_per_call)} a call"
    )
    if best.doubts:
        sentence += ", on a report without a PASS that holds"
    if best.profit_usd is not None:
        sentence += f", and brings in {usd(best.profit_usd)} more than it costs"
    if len(decision.ranking) > 1:
        second = decision.outcome(decision.ranking[1])
        sentence += f"; next is {second.name}, which costs {_extra_cost(second.net_usd - best.net_usd)}"
    elif len(decision.outcomes) > 1:
        sentence += "; no other option is feasible"
    return f"{sentence}."


def reasons(decision: Decision) -> list[str]:
    """Why: constraints and what they cost, who misses a bar, where the others' money goes, who pays back when."""
    lines = [
        f"{outcome.name} rests on no PASS: {'; '.join(outcome.doubts)}."
        for outcome in decision.outcomes
        if outcome.doubts
    ]
    for name, because in decision.case.constraints.items():
        out = [outcome.name for outcome in decision.outcomes if name in outcome.broken]
        lines.append(f"{name} ({because}): {RULES[name].explanation}. Ruled out: {', '.join(out) or 'none'}.")
    if decision.case.constraints and decision.unconstrained != decision.answer:
        lines.append(_price_of_constraints(decision))
    lines += [
        f"{outcome.name} is out: {'; '.join(short.text for short in outcome.short)}."
        for outcome in decision.outcomes
        if outcome.short and not outcome.broken
    ]
    best = decision.chosen
    if best is not None:
        rivals = [decision.outcome(name) for name in decision.ranking if name != best.name]
        lines += [_compared(rival, best) for rival in rivals]
    lines += [
        f"{outcome.name}: {outcome.machines} reserved {'machine is' if outcome.machines == 1 else 'machines are'} paid day and "
        f"night and busy {figures(100 * outcome.busy, 2)}% of the time."
        for outcome in decision.outcomes
        if outcome.machines is not None and outcome.busy is not None and not outcome.broken
    ]
    if best is not None and len(decision.ranking) > 1:
        drawn = any(not sensitivity.input.exact for sensitivity in decision.sensitivities)
        if drawn:
            lines.append(f"{best.name} is the answer in {best.best_in:.0%} of the draws from the stated ranges.")
    return lines


def _why_out(decision: Decision) -> str:
    parts: list[str] = []
    for outcome in decision.outcomes:
        why = [*outcome.broken, *(short.text for short in outcome.short)]
        parts.append(f"{outcome.name} ({'; '.join(why)})")
    return ", ".join(parts)


def _price_of_constraints(decision: Decision) -> str:
    names = " and ".join(decision.case.constraints)
    if decision.unconstrained in {NOTHING_FEASIBLE, NOTHING_PAYS}:
        return f"Without {names} it would be {decision.unconstrained}."
    free, best = decision.outcome(decision.unconstrained), decision.chosen
    cost_note = "" if best is None else f": {names} costs {usd(best.net_usd - free.net_usd)}"
    return f"Without {names} it would be {free.name} at {usd(free.total_usd)}{cost_note}."


def _compared(outcome: OptionOutcome, best: OptionOutcome) -> str:
    """Where the difference lies: lines of more than a twentieth of the sum of all differences, then the rest."""
    ours, theirs = _by_name(best), _by_name(outcome)
    differences = {
        purpose: theirs.get(purpose, 0.0) - ours.get(purpose, 0.0) for purpose in dict.fromkeys([*theirs, *ours])
    }
    whole = sum(abs(amount) for amount in differences.values())
    large_lines = sorted(
        ((purpose, amount) for purpose, amount in differences.items() if abs(amount) > _SMALL_LINE * whole),
        key=lambda pair: -pair[1],
    )
    parts = [f"{'+' if amount > 0 else '-'}{usd(abs(amount))} {purpose}" for purpose, amount in large_lines]
    remainder = sum(differences.values()) - sum(amount for _, amount in large_lines)
    if abs(remainder) > _NOTHING * whole:
        parts.append(f"{'+' if remainder > 0 else '-'}{usd(abs(remainder))} all else")
    told_apart = f": {', '.join(parts)}" if parts else ""
    return f"{outcome.name} costs {_extra_cost(outcome.net_usd - best.net_usd)}{told_apart}."


def _extra_cost(dollars: float) -> str:
    return f"{usd(dollars)} more" if dollars else "as much"


def _by_name(outcome: OptionOutcome) -> dict[str, float]:
    amounts: dict[str, float] = {}
    for period, purpose, amount in outcome.lines:
        name = f"{purpose} (calls)" if period == "calls" else purpose
        amounts[name] = amounts.get(name, 0.0) + amount
    amounts["wrong answers less revenue"] = outcome.net_usd - outcome.total_usd
    return amounts


def break_even(volume: BreakEvenVolume) -> str:
    """One line."""
    if volume.calls_per_day is None:
        sentence = f"{volume.option} against {volume.against}: never; {volume.reason}"
    elif volume.calls_per_day == 0:
        sentence = f"{volume.option} against {volume.against}: at any volume"
    else:
        sentence = f"{volume.option} against {volume.against}: from {number(volume.calls_per_day)} calls a day"
        if volume.interval is not None:
            low, high = ("never" if end is None else number(end) for end in volume.interval)
            sentence += "" if low == high else f" ({low} to {high})"
    if volume.windows:
        lows, highs = zip(*volume.windows, strict=True)
        sentence += f"; not for good already at some volumes from {number(min(lows))} to {number(max(highs))}"
    if volume.calls_per_day:
        days = (
            "not within ten years"
            if volume.days is None
            else f"after {number(volume.days)} days"
            if volume.days
            else "at once"
        )
        sentence += f"; at this volume {days}"
    return f"{sentence}."


def flips(sensitivity: Sensitivity) -> str:
    """One line: where the answer changes, or that it does not."""
    factor = sensitivity.input
    assert factor.search is not None
    texts = [text for text in (_flip("below", sensitivity.below), _flip("above", sensitivity.above)) if text]
    if not texts:
        low, high = factor.search
        return f"{factor.name} (now {number(factor.value)}): does not flip in [{number(low)}, {number(high)}]"
    return f"{factor.name} (now {number(factor.value)}): {'; '.join(texts)}"


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
        "options": [_option(outcome) for outcome in decision.outcomes],
        "break_evens": [{**asdict(volume), "text": break_even(volume)} for volume in decision.break_evens],
        "flips": [_sensitivity(sensitivity) for sensitivity in decision.sensitivities],
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


def _option(outcome: OptionOutcome) -> dict[str, Any]:
    values = asdict(outcome)
    values["lines"] = [{"when": period, "what": purpose, "usd": amount} for period, purpose, amount in outcome.lines]
    return values


def _sensitivity(sensitivity: Sensitivity) -> dict[str, Any]:
    factor = sensitivity.input
    return {
        "input": factor.name,
        "value": factor.value,
        "stated_range": None if factor.exact else [factor.low, factor.high],
        "searched": None if factor.search is None else list(factor.search),
        "source": factor.source,
        "below": None if sensitivity.below is None else asdict(sensitivity.below),
        "above": None if sensitivity.above is None else asdict(sensitivity.above),
        "text": flips(sensitivity),
    }
