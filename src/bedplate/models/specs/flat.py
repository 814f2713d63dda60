"""The flat names of a spec's fields, as files, hashes and messages have them: `attention_bias` for `attention.bias`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from functools import cache
from typing import TYPE_CHECKING, Any

from bedplate.core.errors import UsageError
from bedplate.models.specs.parts import AttentionSpec, FeedForwardSpec, NormSpec, StateSpec
from bedplate.models.specs.position import PositionSpec

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_PARTS: dict[str, type[DataclassInstance]] = {
    "attention": AttentionSpec,
    "feedforward": FeedForwardSpec,
    "norm": NormSpec,
    "position": PositionSpec,
    "state": StateSpec,
}
# The flat names of parts' fields that are not their own.
_RENAMED = {
    "attention.bias": "attention_bias",
    "attention.gate": "attention_gate",
    "attention.sinks": "attention_sinks",
    "feedforward.size": "feedforward_size",
    "feedforward.bias": "feedforward_bias",
    "norm.type": "norm",
    "norm.eps": "norm_eps",
    "norm.placement": "norm_placement",
    "norm.weight": "norm_weight",
    "norm.bias": "norm_bias",
    "norm.offset": "norm_offset",
    "norm.first": "first_norm",
    "norm.embedding": "embedding_norm",
    "norm.final": "final_norm",
    "position.rows": "position_rows",
    "position.offset": "position_offset",
    "state.mixer": "state",
    "state.layers": "state_layers",
}
_STACKS = ("encoder", "decoder", "tower")
"""Fields of an encoder–decoder and of an audio tower that are the spec of a stack."""

# Fields that hashes have always had; the others are left out where they have their default.
_ALWAYS_HASHED = frozenset(
    (
        *("kind", "vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "feedforward_size"),
        *("context_length", "norm", "norm_eps", "norm_placement", "rope", "activation", "gated", "attention_bias"),
        *("feedforward_bias", "tied_head", "token_types", "pooler", "pooling"),
    )
)
# Fields of parts that a spec has learned since its hashes were first saved, with what they say by default.
_SCALING = {"attention_factor": None, "truncate": True, "query_growth": 0.0}
_LATER_IN_PARTS: dict[tuple[str, ...], dict[str, Any]] = {
    ("rope",): {"fraction": 1.0, "interleaved": False, "proportional": False},
    ("rope", "scaling"): _SCALING,
    ("local_rope",): {"interleaved": False, "proportional": False},
    ("local_rope", "scaling"): _SCALING,
    ("scales",): {"residual": 1.0},
    ("experts",): {
        "scoring": "softmax",
        "renormalise": True,
        "scale": 1.0,
        "groups": 1,
        "groups_chosen": 1,
        "beside": False,
        "router_scales": False,
    },
}


@cache
def flat_paths(spec_class: type[DataclassInstance]) -> Mapping[str, tuple[str, ...]]:
    """By flat name, the field of a spec, or the part and the field in it."""
    paths: dict[str, tuple[str, ...]] = {}
    for field in fields(spec_class):
        for inner in fields(_PARTS[field.name]) if field.name in _PARTS else ():
            paths[_RENAMED.get(f"{field.name}.{inner.name}", inner.name)] = (field.name, inner.name)
        if field.name not in _PARTS:
            paths[field.name] = (field.name,)
    return paths


def flat_fields(spec: DataclassInstance) -> dict[str, Any]:
    """Every field of the spec and of its parts, by its flat name."""
    paths = flat_paths(type(spec)).items()
    return {name: getattr(spec if len(path) == 1 else getattr(spec, path[0]), path[-1]) for name, path in paths}


def grouped_fields(
    spec_class: type[DataclassInstance], flat: Mapping[str, Any], *, plain: bool = False
) -> dict[str, Any]:
    """The inverse: arguments of a spec, with its parts; with `plain`, the parts as mappings. UsageError for another
    name."""
    paths = flat_paths(spec_class)
    grouped: dict[str, Any] = {part: {} for part in _PARTS}
    for name, value in flat.items():
        path = paths.get(name)
        if path is None:
            raise UsageError(f"a TransformerSpec has no field {name!r}")
        (grouped if len(path) == 1 else grouped[path[0]])[path[-1]] = value
    return grouped if plain else grouped | {name: part(**grouped[name]) for name, part in _PARTS.items()}


def grouped_stacks(spec_class: type[DataclassInstance], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `plain_fields`, but that parts stay mappings."""
    if "heads" in plain:
        return grouped_fields(spec_class, plain, plain=True)
    return {n: grouped_stacks(spec_class, value) if n in _STACKS else value for n, value in plain.items()}


@cache
def flat_defaults(spec_class: type[DataclassInstance]) -> Mapping[str, Any]:
    """The defaults of the fields that have one, by their flat names."""
    defaults: dict[str, Any] = {}
    for name, path in flat_paths(spec_class).items():
        owner = spec_class if len(path) == 1 else _PARTS[path[0]]
        default = next(field.default for field in fields(owner) if field.name == path[-1])
        if default is not MISSING:
            defaults[name] = default
    return defaults


def plain_fields(spec: DataclassInstance) -> dict[str, Any]:
    """Fields as plain data, as `dataclasses.asdict` makes it, with those of a stack flat."""
    return _flattened(asdict(spec))


def _flattened(nested: dict[str, Any]) -> dict[str, Any]:
    if "attention" not in nested:
        return {name: _flattened(value) if name in _STACKS else value for name, value in nested.items()}
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        inner: dict[str, Any] = value if name in _PARTS else {}
        flat |= {_RENAMED.get(f"{name}.{field}", field): content for field, content in inner.items()}
        if name not in _PARTS:
            flat[name] = value
    return flat


def hashed_fields(spec: DataclassInstance) -> dict[str, Any]:
    """The flat fields as plain data for hashes, which must not change when a spec learns to say more: fields that came
    after the first ones, and parts' fields that came later, are left out where they say nothing new."""
    values = plain_fields(spec)
    defaults = flat_defaults(type(spec))
    for name, value in flat_fields(spec).items():
        if name not in _ALWAYS_HASHED and value == defaults[name]:
            del values[name]
    for path, later in _LATER_IN_PARTS.items():
        inside: Any = values
        for name in path:
            inside = (inside or {}).get(name)
        for name, default in later.items():
            if inside and name in inside and inside[name] == default:
                del inside[name]
    return values
