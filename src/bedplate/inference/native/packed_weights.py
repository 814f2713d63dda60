"""Packs a model's weights for the kernel, for decoders and encoders alike: which models it takes, in which formats, and
their adapters.

Activations are int8 by token and block of 32 features for int8 and int4 weights (as in llama.cpp), bfloat16 for
bfloat16 weights where the processor multiplies those, else float32; sums, norms and the residual stream are float32.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.core.errors import ContextLengthExceeded, UsageError
from bedplate.inference.native import description
from bedplate.inference.native.allowed import refused_field
from bedplate.inference.native.library import PLACES, Call, Library, NativeLowRank, load
from bedplate.inference.native.quantize import accepts_blocks, quantise_int4, quantise_int8
from bedplate.models.checkpoints.gguf_blocks import RawBlocks
from bedplate.models.decoder import Decoder
from bedplate.models.encoder import Encoder
from bedplate.models.gguf_header import TYPES
from bedplate.models.layers.linear import Linear
from bedplate.models.model import Model
from bedplate.models.specs import TextSpec, TransformerSpec

WeightFormat = Literal["float32", "bfloat16", "int8", "int4"]
_DTYPES: dict[torch.dtype, WeightFormat] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_BLOCK_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_BLOCK, _MAX_HEAD, _MAX_SHARED, _MAX_RANK = 32, 512, 64, 4096


@dataclass(frozen=True, eq=False)
class NativeAdapter:
    """A LoRA or DoRA adapter as the kernel reads it: pointers into tensors that this holds on to, whoever else does.
    pairs: module path (`layers.0.attention.q`) → (A [r, in], B [out, r], scaling), in the base's dtype, A contiguous
    and B with contiguous columns (its transpose [r, out] contiguous). scales: module path → (scale, shift), float32
    [out], that the outputs there are multiplied by and moved by; shift where the linear has a bias."""

    pairs: Mapping[str, tuple[Tensor, Tensor, float]]
    scales: Mapping[str, tuple[Tensor, Tensor | None]]
    table: ctypes.Array[NativeLowRank]

    @property
    def address(self) -> int:
        return ctypes.addressof(self.table)


def unsupported(spec: TextSpec, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why such a model cannot run natively (no compiler, another architecture or layout), or None if it can."""
    if device.type != "cpu":
        return f"the native path is for CPUs, and the model is on {device}"
    if dtype not in _DTYPES:
        return f"the native path takes float32 and bfloat16 bases, and this one is {str(dtype).removeprefix('torch.')}"
    if not isinstance(spec, TransformerSpec):
        return "the native kernel runs decoders and encoders, and this is an encoder–decoder"
    field = refused_field(spec)
    if field is not None:
        return f"the native path cannot do {field} = {spec.flat()[field]!r}"
    reason = _unfit(spec)
    if reason is not None:
        return reason
    library = load()
    return library if isinstance(library, str) else None


def _unfit(spec: TransformerSpec) -> str | None:
    """Which size of what layers have the kernel has no block for."""
    sizes = [("hidden_size", spec.hidden_size), ("layer_input_size", spec.layer_input_size)]
    if spec.experts is not None:
        sizes.append(("experts.feedforward_size", spec.experts.feedforward_size))
        sizes.append(("experts.shared_size", spec.experts.shared_size))
    heads = [spec.head_dim_of(layer) for layer in range(spec.layers)]
    sizes += [("feedforward_size", spec.feedforward_size_of(layer)) for layer in range(spec.layers)]
    sizes += [("heads · head_dim", spec.attention.heads * size) for size in heads]
    for name, size in sizes:
        if size % _BLOCK:
            return f"{name} is {size}, and the native path needs a multiple of {_BLOCK}"
    for size in heads:
        if size % 16 or size > _MAX_HEAD:
            return f"head_dim is {size}, and the native path needs a multiple of 16 up to {_MAX_HEAD}"
    if spec.attention.heads // min(spec.kv_heads_of(layer) for layer in range(spec.layers)) > _MAX_SHARED:
        return f"more than {_MAX_SHARED} query heads share one key-value head"
    return None


class PackedWeights:
    """A model's weights as the kernel holds them.

    weights: what they are stored as. `blocks`: parameter name → blocks that the checkpoint itself holds, taken as they
    are where the format allows; everything else is quantised here, the head always to 8 bits. threads: default torch's
    number. Raises UsageError where `unsupported` gives a reason, and for weights that are neither quantised nor in the
    base's dtype. The model must outlive this: its embedding is shared.
    """

    def __init__(
        self,
        model: Model,
        weights: WeightFormat,
        *,
        blocks: Mapping[str, RawBlocks] | None = None,
        threads: int | None = None,
        library: Library | None = None,
    ) -> None:
        self._handle: int | None = None
        reason = unsupported(model.spec, model.dtype, model.device)
        native_library = library or load()
        if reason is not None or isinstance(native_library, str):
            raise UsageError(f"this model cannot run natively: {reason or native_library}")
        spec = model.spec
        assert isinstance(model, Decoder | Encoder)  # what the allowed specs are built as
        assert isinstance(spec, TransformerSpec)
        self._dtype = model.dtype
        base_format = _DTYPES[self._dtype]
        if weights not in (base_format, "int8", "int4"):
            raise UsageError(f"a {base_format} base runs natively as {base_format}, int8 or int4, not {weights}")
        self.weights: WeightFormat = weights
        self.spec = spec
        self.threads = threads or torch.get_num_threads()
        self._library, self._model = native_library, model
        self._sources = [spec.keys_of(layer) for layer in range(spec.layers)]
        self._tables = _tables(model)
        shape = description.shape_of(spec, self._dtype, self.threads, weights == base_format)
        at = (None if table is None else table.data_ptr() for table in self._tables)
        self._handle = native_library.new(shape, *at)
        if not self._handle:
            raise MemoryError("not enough memory for the native kernel")
        self._fill(model, blocks or {})
        self.weight_bytes = int(native_library.bytes(self._handle))
        """Bytes of the packed weights; the embedding is shared with the model."""

    @property
    def learned(self) -> int | None:
        """How many positions have a learned vector; None where positions have none."""
        return None if self._tables[1] is None else len(self._tables[1])

    def _fill(self, model: description.Stack, blocks: Mapping[str, RawBlocks]) -> None:
        library, spec = self._library, self.spec
        distinct_ropes, ropes = description.ropes_of(spec)
        for rope, size in distinct_ropes:
            factor, pairs = description.turning(rope, size)
            self._check_code(library.turning(self._handle, 2 * len(pairs), rope.interleaved, factor, pairs.data_ptr()))
        for layer, (rope, block) in enumerate(zip(ropes, model.layers, strict=True)):
            shape = spec.head_dim_of(layer), spec.kv_heads_of(layer), spec.keys_of(layer)
            scales = description.scales_of(spec, layer, block)
            self._check_code(library.layer(self._handle, layer, spec.window(layer) or 0, rope, *shape, *scales))
        for vector in description.vectors(model):
            at = vector.weight.data_ptr(), None if vector.bias is None else vector.bias.data_ptr()
            self._check_code(
                library.vector(self._handle, vector.layer, vector.vector_index, vector.weight.numel(), *at)
            )
        for matrix in description.matrices(model):
            self._add(matrix, blocks.get(matrix.name), self.weights == "int8" or matrix.layer == description.OUTER)

    def _add(self, matrix: description.Matrix, stored: RawBlocks | None, eight: bool) -> None:
        weight, (*experts, out, size) = matrix.weight.detach(), matrix.weight.shape
        bias = None if matrix.bias is None else matrix.bias.detach().float().contiguous()
        if self.weights in _DTYPES.values():
            block_type, raw = _BLOCK_TYPES[self._dtype], weight.contiguous()
        else:
            if stored is None or not accepts_blocks(stored.ggml_type, self.weights):
                flat = weight.flatten(0, -2)
                stored = quantise_int8(flat) if eight else quantise_int4(flat)
            block_type, raw = stored.ggml_type, stored.data
        at = raw.data_ptr(), None if bias is None else bias.data_ptr()
        add = self._library.experts if experts else self._library.linear
        self._check_code(add(self._handle, matrix.layer, matrix.place, TYPES[block_type].number, size, out, *at))

    def adapter(
        self,
        pairs: Mapping[str, tuple[Tensor, Tensor, float]],
        scales: Mapping[str, tuple[Tensor, Tensor | None]] | None = None,
    ) -> NativeAdapter:
        """Prepares an adapter once (see `NativeAdapter`). Raises UsageError for tensors that cannot be shared, and for
        linears that the kernel adds nothing to (those of experts)."""
        paths = [f"layers.{layer}.{name}" for layer in range(self.spec.layers) for name in PLACES]
        numbers, table = {path: number for number, path in enumerate(paths)}, (NativeLowRank * len(paths))()
        unsupported_path = next((path for path in (*pairs, *(scales or {})) if path not in numbers), None)
        if unsupported_path is not None:
            raise UsageError(f"the native path has no adapters at {unsupported_path}; run this one with kernel torch")
        for path, (a, b, scaling) in pairs.items():
            if a.dtype != self._dtype or b.dtype != self._dtype:
                raise UsageError(f"{path}: the adapter is {a.dtype}, and the base is {self._dtype}")
            if not a.is_contiguous() or not b.t().is_contiguous():
                raise UsageError(f"{path}: A must be contiguous, and B's transpose")
            if a.shape[0] > _MAX_RANK:
                raise UsageError(f"{path}: rank {a.shape[0]} is over {_MAX_RANK}")
            at = (None if tensor is None else tensor.data_ptr() for tensor in (scales or {}).get(path, (None, None)))
            table[numbers[path]] = NativeLowRank(a.data_ptr(), b.data_ptr(), a.shape[0], scaling, *at)
        return NativeAdapter(dict(pairs), dict(scales or {}), table)

    def adapter_of(self, bank: Bank, slot: int) -> NativeAdapter:
        """A bank's frozen adapter, sharing its A and B. Raises UsageError for one that is being trained."""
        return self.adapter(
            {path: (pair.a.detach(), pair.b.detach(), pair.scaling) for path, pair in bank.low_rank(slot).items()},
            {path: (scale, self._shift(path, scale)) for path, scale in bank.scales(slot).items()},
        )

    def _shift(self, path: str, scale: Tensor) -> Tensor | None:
        """The kernel scales what it has added the bias to."""
        linear = self._model.get_submodule(path)
        assert isinstance(linear, Linear)
        return None if linear.bias is None else ((1.0 - scale) * linear.bias.detach().float()).contiguous()

    def close(self) -> None:
        """Frees the packed weights; the model cannot be used after it."""
        if self._handle is not None:
            self._library.free(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.close()

    @staticmethod
    def _check_code(code: int) -> None:
        if code:
            raise MemoryError("not enough memory for the native kernel")


def _tables(model: description.Stack) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Vectors of tokens, of positions (from the first token's on), of a text's parts, and of what all layers are told
    of a token, contiguous."""
    positions = model.position_embedding
    types = model.token_type_embedding if isinstance(model, Encoder) else None
    learned = None if positions is None else positions.weight.detach()[model.spec.main.position.offset :].contiguous()
    parts = None if types is None else types.weight.detach().contiguous()
    layer_inputs = model.layer_inputs if isinstance(model, Decoder) else None
    rows = None if layer_inputs is None else layer_inputs.embedding.weight.detach().contiguous()
    return model.embedding.weight.detach().contiguous(), learned, parts, rows


class NativeEncoder(PackedWeights):
    """An encoder whose whole forward pass is one compiled call: whole texts behind each other, without padding. The
    states of a text are bit for bit the same beside any others. Shapes: N tokens of all texts, D features."""

    def forward(
        self,
        tokens: Sequence[int],
        lengths: Sequence[int],
        types: Sequence[int] = (),
        adapters: Sequence[NativeAdapter | None] | None = None,
        depth: int | None = None,
    ) -> Tensor:
        """The states float32 [N, D] of whole texts: after the final norm where there is one, or, with `depth`, after so
        many blocks and before it. lengths: tokens of each text, in their order. types: of each token, which part of its
        text it is of; () where all are 0. adapters: each text's, or None. Raises UsageError for numbers that the model
        has no vectors of, ContextLengthExceeded for a text that is longer than it takes."""
        N = len(tokens)
        self._check(tokens, lengths, types, depth)
        hidden_ND = torch.empty(N, self.spec.hidden_size)
        if not N:
            return hidden_ND
        sizes = np.array(lengths, dtype=np.int64)
        starts = np.cumsum(sizes) - sizes
        index = np.zeros((5, N), dtype=np.int64)
        index[0], index[1], index[2] = tokens, np.repeat(starts, sizes), np.repeat(sizes, sizes)
        index[3] = np.arange(N) - index[1]
        if types:
            index[4] = types
        of_token, row, length, position, token_type = (index.ctypes.data + 8 * N * i for i in range(5))
        table = None
        if adapters is not None and any(adapter is not None for adapter in adapters):
            addresses = [None if adapter is None else adapter.address for adapter in adapters]
            token_addresses = (address for address, size in zip(addresses, lengths, strict=True) for _ in range(size))
            table = (ctypes.c_void_p * N)(*token_addresses)
        call = Call(
            tokens_count=N,
            depth=-1 if depth is None else depth,
            tokens=of_token,
            rows=row,
            positions=position,
            lengths=length,
            types=token_type if types else None,
            adapters=None if table is None else ctypes.addressof(table),
            hidden=hidden_ND.data_ptr(),
        )
        self._check_code(self._library.forward(self._handle, call))
        return hidden_ND

    def _check(self, tokens: Sequence[int], lengths: Sequence[int], types: Sequence[int], depth: int | None) -> None:
        """What would otherwise read or write outside the memory it was given."""
        spec, N = self.spec, len(tokens)
        if sum(lengths) != N or min(lengths, default=1) < 1 or (types and len(types) != N):
            raise UsageError(f"{N} tokens, {len(types)} types and texts of {list(lengths)} tokens do not go together")
        limits = {"token": (tokens, spec.vocab_size), "type": (types, max(spec.token_types, 1))}
        for name, (values, limit) in limits.items():
            if values and not 0 <= min(values) <= max(values) < limit:
                raise UsageError(f"a {name} number of a native forward is outside 0 … {limit - 1}")
        longest = min(spec.context_length, spec.context_length if self.learned is None else self.learned)
        if max(lengths, default=0) > longest:
            raise ContextLengthExceeded(f"a text of {max(lengths)} tokens is longer than the encoder's {longest}")
        if depth is not None and not 0 <= depth <= spec.layers:
            raise UsageError(f"depth {depth} is outside 0 … {spec.layers}")


_ANY = 1 << 31


@dataclass(frozen=True, eq=False)
class Forwarded:
    """What a forward yields. W wanted tokens, N tokens, V vocabulary, D features. Of the wanted tokens (empty when none
    are): logits_WV float32, where they were asked for; argmax_W int64, and top_W float32, the logits that stand there;
    logsumexp_W float32. hidden_ND float32 where it was asked for: after the final norm, or, with `depth`, after so many
    blocks and before it."""

    logits_WV: Tensor | None
    argmax_W: np.ndarray
    top_W: np.ndarray
    logsumexp_W: np.ndarray
    hidden_ND: Tensor | None


class NativeDecoder(PackedWeights):
    """A decoder's weights packed for the kernel, and its whole forward pass as one compiled call: decode, chunked
    prefill, verification of drafted tokens. A token's result is bit for bit the same whatever else is in the call and
    however its sequence is cut into calls."""

    @cached_property
    def _buffers(self) -> list[tuple[np.ndarray, weakref.ref[np.ndarray]]]:
        """Memory of logits, each with the array over it that a tensor holds while it is used."""
        return []

    @cached_property
    def _windows(self) -> list[int | None]:
        """How many tokens each layer sees; None: all."""
        return [self.spec.window(layer) for layer in range(self.spec.layers)]

    def forward(
        self,
        tokens: Sequence[int],
        rows: Sequence[int],
        positions: Sequence[int],
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        logit_indices: Sequence[int],
        adapters: Sequence[NativeAdapter | None] | None = None,
        depth: int | None = None,
        states: bool = False,
        keep_logits: bool = True,
    ) -> Forwarded:
        """Runs N tokens of a flat batch.

        Token i is `tokens[i]` at absolute position `positions[i]` of cache row `rows[i]`; a row's tokens stand
        together, in order of position. keys, values: per layer [R, G, C, D] in the base's dtype, contiguous, position
        p at place p % C (of layers that use another one's, that one's are taken); the new tokens' are written there,
        then token i attends to its row's positions 0 …
        positions[i], or to so many of the last of them as the layer's window says: such a layer needs no more places
        than its window and the new tokens of a row have. logit_indices: numbers of the tokens whose logits are wanted;
        keep_logits: or, without it, no more of them than what follows likeliest. adapters: each token's, or None.
        depth: run so many blocks only and return the states after them (no logits). states: also return the states
        after the final norm.
        """
        spec, count = self.spec, len(tokens)
        index = np.empty((3, count), dtype=np.int64)
        index[0], index[1], index[2] = tokens, rows, positions
        if spec.attention.shared_keys is not None:
            keys, values = ([tensors[source] for source in self._sources] for tensors in (keys, values))
        places = np.array([tensor.shape[2] for tensor in keys], dtype=np.int64)
        self._check(index, keys, places, logit_indices, depth)
        N, W = count, 0 if depth is not None else len(logit_indices)
        logits = self._logits(W) if W and keep_logits else None
        best, (top, logsumexp) = np.empty(W, dtype=np.int64), np.empty((2, W), dtype=np.float32)
        hidden = torch.empty(N, spec.hidden_size) if states or depth is not None else None
        chosen = np.array(logit_indices, dtype=np.int64)
        pointers = ctypes.c_void_p * spec.layers
        key_table, value_table = (pointers(*(t.data_ptr() for t in tensors)) for tensors in (keys, values))
        adapter_table = None
        if adapters is not None and any(a is not None for a in adapters):
            adapter_table = (ctypes.c_void_p * N)(*(None if a is None else a.address for a in adapters))
        at = index.ctypes.data
        call = Call(
            tokens_count=N,
            scored_count=W,
            depth=-1 if depth is None else depth,
            tokens=at,
            rows=at + 8 * N,
            positions=at + 16 * N,
            scored=chosen.ctypes.data,
            keys=ctypes.addressof(key_table),
            values=ctypes.addressof(value_table),
            places=places.ctypes.data,
            adapters=None if adapter_table is None else ctypes.addressof(adapter_table),
            logits=None if logits is None else logits.data_ptr(),
            best=best.ctypes.data,
            top=top.ctypes.data,
            logsumexp=logsumexp.ctypes.data,
            hidden=None if hidden is None else hidden.data_ptr(),
        )
        if count:
            self._check_code(self._library.forward(self._handle, call))
        return Forwarded(logits, best, top, logsumexp, hidden)

    def _logits(self, W: int) -> Tensor:
        """[W, V], in memory that no tensor uses any more where there is such: new pages cost a tenth of a step."""
        size = W * self.spec.vocab_size
        free = [buffer for buffer, user in self._buffers if user() is None]
        buffer = next((b for b in free if b.size >= size), None)
        self._buffers[:] = ((b, user) for b, user in self._buffers if user() is not None)
        if buffer is None:
            buffer = np.empty(size, dtype=np.float32)
        view = buffer[:size]
        # The tensor keeps `view` for as long as it or anything that shares its memory lives.
        self._buffers.append((buffer, weakref.ref(view)))
        return torch.frombuffer(view, dtype=torch.float32).view(W, -1)

    def _check(
        self,
        index: np.ndarray,
        keys: Sequence[Tensor],
        places: np.ndarray,
        logit_indices: Sequence[int],
        depth: int | None,
    ) -> None:
        """What would otherwise read or write outside the memory it was given."""
        if not index.shape[1]:
            return
        limits = (self.spec.vocab_size, keys[0].shape[0], self._positions(places, int(np.bincount(index[1]).max())))
        minimums, maximums = index.min(axis=1).tolist(), index.max(axis=1).tolist()
        for name, low, high, limit in zip(("token", "row", "position"), minimums, maximums, limits, strict=True):
            if low < 0 or high >= limit:
                raise UsageError(f"a {name} number of a native forward is outside 0 … {limit - 1}")
        if keys[0].dtype != self._dtype:
            raise UsageError(f"the cache holds {keys[0].dtype}, and this base's is {self._dtype}")
        if logit_indices and not 0 <= min(logit_indices) <= max(logit_indices) < index.shape[1]:
            raise UsageError(f"a wanted token is outside 0 … {index.shape[1] - 1}")
        if depth is not None and not 0 <= depth <= self.spec.layers:
            raise UsageError(f"depth {depth} is outside 0 … {self.spec.layers}")

    def _positions(self, places: np.ndarray, tokens: int) -> int:
        """How many positions there may be, where one row has so many new tokens."""
        limit = _ANY if self.learned is None else self.learned
        for window, C in zip(self._windows, places.tolist(), strict=True):
            if window is None or window + tokens - 1 > C:
                limit = min(limit, C)
        return limit
