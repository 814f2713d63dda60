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
from bedplate.models.checkpoints.onnx_graph import Graph, Placed, read_graph
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
class _Held:
    """One parameter: its values, or the integers that stand for them. turned: stored with its dimensions exchanged."""

    placed: Placed
    scale: Placed | None = None
    zero: Placed | None = None
    turned: bool = False

    def values(self) -> Tensor:
        found = self.placed.values()
        if self.scale is not None:
            scale = self.scale.values().float()
            # Of several scales, each is of one column.
            if scale.numel() != 1 and (scale.ndim != 1 or found.ndim != 2 or len(scale) != found.shape[1]):
                raise CheckpointError(
                    f"{self.placed.file}: {self.scale.name!r} of shape {list(scale.shape)} does not fit "
                    f"{self.placed.name!r} of shape {list(found.shape)}; one scale, or one of each column, is read"
                )
            zero = torch.zeros(()) if self.zero is None else self.zero.values().float()
            found = (found.float() - zero) * scale
        return found.t().contiguous() if self.turned else found


class OnnxReader:
    """The tensors of a directory, read from its ONNX files. weights: of the family that
    the names are to be of; without it they are the graphs' own."""

    def __init__(self, directory: Path, weights: WeightMap | None) -> None:
        self.directory, self._weights = directory, weights
        self.files = tuple(name for name in _FILES if (directory / name).is_file())
        self._held: dict[str, _Held] = {}
        for file in self.files:
            for name, held in self._parameters(read_graph(directory / file), _FILES[file]):
                if name in self._held and not torch.equal(self._held[name].values(), held.values()):
                    raise CheckpointError(f"{directory}: {name!r} differs between {', '.join(self.files)}")
                self._held[name] = held
        parts = [part for held in self._held.values() for part in (held.placed, held.scale, held.zero)]
        beside = {part.file.name for part in parts if part is not None} - set(self.files)
        self.files = (*self.files, *sorted(beside))
        if weights is not None:
            self._name_the_table(weights)

    @staticmethod
    def is_in(directory: Path) -> bool:
        return any((directory / name).is_file() for name in _FILES)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._held)

    def get(self, name: str) -> Tensor:
        """One tensor: as it is stored, or in float32 where integers stand for it."""
        return self._held[name].values()

    def nbytes(self, name: str) -> int:
        """The bytes of one tensor in the files."""
        return self._held[name].placed.size

    def matrix_types(self, names: Collection[str] | None = None) -> frozenset[str]:
        """The types that matrices of real numbers are stored in, as safetensors files name them; float32 where they
        are integers."""
        short = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
        wanted = [held.placed for name, held in self._held.items() if names is None or name in names]
        return frozenset(short.get(one.dtype, "F32") for one in wanted if len(one.shape) > 1)

    def widest(self, names: Collection[str] | None = None) -> torch.dtype | None:
        """None where there are no matrices; else as `SafetensorsReader.widest`."""
        of = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
        found: torch.dtype | None = None
        for kind in sorted(self.matrix_types(names)):
            found = of[kind] if found is None else torch.promote_types(found, of[kind])
        return found

    def __enter__(self) -> OnnxReader:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def _parameters(self, graph: Graph, side: str) -> Iterator[tuple[str, _Held]]:
        factors = dict(_factors(graph))
        for name, held in _held_by_name(graph):
            known = self._named(name, side)
            turned = known is None and name in factors
            if turned:
                known = self._named(f"{factors[name]}.weight", side)
            if known is not None:
                yield known, replace(held, turned=turned)
            elif (held.placed.dtype.is_floating_point and len(held.placed.shape) > 1) or held.scale is not None:
                # A matrix that no parameter is called like: whoever reads the names says that it has no place.
                yield name, held

    def _name_the_table(self, weights: WeightMap) -> None:
        """Each side's graph may call the token table by that side's name for it alone."""
        table = weights.to_external("embedding.weight")
        copy = next((name for name in self._held if name in weights.copies), None)
        if table is not None and table not in self._held and copy is not None:
            self._held[table] = self._held.pop(copy)

    def _named(self, name: str, side: str) -> str | None:
        """What the family calls a parameter of this path, whose front is the exporter's own."""
        if self._weights is None:
            return None
        parts = name.split(".")
        for at in range(len(parts)):
            rest = ".".join(parts[at:])
            beside = [f"{body}{side}.{rest}" for body in _BODIES] if side else []
            for one in (*beside, *(body + rest for body in _BODIES)):
                if _is_known(one, self._weights):
                    return one
        return None


def _is_known(name: str, weights: WeightMap) -> bool:
    read = weights.from_external(name) is not None or weights.is_group(name)
    return read or name in weights.copies or weights.is_ignorable(name)


def _held_by_name(graph: Graph) -> Iterator[tuple[str, _Held]]:
    tensors = graph.tensors
    for name, placed in tensors.items():
        if name.endswith(_QUANTISED):
            stem = name.removesuffix(_QUANTISED)
            if stem + _SCALE not in tensors:
                raise CheckpointError(f"{placed.file}: {stem + _SCALE!r} is missing, so {name!r} cannot be read")
            yield stem, _Held(placed, tensors[stem + _SCALE], tensors.get(stem + _ZERO))
        elif not any(
            name.endswith(part) and name.removesuffix(part) + _QUANTISED in tensors for part in (_SCALE, _ZERO)
        ):
            yield name, _Held(placed)
    # Equal parameters are written once; nodes give the others' names to what the first is called.
    for node in graph.nodes:
        if node.operation == "Identity" and node.inputs and node.outputs and node.inputs[0] in tensors:
            yield node.outputs[0], _Held(tensors[node.inputs[0]])


def _factors(graph: Graph) -> Iterator[tuple[str, str]]:
    """Matrices that a node multiplies by, each with that node's path: "encoder.block.0.layer.0.SelfAttention.q"."""
    for node in graph.nodes:
        if node.operation in _PRODUCTS and len(node.inputs) > 1:
            stem = node.inputs[1].removesuffix(_QUANTISED)
            yield stem, ".".join(part for part in node.name.split("/")[:-1] if part)
