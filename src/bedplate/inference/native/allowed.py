"""The allow-list of architectures that the kernel runs: every field of a spec, with the values that it implements. A
list of what is known and not of what is not, so that whatever a spec learns to say later runs on torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bedplate.models.specs.parts import SharedKeys
from bedplate.models.specs.position import LinearScaling, Llama3Scaling, YarnScaling
from bedplate.models.specs.transformer import Experts, FullAttention, LongRopeScaling, Rope, Scales, TransformerSpec

_ANY = (
    *("vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "feedforward_size", "context_length"),
    *("norm", "norm_eps", "norm_weight", "norm_bias", "norm_offset", "embedding_norm", "final_norm", "first_norm"),
    *("attention_bias", "key_bias", "output_bias", "feedforward_bias", "qk_norm", "attention_sinks"),
    *("gated", "tied_head", "windows", "rope_layers", "position_rows"),
    *("pooling", "pooler", "classifier", "masked_head"),  # of the states, outside the kernel
    *("value_norm", "output_scales", "layer_input_size"),
)


_EXPERTS = frozenset(
    {
        *("count", "per_token", "feedforward_size", "shared_size", "first_dense", "every", "router_bias"),
        *("selection_bias", "bias", "shared_gate", "scoring", "renormalise", "scale", "groups", "groups_chosen"),
        *("beside", "router_scales"),
    }
)


_FULL = ("head_dim", "kv_heads", "keys_are_values")

_SCALINGS: Mapping[type, tuple[str, ...]] = {
    LinearScaling: ("factor",),
    Llama3Scaling: ("factor", "low_freq_factor", "high_freq_factor", "original_context"),
    YarnScaling: (
        *("factor", "original_context", "beta_fast", "beta_slow"),
        *("scale", "scale_all", "attention_factor", "truncate"),
    ),
    LongRopeScaling: ("short", "long", "original_context", "factor", "attention_factor"),
}
"""Rope scalings that change nothing but the pairs' frequencies and one factor, with their fields."""


def _turns(spec: TransformerSpec, rope: Rope | None) -> bool:
    """The kernel is given each pair's frequency, which must be one whatever else a pass holds."""
    if rope is None:
        return True
    scaling = rope.scaling
    if type(scaling) is LongRopeScaling and not scaling.is_uniform and spec.context_length > scaling.original_context:
        return False
    if scaling is not None and not _is_of(scaling, type(scaling), _SCALINGS.get(type(scaling), ())):
        return False
    return rope == Rope(rope.theta, scaling, rope.fraction, rope.interleaved, rope.proportional)


def _is_of(part: Any, part_type: type, names: Iterable[str]) -> bool:
    """Whether it is of this kind, and these fields say all of it: others have their defaults."""
    field_values = {name: getattr(part, name) for name in names}
    return bool(field_values) and part == part_type(**field_values)


def _scales(spec: TransformerSpec) -> bool:
    scales = spec.scales
    if scales is None:
        return True
    caps = (scales.attention_cap, scales.logit_cap)  # by 0 nothing can be divided, and the kernel has it for none
    if spec.kind == "encoder" or any(cap is not None and not cap > 0 for cap in caps):
        return False
    return scales == Scales(
        scales.embedding, scales.attention, scales.attention_cap, scales.logit_cap, scales.head, scales.residual
    )


def _shared_keys(spec: TransformerSpec) -> bool:
    shared_keys = spec.attention.shared_keys
    return shared_keys is None or (
        spec.kind == "decoder" and _is_of(shared_keys, SharedKeys, ("layers", "feedforward_size"))
    )


def _experts(spec: TransformerSpec) -> bool:
    experts = spec.experts
    if experts is not None and experts.beside and spec.norm.placement not in ("pre", "sandwich"):
        return False
    return experts is None or _is_of(experts, Experts, _EXPERTS)


ALLOWED: Mapping[str, Callable[[TransformerSpec], bool]] = {
    **dict.fromkeys(_ANY, lambda _: True),
    "kind": lambda spec: spec.kind in ("decoder", "encoder"),
    "norm_placement": lambda _: True,
    "rope": lambda spec: _turns(spec, spec.position.rope),
    "local_rope": lambda spec: _turns(spec, spec.position.local_rope),
    # Clamped: what is between an expert's products only.
    "activation": lambda spec: (
        spec.feedforward.activation != "clamped_silu" or (spec.feedforward.gated and spec.experts is not None)
    ),
    "parallel": lambda spec: not spec.parallel or (spec.norm.placement == "pre" and spec.experts is None),
    "scales": _scales,
    "token_types": lambda spec: spec.token_types == 0 or spec.kind == "encoder",
    "position_offset": lambda spec: spec.position.offset == 0 or spec.kind == "encoder",
    "relative_bias": lambda spec: spec.position.relative_bias is None,
    "relative_projection": lambda spec: not spec.position.relative_projection,
    "latent": lambda spec: spec.attention.latent is None,
    "experts": _experts,
    "cross_size": lambda spec: spec.attention.cross_size is None,
    "value_tables": lambda spec: spec.attention.value_tables == 0,
    "sinusoids": lambda spec: not spec.position.sinusoids,
    "head_bias": lambda spec: not spec.head_bias,
    "attention_gate": lambda spec: not spec.attention.gate,
    "state": lambda spec: spec.state.mixer is None,
    "state_layers": lambda spec: not spec.state.layers,
    "full": lambda spec: spec.attention.full is None or _is_of(spec.attention.full, FullAttention, _FULL),
    "shared_keys": _shared_keys,
    "prediction_modules": lambda _: True,  # of training: the kernel's passes end before them
}


def refused_field(spec: TransformerSpec) -> str | None:
    """The first field that the kernel does not know, or not at this value; None where it runs the whole spec."""
    return next((name for name in spec.flat() if name not in ALLOWED or not ALLOWED[name](spec)), None)
