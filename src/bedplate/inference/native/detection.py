"""Detects the levels of the kernel that this processor runs. It is asked at run time (`cpuid`, or the system's
auxiliary vector), so that no instruction is loaded that it lacks."""

from __future__ import annotations

import ctypes
import os
from functools import cache

from bedplate.core.errors import UsageError
from bedplate.inference.native.compiler import opened
from bedplate.inference.native.levels import LEVELS, features_of, machine, runs

OVERRIDE = "BEDPLATE_KERNEL_LEVEL"
"""Environment variable that asks for one level; a lower one than the best is how levels are compared on one machine."""


@cache
def features() -> frozenset[str] | str:
    """What this processor offers of FEATURES, or the reason why it could not be asked."""
    probe = opened(None, lambda built: ctypes.CDLL(str(built.path)).bedplate_features)
    if isinstance(probe, str):
        return probe
    probe.restype = ctypes.c_uint64
    return features_of(probe(), machine())


def supported() -> tuple[str, ...] | str:
    """The levels that this processor runs, best first; or the reason why that is not known."""
    cpu_features = features()
    if isinstance(cpu_features, str):
        return cpu_features
    return runs(cpu_features, machine())


def levels_to_try() -> tuple[str, ...] | str:
    """The levels to try, best first: the one that BEDPLATE_KERNEL_LEVEL names, or all that are chosen unasked. Raises
    UsageError for a level that is not known or that this processor does not run."""
    override, supported_levels = os.environ.get(OVERRIDE, "").strip(), supported()
    if override and override not in LEVELS:
        raise UsageError(f"{OVERRIDE} is {override!r}, which is not a level; use {', '.join(LEVELS)}")
    if isinstance(supported_levels, str):
        return supported_levels
    if not override:
        return tuple(name for name in supported_levels if LEVELS[name].chosen)
    if override not in supported_levels:
        raise UsageError(
            f"{OVERRIDE} is {override!r}, which this processor does not run; it runs {', '.join(supported_levels)}"
        )
    return (override,)
