"""Weights out of ONNX files, against PyTorch's exporter, onnx's own reader and onnxruntime's quantisation."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from tests.seq2seq import write_tiny_t5
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from bedplate.core.errors import CheckpointError, UsageError
from bedplate.inference.execution.plan import read_stored
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.export import export_base
from bedplate.models.checkpoints.hf_checkpoint import open_weights
from bedplate.models.checkpoints.onnx import read_graph
from bedplate.models.inputs import Inputs

TEXTS = ["the cat sat on the mat", "a dog ran to the old barn", "birds sing in the trees at dawn"]
FILES = ("encoder_model.onnx", "decoder_model.onnx")


class _Encoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.encoder(input_ids=input_ids).last_hidden_state


class _Decoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.lm_head = model.decoder, model.lm_head

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        output = self.decoder(input_ids=input_ids, encoder_hidden_states=encoder_hidden_states, use_cache=False)
        return self.lm_head(output.last_hidden_state)


def _export(module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, and of the exporter itself
        torch.onnx.export(module, inputs, str(path), input_names=names, dynamo=False, opset_version=17)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """The directory with graphs in float32, the one with quantised ones, and transformers' model."""
    whole = write_tiny_t5(tmp_path_factory.mktemp("t5") / "whole", TEXTS)
    model = T5ForConditionalGeneration.from_pretrained(whole, attn_implementation="eager").eval()
    plain, quantised = whole.with_name("plain"), whole.with_name("quantised")
    for directory in (plain, quantised):
        directory.mkdir()
        for file in whole.iterdir():
            if file.suffix == ".json":
                (directory / file.name).write_bytes(file.read_bytes())
    ids, states = torch.tensor([[4, 5, 6, 1]]), torch.randn(1, 4, model.config.d_model)
    _export(_Encoder(model), (ids,), ["input_ids"], plain / FILES[0])
    _export(_Decoder(model), (ids, states), ["input_ids", "encoder_hidden_states"], plain / FILES[1])
    for name in FILES:
        quantize_dynamic(plain / name, quantised / name, weight_type=QuantType.QInt8)
    return plain, quantised, model


def test_a_graph_in_float32_is_the_model_that_was_exported(exported: tuple[Path, Path, Any]) -> None:
    plain, _, theirs = exported
    base = load_base(plain)
    assert base.dtype == torch.float32
    state = theirs.state_dict()
    with open_weights(plain, base.family.weights) as reader:
        for name in set(reader.names) - set(base.family.weights.copies):
            assert torch.equal(reader.get(name), state[name]), name
    read, written = torch.tensor([[9, 8, 7, 6]]), torch.tensor([[0, 5, 6, 2]])
    ours = base.model.head(base.model(Inputs(written, encoder=Inputs(read))).hidden.flatten(0, 1))
    sessions = [onnxruntime.InferenceSession(plain / name, providers=["CPUExecutionProvider"]) for name in FILES]
    [states] = sessions[0].run(None, {"input_ids": read.numpy()})
    [logits] = sessions[1].run(None, {"input_ids": written.numpy(), "encoder_hidden_states": states})
    assert torch.allclose(ours, torch.from_numpy(logits).flatten(0, 1), atol=1e-4)


def test_quantised_matrices_are_what_their_integers_stand_for(exported: tuple[Path, Path, Any]) -> None:
    _, quantised, theirs = exported
    base, state = load_base(quantised), theirs.state_dict()
    stored = {
        tensor.name: numpy_helper.to_array(tensor)
        for name in FILES
        for tensor in onnx.load(quantised / name).graph.initializer
    }
    integers = [name for name in stored if name.endswith("_quantized")]
    assert len(integers) > 20
    by_sum = []
    for name in integers:
        stem = name.removesuffix("_quantized")
        zero = stored[f"{stem}_zero_point"].astype(np.float32)
        by_sum.append((stored[name].astype(np.float32) - zero) * stored[f"{stem}_scale"])
    with open_weights(quantised, base.family.weights) as reader:
        for name in reader.names:
            actual, original = reader.get(name), state[name]
            if original.ndim == 1:
                assert torch.equal(actual, original)
                continue
            # Half a step of 8 bits; and onnx's reading of one of the integers is this matrix, perhaps turned.
            assert float((actual - original).abs().max()) <= 0.51 * float(original.max() - original.min()) / 127
            assert any(
                np.array_equal(actual.numpy(), candidate) or np.array_equal(actual.numpy(), candidate.T)
                for candidate in by_sum
                if candidate.size == actual.numel()
            ), name


def test_it_is_exported_and_its_header_told(exported: tuple[Path, Path, Any], tmp_path: Path) -> None:
    _, quantised, _ = exported
    stored = read_stored(quantised)
    assert stored.types == {"float32"}
    base = load_base(quantised)
    written = load_base(export_base(base, tmp_path / "hf"))
    assert written.identity.weights_id == base.identity.weights_id


def test_matrices_without_a_place_are_named(exported: tuple[Path, Path, Any], tmp_path: Path) -> None:
    plain, _, _ = exported
    for file in plain.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    graph = onnx.load(tmp_path / FILES[0])
    graph.graph.initializer.append(numpy_helper.from_array(np.ones((3, 4), np.float32), "adapter.weight"))
    onnx.save(graph, tmp_path / FILES[0])
    with pytest.raises(CheckpointError, match=r"holds 'adapter\.weight', for which the config has no place"):
        load_base(tmp_path)
    (tmp_path / FILES[1]).unlink()
    with pytest.raises(CheckpointError, match=r"lacks 'decoder\.block"):
        load_base(tmp_path)


def test_another_shape_than_the_config_is_refused(exported: tuple[Path, Path, Any], tmp_path: Path) -> None:
    plain, _, _ = exported
    for file in plain.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"d_ff": 32}))
    with pytest.raises(CheckpointError, match="but the config asks for"):
        load_base(tmp_path)


def test_values_beside_the_graph(tmp_path: Path) -> None:
    values = np.arange(600, dtype=np.float32).reshape(20, 30)
    graph = onnx.helper.make_graph([], "g", [], [], [numpy_helper.from_array(values, "w")])
    onnx.save(
        onnx.helper.make_model(graph),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="model.bin",
        size_threshold=0,
    )
    placed = read_graph(tmp_path / "model.onnx").tensors["w"]
    assert np.array_equal(placed.values().numpy(), values)
    (tmp_path / "model.bin").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"'w' of shape \[20, 30\] cannot be read, the file is damaged"):
        placed.values()
    (tmp_path / "model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"model\.bin is missing"):
        open_weights(tmp_path, None)


def test_without_the_package_it_says_what_to_install(
    exported: tuple[Path, Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"encoder_model\.onnx needs the package onnx: pip install 'bedplate\[onnx\]'"):
        load_base(exported[0])


DTYPES = ("float32", "float64", "float16", "int8", "uint8", "int32", "int64")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_tensor_reads_as_onnx_reads_it_and_no_cut_is_read(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dtype, raw = data.draw(st.sampled_from(DTYPES)), data.draw(st.booleans())
    shape = data.draw(st.lists(st.integers(1, 4), max_size=3))
    values = np.array(data.draw(st.lists(st.integers(-100, 100), min_size=64, max_size=64)))
    array = values[: int(np.prod(shape))].reshape(shape).astype(dtype)
    tensor = (
        numpy_helper.from_array(array, "t")
        if raw
        else onnx.helper.make_tensor("t", onnx.helper.np_dtype_to_tensor_dtype(array.dtype), shape, array.flatten())
    )
    node = onnx.helper.make_node("MatMul", ["a", "t"], ["c"], name="/m/q/MatMul")
    whole = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], [tensor])).SerializeToString()
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    path.write_bytes(whole)
    graph = read_graph(path)
    assert np.array_equal(graph.tensors["t"].values().numpy(), numpy_helper.to_array(tensor))
    assert [(graph_node.op_type, graph_node.name, list(graph_node.input)) for graph_node in graph.nodes] == [
        ("MatMul", "/m/q/MatMul", ["a", "t"])
    ]
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        cut = read_graph(path)
    except CheckpointError:
        return
    # A cut between fields leaves a whole file with less in it.
    assert all(
        np.array_equal(stored_tensor.values().numpy(), numpy_helper.to_array(tensor))
        for stored_tensor in cut.tensors.values()
    )
