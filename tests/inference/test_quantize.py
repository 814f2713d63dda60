"""Quantised blocks against the gguf package's own arithmetic, and the calibration that chooses between formats."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import write_tiny_base
from torch import Tensor

from bedplate.core.errors import UsageError
from bedplate.inference import calibrate, compiled
from bedplate.inference.calibrate import COUNTS, Calibration, calibrated
from bedplate.inference.engine import Engine
from bedplate.inference.native.library import load
from bedplate.inference.quantize import dequantise, quantise_int4, quantise_int8
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.export import export_gguf
from bedplate.models.checkpoints.gguf import GgufReader, read_blocks, write_gguf
from bedplate.models.families import FAMILIES

COUNTED = ("torch", "bfloat16", "int8", "int4")
native_only = pytest.mark.skipif(isinstance(load(), str), reason=f"no native kernel here: {load()}")


def matrix(rows: int = 64, columns: int = 96, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def error(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).norm() / reference.norm())


def by_gguf(x: Tensor, kind: str) -> Tensor:
    chosen = gguf.GGMLQuantizationType[kind]
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(x.numpy(), chosen), chosen))


def test_eight_bits_are_as_good_as_q8_0() -> None:
    x = matrix()
    assert error(dequantise(quantise_int8(x)), x) <= error(by_gguf(x, "Q8_0"), x) * 1.01 < 0.01


def test_four_bits_are_better_than_q4_1() -> None:
    x = matrix()
    ours, theirs = error(dequantise(quantise_int4(x)), x), error(by_gguf(x, "Q4_1"), x)
    assert ours < 0.97 * theirs
    assert theirs < 0.1


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-2, 1.0, 300.0]), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_no_value_is_further_than_a_step(seed: int, size: float, shift: float) -> None:
    x = (matrix(4, 64, seed) + shift) * size
    eight, four = quantise_int8(x), quantise_int4(x)
    assert int(eight.quants.abs().max()) <= 127
    blocks = x.view(4, 2, 32)
    step = blocks.abs().amax(2) / 127
    assert bool(((dequantise(eight) - x).view(4, 2, 32).abs().amax(2) <= step * 0.6).all())
    span = blocks.amax(2) - blocks.amin(2)
    # The search may give up the ends of the range for the middle, never more than a fifth of it.
    assert bool(((dequantise(four) - x).view(4, 2, 32).abs().amax(2) <= span * 0.2 + 1e-2 * size).all())


def test_constant_blocks_and_zeros_are_exact() -> None:
    x = torch.zeros(2, 64)
    x[1] = 0.5
    assert torch.equal(dequantise(quantise_int4(x)), x)
    assert torch.equal(dequantise(quantise_int8(torch.zeros(2, 64))), torch.zeros(2, 64))


def test_rows_must_divide_into_blocks() -> None:
    for quantise in (quantise_int4, quantise_int8):
        with pytest.raises(UsageError, match="rows of 40"):
            quantise(matrix(2, 40))


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q8_0"])
def test_blocks_of_a_file_are_taken_as_they_are(tmp_path: Path, kind: str) -> None:
    family = FAMILIES["gguf", "llama"]
    path = tmp_path / "x.gguf"
    names = ("layers.0.attention.q.weight", "layers.0.attention.k.weight", "layers.0.feedforward.up.weight")
    tensors = {family.weights.to_external(name) or "": matrix(64, 96, i) for i, name in enumerate(names)}
    write_gguf(path, "llama", {}, tensors | {"output_norm.weight": torch.ones(96)}, kind)
    reader, blocks = GgufReader(path), read_blocks(path, family.weights, 4, 2)
    assert sorted(blocks) == sorted(names)
    for name, heads in zip(names, (4, 2, 0), strict=True):
        expected = reader.get(family.weights.to_external(name) or "")
        if heads:  # interleaved pairs to half-split, row by row
            half = 64 // heads // 2
            order = [h * 2 * half + 2 * (i % half) + i // half for h in range(heads) for i in range(2 * half)]
            expected = expected[order]
        assert blocks[name].bits == int(kind[1])
        np.testing.assert_allclose(dequantise(blocks[name]), expected, rtol=1e-6, atol=1e-7)


# Calibration


def test_what_a_calibration_says() -> None:
    torch_speeds = {1: 10.0, 16: 100.0, 256: 1000.0}
    found = Calibration(
        {
            "torch": torch_speeds,
            "bfloat16": {1: 20.0, 16: 90.0, 256: 2000.0},
            "int8": {1: 30.0, 16: 150.0, 256: 900.0},
            "int4": {1: 50.0, 16: 200.0, 256: 1500.0},
        }
    )
    assert [found.never_slower(w) for w in ("bfloat16", "int8", "int4")] == [False, False, True]
    assert (found.fastest(COUNTED), found.fastest(COUNTED, 256)) == ("int4", "bfloat16")
    assert found.fastest(COUNTED[:2]) == "bfloat16"


@native_only
@pytest.mark.parametrize(("kind", "way"), [("q4_1", "int4"), ("q8_0", "int8"), ("f16", "bfloat16")])
def test_the_fastest_way_keeps_the_checkpoints_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, way: str
) -> None:
    """The fewer the bits, the faster is what this machine is said to be; only what the file holds may be chosen."""
    speeds = {name: dict.fromkeys(COUNTS, speed) for name, speed in zip(COUNTED, (1.0, 2.0, 3.0, 4.0), strict=True)}
    monkeypatch.setattr(calibrate, "calibrated", lambda base: Calibration(speeds))
    sizes = {"hidden_size": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "feedforward_size": 96}
    export_gguf(load_base(write_tiny_base(tmp_path / "base", **sizes)), tmp_path / "x.gguf", kind)
    assert calibrate.fastest_as_stored(load_base(tmp_path / "x.gguf", dtype="bfloat16")) == way
    assert calibrate.fastest_as_stored(load_base(tmp_path / "x.gguf", dtype="float32")) == "torch"


@native_only
@pytest.mark.parametrize(("native", "kernel"), [(0.5, "torch"), (2.0, "native")])
def test_an_engine_runs_natively_where_that_is_no_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: float, kernel: str
) -> None:
    speeds = {name: {1: 9.0, 16: 9.0, 256: 9.0 * (1 if name == "torch" else native)} for name in COUNTED}
    monkeypatch.setattr(compiled, "calibrated", lambda base: Calibration(speeds))
    sizes = {"hidden_size": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "feedforward_size": 96}
    base = load_base(write_tiny_base(tmp_path / "base", dtype=torch.bfloat16, **sizes))
    with Engine(base) as engine:
        assert (engine.kernel, engine.weights) == (kernel, "bfloat16")
    with Engine(base, kernel="native") as engine:
        assert engine.kernel == "native"


@native_only
def test_a_calibration_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "_SECONDS", 0.05)
    sizes = {"hidden_size": 64, "heads": 4, "kv_heads": 2, "head_dim": 16}
    base = load_base(write_tiny_base(tmp_path / "base", dtype=torch.bfloat16, **sizes))
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path / "home"))
    load.cache_clear()
    first = calibrated(base, threads=1)
    assert all(speed > 0 for way in first.speeds.values() for speed in way.values())
    (path,) = (tmp_path / "home" / "machine").iterdir()
    assert calibrated(base, threads=1) == first
    record = json.loads(path.read_text())
    record["speeds"]["torch"]["1"] = 123.0
    path.write_text(json.dumps(record))
    assert calibrated(base, threads=1).speeds["torch"][1] == 123.0
    path.write_text("{")  # a damaged record is measured again
    assert set(calibrated(base, threads=1).speeds["int4"]) == set(COUNTS)
    load.cache_clear()


def test_what_cannot_be_calibrated(tmp_path: Path) -> None:
    base = load_base(write_tiny_base(tmp_path / "base"))
    with pytest.raises(UsageError, match="bfloat16 bases"):
        calibrated(base)
