"""A module's clock of a test's own. The clock of the process stays: event loops of servers that run beside a test sleep
by it, and one that reads another clock for a moment sleeps on for hours."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest


def set_monotonic(monkeypatch: pytest.MonkeyPatch, module: ModuleType, monotonic: Callable[[], float]) -> None:
    """`time.monotonic` as one module sees it."""
    monkeypatch.setattr(module, "time", SimpleNamespace(**{**vars(time), "monotonic": monotonic}))
