"""Bases and skins loaded as a server's file says, and closed at the end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from bedplate.core.errors import UsageError
from bedplate.inference.engine import Engine
from bedplate.inference.predict import Predictor
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.decoder import Decoder
from bedplate.serving.config import BaseConfig, LimitsConfig, ServerConfig
from bedplate.serving.guard import guard_for
from bedplate.serving.house import House
from bedplate.serving.models import ServedBase, ServedSkin
from bedplate.serving.registry import Registry
from bedplate.skins.files import read_skin
from bedplate.skins.skin import Skin

log = logging.getLogger("bedplate.serving")

P = ParamSpec("P")
T = TypeVar("T")


def server_config(
    base: str | Path,
    *,
    name: str | None = None,
    dtype: str | None = None,
    device: str = "auto",
    max_rows: int | None = None,
    max_waiting: int | None = None,
    body_limit: int | None = None,
    **settings: Any,
) -> ServerConfig:
    """The configuration of one base with a few settings; `settings` are the other fields of ServerConfig."""
    limits = {"max_rows": max_rows, "max_waiting": max_waiting, "body_bytes": body_limit}
    given = {field: value for field, value in limits.items() if value is not None}
    bases = (BaseConfig(source=str(base), name=name, dtype=dtype, device=device),)
    return ServerConfig(bases=bases, limits=LimitsConfig(**given), **settings)


@contextlib.contextmanager
def loaded_house(
    base: str | Path | ServerConfig, skins: Sequence[str | Path | Skin] = (), **settings: Any
) -> Generator[House]:
    """Bases and skins, loaded; the engines are closed at the end.

    base: one base with the settings of `server_config`, or a whole configuration. `skins` come on top of those of the
    configuration. Raises SkinError for a skin of another base, UsageError for names that collide.
    """
    config = base if isinstance(base, ServerConfig) else server_config(base, **settings)
    given: list[tuple[str | Path | Skin, str | None]] = [(skin.source, skin.name) for skin in config.skins]
    given += [(skin, None) for skin in skins]
    read = [(skin if isinstance(skin, Skin) else read_skin(skin), name) for skin, name in given]
    main = config.bases[0]
    loaded = _apart(_load, main, [skin for skin, _ in read])
    with contextlib.ExitStack() as stack:
        guard = guard_for(config)
        stack.callback(guard.close)
        adapters = max(1, sum(skin.lora is not None for skin, _ in read))
        limits = config.limits
        engine = Engine(loaded, max_rows=limits.max_rows, max_waiting=limits.max_waiting, adapters=adapters)
        stack.enter_context(engine)
        registry = Registry([engine])
        registry.add(ServedBase(engine, main.name or loaded.name))
        for skin, name in read:
            predictor = _apart(Predictor, engine, skin, allow_other_weights=config.allow_other_weights)
            for warning in predictor.warnings:
                log.warning("%s", warning)
            registry.add(ServedSkin(predictor, name))
        yield House(config, registry, guard)


def _load(config: BaseConfig, skins: Sequence[Skin]) -> Base:
    base = load_base(config.source, dtype=config.dtype or _judged_with(skins), device=config.device)
    if not isinstance(base.model, Decoder):
        raise UsageError(f"{config.source} is an encoder: it cannot answer chats or complete texts")
    if base.tokenizer is None:
        raise UsageError(f"{config.source} has no tokenizer, and a server needs one; add its tokenizer.json")
    return base


def _apart(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls in a thread that ends with the call, and its OpenMP pool with it: while a second pool exists, libgomp lets
    the workers of the engine's pool sleep between operations, and short calls take half as long again."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call, *args, **kwargs).result()


def _judged_with(skins: Sequence[Skin]) -> str:
    judged = {skin.evaluated_with.weights for skin in skins if skin.evaluated_with is not None}
    if len(judged) > 1:
        raise UsageError(
            f"the skins were judged with different weights ({', '.join(sorted(judged))}): serve them apart, or choose "
            "one with dtype and allow other weights"
        )
    return judged.pop() if judged else "auto"
