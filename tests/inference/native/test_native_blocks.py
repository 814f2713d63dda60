"""The blocks of GGUF files, as the kernel holds them: value for value what the gguf package says that they are."""

from __future__ import annotations

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType
from tests.inference.native.native_models import (
    COUNT,
    SPECS,
    Cache,
    in_float32,
    logits,
    perturbed_decoder,
    random_decoder,
    relative,
    some_tokens,
    wanted_logits,
    whole_sequence,
)
from tests.inference.native.native_specs import EXPERTS, spec_of
from torch import Tensor

from bedplate.adapters.modules import block_linears
from bedplate.inference.native.library import Library, load
from bedplate.inference.native.packed_weights import NativeDecoder
from bedplate.inference.native.quantize import SOURCES
from bedplate.models.checkpoints.gguf_blocks import RawBlocks
from bedplate.models.layers.experts import ExpertLinear

pytestmark = pytest.mark.skipif(isinstance(load(), str), reason=f"no native kernel here: {load()}")
SCALES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "IQ4_NL": (0,), "MXFP4": ()} | {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
"""Where the float16 numbers of a block stand."""


def random_blocks(block_type: str, out: int, size: int, seed: int = 0) -> RawBlocks:
    """Every bit is drawn, but scales, which are numbers near those of trained weights and of either sign."""
    generator = torch.Generator().manual_seed(seed)
    values, width = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[block_type]]
    data = torch.randint(0, 256, (out, size // values, width), generator=generator, dtype=torch.uint8)
    bits = 8 if block_type == "IQ4_NL" else RawBlocks(block_type, data).bits
    step = 0.05 / 2 ** (bits - 1) / (32 if block_type.endswith("K") else 1)
    for at in SCALES[block_type]:
        scale = torch.randn(out, size // values, 1, generator=generator) * step
        data[:, :, at : at + 2] = scale.half().view(torch.uint8)
    if block_type == "MXFP4":  # a power of two
        data[:, :, 0] = torch.randint(118, 123, data.shape[:2], generator=generator, dtype=torch.uint8)
    return RawBlocks(block_type, data)


def test_all_kinds_are_here() -> None:
    assert set(SCALES) == SOURCES


@pytest.mark.parametrize("block_type", SCALES)
def test_values_are_those_of_the_file(library: Library, block_type: str) -> None:
    """Blocks that add nothing leave a token's embedding, which picks one column of the head, scaled."""
    size = 512 if block_type.endswith("K") else 480  # the last of those that stand together need not be whole
    spec = spec_of(hidden_size=size, heads=2, kv_heads=1, vocab_size=size, layers=1, tied_head=False, norm_eps=0.0)
    model = random_decoder(spec, dtype=torch.float32)
    for linear in block_linears(model).values():
        linear.weight.zero_()
    dict(model.named_parameters())["norm.weight"].fill_(1.0)
    model.embedding.weight.copy_(torch.eye(size) * 3.0)
    blocks = random_blocks(block_type, size, size)
    native = NativeDecoder(model, "int4", blocks={"lm_head.weight": blocks}, threads=2, library=library)
    output = logits(Cache(spec, rows=1, capacity=size, dtype=torch.float32).run(native, [(0, 0, range(size))]))
    expected = blocks.dequantised()
    largest = float(expected.abs().max())
    torch.testing.assert_close(output.t() / size**0.5, expected, rtol=1e-6, atol=1e-6 * largest)
    short_output = logits(Cache(spec, rows=1, capacity=size, dtype=torch.float32).run(native, [(0, 0, range(3))]))
    assert torch.equal(short_output, output[:3])


@pytest.mark.parametrize("block_type", SCALES)
def test_a_model_of_such_blocks_is_the_torch_model(library: Library, block_type: str) -> None:
    spec = spec_of(hidden_size=256, heads=4, kv_heads=1, head_dim=64, feedforward_size=512)
    model = random_decoder(spec, dtype=torch.float32)
    blocks: dict[str, RawBlocks] = {}
    for i, (path, linear) in enumerate(block_linears(model).items()):
        name = f"{path}.weight"
        blocks[name] = random_blocks(block_type, linear.out_features, linear.in_features, i)
        linear.weight.data = blocks[name].dequantised()
    reference = in_float32(model, "float32")
    reference.lm_head = in_float32(model, "int8").lm_head
    native = NativeDecoder(model, "int4", blocks=blocks, threads=2, library=library)
    tokens = list(range(70))
    output: Tensor = logits(Cache(spec, dtype=torch.float32).run(native, [(1, 0, tokens)]))
    assert relative(output, wanted_logits(reference, tokens)) < 0.03
    parts, cache = list[Tensor](), Cache(spec, dtype=torch.float32)
    for begin, size in ((0, 1), (1, 2), (3, 40), (43, 27)):
        parts.append(logits(cache.run(native, [(0, begin, tokens[begin : begin + size])])))
    assert torch.equal(torch.cat(parts), output)


@pytest.mark.parametrize("block_type", ["Q4_0", "MXFP4"])
def test_experts_of_such_blocks_are_the_torch_models(library: Library, block_type: str) -> None:
    """But for tokens whose nearly even experts rounding swaps."""
    model = perturbed_decoder(EXPERTS["softmax"])
    blocks: dict[str, RawBlocks] = {}
    for path, module in model.named_modules():
        if isinstance(module, ExpertLinear):
            count, out, size = module.weight.shape
            drawn = random_blocks(block_type, count * out, size, len(blocks))
            blocks[f"{path}.weight"] = RawBlocks(block_type, drawn.data.unflatten(0, (count, out)))
            module.weight.data = blocks[f"{path}.weight"].dequantised()
    assert len(blocks) == 4
    native = NativeDecoder(model, "int4", blocks=blocks, threads=2, library=library)
    whole = whole_sequence(native, EXPERTS["softmax"], torch.float32)
    reference = in_float32(model, "int4")
    for path, module in reference.named_modules():
        if isinstance(module, ExpertLinear):
            module.weight.data = blocks[f"{path}.weight"].dequantised()
    expected = wanted_logits(reference, some_tokens(COUNT, EXPERTS["softmax"]))
    assert ((whole - expected).norm(dim=1) / expected.norm(dim=1)).median() < 0.05


def test_eight_bits_take_only_blocks_of_eight() -> None:
    model = random_decoder(SPECS["grouped"])
    name = "layers.0.attention.q.weight"
    decoders = {
        block_type: NativeDecoder(model, "int8", blocks={name: random_blocks(block_type, 192, 96)})
        for block_type in ("Q4_0", "Q8_0")
    }
    assert decoders["Q4_0"].weight_bytes == decoders["Q8_0"].weight_bytes
    outs = [logits(Cache(SPECS["grouped"]).run(decoder, [(0, 0, [1, 2, 3])])) for decoder in decoders.values()]
    assert torch.equal(outs[0], logits(Cache(SPECS["grouped"]).run(NativeDecoder(model, "int8"), [(0, 0, [1, 2, 3])])))
    assert not torch.equal(outs[0], outs[1])
