"""The compiled kernel as Python sees it: its structs and functions, and the level that is loaded, once per process.

The processor is asked at run time (`cpuid`, or the system's auxiliary vector), so that no instruction is loaded that it
lacks.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from bedplate.core.errors import UsageError
from bedplate.inference.native.compiler import opened
from bedplate.inference.native.levels import LEVELS, TILES, Level, features_of, machine, runs

log = logging.getLogger("bedplate.inference")

OVERRIDE = "BEDPLATE_KERNEL_LEVEL"
"""Environment variable that asks for one level; a lower one than the best is how levels are compared on one machine."""
PLACES = (
    *(f"attention.{name}" for name in ("q", "k", "v", "o")),
    *(f"feedforward.{name}" for name in ("gate", "up", "down")),
    *(f"layer_input.{name}" for name in ("gate", "down")),
)
"""The linears of one block, in the kernel's order."""
VECTORS = (
    *("attention_norm", "attention_after_norm", "feedforward_norm", "feedforward_after_norm"),
    *("query_norm", "key_norm", "sinks", "embedding_norm", "final_norm"),
    *("router", "router_bias", "selection_bias", "shared_gate", "value_norm", "router_scale", "expert_scale"),
    *("beside_norm", "beside_after_norm", "dense_after_norm", "layer_input_norm", "layer_input_after_norm"),
)
"""The vectors of a block, and of the whole (`Vector` in model.h)."""


def _fields(ctype: Any, names: str) -> list[tuple[str, Any]]:
    """Fields of one C type, as a struct lists them."""
    return [(name, ctype) for name in names.split()]


class NativeShape(ctypes.Structure):
    """Sizes of a model (mirrors `Shape` in model.h)."""

    _fields_ = [
        *_fields(c_int32, "layers hidden heads kv_heads head_dim feedforward vocabulary threads floats wide chunk"),
        *_fields(c_int32, "activation gated layer_norm whole_norm parallel post positions token_types"),
        *_fields(c_int32, "experts per_token expert_size scoring renormalise groups groups_chosen layer_input"),
        *_fields(c_float, "eps embedding_scale residual_scale head_scale score_cap logit_cap"),
        *_fields(c_float, "expert_scale layer_input_scale"),
    ]


class NativeLowRank(ctypes.Structure):
    """The low-rank pair of an adapter at one linear (mirrors `LowRank` in model.h)."""

    _fields_ = [*_fields(c_void_p, "a b"), ("rank", c_int32), ("scaling", c_float), *_fields(c_void_p, "scale shift")]


class Call(ctypes.Structure):
    """The arguments of one forward pass (mirrors `Call` in model.h)."""

    _fields_ = [
        *_fields(c_int32, "tokens_count scored_count depth padding"),
        *_fields(c_void_p, "tokens rows positions scored lengths types keys values places adapters"),
        *_fields(c_void_p, "logits best top logsumexp hidden"),
    ]


class Library:
    """The functions of one compiled kernel. `level` is what it was compiled for, `digest` what it was built from."""

    def __init__(self, path: Path, digest: str) -> None:
        self.digest = digest
        library = ctypes.CDLL(str(path))  # CDLL, unlike PyDLL, lets other Python threads run during a call
        level = library.bedplate_level
        level.restype = c_char_p
        self.level: str = level().decode()

        def function(name: str, result: Any, *arguments: Any) -> Any:
            symbol = getattr(library, f"bedplate_{name}")
            symbol.argtypes, symbol.restype = arguments, result
            return symbol

        self.new = function("new", c_void_p, POINTER(NativeShape), *([c_void_p] * 4))
        self.turning = function("turning", c_int, c_void_p, c_int, c_int, c_float, c_void_p)
        self.layer = function("layer", c_int, c_void_p, *([c_int] * 6), c_float, c_float)
        self.vector = function("vector", c_int, c_void_p, c_int, c_int, c_int, c_void_p, c_void_p)
        self.linear = function("linear", c_int, c_void_p, *([c_int] * 5), c_void_p, c_void_p)
        self.experts = function("experts", c_int, c_void_p, *([c_int] * 5), c_void_p, c_void_p)
        self.bytes = function("bytes", c_int64, c_void_p)
        self.free = function("free", None, c_void_p)
        self.forward = function("forward", c_int, c_void_p, POINTER(Call))


@cache
def features() -> frozenset[str] | str:
    """What this processor offers of FEATURES, or the reason why it could not be asked."""
    detector = _detector()
    if isinstance(detector, str):
        return detector
    detector.bedplate_features.restype = ctypes.c_uint64
    return features_of(detector.bedplate_features(), machine())


@cache
def _detector() -> ctypes.CDLL | str:
    return opened(None, lambda built: ctypes.CDLL(str(built.path)))


_REFUSALS = {
    errno.ENOSPC: "a thread's signal stack is too small for them (sigaltstack; old versions of faulthandler make one)",
    errno.EPERM: "a filter of system calls, such as a container's, refuses arch_prctl",
    errno.ENOSYS: "a filter of system calls, such as a container's, refuses arch_prctl",
    -1: "the processor reports them and does not execute them",
    -2: "the processor computes a wrong product with them",
}


def tiles_refused() -> str | None:
    """Why this process may not use the tiles (AMX) that the processor reports; None where it may, or where there are
    none. Asks the system for its permission, which lasts as long as the process, and multiplies two tiles; each
    time, for a process may be moved to another machine."""
    cpu_features, detector = features(), _detector()
    if isinstance(cpu_features, str) or isinstance(detector, str) or not cpu_features.issuperset(TILES):
        return None
    code = int(detector.bedplate_tiles())
    return _REFUSALS.get(code, f"the system does not permit them ({os.strerror(code)})") if code else None


def supported(considered: Callable[[Level], bool] = lambda _: True) -> tuple[str, ...] | str:
    """The levels that this process can run here of those considered, best first; or the reason why that is not known.
    The system is asked for its permission only where one of them takes it."""
    cpu_features = features()
    if isinstance(cpu_features, str):
        return cpu_features
    names = [name for name in runs(cpu_features, machine()) if considered(LEVELS[name])]
    return tuple(name for name in names if not _takes_tiles(name) or tiles_refused() is None)


def _takes_tiles(name: str) -> bool:
    return not set(TILES).isdisjoint(LEVELS[name].needs)


def levels_to_try() -> tuple[str, ...] | str:
    """The levels to try, best first: the one that BEDPLATE_KERNEL_LEVEL names, or all that are chosen unasked. Raises
    UsageError for a level that is not known or that this processor does not run."""
    override = os.environ.get(OVERRIDE, "").strip()
    if override and override not in LEVELS:
        raise UsageError(f"{OVERRIDE} is {override!r}, which is not a level; use {', '.join(LEVELS)}")
    names = supported(lambda level: level.name == override if override else level.chosen)
    if names:
        return names
    refusal = tiles_refused() if _takes_tiles(override) else None
    reason = f" ({refusal})" if refusal else ""
    raise UsageError(f"this processor does not run {OVERRIDE} {override!r}{reason}; it runs {', '.join(supported())}")


def load(level: str | None = None) -> Library | str:
    """The kernel of a level, built if need be, or the reason why there is none. level: default the best that this
    processor runs and that can be had. One that it does not run is refused: nothing is loaded that could hold an
    instruction it lacks. Raises UsageError for a bad BEDPLATE_KERNEL_LEVEL."""
    if level is not None:
        names = supported(lambda candidate: candidate.name == level)
        if isinstance(names, str):
            return names
        return _open(LEVELS[level]) if level in names else f"this processor does not run the level {level}"
    names, reasons = levels_to_try(), list[str]()
    if isinstance(names, str):
        return names
    for name in names:
        library = _open(LEVELS[name])
        if isinstance(library, Library):
            if reasons:
                _warn(names[0], reasons[0], name)
            return library
        reasons.append(library)
    return reasons[0]  # the best level's: the others fail for the same reason, or for a lesser one


@cache
def _warn(better: str, reason: str, level: str) -> None:
    """Once in a process: what is lost where a better level cannot be had."""
    log.warning("the native kernel runs at the level %s, not %s, which would be faster: %s", level, better, reason)


def native_absent() -> str | None:
    """One line that says that there is no native kernel here, why, and what is lost; None where there is one. Raises
    UsageError for a bad BEDPLATE_KERNEL_LEVEL."""
    library = load()
    if isinstance(library, Library):
        return None
    return f"no native kernel: {library}. Bases run on torch, which is slower, and in int8 or int4 only if asked for"


@cache
def _open(level: Level) -> Library | str:
    return opened(level, lambda built: Library(built.path, built.digest))
