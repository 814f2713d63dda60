"""Rotary positions in config.json, in both spellings: `rope_parameters` (transformers 5; by layer type in some), and
`rope_theta` with `rope_scaling` beside it (before)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.field_map import Field, Values
from bedplate.models.families.fields import Fields
from bedplate.models.specs.position import LinearScaling, Llama3Scaling, Scaling, YarnScaling, yarn_scale
from bedplate.models.specs.transformer import LongRopeScaling, Rope

Reader = Callable[[Fields, int, int | None], Scaling | None]
FULL, SLIDING = "full_attention", "sliding_attention"
"""The names of layer types, and of their ropes."""


def rope(
    *, theta: float = 10_000.0, fraction: float | None = None, writes_theta: bool = True, writes_fraction: bool = False
) -> Field:
    """The one rope of a model. theta, fraction: where nothing is said. A family whose heads turn whole has no fraction
    (None), and one is refused. writes_theta, writes_fraction: also beside `rope_parameters`, or in it at any value."""

    def write(flat: Values, spec: Any) -> Values:
        value = flat["rope"] or Rope()
        share = {"partial_rotary_factor": value.fraction} if writes_fraction else {}
        config = {"rope_parameters": share | rope_parameters(value)}
        return config | {"rope_theta": value.theta} if writes_theta else config

    def read(fields: Fields, values: Values) -> Values:
        return {"rope": take_rope(fields, context=values["context_length"], theta=theta, fraction=fraction)}

    return Field(read, write)


def ropes(theta: float, local_theta: float) -> Field:
    """A rope of layers that see everything, and one of those with a window."""

    def read(fields: Fields, values: Values) -> Values:
        full, local = take_ropes(fields, context=values["context_length"], theta=theta, local_theta=local_theta)
        return {"rope": full, "local_rope": None if local == full else local}

    def write(flat: Values, spec: Any) -> Values:
        full = flat["rope"] or Rope()
        return {"rope_parameters": {FULL: rope_parameters(full), SLIDING: rope_parameters(flat["local_rope"] or full)}}

    return Field(read, write)


def take_rope(fields: Fields, *, context: int, theta: float = 10_000.0, fraction: float | None = None) -> Rope:
    """The one rope of a model. context: its `max_position_embeddings`."""
    parameters = _merged(fields.part("rope_scaling"), fields.part("rope_parameters"), fields.origin)
    names = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    top_level: dict[str, Any] = {name: fields.pop(name) for name in names}
    defaults = {name: value for name, value in top_level.items() if value is not None}
    return read_rope(defaults | parameters, fields.origin, context=context, theta=theta, fraction=fraction)


def take_ropes(fields: Fields, *, context: int, theta: float, local_theta: float) -> tuple[Rope, Rope]:
    """The ropes of layers that see everything and of those with a window: by layer type, or (before) `rope_theta` with
    `rope_scaling`, and `rope_local_base_freq`."""
    origin = fields.origin
    parameters: dict[str, Any] = fields.part("rope_parameters")
    full, scaling = {"rope_theta": fields.pop("rope_theta", theta)}, fields.part("rope_scaling")
    local: dict[str, Any] = {"rope_theta": fields.pop("rope_local_base_freq", local_theta)}
    by_layer_type = Fields(parameters, f"{origin} rope_parameters")
    full, local = full | _merged(scaling, by_layer_type.part(FULL), origin), local | by_layer_type.part(SLIDING)
    by_layer_type.finish()
    local_rope = read_rope(local, f"{origin} {SLIDING}", context=context)
    return read_rope(full, f"{origin} {FULL}", context=context), local_rope


def _merged(older: Mapping[str, Any], newer: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """What `rope_scaling` and `rope_parameters` say together. Where they differ, programs differ in which counts."""
    conflict = next((name for name in older if name in newer and older[name] != newer[name]), None)
    if conflict is not None:
        raise UnsupportedModelError(f"{origin}: rope_scaling and rope_parameters say different things of {conflict!r}")
    return {**older, **newer}


def read_rope(
    parameters: Mapping[str, Any], origin: str, *, context: int, theta: float = 10_000.0, fraction: float | None = None
) -> Rope:
    """One dict of `rope_parameters`."""
    fields = Fields(parameters, f"{origin} rope_parameters")
    stored_theta, partial = fields.real("rope_theta"), fields.real("partial_rotary_factor")
    base = theta if stored_theta is None else stored_theta
    share = (fraction or 1.0) if partial is None else partial
    older = fields.text("type", "default")
    rope_type = fields.text("rope_type", older)
    original = fields.whole("original_max_position_embeddings")
    reader = _READERS.get(rope_type)
    if reader is None:
        supported = ", ".join(repr(name) for name in _READERS)
        raise UnsupportedModelError(f"{origin}: rope type {rope_type!r} is not supported (only {supported})")
    scaling = reader(fields, context, original)
    fields.finish()
    if fraction is None and share != 1 and rope_type != "proportional":
        raise UnsupportedModelError(f"{origin}: partial_rotary_factor = {share} is not supported (only 1.0)")
    return Rope(base, scaling, share, proportional=rope_type == "proportional")


def _by_name(make: Callable[..., Scaling]) -> Reader:
    """Reads a scaling whose numbers have our names, all of which must be there."""

    def read(fields: Fields, context: int, original: int | None) -> Scaling:
        names = [field.name for field in dataclasses.fields(make) if field.name != "original_context"]  # type: ignore[arg-type]
        before = {"original_context": _needed(original, fields)} if len(names) > 1 else {}
        return make(**{name: fields.need_real(name) for name in names}, **before)

    return read


def _proportional(fields: Fields, context: int, original: int | None) -> Scaling | None:
    fields.only("factor", None, 1.0)
    return None


def _yarn(fields: Fields, context: int, original: int | None) -> Scaling | None:
    stored_factor, before = fields.real("factor"), _needed(original, fields)
    factor = context / before if stored_factor is None else stored_factor
    scale, scale_all, attention = (fields.real(name) for name in ("mscale", "mscale_all_dim", "attention_factor"))
    usual = yarn_scale(factor)
    if attention is not None and not (scale and scale_all) and math.isclose(attention, usual, rel_tol=1e-9):
        attention = None  # what follows from the factor, written once more (Olmo 3)
    return YarnScaling(
        factor=factor,
        original_context=before,
        beta_fast=fields.real("beta_fast") or 32.0,
        beta_slow=fields.real("beta_slow") or 1.0,
        scale=scale,
        scale_all=scale_all,
        attention_factor=attention,
        truncate=fields.flag("truncate", True),
        query_growth=fields.real("llama_4_scaling_beta") or 0.0,
    )


def _longrope(fields: Fields, context: int, original: int | None) -> Scaling | None:
    factor, attention, before = fields.real("factor"), fields.real("attention_factor"), original or context
    if attention is None and factor is not None and factor * before != context:
        attention = math.sqrt(1 + math.log(factor) / math.log(before)) if factor > 1 else 1.0
    return LongRopeScaling(
        short=fields.reals("short_factor"),
        long=fields.reals("long_factor"),
        original_context=before,
        factor=context / before,
        attention_factor=attention,
    )


def _needed(original: int | None, fields: Fields) -> int:
    return fields.size("original_max_position_embeddings") if original is None else original


_READERS: dict[str, Reader] = {
    "default": lambda *_: None,
    "linear": _by_name(LinearScaling),
    "llama3": _by_name(Llama3Scaling),
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
}


_TYPES = {LinearScaling: "linear", Llama3Scaling: "llama3", YarnScaling: "yarn", LongRopeScaling: "longrope"}
_NAMES = {
    "original_context": "original_max_position_embeddings",
    "scale": "mscale",
    "scale_all": "mscale_all_dim",
    "query_growth": "llama_4_scaling_beta",
    "short": "short_factor",
    "long": "long_factor",
}
_OPTIONAL = {"scale": None, "scale_all": None, "attention_factor": None, "truncate": True, "query_growth": 0.0}
"""Left out where they say nothing."""


def rope_parameters(rope: Rope) -> dict[str, Any]:
    """The inverse of `read_rope`."""
    parameters: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": "default"}
    if rope.fraction != 1:
        parameters["partial_rotary_factor"] = rope.fraction
    if rope.scaling is not None:
        parameters["rope_type"] = _TYPES[type(rope.scaling)]
        for name, value in vars(rope.scaling).items():
            follows = name == "factor" and isinstance(rope.scaling, LongRopeScaling)  # from the two contexts
            if not follows and (name not in _OPTIONAL or value != _OPTIONAL[name]):
                parameters[_NAMES.get(name, name)] = list(value) if isinstance(value, tuple) else value
    return parameters | ({"rope_type": "proportional"} if rope.proportional else {})
