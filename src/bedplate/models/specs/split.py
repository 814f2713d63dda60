"""How a model may be trained: how ranks share its matrix products (tensor and expert parallelism), as its spec decides,
and how much of a forward pass is made again for the backward pass, instead of being kept. No torch.

Columns: each rank has some of a product's outputs; rows: some of its inputs, and the outputs are added up
(Megatron-LM, https://arxiv.org/abs/1909.08053). Experts: each rank has some of them
(https://arxiv.org/abs/2006.16668). What is not named is whole on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.transformer import TransformerSpec

Recompute = Literal["none", "selective", "full"]
"""none: what the operations keep by themselves. selective: what costs no product is made again. full: of each block its
input is kept, and the block runs again (https://arxiv.org/abs/1604.06174, https://arxiv.org/abs/2205.05198)."""
Cut = Literal["columns", "rows", "summed", "experts"]
"""How a module is cut. "summed": whole, but each rank sees only its own heads, so that gradients are to be added up."""


def cuts_of(spec: object, tensor: int, experts: int) -> Mapping[str, Cut]:
    """How modules are cut, by path, for `tensor` ranks sharing products and `experts` ranks sharing experts; empty
    for one of each. UnsupportedModelError for what cannot be cut."""
    cuts: dict[str, Cut] = {}
    if tensor == experts == 1:
        return cuts
    if not isinstance(spec, TransformerSpec):
        raise UnsupportedModelError(
            f"{type(spec).__name__.removesuffix('Spec')} models cannot be cut (tensor, expert) yet; shard them"
        )
    if tensor > 1:
        cuts |= tensor_plan(spec, tensor)
    if experts > 1:
        cuts |= expert_plan(spec, experts)
    return cuts


def tensor_plan(spec: TransformerSpec, ranks: int) -> Mapping[str, Cut]:
    """How `ranks` ranks share attention and feed-forward of a decoder or encoder, by the module's path.

    Experts stay whole: `expert_plan` is for them. UnsupportedModelError, naming the field, for what cannot be cut.
    """
    cuts: dict[str, Cut] = {}
    for layer in range(spec.layers):
        reason = _uncut(spec, layer, ranks)
        if reason is not None:
            raise UnsupportedModelError(f"layer {layer} cannot be shared by {ranks} ranks (tensor): {reason}")
        at, has_keys = f"layers.{layer}.attention", spec.keys_of(layer) == layer
        cuts |= {f"{at}.q": "columns", f"{at}.o": "rows"}
        if has_keys:
            cuts[f"{at}.k"] = "columns"
        if has_keys and not spec.keys_are_values(layer):
            cuts[f"{at}.v"] = "columns"
        if spec.attention.qk_norm is not None:
            cuts |= {f"{at}.{name}": "summed" for name in ("q_norm", *(("k_norm",) if has_keys else ()))}
        place = f"layers.{layer}.feedforward"
        if spec.feedforward_kind(layer) == "experts":
            part = spec.experts
            assert part is not None
            if not part.shared_size:
                continue
            place = f"{place}.shared"
        cuts |= {f"{place}.up": "columns", f"{place}.down": "rows"}
        if spec.feedforward.gated:
            cuts[f"{place}.gate"] = "columns"
    return cuts


def expert_plan(spec: TransformerSpec, ranks: int) -> Mapping[str, Cut]:
    """By a module's path, whose experts so many ranks share. UnsupportedModelError where they cannot."""
    if spec.experts is None:
        raise UnsupportedModelError(f"{ranks} ranks cannot share experts (expert): this model has none")
    if spec.experts.count % ranks:
        raise UnsupportedModelError(f"{ranks} ranks cannot share {spec.experts.count} experts (expert): no divisor")
    cuts: dict[str, Cut] = {}
    for layer in range(spec.layers):
        if spec.feedforward_kind(layer) == "experts":
            cuts[f"layers.{layer}.feedforward.experts"] = "experts"
        if spec.has_beside(layer):
            cuts[f"layers.{layer}.beside.experts"] = "experts"
    return cuts


def _uncut(spec: TransformerSpec, layer: int, ranks: int) -> str | None:
    """Why this layer cannot be cut, or None."""
    feedforward_size = spec.feedforward_size_of(layer)
    if spec.feedforward_kind(layer) == "experts":
        assert spec.experts is not None
        feedforward_size = spec.experts.shared_size or ranks
    reasons = {
        f"its mixer is {spec.mixer(layer)!r}, and only attention can be": spec.mixer(layer) != "attention",
        f"{spec.attention.heads} heads are not a multiple of it": spec.attention.heads % ranks != 0,
        f"{spec.kv_heads_of(layer)} key-value heads are not a multiple of it": spec.kv_heads_of(layer) % ranks != 0,
        f"{feedforward_size} features of its feed-forward are not a multiple of it": feedforward_size % ranks != 0,
        "its q/k norm is over all heads together (qk_norm = 'projection')": spec.attention.qk_norm == "projection",
        "it has attention sinks": spec.attention.sinks,
        "it has a relative bias by head": spec.position.relative_bias is not None,
        "it attends to an encoder": spec.attention.cross_size is not None,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)
