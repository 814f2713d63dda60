"""What each tenant gets of rows and of the queue where all want more than there is.

Max-min fair shares (Bertsekas and Gallager, Data Networks, 6.5.2): nobody gets more than it asks for, and what one
leaves is shared by the others. One tenant alone has everything.
"""

from __future__ import annotations

from collections.abc import Mapping


def fair_shares(total: int, demands: Mapping[str, int]) -> dict[str, int]:
    """How much of `total` each tenant gets of what it asks for, one at least: where there are more tenants than that,
    they take turns. What cannot be divided goes to those that ask most."""
    shares: dict[str, int] = {}
    remaining = total
    for rank, tenant in enumerate(sorted(demands, key=lambda name: (demands[name], name))):
        shares[tenant] = min(demands[tenant], max(1, remaining // (len(demands) - rank)))
        remaining = max(0, remaining - shares[tenant])
    return shares


def may_queue(max_waiting: int, queued: Mapping[str, int], tenant: str, new_requests: int) -> bool:
    """Whether a tenant may queue `new_requests` requests although the queue holds `max_waiting`: as long as it has no more than its
    part of it. So the queue grows to `max_waiting` times the harmonic number of its tenants at the very most."""
    other_tenants = len(queued.keys() - {tenant})
    return other_tenants > 0 and queued.get(tenant, 0) + new_requests <= max_waiting // (other_tenants + 1)
