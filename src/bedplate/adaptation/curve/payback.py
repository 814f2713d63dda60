"""From how many calls on tuning has paid for itself against prompting, on this machine and at its price.

Both sides have the same labels, so what labelling costs falls out.
"""

from __future__ import annotations

from collections.abc import Sequence

from bedplate.adaptation.context.outcome import RungResult
from bedplate.economics.costs.decisions.break_even import why_never

Cost = tuple[float, float]
"""USD of making it (training, or the search of a prompt), and of one call."""


def cost_of(results: Sequence[RungResult], usd_per_hour: float) -> Cost:
    """The cost of a rung, averaged over its draws."""
    fixed_costs = [r.train_seconds * usd_per_hour / 3600 + r.usd for r in results]
    calls = [r.price(usd_per_hour, r.latency.mean) for r in results]
    return sum(fixed_costs) / len(fixed_costs), sum(calls) / len(calls)


def pays_from(tuned: str, prompted: str, ours: Cost, theirs: Cost) -> tuple[float | None, str]:
    """Calls from which on `tuned` has cost less in all (0: from the first; None: never), and why."""
    extra, saved = ours[0] - theirs[0], theirs[1] - ours[1]
    if extra <= 0:
        if saved >= 0:
            return 0.0, f"it costs no more to make, and ${saved * 1000:.3g} less per 1,000 calls"
        return None, (
            f"it costs ${-extra:.3g} less to make, but ${-saved * 1000:.3g} more per 1,000 calls, which is more after "
            f"{extra / saved:,.0f} calls"
        )
    if saved <= 0:
        return None, why_never(tuned, prompted, {"computing": -saved})
    return extra / saved, f"it costs ${extra:.3g} more to make, and ${saved * 1000:.3g} less per 1,000 calls"
