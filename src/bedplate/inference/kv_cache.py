"""Keys and values of earlier tokens on contiguous slots, and the two ways of attending to them.

Shapes: R rows (slots), B active rows, S documents, N tokens of a flat batch, C capacity, K keys a document may see,
G key-value heads, H query heads, D features of one head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.models.layers.attention import causal_attention, masked_attention
from bedplate.models.specs.transformer import TransformerSpec


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of a token sequence that several requests begin with: per layer [P, G, D]."""

    tokens: tuple[int, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.tokens)


class SlotCache:
    """One contiguous slot per running request. Active rows are kept at 0 … B−1, so that a step reads views only."""

    def __init__(self, spec: TransformerSpec, dtype: torch.dtype, device: torch.device) -> None:
        self._spec, self._dtype, self._device = spec, dtype, device
        self.rows = self.capacity = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._allocate(1, 256)

    def reserve(self, rows: int, capacity: int) -> None:
        """Makes room for at least so many rows of so many tokens; grows by doubling, never shrinks by itself."""
        if rows > self.rows or capacity > self.capacity:
            wanted_rows = self.rows if rows <= self.rows else max(rows, 2 * self.rows)
            wanted = self.capacity if capacity <= self.capacity else max(capacity, 2 * self.capacity)
            self._allocate(wanted_rows, min(wanted, max(capacity, self._spec.context_length)))

    def _allocate(self, rows: int, capacity: int) -> None:
        shape = (rows, self._spec.kv_heads, capacity, self._spec.head_dim)
        for name in ("keys", "values"):
            old: list[Tensor] = getattr(self, name)
            new = [torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in range(self._spec.layers)]
            for source, target in zip(old, new, strict=False):
                target[: self.rows, :, : self.capacity] = source
            setattr(self, name, new)
        self.rows, self.capacity = rows, capacity

    def fill(self, row: int, prefix: Prefix) -> None:
        """Copies a prefix to the start of a row."""
        for mine, theirs in zip((*self.keys, *self.values), (*prefix.keys, *prefix.values), strict=True):
            mine[row, :, : len(prefix)] = theirs.transpose(0, 1)

    def move(self, source: int, target: int, length: int) -> None:
        """Row `source`'s first `length` tokens over row `target`."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]


@dataclass(eq=False)
class Document:
    """New tokens of one sequence in a flat batch.

    start: absolute position of the first one. prefix: what comes before all of them. parent: number of an earlier
    document of the batch that comes between prefix and this one (a continuation to be scored). row: slot of the cache
    that keeps the keys and values; None keeps nothing.
    """

    tokens: Sequence[int]
    start: int = 0
    prefix: Prefix | None = None
    parent: int | None = None
    row: int | None = None
    begin: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self.tokens)


class DocumentAttention:
    """Causal attention within documents of a flat batch [1, N] and to what precedes them; keeps keys and values."""

    def __init__(self, documents: Sequence[Document], cache: SlotCache, device: torch.device) -> None:
        self._documents, self._cache = documents, cache
        begin = 0
        for document in documents:
            document.begin = begin
            begin += len(document)
        self._prefixes = list({id(d.prefix): d.prefix for d in documents if d.prefix is not None}.values())
        self._alone = len(documents) == 1 and not self._prefixes
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.collect = False
        if not self._alone:
            self._index(device)

    def _index(self, device: torch.device) -> None:
        offset = dict[int, int]()
        total = 0
        for prefix in self._prefixes:
            offset[id(prefix)] = total
            total += len(prefix)
        before: list[list[int]] = []
        for d in self._documents:
            seen = list(range(offset[id(d.prefix)], offset[id(d.prefix)] + len(d.prefix))) if d.prefix else []
            if d.parent is not None:
                parent = self._documents[d.parent]
                seen += range(total + parent.begin, total + parent.begin + len(parent))
            before.append(seen)
        S, L = len(self._documents), max(len(d) for d in self._documents)
        P = max(len(seen) for seen in before)
        queries = torch.zeros(S, L, dtype=torch.long)
        keys = torch.zeros(S, P + L, dtype=torch.long)
        mask = torch.zeros(S, L, P + L, dtype=torch.bool)
        causal = torch.ones(L, L, dtype=torch.bool).tril()
        for s, (d, seen) in enumerate(zip(self._documents, before, strict=True)):
            own = torch.arange(d.begin, d.begin + len(d))
            queries[s, : len(d)] = own
            keys[s, : len(seen)] = torch.tensor(seen, dtype=torch.long)
            keys[s, P : P + len(d)] = own + total
            mask[s, :, : len(seen)] = True
            # Padded queries see what a real one would, so that no row of the softmax is empty.
            mask[s, :, P:] = causal & (torch.arange(L) < len(d))
        rows = [torch.arange(len(d)) + s * L for s, d in enumerate(self._documents)]
        self._queries_SL, self._keys_SK = queries.to(device), keys.to(device)
        self._mask_SLK, self._back_N = mask.to(device), torch.cat(rows).to(device)

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        if self.collect:
            self.keys.append(k_BTGD[0].clone())
            self.values.append(v_BTGD[0].clone())
        for d in self._documents:
            if d.row is not None:
                new = slice(d.begin, d.begin + len(d))
                place = slice(d.start, d.start + len(d))
                self._cache.keys[layer][d.row, :, place] = k_BTGD[0, new].transpose(0, 1)
                self._cache.values[layer][d.row, :, place] = v_BTGD[0, new].transpose(0, 1)
        if self._alone:
            return causal_attention(q_BTHD, k_BTGD, v_BTGD)
        _, N, H, D = q_BTHD.shape
        k_SKGD = self._pool(k_BTGD, [prefix.keys[layer] for prefix in self._prefixes])
        v_SKGD = self._pool(v_BTGD, [prefix.values[layer] for prefix in self._prefixes])
        q_SLHD = q_BTHD[0].index_select(0, self._queries_SL.reshape(-1)).view(*self._queries_SL.shape, H, D)
        out = masked_attention(q_SLHD, k_SKGD, v_SKGD, self._mask_SLK)
        return out.reshape(-1, H * D).index_select(0, self._back_N).view(1, N, H, D)

    def _pool(self, own_BTGD: Tensor, prefixes: list[Tensor]) -> Tensor:
        G, D = own_BTGD.shape[2:]
        pool = torch.cat([*prefixes, own_BTGD[0]]) if prefixes else own_BTGD[0]
        picked = pool.reshape(-1, G * D).index_select(0, self._keys_SK.reshape(-1))
        return picked.view(*self._keys_SK.shape, G, D)


class DecodeAttention:
    """One new token for each of the first B rows; `lengths` counts each row's tokens before it."""

    def __init__(self, cache: SlotCache, lengths: Sequence[int], device: torch.device) -> None:
        self._cache = cache
        self._B, self._K = len(lengths), max(lengths) + 1
        self._same = min(lengths) == max(lengths)
        if not self._same:
            lengths_B = torch.tensor(lengths, device=device)
            self._lengths_B = lengths_B
            self._rows_B = torch.arange(self._B, device=device)
            self._mask_B11K = (torch.arange(self._K, device=device) <= lengths_B[:, None])[:, None, None]

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        B, _, H, D = q_BTHD.shape
        G = k_BTGD.shape[2]
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        if self._same:
            keys[:B, :, self._K - 1] = k_BTGD[:, 0]
            values[:B, :, self._K - 1] = v_BTGD[:, 0]
        else:
            keys[self._rows_B, :, self._lengths_B] = k_BTGD[:, 0]
            values[self._rows_B, :, self._lengths_B] = v_BTGD[:, 0]
        # Query heads of one key-value head become query rows: enable_gqa would copy the whole cache in every layer.
        out = F.scaled_dot_product_attention(
            q_BTHD.view(B, G, H // G, D),
            keys[:B, :, : self._K],
            values[:B, :, : self._K],
            attn_mask=None if self._same else self._mask_B11K,
        )
        return out.reshape(B, 1, H, D)
