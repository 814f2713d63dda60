"""Every weight that a spec implies, as a list: what it is, how often stored, what passes through it; how many
parameters that is, and what training keeps beside them. Parameters, operations and bytes are all sums over this list,
so they cannot disagree. Checked against built models.

AdamW: two float32 moments (1711.05101), and a float32 master copy where the weights themselves are shorter. 8-bit
AdamW: its moments in 8 bits with a float32 scale for 256 values (2110.02861). Muon
(https://kellerjordan.github.io/posts/muon): one float32 momentum for matrices inside the blocks, AdamW for tables,
head, routers and vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

from bedplate.models import specs
from bedplate.models.specs.parts import DeltaRule, Mamba2, ShortConvolution

Role = Literal["product", "table", "vector"]
Per = Literal["token", "row", "source", "input", "sequence"]


@dataclass(frozen=True)
class Weight:
    """`copies` stored tensors of `size` values each, of which one token passes `used`.

    role: "product": of a matrix product, 2 operations a value and token; "table": looked up; "vector": norms, biases
    and the like. copies is the number of experts, or 0 where the weight is another's (a tied head). layer: None outside
    the blocks. per: what passes through a product: each token, each row that the head is asked for, each token of the
    source (keys and values of cross-attention), each frame or patch of a stem's input, or a whole sequence once.
    features: inputs and outputs of a linear map, which an adapter may be put on; 0 of anything else.
    """

    name: str
    size: int
    role: Role = "product"
    layer: int | None = None
    copies: int = 1
    used: int = 1
    per: Per = "token"
    features: int = 0

    @property
    def stored(self) -> int:
        """Values kept."""
        return self.size * self.copies

    @property
    def passed(self) -> int:
        """Values that one token (row, source token, …) is multiplied by."""
        return self.size * self.used if self.role == "product" else 0


def affine(name: str, inputs: int, outputs: int, bias: bool = False, **fields: object) -> Iterator[Weight]:
    """A linear map, with its bias."""
    yield replace(Weight(name, inputs * outputs, features=inputs + outputs), **fields)
    if bias:
        yield replace(Weight(f"{name}.bias", outputs, "vector"), **fields)


def _norm(spec: specs.TransformerSpec, name: str, size: int | None = None) -> Weight:
    parts = spec.norm.weight + (spec.norm.type == "layer" and spec.norm.bias)
    return Weight(name, (size or spec.hidden_size) * parts, "vector")


@lru_cache(maxsize=256)
def stack_weights(spec: specs.TransformerSpec) -> tuple[Weight, ...]:
    """All weights of a stack of blocks, with its tables and its head."""
    blocks = (replace(weight, layer=layer) for layer in range(spec.layers) for weight in _block(spec, layer))
    return (*_tables(spec), *blocks, *_ends(spec), *_prediction(spec))


def _tables(spec: specs.TransformerSpec) -> Iterator[Weight]:
    hidden, attention = spec.hidden_size, spec.attention
    rows = {"embedding": spec.vocab_size, "positions": spec.positions, "token_types": spec.token_types}
    yield from (Weight(name, count * hidden, "table") for name, count in rows.items() if count)
    if spec.layer_input_size:
        stacked_size = spec.layers * spec.layer_input_size
        yield Weight("layer_inputs", spec.vocab_size * stacked_size, "table")
        yield Weight("layer_inputs.projection", hidden * stacked_size)
        yield _norm(spec, "layer_inputs.norm", spec.layer_input_size)
    if attention.value_tables:
        size, copies = spec.vocab_size * attention.kv_heads * attention.head_dim, attention.value_tables
        yield Weight("value_tables", size, "table", copies=copies, used=copies)
    if spec.position.relative_bias is not None:
        yield Weight("relative_bias", spec.position.relative_bias.buckets * attention.heads, "vector")
    if spec.norms_embedding:
        yield _norm(spec, "embedding_norm")


def _ends(spec: specs.TransformerSpec) -> Iterator[Weight]:
    hidden, masked, classifier = spec.hidden_size, spec.masked_head, spec.classifier
    if spec.norms_output:
        yield _norm(spec, "norm")
    if spec.kind == "decoder":
        yield Weight("head", hidden * spec.vocab_size, copies=0 if spec.tied_head else 1, per="row")
    if spec.pooler:
        yield from affine("pooler", hidden, hidden, True, per="sequence")
    if masked is not None:
        yield from affine("masked_head.dense", hidden, hidden, masked.dense_bias, per="row")
        yield _norm(spec, "masked_head.norm")
        yield Weight("masked_head.out", hidden * spec.vocab_size, copies=0, per="row")
        if masked.bias:
            yield Weight("masked_head.bias", spec.vocab_size, "vector", per="row")
    if classifier is not None:
        if classifier.dense:
            yield from affine("classifier.dense", hidden, hidden, classifier.dense_bias, per="sequence")
        if classifier.norm:
            yield _norm(spec, "classifier.norm")
        yield from affine("classifier.out", hidden, len(classifier.labels), True, per="sequence")


def _prediction(spec: specs.TransformerSpec) -> Iterator[Weight]:
    """DeepSeek-V3's modules: the state and the next token's embedding, each normalised, side by side to `hidden`."""
    hidden = spec.hidden_size
    for module in range(spec.prediction_modules):
        weights = [_norm(spec, name) for name in ("state_norm", "token_norm", "norm")]
        weights += [Weight("join", 2 * hidden * hidden), Weight("head", hidden * spec.vocab_size, copies=0, per="row")]
        for weight in (*weights, *_block(spec, spec.layers - 1)):
            yield replace(weight, name=f"prediction.{weight.name}", layer=spec.layers + module)


def _block(spec: specs.TransformerSpec, layer: int) -> Iterator[Weight]:
    """One block's weights: norms, what mixes tokens, the feed-forward, and what each layer is given."""
    crosses, sandwich = spec.attention.cross_size is not None, spec.norm.placement == "sandwich"
    for part in ("attention", *(("cross",) if crosses else ()), "feedforward"):
        if layer or spec.norm.first or part != "attention" or sandwich:
            yield _norm(spec, f"{part}_norm")
        if sandwich:
            yield _norm(spec, f"{part}_after_norm")
    yield from _attention(spec, layer) if attends(spec, layer) else _state_mixer(spec)
    if spec.has_experts(layer):
        yield from _experts(spec)
    if spec.feedforward_kind(layer) == "dense":
        yield from _dense(spec, "feedforward", spec.feedforward_size_of(layer), spec.feedforward.bias)
    if spec.layer_input_size:
        yield from affine("layer_input.gate", spec.hidden_size, spec.layer_input_size)
        yield from affine("layer_input.down", spec.layer_input_size, spec.hidden_size)
        yield _norm(spec, "layer_input_norm")


def attends(spec: specs.TransformerSpec, layer: int) -> bool:
    """Whether a layer has attention, which sees every token by itself."""
    return spec.mixer(layer) in ("attention", "latent")


def _attention(spec: specs.TransformerSpec, layer: int) -> Iterator[Weight]:
    part, size, hidden = spec.attention, spec.head_dim_of(layer), spec.hidden_size
    q, kv = part.heads * size, spec.kv_heads_of(layer) * size
    has_keys = spec.keys_of(layer) == layer
    if part.latent is not None:
        yield from _latent(spec)
    else:
        yield from affine("attention.q", hidden, q * (1 + part.gate), part.bias)
        if has_keys:
            yield from affine("attention.k", hidden, kv, spec.has_key_bias)
        if has_keys and not spec.keys_are_values(layer):
            yield from affine("attention.v", hidden, kv, part.bias)
        yield from affine("attention.o", q, hidden, spec.has_output_bias)
    if part.qk_norm is not None:
        whole = part.qk_norm == "projection"
        yield _norm(spec, "attention.q_norm", q if whole else size)
        if has_keys:
            yield _norm(spec, "attention.k_norm", kv if whole else size)
    if spec.position.relative_projection:
        yield Weight("attention.relative", hidden * q)
        yield Weight("attention.relative.bias", 2 * q, "vector")
    if part.sinks:
        yield Weight("attention.sinks", part.heads, "vector")
    if part.cross_size is not None:
        yield from affine("cross.q", hidden, q, part.bias)
        yield from affine("cross.k", part.cross_size, kv, spec.has_key_bias, per="source")
        yield from affine("cross.v", part.cross_size, kv, part.bias, per="source")
        yield from affine("cross.o", q, hidden, spec.has_output_bias)


def _latent(spec: specs.TransformerSpec) -> Iterator[Weight]:
    part, hidden, heads, bias = spec.attention.latent, spec.hidden_size, spec.attention.heads, spec.attention.bias
    assert part is not None
    queries = heads * part.key_dim
    if part.q_rank is None:
        yield from affine("attention.q", hidden, queries)
    else:
        yield from affine("attention.q_down", hidden, part.q_rank, bias)
        yield _norm(spec, "attention.q_norm", part.q_rank)
        yield from affine("attention.q_up", part.q_rank, queries)
    yield from affine("attention.kv_down", hidden, part.kv_rank + part.rope_dim, bias)
    yield _norm(spec, "attention.kv_norm", part.kv_rank)
    yield from affine("attention.kv_up", part.kv_rank, heads * (part.nope_dim + part.value_dim))
    yield from affine("attention.o", heads * part.value_dim, hidden, spec.has_output_bias)


def _dense(spec: specs.TransformerSpec, name: str, size: int, bias: bool, **fields: object) -> Iterator[Weight]:
    for part in ("gate", "up") if spec.feedforward.gated else ("up",):
        yield from affine(f"{name}.{part}", spec.hidden_size, size, bias, **fields)
    yield from affine(f"{name}.down", size, spec.hidden_size, bias, **fields)


def _experts(spec: specs.TransformerSpec) -> Iterator[Weight]:
    """Routed experts are no linear maps that adapters are put on; nor are routers and gates."""
    part, hidden = spec.experts, spec.hidden_size
    assert part is not None
    yield from affine("router", hidden, part.count, part.router_bias, features=0)
    if part.router_scales:
        yield Weight("router.scale", hidden, "vector")
        yield Weight("router.expert_scale", part.count, "vector")
    for name in ("norm", "after_norm", "dense_after_norm") if part.beside else ():
        yield _norm(spec, f"beside.{name}")
    routed: dict[str, object] = {"copies": part.count, "used": part.per_token, "features": 0}
    yield from _dense(spec, "experts", part.feedforward_size, part.bias, **routed)
    if part.shared_size:
        yield from _dense(spec, "shared", part.shared_size, spec.feedforward.bias)
    if part.shared_gate:
        yield Weight("shared_gate", hidden)


# --- layers that keep a state in the place of attention


def _state_mixer(spec: specs.TransformerSpec) -> Iterator[Weight]:
    part, hidden = spec.state.mixer, spec.hidden_size
    vectors: dict[str, int] = {}
    if isinstance(part, ShortConvolution):
        yield from affine("attention.input", hidden, 3 * hidden, part.bias)
        yield from affine("attention.output", hidden, hidden, part.bias)
        vectors = {"convolution": hidden * (part.width + part.bias)}
    elif isinstance(part, DeltaRule):
        inner = part.heads * part.value_dim
        for name, size in {"qkv": part.channels, "gate": inner, "rate": part.heads, "step": part.heads}.items():
            yield from affine(f"attention.{name}", hidden, size)
        yield from affine("attention.output", inner, hidden)
        vectors = {"convolution": part.channels * part.width, "decay": 2 * part.heads, "norm": part.value_dim}
    elif isinstance(part, Mamba2):
        yield from affine("attention.input", hidden, part.inner + part.channels + part.heads, part.bias)
        yield from affine("attention.output", part.inner, hidden, part.bias)
        convolution = part.channels * (part.width + part.convolution_bias)
        vectors = {"convolution": convolution, "decay": 3 * part.heads, "norm": part.inner}
    yield from (Weight(f"attention.{name}", size, "vector") for name, size in vectors.items())


def recurrent_flops(spec: specs.TransformerSpec) -> int:
    """Operations of one token in one layer, beside its linear maps, as the recurrence's formula stands: what is written
    into a head's matrix and what is read of it, 2 operations a value each, and once more for the delta rule, which
    reads before it writes. Chunked forms do more."""
    part = spec.state.mixer
    if isinstance(part, DeltaRule):
        return 6 * part.heads * part.key_dim * part.value_dim
    return 4 * part.inner * part.state_dim if isinstance(part, Mamba2) else 0


def state_values(spec: specs.TransformerSpec) -> int:
    """Values of one token that a layer keeps for its gradients: what goes into its linear maps and comes out of them,
    and what goes into the convolution's activation; the recurrence is computed again."""
    return sum(weight.features for weight in _state_mixer(spec))


# --- what surrounds or replaces a language model: stems, towers, projectors, diffusion transformers


def _affines(maps: Iterable[tuple[str, int, int]], **fields: object) -> Iterator[Weight]:
    """Linear maps with biases."""
    for name, inputs, outputs in maps:
        yield from affine(name, inputs, outputs, True, **fields)


@lru_cache(maxsize=64)
def audio_weights(spec: specs.AudioSpec) -> tuple[Weight, ...]:
    """A stem of two convolutions with biases, and the tower."""
    hidden = spec.tower.hidden_size
    first = affine("stem.0", spec.kernel * spec.mel_bins, hidden, True, per="input")
    return (*first, *affine("stem.1", spec.kernel * hidden, hidden, True), *stack_weights(spec.tower))


@lru_cache(maxsize=64)
def vision_weights(spec: specs.VisionSpec) -> tuple[Weight, ...]:
    """The patches' projection, the class token, the tower, and what makes one vector of it."""
    tower, hidden = spec.tower, spec.tower.hidden_size
    pixels, size = spec.patch_size**2 * spec.channels * spec.frames, tower.feedforward.size
    weights = [*affine("stem", pixels, hidden, spec.patch_bias, per="input"), *stack_weights(tower)]
    if spec.class_token:
        weights.append(Weight("class_token", hidden, "vector"))
    if spec.pooling == "linear":
        weights += affine("pooling", hidden, hidden, True, per="sequence")
    if spec.pooling == "map":
        weights += [Weight("pooling.query", hidden, "vector"), Weight("pooling.norm", 2 * hidden, "vector")]
        weights += affine("pooling.kv", hidden, 2 * hidden, True)
        maps = (("qo", hidden, 2 * hidden), ("up", hidden, size), ("down", size, hidden))
        weights += _affines(maps, per="sequence")
    if spec.projection_size:
        weights.append(Weight("projection", hidden * spec.projection_size, per="sequence"))
    if spec.classes:
        weights += affine("classes", hidden, spec.classes, True, per="sequence")
    return tuple(weights)


@lru_cache(maxsize=64)
def projector_weights(spec: specs.MultimodalSpec) -> tuple[Weight, ...]:
    """From the tower's states to the language model; its tokens are those that the language model sees."""
    part, tower = spec.projector, spec.vision.tower.hidden_size
    inner = () if part.hidden_size is None else (part.hidden_size,)
    sizes = pairwise((tower * part.merge**2, *inner, spec.language.hidden_size))
    weights = [weight for sides in sizes for weight in affine("projector", *sides, part.bias)]
    if part.norm is not None:
        weights.append(Weight("projector.norm", tower * (2 if part.norm == "layer" else 1), "vector"))
    return tuple(weights)


@lru_cache(maxsize=64)
def diffusion_weights(spec: specs.DiffusionSpec) -> tuple[Weight, ...]:
    """DiT, or MMDiT where there is text. Norms have no weights: the modulation gives them scale and shift."""
    hidden, text = spec.hidden_size, spec.text
    patch = spec.patch_size**2
    maps = (("stem", patch * spec.latent_channels, hidden), ("end", hidden, patch * spec.out_channels))
    once = [("timestep.up", spec.timestep_size, hidden), ("timestep.down", hidden, hidden)]
    once += [("end.modulation", hidden, 2 * hidden)]
    weights: list[Weight] = [*_affines(maps)]
    if spec.classes:
        weights.append(Weight("classes", spec.classes * hidden, "table"))
    if text is not None:
        once += [("pooled.up", text.pooled_size, hidden), ("pooled.down", hidden, hidden)]
        weights += affine("context", text.size, hidden, True, per="source")
    weights += _affines(once, per="sequence")
    for layer in range(spec.layers):
        block = [*_dit_stream(spec, "token", True)]
        if text is not None:
            # After the last block nobody reads the text's states: there it has queries, keys and values, and no more.
            block += _dit_stream(spec, "source", layer < spec.layers - 1)
        weights += [replace(weight, layer=layer) for weight in block]
    return tuple(weights)


def _dit_stream(spec: specs.DiffusionSpec, per: Per, goes_on: bool) -> Iterator[Weight]:
    """One stream's weights in a block."""
    hidden, size = spec.hidden_size, spec.feedforward_size
    yield from affine("modulation", hidden, (6 if goes_on else 2) * hidden, True, per="sequence")
    yield from affine("qkv", hidden, 3 * hidden, True, per=per)
    if spec.qk_norm is not None:
        yield Weight("qk_norm", 2 * spec.head_dim, "vector")
    if goes_on:
        yield from _affines((("o", hidden, hidden), ("up", hidden, size), ("down", size, hidden)), per=per)


@dataclass(frozen=True)
class Parameters:
    """Counts of values.

    total: all of them, tied ones once. active: without the experts that a token does not pass. embedding: token,
    position and type tables; a tied table is counted here. products: those in matrix products that one token passes,
    the output head's among them whether tied or not. head: the head's share of `products`.

    An encoder–decoder's products are those of both sides: a token of the source passes one, a token of the target the
    other. A multimodal model's are its language model's; its towers are priced by the image.
    """

    total: int
    active: int
    embedding: int
    products: int
    head: int


def weights(spec: specs.Spec) -> tuple[Weight, ...]:
    """Every weight of the model, towers included."""
    if isinstance(spec, specs.TransformerSpec):
        return stack_weights(spec)
    if isinstance(spec, specs.EncoderDecoderSpec):
        source = weights(spec.encoder)
        if spec.shared_embedding:
            source = tuple(weight for weight in source if weight.name != "embedding")
        return (*source, *stack_weights(spec.decoder))
    if isinstance(spec, specs.AudioSpec):
        return audio_weights(spec)
    if isinstance(spec, specs.VisionSpec):
        return vision_weights(spec)
    if isinstance(spec, specs.DiffusionSpec):
        return diffusion_weights(spec)
    return (*vision_weights(spec.vision), *projector_weights(spec), *stack_weights(spec.language))


@lru_cache(maxsize=256)
def parameters(spec: specs.Spec) -> Parameters:
    all_weights = weights(spec)
    passed = stack_weights(spec.language) if isinstance(spec, specs.MultimodalSpec) else all_weights
    unused = sum(weight.size * max(0, weight.copies - weight.used) for weight in all_weights)
    return Parameters(
        total=total(all_weights),
        active=total(all_weights) - unused,
        embedding=total(weight for weight in all_weights if weight.role == "table"),
        products=sum(weight.passed for weight in passed),
        head=sum(weight.passed for weight in passed if weight.name in ("head", "prediction.head")),
    )


def total(weight_rows: Iterable[Weight]) -> int:
    """Values that are stored."""
    return sum(weight.stored for weight in weight_rows)


Optimizer = Literal["adamw", "adamw_8bit", "muon", "sgd"]


class OptimizerStateBytes(NamedTuple):
    """Bytes of states a parameter: of matrices inside the blocks, and of all other parameters."""

    matrices: float
    non_matrices: float


OPTIMIZERS: dict[Optimizer, OptimizerStateBytes] = {
    "adamw": OptimizerStateBytes(8.0, 8.0),
    "adamw_8bit": OptimizerStateBytes(2 * (1 + 4 / 256), 2 * (1 + 4 / 256)),
    "muon": OptimizerStateBytes(4.0, 8.0),
    "sgd": OptimizerStateBytes(0.0, 0.0),
}
_NO_MATRICES = ("router", "prediction.router", "prediction.join")


def is_block_matrix(weight: Weight) -> bool:
    """Whether it is a linear inside of a block, which is what Muon moves: a router, and what joins a state with the
    next token's embedding before a block that predicts further tokens, are not."""
    return weight.role == "product" and weight.layer is not None and weight.name not in _NO_MATRICES


def optimizer_bytes(spec: specs.Spec, optimizer: Optimizer = "adamw", *, master: bool = True) -> float:
    """Bytes of the optimizer's states. master: with the float32 copy that weights of 16 bits need."""
    state_bytes, all_weights = OPTIMIZERS[optimizer], weights(spec)
    matrices = total(weight for weight in all_weights if is_block_matrix(weight))
    states = matrices * state_bytes.matrices + (total(all_weights) - matrices) * state_bytes.non_matrices
    return states + (4.0 * total(all_weights) if master else 0.0)
