"""Describes a torch decoder or encoder to the kernel: its shape, rotary positions, vectors and matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bedplate.inference.native.library import PLACES, VECTORS, NativeShape
from bedplate.models.decoder import Decoder
from bedplate.models.encoder import Encoder
from bedplate.models.layers.attention import Attention
from bedplate.models.layers.block import Block
from bedplate.models.layers.experts import MixtureOfExperts, Router
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.norms import LayerNorm, RMSNorm
from bedplate.models.layers.positions import rotary_factor, rotary_frequencies
from bedplate.models.specs.parts import Activation, Scoring
from bedplate.models.specs.transformer import Experts, Rope, Scales, TransformerSpec

ACTIVATIONS: dict[Activation, int] = {
    "silu": 0,
    "gelu": 1,
    "gelu_tanh": 2,
    "relu": 3,
    "relu2": 4,
    "quick_gelu": 5,
    "clamped_silu": 6,
}
"""As activations.h numbers them."""
SCORINGS: dict[Scoring, int] = {"softmax": 0, "softmax_chosen": 1, "sigmoid": 2}
"""As routing.h numbers them."""
Stack = Decoder | Encoder
OUTER = -1
"""The layer of what belongs to no layer."""
HEAD, LAYER_INPUT = -1, -2
"""The places of its matrices: the head, and the projection to the inputs of single layers."""


@dataclass(frozen=True, eq=False)
class Vector:
    """What a norm multiplies and adds, or a layer's sinks: float32."""

    layer: int
    vector_index: int
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Matrix:
    """A product, or (of three dimensions) one of each expert; `name` is its weight's in the model."""

    layer: int
    place: int
    name: str
    weight: Tensor
    bias: Tensor | None


def shape_of(spec: TransformerSpec, dtype: torch.dtype, threads: int, floats: bool) -> NativeShape:
    """floats: whether the blocks' matrices are kept in the base's dtype."""
    scales, part, layers = spec.scales or Scales(), spec.experts, range(spec.layers)
    feedforward = max(spec.feedforward_size_of(layer) for layer in layers)
    return NativeShape(
        layers=spec.layers,
        hidden=spec.hidden_size,
        heads=spec.attention.heads,
        kv_heads=max(spec.kv_heads_of(layer) for layer in layers),
        head_dim=max(spec.head_dim_of(layer) for layer in layers),
        feedforward=max(feedforward, 0 if part is None else part.shared_size),
        vocabulary=spec.vocab_size,
        threads=threads,
        floats=floats,
        wide=dtype == torch.float32,
        activation=ACTIVATIONS[spec.feedforward.activation],
        gated=spec.feedforward.gated,
        layer_norm=spec.norm.type == "layer",
        whole_norm=spec.attention.qk_norm == "projection",
        parallel=spec.parallel,
        post=spec.norm.placement == "post",
        positions=max(spec.positions - spec.position.offset, 0),
        token_types=spec.token_types,
        eps=spec.norm.eps,
        # Rounded as the table's rows are, in `Inputs.embedded`.
        embedding_scale=float(torch.tensor(scales.embedding, dtype=dtype)),
        residual_scale=scales.residual,
        head_scale=scales.head,
        score_cap=scales.attention_cap or 0.0,
        logit_cap=scales.logit_cap or 0.0,
        layer_input=spec.layer_input_size,
        layer_input_scale=float(torch.tensor(spec.layer_input_size**0.5, dtype=dtype)),
        **({} if part is None else _routing(part)),
    )


def _routing(part: Experts) -> dict[str, float]:
    return {
        "experts": part.count,
        "per_token": part.per_token,
        "expert_size": part.feedforward_size,
        "scoring": SCORINGS[part.scoring],
        "renormalise": part.renormalise,
        "groups": part.groups,
        "groups_chosen": part.groups_chosen,
        "expert_scale": part.scale,
    }


def ropes_of(spec: TransformerSpec) -> tuple[list[tuple[Rope, int]], list[int]]:
    """The rotary positions that layers have, with the size of a head, and each layer's number of one (−1: none)."""
    layer_ropes = [(spec.rope_of(layer), spec.head_dim_of(layer)) for layer in range(spec.layers)]
    distinct_ropes = list(dict.fromkeys((rope, size) for rope, size in layer_ropes if rope is not None))
    return distinct_ropes, [-1 if rope is None else distinct_ropes.index((rope, size)) for rope, size in layer_ropes]


def scales_of(spec: TransformerSpec, layer: int, block: nn.Module) -> tuple[float, float]:
    """What all that a block gives is multiplied by, and its attention's scores."""
    assert isinstance(block, Block)
    attention = (spec.scales or Scales()).attention
    scores = spec.head_dim_of(layer) ** -0.5 if attention is None else attention
    return 1.0 if block.output_scale is None else float(block.output_scale), scores


def turning(rope: Rope, head_dim: int) -> tuple[float, Tensor]:
    """The factor on cosines and sines, and radians per token of each pair that turns."""
    return rotary_factor(rope), rotary_frequencies(rope, head_dim).contiguous()


def vectors(model: Stack) -> Iterator[Vector]:
    """Norms that are there, and sinks."""
    spec = model.spec.main
    assert isinstance(spec, TransformerSpec)
    for name, norm in {"embedding_norm": model.embedding_norm, "final_norm": model.norm}.items():
        if norm is not None and not isinstance(norm, nn.Identity):
            yield _norm(OUTER, name, norm, spec.hidden_size)
    layer_inputs = model.layer_inputs if isinstance(model, Decoder) else None
    if layer_inputs is not None:
        yield _norm(OUTER, "layer_input_norm", layer_inputs.norm, layer_inputs.size)
    for layer, block in enumerate(model.layers):
        assert isinstance(block, Block)
        after = "_after" if block.placement in ("branch", "post") else ""
        norms: dict[str, tuple[nn.Module | None, int]] = {
            f"attention{after}_norm": (block.attention_norm, spec.hidden_size),
            f"feedforward{after}_norm": (block.feedforward_norm, spec.hidden_size),
        }
        if block.placement == "sandwich":
            norms["attention_after_norm"] = (block.attention_after_norm, spec.hidden_size)
            norms["feedforward_after_norm"] = (block.feedforward_after_norm, spec.hidden_size)
        attention = block.attention
        assert isinstance(attention, Attention)
        whole, size = spec.attention.qk_norm == "projection", attention.head_dim
        norms["query_norm"] = (attention.q_norm, size * (spec.attention.heads if whole else 1))
        norms["key_norm"] = (attention.k_norm, size * (spec.kv_heads_of(layer) if whole else 1))
        norms["value_norm"] = (attention.v_norm, size)
        if block.layer_input_norm is not None:
            norms["layer_input_after_norm"] = (block.layer_input_norm, spec.hidden_size)
        if block.beside is not None:
            norms["beside_norm"] = (block.beside.norm, spec.hidden_size)
            norms["beside_after_norm"] = (block.beside.after_norm, spec.hidden_size)
            norms["dense_after_norm"] = (block.beside.dense_after_norm, spec.hidden_size)
        for name, (norm, size) in norms.items():
            if norm is not None and not isinstance(norm, nn.Identity):
                yield _norm(layer, name, norm, size)
        if attention.sinks is not None:
            yield Vector(layer, VECTORS.index("sinks"), _floats(attention.sinks), None)
        if isinstance(block.feedforward, MixtureOfExperts):
            yield from _routers(layer, block.feedforward.router, block.feedforward.shared_gate)
        if block.beside is not None:
            yield from _routers(layer, block.beside.router, None)


def _routers(layer: int, router: Router, gate: Linear | None) -> Iterator[Vector]:
    parts = {
        "router": router.weight,
        "router_bias": router.bias,
        "selection_bias": router.selection_bias,
        "shared_gate": None if gate is None else gate.weight,
        "router_scale": None if router.scale is None else router.scale.float() * len(router.scale) ** -0.5,
        "expert_scale": router.expert_scale,
    }
    for name, tensor in parts.items():
        if tensor is not None:
            yield Vector(layer, VECTORS.index(name), _floats(tensor), None)


def matrices(model: Stack) -> Iterator[Matrix]:
    """Every product, a decoder's head last."""
    spec = model.spec.main
    assert isinstance(spec, TransformerSpec)
    for layer, block in enumerate(model.layers):
        assert isinstance(block, Block)
        mixture = block.feedforward if isinstance(block.feedforward, MixtureOfExperts) else None
        has_keys = spec.keys_of(layer) == layer
        present = {"attention.k": has_keys, "attention.v": has_keys and not spec.keys_are_values(layer)}
        present |= {"feedforward.gate": spec.feedforward.gated}
        present |= dict.fromkeys(("layer_input.gate", "layer_input.down"), spec.layer_input_size > 0)
        for place, name in enumerate(PLACES):
            part, _, last = name.partition(".")
            inside = mixture if part == "feedforward" else None
            if not present.get(name, True) or (inside is not None and inside.shared is None):
                continue
            path = name if inside is None else f"{part}.shared.{last}"
            linear = block.get_submodule(path)
            assert isinstance(linear, Linear)
            yield Matrix(layer, place, f"layers.{layer}.{path}.weight", linear.weight, linear.bias)
        sparse = block.beside if mixture is None else mixture
        if sparse is not None:
            path, experts = f"layers.{layer}.{'beside' if mixture is None else 'feedforward'}.experts", sparse.experts
            for place, (name, projection) in enumerate((("gate_up", experts.gate_up), ("down", experts.down))):
                yield Matrix(layer, place, f"{path}.{name}.weight", projection.weight, projection.bias)
    if isinstance(model, Encoder):
        return
    if model.layer_inputs is not None:
        yield Matrix(OUTER, LAYER_INPUT, "layer_inputs.projection.weight", model.layer_inputs.projection.weight, None)
    head = model.lm_head
    if head is None:
        yield Matrix(OUTER, HEAD, "embedding.weight", model.embedding.weight, None)
    else:
        yield Matrix(OUTER, HEAD, "lm_head.weight", head.weight, head.bias)


def _norm(layer: int, name: str, norm: nn.Module, size: int) -> Vector:
    """A norm's weight, the offset in it; ones where it has none."""
    assert isinstance(norm, RMSNorm | LayerNorm)
    offset = norm.offset if isinstance(norm, RMSNorm) else 0.0
    bias = norm.bias if isinstance(norm, LayerNorm) else None
    weight = torch.ones(size) if norm.weight is None else _floats(norm.weight) + offset
    return Vector(layer, VECTORS.index(name), weight, None if bias is None else _floats(bias))


def _floats(x: Tensor) -> Tensor:
    return x.detach().float().contiguous()
