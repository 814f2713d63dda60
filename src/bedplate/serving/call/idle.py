"""How busy the engines are: what batches and shadow calls look at before they ask for anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bedplate.serving.call.state import House


def idle_capacity(house: House, free_rows: int = 1) -> bool:
    """Whether nobody waits on any engine and each has rows free for `free_rows` more generations."""
    most = house.config.limits.max_rows
    return all(engine.waiting == 0 and engine.running + free_rows <= most for engine in house.registry.engines)
