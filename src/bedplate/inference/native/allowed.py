"""Which architectures the kernel runs: every field of a spec, and the values of it that the kernel does something for.

A list of what is known and not of what is not, so that whatever a spec learns to say later runs on torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields

from bedplate.models.specs.transformer import LinearScaling, Llama3Scaling, Rope, TransformerSpec

_ANY = (
    *("vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "feedforward_size", "context_length"),
    *("norm_eps", "attention_bias", "feedforward_bias", "tied_head"),
)


def _rotates(spec: TransformerSpec) -> bool:
    """The kernel is given each pair's frequency, and turns all pairs."""
    rope = spec.rope
    if rope is None:
        return True
    return rope == Rope(rope.theta, rope.scaling) and type(rope.scaling) in (type(None), LinearScaling, Llama3Scaling)


ALLOWED: Mapping[str, Callable[[TransformerSpec], bool]] = {
    **dict.fromkeys(_ANY, lambda _: True),
    "pooling": lambda _: True,  # of the states, outside the kernel
    "norm_bias": lambda _: True,  # an RMS norm has none
    "kind": lambda spec: spec.kind == "decoder",
    "norm": lambda spec: spec.norm == "rms",
    "norm_placement": lambda spec: spec.norm_placement == "pre",
    "rope": _rotates,
    "activation": lambda spec: spec.activation == "silu",
    "gated": lambda spec: spec.gated,
    "token_types": lambda spec: spec.token_types == 0,
    "pooler": lambda spec: not spec.pooler,
    "position_rows": lambda spec: spec.positions == 0,
    "position_offset": lambda spec: spec.position_offset == 0,
    "classifier": lambda spec: spec.classifier is None,
    "relative_bias": lambda spec: spec.relative_bias is None,
    "relative_projection": lambda spec: not spec.relative_projection,
    "windows": lambda spec: all(window is None for window in spec.windows),
    "local_rope": lambda spec: spec.local_rope is None,
    "latent": lambda spec: spec.latent is None,
    "experts": lambda spec: spec.experts is None,
    "key_bias": lambda spec: spec.has_key_bias == spec.attention_bias,
    "output_bias": lambda spec: spec.has_output_bias == spec.attention_bias,
    "qk_norm": lambda spec: spec.qk_norm is None,
    "norm_weight": lambda spec: spec.norm_weight,
    "embedding_norm": lambda spec: not spec.norms_embedding,
    "final_norm": lambda spec: spec.norms_output,
    "first_norm": lambda spec: spec.first_norm,
    "parallel": lambda spec: not spec.parallel,
    "attention_sinks": lambda spec: not spec.attention_sinks,
    "cross_size": lambda spec: spec.cross_size is None,
    "scales": lambda spec: spec.scales is None,
    "value_tables": lambda spec: spec.value_tables == 0,
    "norm_offset": lambda spec: spec.norm_offset == 0,
    "rope_layers": lambda spec: all(spec.rope_layers),
    "attention_gate": lambda spec: not spec.attention_gate,
    "state": lambda spec: spec.state is None,
    "state_layers": lambda spec: not spec.state_layers,
    "prediction_modules": lambda spec: spec.prediction_modules == 0,
}


def refused_field(spec: TransformerSpec) -> str | None:
    """The first field that the kernel does not know, or not at this value; None where it runs the whole spec."""
    names = (field.name for field in fields(spec))
    return next((name for name in names if name not in ALLOWED or not ALLOWED[name](spec)), None)
