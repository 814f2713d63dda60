"""A decision in sentences: the answer first, then its reasons, then what would flip it; and as JSON, with formulas."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bedplate.core.quantities import DAYS_PER_MONTH
from bedplate.economics.costs.decisions.decision import INTERVAL, BreakEvenVolume, Decision, OptionOutcome, Sensitivity
from bedplate.economics.costs.decisions.question import NOTHING_FEASIBLE, NOTHING_PAYS
from bedplate.economics.numbers.formula import formula_values, formulas_of
from bedplate.economics.numbers.money import figures, number, usd

_SMALL_SHARE = 0.05  # of all differences: below it a line is not named
_NOTHING = 0.0005

DECISION_FORMULAS = formulas_of("decision")


def answer(decision: Decision) -> str:
    """One sentence."""
    best, days = decision.chosen, f"over {number(decision.days)} days"
    if decision.answer == NOTHING_FEASIBLE:
        reasons = [
            f"{outcome.name} ({'; '.join([*outcome.broken, *(short.text for short in outcome.short)])})"
            for outcome in decision.outcomes
        ]
        return f"None of the {len(decision.outcomes)} options will do: {', '.join(reasons)}."
    if best is None:
        first = decision.outcome(decision.ranking[0])
        return f"None of them pays: the best, {first.name}, would lose {usd(first.net_usd)} {days}."
    low, high = best.total_interval
    interval = "" if high - low <= 1e-9 * high else f" ({INTERVAL:.0%}: {usd(low)} to {usd(high)})"
    sentence = f"{best.method.capitalize()}: {best.name} costs {usd(best.total_usd)} {days}{interval}, "
    sentence += f"{usd(best.total_usd * DAYS_PER_MONTH / decision.days)} a month, {usd(best.cost_per_call)} a call"
    if best.doubts:
        sentence += ", on a report without a valid PASS"
    if best.profit_usd is not None:
        sentence += f", and brings in {usd(best.profit_usd)} more than it costs"
    if len(decision.ranking) > 1:
        second = decision.outcome(decision.ranking[1])
        sentence += f"; next is {second.name}, which costs {_more(second, best)}"
    elif len(decision.outcomes) > 1:
        sentence += "; no other option is feasible"
    return f"{sentence}."


def reasons(decision: Decision) -> list[str]:
    """Why: constraints and what they cost, who misses a bar, where the others' money goes, how busy machines are."""
    outcomes, best, constraints = decision.outcomes, decision.chosen, decision.question.constraints
    lines = [f"{outcome.name} rests on no PASS: {'; '.join(outcome.doubts)}." for outcome in outcomes if outcome.doubts]
    for rule in constraints:
        out = [outcome.name for outcome in outcomes if rule.name in outcome.broken]
        lines.append(f"{rule.name} ({rule.because}): {rule.explanation}. Ruled out: {', '.join(out) or 'none'}.")
    if constraints and decision.unconstrained != decision.answer:
        names, otherwise, price = " and ".join(rule.name for rule in constraints), decision.unconstrained, ""
        if otherwise not in (NOTHING_FEASIBLE, NOTHING_PAYS):
            free = decision.outcome(otherwise)
            price = "" if best is None else f": {names} costs {usd(best.net_usd - free.net_usd)}"
            otherwise = f"{free.name} at {usd(free.total_usd)}"
        lines.append(f"Without {names} it would be {otherwise}{price}.")
    for outcome in outcomes:
        if outcome.short and not outcome.broken:
            lines.append(f"{outcome.name} is out: {'; '.join(short.text for short in outcome.short)}.")
    lines += [padded(outcome) for outcome in outcomes if outcome.padding_tokens > 0 and not outcome.broken]
    if best is not None:
        lines += [_compared(decision.outcome(name), best) for name in decision.ranking if name != best.name]
    for outcome in outcomes:
        if outcome.machines is not None and outcome.busy is not None and not outcome.broken:
            are, busy = "machine is" if outcome.machines == 1 else "machines are", figures(100 * outcome.busy, 2)
            lines.append(
                f"{outcome.name}: {outcome.machines} reserved {are} paid day and night, and calls take {busy}% of what "
                f"{'it' if outcome.machines == 1 else 'they'} can do."
            )
    is_drawn = any(not sensitivity.input.exact for sensitivity in decision.sensitivities)
    if best is not None and len(decision.ranking) > 1 and is_drawn:
        lines.append(f"{best.name} is the answer in {best.best_in:.0%} of the draws from the stated ranges.")
    return lines


def padded(outcome: OptionOutcome) -> str:
    billed, padding = number(outcome.billed_prompt_tokens), number(outcome.padding_tokens)
    without = usd(outcome.total_usd + outcome.padding_saves_usd)
    reason = f"{padding} are padding, with which its repeated prompt is cached"
    without_it = f"without it (pad_prompt: false) it costs {without}"
    return f"{outcome.name} is billed {billed} prompt tokens a call: {reason}; {without_it}."


def _compared(outcome: OptionOutcome, best: OptionOutcome) -> str:
    """Where the difference lies: the lines that are more than a twentieth of all differences, then the rest."""
    differences: dict[str, float] = {}
    for side, sign in ((outcome, 1), (best, -1)):
        lines = [(f"{part} (calls)" if period == "calls" else part, usd) for period, part, usd in side.lines]
        for part, amount in [*lines, ("wrong answers less revenue", side.net_usd - side.total_usd)]:
            differences[part] = differences.get(part, 0.0) + sign * amount
    whole = sum(abs(amount) for amount in differences.values())
    large = [pair for pair in differences.items() if abs(pair[1]) > _SMALL_SHARE * whole]
    large = sorted(large, key=lambda pair: -pair[1])
    rest = sum(differences.values()) - sum(amount for _, amount in large)
    if abs(rest) > _NOTHING * whole:
        large.append(("all else", rest))
    parts = ", ".join(f"{'+' if amount > 0 else '-'}{usd(abs(amount))} {part}" for part, amount in large)
    return f"{outcome.name} costs {_more(outcome, best)}{f': {parts}' if parts else ''}."


def _more(outcome: OptionOutcome, best: OptionOutcome) -> str:
    dollars = outcome.net_usd - best.net_usd
    return f"{usd(dollars)} more" if dollars else "as much"


def break_even(point: BreakEvenVolume) -> str:
    line, days = f"{point.option} against {point.against}: ", point.days
    if point.calls_per_day is None:
        line += f"never; {point.reason}"
    elif point.calls_per_day == 0:
        line += "at any volume"
    else:
        line += f"from {number(point.calls_per_day)} calls a day"
        low, high = ("never" if end is None else number(end) for end in point.interval or (0.0, 0.0))
        line += "" if low == high else f" ({low} to {high})"
    if point.windows:
        low, high = min(start for start, _ in point.windows), max(end for _, end in point.windows)
        line += f"; for a while also at volumes from {number(low)} to {number(high)}"
    if point.calls_per_day:
        after = "not within ten years" if days is None else f"after {number(days)} days" if days else "at once"
        line += f"; at this volume {after}"
    return f"{line}."


def flips(sensitivity: Sensitivity) -> str:
    """One line: where the answer changes, or that it does not."""
    row = sensitivity.input
    sides = [
        f"{side} {number(flip.at)} {flip.to}{' (within its stated range)' if flip.within else ''}"
        for side, flip in (("below", sensitivity.below), ("above", sensitivity.above))
        if flip is not None
    ]
    low, high = (number(end) for end in row.search)
    return f"{row.name} (now {number(row.value)}): {'; '.join(sides) or f'does not flip in [{low}, {high}]'}"


def as_values(decision: Decision) -> dict[str, Any]:
    """The decision for --json: numbers in USD, days and tokens; null is unknown, or never where a reason says so."""
    question, best = decision.question, decision.chosen
    return {
        "case": question.title,
        "file": question.file,
        "answer": None if best is None else best.name,
        "sentence": answer(decision),
        "method": None if best is None else best.method,
        "unconstrained": decision.unconstrained,
        "calls": decision.calls,
        "days": decision.days,
        "interval": INTERVAL,
        "reasons": reasons(decision),
        "ranking": list(decision.ranking),
        "options": [_option(outcome) for outcome in decision.outcomes],
        "break_evens": [{**asdict(point), "text": break_even(point)} for point in decision.break_evens],
        "flips": [_sensitivity(sensitivity) for sensitivity in decision.sensitivities],
        "warnings": list(question.warnings),
        "formulas": formula_values(DECISION_FORMULAS),
    }


def _option(outcome: OptionOutcome) -> dict[str, Any]:
    lines = [{"when": period, "what": part, "usd": amount} for period, part, amount in outcome.lines]
    return vars(outcome) | {"short": [asdict(short) for short in outcome.short], "lines": lines}


def _sensitivity(sensitivity: Sensitivity) -> dict[str, Any]:
    row = sensitivity.input
    return {
        "input": row.name,
        "value": row.value,
        "stated_range": None if row.exact else [row.low, row.high],
        "searched": list(row.search),
        "source": row.source,
        "below": sensitivity.below and asdict(sensitivity.below),
        "above": sensitivity.above and asdict(sensitivity.above),
        "text": flips(sensitivity),
    }
