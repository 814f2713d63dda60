"""Bases and skins loaded as a server's file says, and closed at the end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from bedplate.core.errors import UsageError
from bedplate.inference.compute import ComputeLock
from bedplate.inference.engine import Engine
from bedplate.inference.judged import KERNELS, dtype_of
from bedplate.inference.opening import Asked, chosen, held_in
from bedplate.inference.ways import QUANTISED, Kernel, Weights
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.decoder import Decoder
from bedplate.models.precision import dtype_name
from bedplate.serving.config import BaseConfig, LimitsConfig, ServerConfig
from bedplate.serving.guard import guard_for
from bedplate.serving.house import House
from bedplate.serving.models import Served, ServedBase, ServedEmbedder
from bedplate.serving.registry import Registry
from bedplate.serving.residency import apart_now
from bedplate.serving.shelf import Found, Shelf
from bedplate.skins.card import Card, card_of, parts_of, read_card
from bedplate.skins.skin import EvaluatedWith, Skin

log = logging.getLogger("bedplate.serving")


def server_config(
    base: str | Path,
    *more: str | Path,
    name: str | None = None,
    dtype: str | None = None,
    device: str = "auto",
    weights: str = "auto",
    kernel: str = "auto",
    max_rows: int | None = None,
    max_waiting: int | None = None,
    body_limit: int | None = None,
    adapters: int | None = None,
    **settings: Any,
) -> ServerConfig:
    """The configuration of one base (and `more`) with a few settings; `settings` are other fields of ServerConfig.

    UsageError for a value that cannot be.
    """
    limits = {"max_rows": max_rows, "max_waiting": max_waiting, "body_bytes": body_limit, "adapters": adapters}
    given = {field: value for field, value in limits.items() if value is not None}
    held = {"dtype": dtype, "device": device, "weights": weights, "kernel": kernel}
    try:
        main = BaseConfig.model_validate({"source": str(base), "name": name, **held})
        others = tuple(BaseConfig.model_validate({"source": str(one), "device": device}) for one in more)
        return ServerConfig(bases=(main, *others), limits=LimitsConfig(**given), **settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{where}: {first['msg']}".removeprefix(": ").replace("Value error, ", "")) from error


@contextlib.contextmanager
def loaded_house(
    base: str | Path | ServerConfig, skins: Sequence[str | Path | Skin] = (), **settings: Any
) -> Generator[House]:
    """Bases and skins, loaded; the engines are closed at the end.

    base: one base with the settings of `server_config`, or a whole configuration. `skins` come on top of those of the
    configuration, and are verified whole; those of the skins directory when they are first asked for. Raises SkinError
    for a skin of no base here, UsageError for names that collide.
    """
    config = base if isinstance(base, ServerConfig) else server_config(base, **settings)
    given: list[tuple[str | Path | Skin, str | None]] = [(skin.source, skin.name) for skin in config.skins]
    given += [(skin, None) for skin in skins]
    sources = [(skin if isinstance(skin, Skin) else read_card(skin), name) for skin, name in given]
    found = Found((), ()) if config.skins_directory is None else Shelf(config.skins_directory).scan()
    cards = _whole([card_of(source) if isinstance(source, Skin) else source for source, _ in sources])
    lying = _whole(found.cards)
    loaded = [apart_now(lambda one=one: _load(one, len(config.bases), cards, lying)) for one in config.bases]
    with contextlib.ExitStack() as stack:
        guard = guard_for(config)
        stack.callback(guard.close)
        engines = [stack.enter_context(engine) for engine in _engines(config, loaded, [*cards, *lying])]
        limits = config.limits
        registry = Registry(
            engines,
            adapters=limits.adapters,
            prompt_skins=limits.prompt_skins,
            prefix_bytes=limits.prefix_bytes,
            allow_other_weights=config.allow_other_weights,
        )
        for engine, one in zip(engines, config.bases, strict=True):
            registry.add(_served(engine, one.name or engine.base.name))
        for source, name in sources:
            served = registry.skin(source, name)
            apart_now(served.check)
            for warning in served.warnings:
                log.warning("%s", warning)
            registry.add(served)
        for problem in registry.take(found)["problems"]:
            log.warning("not registered: %s", problem)
        yield House(config, registry, guard)


def _whole(cards: Sequence[Card]) -> list[Card]:
    """The cards, in a cascade's place those of its two skins, which say how their bases are to be held."""
    return [one for card in cards for one in (parts_of(card) or [card])]


def _engines(config: ServerConfig, loaded: Sequence[Base], cards: Sequence[Card]) -> Generator[Engine]:
    """One for each base; they compute in turns. Where the file leaves weights or kernel open, they are what the base's
    skins were judged with, if they agree: others are never chosen behind their back."""
    compute, limits = ComputeLock(), config.limits
    # The registry keeps at most `adapters` skins with weights in memory for each engine; a cascade among them has two
    # sets of weights, here or on another engine.
    slots = limits.adapters * (len(config.bases) + 1)
    for base, one in zip(loaded, config.bases, strict=True):
        judged = _of(base, cards)
        weights, kernels = {it.weights for it in judged}, {it.kernel for it in judged}
        agreed = weights.pop() if len(weights) == 1 and one.weights == "auto" and one.dtype is None else ""
        # Quantised weights run on one kernel only, which the engine finds.
        follows = one.kernel == "auto" and one.weights not in (*QUANTISED, "fastest")
        kernel = kernels.pop() if len(kernels) == 1 and follows else ""
        if one.weights == "fastest" or not judged:
            open_ = apart_now(lambda base=base, one=one: _fastest(base, one))
        else:
            open_ = Opened(QUANTISED.get(agreed) or one.weights, KERNELS.get(kernel, one.kernel))
        engine = apart_now(
            lambda base=base, open_=open_, speculate=one.speculate: Engine(
                base,
                weights=open_.weights,
                kernel=open_.kernel,
                max_rows=limits.max_rows,
                max_waiting=limits.max_waiting,
                adapters=slots,
                speculate=speculate,
                compute=compute,
            )
        )
        log.info("%s: %s weights, %s kernel", base.name, engine.weights, engine.kernel)
        yield engine


class Opened(NamedTuple):
    """How an engine is opened."""

    weights: Weights
    kernel: Kernel


def _fastest(base: Base, one: BaseConfig) -> Opened:
    """As asked; where that leaves a choice, in the measured fastest way of those that the loaded dtype leaves."""
    held = held_in(chosen(one.source, _asked(one, dtype_name(base.dtype)), one.device).way)
    return Opened(held.weights, held.kernel)


def _asked(one: BaseConfig, loaded: str | None = None) -> Asked:
    weights = None if one.weights in ("auto", "fastest") else one.weights
    return Asked(one.dtype, weights, one.kernel, loaded=None if one.dtype is not None else loaded)


def _served(engine: Engine, name: str) -> Served:
    return ServedBase(engine, name) if isinstance(engine.base.model, Decoder) else ServedEmbedder(engine, name)


def _load(config: BaseConfig, bases: int, given: Sequence[Card], scanned: Sequence[Card]) -> Base:
    """A base, its weights held as its skins were judged where the file does not say how.

    The skins that were given decide; where there are none, those of the skins directory, if they agree.
    """
    # The only base must be that of all skins; which of several it is, its weights tell.
    asked = config.dtype or (None if config.weights == "auto" else dtype_of(config.weights))
    known = asked or (_judged([card.evaluated_with for card in given if card.evaluated_with]) if bases == 1 else None)
    if known is None:
        dtype = chosen(config.source, _asked(config), config.device).way.dtype
    else:
        dtype = dtype_of(known)
    base = load_base(config.source, dtype=dtype, device=config.device)
    if base.tokenizer is None:
        raise UsageError(f"{config.source} has no tokenizer, and a server needs one; add its tokenizer.json")
    if known is not None:
        return base
    wanted = _judged(_of(base, given)) or _judged(_of(base, scanned), strict=False)
    if wanted is None or dtype_of(wanted) in ("auto", dtype_name(base.dtype)):
        return base
    return load_base(config.source, dtype=dtype_of(wanted), device=config.device)


def _of(base: Base, cards: Sequence[Card]) -> list[EvaluatedWith]:
    """How the skins on this base were judged, and how it was held where it embeds for skins on others."""
    on_it = [card.evaluated_with for card in cards if card.base.has_weights_of(base.identity)]
    for_others = [card.embedded_with for card in cards if card.embedder and card.embedder.has_weights_of(base.identity)]
    return [one for one in (*on_it, *for_others) if one is not None]


def _judged(found: Sequence[EvaluatedWith], strict: bool = True) -> str | None:
    judged = {one.weights for one in found}
    if len(judged) > 1 and strict:
        raise UsageError(
            f"the skins were judged with different weights ({', '.join(sorted(judged))}): serve them apart, or choose "
            "one with dtype and allow other weights"
        )
    return judged.pop() if len(judged) == 1 else None
