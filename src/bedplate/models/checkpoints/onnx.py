"""The weights of a model that was exported to ONNX, by the names that its Hugging Face class gives them.

An encoder–decoder is two graphs, one of each side; other models are one. PyTorch's exporter keeps the names of most
parameters. A linear layer's matrix it transposes and calls `onnx::MatMul_1022`: what it is shows in the name of the
node that multiplies by it, `/encoder/block.0/layer.0/SelfAttention/q/MatMul`. onnxruntime's dynamic quantisation puts
`NAME_quantized`, `NAME_scale` and `NAME_zero_point` in place of a matrix: scale × (quantised − zero point).

The package onnx reads the graph; values are taken from it, or from the file beside it, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bedplate.core.errors import CheckpointError, UsageError
from bedplate.models.families.weights import WeightMap

_FILES = {
    "encoder.onnx": "encoder",
    "encoder_model.onnx": "encoder",
    "decoder.onnx": "decoder",
    "decoder_model.onnx": "decoder",
    "model.onnx": "",
}
"""Names of files → the side of the model that they hold. What else stands beside them holds the same once more."""
_PRODUCTS = frozenset(("MatMul", "MatMulInteger"))
_QUANTISED, _SCALE, _ZERO = "_quantized", "_scale", "_zero_point"
_REAL_TYPES = {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16", "DOUBLE": "F64"}
"""ONNX's types of real numbers → what safetensors files call them."""
_BODIES = ("", "model.")
"""What the names of a family's tensors begin with, before the side."""


@dataclass(frozen=True)
class _StoredParameter:
    """One parameter: its values, or the integers that stand for them. turned: stored with its dimensions exchanged."""

    placed: OnnxTensor
    scale: OnnxTensor | None = None
    zero: OnnxTensor | None = None
    turned: bool = False

    def values(self) -> Tensor:
        tensor = self.placed.values()
        if self.scale is not None:
            scale = self.scale.values().float()
            # Of several scales, each is of one column.
            if scale.numel() != 1 and (scale.ndim != 1 or tensor.ndim != 2 or len(scale) != tensor.shape[1]):
                raise CheckpointError(
                    f"{self.placed.file}: {self.scale.name!r} of shape {list(scale.shape)} does not fit "
                    f"{self.placed.name!r} of shape {list(tensor.shape)}; one scale, or one of each column, is read"
                )
            zero = torch.zeros(()) if self.zero is None else self.zero.values().float()
            tensor = (tensor.float() - zero) * scale
        return tensor.t().contiguous() if self.turned else tensor


class OnnxReader:
    """The tensors of a directory, read from its ONNX files. weights: of the family that
    the names are to be of; without it they are the graphs' own."""

    def __init__(self, directory: Path, weights: WeightMap | None) -> None:
        self.directory, self._weights = directory, weights
        self.files = tuple(name for name in _FILES if (directory / name).is_file())
        self._stored: dict[str, _StoredParameter] = {}
        for file in self.files:
            for name, parameter in self._parameters(read_graph(directory / file), _FILES[file]):
                if name in self._stored and not torch.equal(self._stored[name].values(), parameter.values()):
                    raise CheckpointError(f"{directory}: {name!r} differs between {', '.join(self.files)}")
                self._stored[name] = parameter
        parts = (part for stored in self._stored.values() for part in (stored.placed, stored.scale, stored.zero))
        side_files = {part.side_file for part in parts if part is not None and part.side_file is not None}
        self.files = (*self.files, *sorted(side_files))
        missing = [str(directory / name) for name in self.files if not (directory / name).is_file()]
        if missing:
            raise CheckpointError(f"{missing[0]} is missing, where a graph beside it keeps its tensors")
        if weights is not None:
            self._name_the_table(weights)

    @staticmethod
    def is_in(directory: Path) -> bool:
        return any((directory / name).is_file() for name in _FILES)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._stored)

    def get(self, name: str) -> Tensor:
        """One tensor: as it is stored, or in float32 where integers stand for it."""
        return self._stored[name].values()

    def nbytes(self, name: str) -> int:
        """The bytes of one tensor in the files."""
        return self._stored[name].placed.values().nbytes

    def matrix_types(self, names: Collection[str] | None = None) -> frozenset[str]:
        """The types that matrices of real numbers are stored in, as safetensors files name them; float32 where they
        are integers."""
        placements = [parameter.placed for name, parameter in self._stored.items() if names is None or name in names]
        return frozenset(placement.type_name or "F32" for placement in placements if len(placement.shape) > 1)

    def __enter__(self) -> OnnxReader:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def _parameters(self, graph: Graph, side: str) -> Iterator[tuple[str, _StoredParameter]]:
        factors = dict(_factors(graph))
        for name, parameter in _held_by_name(graph):
            parameter_name, placed = self._named(name, side), parameter.placed
            turned = parameter_name is None and name in factors
            if turned:
                parameter_name = self._named(f"{factors[name]}.weight", side)
            if parameter_name is not None:
                yield parameter_name, replace(parameter, turned=turned)
            elif parameter.scale is not None or (placed.type_name and len(placed.shape) > 1):
                # A matrix that no parameter is called like: whoever reads the names says that it has no place.
                yield name, parameter

    def _name_the_table(self, weights: WeightMap) -> None:
        """Each side's graph may call the token table by that side's name for it alone."""
        table = weights.to_external("embedding.weight")
        copy = next((name for name in self._stored if name in weights.copies), None)
        if table is not None and table not in self._stored and copy is not None:
            self._stored[table] = self._stored.pop(copy)

    def _named(self, name: str, side: str) -> str | None:
        """What the family calls a parameter of this path, whose front is the exporter's own."""
        if self._weights is None:
            return None
        parts = name.split(".")
        for at in range(len(parts)):
            suffix = ".".join(parts[at:])
            side_names = [f"{body}{side}.{suffix}" for body in _BODIES] if side else []
            for candidate in (*side_names, *(body + suffix for body in _BODIES)):
                if _is_known(candidate, self._weights):
                    return candidate
        return None


def _is_known(name: str, weights: WeightMap) -> bool:
    read = weights.from_external(name) is not None or weights.is_group(name)
    return read or name in weights.copies or weights.is_ignorable(name)


def _held_by_name(graph: Graph) -> Iterator[tuple[str, _StoredParameter]]:
    tensors = graph.tensors
    for name, placed in tensors.items():
        if name.endswith(_QUANTISED):
            stem = name.removesuffix(_QUANTISED)
            if stem + _SCALE not in tensors:
                raise CheckpointError(f"{placed.file}: {stem + _SCALE!r} is missing, so {name!r} cannot be read")
            yield stem, _StoredParameter(placed, tensors[stem + _SCALE], tensors.get(stem + _ZERO))
        elif not any(
            name.endswith(part) and name.removesuffix(part) + _QUANTISED in tensors for part in (_SCALE, _ZERO)
        ):
            yield name, _StoredParameter(placed)
    # Equal parameters are written once; nodes give the others' names to what the first is called.
    for node in graph.nodes:
        if node.op_type == "Identity" and node.input and node.input[0] in tensors:
            yield node.output[0], _StoredParameter(tensors[node.input[0]])


def _factors(graph: Graph) -> Iterator[tuple[str, str]]:
    """Matrices that a node multiplies by, each with that node's path: "encoder.block.0.layer.0.SelfAttention.q"."""
    for node in graph.nodes:
        if node.op_type in _PRODUCTS and len(node.input) > 1:
            stem = node.input[1].removesuffix(_QUANTISED)
            yield stem, ".".join(part for part in node.name.split("/")[:-1] if part)


@dataclass(frozen=True)
class OnnxTensor:
    """A tensor of the graph in `file`, as the onnx package describes it (`TensorProto`)."""

    file: Path
    proto: Any

    @property
    def name(self) -> str:
        return self.proto.name

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.proto.dims)

    @property
    def type_name(self) -> str:
        """What safetensors files call the type of its real numbers; "" for integers and texts."""
        import onnx

        return _REAL_TYPES.get(onnx.TensorProto.DataType.Name(self.proto.data_type), "")

    @property
    def side_file(self) -> str | None:
        """The file beside the graph that holds the values, as in every export of over 2 GB."""
        return next((entry.value for entry in self.proto.external_data if entry.key == "location"), None)

    def values(self) -> Tensor:
        """In memory of their own. CheckpointError where the bytes are not as many as the shape asks for."""
        import onnx
        from onnx import numpy_helper

        try:
            array = numpy_helper.to_array(self.proto, str(self.file.parent)).copy()
            if self.proto.data_type == onnx.TensorProto.BFLOAT16:
                return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(array)
        except (OSError, ValueError, TypeError, KeyError, onnx.checker.ValidationError) as error:
            raise CheckpointError(
                f"{self.file}: {self.name!r} of shape {list(self.shape)} cannot be read, the file is damaged: {error}"
            ) from error


class Graph(NamedTuple):
    """The operations (`NodeProto`), and the tensors by name."""

    nodes: list[Any]
    tensors: dict[str, OnnxTensor]


def read_graph(path: Path) -> Graph:
    """CheckpointError for a file that is no ONNX model; UsageError where the package onnx is missing."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError:
        raise UsageError(f"reading {path} needs the package onnx: pip install 'bedplate[onnx]'") from None
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise CheckpointError(f"{path} cannot be read, or is damaged: {error}") from error
    if not model.HasField("graph"):
        raise CheckpointError(f"{path} is not an ONNX model: it holds no graph")
    return Graph(list(model.graph.node), {proto.name: OnnxTensor(path, proto) for proto in model.graph.initializer})
