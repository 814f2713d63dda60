"""What a rung is expected to take, before it starts: time from what was measured, money from the machine's price and
what endpoints charge. What cannot meet the task's limits is left out, and says so; an exhaustive ladder climbs it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import Plan, RungOutcome, Skip
from bedplate.adaptation.rungs import RUNGS
from bedplate.adaptation.rungs.rung import Rung
from bedplate.report.schema_plan import Forecast, NotTried


def ruled_out(context: Context, rung: Rung) -> Skip | None:
    """Why a rung is not worth planning, by what was measured and by rule, or None. A call that would be over the budget
    is timed again with the rung's own lightest prompt before it excludes it, and what such a call waits for a processor
    that other work has does not count."""
    if context.exhaustive:
        return None
    traits = rung.traits
    labels, least = len(context.train), traits.least_labels
    if labels < least:
        return Skip(f"{labels} labels are fewer than the {least} that it is worth trying with", "rule")
    if not traits.whole_prompt:
        return None
    budget, times = context.spec.budget, context.format_gain
    rate = usd_per_second(context) * 1000
    limits = [math.inf if budget.p95_ms is None else budget.p95_ms / 1000]
    if budget.usd_per_1k_calls is not None and rate > 0:
        limits.append(budget.usd_per_1k_calls / rate)
    limit = min(limits) * times
    if context.throughput.call <= limit:
        return None
    found = context.again(*rung.lightest(context), limit)
    if found.quiet <= limit:
        return None
    even = "" if times == 1.0 else f", and {times:.1f} times less in a format"
    call, needs = found.quiet / times, dict[str, float]()
    if budget.p95_ms is not None and call * 1000 > budget.p95_ms:
        needs["p95_ms"] = call * 1000
    if budget.usd_per_1k_calls is not None and call * rate > budget.usd_per_1k_calls:
        needs["usd_per_1k_calls"] = call * rate
    takes = f"a call with its lightest prompt takes {found.quiet * 1000:.0f} ms here ({found.said}){even}"
    asked = {
        "p95_ms": f"the budget's p95 is {budget.p95_ms} ms",
        "usd_per_1k_calls": f"1,000 calls may cost ${budget.usd_per_1k_calls} and cost ${call * rate:.4f}",
    }
    return Skip(f"{takes}; {' and '.join(asked[key] for key in needs)}", "budget", needs=needs)


def over_budget(context: Context, plan: Plan) -> Skip | None:
    """Why a planned rung may not start, or None: what it takes is more than the money that is left. (Rungs plan within
    the time that is left, which the machine's price bounds as well.)"""
    left = context.usd_left
    needed = plan.seconds * usd_per_second(context) + plan.usd
    if needed <= left:
        return None
    said = f"it needs about ${needed:.4f}, ${max(left, 0):.4f} of the climb's money are left"
    usd = context.spec.budget.train_usd
    return Skip(said, "budget", plan.seconds, {} if usd is None else {"train_usd": usd + needed - left})


def planned(context: Context, rung: Rung) -> Plan | Skip:
    """The rung's own plan, if nothing that is known before speaks against it and there is money for it; where it makes
    a child base, within the time that the child's guards leave."""
    out = ruled_out(context, rung)
    if out is not None:
        return out
    before = context.until
    if rung.traits.makes_child and context.left < math.inf:
        context.until = min(before, context.clock.used + context.left - guard_seconds(context))
    try:
        plan = rung.plan(context)
    finally:
        context.until = before
    if isinstance(plan, Skip):
        return _with_needs(context, plan)
    plan = replace(plan, seconds=plan.seconds * context.pace * context.slower, pace=context.pace)
    return over_budget(context, plan) or plan


def _with_needs(context: Context, skip: Skip) -> Skip:
    """A rung that there is no time for says which limit would leave it enough."""
    limits, clock = context.spec.budget, context.clock
    if skip.kind != "budget" or skip.seconds is None or skip.needs:
        return skip
    whole = clock.used + context.test_reserve + skip.seconds * context.pace
    needs: dict[str, float] = {}
    if clock.seconds is not None and whole > clock.seconds:
        needs["train_minutes"] = whole / 60
    if limits.train_usd is not None and whole * usd_per_second(context) > limits.train_usd:
        needs["train_usd"] = whole * usd_per_second(context)
    return replace(skip, seconds=skip.seconds * context.pace, needs=needs)


def guard_seconds(context: Context) -> float:
    """Expected seconds of the task's guards for one child: its parent is asked once and may have to be as well."""
    guards, token = context.spec.guards, context.throughput.token
    tokens = 0.0
    if guards.retention is not None:
        each = [_ITEM_TOKENS[name] for name in guards.retention.sets]
        tokens += guards.retention.per_set * sum(each)
    if guards.loss is not None:
        tokens += guards.loss.documents * _DOCUMENT_TOKENS
    if guards.refusal is not None:
        tokens += _REFUSAL_TOKENS
    return 2 * tokens * token


_ITEM_TOKENS = {"piqa": 65, "openbookqa": 45, "commonsenseqa": 45, "boolq": 170}
_DOCUMENT_TOKENS, _REFUSAL_TOKENS = 130, 20_000
"""Prompt tokens of an item with its choices and of a document; 72 replies of 40 tokens, written at about a seventh of
the pace that prompts are read at."""


def usd_per_second(context: Context) -> float:
    """What this machine's time costs."""
    return context.spec.machine.usd_per_hour / 3600


def forecasts(context: Context, outcomes: Mapping[str, RungOutcome]) -> list[Forecast]:
    """Of every rung, in the order in which they were climbed."""
    rate = usd_per_second(context)

    def forecast(name: str, outcome: RungOutcome) -> Forecast:
        plan, seconds = outcome.plan, outcome.seconds
        return Forecast(
            rung=name,
            expected_seconds=None if plan is None else plan.seconds,
            expected_usd=None if plan is None else plan.seconds * rate + plan.usd,
            seconds=seconds,
            usd=seconds * rate + (0.0 if outcome.result is None else outcome.result.usd),
        )

    return [forecast(name, outcome) for name, outcome in outcomes.items()]


def not_tried(outcomes: Mapping[str, RungOutcome]) -> list[NotTried]:
    """What the ladder left out, whole rungs and parts of them, each with its reason and what kind of reason it is."""
    found: list[NotTried] = []
    for name, outcome in outcomes.items():
        if outcome.status == "skipped":
            kind = outcome.skip or "impossible"
            found.append(NotTried(rung=name, what="rung", kind=kind, reason=outcome.reason))
        if outcome.result is not None:
            left_out = outcome.result.left_out
            found += [NotTried(rung=name, what="part", kind="budget", reason=reason) for reason in left_out]
    return found


def order(names: Sequence[str], favours: str) -> tuple[str, ...]:
    """The rungs in the order of climbing: cheapest first as given, but the dear search for a prompt comes before the
    rungs that train weights where prompting is expected to win, and after them where tuning is."""
    late = [name for name in names if RUNGS[name].traits.dear]
    rest = [name for name in names if name not in late]
    trained = [i for i, name in enumerate(rest) if RUNGS[name].traits.trained]
    if not late or not trained:
        return tuple(names)
    place = trained[0] if favours == "prompting" else trained[-1] + 1
    return (*rest[:place], *late, *rest[place:])
