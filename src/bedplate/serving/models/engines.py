"""Loads the bases of a server and opens their engines.

A base gets one engine for each combination of dtype, weight format and kernel that its skins were judged with, or a
single one where the server's file sets these. Engines of one base share its module; each has its own cache and, in a
quantised format, its own copy of the weights.
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
from bedplate.serving.models.residency import run_apart
from bedplate.serving.settings.server_config import BaseConfig, ServerConfig
from bedplate.skins.files import Card
from bedplate.skins.skin import EvaluatedWith

log = logging.getLogger("bedplate.serving")


@dataclass(frozen=True)
class EngineSetting:
    """The dtype in which a base's module is loaded, and the weight format and kernel of one engine on it. needed: skins
    that were named (not only found in the skins directory) depend on it."""

    dtype: str
    weights: Weights
    kernel: Kernel
    needed: bool = True


_AUTO = EngineSetting("auto", "auto", "auto")
"""The engine of a base for which neither the file nor a skin sets anything."""


@dataclass(frozen=True, eq=False)
class ResidentBase:
    """A base in memory and the settings of its engines; the first engine answers under the base's own name."""

    config: BaseConfig
    base: Base
    engine_settings: tuple[EngineSetting, ...]


def load_resident_base(
    config: BaseConfig, bases: int, named_cards: Sequence[Card], scanned: Sequence[Card], awaits: bool = False
) -> ResidentBase:
    """Loads a base and chooses the settings of its engines. named_cards: the skins that were named; scanned: those of
    the skins directory. awaits: skins may be added later, so that without any the weights stay floats, as where `adapt`
    judges skins. UsageError for a base without a tokenizer."""
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
        return ResidentBase(config, base, (_configured_setting(config, base, [*named_cards, *scanned]),))
    named, by_form = _judged_on(base, named_cards), dict[tuple[str, str, str], EngineSetting]()
    for judged in _ordered([*named, *_judged_on(base, scanned)]):
        kernel = KERNELS.get(judged.kernel, config.kernel) if config.kernel == "auto" else config.kernel
        dtype = _dtype(judged)
        weights: Weights = QUANTISED.get(judged.weights, "auto")
        by_form.setdefault((dtype, weights, kernel), EngineSetting(dtype, weights, kernel, judged in named))
    if not by_form and fastest is not None and _has_dtype(base, fastest.dtype):
        execution = execution_of(fastest)
        return ResidentBase(config, base, (EngineSetting(execution.dtype, execution.weights, execution.kernel),))
    engine_settings = tuple(by_form.values()) or (_fastest(config, base),)
    if not _has_dtype(base, engine_settings[0].dtype):
        base = _load(config, engine_settings[0].dtype)
    return ResidentBase(config, base, engine_settings)


def _dtype(judged: EvaluatedWith) -> str:
    return dtype_of(judged.weights, judged.dtype)


def _configured_setting(config: BaseConfig, base: Base, cards: Sequence[Card]) -> EngineSetting:
    """The setting in the server's file. A kernel that it leaves open is the skins', where they agree."""
    kernels = {judged.kernel for judged in _judged_on(base, cards)}
    if config.weights == "fastest" or not kernels:
        return _fastest(config, base)
    # Quantised weights run on one kernel only, which the engine finds.
    follows = config.kernel == "auto" and config.weights not in QUANTISED and len(kernels) == 1
    kernel = KERNELS.get(kernels.pop(), config.kernel) if follows else config.kernel
    return EngineSetting(dtype_name(base.dtype), config.weights, kernel)


def _fastest(config: BaseConfig, base: Base) -> EngineSetting:
    """The configured setting; what it leaves open is the measured fastest that the loaded dtype allows."""
    dtype = dtype_name(base.dtype)
    fastest = execution_of(run_apart(lambda: chosen(config.source, _requirements(config, dtype), config.device).plan))
    return EngineSetting(dtype, fastest.weights, fastest.kernel)


def _requirements(config: BaseConfig, loaded: str | None = None, floats: bool = False) -> OpenOptions:
    weights = None if config.weights in ("auto", "fastest") else config.weights
    loaded, floats = loaded if config.dtype is None else None, floats and config.weights == "auto"
    return OpenOptions(config.dtype, weights, config.kernel, quantised=not floats, loaded=loaded)


def _ordered(judged: Sequence[EvaluatedWith]) -> list[EvaluatedWith]:
    """Without duplicates; unquantised weights first, because the first engine has the base's name."""
    return sorted(dict.fromkeys(judged), key=lambda evaluation: evaluation.weights in QUANTISED)


def open_engines(
    config: ServerConfig, loaded: Sequence[ResidentBase], compute: ComputeLock
) -> Generator[tuple[ResidentBase, Engine]]:
    """Opens an engine for each setting of each base, the one with the base's name first; engines compute in turns.

    UsageError for a setting that this machine cannot run. One that only the skins directory needs is logged and left
    out instead.
    """
    # The registry keeps at most `adapters` skins with weights in memory for each engine; a cascade among them has two
    # sets of weights, here or on another engine.
    slots = config.limits.adapters * (sum(len(resident_base.engine_settings) for resident_base in loaded) + 1)
    for resident_base in loaded:
        base, engine = resident_base.base, None
        modules = {dtype_name(base.dtype): base}
        for setting in (*resident_base.engine_settings, _AUTO):
            if setting is _AUTO and engine is not None:
                break
            try:
                engine = run_apart(partial(_engine, config, resident_base, setting, modules, compute, slots))
            except UsageError as error:
                if setting is _AUTO or (setting.needed and not config.allow_other_weights):
                    raise
                log.warning("%s is not served with %s weights: %s", base.name, setting.weights, error.message)
                continue
            log.info("%s: %s weights, %s kernel", base.name, engine.weights, engine.kernel)
            yield resident_base, engine


def _engine(
    config: ServerConfig,
    resident_base: ResidentBase,
    setting: EngineSetting,
    modules: dict[str, Base],
    compute: ComputeLock,
    slots: int,
) -> Engine:
    base = resident_base.base if _has_dtype(resident_base.base, setting.dtype) else modules.get(setting.dtype)
    if base is None:
        base = modules[setting.dtype] = _load(resident_base.config, setting.dtype)
    return Engine(
        base,
        weights=setting.weights,
        kernel=setting.kernel,
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


def _has_dtype(base: Base, dtype: str) -> bool:
    return dtype in ("auto", dtype_name(base.dtype))


def _judged_on(base: Base, cards: Sequence[Card]) -> list[EvaluatedWith]:
    """What the skins on this base were judged with, and what it embedded with for skins on other bases."""
    on_it = [card.evaluated_with for card in cards if card.base and card.base.has_weights_of(base.identity)]
    for_others = [card.embedded_with for card in cards if card.embedder and card.embedder.has_weights_of(base.identity)]
    return [evaluation for evaluation in (*on_it, *for_others) if evaluation is not None]
