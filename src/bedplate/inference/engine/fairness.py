"""What each tenant gets of rows and of the queue where all want more than there is.

Max-min fair shares (Bertsekas and Gallager, Data Networks, 6.5.2): nobody gets more than it asks for, and what one
leaves is shared by the others. One tenant alone has everything.
"""

from __future__ import annotations

from collections.abc import Mapping


def fair_shares(total: int, asked: Mapping[str, int]) -> dict[str, int]:
    """How much of `total` each tenant gets of what it asks for, one at least: where there are more tenants than that,
    they take turns. What cannot be divided goes to those that ask most."""
    shares: dict[str, int] = {}
    left = total
    for rank, tenant in enumerate(sorted(asked, key=lambda one: (asked[one], one))):
        shares[tenant] = min(asked[tenant], max(1, left // (len(asked) - rank)))
        left = max(0, left - shares[tenant])
    return shares


def may_queue(most: int, queued: Mapping[str, int], tenant: str, more: int) -> bool:
    """Whether a tenant may queue `more` requests although the queue holds `most`: as long as it has no more than its
    part of it. So the queue grows to `most` times the harmonic number of its tenants at the very most."""
    others = len(queued.keys() - {tenant})
    return others > 0 and queued.get(tenant, 0) + more <= most // (others + 1)
