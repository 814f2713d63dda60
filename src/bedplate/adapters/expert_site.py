"""Low-rank weights on all experts of a layer: A and B of each, as peft has them on a parameter (`target_parameters`).

Shapes: M tokens sorted by expert (m: those of one adapter), E experts, I in_features, O out_features, r the rank, N
rows of the index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.adapters.site import BASE_ROW, AdapterRows, HookedModule
from bedplate.models.layers.experts import ExpertLinear
from bedplate.models.layers.grouped import ALIGNED, Segments, by_torch, grouped_product


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
        a, b = self.a.to(x_MI.dtype), self.b.to(x_MI.dtype)
        if by_torch(x_MI):
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
