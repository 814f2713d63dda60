"""Training on several processes with torch.distributed: which ranks do what, and how models are given out to them.

Each name is imported when it is first used: torch's parts for several processes take a while to load, and a single one
needs none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bedplate.training.parallel.apply import parallelised, whole_state
    from bedplate.training.parallel.launch import launched
    from bedplate.training.parallel.layout import ParallelConfig

__all__ = ["ParallelConfig", "launched", "parallelised", "whole_state"]

_MODULES = {"ParallelConfig": "layout", "launched": "launch", "parallelised": "apply", "whole_state": "apply"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its names are {', '.join(__all__)}")
    return getattr(__import__(f"{__name__}.{_MODULES[name]}", fromlist=(name,)), name)
