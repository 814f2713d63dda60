"""GGUF files, with the gguf package's types: read as it dequantises them, written in those that it can quantise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bedplate.core.errors import CheckpointError, UnsupportedModelError, UsageError
from bedplate.core.files import FileState, file_state
from bedplate.models.checkpoints.conversion import spec_of_fields
from bedplate.models.checkpoints.gguf_blocks import RawBlocks, block_size, dequantise, raw_blocks
from bedplate.models.checkpoints.sentence_transformers import gguf_sentence
from bedplate.models.checkpoints.text_files import gguf_generation
from bedplate.models.families import find_family
from bedplate.models.families.weights import BoundRule, WeightMap, unchanged
from bedplate.models.gguf_header import TYPES, GgufHeader, GgufTensor, read_header
from bedplate.models.layers.sentence_layers import SentenceLayers
from bedplate.models.specs import EncoderDecoderSpec
from bedplate.models.specs.transformer import TransformerSpec
from bedplate.text.source_target import SourceTargetTokenizer
from bedplate.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # whoever only reads has no need of it
    import gguf

# What gguf.quants.quantize can write; the K types are read only.
WRITABLE = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
_PAIRS = 1 << 16
"""More pairs of features than a head has."""
_CHUNK = 1 << 18
"""Values dequantised at once: what is needed beside the result. Larger pieces are slower, too, and the C library keeps
what was freed of them."""


class GgufReader:
    """A GGUF file: `metadata` (key → Python value), tensor `names`, and tensors dequantised to float32."""

    def __init__(self, path: Path, header: GgufHeader | None = None) -> None:
        self.path, self.header = path, read_header(path) if header is None else header
        self.metadata, self._tensors = self.header.metadata, self.header.tensors

    def without_metadata(self) -> GgufReader:
        """The same tensors without the vocabulary, which has tens of megabytes, for readers that live on."""
        return GgufReader(self.path, GgufHeader({}, self._tensors))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    @property
    def types(self) -> dict[str, str]:
        """Tensor name → the type it is stored in, as in "Q4_1"."""
        return {name: tensor.ggml_type for name, tensor in self._tensors.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Rows first (GGUF itself stores the shape the other way round)."""
        return self._tensors[name].shape

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """One tensor, dequantised to float32, and part by part brought to another dtype."""
        tensor, shape = self._tensors[name], self.shape(name)
        values = torch.empty(shape, dtype=dtype)
        rows = values.view(-1, shape[-1])
        step = max(1, _CHUNK // shape[-1])
        try:
            for begin in range(0, len(rows), step):
                part = rows[begin : begin + step]
                part[:] = dequantise(tensor.ggml_type, torch.from_numpy(self._rows(tensor, begin, len(part))))
        except NotImplementedError as error:
            raise UnsupportedModelError(
                f"{self.path}: tensor {name!r} is of type {tensor.ggml_type}, which cannot be dequantised"
            ) from error
        except ValueError as error:
            raise CheckpointError(f"{self.path}: tensor {name!r} is damaged: {error}") from error
        return values

    def tables(self) -> dict[str, list[float]]:
        """The small tensors that say how positions turn, as numbers."""
        rope_factors: dict[str, list[float]] = {}
        for name in self.names:
            if name.startswith("rope_"):
                shape = self.shape(name)
                if len(shape) != 1 or shape[0] > _PAIRS:
                    raise CheckpointError(
                        f"{self.path}: {name!r} has the shape {list(shape)}, where one number a pair is wanted"
                    )
                rope_factors[name] = self.get(name).tolist()
        return rope_factors

    def blocks(self, name: str) -> RawBlocks | None:
        """One matrix (or a stack of them) as its own blocks; None where it is not stored in blocks."""
        tensor = self._tensors[name]
        if block_size(tensor.ggml_type)[0] == 1:
            return None
        return raw_blocks(tensor.ggml_type, self._rows(tensor, 0, prod(tensor.shape[:-1])), tensor.shape)

    def _rows(self, tensor: GgufTensor, begin: int, count: int) -> NDArray[np.uint8]:
        """The bytes of so many of a tensor's rows, [count, bytes of a row]. Read, not mapped: of a mapped file every
        page that was touched stays in the process's memory."""
        size = tensor.size // prod(tensor.shape[:-1])
        data = np.fromfile(self.path, np.uint8, count * size, offset=tensor.begin + begin * size)
        if len(data) != count * size:
            raise CheckpointError(f"{self.path} ends before its tensor {tensor.name!r} does; download it again")
        return data.reshape(count, size)


class GgufCheckpoint:
    """One GGUF file (see `Checkpoint`)."""

    def __init__(self, path: Path) -> None:
        self.path, self.location, self.packing = path, str(path), None
        try:
            self.states: list[FileState] = [file_state(path)]
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        reader = self._reader = GgufReader(path)
        metadata, types = reader.metadata, set(reader.types.values())
        family = find_family("gguf", metadata.get("general.architecture"), str(path))
        self.names = reader.names
        self.spec = spec_of_fields(family, reader.header.fields(reader.tables()), self.names, str(path))
        self.family = family.of(self.spec)
        self.stored_dtype = torch.float32 if types <= {"F32", "F16", "BF16"} else None
        self.stored_types = "+".join(sorted(types)).lower()
        self.lineage = {"name": metadata.get("general.name"), "licence": metadata.get("general.license")}
        self.headless, self.record = False, dict[str, Any]()
        self.gguf: GgufReader | None = reader.without_metadata()

    @property
    def matrix_types(self) -> frozenset[str]:
        tensors = self._reader.header.tensors.values()
        return frozenset(tensor.ggml_type for tensor in tensors if len(tensor.shape) > 1)

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._reader.get(name, dtype)

    def release(self, name: str) -> None:
        """Nothing is mapped."""

    def close(self) -> None:
        """No file stays open."""

    def log_omitted(self, source: str) -> None:
        """All of it is loaded."""

    def reopener(self) -> Callable[[], AbstractContextManager[Callable[[str], Tensor]]]:
        tensors = self._reader.without_metadata()
        return lambda: nullcontext(tensors.get)

    def tokenizer(self) -> Tokenizer | None:
        metadata = self._reader.metadata
        if metadata.get("tokenizer.ggml.model", "none") in ("none", "no_vocab"):
            return None
        tokenizer = Tokenizer.from_fields(metadata)
        if isinstance(self.spec, EncoderDecoderSpec):
            return SourceTargetTokenizer.of(tokenizer, first_is_forced=False)
        return tokenizer

    @property
    def generation(self) -> dict[str, Any]:
        metadata = self._reader.metadata if isinstance(self.spec, EncoderDecoderSpec) else {}
        return gguf_generation(metadata, self.family.key[1])

    def sentence(self) -> SentenceLayers | None:
        return gguf_sentence(self._reader.metadata, self.family.key[1], str(self.path))


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor]],
    ggml_type: str,
    whole: tuple[str, ...] = (),
) -> None:
    """Writes a GGUF file. `ggml_type` is one of WRITABLE and holds for matrices whose rows divide into its blocks;
    vectors stay float32, as llama.cpp expects, and so do tensors whose names end as one of `whole`."""
    if ggml_type not in WRITABLE:
        raise UsageError(f"GGUF type {ggml_type!r} cannot be written; the writable types are: {', '.join(WRITABLE)}")
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add_field(writer, key, value)
    block = TYPES[ggml_type.upper()].values
    for name, tensor in tensors:
        values = tensor.detach().to("cpu", torch.float32).numpy()
        single = values.ndim < 2 or name.endswith(whole)
        if not single and values.shape[-1] % block:
            raise UsageError(
                f"{name!r} has rows of {values.shape[-1]} values, which do not divide into {ggml_type} blocks "
                f"of {block}; choose f16, bf16 or f32"
            )
        quant_type = gguf.GGMLQuantizationType["F32" if single else ggml_type.upper()]
        writer.add_tensor(name, gguf.quants.quantize(values, quant_type), raw_dtype=quant_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """One metadata field, of the type that its value has."""
    from gguf import GGUFValueType

    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, int):
        writer.add_key_value(key, value, GGUFValueType.UINT32 if value >= 0 else GGUFValueType.INT32)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, value if isinstance(value, bytes) else list(value))


class StoredBlocks(Mapping[str, RawBlocks]):
    """Our parameter name → blocks, of every matrix of a GGUF file that is stored in blocks and keeps its rows, in our
    order. They are read when they are asked for, and not kept: what packs them one by one holds no second model.
    """

    def __init__(self, reader: GgufReader, weights: WeightMap, spec: TransformerSpec) -> None:
        self._reader, self._spec = reader, spec
        types, stored_names = self._reader.types, set(self._reader.names)
        self._sources: dict[str, tuple[BoundRule, int]] = {}
        for step in weights.steps(spec):
            step_types = {types[name] for name in step.theirs if name in stored_names}
            whole = stored_names.issuperset(step.theirs) and len(step_types) == 1 and block_size(min(step_types))[0] > 1
            if whole and (step.rule.inverse is unchanged or step.rule.rows):
                self._sources |= {name: (step, number) for number, name in enumerate(step.ours)}

    def __getitem__(self, name: str) -> RawBlocks:
        step, number = self._sources[name]
        if step.rule.inverse is unchanged:
            return self._read(step.theirs[number])
        return _reordered([self._read(source_name) for source_name in step.theirs], step, self._spec)[number]

    @property
    def block_types(self) -> Mapping[str, str]:
        """The type of each one's blocks, as in "Q4_1"."""
        types = self._reader.types
        return {name: types[step.theirs[0]] for name, (step, _) in self._sources.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def _read(self, name: str) -> RawBlocks:
        blocks = self._reader.blocks(name)
        assert blocks is not None  # by its type
        if not blocks.finite():
            raise CheckpointError(f"{self._reader.path}: {name} holds NaN or infinite values; it is damaged")
        return blocks


def _reordered(blocks: Sequence[RawBlocks], step: BoundRule, spec: TransformerSpec) -> list[RawBlocks]:
    """Matrices of one type whose rows the step's rule cuts, joins and reorders."""
    parts = [block.data.flatten(0, -3).numpy() for block in blocks]
    whole = RawBlocks(blocks[0].ggml_type, torch.from_numpy(np.concatenate(parts) if len(parts) > 1 else parts[0]))
    numbers = torch.arange(len(whole.data))
    shapes = [block.data.shape[:-2] for block in blocks]
    places = numbers.split([shape.numel() for shape in shapes])
    orders = step.rule.inverse([place.view(shape) for place, shape in zip(places, shapes, strict=True)], spec)
    return [whole.rows(order) for order in orders]
