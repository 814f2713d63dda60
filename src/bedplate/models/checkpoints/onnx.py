"""The weights of a model that was exported to ONNX, by the names that its Hugging Face class gives them.

An encoder–decoder is two graphs, one of each side; other models are one. PyTorch's exporter keeps the names of most
parameters. A linear layer's matrix it transposes and calls `onnx::MatMul_1022`: what it is shows in the name of the
node that multiplies by it, `/encoder/block.0/layer.0/SelfAttention/q/MatMul`. onnxruntime's dynamic quantisation puts
`NAME_quantized`, `NAME_scale` and `NAME_zero_point` in place of a matrix: scale × (quantised − zero point).

The graph (onnx.proto3 of onnx/onnx describes its fields, https://protobuf.dev/programming-guides/encoding the bytes) is
read in one pass over the mapped file. What a length promises must fit into the bytes that are left, so that a damaged
file costs no more than its size.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bedplate.core.errors import CheckpointError
from bedplate.models.checkpoints.safetensors import is_file_name
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
        side_files = {part.file.name for part in parts if part is not None} - set(self.files)
        self.files = (*self.files, *sorted(side_files))
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
        return self._stored[name].placed.size

    def matrix_types(self, names: Collection[str] | None = None) -> frozenset[str]:
        """The types that matrices of real numbers are stored in, as safetensors files name them; float32 where they
        are integers."""
        short = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
        placements = [parameter.placed for name, parameter in self._stored.items() if names is None or name in names]
        return frozenset(short.get(placement.dtype, "F32") for placement in placements if len(placement.shape) > 1)

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
            elif parameter.scale is not None or (placed.dtype.is_floating_point and len(placed.shape) > 1):
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
        if node.operation == "Identity" and node.inputs and node.outputs and node.inputs[0] in tensors:
            yield node.outputs[0], _StoredParameter(tensors[node.inputs[0]])


def _factors(graph: Graph) -> Iterator[tuple[str, str]]:
    """Matrices that a node multiplies by, each with that node's path: "encoder.block.0.layer.0.SelfAttention.q"."""
    for node in graph.nodes:
        if node.operation in _PRODUCTS and len(node.inputs) > 1:
            stem = node.inputs[1].removesuffix(_QUANTISED)
            yield stem, ".".join(part for part in node.name.split("/")[:-1] if part)


# --- the graph

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATION = 1, 2, 3, 4
_DIMS, _DATA_TYPE, _FLOATS, _INT32S, _INT64S, _NAME, _RAW, _DOUBLES, _EXTERNAL = 1, 2, 4, 5, 7, 8, 9, 10, 13
_KEY, _VALUE = 1, 2
_MAX_DIM = 1 << 31
"""What no dimension of a parameter comes to."""
_DTYPES: dict[int, tuple[str, torch.dtype]] = {
    1: ("<f4", torch.float32),
    2: ("u1", torch.uint8),
    3: ("i1", torch.int8),
    6: ("<i4", torch.int32),
    7: ("<i8", torch.int64),
    9: ("u1", torch.bool),
    10: ("<f2", torch.float16),
    11: ("<f8", torch.float64),
    16: ("<i2", torch.bfloat16),
}
"""TensorProto.DataType → numpy's type of the stored bytes, and torch's of the values."""
_WRITTEN_OUT = {_FLOATS: "<f4", _DOUBLES: "<f8"}


class OnnxNode(NamedTuple):
    """One operation, with the names of what it reads and makes."""

    operation: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class OnnxTensor:
    """A tensor's values: bytes `begin` to `begin + size` of `file`, or, of a few numbers, the `numbers` themselves."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    file: Path
    begin: int = 0
    size: int = 0
    numbers: tuple[float, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        if self.data_type not in _DTYPES:
            raise CheckpointError(f"{self.file}: {self.name!r} is of ONNX's type {self.data_type}, which is not read")
        return _DTYPES[self.data_type][1]

    def values(self) -> Tensor:
        """In memory of their own. CheckpointError where the bytes are not as many as the shape asks for."""
        dtype, count = self.dtype, prod(self.shape)
        if self.numbers:
            if len(self.numbers) != count:
                raise self._short(len(self.numbers))
            if dtype in (torch.float16, torch.bfloat16):  # written as the integers of their bits
                bits = torch.tensor([int(number) for number in self.numbers], dtype=torch.int32)
                return bits.to(torch.int16).view(dtype).reshape(self.shape)
            return torch.tensor(self.numbers, dtype=dtype).reshape(self.shape)
        stored = np.dtype(_DTYPES[self.data_type][0])
        if self.size != count * stored.itemsize:
            raise self._short(self.size // stored.itemsize)
        try:
            raw = np.fromfile(self.file, stored, count, offset=self.begin)
        except OSError as error:
            raise CheckpointError(f"{self.file} cannot be read: {error}") from error
        if len(raw) != count:
            raise self._short(len(raw))
        values = torch.from_numpy(raw)
        return (values if values.dtype == dtype else values.view(dtype)).reshape(self.shape)

    def _short(self, count: int) -> CheckpointError:
        shape = list(self.shape)
        return CheckpointError(f"{self.file}: {self.name!r} of shape {shape} holds {count} values; the file is damaged")


class Graph(NamedTuple):
    """The operations, and the tensors by name."""

    nodes: list[OnnxNode]
    tensors: dict[str, OnnxTensor]


@dataclass(frozen=True)
class _Span:
    """Bytes of the mapped file that hold a message, a text, or numbers behind each other."""

    path: Path
    data: mmap.mmap
    begin: int
    end: int

    def fields(self) -> Iterator[tuple[int, int | _Span]]:
        """Each field of a message: its number, and its value where that is a whole number, or else its bytes."""
        at = self.begin
        while at < self.end:
            tag, start = self._varint(at)
            number, wire_type, value = tag >> 3, tag & 7, 0
            if wire_type == _VARINT:
                value, at = self._varint(start)
            elif wire_type == _BYTES:
                length, start = self._varint(start)
                at = start + length
            elif wire_type in (_FIXED32, _FIXED64):
                at = start + (4 if wire_type == _FIXED32 else 8)
            else:
                raise CheckpointError(f"{self.path} is not an ONNX model, or is damaged at byte {start:,}")
            if at > self.end or number == 0:
                raise CheckpointError(f"{self.path} is damaged, or is cut off at byte {start:,}")
            yield number, value if wire_type == _VARINT else _Span(self.path, self.data, start, at)

    def texts(self, *numbers: int) -> dict[int, list[str]]:
        """The texts among a message's fields, by the fields' numbers."""
        texts: dict[int, list[str]] = {number: [] for number in numbers}
        for number, value in self.fields():
            if number in texts and isinstance(value, _Span):
                texts[number].append(value.text())
        return texts

    def text(self) -> str:
        try:
            return self.data[self.begin : self.end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path} is damaged: a name in it is not UTF-8") from error

    def varints(self) -> list[int]:
        numbers, at = list[int](), self.begin
        while at < self.end:
            value, at = self._varint(at)
            numbers.append(value)
        return numbers

    def _varint(self, begin: int) -> tuple[int, int]:
        """A number and where it ends."""
        value = 0
        for place, byte in enumerate(self.data[begin : min(begin + 10, self.end)]):
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                return value, begin + place + 1
        raise CheckpointError(f"{self.path} is damaged, or is cut off: no number ends at byte {begin:,}")


def read_graph(path: Path) -> Graph:
    """CheckpointError for a file that is no ONNX model, or that ends before it should."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graphs = [v for n, v in _Span(path, data, 0, len(data)).fields() if n == _MODEL_GRAPH]
            parts = [part for graph in graphs if isinstance(graph, _Span) for part in graph.fields()]
            if not graphs:
                raise CheckpointError(f"{path} is not an ONNX model: it holds no graph")
            nodes = [_node(span) for number, span in parts if number == _GRAPH_NODE and isinstance(span, _Span)]
            tensors = [_tensor(v) for number, v in parts if number == _GRAPH_INITIALIZER and isinstance(v, _Span)]
            return Graph(nodes, {tensor.name: tensor for tensor in tensors})
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _node(message: _Span) -> OnnxNode:
    texts = message.texts(_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATION)
    name, operation = ("".join(texts[number][-1:]) for number in (_NODE_NAME, _NODE_OPERATION))
    return OnnxNode(operation, name, tuple(texts[_NODE_INPUT]), tuple(texts[_NODE_OUTPUT]))


def _tensor(message: _Span) -> OnnxTensor:
    path, shape, numbers = message.path, list[int](), list[float]()
    name, data_type, raw, outside = "", 0, (0, 0), dict[str, str]()
    for number, value in message.fields():
        if number == _DATA_TYPE and isinstance(value, int):
            data_type = value
        elif number in (_DIMS, _INT32S, _INT64S):
            whole = [value] if isinstance(value, int) else value.varints()
            if number == _DIMS:
                shape += whole
            else:
                numbers += map(_signed, whole)
        elif isinstance(value, int):
            continue
        elif number == _NAME:
            name = value.text()
        elif number == _RAW:
            raw = value.begin, value.end - value.begin
        elif number in _WRITTEN_OUT:
            numbers += np.frombuffer(value.data[value.begin : value.end], _WRITTEN_OUT[number]).tolist()
        elif number == _EXTERNAL:
            entry = value.texts(_KEY, _VALUE)
            outside["".join(entry[_KEY])] = "".join(entry[_VALUE])
    if any(not 0 <= dim < _MAX_DIM for dim in shape):
        raise CheckpointError(f"{path}: {name!r} has the shape {shape}; the file is damaged")
    tensor = OnnxTensor(name, data_type, tuple(shape), path, *raw, tuple(numbers))
    return _in_side_file(tensor, outside) if outside else tensor


def _in_side_file(tensor: OnnxTensor, entries: Mapping[str, str]) -> OnnxTensor:
    """A tensor whose values lie in a file beside the graph, as in every export of over 2 GB."""
    path, location = tensor.file, entries.get("location", "")
    if not is_file_name(location):
        raise CheckpointError(f"{path}: {tensor.name!r} lies in {location!r}; a file of the same directory is wanted")
    side_file = path.with_name(location)
    if not side_file.is_file():
        raise CheckpointError(f"{side_file} is missing, where {path.name} keeps {tensor.name!r}")
    begin, size = entries.get("offset", "0"), entries.get("length", "0")
    if not (begin.isdecimal() and size.isdecimal()):
        raise CheckpointError(f"{path}: {tensor.name!r} has no place in {location}: {size!r} bytes from byte {begin!r}")
    left = side_file.stat().st_size - int(begin)
    return replace(tensor, file=side_file, begin=int(begin), size=int(size) if "length" in entries else left)


def _signed(value: int) -> int:
    """A negative number is written as the 64 bits of its two's complement."""
    return struct.unpack("<q", struct.pack("<Q", value & (2**64 - 1)))[0]
