"""Opens the engines of a server: for each base one for each dtype, weight format and kernel its skins were judged with.

Engines of one base share its module; each has the weights in its own format beside it, and a cache of its own. Where
the server's file says how a base is to be held, it is held in that way alone.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

from bedplate.core.errors import UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.execution.choice import left_in_file
from bedplate.inference.execution.plan import QUANTISED, ExecutionPlan, Kernel, Weights
from bedplate.inference.forward.compute_lock import ComputeLock
from bedplate.inference.predict.opening import KERNELS, OpenOptions, chosen, dtype_of, execution_of
from bedplate.models.checkpoints.base import Base, Leave, load_base
from bedplate.models.precision import dtype_name
from bedplate.serving.models.residency import apart_now
from bedplate.serving.settings.server_config import BaseConfig, ServerConfig
from bedplate.skins.files import Card
from bedplate.skins.skin import EvaluatedWith

log = logging.getLogger("bedplate.serving")


@dataclass(frozen=True)
class Holding:
    """One way to hold a base. dtype: as its module is loaded; weights, kernel: as its engine is opened. needed: skins
    that were given by hand wait for it."""

    dtype: str
    weights: Weights
    kernel: Kernel
    needed: bool = True


_OPEN = Holding("auto", "auto", "auto")
"""As a base is held where nobody says how."""


@dataclass(frozen=True, eq=False)
class ResidentBase:
    """A base in memory, with the ways in which it is to be held, the first being its own name's."""

    config: BaseConfig
    base: Base
    holdings: tuple[Holding, ...]


def resident(
    config: BaseConfig, bases: int, named_cards: Sequence[Card], lying: Sequence[Card], awaits: bool = False
) -> ResidentBase:
    """Loads a base, and finds how it is to be held. named_cards: the skins that were named; lying: those of the skins
    directory. awaits: skins may come later, so that without any it is held as the ladder holds it, in floats.
    UsageError for one without a tokenizer."""
    open_weights = config.weights in ("auto", "fastest")
    requested_dtype = config.dtype or (None if open_weights else dtype_of(config.weights))
    # The only base must be that of all skins; which of several it is, its weights tell.
    hint = [card.evaluated_with for card in named_cards if card.evaluated_with] if bases == 1 else []
    fastest: ExecutionPlan | None = None
    if requested_dtype is None and hint:
        first = _dtype(_ordered(hint)[0])
    elif requested_dtype is None:
        fastest = chosen(config.source, _requirements(config, floats=awaits), config.device).plan
        first = fastest.dtype
    else:
        first = requested_dtype
    base = _load(config, first, None if fastest is None else left_in_file(fastest))
    if requested_dtype is not None or config.weights == "fastest":
        return ResidentBase(config, base, (_as_asked(config, base, named_cards, lying),))
    named, by_form = _of(base, named_cards), dict[tuple[str, str, str], Holding]()
    for judged in _ordered([*named, *_of(base, lying)]):
        kernel = KERNELS.get(judged.kernel, config.kernel) if config.kernel == "auto" else config.kernel
        dtype = _dtype(judged)
        weights: Weights = QUANTISED.get(judged.weights, "auto")
        by_form.setdefault((dtype, weights, kernel), Holding(dtype, weights, kernel, judged in named))
    if not by_form and fastest is not None and _is_of(base, fastest.dtype):
        execution = execution_of(fastest)
        return ResidentBase(config, base, (Holding(execution.dtype, execution.weights, execution.kernel),))
    holdings = tuple(by_form.values()) or (_fastest(config, base),)
    if not _is_of(base, holdings[0].dtype):
        base = _load(config, holdings[0].dtype)
    return ResidentBase(config, base, holdings)


def _dtype(judged: EvaluatedWith) -> str:
    return dtype_of(judged.weights, judged.dtype)


def _as_asked(config: BaseConfig, base: Base, named_cards: Sequence[Card], lying: Sequence[Card]) -> Holding:
    """The one way that the file asks for. Its kernel, where that is open, is the skins', if they agree."""
    kernels = {judged.kernel for judged in _of(base, [*named_cards, *lying])}
    if config.weights == "fastest" or not kernels:
        return _fastest(config, base)
    # Quantised weights run on one kernel only, which the engine finds.
    follows = config.kernel == "auto" and config.weights not in QUANTISED and len(kernels) == 1
    kernel = KERNELS.get(kernels.pop(), config.kernel) if follows else config.kernel
    return Holding(dtype_name(base.dtype), config.weights, kernel)


def _fastest(config: BaseConfig, base: Base) -> Holding:
    """As asked; where that leaves a choice, the measured fastest way of those that the loaded dtype leaves."""
    dtype = dtype_name(base.dtype)
    fastest = execution_of(apart_now(lambda: chosen(config.source, _requirements(config, dtype), config.device).plan))
    return Holding(dtype, fastest.weights, fastest.kernel)


def _requirements(config: BaseConfig, loaded: str | None = None, floats: bool = False) -> OpenOptions:
    weights = None if config.weights in ("auto", "fastest") else config.weights
    loaded, floats = loaded if config.dtype is None else None, floats and config.weights == "auto"
    return OpenOptions(config.dtype, weights, config.kernel, quantised=not floats, loaded=loaded)


def _ordered(judged: Sequence[EvaluatedWith]) -> list[EvaluatedWith]:
    """Each once; those in a base's own dtype first: the base's name stands for these."""
    return sorted(dict.fromkeys(judged), key=lambda evaluation: evaluation.weights in QUANTISED)


def opened(
    config: ServerConfig, loaded: Sequence[ResidentBase], compute: ComputeLock
) -> Generator[tuple[ResidentBase, Engine]]:
    """An engine for every way of every base, its name's first; they compute in turns. UsageError where this machine
    cannot hold a base as it must be; what only the skins directory asks for is then left out, and said."""
    # The registry keeps at most `adapters` skins with weights in memory for each engine; a cascade among them has two
    # sets of weights, here or on another engine.
    slots = config.limits.adapters * (sum(len(resident_base.holdings) for resident_base in loaded) + 1)
    for resident_base in loaded:
        base, engine = resident_base.base, None
        modules = {dtype_name(base.dtype): base}
        for holding in (*resident_base.holdings, _OPEN):
            if holding is _OPEN and engine is not None:
                break
            try:
                engine = apart_now(partial(_engine, config, resident_base, holding, modules, compute, slots))
            except UsageError as error:
                if holding is _OPEN or (holding.needed and not config.allow_other_weights):
                    raise
                log.warning("%s is not held with %s weights: %s", base.name, holding.weights, error.message)
                continue
            log.info("%s: %s weights, %s kernel", base.name, engine.weights, engine.kernel)
            yield resident_base, engine


def _engine(
    config: ServerConfig,
    resident_base: ResidentBase,
    holding: Holding,
    modules: dict[str, Base],
    compute: ComputeLock,
    slots: int,
) -> Engine:
    base = resident_base.base if _is_of(resident_base.base, holding.dtype) else modules.get(holding.dtype)
    if base is None:
        base = modules[holding.dtype] = _load(resident_base.config, holding.dtype)
    return Engine(
        base,
        weights=holding.weights,
        kernel=holding.kernel,
        max_rows=config.limits.max_rows,
        max_waiting=config.limits.max_waiting,
        adapters=slots,
        cache_bytes=config.limits.cache_bytes,
        slot_bytes=config.limits.slot_bytes,
        speculate=resident_base.config.speculate,
        compute=compute,
    )


def _load(config: BaseConfig, dtype: str, leave: Leave | None = None) -> Base:
    base = load_base(config.source, dtype=dtype, device=config.device, leave=leave)
    if base.tokenizer is None:
        raise UsageError(f"{config.source} has no tokenizer, and a server needs one; add its tokenizer.json")
    return base


def _is_of(base: Base, dtype: str) -> bool:
    return dtype in ("auto", dtype_name(base.dtype))


def _of(base: Base, cards: Sequence[Card]) -> list[EvaluatedWith]:
    """How the skins on this base were judged, and how it was held where it embeds for skins on others."""
    on_it = [card.evaluated_with for card in cards if card.base and card.base.has_weights_of(base.identity)]
    for_others = [card.embedded_with for card in cards if card.embedder and card.embedder.has_weights_of(base.identity)]
    return [evaluation for evaluation in (*on_it, *for_others) if evaluation is not None]
