"""A decoder whose whole forward pass is one compiled call: decode, chunked prefill, verification of drafted tokens.

Activations are int8 by token and block of 32 features for int8 and int4 weights (as in llama.cpp), bfloat16 for
bfloat16 weights where the processor multiplies those, else float32; sums, norms and the residual stream are float32.
A token's result is bit for bit the same whatever else is in the call and however its sequence is cut into calls.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.core.errors import UsageError
from bedplate.inference.native.allowed import refused_field
from bedplate.inference.native.description import OUTER, Matrix, matrices, ropes_of, shape_of, turning, vectors
from bedplate.inference.native.library import PLACES, Call, Library, LowRank, load
from bedplate.inference.native.quantize import quantise_int4, quantise_int8
from bedplate.models.checkpoints.gguf_blocks import RawBlocks, block_bits
from bedplate.models.decoder import Decoder
from bedplate.models.layers.linear import Linear
from bedplate.models.model import Model
from bedplate.models.specs import TextSpec, TransformerSpec

WeightFormat = Literal["float32", "bfloat16", "int8", "int4"]
_DTYPES: dict[torch.dtype, WeightFormat] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_KINDS = {torch.float32: "F32", torch.bfloat16: "BF16"}
SOURCES = frozenset(
    (
        *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    )
)
"""Blocks of GGUF files that the kernel holds as they are (`Source` in pack.h)."""
_BLOCK, _MAX_HEAD, _MAX_SHARED, _MAX_RANK = 32, 256, 64, 4096
_PLACES = len(PLACES)
_ANY = 1 << 31


def takes(kind: str, weights: str) -> bool:
    """Whether the kernel holds blocks of this type as they are where weights of so many bits are asked for."""
    return kind in SOURCES and (weights == "int4" or (weights == "int8" and block_bits(kind) >= 8))


@dataclass(frozen=True, eq=False)
class Forwarded:
    """What a forward yields. W wanted tokens, N tokens, V vocabulary, D features.

    logits_WV float32, argmax_W int64 and logsumexp_W float32 of the wanted tokens (empty when none are); hidden_ND
    float32 where it was asked for: after the final norm, or, with `depth`, after so many blocks and before it.
    """

    logits_WV: Tensor | None
    argmax_W: Tensor
    logsumexp_W: Tensor
    hidden_ND: Tensor | None


@dataclass(frozen=True, eq=False)
class NativeAdapter:
    """A LoRA or DoRA adapter as the kernel reads it: pointers into tensors that this holds on to, whoever else does.

    pairs: module path (`layers.0.attention.q`) → (A [r, in], B [out, r], scaling), in the base's dtype, A contiguous
    and B with contiguous columns (its transpose [r, out] contiguous). scales: module path → (scale, shift), float32
    [out], that the outputs there are multiplied by and moved by; shift where the linear has a bias.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor, float]]
    scales: Mapping[str, tuple[Tensor, Tensor | None]]
    table: ctypes.Array[LowRank]

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
        return "the native path is for decoders, and this one has an encoder whose states it sees"
    field = refused_field(spec)
    if field is not None:
        return f"the native path cannot do {field} = {getattr(spec, field)!r}"
    sizes = {
        "hidden_size": spec.hidden_size,
        "feedforward_size": spec.feedforward_size,
        "heads · head_dim": spec.heads * spec.head_dim,
    }
    if spec.experts is not None:
        sizes["experts.feedforward_size"] = spec.experts.feedforward_size
        sizes["experts.shared_size"] = spec.experts.shared_size
    bad = next((name for name, size in sizes.items() if size % _BLOCK), None)
    if bad is not None:
        return f"{bad} is {sizes[bad]}, and the native path needs a multiple of {_BLOCK}"
    if spec.head_dim % 16 or spec.head_dim > _MAX_HEAD:
        return f"head_dim is {spec.head_dim}, and the native path needs a multiple of 16 up to {_MAX_HEAD}"
    if spec.heads // spec.kv_heads > _MAX_SHARED:
        return f"more than {_MAX_SHARED} query heads share one key-value head"
    library = load()
    return library if isinstance(library, str) else None


class NativeDecoder:
    """A decoder's weights packed for the kernel, and its forward pass.

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
        reason = unsupported(model.spec, model.embedding.weight.dtype, model.embedding.weight.device)
        found = library or load()
        if reason is not None or isinstance(found, str):
            raise UsageError(f"this model cannot run natively: {reason or found}")
        spec = model.spec
        assert isinstance(model, Decoder)  # what the allowed specs are built as
        assert isinstance(spec, TransformerSpec)
        self._dtype = model.embedding.weight.dtype
        own = _DTYPES[self._dtype]
        if weights not in (own, "int8", "int4"):
            raise UsageError(f"a {own} base runs natively with weights {own}, int8 or int4, not {weights}")
        self.weights: WeightFormat = weights
        self.spec = spec
        self.threads = threads or torch.get_num_threads()
        self._library, self._model = found, model
        self._buffers: list[tuple[np.ndarray, weakref.ref[np.ndarray]]] = []
        self._embedding = model.embedding.weight.detach().contiguous()
        learned = model.position_embedding
        self._learned = None if learned is None else learned.weight.detach().contiguous()
        at = None if self._learned is None else self._learned.data_ptr()
        shape = shape_of(spec, self._dtype, self.threads, weights == own)
        self._handle = found.new(shape, self._embedding.data_ptr(), at)
        if not self._handle:
            raise MemoryError("not enough memory for the native decoder")
        self._fill(model, blocks or {})
        self.weight_bytes = int(found.bytes(self._handle))
        """Bytes of the packed weights; the embedding is shared with the model."""

    def _fill(self, model: Decoder, blocks: Mapping[str, RawBlocks]) -> None:
        library, spec = self._library, self.spec
        kinds, ropes = ropes_of(spec)
        for rope in kinds:
            factor, pairs = turning(rope, spec.head_dim)
            self._done(library.turning(self._handle, 2 * len(pairs), rope.interleaved, factor, pairs.data_ptr()))
        for layer, rope in enumerate(ropes):
            self._done(library.layer(self._handle, layer, spec.window(layer) or 0, rope))
        for one in vectors(model):
            at = one.weight.data_ptr(), None if one.bias is None else one.bias.data_ptr()
            self._done(library.vector(self._handle, one.layer, one.which, one.weight.numel(), *at))
        for matrix in matrices(model):
            self._add(matrix, blocks.get(matrix.name), self.weights == "int8" or matrix.layer == OUTER)

    def _add(self, matrix: Matrix, own: RawBlocks | None, eight: bool) -> None:
        weight, (*experts, out, size) = matrix.weight.detach(), matrix.weight.shape
        bias = None if matrix.bias is None else matrix.bias.detach().float().contiguous()
        if self.weights in _DTYPES.values():
            kind, raw = _KINDS[self._dtype], weight.contiguous()
        else:
            if own is None or not takes(own.kind, self.weights):
                flat = weight.flatten(0, -2)
                own = quantise_int8(flat) if eight else quantise_int4(flat)
            kind, raw = own.kind, own.data
        at = raw.data_ptr(), None if bias is None else bias.data_ptr()
        add = self._library.experts if experts else self._library.linear
        self._done(add(self._handle, matrix.layer, matrix.place, GGMLQuantizationType[kind], size, out, *at))

    def forward(
        self,
        tokens: Sequence[int],
        rows: Sequence[int],
        positions: Sequence[int],
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        wanted: Sequence[int],
        adapters: Sequence[NativeAdapter | None] | None = None,
        depth: int | None = None,
        states: bool = False,
    ) -> Forwarded:
        """Runs N tokens of a flat batch.

        Token i is `tokens[i]` at absolute position `positions[i]` of cache row `rows[i]`; a row's tokens stand
        together, in order of position. keys, values: per layer [R, G, C, D] in the base's dtype, contiguous, position
        p at place p % C; the new tokens' are written there, then token i attends to its row's positions 0 …
        positions[i], or to so many of the last of them as the layer's window says: such a layer needs no more places
        than its window and the new tokens of a row have. wanted: numbers of the tokens whose logits are wanted.
        adapters: each token's, or None. depth: run so many blocks only and return the states after them (no logits).
        states: also return the states after the final norm.
        """
        spec, count = self.spec, len(tokens)
        index = np.empty((3, count), dtype=np.int64)
        index[0], index[1], index[2] = tokens, rows, positions
        places = np.array([tensor.shape[2] for tensor in keys], dtype=np.int64)
        self._check(index, keys, places, wanted, depth)
        N, W = count, 0 if depth is not None else len(wanted)
        logits = self._logits(W) if W else None
        best, logsumexp = torch.empty(W, dtype=torch.int64), torch.empty(W)
        hidden = torch.empty(N, spec.hidden_size) if states or depth is not None else None
        chosen = np.array(wanted, dtype=np.int64)
        pointers = ctypes.c_void_p * spec.layers
        key_table, value_table = (pointers(*(t.data_ptr() for t in tensors)) for tensors in (keys, values))
        adapter_table = None
        if adapters is not None and any(a is not None for a in adapters):
            adapter_table = (ctypes.c_void_p * N)(*(None if a is None else a.address for a in adapters))
        at = index.ctypes.data
        call = Call(
            N,
            W,
            -1 if depth is None else depth,
            0,
            at,
            at + 8 * N,
            at + 16 * N,
            chosen.ctypes.data,
            ctypes.addressof(key_table),
            ctypes.addressof(value_table),
            places.ctypes.data,
            None if adapter_table is None else ctypes.addressof(adapter_table),
            None if logits is None else logits.data_ptr(),
            best.data_ptr(),
            logsumexp.data_ptr(),
            None if hidden is None else hidden.data_ptr(),
        )
        if count:
            self._done(self._library.forward(self._handle, call))
        return Forwarded(logits, best, logsumexp, hidden)

    def _logits(self, W: int) -> Tensor:
        """[W, V], in memory that no tensor uses any more where there is such: new pages cost a tenth of a step."""
        size = W * self.spec.vocab_size
        free = [buffer for buffer, user in self._buffers if user() is None]
        buffer = next((b for b in free if b.size >= size), None)
        self._buffers = [(b, user) for b, user in self._buffers if user() is not None]
        if buffer is None:
            buffer = np.empty(size, dtype=np.float32)
        view = buffer[:size]
        # The tensor keeps `view` for as long as it or anything that shares its memory lives.
        self._buffers.append((buffer, weakref.ref(view)))
        return torch.frombuffer(view, dtype=torch.float32).view(W, -1)

    def _check(
        self, index: np.ndarray, keys: Sequence[Tensor], places: np.ndarray, wanted: Sequence[int], depth: int | None
    ) -> None:
        """What would otherwise read or write outside the memory it was given."""
        if not index.shape[1]:
            return
        limits = (self.spec.vocab_size, keys[0].shape[0], self._positions(places, int(np.bincount(index[1]).max())))
        for name, values, limit in zip(("token", "row", "position"), index, limits, strict=True):
            if values.min() < 0 or values.max() >= limit:
                raise UsageError(f"a {name} number of a native forward is outside 0 … {limit - 1}")
        if keys[0].dtype != self._dtype:
            raise UsageError(f"the cache holds {keys[0].dtype}, and this base's is {self._dtype}")
        if wanted and not 0 <= min(wanted) <= max(wanted) < index.shape[1]:
            raise UsageError(f"a wanted token is outside 0 … {index.shape[1] - 1}")
        if depth is not None and not 0 <= depth <= self.spec.layers:
            raise UsageError(f"depth {depth} is outside 0 … {self.spec.layers}")

    def _positions(self, places: np.ndarray, tokens: int) -> int:
        """How many positions there may be, where one row has so many new tokens."""
        found = _ANY if self._learned is None else len(self._learned)
        for layer, C in enumerate(places.tolist()):
            window = self.spec.window(layer)
            if window is None or window + tokens - 1 > C:
                found = min(found, C)
        return found

    def adapter(
        self,
        pairs: Mapping[str, tuple[Tensor, Tensor, float]],
        scales: Mapping[str, tuple[Tensor, Tensor | None]] | None = None,
    ) -> NativeAdapter:
        """Prepares an adapter once (see `NativeAdapter`). Raises UsageError for tensors that cannot be shared, and for
        linears that the kernel adds nothing to (those of experts)."""
        table = (LowRank * (self.spec.layers * _PLACES))()
        places = {f"layers.{layer}.{name}" for layer in range(self.spec.layers) for name in PLACES}
        other = next((path for path in (*pairs, *(scales or {})) if path not in places), None)
        if other is not None:
            raise UsageError(f"the native path has no adapters at {other}; run this one with kernel torch")
        for layer in range(self.spec.layers):
            for place, name in enumerate(PLACES):
                pair = pairs.get(f"layers.{layer}.{name}")
                if pair is None:
                    continue
                a, b, scaling = pair
                if a.dtype != self._dtype or b.dtype != self._dtype:
                    raise UsageError(f"layers.{layer}.{name}: the adapter is {a.dtype}, and the base is {self._dtype}")
                if not a.is_contiguous() or not b.t().is_contiguous():
                    raise UsageError(f"layers.{layer}.{name}: A must be contiguous, and B's transpose")
                if a.shape[0] > _MAX_RANK:
                    raise UsageError(f"layers.{layer}.{name}: rank {a.shape[0]} is over {_MAX_RANK}")
                scale, shift = (scales or {}).get(f"layers.{layer}.{name}", (None, None))
                table[layer * _PLACES + place] = LowRank(
                    a.data_ptr(),
                    b.data_ptr(),
                    a.shape[0],
                    scaling,
                    None if scale is None else scale.data_ptr(),
                    None if shift is None else shift.data_ptr(),
                )
        return NativeAdapter(dict(pairs), dict(scales or {}), table)

    def adapter_of(self, bank: Bank, slot: int) -> NativeAdapter:
        """A bank's frozen adapter, sharing its A and B. Raises UsageError for one that is being trained."""
        return self.adapter(
            {path: (one.a.detach(), one.b.detach(), one.scaling) for path, one in bank.low_rank(slot).items()},
            {path: (scale, self._shift(path, scale)) for path, scale in bank.scales(slot).items()},
        )

    def _shift(self, path: str, scale: Tensor) -> Tensor | None:
        """The kernel scales what it has added the bias to."""
        linear = self._model.get_submodule(path)
        assert isinstance(linear, Linear)
        return None if linear.bias is None else ((1.0 - scale) * linear.bias.detach().float()).contiguous()

    def close(self) -> None:
        """Frees the packed weights; the decoder cannot be used after it."""
        if self._handle is not None:
            self._library.free(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.close()

    @staticmethod
    def _done(code: int) -> None:
        if code:
            raise MemoryError("not enough memory for the native decoder")
