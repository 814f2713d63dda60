"""GGUF files, with the gguf package's types: read as it dequantises them, written in those that it can quantise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray
from torch import Tensor

from bedplate.core.errors import CheckpointError, UnsupportedModelError, UsageError
from bedplate.models.checkpoints.gguf_blocks import RawBlocks, read_raw
from bedplate.models.checkpoints.gguf_header import Placed, map_bytes, read_header, read_tensors
from bedplate.models.checkpoints.gguf_values import dequantise
from bedplate.models.families.weights import Step, WeightMap, same
from bedplate.models.specs.transformer import TransformerSpec

# What gguf.quants.quantize can write; the K types are read only.
WRITABLE: dict[str, GGMLQuantizationType] = {
    name: GGMLQuantizationType[name.upper()] for name in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
}
_CHUNK = 1 << 22
"""Values dequantised at once: what is needed beside the result."""


class GgufReader:
    """A GGUF file: `metadata` (key → Python value), tensor `names`, and tensors dequantised to float32.

    tensors_only: its metadata are not read."""

    def __init__(self, path: Path, *, tensors_only: bool = False) -> None:
        self.path = path
        self.metadata: Mapping[str, Any] = {}
        if tensors_only:
            self._tensors = read_tensors(path)
        else:
            self._header = read_header(path)
            self.metadata, self._tensors = self._header.metadata, self._header.tensors
        self._bytes = map_bytes(path)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    @property
    def architecture(self) -> str | None:
        return self.metadata.get("general.architecture")

    @property
    def types(self) -> dict[str, str]:
        """Tensor name → the type it is stored in, as in "Q4_1"."""
        return {name: tensor.kind for name, tensor in self._tensors.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Rows first (GGUF itself stores the shape the other way round)."""
        return self._tensors[name].shape

    def get(self, name: str) -> Tensor:
        """One tensor as float32."""
        tensor, shape = self._tensors[name], self.shape(name)
        found = torch.empty(shape)
        rows, data = found.view(-1, shape[-1]), self._rows(tensor)
        step = max(1, _CHUNK // shape[-1])
        try:
            for begin in range(0, len(rows), step):
                part = slice(begin, begin + step)
                rows[part] = dequantise(tensor.kind, torch.from_numpy(np.array(data[part], copy=True)))
        except NotImplementedError as error:
            raise UnsupportedModelError(
                f"{self.path}: tensor {name!r} is of type {tensor.kind}, which cannot be dequantised"
            ) from error
        except ValueError as error:
            raise CheckpointError(f"{self.path}: tensor {name!r} is damaged: {error}") from error
        return found

    def blocks(self, name: str) -> RawBlocks | None:
        """One matrix (or a stack of them) as its own blocks; None where it is not stored in blocks."""
        tensor = self._tensors[name]
        return read_raw(tensor.kind, self._rows(tensor), tensor.shape)

    def _rows(self, tensor: Placed) -> NDArray[np.uint8]:
        """A tensor's bytes, as many a row as its values take."""
        data = self._bytes[tensor.begin : tensor.begin + tensor.size]
        return data.reshape(prod(tensor.shape[:-1]), -1)


def write_gguf(
    path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]], kind: str
) -> None:
    """Writes a GGUF file. `kind` is one of WRITABLE and holds for matrices whose rows divide into its blocks; vectors
    stay float32, as llama.cpp expects."""
    if kind not in WRITABLE:
        raise UsageError(f"GGUF type {kind!r} cannot be written; the writable types are: {', '.join(WRITABLE)}")
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    block = gguf.GGML_QUANT_SIZES[WRITABLE[kind]][0]
    for name, tensor in tensors:
        values = tensor.detach().to("cpu", torch.float32).numpy()
        if values.ndim > 1 and values.shape[-1] % block:
            raise UsageError(
                f"{name!r} has rows of {values.shape[-1]} values, which do not divide into {kind} blocks of {block}; "
                "choose f16, bf16 or f32"
            )
        wanted = WRITABLE[kind] if values.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, int):
        writer.add_key_value(key, value, GGUFValueType.UINT32 if value >= 0 else GGUFValueType.INT32)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, list(value))


def read_blocks(path: Path, weights: WeightMap, spec: TransformerSpec) -> dict[str, RawBlocks]:
    """Our parameter name → blocks, of every matrix of a GGUF file that is stored in blocks and keeps its rows.

    Rows come in our order. Raises CheckpointError for a file that cannot be read.
    """
    reader = GgufReader(path, tensors_only=True)
    held = set(reader.names)
    found: dict[str, RawBlocks] = {}
    for step in weights.steps(spec):
        stored = [reader.blocks(name) for name in step.theirs if name in held]
        blocks = [one for one in stored if one is not None]
        if len(blocks) < len(step.theirs) or len({one.kind for one in blocks}) != 1:
            continue
        if step.rule.inverse is same:
            found |= dict(zip(step.ours, blocks, strict=True))
        elif step.rule.rows:
            found |= dict(zip(step.ours, _moved(blocks, step, spec), strict=True))
    return found


def _moved(blocks: Sequence[RawBlocks], step: Step, spec: TransformerSpec) -> list[RawBlocks]:
    """Matrices of one type whose rows the step's rule cuts, joins and reorders."""
    whole = RawBlocks(blocks[0].kind, torch.cat([one.data.flatten(0, -3) for one in blocks]))
    numbers = torch.arange(len(whole.data))
    shapes = [one.data.shape[:-2] for one in blocks]
    parts = numbers.split([shape.numel() for shape in shapes])
    orders = step.rule.inverse([part.view(shape) for part, shape in zip(parts, shapes, strict=True)], spec)
    return [whole.rows(order) for order in orders]
