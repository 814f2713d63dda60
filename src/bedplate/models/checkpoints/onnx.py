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
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bedplate.core.errors import CheckpointError
from bedplate.models.checkpoints.json_file import is_file_name
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
        parts = [part for stored in self._stored.values() for part in (stored.placed, stored.scale, stored.zero)]
        companion_files = {part.file.name for part in parts if part is not None} - set(self.files)
        self.files = (*self.files, *sorted(companion_files))
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
            parameter_name = self._named(name, side)
            turned = parameter_name is None and name in factors
            if turned:
                parameter_name = self._named(f"{factors[name]}.weight", side)
            if parameter_name is not None:
                yield parameter_name, replace(parameter, turned=turned)
            elif (
                parameter.placed.dtype.is_floating_point and len(parameter.placed.shape) > 1
            ) or parameter.scale is not None:
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


@dataclass(frozen=True)
class OnnxNode:
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


@dataclass
class Graph:
    nodes: list[OnnxNode] = field(default_factory=list[OnnxNode])
    tensors: dict[str, OnnxTensor] = field(default_factory=dict[str, OnnxTensor])


def read_graph(path: Path) -> Graph:
    """CheckpointError for a file that is no ONNX model, or that ends before it should."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graph = Graph()
            has_graph = False
            for number, begin, end, _ in _fields(data, 0, len(data), path):
                if number == _MODEL_GRAPH:
                    has_graph = True
                    _read_parts(data, begin, end, path, graph)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not has_graph:
        raise CheckpointError(f"{path} is not an ONNX model: it holds no graph")
    return graph


def _read_parts(data: mmap.mmap, begin: int, end: int, path: Path, graph: Graph) -> None:
    for number, start, stop, _ in _fields(data, begin, end, path):
        if number == _GRAPH_NODE:
            graph.nodes.append(_node(data, start, stop, path))
        elif number == _GRAPH_INITIALIZER:
            placed = _tensor(data, start, stop, path)
            graph.tensors[placed.name] = placed


def _node(data: mmap.mmap, begin: int, end: int, path: Path) -> OnnxNode:
    ports: dict[int, list[str]] = {_NODE_INPUT: [], _NODE_OUTPUT: []}
    labels = {_NODE_NAME: "", _NODE_OPERATION: ""}
    for number, start, stop, _ in _fields(data, begin, end, path):
        if number in ports:
            ports[number].append(_text(data[start:stop], path))
        elif number in labels:
            labels[number] = _text(data[start:stop], path)
    inputs, outputs = (tuple(names) for names in ports.values())
    return OnnxNode(labels[_NODE_OPERATION], labels[_NODE_NAME], inputs, outputs)


def _tensor(data: mmap.mmap, begin: int, end: int, path: Path) -> OnnxTensor:
    shape: list[int] = []
    numbers: list[float] = []
    outside: dict[str, str] = {}
    name, data_type, at, size = "", 0, 0, 0
    for number, start, stop, value in _fields(data, begin, end, path):
        if number == _DIMS:
            shape += [value] if value is not None else _varints(data, start, stop, path)
        elif number == _DATA_TYPE:
            data_type = value or 0
        elif number == _NAME:
            name = _text(data[start:stop], path)
        elif number == _RAW:
            at, size = start, stop - start
        elif number in _WRITTEN_OUT:
            numbers += np.frombuffer(data[start:stop], _WRITTEN_OUT[number]).tolist()
        elif number in (_INT32S, _INT64S):
            numbers += map(_signed, [value] if value is not None else _varints(data, start, stop, path))
        elif number == _EXTERNAL:
            key, text = _key_value(data, start, stop, path)
            outside[key] = text
    if any(not 0 <= dim < _MAX_DIM for dim in shape):
        raise CheckpointError(f"{path}: {name!r} has the shape {shape}; the file is damaged")
    if outside:
        return _outside(OnnxTensor(name, data_type, tuple(shape), path), outside)
    return OnnxTensor(name, data_type, tuple(shape), path, at, size, tuple(numbers))


def _outside(placed: OnnxTensor, external_data: dict[str, str]) -> OnnxTensor:
    """A tensor whose values lie in a file beside this one."""
    location, path = external_data.get("location", ""), placed.file
    if not is_file_name(location):
        raise CheckpointError(f"{path}: {placed.name!r} lies in {location!r}; a file of the same directory is wanted")
    data_file = path.with_name(location)
    if not data_file.is_file():
        raise CheckpointError(f"{data_file} is missing, where {path.name} keeps {placed.name!r}")
    try:
        begin = int(external_data.get("offset", "0"))
        size = int(external_data.get("length", str(data_file.stat().st_size - begin)))
    except ValueError as error:
        raise CheckpointError(f"{path}: {placed.name!r} has no place in {location}: {error}") from error
    if begin < 0 or size < 0 or begin + size > data_file.stat().st_size:
        raise CheckpointError(
            f"{path}: {placed.name!r} should be {size:,} bytes from byte {begin:,} of {location} on, which ends before "
            "that; the files are damaged, or do not belong together"
        )
    return OnnxTensor(placed.name, placed.data_type, placed.shape, data_file, begin, size)


def _key_value(data: mmap.mmap, begin: int, end: int, path: Path) -> tuple[str, str]:
    texts = {1: "", 2: ""}
    for number, start, stop, _ in _fields(data, begin, end, path):
        if number in texts:
            texts[number] = _text(data[start:stop], path)
    return texts[1], texts[2]


def _fields(data: mmap.mmap, begin: int, end: int, path: Path) -> Iterator[tuple[int, int, int, int | None]]:
    """Each field of a message: its number, where its bytes begin and end, and its value where it is a number."""
    at = begin
    while at < end:
        tag, at = _varint(data, at, end, path)
        number, wire_type = tag >> 3, tag & 7
        value: int | None = None
        start = at
        if wire_type == _VARINT:
            value, at = _varint(data, at, end, path)
        elif wire_type == _BYTES:
            length, start = _varint(data, at, end, path)
            at = start + length
        elif wire_type in (_FIXED32, _FIXED64):
            at += 4 if wire_type == _FIXED32 else 8
        else:
            raise CheckpointError(f"{path} is not an ONNX model, or is damaged at byte {at:,}")
        if at > end or number == 0:
            raise CheckpointError(
                f"{path} is damaged, or is cut off: the field at byte {start:,} is longer than the rest"
            )
        yield number, start, at, value


def _varint(data: mmap.mmap, at: int, end: int, path: Path) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= end:
            break
        byte = data[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise CheckpointError(f"{path} is damaged, or is cut off: no number ends at byte {at:,}")


def _varints(data: mmap.mmap, begin: int, end: int, path: Path) -> list[int]:
    numbers: list[int] = []
    at = begin
    while at < end:
        value, at = _varint(data, at, end, path)
        numbers.append(value)
    return numbers


def _signed(value: int) -> int:
    """A negative number is written as the 64 bits of its two's complement."""
    return struct.unpack("<q", struct.pack("<Q", value & (2**64 - 1)))[0]


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is damaged: a name in it is not UTF-8") from error
