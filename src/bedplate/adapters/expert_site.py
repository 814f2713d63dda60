"""Low-rank weights on all experts of a layer: A and B of each, as peft has them on a parameter (`target_parameters`).

Shapes: M tokens sorted by expert, E experts, I in_features, O out_features, r the rank, N rows of the index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bedplate.adapters.site import AdapterRows
from bedplate.core.errors import UsageError
from bedplate.models.layers.experts import ExpertLinear
from bedplate.models.layers.grouped import Segments, grouped_product


@dataclass(frozen=True, eq=False)
class ExpertLowRank:
    """The update of expert e is `scaling · B_e A_e x`. A: [E, r, I], B: [E, O, r]."""

    a: nn.Parameter
    b: nn.Parameter
    scaling: float

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {"lora_A": self.a, "lora_B": self.b}

    def update(self, x_MI: Tensor, segments: Segments) -> Tensor:
        """Computed in x's dtype; gradients arrive in the parameters' own."""
        h_Mr = grouped_product(x_MI, self.a.to(x_MI.dtype), segments)
        return grouped_product(h_Mr * self.scaling, self.b.to(x_MI.dtype), segments)

    def merged(self, weight_EOI: Tensor) -> Tensor:
        """The experts' weights with the update in them, both float32."""
        return weight_EOI + torch.bmm(self.b.float(), self.a.float()) * self.scaling


class ExpertSite:
    """One layer of experts and the adapters that the bank's slots hold for it."""

    def __init__(self, path: str, module: ExpertLinear) -> None:
        self.path, self.module = path, module
        self.adapters: dict[int, ExpertLowRank] = {}
        self._hook: Callable[[Tensor, Segments], Tensor] | None = None

    def set_hook(self, hook: Callable[[Tensor, Segments], Tensor] | None) -> None:
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
        self.set_hook(lambda x, segments: self.module.plain(x, segments) + adapter.update(x, segments))

    def select_rows(self, rows: AdapterRows) -> None:
        here = {slot: self.adapters[slot] for slot in rows.slots if slot in self.adapters}
        self.set_hook((lambda x, segments: self._mixed(x, segments, rows, here)) if here else None)

    def _mixed(self, x_MI: Tensor, segments: Segments, rows: AdapterRows, here: Mapping[int, ExpertLowRank]) -> Tensor:
        """Each adapter on the copies of its own rows' tokens, which stay sorted."""
        y_MO, slot_M = self.module.plain(x_MI, segments), rows.index_N[segments.rows_of(rows.index_N.numel())]
        expert_M = torch.arange(self.module.experts, device=slot_M.device).repeat_interleave(segments.counts_E)
        for slot, adapter in here.items():
            own = (slot_M == slot).nonzero().squeeze(1)
            counts_E = torch.bincount(expert_M.index_select(0, own), minlength=self.module.experts)
            update = adapter.update(x_MI.index_select(0, own), Segments(counts_E))
            y_MO = y_MO.index_add(0, own, update)
        return y_MO

    def drop_stack(self) -> None:
        """Nothing is kept of several adapters together."""
