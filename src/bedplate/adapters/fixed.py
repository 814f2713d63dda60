"""Adapters in fixed buffers, for decode steps that are recorded as CUDA graphs: a replay reads the same memory,
whichever adapters its rows have.

A recording reads the memory over which it was made. So the adapters that rows ask for are copied to places, with ranks
filled up by zeros, and a step's rows say by number which place each has. All places are multiplied and each row keeps
its own columns, as in a batch that stacks its adapters (`Site.stacked`); linears that read the same input are one
product. Where all places are taken, more are made, and then the adapter that was not used for longest makes room.
"""

# Shape suffixes: N rows of a step, P places, R ranks of a place, C = P·R columns, I in_features, O out_features, n
# linears that read the same input.

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.adapters.linear_adapter import LowRank, without_bias
from bedplate.adapters.site import ExpertSite, Site
from bedplate.core.errors import UsageError
from bedplate.models.layers.linear import LowRankHook

NOWHERE = 0
"""The place of a row of the base; adapters' places are counted from 1."""
MAX_PLACES = 32
"""Places. A step with more adapters than these is not recorded."""
LEAST_RANK = 8
"""Ranks of a place, so that adapters of small ranks share recordings."""


@dataclass(eq=False)
class _PlaceBuffers:
    """A linear's buffers: A of all places, B transposed and scaled, DoRA's scale − 1 [1 + P, O], zeros for LoRA."""

    a_CI: Tensor
    b_CO: Tensor
    less_one: Tensor | None


class FixedPlaces:
    """The buffers of one bank. sites: its adapted linears, by path. together: paths of linears that read the same
    input. version: changes when buffers are allocated anew; graphs recorded before read freed memory."""

    def __init__(self, sites: Mapping[str, Site | ExpertSite], together: Sequence[Sequence[str]]) -> None:
        self._all_sites, self._together = sites, together
        self._sites = {path: site for path, site in sites.items() if isinstance(site, Site)}
        self._places: dict[int, int] = {}
        """Slot → place, the most recently used slot last."""
        self._paths: dict[int, dict[str, LowRank] | None] = {}
        """Slot → its adapters by path; None where they cannot be placed. Filled on first use."""
        self._laid: dict[str, _PlaceBuffers] = {}
        self._groups: dict[tuple[str, ...], Tensor] = {}
        self._count = self._rank = 0
        self.version = 0

    def assign(self, slots: Collection[int], loaded: int) -> int | None:
        """Puts the adapters of these slots in places, and returns how many places a step with them reads: a power of
        two. None for adapters other than frozen low-rank ones on linears, and for too many. loaded: how many adapters
        there are, for which places are worth making."""
        if len(slots) > MAX_PLACES or any(self._adapters(slot) is None for slot in slots):
            return None
        for slot in slots:
            if slot in self._places:
                self._places[slot] = self._places.pop(slot)
        for slot in slots:
            if slot not in self._places:
                self._assign_place(slot, slots, min(MAX_PLACES, loaded))
        return power_of_two(max(self._places[slot] for slot in slots))

    def place_of(self, slot: int) -> int:
        """Where a slot's adapter is, counted from 1; NOWHERE for one that has no place."""
        return self._places.get(slot, NOWHERE)

    def drop(self, slot: int) -> None:
        """Frees the place of a slot whose adapter is removed."""
        self._places.pop(slot, None)
        self._paths.pop(slot, None)

    def forget(self) -> None:
        self._places, self._paths, self._laid, self._groups = {}, {}, {}, {}
        self._count = self._rank = 0
        self.version += 1

    @contextmanager
    def selected(self, place_N: Tensor, places: int) -> Generator[None]:
        """While it is open, forwards of a flat batch [1, N, D] add to each row what the adapter in its place adds, of
        the first so many places."""
        column_C = torch.arange(places * self._rank, device=place_N.device) // self._rank + 1
        step = _Step(self._laid, self._groups, place_N, place_N[:, None] != column_C)
        hooked = [self._sites[path] for path in self._laid]
        try:
            for site in hooked:
                site.set_hook(_FixedHook(site, step))
            yield
        finally:
            for site in hooked:
                site.set_hook(None)

    def _adapters(self, slot: int) -> dict[str, LowRank] | None:
        if slot not in self._paths:
            adapters = {path: site.adapters[slot] for path, site in self._all_sites.items() if slot in site.adapters}
            plain = {path: a for path, a in adapters.items() if isinstance(a, LowRank) and _is_frozen(a)}
            self._paths[slot] = plain if len(plain) == len(adapters) else None
        return self._paths[slot]

    def _assign_place(self, slot: int, step_slots: Collection[int], worth: int) -> None:
        """Puts the slot's adapter into a free place, a new one, or that of the least recently used adapter that this
        step does not need."""
        adapters = self._adapters(slot)
        assert adapters is not None
        occupied = {*self._places.values()}
        free = next((place for place in range(1, self._count + 1) if place not in occupied), None)
        count = self._count
        if free is None and (count < worth or len(step_slots) > count):
            free, count = count + 1, power_of_two(count + 1)
        elif free is None:
            free = self._places.pop(next(idle_slot for idle_slot in self._places if idle_slot not in step_slots))
        self._places[slot] = free
        rank = max([self._rank, LEAST_RANK, *(power_of_two(len(adapter.a)) for adapter in adapters.values())])
        magnitudes = {path for path, adapter in adapters.items() if adapter.magnitude is not None}
        fits = adapters.keys() <= self._laid.keys() and all(self._laid[p].less_one is not None for p in magnitudes)
        if (count, rank) == (self._count, self._rank) and fits:
            self._copy(slot)
            return
        self._count, self._rank = count, rank
        self._allocate()

    @torch.no_grad()
    def _allocate(self) -> None:
        """Allocates the buffers anew, for all adapters that have a place."""
        self.version += 1
        self._laid, self._groups = {}, {}  # before others are made in their stead
        placed = [adapters for slot in self._places if (adapters := self._adapters(slot)) is not None]
        paths = {path for adapters in placed for path in adapters}
        scaled = {path for adapters in placed for path, adapter in adapters.items() if adapter.magnitude is not None}
        templates = {path: adapter.a for adapters in placed for path, adapter in adapters.items()}
        groups = [tuple(path for path in group if path in paths) for group in self._together]
        groups = [group for group in groups if len({templates[path].dtype for path in group}) == 1]
        alone = paths - {path for group in groups for path in group}
        C = self._count * self._rank
        with torch.inference_mode(False):
            for group in (*groups, *((path,) for path in sorted(alone))):
                modules, template = [self._sites[path].module for path in group], templates[group[0]]
                stacked = self._groups[group] = template.new_zeros(len(group), C, modules[0].in_features)
                for i, (path, module) in enumerate(zip(group, modules, strict=True)):
                    less_one = template.new_zeros(1 + self._count, module.out_features) if path in scaled else None
                    self._laid[path] = _PlaceBuffers(stacked[i], template.new_zeros(C, module.out_features), less_one)
        for slot in self._places:
            self._copy(slot)

    @torch.no_grad()
    def _copy(self, slot: int) -> None:
        """Copies the slot's adapter into its place; zeros where it has no weights, and behind its rank."""
        place, adapters = self._places[slot], self._adapters(slot)
        assert adapters is not None
        begin, end = (place - 1) * self._rank, place * self._rank
        for path, laid in self._laid.items():
            adapter, rank = adapters.get(path), 0
            if adapter is not None:
                rank = len(adapter.a)
                laid.a_CI[begin : begin + rank] = adapter.a
                laid.b_CO[begin : begin + rank] = (adapter.b * adapter.scaling).t()
            laid.a_CI[begin + rank : end] = 0
            laid.b_CO[begin + rank : end] = 0
            if laid.less_one is not None:
                laid.less_one[place] = 0 if adapter is None or adapter.magnitude is None else adapter.scale() - 1.0


@dataclass(frozen=True, eq=False)
class _Step:
    """State shared by the hooks of one step. others_NC: the columns of a row that are not of its own place."""

    laid: Mapping[str, _PlaceBuffers]
    groups: Mapping[tuple[str, ...], Tensor]
    place_N: Tensor
    others_NC: Tensor


class _FixedHook:
    def __init__(self, site: Site, step: _Step) -> None:
        self.site, self._step = site, step

    def __call__(self, x: Tensor) -> Tensor:
        y = self.site.module.plain(x)
        self._add([(self.site, y)], x)
        return y

    def add_together(self, parts: Sequence[tuple[LowRankHook, Tensor]], x: Tensor) -> None:
        fixed_parts = [(hook.site, y) for hook, y in parts if isinstance(hook, _FixedHook)]
        assert len(fixed_parts) == len(parts)  # one bank alone is active on a model
        self._add(fixed_parts, x)

    def weights(self) -> Sequence[tuple[Tensor | None, Tensor]]:
        raise UsageError(f"{self.site.path}: rows with adapters in places have no whole weight of their own")

    def _add(self, parts: Sequence[tuple[Site, Tensor]], x: Tensor) -> None:
        """One product with all A, one mask, and of each linear one product that is added to what is there."""
        step, (N, C) = self._step, self._step.others_NC.shape
        if x.dim() != 3 or x.shape[:2] != (1, N):
            raise UsageError(f"{N} rows have their adapters in places, but {self.site.path} got {list(x.shape)}")
        group = step.groups.get(tuple(site.path for site, _ in parts))
        if group is None or len(parts) == 1:
            projections = [F.linear(x[0], step.laid[site.path].a_CI[:C]) for site, _ in parts]
            projections = [h_NC.masked_fill_(step.others_NC, 0) for h_NC in projections]
        else:
            h_nNC = torch.bmm(x.expand(len(parts), -1, -1), group[:, :C].transpose(1, 2))
            projections = h_nNC.masked_fill_(step.others_NC, 0).unbind(0)
        for (site, y), h_NC in zip(parts, projections, strict=True):
            laid = step.laid[site.path]
            y[0].addmm_(h_NC, laid.b_CO[:C])
            if laid.less_one is not None:
                less_one_NO = laid.less_one.index_select(0, step.place_N)
                y[0].addcmul_(less_one_NO, without_bias(y[0], site.module))


def _is_frozen(adapter: LowRank) -> bool:
    """Whether no parameter is trained, so that copies stay valid."""
    return not any(parameter.requires_grad for parameter in adapter.parameters().values())


def power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
