"""The compiled kernel as Python sees it: its structs, its functions, loaded once per process."""

from __future__ import annotations

import ctypes
import logging
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from bedplate.inference.native.compiler import opened
from bedplate.inference.native.detection import levels_to_try, supported
from bedplate.inference.native.levels import LEVELS, Level

log = logging.getLogger("bedplate.inference")

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
    *("beside_norm", "beside_after_norm", "dense_after_norm", "told_norm", "told_after_norm"),
)
"""The vectors of a block, and of the whole (`Vector` in model.h)."""


class NativeShape(ctypes.Structure):
    """Sizes of a model (mirrors `Shape` in model.h)."""

    _fields_ = [
        ("layers", c_int32),
        ("hidden", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("feedforward", c_int32),
        ("vocabulary", c_int32),
        ("threads", c_int32),
        ("floats", c_int32),
        ("wide", c_int32),
        ("chunk", c_int32),
        ("activation", c_int32),
        ("gated", c_int32),
        ("layer_norm", c_int32),
        ("whole_norm", c_int32),
        ("parallel", c_int32),
        ("post", c_int32),
        ("positions", c_int32),
        ("token_types", c_int32),
        ("experts", c_int32),
        ("per_token", c_int32),
        ("expert_size", c_int32),
        ("scoring", c_int32),
        ("renormalise", c_int32),
        ("groups", c_int32),
        ("groups_chosen", c_int32),
        ("told", c_int32),
        ("eps", c_float),
        ("embedding_scale", c_float),
        ("residual_scale", c_float),
        ("head_scale", c_float),
        ("score_cap", c_float),
        ("logit_cap", c_float),
        ("expert_scale", c_float),
        ("told_scale", c_float),
    ]


class NativeLowRank(ctypes.Structure):
    """One adapter's pair at one linear (mirrors `LowRank` in model.h)."""

    _fields_ = [
        ("a", c_void_p),
        ("b", c_void_p),
        ("rank", c_int32),
        ("scaling", c_float),
        ("scale", c_void_p),
        ("shift", c_void_p),
    ]


class Call(ctypes.Structure):
    """What one forward brings (mirrors `Call` in model.h)."""

    _fields_ = [
        ("tokens_count", c_int32),
        ("wanted_count", c_int32),
        ("depth", c_int32),
        ("padding", c_int32),
        ("tokens", c_void_p),
        ("rows", c_void_p),
        ("positions", c_void_p),
        ("wanted", c_void_p),
        ("lengths", c_void_p),
        ("types", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("places", c_void_p),
        ("adapters", c_void_p),
        ("logits", c_void_p),
        ("best", c_void_p),
        ("top", c_void_p),
        ("logsumexp", c_void_p),
        ("hidden", c_void_p),
    ]


class Library:
    """The functions of one compiled kernel. `level` is what it was compiled for, `digest` what it was built from."""

    def __init__(self, path: Path, digest: str) -> None:
        self.digest = digest
        library = ctypes.CDLL(str(path))  # CDLL, unlike PyDLL, lets other Python threads run during a call
        level = library.bedplate_level
        level.restype = c_char_p
        self.level: str = level().decode()
        self.new = library.bedplate_new
        self.new.argtypes, self.new.restype = (POINTER(NativeShape), *([c_void_p] * 4)), c_void_p
        self.turning = library.bedplate_turning
        self.turning.argtypes, self.turning.restype = (c_void_p, c_int, c_int, c_float, c_void_p), c_int
        self.layer = library.bedplate_layer
        self.layer.argtypes, self.layer.restype = (c_void_p, *([c_int] * 6), c_float, c_float), c_int
        self.vector = library.bedplate_vector
        self.vector.argtypes, self.vector.restype = (c_void_p, c_int, c_int, c_int, c_void_p, c_void_p), c_int
        self.linear = library.bedplate_linear
        self.linear.argtypes = (c_void_p, *([c_int] * 5), c_void_p, c_void_p)
        self.linear.restype = c_int
        self.experts = library.bedplate_experts
        self.experts.argtypes = (c_void_p, *([c_int] * 5), c_void_p, c_void_p)
        self.experts.restype = c_int
        self.bytes = library.bedplate_bytes
        self.bytes.argtypes, self.bytes.restype = (c_void_p,), c_int64
        self.free = library.bedplate_free
        self.free.argtypes, self.free.restype = (c_void_p,), None
        self.forward = library.bedplate_forward
        self.forward.argtypes, self.forward.restype = (c_void_p, POINTER(Call)), c_int


def load(level: str | None = None) -> Library | str:
    """The kernel of a level, built if need be, or the reason why there is none.

    level: default the best that this processor runs and that can be had. One that it does not run is refused: nothing
    is loaded that could hold an instruction it lacks. Raises UsageError for a bad BEDPLATE_KERNEL_LEVEL.
    """
    if level is not None:
        supported_levels = supported()
        if isinstance(supported_levels, str) or level not in supported_levels:
            return (
                supported_levels
                if isinstance(supported_levels, str)
                else f"this processor does not run the level {level}"
            )
        return _open(LEVELS[level])
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
    """One line that says that there is no native kernel here, why, and what is lost; None where there is one.

    Raises UsageError for a bad BEDPLATE_KERNEL_LEVEL.
    """
    library = load()
    if isinstance(library, Library):
        return None
    return f"no native kernel: {library}. Bases run on torch, which is slower, and in int8 or int4 only if asked for"


@cache
def _open(level: Level) -> Library | str:
    return opened(level, lambda built: Library(built.path, built.digest))
