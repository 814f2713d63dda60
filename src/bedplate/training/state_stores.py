"""Where a run's states are kept: in one file by one process, in parts by several."""

from __future__ import annotations

from pathlib import Path

from bedplate.training.ranks import Ranks
from bedplate.training.state import SHARDS, StateFile, StateStore


def store_of(out: Path, ranks: Ranks) -> StateStore:
    """Of the run in this directory, which other processes than these may have begun."""
    if ranks.world > 1 or (out / SHARDS).exists():
        # torch's parts for several processes take a second to import.
        from bedplate.training.parallel.states import DistributedStates

        return DistributedStates(out, ranks)
    return StateFile(out)
