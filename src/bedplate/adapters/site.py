"""One linear and the adapters that the bank's slots hold for it: how one of them, or a batch that mixes several, runs.

A batch that mixes adapters takes one of two paths, which agree: stack-and-mask (all adapters of the batch in two GEMMs,
each row keeping its own columns; S-LoRA's setting, https://arxiv.org/abs/2311.03285, done with static shapes) for few
tokens, and segments sorted by adapter for many, and where some are not low-rank.
"""

# Shape suffixes: N rows of the index, I in_features, O out_features, R summed ranks (r: one rank).

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.adapters.dora import dora_update
from bedplate.adapters.linear_adapter import LinearAdapter
from bedplate.adapters.low_rank import LowRank, without_bias
from bedplate.adapters.rows import BASE_ROW, AdapterRows
from bedplate.core.errors import UsageError
from bedplate.models.layers.linear import Linear, LowRankHook

MASK_TOKENS = 64
MASK_RANKS = 128
"""A mixed batch is stacked and masked up to this many tokens, or up to this many summed ranks (2 cores, bf16, 576→1536:
eight adapters of rank 16 on 512 tokens took 0.70 ms stacked and 0.53 ms in segments, two took 0.21 and 1.9 ms: sorting
the outputs back costs more than wasted columns); beyond both it is sorted into segments."""


class Site:
    """One linear of the model and the adapters that the bank's slots hold for it."""

    def __init__(self, path: str, module: Linear) -> None:
        self.path = path
        self.module = module
        self.adapters: dict[int, LinearAdapter] = {}
        self._hook: LowRankHook | None = None
        self._merged: dict[int, tuple[object, Tensor]] = {}
        self._stack: tuple[object, Tensor, Tensor, Tensor | None] | None = None

    def set_hook(self, hook: LowRankHook | None) -> None:
        if self.module.low_rank is not self._hook:
            raise UsageError(
                f"another adapter bank is active on {self.path}; close it, or select(None) on it, before using this one"
            )
        self.module.low_rank = self._hook = hook

    def select_one(self, slot: int) -> None:
        adapter = self.adapters.get(slot)
        if adapter is None:
            self.set_hook(None)
            return
        self.set_hook(_One(self, slot))

    def select_rows(self, rows: AdapterRows) -> None:
        if any(slot in self.adapters for slot in rows.slots):
            self.set_hook(_Rows(self, rows))
        else:
            self.set_hook(None)

    @torch.no_grad()
    def whole(self, slot: int) -> Tensor:
        """The linear's weight with the slot's adapter in it, in its own dtype; kept while neither changes."""
        weight, adapter = self.module.weight, self.adapters.get(slot)
        if adapter is None:
            return weight
        key = (id(adapter), weight._version, *(p._version for p in adapter.parameters().values()))
        held = self._merged.get(slot)
        if held is None or held[0] != key:
            held = self._merged[slot] = (key, adapter.merged(weight.float()).to(weight.dtype))
        return held[1]

    def mixed_output(self, x: Tensor, rows: AdapterRows) -> Tensor:
        y = self.module.plain(x)
        if torch.is_grad_enabled():
            return y + self.mixed_update(x, y, rows)
        self.add_mixed(y, x, rows)
        return y

    def add_mixed(self, y: Tensor, x: Tensor, rows: AdapterRows) -> None:
        """Adds to the linear's output y, of x, what each row's adapter does. No gradients."""
        low_rank = self._low_rank(rows)
        bare = all(adapter.magnitude is None for _, adapter in low_rank)
        if not bare or not self._is_flat(x, rows) or self._by_segment(x, rows):
            y += self.mixed_update(x, y, rows)
            return
        a_RI, b_OR, _ = self._stacked_weights(low_rank, x.dtype)
        y[0].addmm_(self._own_columns(x[0], a_RI, rows), b_OR.t())

    def mixed_update(self, x: Tensor, y: Tensor, rows: AdapterRows) -> Tensor:
        """What each row's adapter adds to the linear's output y."""
        n, flat = rows.index_N.numel(), self._is_flat(x, rows)
        x_N, y_N = (x[0], y[0]) if flat else (x, y)
        if x_N.shape[0] != n:
            raise UsageError(f"{n} adapter rows were selected, but {self.path} got an input of shape {list(x.shape)}")
        update_N = self.segmented(x_N, y_N, rows) if self._by_segment(x, rows) else self.stacked(x_N, y_N, rows)
        return update_N[None] if flat else update_N

    @staticmethod
    def _is_flat(x: Tensor, rows: AdapterRows) -> bool:
        """[1, N, I] with one index per token is a flat batch; anything else is one index per row of dim 0."""
        return x.dim() == 3 and x.shape[0] == 1 and rows.index_N.numel() == x.shape[1]

    def _by_segment(self, x: Tensor, rows: AdapterRows) -> bool:
        active, low_rank = [self.adapters[slot] for slot in rows.slots if slot in self.adapters], self._low_rank(rows)
        dropping = self.module.training and any(adapter.dropout > 0 for adapter in active)
        ranks, tokens = sum(adapter.a.shape[0] for _, adapter in low_rank), x.numel() // x.shape[-1]
        return len(low_rank) < len(active) or dropping or (tokens > MASK_TOKENS and ranks > MASK_RANKS)

    def _low_rank(self, rows: AdapterRows) -> list[tuple[int, LowRank]]:
        """Those of the batch's adapters here that can be stacked, by their slots."""
        found = ((slot, self.adapters.get(slot)) for slot in rows.slots)
        return [(slot, adapter) for slot, adapter in found if isinstance(adapter, LowRank)]

    def stacked(self, x: Tensor, y: Tensor, rows: AdapterRows) -> Tensor:
        """Two GEMMs over all adapters of the batch; each row keeps only its own adapter's columns, whatever another
        adapter makes of it: 0 times an infinity would be NaN."""
        active = self._low_rank(rows)
        a_RI, b_OR, less_one = self._stacked_weights(active, x.dtype)
        update = F.linear(self._own_columns(x, a_RI, rows), b_OR)
        if less_one is None:
            return update
        less_one_NO = less_one.index_select(0, rows.places(tuple(slot for slot, _ in active)))
        less_one_NO = less_one_NO.view(len(less_one_NO), *(1,) * (x.dim() - 2), -1)
        return dora_update(without_bias(y, self.module), update, less_one_NO)

    def _own_columns(self, x: Tensor, a_RI: Tensor, rows: AdapterRows) -> Tensor:
        others = rows.others(tuple((slot, a.a.shape[0]) for slot, a in self._low_rank(rows)))
        others = others.view(others.shape[0], *(1,) * (x.dim() - 2), others.shape[1])
        return F.linear(x, a_RI).masked_fill_(others, 0)

    def segmented(self, x: Tensor, y: Tensor, rows: AdapterRows) -> Tensor:
        """Rows sorted by adapter, two GEMMs per adapter, sorted back."""
        parts = x.index_select(0, rows.order_N).split(rows.counts)
        wanted = any(self.adapters[s].reads_output for s in rows.slots if s in self.adapters)
        outputs = y.index_select(0, rows.order_N).split(rows.counts) if wanted else [None] * len(parts)
        updates: list[Tensor] = []
        for slot, part, output in zip((BASE_ROW, *rows.slots), parts, outputs, strict=True):
            adapter = self.adapters.get(slot)
            if adapter is None:
                updates.append(part.new_zeros(*part.shape[:-1], self.module.out_features))
            else:
                updates.append(adapter.update(part, output, self.module))
        return torch.cat(updates).index_select(0, rows.inverse_N)

    def _stacked_weights(
        self, active: list[tuple[int, LowRank]], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A [R, I] and scaled B [O, R] of the active adapters, and what their magnitudes multiply by less one [1 +
        adapters, O] (zeros for those without, and first for rows of the base), None when none has any. Kept for the
        next step when none of them is being trained."""
        frozen = not any(a.a.requires_grad or a.b.requires_grad for _, a in active)
        key = (dtype, *((slot, id(a), a.a._version, a.b._version) for slot, a in active))
        if frozen and self._stack is not None and self._stack[0] == key:
            return self._stack[1:]
        a_RI = torch.cat([a.a.to(dtype) for _, a in active])
        b_OR = torch.cat([(a.b * a.scaling).to(dtype) for _, a in active], dim=1)
        less_one: Tensor | None = None
        if any(a.magnitude is not None for _, a in active):
            none = torch.zeros(self.module.out_features, device=a_RI.device)
            scales = [none if a.magnitude is None else a.scale() - 1.0 for _, a in active]
            less_one = torch.stack([none, *scales]).to(dtype)
        self._stack = (key, a_RI, b_OR, less_one) if frozen else None
        return a_RI, b_OR, less_one

    def drop_stack(self) -> None:
        self._stack = None
        self._merged = {slot: held for slot, held in self._merged.items() if slot in self.adapters}


class _One:
    """The hook of one adapter for all rows."""

    def __init__(self, site: Site, slot: int) -> None:
        self._site, self._slot = site, slot

    def __call__(self, x: Tensor) -> Tensor:
        return self._site.adapters[self._slot].output(x, self._site.module)

    def add_to(self, y: Tensor, x: Tensor) -> None:
        y += self._site.adapters[self._slot].update(x, y, self._site.module)

    def weights(self) -> Sequence[tuple[Tensor | None, Tensor]]:
        return [(None, self._site.whole(self._slot))]


class _Rows:
    """The hook of a batch that mixes adapters."""

    def __init__(self, site: Site, rows: AdapterRows) -> None:
        self._site, self._rows = site, rows

    def __call__(self, x: Tensor) -> Tensor:
        return self._site.mixed_output(x, self._rows)

    def add_to(self, y: Tensor, x: Tensor) -> None:
        self._site.add_mixed(y, x, self._rows)

    def weights(self) -> Sequence[tuple[Tensor | None, Tensor]]:
        found = [(self._rows.of(slot), slot) for slot in (BASE_ROW, *self._rows.slots)]
        return [(rows, self._site.whole(slot)) for rows, slot in found if len(rows)]
