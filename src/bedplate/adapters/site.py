"""One linear and the adapters that the bank's slots hold for it: how one of them, or a batch that mixes several, runs.

A batch that mixes adapters takes one of two paths, which agree: stack-and-mask (all adapters of the batch in two GEMMs,
each row keeping its own columns; S-LoRA's setting, https://arxiv.org/abs/2311.03285, done with static shapes) for few
tokens, and segments sorted by adapter for many, and where some are not low-rank.
"""

# Shape suffixes: N rows of the index, I in_features, O out_features, R summed ranks (r: one rank), M tokens sorted by
# expert (m: those of one adapter), E experts.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bedplate.adapters.linear_adapter import LinearAdapter, LowRank, dora_update, without_bias
from bedplate.core.errors import UsageError
from bedplate.models.device_memory import integers
from bedplate.models.layers.experts import ExpertLinear
from bedplate.models.layers.grouped import ALIGNED, Segments, grouped_product, torch_product_works, uses_grouped_mm
from bedplate.models.layers.linear import Linear, LowRankHook

BASE_ROW = -1
MASK_TOKENS = 64
MASK_RANKS = 128
"""A mixed batch is stacked and masked up to this many tokens, or up to this many summed ranks (2 cores, bf16, 576→1536:
eight adapters of rank 16 on 512 tokens took 0.70 ms stacked and 0.53 ms in segments, two took 0.21 and 1.9 ms: sorting
the outputs back costs more than wasted columns); beyond both it is sorted into segments."""
_ALIGNED = 8
"""Ranks of a product of groups: rows of 16 bytes in half precision."""


class AdapterRows:
    """A row index that names at least one adapter, with what the mixed paths derive from it, computed once."""

    def __init__(self, index: Sequence[int], slots: tuple[int, ...], device: torch.device) -> None:
        """index: each row's slot, on the host, so that nothing waits for the device. device: where the rows are."""
        self.slots, self._index, self._device = slots, index, device
        self.index_N = self._on_device(index)
        self._foreign_masks: dict[tuple[tuple[int, int], ...], Tensor] = {}
        self._places: dict[tuple[int, ...], Tensor] = {}

    @cached_property
    def counts(self) -> list[int]:
        """Rows of the base, then of each slot."""
        row_counts = Counter(self._index)
        return [row_counts[slot] for slot in (BASE_ROW, *self.slots)]

    @cached_property
    def order_N(self) -> Tensor:
        """The rows sorted by slot, those of the base first."""
        return self._on_device(self._order)

    @cached_property
    def inverse_N(self) -> Tensor:
        return self._on_device(np.argsort(self._order))

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(np.array(self._index, dtype=np.int64), kind="stable")

    def _on_device(self, numbers: Sequence[int] | NDArray[np.int64]) -> Tensor:
        return integers(numbers, self._device)

    def foreign_columns(self, columns: tuple[tuple[int, int], ...], slot_R: Tensor | None = None) -> Tensor:
        """Bool [N, R]: the columns of a row that are not of its own adapter. `columns` lists (slot, rank) in stacking
        order; slot_R is `slots_of` them, where that is at hand."""
        if columns not in self._foreign_masks:
            slot_R = slots_of(columns, self._device) if slot_R is None else slot_R
            self._foreign_masks[columns] = self.index_N[:, None] != slot_R
        return self._foreign_masks[columns]

    def places(self, slots: tuple[int, ...]) -> Tensor:
        """[N]: the row's slot's place in `slots`, counted from 1; 0 where it is none of them."""
        if slots not in self._places:
            place = {slot: number for number, slot in enumerate(slots, 1)}
            self._places[slots] = self._on_device([place.get(slot, 0) for slot in self._index])
        return self._places[slots]


def slots_of(columns: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    return integers([slot for slot, rank in columns for _ in range(rank)], device)


M = TypeVar("M", Linear, ExpertLinear)


class HookedModule(Generic[M]):
    """A module of the model whose `low_rank` hook one bank sets."""

    def __init__(self, path: str, module: M) -> None:
        self.path, self.module = path, module
        self._hook: Any = None

    def set_hook(self, hook: Any) -> None:
        if self.module.low_rank is not self._hook:
            raise UsageError(f"another adapter bank is active on {self.path}; close it, or select(None) on it, first")
        self.module.low_rank = self._hook = hook


class Site(HookedModule[Linear]):
    """One linear of the model and the adapters that the bank's slots hold for it."""

    def __init__(self, path: str, module: Linear) -> None:
        super().__init__(path, module)
        self.adapters: dict[int, LinearAdapter] = {}
        self._merged: dict[int, tuple[object, Tensor]] = {}
        self._joint: tuple[object, Joint] | None = None

    def select_one(self, slot: int) -> None:
        self.set_hook(_SingleHook(self, slot) if slot in self.adapters else None)

    def select_rows(self, rows: AdapterRows) -> None:
        self.set_hook(_Rows(self, rows) if any(slot in self.adapters for slot in rows.slots) else None)

    @torch.no_grad()
    def whole(self, slot: int) -> Tensor:
        """The linear's weight with the slot's adapter in it, in its own dtype; kept while neither changes."""
        weight, adapter = self.module.weight, self.adapters.get(slot)
        if adapter is None:
            return weight
        key = (id(adapter), weight._version, *(p._version for p in adapter.parameters().values()))
        cached = self._merged.get(slot)
        if cached is None or cached[0] != key:
            cached = self._merged[slot] = (key, adapter.merged(weight.float()).to(weight.dtype))
        return cached[1]

    def mixed_update(self, x: Tensor, y: Tensor, rows: AdapterRows) -> Tensor:
        """The update that each row's adapter adds to the linear's output y."""
        n = rows.index_N.numel()
        # [1, N, I] with one index per token is a flat batch; anything else is one index per row of dim 0.
        flat = x.dim() == 3 and x.shape[0] == 1 and n == x.shape[1]
        x_N, y_N = (x[0], y[0]) if flat else (x, y)
        if x_N.shape[0] != n:
            raise UsageError(f"{n} adapter rows were selected, but {self.path} got an input of shape {list(x.shape)}")
        if not self.stacks(rows, x_N.numel() // x_N.shape[-1]):
            update_N = self.grouped(x_N, rows) if self.groups(rows, x_N) else self.segmented(x_N, y_N, rows)
        else:
            update_N = self.stacked(x_N, y_N, rows)
        return update_N[None] if flat else update_N

    def stacks(self, rows: AdapterRows, tokens: int) -> bool:
        """Whether a batch of so many tokens takes the stack-and-mask path."""
        active, low_rank = [self.adapters[slot] for slot in rows.slots if slot in self.adapters], self.low_rank(rows)
        if len(low_rank) < len(active) or (self.module.training and any(adapter.dropout > 0 for adapter in active)):
            return False
        return tokens <= MASK_TOKENS or sum(adapter.a.shape[0] for _, adapter in low_rank) <= MASK_RANKS

    def groups(self, rows: AdapterRows, x_NI: Tensor) -> bool:
        """Whether sorted rows use torch's grouped products: where this device has them, and nothing is trained."""
        if x_NI.is_cpu or x_NI.dim() != 2 or torch.is_grad_enabled():
            return False
        active = [self.adapters[slot] for slot in rows.slots if slot in self.adapters]
        plain = all(isinstance(adapter, LowRank) and adapter.magnitude is None for adapter in active)
        return plain and not self.module.training and torch_product_works(x_NI.device, x_NI.dtype)

    def low_rank(self, rows: AdapterRows) -> list[tuple[int, LowRank]]:
        """Those of the batch's adapters here that can be stacked, by their slots."""
        adapters = ((slot, self.adapters.get(slot)) for slot in rows.slots)
        return [(slot, adapter) for slot, adapter in adapters if isinstance(adapter, LowRank)]

    def stacked(self, x: Tensor, y: Tensor, rows: AdapterRows) -> Tensor:
        """Two GEMMs over all adapters of the batch; each row keeps only its own adapter's columns, whatever another
        adapter makes of it: 0 times an infinity would be NaN."""
        joint = self.joint([self], rows, x.dtype)
        foreign = rows.foreign_columns(joint.columns, joint.slot_R)
        foreign = foreign.view(foreign.shape[0], *(1,) * (x.dim() - 2), foreign.shape[1])
        update = F.linear(F.linear(x, joint.a_RI).masked_fill_(foreign, 0), joint.each_OR[0])
        if joint.less_one is None:
            return update
        less_one_NO = joint.less_one.index_select(0, rows.places(tuple(slot for slot, _ in joint.columns)))
        less_one_NO = less_one_NO.view(len(less_one_NO), *(1,) * (x.dim() - 2), -1)
        return dora_update(without_bias(y, self.module), update, less_one_NO)

    def segmented(self, x: Tensor, y: Tensor, rows: AdapterRows) -> Tensor:
        """Rows sorted by adapter, two GEMMs per adapter, sorted back."""
        parts = x.index_select(0, rows.order_N).split(rows.counts)
        reads_output = any(self.adapters[s].reads_output for s in rows.slots if s in self.adapters)
        outputs = y.index_select(0, rows.order_N).split(rows.counts) if reads_output else [None] * len(parts)
        updates: list[Tensor] = []
        for slot, part, output in zip((BASE_ROW, *rows.slots), parts, outputs, strict=True):
            adapter = self.adapters.get(slot)
            if adapter is None:
                updates.append(part.new_zeros(*part.shape[:-1], self.module.out_features))
            else:
                updates.append(adapter.update(part, output, self.module))
        return torch.cat(updates).index_select(0, rows.inverse_N)

    def grouped(self, x_NI: Tensor, rows: AdapterRows) -> Tensor:
        """`segmented` as two grouped products, whatever the number of adapters."""
        active = dict(self.low_rank(rows))
        slots, counts = (BASE_ROW, *rows.slots), rows.counts
        ends = dict(zip(slots, accumulate(counts), strict=True))
        update_NO = x_NI.new_zeros(len(x_NI), self.module.out_features)
        if not active:
            return update_NO
        a_SrI, b_SOr = self._grouped_weights(active, x_NI.dtype)
        count = dict(zip(slots, counts, strict=True))
        if set(slots[1:]) == set(active):  # behind each other as they are
            order_M = rows.order_N[counts[0] :]
        else:
            order_M = torch.cat([rows.order_N[ends[slot] - count[slot] : ends[slot]] for slot in active])
        segments = Segments(integers([count[slot] for slot in active], x_NI.device))
        h_Mr = grouped_product(x_NI.index_select(0, order_M), a_SrI, segments)
        return update_NO.index_copy_(0, order_M, grouped_product(h_Mr, b_SOr, segments))

    def _grouped_weights(self, active: Mapping[int, LowRank], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A [S, r, I] and scaled B [S, O, r], ranks padded with zeros to the alignment of grouped products."""
        max_rank = max(a.a.shape[0] for a in active.values())
        max_rank += -max_rank % _ALIGNED
        a_SrI = torch.stack([F.pad(a.a.to(dtype), (0, 0, 0, max_rank - len(a.a))) for a in active.values()])
        b_SOr = torch.stack([F.pad((a.b * a.scaling).to(dtype), (0, max_rank - a.b.shape[1])) for a in active.values()])
        return a_SrI, b_SOr

    def _less_one(self, active: list[tuple[int, LowRank]], dtype: torch.dtype) -> Tensor | None:
        """What the adapters' magnitudes multiply by less one [1 + adapters, O] (zeros for those without, and first for
        rows of the base); None when none has any."""
        if all(a.magnitude is None for _, a in active):
            return None
        none = torch.zeros(self.module.out_features, device=self.module.weight.device)
        scales = [none if a.magnitude is None else a.scale() - 1.0 for _, a in active]
        return torch.stack([none, *scales]).to(dtype)

    def drop_stack(self) -> None:
        self._joint = None
        self._merged = {slot: merged for slot, merged in self._merged.items() if slot in self.adapters}

    def joint(self, sites: Sequence[Site], rows: AdapterRows, dtype: torch.dtype) -> Joint:
        """A of all adapters of the batch at all these sites below each other. Kept for the next step when none of them
        is being trained."""
        active = [site.low_rank(rows) for site in sites]
        adapters = [(slot, a) for site_adapters in active for slot, a in site_adapters]
        key = (dtype, *((slot, id(a), a.a._version, a.b._version) for slot, a in adapters))
        if self._joint is not None and self._joint[0] == key:
            return self._joint[1]
        a_RI = torch.cat([a.a.to(dtype) for _, a in adapters])
        each_OR = [torch.cat([(a.b * a.scaling).to(dtype) for _, a in at_site], dim=1) for at_site in active]
        columns = tuple((slot, a.a.shape[0]) for slot, a in adapters)
        joint = Joint(a_RI, each_OR, columns, slots_of(columns, a_RI.device), self._less_one(active[0], dtype))
        frozen = not any(a.a.requires_grad or a.b.requires_grad for _, a in adapters)
        self._joint = (key, joint) if frozen else None
        return joint


class Joint(NamedTuple):
    """A [R, I] of several adapters at several linears, and of each linear their scaled B [O, its ranks]. columns:
    (slot, rank) in order; slot_R: of each column its slot. less_one: see `Site._less_one`, of the first linear."""

    a_RI: Tensor
    each_OR: list[Tensor]
    columns: tuple[tuple[int, int], ...]
    slot_R: Tensor
    less_one: Tensor | None


class _Hook(ABC):
    """Base of a bank's hooks. rows: None where every row has the same adapter."""

    def __init__(self, site: Site, rows: AdapterRows | None) -> None:
        self.site, self.rows = site, rows

    @abstractmethod
    def update(self, x: Tensor, y: Tensor) -> Tensor:
        """What to add to the linear's output y."""

    @abstractmethod
    def adds(self, x: Tensor) -> bool:
        """Whether the update can be accumulated into y in place, since it does not depend on y."""

    def add_together(self, parts: Sequence[tuple[LowRankHook, Tensor]], x: Tensor) -> None:
        hooks = [(hook, y) for hook, y in parts if isinstance(hook, _Hook)]
        assert len(hooks) == len(parts)  # one bank alone is active on a model
        adding = [(hook, y) for hook, y in hooks if hook.adds(x)]
        if adding and self.rows is not None:
            _add_rows([(hook.site, y) for hook, y in adding], x, self.rows)
        for hook, y in hooks:
            if not hook.adds(x):
                y.add_(hook.update(x, y))
            elif isinstance(hook, _SingleHook):
                hook.add_one(x, y)


def _add_rows(parts: Sequence[tuple[Site, Tensor]], x: Tensor, rows: AdapterRows) -> None:
    """One product with all A, one mask, and of each linear one product that is added to what is there."""
    joint = parts[0][0].joint([site for site, _ in parts], rows, x.dtype)
    h_NR = F.linear(x[0], joint.a_RI).masked_fill_(rows.foreign_columns(joint.columns, joint.slot_R), 0)
    begin = 0
    for (_, y), b_OR in zip(parts, joint.each_OR, strict=True):
        y[0].addmm_(h_NR[:, begin : begin + b_OR.shape[1]], b_OR.t())
        begin += b_OR.shape[1]


class _SingleHook(_Hook):
    def __init__(self, site: Site, slot: int) -> None:
        super().__init__(site, None)
        self._slot = slot

    def __call__(self, x: Tensor) -> Tensor:
        return self.site.adapters[self._slot].output(x, self.site.module)

    def update(self, x: Tensor, y: Tensor) -> Tensor:
        return self.site.adapters[self._slot].update(x, y, self.site.module)

    def adds(self, x: Tensor) -> bool:
        adapter = self.site.adapters[self._slot]
        plain = isinstance(adapter, LowRank) and adapter.magnitude is None
        return plain and not (self.site.module.training and adapter.dropout > 0)

    def add_one(self, x: Tensor, y: Tensor) -> None:
        """The update, added in its last product."""
        adapter = self.site.adapters[self._slot]
        assert isinstance(adapter, LowRank)
        h_Tr = F.linear(x.reshape(-1, x.shape[-1]), adapter.a.to(x.dtype))
        y.view(-1, y.shape[-1]).addmm_(h_Tr, adapter.b.to(x.dtype).t(), alpha=adapter.scaling)

    def weights(self) -> Sequence[tuple[Tensor | None, Tensor]]:
        return [(None, self.site.whole(self._slot))]


class _Rows(_Hook):
    def __init__(self, site: Site, rows: AdapterRows) -> None:
        super().__init__(site, rows)
        self._rows = rows

    def __call__(self, x: Tensor) -> Tensor:
        y = self.site.module.plain(x)
        if torch.is_grad_enabled():
            return y + self.update(x, y)
        self.add_together([(self, y)], x)
        return y

    def update(self, x: Tensor, y: Tensor) -> Tensor:
        return self.site.mixed_update(x, y, self._rows)

    def adds(self, x: Tensor) -> bool:
        flat = x.dim() == 3 and x.shape[0] == 1 and self._rows.index_N.numel() == x.shape[1]
        if not flat or not self.site.stacks(self._rows, x.shape[1]):
            return False
        return all(adapter.magnitude is None for _, adapter in self.site.low_rank(self._rows))

    def weights(self) -> Sequence[tuple[Tensor | None, Tensor]]:
        parts = self._rows.order_N.split(self._rows.counts)
        slot_parts = zip(parts, (BASE_ROW, *self._rows.slots), strict=True)
        return [(rows, self.site.whole(slot)) for rows, slot in slot_parts if len(rows)]


@dataclass(frozen=True, eq=False)
class ExpertLowRank:
    """The low-rank weights of all experts of a layer, as peft has them on a parameter (`target_parameters`). The update
    of expert e is `scaling · B_e A_e x`. A: [E, r, I], B: [E, O, r]."""

    a: nn.Parameter
    b: nn.Parameter
    scaling: float

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {"lora_A": self.a, "lora_B": self.b}

    def update(self, x_MI: Tensor, segments: Segments) -> Tensor:
        """Computed in x's dtype; gradients arrive in the parameters' own."""
        a, b = self.a.to(x_MI.dtype), self.b.to(x_MI.dtype)
        if uses_grouped_mm(x_MI):
            # Its products ask for aligned rows, which are filled up with zeros.
            padding = -a.shape[1] % (ALIGNED // x_MI.element_size())
            a, b = (F.pad(a, (0, 0, 0, padding)), F.pad(b, (0, padding))) if padding else (a, b)
        h_Mr = grouped_product(x_MI, a, segments)
        return grouped_product(h_Mr * self.scaling, b, segments)

    def merged(self, weight_EOI: Tensor) -> Tensor:
        """The experts' weights with the update in them, both float32."""
        return weight_EOI + torch.bmm(self.b.float(), self.a.float()) * self.scaling


class ExpertSite(HookedModule[ExpertLinear]):
    """One layer of experts and the adapters that the bank's slots hold for it."""

    def __init__(self, path: str, module: ExpertLinear) -> None:
        super().__init__(path, module)
        self.adapters: dict[int, ExpertLowRank] = {}

    def select_one(self, slot: int) -> None:
        def run(x: Tensor, segments: Segments) -> Tensor:
            return self.module.plain(x, segments) + self.adapters[slot].update(x, segments)

        self.set_hook(run if slot in self.adapters else None)

    def select_rows(self, rows: AdapterRows) -> None:
        slot_adapters = {slot: self.adapters[slot] for slot in rows.slots if slot in self.adapters}
        self.set_hook((lambda x, segments: self._mixed(x, segments, rows, slot_adapters)) if slot_adapters else None)

    def _mixed(
        self, x_MI: Tensor, segments: Segments, rows: AdapterRows, slot_adapters: Mapping[int, ExpertLowRank]
    ) -> Tensor:
        """Each adapter on the copies of its own rows' tokens, which stay sorted by expert. How many those are follows
        from the index, which the host has; how many each expert has of them stays on the device."""
        experts, M, N = self.module.experts, len(x_MI), len(rows.index_N)
        row_M, place_N = segments.rows_of(N), rows.places(rows.slots)
        expert_M = torch.arange(experts, device=x_MI.device).repeat_interleave(segments.counts_E, output_size=M)
        place_M = place_N.index_select(0, row_M)
        counts = x_MI.new_zeros((1 + len(rows.slots)) * experts, dtype=torch.int64)
        counts.scatter_add_(0, place_M * experts + expert_M, torch.ones_like(expert_M))
        # A row has as many tokens as another, and a token as many copies.
        orders = place_M.argsort(stable=True).split([count * (M // N) for count in rows.counts])
        y_MO = self.module.plain(x_MI, segments)
        for slot, order_m, counts_E in zip((BASE_ROW, *rows.slots), orders, counts.split(experts), strict=True):
            if slot in slot_adapters:
                update = slot_adapters[slot].update(x_MI.index_select(0, order_m), Segments(counts_E))
                y_MO = y_MO.index_add(0, order_m, update)
        return y_MO

    def drop_stack(self) -> None:
        """Nothing is kept of several adapters together."""
