"""Checkpoints whose matrices are stored in few bits, read as plain ones: GPTQ, AWQ, and float8 in blocks.

What a file stores in place of a matrix is known from `quantization_config` in its config.json. Shapes: O outputs and I
inputs of a linear layer, G groups of inputs, P values packed into one int32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor

from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.models.families.fields import Fields, shown


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
