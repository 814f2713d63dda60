"""Linears of 8 and 4 bits on torch: the matrix is the one that the gguf package reads from the same blocks."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType
from tests.near import assert_near
from tests.tiny import write_tiny_base

from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears, initial_tensors
from bedplate.core.errors import UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Generation, Sampling, Score, Scores
from bedplate.inference.forward import quantised as rooms
from bedplate.inference.forward.quantised import QuantisedLinear, quantised
from bedplate.inference.native.quantize import quantise_int4, quantise_int8
from bedplate.inference.predict.opening import OpenOptions, open_base
from bedplate.models.checkpoints.base import load_base
from bedplate.models.inputs import Inputs
from bedplate.models.layers.linear import Linear

SIZES = {"hidden_size": 128, "feedforward_size": 128, "heads": 4, "kv_heads": 2, "head_dim": 32}


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(
    ("bits", "dtype"), [("int8", torch.float32), ("int4", torch.float32), ("int4", torch.bfloat16)]
)
def test_a_linear_multiplies_by_what_its_blocks_stand_for(bits, dtype, packing: bool, monkeypatch) -> None:
    torch.manual_seed(0)
    if not packing:
        monkeypatch.setattr(rooms, "packs", lambda device, dtype: False)
    linear = Linear(256, 48, bias=True, dtype=dtype).requires_grad_(False)
    ours = QuantisedLinear(linear, bits)
    blocks = (quantise_int8 if bits == "int8" else quantise_int4)(linear.weight)
    dequantized, x = blocks.dequantised(), torch.randn(2, 5, 256).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    with torch.inference_mode():
        assert_near(ours.weight.float(), dequantized, tolerance)
        assert_near(ours(x).float(), F.linear(x.float(), dequantized, linear.bias.float()), tolerance)
    assert not list(ours.state_dict().keys() - {"bias"})
    if bits == "int4" and packing and rooms.packs(torch.device("cpu"), dtype):
        assert ours.quants_ONG.numel() == 0


@pytest.mark.parametrize(("bits", "paged"), [("int8", False), ("int4", False), ("int4", True)])
def test_an_engine_on_torch_runs_what_it_was_asked_to(bits, paged: bool, tmp_path: Path) -> None:
    """Its texts are those of a base whose weights are what the blocks stand for, with an adapter and without; the base
    itself stays what it is."""
    directory = write_tiny_base(tmp_path / "base", **SIZES)
    base, plain = load_base(directory, dtype="float32"), load_base(directory, dtype="float32")
    with torch.no_grad():
        for name, module in quantised(plain.model, bits).named_modules():
            if isinstance(module, QuantisedLinear):
                plain.model.get_submodule(name).weight.copy_(module.weight)
    config, requests = LoraConfig(r=2), list[Generate]()
    for adapter in (None, "skin"):
        requests.append(Generate(tuple(range(5, 25)), Sampling(max_tokens=12, ignore_eos=True), adapter=adapter))
    texts: list[list[tuple[int, ...]]] = []
    for candidate, weights in ((base, bits), (plain, "auto")):
        before = {name: p.clone() for name, p in candidate.model.named_parameters()}
        with Engine(candidate, weights=weights, kernel="torch", paged=paged) as engine:
            assert (engine.weights, engine.kernel) == (bits if weights == bits else "float32", "torch")
            tensors = initial_tensors(config, block_linears(base.model), 0)
            adapter_tensors = {
                end: torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for end, t in tensors.items()
            }
            engine.load_adapter("skin", config, adapter_tensors)
            results = engine.run(requests)
            texts.append([result.token_ids for result in results if isinstance(result, Generation)])
        assert all(torch.equal(p, before[name]) for name, p in candidate.model.named_parameters())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_a_base_is_opened_in_them_on_torch_as_the_gguf_package_reads_them(bits, tmp_path: Path) -> None:
    """Log-probabilities of a prompt against a base that was written with what that package makes of the same bytes."""
    directory = write_tiny_base(tmp_path / "base", **SIZES)
    plain = load_base(directory, dtype="float32")
    ggml_type, quantise = (
        (GGMLQuantizationType.Q8_0, quantise_int8) if bits == "int8" else (GGMLQuantizationType.Q4_1, quantise_int4)
    )
    with torch.no_grad():
        for linear in block_linears(plain.model).values():
            blocks = quantise(linear.weight)
            matrix = gguf.dequantize(blocks.data.flatten(1).numpy(), ggml_type)
            linear.weight.copy_(torch.from_numpy(matrix).view(linear.weight.shape))
    tokens = torch.arange(5, 45)[None]
    with torch.inference_mode():
        log_probs = plain.model.head(plain.model(Inputs(tokens)).hidden[0]).log_softmax(-1)
    chosen = tuple(range(45, 50))
    with open_base(directory, OpenOptions("float32", bits, "torch"), "cpu").model() as model:
        assert (model.engine.weights, model.engine.kernel) == (bits, "torch")
        (scores,) = model.engine.run([Score(tuple(tokens[0].tolist()), tuple((token,) for token in chosen))])
    assert isinstance(scores, Scores)
    assert_near(torch.tensor(scores.totals), log_probs[-1, list(chosen)], 1e-5)


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 48, "heads": 3, "kv_heads": 1, "head_dim": 16}
    base = load_base(write_tiny_base(tmp_path / "narrow", **sizes), dtype="float32")
    with pytest.raises(UsageError, match="not a multiple of 32"):
        Engine(base, weights="int8", kernel="torch")
