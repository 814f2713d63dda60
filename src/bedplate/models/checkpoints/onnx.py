"""The weights of a model that was exported to ONNX, by the names that its Hugging Face class gives them.

An encoder–decoder is two graphs, one of each side; other models are one. PyTorch's exporter keeps the names of most
parameters. A linear layer's matrix it transposes and calls `onnx::MatMul_1022`: what it is shows in the name of the
node that multiplies by it, `/encoder/block.0/layer.0/SelfAttention/q/MatMul`. onnxruntime's dynamic quantisation puts
`NAME_quantized`, `NAME_scale` and `NAME_zero_point` in place of a matrix: scale × (quantised − zero point).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bedplate.core.errors import CheckpointError
from bedplate.models.checkpoints.onnx_graph import Graph, OnnxTensor, read_graph
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

    def widest(self, names: Collection[str] | None = None) -> torch.dtype | None:
        """None where there are no matrices; else as `SafetensorsReader.widest`."""
        of = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
        dtype: torch.dtype | None = None
        for stored_type in sorted(self.matrix_types(names)):
            dtype = of[stored_type] if dtype is None else torch.promote_types(dtype, of[stored_type])
        return dtype

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
