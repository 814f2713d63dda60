"""What serving costs: traffic and a machine → latency, throughput, replicas, dollars a call and a million tokens.

One replica is simulated (`simulation`) under calls that come at random. Its capacity is the highest rate at
which the latency target still holds; the busiest hour needs so many replicas. Reserved machines cost the same when they
idle, so that a call's price is the fleet's over the calls: utilisation divides, it never takes cost away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

from bedplate.core.arguments import need_fields
from bedplate.core.display import Brief
from bedplate.core.errors import UsageError
from bedplate.economics.hardware.machine import Load
from bedplate.economics.numbers.formula import at_least, formula_values, formulas_of, positive, whole
from bedplate.economics.serving.replica import Replica
from bedplate.economics.serving.simulation import (
    SECONDS_PER_DAY,
    ArrivingCall,
    ServiceModel,
    Simulated,
    Traffic,
    simulate,
)

CALLS = 300  # calls of one simulation; the first tenth, which meets an empty engine, is left out of its percentiles
PARTS = 128  # parts of the saturating rate: a capacity is told to one of them
LOADS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)

SERVING_FORMULAS = formulas_of("serving")


@dataclass(frozen=True)
class LatencyTarget:
    """Latency that a share of the calls must meet, in seconds: until the answer's end, and until its first token."""

    total_seconds: float | None = None
    first_token_seconds: float | None = None
    share: float = 0.95

    def __post_init__(self) -> None:
        need_fields(self)
        positive(**{name: value for name, value in vars(self).items() if value is not None})
        if self.share >= 1:
            raise UsageError(f"the share of calls that must meet the target is {self.share:g}; give one below 1")

    def checks(self, outcome: Simulated) -> list[tuple[float, float, str]]:
        """(limit, seconds that the share of a simulated run's calls took, until when) of each limit that there is."""
        limits = (self.total_seconds, outcome.total), (self.first_token_seconds, outcome.first_token)
        events = ("its answer's end", "its first token")
        checks = zip(limits, events, strict=True)
        return [(limit, quantile(self.share), event) for (limit, quantile), event in checks if limit is not None]

    def slack(self, outcome: Simulated) -> float:
        """How far a simulated run meets it."""
        return slack([(limit, seconds) for limit, seconds, _ in self.checks(outcome)])


def slack(latencies: Sequence[tuple[float | None, float]]) -> float:
    """How far latencies meet their limits, as (limit, seconds): the least of limit / seconds − 1, below 0 where one
    does not; infinite where there is no limit."""
    ratios = [limit / max(seconds, 1e-12) - 1 for limit, seconds in latencies if limit is not None]
    return min(ratios, default=math.inf)


_DOLLARS = ("usd_per_call", "usd_per_million_tokens", "usd_per_day", "floor_usd_per_call")


def fleet_for(
    calls_per_day: float,
    peak_factor: float,
    capacity: float,
    spare: int,
    usd_per_hour: float,
    saturated: float,
    tokens_per_call: float,
) -> dict[str, float]:
    """A fleet's size, cost and load, for the busiest hour. capacity, saturated: calls a second of one replica, at most
    within the target and when it is full."""
    mean_rate = calls_per_day / SECONDS_PER_DAY
    # A demand that fills its replicas exactly needs no further one for a rounding error.
    replicas = max(1, math.ceil(mean_rate * peak_factor / capacity - 1e-9)) + spare
    usd_per_day = replicas * usd_per_hour * 24.0
    return {
        "replicas": replicas,
        "usd_per_call": usd_per_day / calls_per_day,
        "usd_per_million_tokens": usd_per_day / calls_per_day / tokens_per_call * 1e6,
        "usd_per_day": usd_per_day,
        "floor_usd_per_call": usd_per_hour / 3600.0 / saturated,
        "peak_rate": mean_rate * peak_factor / replicas,
        "mean_rate": mean_rate / replicas,
    }


@dataclass(frozen=True)
class RateLatency:
    """Percentiles of a rate, in seconds."""

    calls_per_second: float
    first_token_p50: float
    first_token_p95: float
    total_p50: float
    total_p95: float
    total_p99: float
    utilisation: float
    mean_batch: float


@dataclass(frozen=True, repr=False)
class ServingPlan(Brief):
    """One replica, and the fleet. Rates are calls a second of one replica; usd is None where no price is known.

    alone: one call on an idle replica. saturated: as many calls as it can take, without regard to latency. at_peak and
    at_mean: in the busiest hour and on average, with the replicas that the plan has. floor_usd_per_call: if every
    replica were always full, which no traffic reaches. memory: bytes by what they hold.
    """

    basis: str
    alone: RateLatency
    saturated_calls_per_second: float
    saturated_tokens_per_second: float
    capacity_calls_per_second: float
    replicas: int
    at_peak: RateLatency
    at_mean: RateLatency
    calls_per_day: float
    peak_factor: float
    tokens_per_call: float
    usd_per_hour: float | None
    usd_per_call: float | None
    usd_per_million_tokens: float | None
    usd_per_day: float | None
    floor_usd_per_call: float | None
    price_source: str
    memory: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """Everything, with the formulas."""
        return asdict(self) | {"memory": dict(self.memory), "formulas": formula_values(SERVING_FORMULAS)}


def plan_serving(
    replica: Replica,
    traffic: Traffic,
    calls_per_day: float,
    *,
    peak_factor: float = 3.0,
    target: LatencyTarget | None = None,
    spare: int = 0,
) -> ServingPlan:
    """Plans a fleet of equal replicas.

    peak_factor: the busiest hour's rate over the mean. spare: replicas beyond need. Raises UsageError for numbers that
    cannot be, and where even a call alone misses the target.
    """
    positive(calls_per_day=calls_per_day)
    at_least(1, peak_factor=peak_factor)
    at_least(0, spare=spare)
    service, usd_per_hour = replica.service, replica.usd_per_hour
    if usd_per_hour is not None:
        positive(usd_per_hour=usd_per_hour)
    goal = target or LatencyTarget()
    alone = _alone(service, traffic, goal)
    saturated, full_tokens = saturated_rates(service, traffic)

    def slack_at(parts: int) -> float:
        return goal.slack(_steady(service, traffic, parts / PARTS * saturated))

    capacity = capacity_within(saturated, goal.slack(alone), slack_at)
    tokens = traffic.tokens_per_call
    fleet = fleet_for(calls_per_day, peak_factor, capacity, spare, usd_per_hour or 0.0, saturated, tokens)
    whole(replicas=fleet["replicas"])
    dollars = {name: None if usd_per_hour is None else fleet[name] for name in _DOLLARS}
    return ServingPlan(
        basis=replica.basis,
        alone=_percentiles(alone, 0.0),
        saturated_calls_per_second=saturated,
        saturated_tokens_per_second=full_tokens,
        capacity_calls_per_second=capacity,
        replicas=int(fleet["replicas"]),
        at_peak=_between(service, traffic, fleet["peak_rate"], saturated, alone),
        at_mean=_between(service, traffic, fleet["mean_rate"], saturated, alone),
        calls_per_day=calls_per_day,
        peak_factor=peak_factor,
        tokens_per_call=tokens,
        usd_per_hour=usd_per_hour,
        price_source=replica.price_source,
        memory=dict(replica.memory),
        **dollars,
    )


def plan_cases(
    replicas: Mapping[str, Replica],
    traffic: Traffic,
    calls_per_day: float,
    *,
    peak_factor: float = 3.0,
    target: LatencyTarget | None = None,
    spare: int = 0,
) -> dict[str, ServingPlan]:
    """A plan of each case. One of a range that cannot meet the target is left out; where "central" cannot, its
    UsageError is raised."""
    plans: dict[str, ServingPlan] = {}
    for case, replica in replicas.items():
        try:
            plan = plan_serving(replica, traffic, calls_per_day, peak_factor=peak_factor, target=target, spare=spare)
        except UsageError:
            if case == "central":
                raise
        else:
            plans[case] = plan
    return plans


def _alone(service: ServiceModel, traffic: Traffic, target: LatencyTarget) -> Simulated:
    """Calls so far apart that none meets another."""
    calls = [call._replace(at=1e6 * number) for number, call in enumerate(traffic.calls(1.0, 60))]
    outcome = simulate(service, calls)
    for limit, seconds, event in target.checks(outcome):
        if seconds > limit:
            raise UsageError(
                f"a call alone on an idle machine takes {seconds:.3g} s until {event} (at {target.share:.0%}), over "
                f"the target of {limit:g} s by {seconds - limit:.3g} s: no number of replicas helps. Shorten prompts "
                "or answers, keep the skin's prompt cached, read the weights in fewer bits, or take a faster machine"
            )
    return outcome


def saturated_rates(service: ServiceModel, traffic: Traffic, seed: int = 0) -> tuple[float, float]:
    """Calls and output tokens a second of an engine whose queue never empties: while the middle of a long queue ends,
    so that neither its filling nor the last long answers count."""
    calls = [call._replace(at=0.0) for call in traffic.calls(1.0, max(CALLS, 8 * service.max_rows), seed)]
    ends = sorted(zip(simulate(service, calls).total_seconds, calls, strict=True), key=lambda pair: pair[0])
    middle = ends[len(ends) // 5 : len(ends) * 4 // 5]
    seconds = middle[-1][0] - middle[0][0]
    # What ended after the first of them, which only marks the beginning.
    return (len(middle) - 1) / seconds, sum(call.output_tokens for _, call in middle[1:]) / seconds


def load_curve(
    replica: Replica, traffic: Traffic, plan: ServingPlan, loads: Iterable[float] = LOADS
) -> list[RateLatency]:
    """One replica's latency at shares (`loads`) of the rate that saturates it."""
    return [latency_at(replica.service, traffic, share * plan.saturated_calls_per_second) for share in loads]


def capacity_within(saturated: float, slack_alone: float, slack_at: Callable[[int], float]) -> float:
    """The highest rate at which a target holds; without a target nine tenths of what saturates it, because a queue at
    the limit grows without end. slack_alone: of a call on an idle replica; slack_at: of so many parts of the saturating
    rate."""
    if slack_alone == math.inf:
        return 0.9 * saturated
    # The most parts of the saturating rate that meet it lie in low … high. Like a queue's, the inverse of latency
    # falls about straight to nothing at saturation, which says where to look next; every third look halves the rest.
    low, high, above, below, look = 0, PARTS, slack_alone, -1.0, 0
    while high - low > 1:
        look = look + 1 if look < 3 else 1
        share = 0.5 if look == 3 else above / (above - below)
        middle = min(max(low + math.floor(share * (high - low) + 0.5), low + 1), high - 1)
        margin = slack_at(middle)
        if margin >= 0:
            low, above = middle, margin
        else:
            high, below = middle, margin
    # Calls that come one by one meet the target, so a rate just above nothing does.
    return low / PARTS * saturated or saturated / (2 * PARTS)


def _steady(service: ServiceModel, traffic: Traffic, rate: float) -> Simulated:
    outcome, skipped = simulate(service, traffic.calls(rate, CALLS)), CALLS // 10
    first, total = outcome.first_token_seconds[skipped:], outcome.total_seconds[skipped:]
    return replace(outcome, first_token_seconds=first, total_seconds=total)


def latency_at(service: ServiceModel, traffic: Traffic, rate: float) -> RateLatency:
    """Latency of one replica at so many calls a second."""
    return _percentiles(_steady(service, traffic, rate), rate)


def _between(service: ServiceModel, traffic: Traffic, rate: float, saturated: float, alone: Simulated) -> RateLatency:
    """Latency at a rate, straight between the two nearest of the loads that capacities are told in, as a plan's page
    has it: the least of them is a call alone."""
    place = rate / saturated * PARTS
    below = min(PARTS - 1, math.floor(place))
    loads = [part / PARTS * saturated for part in (below, below + 1)]
    ends = (astuple(latency_at(service, traffic, load) if load else _percentiles(alone, 0.0)) for load in loads)
    values = [low + (place - below) * (high - low) for low, high in zip(*ends, strict=True)]
    return replace(RateLatency(*values), calls_per_second=rate)


def _percentiles(outcome: Simulated, rate: float) -> RateLatency:
    first, total, busy = outcome.first_token, outcome.total, outcome.utilisation if rate else 0.0
    return RateLatency(
        rate, first(0.5), first(0.95), total(0.5), total(0.95), total(0.99), busy, mean_batch=outcome.mean_batch
    )


def decode_tokens_per_second(service: ServiceModel, batch: int, context_tokens: int) -> float:
    """Output tokens a second of `batch` running generations at this context."""
    whole(batch=batch, context_tokens=context_tokens)
    return batch / service.steps.seconds(Load(batch, batch, keys=float(batch * context_tokens)))


def prefill_seconds(service: ServiceModel, prompt_tokens: int, cached_tokens: int = 0) -> float:
    """Seconds of a prompt's steps on an idle engine, the first token of the answer chosen."""
    return simulate(service, [ArrivingCall(0.0, prompt_tokens, cached_tokens, 1)]).total_seconds[0]
