"""An encoder whose whole forward pass is one compiled call: whole texts behind each other, without padding.

A text's states are bit for bit the same whatever other texts are in the call. Shapes: N tokens of all texts, D
features.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bedplate.core.errors import ContextLengthExceeded, UsageError
from bedplate.inference.native.library import Call
from bedplate.inference.native.packed_weights import NativeAdapter, PackedWeights


class NativeEncoder(PackedWeights):
    """An encoder's weights packed for the kernel, and its forward pass; see `Packed`."""

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
