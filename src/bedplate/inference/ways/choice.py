"""Which way a base is run: what was asked for, and where that leaves a choice, what this machine measured fastest.

One way for all passes of an engine, never one for some and another for the rest: a row's result would depend on its
company.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import cast

import torch

from bedplate.adapters.bank import Bank
from bedplate.core.errors import UsageError
from bedplate.core.memory import free_bytes
from bedplate.inference.forward.kv_cache import KVCache, SlotCache
from bedplate.inference.forward.native import native_forward
from bedplate.inference.forward.quantised import quantised
from bedplate.inference.forward.torch import Forward, TorchForward
from bedplate.inference.native.description import Stack, matrices
from bedplate.inference.native.library import load, native_absent
from bedplate.inference.native.packed import WeightFormat, unsupported
from bedplate.inference.native.sources import takes
from bedplate.inference.ways.calibrate import Measured, Use, measured
from bedplate.inference.ways.threads import engine_threads
from bedplate.inference.ways.trial import read_bytes
from bedplate.inference.ways.way import QUANTISED, Kernel, Way, Weights, asked_ways
from bedplate.models.build import build
from bedplate.models.checkpoints.base import Base, Leave
from bedplate.models.checkpoints.gguf import StoredBlocks
from bedplate.models.checkpoints.gguf_blocks import RawBlocks
from bedplate.models.model import Model
from bedplate.models.precision import DTYPES, dtype_name
from bedplate.models.specs import TextSpec

log = logging.getLogger("bedplate.inference")

TELLS = 1.03
"""Times as long; ways that differ by less are not told apart."""


@dataclass(frozen=True)
class Choice:
    """A way, why it is this one, and what was measured for it (None: there was no choice)."""

    way: Way
    why: str
    measured: Measured | None = None


def choose(
    spec: TextSpec, ways: Sequence[Way], device: torch.device, use: Use = "generate", *, loaded: bool = False
) -> Choice:
    """The fastest of these ways on this machine. loaded: the module is in memory already, so that only what lies beside
    it needs room. UsageError where none can be had, with the reason."""
    reasons = {way: impossible(spec, way, device) for way in ways}
    possible = [way for way in ways if reasons[way] is None]
    if not possible:
        raise UsageError(f"{ways[0]} cannot run here: {reasons[ways[0]]}")
    library = load() if len(possible) < len(ways) and device.type == "cpu" else None
    if isinstance(library, str) and library in reasons.values():
        _warn()
    # On torch they are for where the native kernel cannot be had: what needs no measurement is not measured.
    native = {way.weights for way in possible if way.kernel == "native"}
    possible = [way for way in possible if way.kernel == "native" or way.weights not in native & QUANTISED.keys()]
    if device.type != "cpu":
        return Choice(possible[0], f"the first that keeps what is stored; on {device.type} ways are not measured")
    if len(possible) == 1:
        return Choice(possible[0], "the only way here, or as asked")
    possible, left_out = fitting(spec, possible, loaded=loaded)
    if len(possible) == 1:
        return Choice(possible[0], f"the only way that memory has room for; {left_out}")
    found = measured(spec, possible, brief=use)
    best = pick(spec, found, possible, use)
    said = why(found, best, possible, use)
    return Choice(best, f"{said}; {left_out}" if left_out else said, found)


def needs(spec: TextSpec, way: Way, *, loaded: bool = False) -> int:
    """Bytes of a base's weights in this way: the module's (unless it is loaded), and beside them what was packed."""
    packed = read_bytes(spec.main, way) if way.kernel == "native" or way.weights in QUANTISED else 0
    if loaded:
        return packed
    return _parameters(spec) * DTYPES[way.dtype].itemsize + packed


@lru_cache(maxsize=8)
def _parameters(spec: TextSpec) -> int:
    return sum(p.numel() for p in build(spec, device="meta").parameters())


def fitting(spec: TextSpec, ways: Sequence[Way], *, loaded: bool = False) -> tuple[list[Way], str]:
    """The ways that this machine's free memory has room for, the smallest where none fits, and what was left out."""
    free = free_bytes()
    sizes = {way: needs(spec, way, loaded=loaded) for way in ways}
    fit = [way for way in ways if free is None or sizes[way] <= free] or [min(ways, key=lambda way: sizes[way])]
    out = [f"{way} would take {sizes[way] / 1e9:.1f} GB" for way in ways if way not in fit]
    return fit, "" if not out or free is None else f"{', '.join(out)}, and {free / 1e9:.1f} GB are free"


def pick(spec: TextSpec, found: Measured, ways: Sequence[Way], use: Use = "generate") -> Way:
    """The fastest way; of those that are as fast, as far as a short measurement can tell, the one that takes least
    memory."""
    best = found.cost(found.fastest(ways, use), use)
    level = [way for way in ways if way in found.seconds and found.cost(way, use) <= TELLS * best]
    return min(level, key=lambda way: (needs(spec, way), found.cost(way, use)))


def why(found: Measured, best: Way, ways: Sequence[Way], use: Use) -> str:
    """The chosen way against the next one and against torch's best, in words."""
    reads = use == "score" or "decode_1" not in found.seconds[best]
    mix = "prompts" if reads else "a prompt and an answer"
    said = [f"measured fastest for {mix}"]
    others = sorted((way for way in ways if way != best and way in found.seconds), key=lambda one: found.cost(one, use))
    torch_best = next((way for way in others if way.kernel == "torch"), None)
    shown = others[:1] if torch_best in (None, *others[:1]) else [others[0], torch_best]
    if len(found.seconds) < len(ways):
        slower = [str(way) for way in ways if way not in found.seconds]
        said.append(f"ruled out as slower before every pass was timed: {', '.join(slower)}")
    said += [f"{way} takes {found.cost(way, use) / found.cost(best, use):.2f} times as long" for way in shown]
    return "; ".join(said)


def impossible(spec: TextSpec, way: Way, device: torch.device) -> str | None:
    """Why a base of this architecture cannot be run in this way here, or None if it can."""
    if way.kernel == "torch":
        return None
    return unsupported(spec, DTYPES[way.dtype], device)


@cache
def _warn() -> None:
    """Once in a process: what is lost where the kernel itself cannot be had."""
    log.warning("%s", native_absent())


def held_for(base: Base, weights: Weights, kernel: Kernel) -> Base:
    """The base as torch runs it: with quantised linears where those are asked for and the native kernel is not to, or
    cannot, run them. The base itself stays what it is."""
    if weights not in QUANTISED or kernel == "native":
        return base
    native = Way(dtype_name(base.dtype), "native", weights)
    if kernel == "auto" and impossible(base.spec, native, base.device) is None:
        return base
    return replace(base, held=quantised(base.model, QUANTISED[weights]))


def choose_forward(
    base: Base,
    bank: Bank | None,
    cache: KVCache | None,
    torch_forward: TorchForward,
    weights: Weights,
    kernel: Kernel,
) -> Forward:
    """How a loaded base's passes are run: on its own weights where nothing else is asked for, natively where that
    measured faster.

    Raises UsageError where `weights` or `kernel` ask for what this base or machine cannot give.
    """
    own = dtype_name(base.dtype)
    if torch_forward.weights in QUANTISED and torch_forward.weights == weights and kernel != "native":
        return torch_forward
    asked_quantised = weights in QUANTISED
    if weights != "auto" and not asked_quantised and weights != own:
        raise UsageError(f"{base.name} was loaded as {own}; load it as {weights} to run with {weights} weights")
    if kernel != "torch" and cache is not None and not isinstance(cache, SlotCache):
        if kernel == "native" or asked_quantised:
            raise UsageError(
                f"{base.name} cannot run with kernel {kernel!r} and weights {weights!r}: the native path keeps keys "
                "and values in slots, and this engine in blocks"
            )
        return torch_forward
    try:
        ways = asked_ways((own,), dtype=own, weights=weights, kernel=kernel)
        way = choose(base.spec, ways, base.device, loaded=True).way
    except UsageError as error:
        raise UsageError(f"{base.name} cannot run with kernel {kernel!r} and weights {weights!r}: {error}") from error
    if way.kernel == "torch":
        return torch_forward
    assert cache is None or isinstance(cache, SlotCache)
    blocks = stored_blocks(base) if asked_quantised else {}
    model, weights_as = base.outline if asked_quantised else base.model, cast("WeightFormat", way.weights)
    return native_forward(model, weights_as, blocks, bank, cache, threads=engine_threads())


def left_in_file(way: Way) -> Leave | None:
    """What need not be read for a base that is run in this way: the matrices that the kernel takes in their own blocks.
    (Of the token table it reads rows.)"""
    if way.kernel != "native" or way.weights not in QUANTISED:
        return None

    def leave(model: Model, kinds: Mapping[str, str]) -> Collection[str]:
        names = {matrix.name for matrix in matrices(cast("Stack", model))} - {"embedding.weight"}
        return {name for name in names & kinds.keys() if takes(kinds[name], way.weights)}

    return leave


def stored_blocks(base: Base) -> Mapping[str, RawBlocks]:
    """What the checkpoint itself holds in blocks: taken as it is, not quantised a second time."""
    if base.family.key[0] != "gguf":
        return {}
    return StoredBlocks(base.path, base.family.weights, base.spec.main)
