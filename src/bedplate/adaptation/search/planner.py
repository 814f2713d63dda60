"""What a rung is expected to take, before it starts: time from what was measured, money from the machine's price and
what endpoints charge. What cannot meet the task's limits is left out, and says so; an exhaustive ladder climbs it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungOutcome, RungPlan, Skip
from bedplate.adaptation.context.throughput import FIRST_CALLS, PACE_SHARE, Throughput
from bedplate.adaptation.rungs import RUNGS
from bedplate.adaptation.rungs.rung import Rung
from bedplate.core.processor import load_average
from bedplate.report.schema_parts import Forecast, NotTried


def ruled_out(context: Context, rung: Rung) -> Skip | None:
    """Why a rung is not worth planning, by what was measured and by rule, or None. A call that would be over the budget
    is timed again with the rung's own lightest prompt before it excludes it, and what such a call waits for a processor
    that other work has does not count."""
    if context.exhaustive:
        return None
    traits = rung.traits
    labels, min_labels = len(context.train), traits.least_labels
    if labels < min_labels:
        return Skip(f"{labels} labels are fewer than the {min_labels} that it is worth trying with", "rule")
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
    reading = context.cached_reading(*rung.lightest(context), limit)
    if reading.quiet <= limit:
        return None
    format_note = "" if times == 1.0 else f", and {times:.1f} times less in a format"
    milliseconds, usd = 1000 * reading.quiet / times, rate * reading.quiet / times
    needs: dict[str, float] = {}
    reasons: list[str] = []
    if budget.p95_ms is not None and milliseconds > budget.p95_ms:
        needs["p95_ms"] = milliseconds
        reasons.append(f"the budget's p95 is {budget.p95_ms} ms")
    if budget.usd_per_1k_calls is not None and usd > budget.usd_per_1k_calls:
        needs["usd_per_1k_calls"] = usd
        reasons.append(f"1,000 calls may cost ${budget.usd_per_1k_calls} and cost ${usd:.4f}")
    call = f"a call with its lightest prompt takes {reading.quiet * 1000:.0f} ms here ({reading.description})"
    return Skip(f"{call}{format_note}; {' and '.join(reasons)}", "budget", needs=needs)


def over_budget(context: Context, plan: RungPlan) -> Skip | None:
    """Why a planned rung may not start, or None: what it takes is more than the money that is left. (Rungs plan within
    the time that is left, which the machine's price bounds as well.)"""
    usd_left = context.usd_left
    needed = plan.seconds * usd_per_second(context) + plan.usd
    if needed <= usd_left:
        return None
    reason = f"it needs about ${needed:.4f}, ${max(usd_left, 0):.4f} of the climb's money are left"
    usd = context.spec.budget.train_usd
    return Skip(reason, "budget", plan.seconds, {} if usd is None else {"train_usd": usd + needed - usd_left})


def planned(context: Context, rung: Rung) -> RungPlan | Skip:
    """The rung's own plan, if nothing that is known before speaks against it and there is money for it; where it makes
    a child base, within the time that the child's guards leave."""
    out = ruled_out(context, rung)
    if out is not None:
        return out
    before = context.until
    if rung.traits.makes_child and context.seconds_left < math.inf:
        context.until = min(before, context.clock.used + context.seconds_left - guard_seconds(context))
    try:
        plan = rung.plan(context)
    finally:
        context.until = before
    if isinstance(plan, Skip):
        return with_needs(context, plan)
    plan = replace(plan, seconds=plan.seconds * context.pace * context.slower, pace=context.pace)
    return over_budget(context, plan) or plan


LONG = 20.0
"""Seconds that a rung is to take, and that a measurement is old, before it is worth measuring again."""
NOTABLY, MAX_SLOWDOWN = 1.25, 4.0
"""Times slower that change a plan, and that are believed of a few calls at most."""


def planned_now(context: Context, rung: Rung) -> RungPlan | Skip:
    """The rung's plan. One that trains for long on a machine that has become slower is made smaller, and says why; one
    that there is no time for is planned again on a machine that has become faster, since the base's speed may have been
    measured at a busy moment. Otherwise a faster machine changes nothing: what is left in the end goes to larger
    fits."""
    plan, speed = planned(context, rung), context.throughput
    unlimited = context.outer_clock is not None or math.isinf(context.seconds_left)
    if unlimited or context.settled or not speed.first_calls:
        return plan
    if isinstance(plan, Skip):
        return _planned_faster(context, rung, plan)
    if not rung.traits.trained or plan.seconds < LONG or time.monotonic() - speed.at < LONG:
        return plan
    slower = min(MAX_SLOWDOWN, calls_now(context) / speed.first_calls)
    if slower < NOTABLY:
        return plan
    context.slower = slower
    try:
        smaller = planned(context, rung)
    finally:
        context.slower = 1.0
    if isinstance(smaller, Skip) or smaller.settings == plan.settings:
        return smaller
    load = load_average()
    reason = f"the machine is {slower:.1f} times slower than when the base's speed was measured"
    reason += "" if load is None else f" (load average {load:.1f})"
    return replace(smaller, left_out=(*smaller.left_out, reason))


def _planned_faster(context: Context, rung: Rung, skip: Skip) -> RungPlan | Skip:
    """A rung that there is no time for, by the machine's speed now where that is notably higher, and where timing it
    takes little of what is left."""
    if skip.kind != "budget" or skip.seconds is None or context.hosted is not None:
        return skip
    if FIRST_CALLS * context.throughput.first_calls > PACE_SHARE * context.seconds_left:
        return skip
    speed = speed_now(context)
    if speed.call * NOTABLY > context.throughput.call:
        return skip
    context.throughput = speed
    return planned(context, rung)


def calls_now(context: Context) -> float:
    """Seconds of the first few calls that the base's speed was measured with, as they are now: the least of a few
    medians, until one is not notably more. What disturbs a tenth of a second says nothing of the minutes that a fit
    takes."""
    prompt, output = context.plain_prompt()
    enough = NOTABLY * context.throughput.first_calls
    tenant = f"pace at {context.clock.used:.1f} s"  # for whom nothing is cached, however often it is measured
    with context.clock.measuring.spending():
        return context.calls(prompt, output, enough, FIRST_CALLS, tenant).call


def speed_now(context: Context) -> Throughput:
    """The base's speed as it was measured, scaled by what calls take now: prompts that were read before are cached, so
    reading them again would say nothing."""
    speed = context.throughput
    times = calls_now(context) / speed.first_calls if speed.first_calls else 1.0
    seconds = {name: times * getattr(speed, name) for name in ("token", "call", "decode", "first_calls")}
    return replace(speed, **seconds, at=time.monotonic())


def with_needs(context: Context, skip: Skip) -> Skip:
    """A rung that there is no time for says which limit would leave it enough."""
    limits, clock = context.spec.budget, context.clock
    if skip.kind != "budget" or skip.seconds is None or skip.needs:
        return skip
    seconds, left, reserve = skip.seconds * context.pace, max(clock.seconds_left, 0.0), context.test_reserve
    whole = clock.used + reserve + seconds
    needs: dict[str, float] = {}
    if clock.seconds is not None and whole > clock.seconds:
        needs["train_minutes"] = whole / 60
    if limits.train_usd is not None and whole * usd_per_second(context) > limits.train_usd:
        needs["train_usd"] = whole * usd_per_second(context)
    reason = f"it needs about {seconds:.0f} s; {left:.0f} s of the budget are left"
    reserved = left - max(min(left - reserve, context.until - clock.used), 0.0)
    reason += f", {reserved:.0f} s of them for test, the report and other rungs" if reserved >= 0.5 else ""
    return replace(skip, reason=reason, seconds=seconds, needs=needs)


def guard_seconds(context: Context) -> float:
    """Expected seconds of the task's guards for one child: its parent is asked once and may have to be as well."""
    guards, token = context.spec.guards, context.throughput.token
    tokens = 0.0
    if guards.retention is not None:
        tokens_per_question = [_ITEM_TOKENS[name] for name in guards.retention.sets]
        tokens += guards.retention.per_set * sum(tokens_per_question)
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
    return context.spec.machine.usd_per_hour / 3600


def forecasts(context: Context, outcomes: Mapping[str, RungOutcome]) -> list[Forecast]:
    """What every rung was expected to take and took, in the order in which they were climbed."""
    rate = usd_per_second(context)
    return [
        Forecast(
            rung=name,
            expected_seconds=None if outcome.plan is None else outcome.plan.seconds,
            expected_usd=None if outcome.plan is None else outcome.plan.seconds * rate + outcome.plan.usd,
            seconds=outcome.seconds,
            usd=outcome.seconds * rate + (0.0 if outcome.result is None else outcome.result.usd),
        )
        for name, outcome in outcomes.items()
    ]


def not_tried(outcomes: Mapping[str, RungOutcome]) -> list[NotTried]:
    """What the ladder left out, whole rungs and parts of them, each with its reason and what kind of reason it is."""
    omissions: list[NotTried] = []
    for name, outcome in outcomes.items():
        if outcome.status == "skipped":
            category = outcome.skip or "impossible"
            omissions.append(NotTried(rung=name, what="rung", kind=category, reason=outcome.reason))
        left_out = () if outcome.result is None else outcome.result.left_out
        omissions += [NotTried(rung=name, what="part", kind="budget", reason=reason) for reason in left_out]
    return omissions


def order(names: Sequence[str], favours: str) -> tuple[str, ...]:
    """The rungs in the order of climbing: cheapest first as given, but the dear search for a prompt comes before the
    rungs that train weights where prompting is expected to win, and after them where tuning is."""
    late = [name for name in names if RUNGS[name].traits.dear]
    early = [name for name in names if name not in late]
    trained = [i for i, name in enumerate(early) if RUNGS[name].traits.trained]
    if not late or not trained:
        return tuple(names)
    place = trained[0] if favours == "prompting" else trained[-1] + 1
    return (*early[:place], *late, *early[place:])
