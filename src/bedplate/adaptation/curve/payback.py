"""From how many calls on tuning has paid for itself against prompting, on this machine and at its price.

Both sides have the same labels, so what labelling costs falls out. The arithmetic is economics' own.
"""

from __future__ import annotations

from collections.abc import Sequence

from bedplate.adaptation.context.outcome import RungResult
from bedplate.economics.costs.decisions.bill import Bill, Volume
from bedplate.economics.costs.decisions.breakeven import cheaper_from, why_never

Cost = tuple[float, float]
"""USD of making it (training, or the search of a prompt), and of one call."""

_CALLS = Volume(calls_per_day=1.0, growth_per_year=0.0, days=1.0)
"""One day, so that calls of the first day are calls."""


def cost_of(results: Sequence[RungResult], usd_per_hour: float) -> Cost:
    """Of a rung, averaged over its draws."""
    fixed_costs = [r.train_seconds * usd_per_hour / 3600 + r.usd for r in results]
    calls = [r.price(usd_per_hour, r.latency.mean) for r in results]
    return sum(fixed_costs) / len(fixed_costs), sum(calls) / len(calls)


def pays_from(tuned: str, prompted: str, ours: Cost, theirs: Cost) -> tuple[float | None, str]:
    """Calls from which on `tuned` has cost less in all (0: from the first; None: never), and why."""
    dear, cheap = _bill(ours), _bill(theirs)
    extra, saved = ours[0] - theirs[0], theirs[1] - ours[1]
    if extra <= 0:
        if saved >= 0:
            return 0.0, f"it costs no more to make, and ${saved * 1000:.3g} less per 1,000 calls"
        payback_calls = cheaper_from(cheap, dear, _CALLS)[0]
        return None, (
            f"it costs ${-extra:.3g} less to make, but ${-saved * 1000:.3g} more per 1,000 calls, which is more after "
            f"{payback_calls or 0.0:,.0f} calls"
        )
    calls = cheaper_from(dear, cheap, _CALLS)[0]
    if calls is None:
        return None, why_never(tuned, prompted, dear, cheap, 0.0)
    return calls, f"it costs ${extra:.3g} more to make, and ${saved * 1000:.3g} less per 1,000 calls"


def _bill(cost: Cost) -> Bill:
    fixed, call = cost
    return Bill(fixed=(("making it", fixed),), recurring=(), per_call=(("computing", call),))
