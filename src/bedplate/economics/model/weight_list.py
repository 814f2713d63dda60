"""Every weight that a transformer spec implies, as a list: what it is, how often stored, what passes through it.

Parameters, operations and bytes are all sums over this one list, so they cannot disagree. Checked against built models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from bedplate.economics.model.mixer_flops import attends, linear_maps, vectors
from bedplate.models.specs.transformer import TransformerSpec

Role = Literal["product", "table", "vector"]
Per = Literal["token", "row", "source", "input", "sequence"]


@dataclass(frozen=True)
class Weight:
    """`copies` stored tensors of `size` values each, of which one token passes `used`.

    role: "product": of a matrix product, 2 operations a value and token; "table": looked up; "vector": norms, biases
    and the like. copies is the number of experts, or 0 where the weight is another's (a tied head). layer: None outside
    the blocks. per: what passes through a product: each token, each row that the head is asked for, each token of the
    source (keys and values of cross-attention), each frame or patch of a stem's input, or a whole sequence once.
    """

    name: str
    size: int
    role: Role = "product"
    layer: int | None = None
    copies: int = 1
    used: int = 1
    per: Per = "token"

    @property
    def stored(self) -> int:
        """Values kept."""
        return self.size * self.copies

    @property
    def passed(self) -> int:
        """Values that one token (row, source token, …) is multiplied by."""
        return self.size * self.used if self.role == "product" else 0


def affine(name: str, inputs: int, outputs: int, bias: bool, **fields: object) -> Iterator[Weight]:
    """A linear map, with its bias."""
    yield replace(Weight(name, inputs * outputs), **fields)
    if bias:
        yield replace(Weight(f"{name}.bias", outputs, "vector"), **fields)


@lru_cache(maxsize=256)
def stack_weights(spec: TransformerSpec) -> tuple[Weight, ...]:
    """All weights of a stack of blocks, with its tables and its head."""
    return (*_tables(spec), *_blocks(spec), *_ends(spec), *_prediction(spec))


def _tables(spec: TransformerSpec) -> Iterator[Weight]:
    hidden = spec.hidden_size
    if spec.vocab_size:
        yield Weight("embedding", spec.vocab_size * hidden, "table")
    if spec.positions:
        yield Weight("positions", spec.positions * hidden, "table")
    if spec.token_types:
        yield Weight("token_types", spec.token_types * hidden, "table")
    if spec.layer_input_size:
        stacked_size = spec.layers * spec.layer_input_size
        yield Weight("layer_inputs", spec.vocab_size * stacked_size, "table")
        yield Weight("layer_inputs.projection", hidden * stacked_size)
        yield _norm(spec, "layer_inputs.norm", spec.layer_input_size)
    if spec.attention.value_tables:
        size = spec.vocab_size * spec.attention.kv_heads * spec.attention.head_dim
        yield Weight(
            "value_tables", size, "table", copies=spec.attention.value_tables, used=spec.attention.value_tables
        )
    if spec.position.relative_bias is not None:
        yield Weight("relative_bias", spec.position.relative_bias.buckets * spec.attention.heads, "vector")
    if spec.norms_embedding:
        yield _norm(spec, "embedding_norm")


def _ends(spec: TransformerSpec) -> Iterator[Weight]:
    hidden = spec.hidden_size
    if spec.norms_output:
        yield _norm(spec, "norm")
    if spec.kind == "decoder":
        yield Weight("head", hidden * spec.vocab_size, copies=0 if spec.tied_head else 1, per="row")
    if spec.pooler:
        yield from affine("pooler", hidden, hidden, True, per="sequence")
    if spec.masked_head is not None:
        yield from affine("masked_head.dense", hidden, hidden, spec.masked_head.dense_bias, per="row")
        yield _norm(spec, "masked_head.norm")
        yield Weight("masked_head.out", hidden * spec.vocab_size, copies=0, per="row")
        if spec.masked_head.bias:
            yield Weight("masked_head.bias", spec.vocab_size, "vector", per="row")
    if spec.classifier is not None:
        if spec.classifier.dense:
            yield from affine("classifier.dense", hidden, hidden, spec.classifier.dense_bias, per="sequence")
        if spec.classifier.norm:
            yield _norm(spec, "classifier.norm")
        yield from affine("classifier.out", hidden, len(spec.classifier.labels), True, per="sequence")


def _prediction(spec: TransformerSpec) -> Iterator[Weight]:
    """DeepSeek-V3's modules: the state and the next token's embedding, each normalised, side by side to `hidden`."""
    hidden, last = spec.hidden_size, spec.layers - 1
    for module in range(spec.prediction_modules):
        for norm in ("state_norm", "token_norm", "norm"):
            yield _norm(spec, f"prediction.{norm}", layer=spec.layers + module)
        yield Weight("prediction.join", 2 * hidden * hidden, layer=spec.layers + module)
        for weight in block_weights(spec, last):
            yield replace(weight, name=f"prediction.{weight.name}", layer=spec.layers + module)
        yield Weight("prediction.head", hidden * spec.vocab_size, layer=spec.layers + module, copies=0, per="row")


def _blocks(spec: TransformerSpec) -> Iterator[Weight]:
    for layer in range(spec.layers):
        yield from block_weights(spec, layer)


def block_weights(spec: TransformerSpec, layer: int) -> Iterator[Weight]:
    """One block's weights."""
    parts = _block_norms(spec, layer), _mixer(spec, layer), _feedforward(spec, layer), _layer_input(spec)
    for weight in (weight for part in parts for weight in part):
        yield replace(weight, layer=layer)


def _norm(spec: TransformerSpec, name: str, size: int | None = None, layer: int | None = None) -> Weight:
    parts = spec.norm.weight + (spec.norm.type == "layer" and spec.norm.bias)
    return Weight(name, (size or spec.hidden_size) * parts, "vector", layer)


def _block_norms(spec: TransformerSpec, layer: int) -> Iterator[Weight]:
    parts = ["attention", "feedforward"] if spec.attention.cross_size is None else ["attention", "cross", "feedforward"]
    for part in parts:
        first = layer or spec.norm.first or part != "attention" or spec.norm.placement == "sandwich"
        if first:
            yield _norm(spec, f"{part}_norm")
        if spec.norm.placement == "sandwich":
            yield _norm(spec, f"{part}_after_norm")


def _layer_input(spec: TransformerSpec) -> Iterator[Weight]:
    if spec.layer_input_size:
        yield Weight("layer_input.gate", spec.hidden_size * spec.layer_input_size)
        yield Weight("layer_input.down", spec.layer_input_size * spec.hidden_size)
        yield _norm(spec, "layer_input_norm")


def _mixer(spec: TransformerSpec, layer: int) -> Iterator[Weight]:
    if attends(spec, layer):
        yield from _attention(spec, layer)
        return
    for name, inputs, outputs, bias in linear_maps(spec):
        yield from affine(f"attention.{name}", inputs, outputs, bias)
    for name, size in vectors(spec):
        yield Weight(f"attention.{name}", size, "vector")


def _attention(spec: TransformerSpec, layer: int) -> Iterator[Weight]:
    size = spec.head_dim_of(layer)
    hidden, q, kv = spec.hidden_size, spec.attention.heads * size, spec.kv_heads_of(layer) * size
    has_keys = spec.keys_of(layer) == layer
    if spec.attention.latent is not None:
        yield from _latent(spec)
    else:
        yield from affine("attention.q", hidden, q * (1 + spec.attention.gate), spec.attention.bias)
        if has_keys:
            yield from affine("attention.k", hidden, kv, spec.has_key_bias)
        if has_keys and not spec.keys_are_values(layer):
            yield from affine("attention.v", hidden, kv, spec.attention.bias)
        yield from affine("attention.o", q, hidden, spec.has_output_bias)
    if spec.attention.qk_norm is not None:
        whole = spec.attention.qk_norm == "projection"
        yield _norm(spec, "attention.q_norm", q if whole else size)
        if has_keys:
            yield _norm(spec, "attention.k_norm", kv if whole else size)
    if spec.position.relative_projection:
        yield Weight("attention.relative", hidden * q)
        yield Weight("attention.relative.bias", 2 * q, "vector")
    if spec.attention.sinks:
        yield Weight("attention.sinks", spec.attention.heads, "vector")
    if spec.attention.cross_size is not None:
        yield from affine("cross.q", hidden, q, spec.attention.bias)
        yield from affine("cross.k", spec.attention.cross_size, kv, spec.has_key_bias, per="source")
        yield from affine("cross.v", spec.attention.cross_size, kv, spec.attention.bias, per="source")
        yield from affine("cross.o", q, hidden, spec.has_output_bias)


def _latent(spec: TransformerSpec) -> Iterator[Weight]:
    part, hidden, heads = spec.attention.latent, spec.hidden_size, spec.attention.heads
    assert part is not None
    queries = heads * part.key_dim
    if part.q_rank is None:
        yield Weight("attention.q", hidden * queries)
    else:
        yield from affine("attention.q_down", hidden, part.q_rank, spec.attention.bias)
        yield _norm(spec, "attention.q_norm", part.q_rank)
        yield Weight("attention.q_up", part.q_rank * queries)
    yield from affine("attention.kv_down", hidden, part.kv_rank + part.rope_dim, spec.attention.bias)
    yield _norm(spec, "attention.kv_norm", part.kv_rank)
    yield Weight("attention.kv_up", part.kv_rank * heads * (part.nope_dim + part.value_dim))
    yield from affine("attention.o", heads * part.value_dim, hidden, spec.has_output_bias)


def _feedforward(spec: TransformerSpec, layer: int) -> Iterator[Weight]:
    if spec.has_experts(layer):
        yield from _experts(spec)
    if spec.feedforward_kind(layer) == "dense":
        yield from _dense(spec, "feedforward", spec.feedforward_size_of(layer), spec.feedforward.bias)


def _dense(spec: TransformerSpec, name: str, size: int, bias: bool, **fields: object) -> Iterator[Weight]:
    for part in ("gate", "up") if spec.feedforward.gated else ("up",):
        yield from affine(f"{name}.{part}", spec.hidden_size, size, bias, **fields)
    yield from affine(f"{name}.down", size, spec.hidden_size, bias, **fields)


def _experts(spec: TransformerSpec) -> Iterator[Weight]:
    part = spec.experts
    assert part is not None
    yield from affine("router", spec.hidden_size, part.count, part.router_bias)
    if part.router_scales:
        yield Weight("router.scale", spec.hidden_size, "vector")
        yield Weight("router.expert_scale", part.count, "vector")
    for name in ("norm", "after_norm", "dense_after_norm") if part.beside else ():
        yield _norm(spec, f"beside.{name}")
    yield from _dense(spec, "experts", part.feedforward_size, part.bias, copies=part.count, used=part.per_token)
    if part.shared_size:
        yield from _dense(spec, "shared", part.shared_size, spec.feedforward.bias)
    if part.shared_gate:
        yield Weight("shared_gate", spec.hidden_size)
