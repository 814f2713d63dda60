"""What the native kernel's tests share: models, their references in float32, caches, and ways to run a sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from tests.inference.native.native_specs import spec_of
from torch import Tensor

from bedplate.adapters.modules import block_linears
from bedplate.inference.native import library
from bedplate.inference.native.levels import LEVELS
from bedplate.inference.native.packed_weights import Forwarded, NativeDecoder, WeightFormat
from bedplate.inference.native.quantize import quantise_int4, quantise_int8
from bedplate.models.build import build
from bedplate.models.decoder import Decoder
from bedplate.models.inputs import Inputs
from bedplate.models.layers.block import Block
from bedplate.models.layers.experts import ExpertLinear, Router
from bedplate.models.layers.linear import Linear
from bedplate.models.model import Model
from bedplate.models.specs.position import LinearScaling, Llama3Scaling
from bedplate.models.specs.transformer import Rope, TransformerSpec

FORMATS: tuple[WeightFormat, ...] = ("float32", "bfloat16", "int8", "int4")


def other_formats(names: Iterable[str]) -> list[Any]:
    """Each name with each format but float32; one format of a name runs always, the others as slow tests."""
    return [
        pytest.param(name, weights, marks=() if place % 3 == number else pytest.mark.slow)
        for place, name in enumerate(names)
        for number, weights in enumerate(FORMATS[1:])
    ]


# Only activations are rounded differently from the reference: to 8 bits of mantissa, or to int8 by blocks, at every
# level alike. What is left in float32 are the order of sums, and e^x.
TOLERANCE = {"float32": 3e-6, "bfloat16": 0.012, "int8": 0.03, "int4": 0.03}

SPECS = {
    "grouped": spec_of(),
    "bias": spec_of(attention_bias=True, feedforward_bias=True, heads=2, kv_heads=1),
    "untied": spec_of(tied_head=False, head_dim=64, heads=3, kv_heads=3, vocab_size=1100),
    "narrow heads": spec_of(head_dim=16, heads=10, kv_heads=2, rope=Rope(10_000.0, LinearScaling(4.0))),
    "llama3": spec_of(head_dim=48, heads=2, kv_heads=2, rope=Rope(5e5, Llama3Scaling(8.0, 1.0, 4.0, 64))),
    "wide heads": spec_of(head_dim=128, heads=5, kv_heads=1, rope=None),
}


def supported_levels() -> tuple[str, ...]:
    """The levels that this processor runs."""
    levels = library.supported()
    return () if isinstance(levels, str) else levels


def is_quick(level: str) -> bool:
    """Whether the level is this processor's own. To compile each of the others takes half a minute and more; tests run
    on those in `make kernels`."""
    return level == next((name for name in supported_levels() if LEVELS[name].chosen), "plain")


def base_dtype(weights: WeightFormat) -> torch.dtype:
    return torch.float32 if weights == "float32" else torch.bfloat16


def random_decoder(spec: TransformerSpec, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Decoder:
    model = random_model(spec, seed, dtype)
    assert isinstance(model, Decoder)
    return model


def random_model(spec: TransformerSpec, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Model:
    """Its norms and biases random too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(spec)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or name.endswith("bias"):
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.to(dtype).eval().requires_grad_(False)


def in_float32(model: Decoder, weights: WeightFormat) -> Decoder:
    """The same model in float32, its weights rounded to what the format stores."""
    reference = build(model.spec)
    assert isinstance(reference, Decoder)
    reference.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    if weights in ("int8", "int4"):
        quantise = quantise_int8 if weights == "int8" else quantise_int4
        for linear in block_linears(reference).values():
            linear.weight.data = quantise(linear.weight.data).dequantised()
        for module in reference.modules():
            if isinstance(module, ExpertLinear):
                module.weight.data = quantise(module.weight.data.flatten(0, 1)).dequantised().view_as(module.weight)
        if reference.layer_inputs is not None:
            reference.layer_inputs.projection.weight.data = quantise_int8(
                reference.layer_inputs.projection.weight.data
            ).dequantised()
        if reference.lm_head is not None:
            reference.lm_head.weight.data = quantise_int8(reference.lm_head.weight.data).dequantised()
        else:  # the head is quantised, the embedding beside it is not
            head = Linear(model.spec.hidden_size, model.spec.vocab_size, dtype=torch.float32)
            head.weight.data = quantise_int8(reference.embedding.weight.data).dequantised()
            reference.lm_head = head
    return reference.eval().requires_grad_(False)


class Cache:
    def __init__(
        self, spec: TransformerSpec, rows: int = 4, capacity: int = 384, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        shapes = [(rows, spec.kv_heads_of(n), capacity, spec.head_dim_of(n)) for n in range(spec.layers)]
        owns_cache = [spec.keys_of(layer) == layer for layer in range(spec.layers)]
        # What earlier owners of a row left behind must not matter. Nothing is kept for layers that use another one's.
        self.keys, self.values = (
            [
                torch.full(shape if owned else (0,), value, dtype=dtype)
                for shape, owned in zip(shapes, owns_cache, strict=True)
            ]
            for value in (7.0, torch.nan)
        )

    def run(self, native: NativeDecoder, batch: Sequence[tuple[int, int, Sequence[int]]], **options: Any) -> Forwarded:
        """batch: (row, first position, tokens) …; every token's logits are wanted."""
        tokens = [t for _, _, part in batch for t in part]
        rows = [row for row, _, part in batch for _ in part]
        positions = [first + i for _, first, part in batch for i in range(len(part))]
        return native.forward(tokens, rows, positions, self.keys, self.values, range(len(tokens)), **options)


def some_tokens(count: int, spec: TransformerSpec, seed: int = 1) -> list[int]:
    return torch.randint(0, spec.vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def logits(out: Forwarded) -> Tensor:
    assert out.logits_WV is not None
    return out.logits_WV


def wanted_logits(model: Decoder, tokens: Sequence[int]) -> Tensor:
    return model.head(model(Inputs(torch.tensor([list(tokens)]))).hidden[0])


def relative(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).norm() / reference.norm())


COUNT = 290
PIECES = (1, 2, 130, 3, 16, 1, 1, 64, 5, 31, 36)


def perturbed_decoder(spec: TransformerSpec, dtype: torch.dtype = torch.float32) -> Decoder:
    """A model whose sinks, selection biases and blocks' scales differ, and whose attention looks somewhere; but with
    experts, of which a little more or less would swap the nearly even ones."""
    model = random_decoder(spec, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    for path, parameter in model.named_parameters():
        if path.endswith("sinks"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if spec.experts is None and path.endswith(("q.weight", "k.weight")):
            parameter.mul_(3.0)
    for module in model.modules():
        for factor in (module.scale, module.expert_scale) if isinstance(module, Router) else ():
            if factor is not None:
                factor.add_(torch.randn(factor.shape, generator=generator) * 0.3)
        if isinstance(module, Router) and module.selection_bias is not None:
            module.selection_bias.copy_(torch.randn(module.selection_bias.shape, generator=generator) * 0.1)
        if isinstance(module, Block) and module.output_scale is not None:
            module.output_scale.fill_(0.5 + torch.rand((), generator=generator))
    return model


def in_pieces(native: NativeDecoder, cache: Cache, tokens: list[int]) -> Tensor:
    parts: list[Tensor] = []
    position = 0
    for size in PIECES:
        batch = [(1, position, tokens[position : position + size]), (0, position // 9, tokens[:size])]
        parts.append(logits(cache.run(native, batch if size > 1 else batch[:1]))[:size])
        position += size
    assert position == len(tokens)
    return torch.cat(parts)


def whole_sequence(native: NativeDecoder, spec: TransformerSpec, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The logits of COUNT tokens in one call; the same bits come of them in pieces, beside another row."""
    tokens = some_tokens(COUNT, spec)
    whole = logits(Cache(spec, dtype=dtype).run(native, [(1, 0, tokens)]))
    assert torch.equal(in_pieces(native, Cache(spec, dtype=dtype), tokens), whole)
    return whole
