"""What a native decoder or encoder tells its kernel, written down so that native_driver.cpp can tell it to another."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from bedplate.inference.native.library import PLACES, Call, Library, NativeLowRank, NativeShape


class Recorder:
    """Stands between a NativeDecoder or NativeEncoder and a kernel: passes every call on and writes it to `path`."""

    def __init__(self, library: Library, path: Path) -> None:
        self._library, self._file = library, path.open("wb")
        self.level, self.digest, self.bytes = library.level, library.digest, library.bytes
        self._adapters: dict[int, int] = {}
        self._written = 0  # adapters, of all decoders so far
        self._cache: dict[int, int] = {}
        self._recorded_cache: tuple[int, ...] = ()

    def as_library(self) -> Library:
        return cast(Library, self)

    def close(self) -> None:
        self._file.close()

    def _numbers(self, *values: int) -> None:
        self._file.write(struct.pack(f"<{len(values)}q", *values))

    def _array(self, address: int | None, size: int) -> None:
        if not address:
            return self._numbers(-1)
        self._numbers(size)
        self._file.write(ctypes.string_at(address, size))
        return None

    def new(self, shape: NativeShape, embedding: int, *tables: int | None) -> int | None:
        """tables: of positions, of types, and of the inputs of single layers."""
        self._shape, self._width = shape, 4 if shape.wide else 2
        self._sizes: dict[tuple[int, int], tuple[int, int]] = {}
        self._recorded_cache, self._adapters = (), {}
        self._numbers(ord("N"))
        self._array(ctypes.addressof(shape), ctypes.sizeof(shape))
        layer_table_size = shape.vocabulary * shape.layers * shape.layer_input
        sizes = (
            *(rows * shape.hidden for rows in (shape.vocabulary, shape.positions, shape.token_types)),
            layer_table_size,
        )
        for table, size in zip((embedding, *tables), sizes, strict=True):
            self._array(table, size * self._width)
        return self._library.new(shape, embedding, *tables)

    def turning(self, handle: int, size: int, interleaved: int, factor: float, frequencies: int) -> int:
        self._numbers(ord("T"), size, interleaved, 4)
        self._file.write(struct.pack("<f", factor))
        self._array(frequencies, size // 2 * 4)
        return self._library.turning(handle, size, interleaved, factor, frequencies)

    def layer(self, handle: int, *a: Any) -> int:
        *numbers, output_scale, score_scale = a
        self._numbers(ord("L"), *numbers, 8)
        self._file.write(struct.pack("<2f", output_scale, score_scale))
        return self._library.layer(handle, *a)

    def vector(self, handle: int, layer: int, vector_index: int, size: int, weight: int, bias: int | None) -> int:
        self._numbers(ord("V"), layer, vector_index, size)
        self._array(weight, size * 4)
        self._array(bias, size * 4)
        return self._library.vector(handle, layer, vector_index, size, weight, bias)

    def linear(self, handle: int, *a: Any) -> int:
        layer, place, _, size, out, *_ = a
        self._sizes[layer, place] = size, out
        self._matrices("W", 1, *a)
        return self._library.linear(handle, *a)

    def experts(self, handle: int, *a: Any) -> int:
        self._matrices("E", self._shape.experts, *a)
        return self._library.experts(handle, *a)

    def _matrices(self, tag: str, count: int, *a: Any) -> None:
        """So many of one shape, behind each other."""
        layer, place, code, size, out, data, bias = a
        self._numbers(ord(tag), layer, place, code, size, out)
        values, of_block = GGML_QUANT_SIZES[GGMLQuantizationType(code)]
        self._array(data, count * out * size // values * of_block)
        self._array(bias, count * out * 4)

    def free(self, handle: int) -> None:
        self._library.free(handle)

    def forward(self, handle: int, call: Call) -> int:
        layers = self._shape.layers
        if call.keys:
            self._tell_cache(call)
        numbers: list[int] | None = None
        if call.adapters:
            tables = (ctypes.c_void_p * call.tokens_count).from_address(call.adapters)
            numbers = [-1 if address is None else self._adapter(address) for address in tables]
        N = call.tokens_count
        self._numbers(ord("F"), N, call.scored_count, call.depth, bool(call.hidden), bool(call.logits))
        self._array(call.places, 8 * layers)
        for address in (call.tokens, call.rows, call.positions, call.lengths, call.types):
            self._array(address, 8 * N)
        self._array(call.scored, 8 * call.scored_count)
        if numbers is None:
            self._numbers(-1)
        else:
            self._numbers(8 * N, *numbers)
        return self._library.forward(handle, call)

    def _tell_cache(self, call: Call) -> None:
        pointers = ctypes.c_void_p * self._shape.layers
        keys, values = (pointers.from_address(address) for address in (call.keys, call.values))
        cache = tuple(int(address) for pair in zip(keys, values, strict=True) for address in pair)
        if cache != self._recorded_cache:
            self._numbers(ord("C"))
            for address in cache:
                self._array(address, self._cache[address])
            self._recorded_cache = cache

    def new_cache(self, tensors: Sequence[Tensor]) -> None:
        """To be called with a cache's tensors, keys and values, before its first forward."""
        self._cache = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}
        self._recorded_cache = ()

    def _adapter(self, address: int) -> int:
        if address not in self._adapters:
            self._adapters[address] = self._written
            self._written += 1
            self._numbers(ord("A"))
            table = (NativeLowRank * (self._shape.layers * len(PLACES))).from_address(address)
            for i, low in enumerate(table):
                size, out = self._sizes.get(divmod(i, len(PLACES)), (0, 0))
                self._numbers(low.rank, 4)
                self._file.write(struct.pack("<f", low.scaling))
                self._array(low.a, low.rank * size * self._width)
                self._array(low.b, low.rank * out * self._width)
                self._array(low.scale, out * 4)
                self._array(low.shift, out * 4)
        return self._adapters[address]


@dataclass(frozen=True)
class Replayed:
    """One forward's results; see Forwarded."""

    logits_WV: Tensor
    argmax_W: Tensor
    top_W: Tensor
    logsumexp_W: Tensor
    hidden: Tensor


def read_output(path: Path, vocabulary: int) -> list[Replayed]:
    """What the driver wrote, per forward."""
    content, at = path.read_bytes(), 0
    arrays: list[Tensor] = []
    while at < len(content):
        (size,) = struct.unpack_from("<q", content, at)
        dtype = torch.int64 if len(arrays) % 5 == 1 else torch.float32
        data = bytearray(content[at + 8 : at + 8 + size])
        arrays.append(torch.frombuffer(data, dtype=dtype) if size else torch.empty(0, dtype=dtype))
        at += 8 + size
    return [
        Replayed(logits.view(-1, vocabulary), *parts)
        for logits, *parts in zip(*(arrays[i::5] for i in range(5)), strict=True)
    ]
