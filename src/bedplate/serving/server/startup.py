"""Loads the bases and skins of a server's file, and closes them at the end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bedplate.core.errors import UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.grammar_trial import GrammarTrial
from bedplate.inference.forward.compute_lock import ComputeLock
from bedplate.serving.callers.caller_guard import CallerGuard, guard_for
from bedplate.serving.durable.batch_worker import Batches
from bedplate.serving.durable.feedback_service import Feedback
from bedplate.serving.durable.responses_store import ResponseStore
from bedplate.serving.durable.state_directory import StateDirectory
from bedplate.serving.models.engines import opened, resident
from bedplate.serving.models.registry import Registry
from bedplate.serving.models.residency import apart_now
from bedplate.serving.models.served import Served, ServedBase
from bedplate.serving.models.served_encoder import ServedClassifier, ServedEncoder
from bedplate.serving.models.skins_directory import Scanned, SkinsDirectory
from bedplate.serving.request.server_state import ServerState
from bedplate.serving.rollout.version_router import VersionRouter
from bedplate.serving.settings.server_config import BaseConfig, LimitsConfig, ServerConfig
from bedplate.skins.card import Card, card_of, parts_of, read_card
from bedplate.skins.skin import Skin

log = logging.getLogger("bedplate.serving")


def server_config(
    base: str | Path,
    *extra_bases: str | Path,
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
    """The configuration of one base (and `extra_bases`) with a few settings; `settings` are other fields of
    ServerConfig.

    UsageError for a value that cannot be.
    """
    limits = {"max_rows": max_rows, "max_waiting": max_waiting, "body_bytes": body_limit, "adapters": adapters}
    limit_settings = {field: value for field, value in limits.items() if value is not None}
    base_settings = {"dtype": dtype, "device": device, "weights": weights, "kernel": kernel}
    try:
        main = BaseConfig.model_validate({"source": str(base), "name": name, **base_settings})
        extra_configs = tuple(
            BaseConfig.model_validate({"source": str(source), "device": device}) for source in extra_bases
        )
        return ServerConfig(bases=(main, *extra_configs), limits=LimitsConfig(**limit_settings), **settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field_path = ".".join(map(str, first["loc"]))
        raise UsageError(f"{field_path}: {first['msg']}".removeprefix(": ").replace("Value error, ", "")) from error


@contextlib.contextmanager
def loaded_server(
    base: str | Path | ServerConfig, skins: Sequence[str | Path | Skin] = (), **settings: Any
) -> Generator[ServerState]:
    """Bases and skins, loaded; the engines are closed at the end.

    base: one base with the settings of `server_config`, or a whole configuration. `skins` come on top of those of the
    configuration, and are verified whole; those of the skins directory when they are first asked for. A base is held in
    every way that its skins were judged with, unless the configuration says how. Raises SkinError for a skin of no base
    here, UsageError for names that collide.
    """
    config = base if isinstance(base, ServerConfig) else server_config(base, **settings)
    named_skins: list[tuple[str | Path | Skin, str | None]] = [(skin.source, skin.name) for skin in config.skins]
    named_skins += [(skin, None) for skin in skins]
    sources = [(skin if isinstance(skin, Skin) else read_card(skin), name) for skin, name in named_skins]
    scanned = Scanned((), ()) if config.skins_directory is None else SkinsDirectory(config.skins_directory).scan()
    cards = _whole([card_of(source) if isinstance(source, Skin) else source for source, _ in sources])
    lying = _whole(scanned.cards)
    loaded = [
        apart_now(lambda base_config=base_config: resident(base_config, len(config.bases), cards, lying))
        for base_config in config.bases
    ]
    with contextlib.ExitStack() as stack:
        guard = guard_for(config)
        stack.callback(guard.close)
        base_engines = [(base, stack.enter_context(engine)) for base, engine in opened(config, loaded, ComputeLock())]
        trial = stack.enter_context(GrammarTrial())
        for _, engine in base_engines:
            engine.grammars.trial = trial
        limits = config.limits
        registry = Registry(
            [engine for _, engine in base_engines],
            adapters=limits.adapters,
            prompt_skins=limits.prompt_skins,
            prefix_bytes=limits.prefix_bytes,
            allow_other_weights=config.allow_other_weights,
        )
        for resident_base in loaded:
            engine = next(
                engine for base, engine in base_engines if base is resident_base
            )  # of several the first has the base's name
            registry.add(_served(engine, resident_base.config.name or engine.base.name))
        for source, name in sources:
            served = registry.skin(source, name)
            apart_now(served.check)
            for warning in served.warnings:
                log.warning("%s", warning)
            registry.add(served)
        for problem in registry.register(scanned)["problems"]:
            log.warning("not registered: %s", problem)
        yield assembled(config, registry, guard)


def assembled(config: ServerConfig, registry: Registry, guard: CallerGuard) -> ServerState:
    """The state with the parts that every server has; those that its file gives nothing to do hear of no call.
    UsageError for routes that cannot be."""
    state = ServerState(config, registry, guard)
    guard.compare(lambda: (*registry.models, *config.routes))
    directory = state.add(StateDirectory(config))
    state.add(ResponseStore(config.responses))
    feedback = state.add(Feedback(directory, config.feedback))
    router = state.add(VersionRouter(state, feedback.targets))
    if config.feedback.keep:
        state.observers.append(feedback)
        state.services.append(feedback)
    if config.routes:
        state.leases = router
        state.observers.append(router)
        state.services.append(router)
    state.services.append(state.add(Batches(state)))
    return state


def _whole(cards: Sequence[Card]) -> list[Card]:
    """The cards, in a cascade's place those of its two skins, which say how their bases are to be held."""
    return [part for card in cards for part in (parts_of(card) or [card])]


def _served(engine: Engine, name: str) -> Served:
    if "generate" in engine.base.can:
        return ServedBase(engine, name)
    return ServedEncoder(engine, name) if engine.base.spec.classifier is None else ServedClassifier(engine, name)
