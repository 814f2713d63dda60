"""Quantised blocks against the gguf package's own arithmetic."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import tiny_spec
from torch import Tensor

from bedplate.core.errors import UsageError
from bedplate.inference.native.quantize import quantise_int4, quantise_int8
from bedplate.models.checkpoints.gguf import GgufReader, StoredBlocks, write_gguf
from bedplate.models.families import FAMILIES
from bedplate.models.specs.transformer import Experts


def matrix(rows: int = 64, columns: int = 96, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def error(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).norm() / reference.norm())


def by_gguf(x: Tensor, ggml_type: str) -> Tensor:
    chosen = gguf.GGMLQuantizationType[ggml_type]
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(x.numpy(), chosen), chosen))


def test_eight_bits_are_as_good_as_q8_0() -> None:
    x = matrix()
    assert error(quantise_int8(x).dequantised(), x) <= error(by_gguf(x, "Q8_0"), x) * 1.01 < 0.01


def test_four_bits_are_better_than_q4_1() -> None:
    x = matrix()
    ours, theirs = error(quantise_int4(x).dequantised(), x), error(by_gguf(x, "Q4_1"), x)
    assert ours < 0.97 * theirs
    assert theirs < 0.1


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-2, 1.0, 300.0]), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_no_value_is_further_than_a_step(seed: int, size: float, shift: float) -> None:
    x = (matrix(4, 64, seed) + shift) * size
    eight, four = quantise_int8(x), quantise_int4(x)
    assert int(eight.data[..., 2:].view(torch.int8).abs().max()) <= 127
    blocks = x.view(4, 2, 32)
    step = blocks.abs().amax(2) / 127
    assert bool(((eight.dequantised() - x).view(4, 2, 32).abs().amax(2) <= step * 0.6).all())
    span = blocks.amax(2) - blocks.amin(2)
    # The search may give up the ends of the range for the middle, never more than a fifth of it.
    assert bool(((four.dequantised() - x).view(4, 2, 32).abs().amax(2) <= span * 0.2 + 1e-2 * size).all())


def test_constant_blocks_and_zeros_are_exact() -> None:
    x = torch.zeros(2, 64)
    x[1] = 0.5
    assert torch.equal(quantise_int4(x).dequantised(), x)
    assert torch.equal(quantise_int8(torch.zeros(2, 64)).dequantised(), torch.zeros(2, 64))


def test_rows_must_divide_into_blocks() -> None:
    for quantise in (quantise_int4, quantise_int8):
        with pytest.raises(UsageError, match="rows of 40"):
            quantise(matrix(2, 40))


@pytest.mark.parametrize("ggml_type", ["q4_0", "q4_1", "q8_0"])
def test_blocks_of_a_file_are_taken_as_they_are(tmp_path: Path, ggml_type: str) -> None:
    family = FAMILIES["gguf", "llama"]
    path = tmp_path / "x.gguf"
    names = ("layers.0.attention.q.weight", "layers.0.attention.k.weight", "layers.0.feedforward.up.weight")
    tensors = {family.weights.to_external(name) or "": matrix(64, 96, i) for i, name in enumerate(names)}
    write_gguf(path, "llama", {}, (tensors | {"output_norm.weight": torch.ones(96)}).items(), ggml_type)
    reader, blocks = GgufReader(path), StoredBlocks(GgufReader(path), family.weights, tiny_spec(heads=4))
    assert sorted(blocks) == sorted(names)
    for name, heads in zip(names, (4, 2, 0), strict=True):
        expected = reader.get(family.weights.to_external(name) or "")
        if heads:  # interleaved pairs to half-split, row by row
            half = 64 // heads // 2
            order = [h * 2 * half + 2 * (i % half) + i // half for h in range(heads) for i in range(2 * half)]
            expected = expected[order]
        assert blocks[name].bits == int(ggml_type[1])
        np.testing.assert_allclose(blocks[name].dequantised(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("ggml_type", ["q4_0", "q8_0"])
def test_experts_of_a_file_are_taken_as_they_are(tmp_path: Path, ggml_type: str) -> None:
    """Of each the gates on top of the rest, which the file has in another tensor."""
    family, prefix = FAMILIES["gguf", "olmoe"], "layers.0.feedforward.experts"
    spec = tiny_spec(heads=4, kv_heads=4, layers=1, experts=Experts(4, 2, 32))
    names = {"gate": (4, 32, 64), "up": (4, 32, 64), "down": (4, 64, 32)}
    tensors = {
        f"blk.0.ffn_{n}_exps.weight": matrix(s[0] * s[1], s[2], i).view(s) for i, (n, s) in enumerate(names.items())
    }
    write_gguf(tmp_path / "x.gguf", "olmoe", {}, tensors.items(), ggml_type)
    reader = GgufReader(tmp_path / "x.gguf")
    blocks = StoredBlocks(GgufReader(tmp_path / "x.gguf"), family.weights, spec)
    assert set(blocks) == {f"{prefix}.gate_up.weight", f"{prefix}.down.weight"}
    gate, up, down = map(reader.get, tensors)
    assert torch.equal(blocks[f"{prefix}.gate_up.weight"].dequantised(), torch.cat((gate, up), 1))
    assert torch.equal(blocks[f"{prefix}.down.weight"].dequantised(), down)
