"""Quantised blocks as they lie, against the gguf package: the same values, bit for bit."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from bedplate.models.checkpoints import gguf as our_gguf
from bedplate.models.checkpoints.gguf import GgufReader
from bedplate.models.gguf_header import TYPES

# type → where the half-precision numbers of a super-block lie
SCALE_OFFSETS = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "IQ4_NL": (0,),
    "MXFP4": (),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
ROWS, COLUMNS = 6, 768


def random_blocks(ggml_type: str, seed: int) -> np.ndarray:
    """Any bytes but in the scales, which are finite numbers of either sign."""
    rng = np.random.default_rng(seed)
    values, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[ggml_type]]
    raw = rng.integers(0, 256, (ROWS * COLUMNS // values, size), dtype=np.uint8)
    for at in SCALE_OFFSETS[ggml_type]:
        raw[:, at : at + 2] = rng.standard_normal(len(raw)).astype(np.float16).view(np.uint8).reshape(-1, 2)
    if ggml_type == "MXFP4":
        raw[:, 0] = rng.integers(100, 140, len(raw))
    return raw.reshape(ROWS, -1)


def write(path: Path, ggml_type: str, raw: np.ndarray) -> GgufReader:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("w", raw, raw_dtype=GGMLQuantizationType[ggml_type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufReader(path)


def test_types_are_the_packages() -> None:
    theirs = {ggml_type.name: (int(ggml_type), *sizes) for ggml_type, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {name: tuple(TYPES[name]) for name in theirs} == theirs
    assert len({entry.number for entry in TYPES.values()}) == len(TYPES)


@pytest.mark.parametrize("ggml_type", SCALE_OFFSETS)
def test_blocks_have_the_packages_values(tmp_path: Path, ggml_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_blocks(ggml_type, 3)
    expected = gguf.quants.dequantize(raw, GGMLQuantizationType[ggml_type]).astype(np.float32)
    reader = write(tmp_path / "x.gguf", ggml_type, raw)
    blocks = reader.blocks("w")
    assert blocks is not None
    assert (blocks.ggml_type, blocks.shape) == (ggml_type, (ROWS, COLUMNS))
    np.testing.assert_array_equal(blocks.dequantised().numpy(), expected)
    order = torch.tensor([5, 0, 3, 1, 2, 4])
    np.testing.assert_array_equal(blocks.rows(order).dequantised().numpy(), expected[order.numpy()])
    monkeypatch.setattr(our_gguf, "_CHUNK", 2 * COLUMNS)  # three pieces, and one that is cut short
    np.testing.assert_array_equal(reader.get("w").numpy(), expected)


def test_float_matrices_have_no_blocks(tmp_path: Path) -> None:
    reader = write(tmp_path / "x.gguf", "F16", np.zeros((2, 32), np.float16))
    assert reader.blocks("w") is None


@pytest.mark.parametrize("ggml_type", ["F32", "F16", "BF16"])
def test_floats_have_the_packages_values(tmp_path: Path, ggml_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    values[0, :4] = np.inf, -0.0, 1e-40, 65504.0
    raw = gguf.quants.quantize(values, GGMLQuantizationType[ggml_type])
    expected = gguf.quants.dequantize(raw, GGMLQuantizationType[ggml_type]).astype(np.float32)
    reader = write(tmp_path / "x.gguf", ggml_type, raw)
    monkeypatch.setattr(our_gguf, "_CHUNK", 2 * COLUMNS)
    np.testing.assert_array_equal(reader.get("w").numpy(), expected)
    assert torch.equal(reader.get("w", torch.bfloat16), torch.from_numpy(expected).bfloat16())
