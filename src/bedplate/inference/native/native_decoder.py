"""A decoder whose whole forward pass is one compiled call: decode, chunked prefill, verification of drafted tokens. A
token's result is bit for bit the same whatever else is in the call and however its sequence is cut into calls."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bedplate.core.errors import UsageError
from bedplate.inference.native.library import Call
from bedplate.inference.native.packed_weights import NativeAdapter, PackedWeights

_ANY = 1 << 31


@dataclass(frozen=True, eq=False)
class Forwarded:
    """What a forward yields. W wanted tokens, N tokens, V vocabulary, D features. Of the wanted tokens (empty when none
    are): logits_WV float32, where they were asked for; argmax_W int64, and top_W float32, the logits that stand there;
    logsumexp_W float32. hidden_ND float32 where it was asked for: after the final norm, or, with `depth`, after so many
    blocks and before it."""

    logits_WV: Tensor | None
    argmax_W: Tensor
    top_W: Tensor
    logsumexp_W: Tensor
    hidden_ND: Tensor | None


class NativeDecoder(PackedWeights):
    """A decoder's weights packed for the kernel, and its forward pass; see `Packed`."""

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
        best, top, logsumexp = torch.empty(W, dtype=torch.int64), torch.empty(W), torch.empty(W)
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
            best=best.data_ptr(),
            top=top.data_ptr(),
            logsumexp=logsumexp.data_ptr(),
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
