"""Checkpoints of GPTQ, AWQ and float8: the values that their publishers' programs compute with, written here word by
word as those programs lay them out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import write_tiny_base
from torch import Tensor

from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.models.checkpoints.base import load_base

GROUP = 8
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


def packed(values: np.ndarray[Any, Any], bits: int, columns: tuple[int, ...] | None = None) -> Tensor:
    """Rows of unsigned values into rows of int32 words, value by value."""
    per_word = 32 // bits
    rows, size = values.shape
    words = [[0] * (size // per_word) for _ in range(rows)]
    for row in range(rows):
        for at in range(size):
            word, place = divmod(at, per_word)
            source = word * per_word + (columns[place] if columns else place)
            words[row][word] |= int(values[row, source]) << (bits * place)
    return torch.from_numpy(np.array(words, dtype=np.uint32).view(np.int32))


def grid(outputs: int, inputs: int, bits: int, seed: int) -> tuple[np.ndarray[Any, Any], ...]:
    """q [I, O], zero [G, O] and scale [G, O]."""
    noise = np.random.default_rng(seed)
    groups = -(-inputs // GROUP)
    return (
        noise.integers(0, 2**bits, (inputs, outputs)),
        noise.integers(0, 2**bits, (groups, outputs)),
        noise.uniform(0.01, 0.05, (groups, outputs)).astype(np.float16),
    )


def gptq(outputs: int, inputs: int, bits: int, order: bool, layout: str) -> tuple[dict[str, Tensor], Tensor]:
    q, zero, scale = grid(outputs, inputs, bits, seed=outputs)
    index = np.arange(inputs) // GROUP
    if order:
        index = np.random.default_rng(3).permutation(index)
    stored = (zero - 1) % 2**bits if layout == "gptq" else zero
    parts = {
        "qweight": packed(q.T, bits).T.contiguous(),
        "qzeros": packed(stored, bits),
        "scales": torch.from_numpy(scale),
        "g_idx": torch.from_numpy(index.astype(np.int32)),
    }
    dequantized = (q - zero[index]).astype(np.float32) * scale[index].astype(np.float32)
    return parts, torch.from_numpy(dequantized.T.copy())


def awq(outputs: int, inputs: int) -> tuple[dict[str, Tensor], Tensor]:
    q, zero, scale = grid(outputs, inputs, 4, seed=inputs)
    index = np.arange(inputs) // GROUP
    parts = {
        "qweight": packed(q, 4, AWQ_COLUMNS),
        "qzeros": packed(zero, 4, AWQ_COLUMNS),
        "scales": torch.from_numpy(scale),
    }
    dequantized = (q - zero[index]).astype(np.float32) * scale[index].astype(np.float32)
    return parts, torch.from_numpy(dequantized.T.copy())


def float8(outputs: int, inputs: int) -> tuple[dict[str, Tensor], Tensor]:
    noise = torch.Generator().manual_seed(inputs)
    weight = torch.randn(outputs, inputs, generator=noise).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-outputs // 16), -(-inputs // 16), generator=noise) + 0.5
    dequantized = torch.stack(
        [torch.stack([weight[o, i].float() * scale[o // 16, i // 16] for i in range(inputs)]) for o in range(outputs)]
    )
    return {"weight": weight, "weight_scale_inv": scale}, dequantized


def quantise(directory: Path, pack: Callable[[int, int], tuple[dict[str, Tensor], Tensor]], config: Any) -> Any:
    """A tiny base whose attention outputs and down projections are packed; name → the values that they stand for."""
    path = directory / "model.safetensors"
    tensors, expected = load_file(path), dict[str, Tensor]()
    for name in list(tensors):
        stem = name.removesuffix(".weight")
        if stem.endswith(("o_proj", "down_proj")):
            parts, expected[name] = pack(*tensors.pop(name).shape)
            tensors |= {f"{stem}.{part}": value for part, value in parts.items()}
    save_file(tensors, path, {"format": "pt"})
    original = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(original | {"quantization_config": config}))
    return expected


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
FP8 = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic", "fmt": "e4m3"}
CASES: dict[str, tuple[Callable[[int, int], tuple[dict[str, Tensor], Tensor]], dict[str, Any]]] = {
    "gptq4": (lambda o, i: gptq(o, i, 4, False, "gptq"), GPTQ),
    "gptq8 reordered": (lambda o, i: gptq(o, i, 8, True, "gptq"), GPTQ | {"bits": 8, "desc_act": True}),
    "gptq2": (lambda o, i: gptq(o, i, 2, False, "gptq_v2"), GPTQ | {"bits": 2, "checkpoint_format": "gptq_v2"}),
    "awq": (awq, AWQ),
    "fp8": (float8, FP8),
}


@pytest.mark.parametrize("case", CASES)
def test_packed_matrices_are_read_as_the_values_they_stand_for(tmp_path: Path, case: str) -> None:
    pack, config = CASES[case]
    directory = write_tiny_base(tmp_path / "a", dtype=torch.float32)
    expected = quantise(directory, pack, config)
    base = load_base(directory)
    ours = dict(base.model.named_parameters())
    assert len(expected) == 2 * base.spec.layers
    for name, value in expected.items():
        our_name = base.family.weights.from_external(name)
        assert our_name is not None
        assert torch.equal(ours[our_name], value)


def test_what_is_not_understood_is_refused_by_name(tmp_path: Path) -> None:
    directory = write_tiny_base(tmp_path / "a", dtype=torch.float32)
    plain = json.loads((directory / "config.json").read_text())
    for config, message in (
        ({"quant_method": "hqq"}, "'hqq'"),
        (GPTQ | {"bits": 3}, "bits = 3"),
        (GPTQ | {"rotation": "hadamard"}, "'rotation'"),
        (AWQ | {"version": "gemv"}, "version = 'gemv'"),
        (FP8 | {"fmt": "e5m2"}, "fmt = 'e5m2'"),
    ):
        (directory / "config.json").write_text(json.dumps(plain | {"quantization_config": config}))
        with pytest.raises(UnsupportedModelError, match=message):
            load_base(directory)


@pytest.mark.parametrize("config", [[1], "awq", AWQ | {"group_size": "many"}, FP8 | {"weight_block_size": 16}])
def test_a_damaged_description_is_one_clear_line(tmp_path: Path, config: object) -> None:
    directory = write_tiny_base(tmp_path / "a", dtype=torch.float32)
    original = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(original | {"quantization_config": config}))
    with pytest.raises(CheckpointError, match="quantization_config"):
        load_base(directory)


def test_a_group_below_the_first_is_refused(tmp_path: Path) -> None:
    directory = write_tiny_base(tmp_path / "a", dtype=torch.float32)
    quantise(directory, lambda o, i: gptq(o, i, 4, False, "gptq"), GPTQ)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("o_proj.g_idx"))
    save_file(tensors | {name: tensors[name] - 1}, path)
    with pytest.raises(CheckpointError, match="g_idx must name one of"):
        load_base(directory)


def test_parts_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    directory = write_tiny_base(tmp_path / "a", dtype=torch.float32)
    quantise(directory, lambda o, i: gptq(o, i, 4, False, "gptq"), GPTQ)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("o_proj.scales"))
    save_file(tensors | {name: tensors[name][:, :-8].contiguous()}, path)
    with pytest.raises(CheckpointError, match=r"o_proj\.scales \[6, 40\].* do not make one matrix"):
        load_base(directory)
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"o_proj\.scales' is missing"):
        load_base(directory)
