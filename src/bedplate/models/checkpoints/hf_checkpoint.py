"""Hugging Face directories: `config.json`, weights in safetensors or ONNX files, tokenizer, generation settings.

Matrices that are stored in few bits (GPTQ, AWQ, and float8 in blocks: `quantization_config` in config.json says how)
are read as plain ones. Shapes of these: O outputs and I inputs of a linear layer, G groups of inputs, P values packed
into one int32.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor

from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.core.files import file_state
from bedplate.core.suggestions import did_you_mean
from bedplate.models.checkpoints.conversion import spec_of_fields
from bedplate.models.checkpoints.onnx import OnnxReader
from bedplate.models.checkpoints.safetensors import INDEX, SINGLE, SafetensorsReader, read_object
from bedplate.models.checkpoints.sentence_transformers import MODULES, read_scored, read_sentence
from bedplate.models.checkpoints.text_files import read_generation, read_tokenizer
from bedplate.models.families import Family
from bedplate.models.families.claims import claimed_family
from bedplate.models.families.fields import Fields, shown
from bedplate.models.families.multimodal import Multimodal, find_multimodal
from bedplate.models.families.weights import WeightMap
from bedplate.models.layers.sentence_layers import SentenceLayers
from bedplate.models.precision import dtype_name
from bedplate.models.specs import TextSpec, TransformerSpec
from bedplate.text.tokenizer import Tokenizer


class TensorSource(Protocol):
    """The tensors of a checkpoint by name."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def get(self, name: str) -> Tensor: ...


class PackedCheckpoint(ABC):
    """The tensors of `source`, with `NAME.weight` in place of each `NAME` + one of the `PARTS`.

    A matrix is unpacked when it is asked for, one at a time. CheckpointError for parts that do not belong together.
    """

    PARTS: ClassVar[tuple[str, ...]]
    """Endings of what stands in place of a matrix; the first tells that it does."""

    def __init__(self, source: TensorSource, config: Mapping[str, Any], origin: str) -> None:
        self.source, self.origin = source, origin
        fields = Fields(config, f"{origin} quantization_config")
        self.configure(fields)
        fields.finish()
        tensor_names = set(source.names)
        first, *companions = self.PARTS
        self._stems = {name.removesuffix(first) for name in source.names if name.endswith(first)}
        if not self._stems:
            raise CheckpointError(
                f"{origin}: quantization_config tells of packed matrices, but no tensor's name ends with {first!r}; "
                "remove it where the weights are plain"
            )
        inside = {stem + part for stem in self._stems for part in self.PARTS}
        missing = sorted(stem + part for stem in self._stems for part in companions if stem + part not in tensor_names)
        missing = [name for name in missing if not self.optional(name)]
        if missing:
            raise CheckpointError(f"{origin}: {missing[0]!r} is missing, so its matrix cannot be unpacked")
        self.names: tuple[str, ...] = (
            *(name for name in source.names if name not in inside),
            *(f"{stem}.weight" for stem in sorted(self._stems)),
        )

    def get(self, name: str) -> Tensor:
        """One tensor; a matrix [O, I] in float32, whose values those stored stand for exactly."""
        stem = name.removesuffix(".weight")
        if stem not in self._stems:
            return self.source.get(name)
        tensor_names = set(self.source.names)
        parts = {part: self.source.get(stem + part) for part in self.PARTS if stem + part in tensor_names}
        try:
            return self.unpack(parts)
        except (RuntimeError, IndexError, ValueError) as error:
            shapes = ", ".join(f"{stem}{part} {list(value.shape)}" for part, value in parts.items())
            raise CheckpointError(f"{self.origin}: {shapes} do not make one matrix ({error})") from error

    def optional(self, name: str) -> bool:
        """Whether a part may be missing."""
        return False

    @abstractmethod
    def configure(self, fields: Fields) -> None:
        """Takes what `quantization_config` says. UnsupportedModelError for what changes the values unknown to us."""

    @abstractmethod
    def unpack(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The matrix [O, I] in float32."""


def _group_size(fields: Fields, usual: int) -> int:
    """Inputs of a group; -1: all of them."""
    group_size = fields.whole("group_size", usual)
    if group_size != -1 and group_size < 1:
        raise ValueError(f"group_size is {group_size}: it must be at least 1, or -1 for one group of all inputs")
    return group_size


def _whole(index_I: Tensor) -> Tensor:
    if index_I.is_floating_point():
        raise ValueError("g_idx must hold whole numbers")
    return index_I.long()


def _check_groups(values_IO: Tensor, zeros_GO: Tensor, scales_GO: Tensor, group: int) -> None:
    """IndexError where there is not one zero and one scale for each group of each output: others would be left over, or
    spread over several."""
    grid_shape = -(-len(values_IO) // group), values_IO.shape[1]
    if zeros_GO.shape != grid_shape or scales_GO.shape != grid_shape or not scales_GO.is_floating_point():
        raise IndexError(f"groups of {group} inputs ask for zeros and real scales of shape {list(grid_shape)}")


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """Unsigned values, the low bits first: int32 [..., N] → int32 [..., N, P]."""
    if words.dtype != torch.int32 or words.ndim != 2:
        raise ValueError(f"packed values are matrices of int32, not of {words.dtype} in {words.ndim} dimensions")
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return (words[..., None] >> shifts) & ((1 << bits) - 1)


_GPTQ_BOOKKEEPING = (
    *("sym", "damp_percent", "static_groups", "true_sequential", "act_group_aware", "dataset", "tokenizer"),
    *("model_name_or_path", "model_file_base_name", "is_marlin_format", "pack_dtype", "lm_head", "backend", "meta"),
    *("use_exllama", "disable_exllama", "exllama_config", "max_input_length", "cache_block_outputs", "model_seqlen"),
    *("use_cuda_fp16", "module_name_preceding_first_block", "block_name_to_quantize", "modules_in_block_to_quantize"),
    *("batch_size", "pad_token_id"),
)


class Gptq(PackedCheckpoint):
    """GPTQ (https://arxiv.org/abs/2210.17323) as AutoGPTQ and GPTQModel write it.

    qweight [I/P, O] is packed along the inputs, qzeros [G, O/P] along the outputs; w = scale · (q − zero), where the
    first format stores zero − 1. g_idx [I]: each input's group, where they were reordered.
    """

    PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")

    def configure(self, fields: Fields) -> None:
        fields.only("quant_method", "gptq")
        self.bits = fields.choice("bits", 4, 8, 2)
        self.group = _group_size(fields, -1)
        self.reordered = fields.flag("desc_act", False) and self.group > 0
        self.offset = 1 if fields.choice("checkpoint_format", "gptq", "gptq_v2") == "gptq" else 0
        # How the values were found, and which program is to compute with them.
        fields.ignore(_GPTQ_BOOKKEEPING)

    def optional(self, name: str) -> bool:
        return name.endswith(".g_idx") and not self.reordered

    def unpack(self, parts: Mapping[str, Tensor]) -> Tensor:
        words, zeros, scales = (parts[name] for name in (".qweight", ".qzeros", ".scales"))
        values_IO = _unpacked(words.T, self.bits).flatten(1).T
        zeros_GO = (_unpacked(zeros, self.bits).flatten(1) + self.offset) & ((1 << self.bits) - 1)
        inputs = len(values_IO)
        group = self.group if self.group > 0 else inputs
        _check_groups(values_IO, zeros_GO, scales, group)
        index_I = _whole(parts[".g_idx"]) if ".g_idx" in parts else torch.arange(inputs) // group
        if index_I.shape != (inputs,) or not bool(((index_I >= 0) & (index_I < len(scales))).all()):
            raise IndexError(f"g_idx must name one of {len(scales)} groups for each of {inputs} inputs")
        return ((values_IO - zeros_GO[index_I]).float() * scales.float()[index_I]).T.contiguous()


class Awq(PackedCheckpoint):
    """AWQ (https://arxiv.org/abs/2306.00978) as AutoAWQ writes it ("gemm").

    qweight [I, O/8] and qzeros [G, O/8] are packed along the outputs, whose order in a word is 0, 2, 4, 6, 1, 3, 5, 7.
    """

    PARTS = (".qweight", ".qzeros", ".scales")
    ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

    def configure(self, fields: Fields) -> None:
        fields.only("quant_method", "awq")
        fields.only("bits", 4)
        fields.only("version", "gemm", "GEMM")
        fields.only("zero_point", True)
        self.group = _group_size(fields, 128)
        fields.ignore(("backend", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "modules_to_not_convert"))
        fields.ignore(("exllama_config", "w_bit", "q_group_size"))

    def unpack(self, parts: Mapping[str, Tensor]) -> Tensor:
        place = torch.tensor(self.ORDER).argsort()
        values_IO, zeros_GO = (_unpacked(parts[name], 4)[..., place].flatten(1) for name in (".qweight", ".qzeros"))
        group = self.group if self.group > 0 else len(values_IO)
        _check_groups(values_IO, zeros_GO, parts[".scales"], group)
        index_I = torch.arange(len(values_IO)) // group
        return ((values_IO - zeros_GO[index_I]).float() * parts[".scales"].float()[index_I]).T.contiguous()


class Float8(PackedCheckpoint):
    """float8 e4m3 with one factor a block of the matrix, as DeepSeek-V3 is published
    (https://arxiv.org/abs/2412.19437).

    weight [O, I], weight_scale_inv [⌈O/b⌉, ⌈I/c⌉] for blocks of b outputs and c inputs.
    """

    PARTS = (".weight_scale_inv", ".weight")

    def configure(self, fields: Fields) -> None:
        fields.only("quant_method", "fp8")
        fields.only("fmt", "e4m3")
        block = fields.sequence("weight_block_size") or [128, 128]
        if len(block) != 2 or not all(isinstance(size, int) and size > 0 for size in block):
            raise ValueError(f"weight_block_size is {shown(block)}, where two numbers are wanted")
        self.block: tuple[int, int] = (block[0], block[1])
        # Activations are rounded by programs that multiply in float8; nothing here does.
        fields.ignore(("activation_scheme", "modules_to_not_convert", "dequantize", "scale_fmt"))

    def unpack(self, parts: Mapping[str, Tensor]) -> Tensor:
        weight = parts[".weight"].float()
        rows, columns = weight.shape
        grid_shape = -(-rows // self.block[0]), -(-columns // self.block[1])
        if parts[".weight_scale_inv"].shape != grid_shape:
            raise IndexError(f"blocks of {self.block} ask for factors of shape {list(grid_shape)}")
        scales = parts[".weight_scale_inv"].float().repeat_interleave(self.block[0], 0)[:rows]
        return weight.mul_(scales.repeat_interleave(self.block[1], 1)[:, :columns])


PACKED: Mapping[str, Callable[[TensorSource, Mapping[str, Any], str], TensorSource]] = {
    "gptq": Gptq,
    "awq": Awq,
    "fp8": Float8,
}


def unpacked(source: TensorSource, config: object, origin: str) -> TensorSource:
    """The tensors as those of a checkpoint that was never quantised. config: of how it was, or None.

    UnsupportedModelError for a method or a setting that is not known.
    """
    if config is None:
        return source
    if not isinstance(config, dict):
        raise CheckpointError(f"{origin}: quantization_config must be an object, not {config!r}")
    fields = cast("dict[str, Any]", config)
    method = str(fields.get("quant_method"))
    if method == "mxfp4":  # of experts, whose blocks a family's own rules read
        return source
    if method not in PACKED:
        supported = ", ".join(PACKED)
        raise UnsupportedModelError(f"{origin}: weights quantised by {method!r} are not supported (only {supported})")
    try:
        return PACKED[method](source, fields, origin)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{origin}: quantization_config has a value of the wrong kind ({error})") from error


log = logging.getLogger("bedplate.models")

BASE_FILE = "base.json"
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


class HfCheckpoint:
    """One directory (see `Checkpoint`)."""

    gguf = None

    def __init__(self, path: Path) -> None:
        self.path, self.location = path, str(path / "config.json")
        if not (path / "config.json").is_file():
            hint = did_you_mean([str(file.parent) for file in sorted(path.glob("*/config.json"))], show=str)
            problem = f"{path} has no config.json; a base directory needs one (Hugging Face layout)"
            raise CheckpointError("; ".join(filter(None, (problem, hint))))
        config = read_object(path / "config.json")
        self._outer = outer = find_multimodal(config)
        self._generation: dict[str, Any] | None = None
        config = config if outer is None else outer.text_config(config, self.location)
        family = claimed_family(config, self.location)
        self.packing: Any = config.pop("quantization_config", None)
        self._files = open_weights(path, family.weights)
        self._part = None if outer is None else TextPart(self._files, outer, self.location)
        self._tensors = unpacked(self._part or self._files, self.packing, self.location)
        self.names = tuple(self._tensors.names)
        self.config = config = config if outer is None else outer.with_head(config, self.names)
        spec = read_scored(path, spec_of_fields(family, config, self.names, self.location))
        self.headless = is_headless(spec, family, self.names, config, path)
        # Its model makes predictions of the token table, which nobody is to use.
        self.spec = spec.with_(tied_head=True) if self.headless and isinstance(spec, TransformerSpec) else spec
        self.family = family.of(self.spec)
        self.states = [file_state(path / name) for name in self._files.files]
        self.stored_dtype = self._stored_dtype()
        self.stored_types = dtype_name(self.stored_dtype)
        self.record = read_object(path / BASE_FILE) if (path / BASE_FILE).is_file() else {}
        self.lineage: dict[str, Any] = self.record.get("lineage", {})
        if outer is not None and self._part is not None:
            self.lineage = self.lineage | {"text_of": {"model_type": outer.name, "left_out": self._part.left_out}}

    @property
    def _stored_names(self) -> Collection[str] | None:
        return None if self._part is None else self._part.stored_names

    @property
    def matrix_types(self) -> frozenset[str]:
        return self._files.matrix_types(self._stored_names)

    def _stored_dtype(self) -> torch.dtype:
        """The narrowest dtype that holds every matrix as it is stored; where matrices are packed, that of the token
        table, or else of the first tensor that is not packed."""
        dtypes = [_DTYPES[name] for name in sorted(self.matrix_types) if name in _DTYPES]
        if dtypes and self.packing is None:
            return reduce(torch.promote_types, dtypes)
        embedding = (n for n in self.names if self.family.weights.from_external(n) == "embedding.weight")
        return self._tensors.get(next(embedding, self.names[0])).dtype

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._tensors.get(name)

    def release(self, name: str) -> None:
        if self._tensors is self._files and isinstance(self._files, SafetensorsReader):
            self._files.release(name)

    def close(self) -> None:
        self._files.__exit__()

    def reopener(self) -> Callable[[], AbstractContextManager[Callable[[str], Tensor]]]:
        path, weights, outer = self.path, self.family.weights, self._outer
        packing, location = self.packing, self.location

        @contextmanager
        def reopen() -> Generator[Callable[[str], Tensor]]:
            with open_weights(path, weights) as files:
                yield unpacked(files if outer is None else TextPart(files, outer, location), packing, location).get

        return reopen

    @property
    def generation(self) -> dict[str, Any]:
        if self._generation is None:  # read once: it logs what is not followed
            self._generation = read_generation(self.path, self.config)
        return self._generation

    def tokenizer(self) -> Tokenizer | None:
        forced = self.generation.get("forced_bos_token_id") is not None
        return read_tokenizer(self.path, self.spec, first_is_forced=forced)

    def sentence(self) -> SentenceLayers | None:
        return read_sentence(self.path, self.spec.hidden_size)

    def log_omitted(self, source: str) -> None:
        if self._outer is not None and self._part is not None:
            self._part.log_omitted(source, self._outer)


WeightFiles = SafetensorsReader | OnnxReader


def open_weights(directory: Path, weights: WeightMap | None = None) -> WeightFiles:
    """Safetensors files, or else ONNX's. weights: of the family whose names a graph's are turned into; without it they
    stay the graph's own."""
    plain = any((directory / name).is_file() for name in (SINGLE, INDEX))
    return OnnxReader(directory, weights) if not plain and OnnxReader.is_in(directory) else SafetensorsReader(directory)


def is_headless(spec: TextSpec, family: Family, names: Collection[str], config: Mapping[str, Any], path: Path) -> bool:
    """Whether a head that is not the token table is left out on purpose (e5-mistral, Qwen3-Embedding-8B): as the
    sentence encoder's file beside it says, or the class that config.json names."""
    if spec.kind != "decoder" or spec.tied_head:
        return False
    if any(family.weights.from_external(name) == "lm_head.weight" for name in names):
        return False
    architectures = config.get("architectures")
    classes = architectures if isinstance(architectures, list) else [architectures]
    # GPT-2's class with a head ends in "LMHeadModel".
    bodies = (str(class_name).endswith("Model") and not str(class_name).endswith("HeadModel") for class_name in classes)
    return (path / MODULES).is_file() or any(bodies)


class TextPart:
    """A view of `files`. left_out: bytes of each other part, whose tensors are not read. CheckpointError, naming it,
    for a tensor that is of no part, or that is stored twice."""

    def __init__(self, files: WeightFiles, outer: Multimodal, origin: str) -> None:
        self._files = files
        self._stored_names: dict[str, str] = {}
        sizes: Counter[str] = Counter()
        for name in files.names:
            text, part = outer.text_name(name), outer.part_of(name)
            if text is not None:
                if text in self._stored_names:
                    raise CheckpointError(
                        f"{origin}: {self._stored_names[text]!r} and {name!r} are both the text model's {text!r}"
                    )
                self._stored_names[text] = name
            elif part is not None:
                sizes[part] += files.nbytes(name)
            else:
                parts = ", ".join(dict.fromkeys(part for _, part in outer.parts))
                raise CheckpointError(
                    f"{origin}: the checkpoint holds {name!r}, which is neither of the text model nor of another part "
                    f"of {outer.name} ({parts})"
                )
        self.left_out = dict(sorted(sizes.items()))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._stored_names)

    @property
    def stored_names(self) -> tuple[str, ...]:
        """The same tensors, as the files name them."""
        return tuple(self._stored_names.values())

    def get(self, name: str) -> Tensor:
        """One tensor, in the file's dtype."""
        return self._files.get(self._stored_names[name])

    def log_omitted(self, source: str, outer: Multimodal) -> None:
        """What is not loaded, in one line."""
        parts = ", ".join(f"{part} ({size:,} bytes)" for part, size in self.left_out.items()) or "nothing"
        log.warning("%s: of this %s checkpoint the text model alone is loaded; left out: %s", source, outer.name, parts)
