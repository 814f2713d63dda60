"""The bank: one adapter in training, many in serving, attached to a model's linears and picked by a row index.

A linear knows only its `low_rank` hook; the bank sets that hook on the modules that the current selection needs, so
rows without an adapter run exactly the base's code.

A bank belongs to one thread, the one that runs its model's forwards: `select` changes what the next forward does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from bedplate.adapters.fixed import FixedPlaces
from bedplate.adapters.linear_adapter import AdapterConfig, LinearAdapter, LowRank
from bedplate.adapters.modules import adaptable, check_tensors, initial_tensors
from bedplate.adapters.site import BASE_ROW, AdapterRows, ExpertLowRank, ExpertSite, Site
from bedplate.core.errors import SkinError, UsageError
from bedplate.models.layers.fused.linears import FusedLinears
from bedplate.models.layers.linear import Linear

__all__ = ["BASE_ROW", "Bank"]


class Bank:
    """Adapters of one model, in numbered slots. `hf_name` maps a module path to its Hugging Face name
    (`layers.0.attention.q` → `…self_attn.q_proj`), so that targets may be given in those names. Not thread-safe: use it
    from the thread that runs the model."""

    def __init__(self, model: nn.Module, slots: int = 1, *, hf_name: Callable[[str], str] | None = None) -> None:
        if slots < 1:
            raise UsageError(f"a bank needs at least one slot, got {slots}")
        self._sites: dict[str, Site | ExpertSite] = {
            path: Site(path, module) if isinstance(module, Linear) else ExpertSite(path, module)
            for path, module in adaptable(model).items()
        }
        if not self._sites:
            raise UsageError("this model has no linear layers that an adapter could attach to")
        self._hf_name = hf_name
        self._capacity = slots
        self._slots: dict[int, list[str]] = {}
        """The module paths of each slot's adapter."""
        self._active: tuple[int, ...] = ()
        self._mixed = self._merged = False
        self._fixed = _fixed(model, self._sites)

    @property
    def slots(self) -> tuple[int, ...]:
        return tuple(self._slots)

    @property
    def fixed(self) -> FixedPlaces:
        """The places from which recorded steps read adapters. UsageError after a merge."""
        self._check_unmerged()
        return self._fixed

    def add(
        self,
        config: AdapterConfig,
        tensors: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        *,
        trainable: bool | None = None,
    ) -> int:
        """Put an adapter into a free slot and return the slot. Nothing changes until it is selected.

        `tensors`: those that `config` says, each named by its module's path and its end, such as `{path}.lora_A`
        (copied); None starts a fresh one from `seed`.
        `trainable` (default: when `tensors` is None) keeps float32 parameters with gradients; otherwise the adapter
        is stored in its linear's dtype, frozen. Raises SkinError when config or tensors do not fit this model,
        UsageError when the bank is full.
        """
        free = next((i for i in range(self._capacity) if i not in self._slots), None)
        if free is None:
            raise UsageError(f"all {self._capacity} adapter slots are in use; remove one, or make a larger bank")
        paths = config.paths(self._sites, self._hf_name)
        modules = {path: self._sites[path].module for path in paths}
        train = tensors is None if trainable is None else trainable
        values = initial_tensors(config, modules, seed) if tensors is None else tensors
        check_tensors(config, modules, values)
        with torch.inference_mode(False):
            attached = {path: self._attached(config, path, values, train) for path in paths}
        for path, adapter in attached.items():
            _check_held(path, adapter, values)
        for path, adapter in attached.items():
            self._sites[path].adapters[free] = adapter  # type: ignore[assignment]  # each made for its site
        self._slots[free] = paths
        return free

    def _attached(
        self, config: AdapterConfig, path: str, values: Mapping[str, Tensor], train: bool
    ) -> LinearAdapter | ExpertLowRank:
        site = self._sites[path]
        tensors = {end: values[f"{path}.{end}"] for end in config.shapes(path, site.module)}
        if isinstance(site, ExpertSite):
            from bedplate.adapters.lora import attached_experts  # with its config's checks, which a base has no need of

            return attached_experts(config, path, site.module, tensors, train)
        return config.attach(path, site.module, tensors, train)

    def remove(self, slot: int) -> None:
        """Free a slot. Raises UsageError while it is selected."""
        paths = self._slot(slot)
        if slot in self._active:
            raise UsageError(f"adapter slot {slot} is selected; select something else before removing it")
        self._fixed.drop(slot)
        for path in paths:
            del self._sites[path].adapters[slot]
            self._sites[path].drop_stack()
        del self._slots[slot]

    def select(self, rows: int | Sequence[int] | Tensor | None) -> None:
        """Choose the adapter of every row of the next forwards. None or -1: the base. An int: that slot for every row.
        A sequence, or an int64 tensor [N], which is read back from where it is: a slot (or -1) per row of the batch,
        or, for a flat batch [1, N, D], per token. Raises UsageError for a slot that holds nothing."""
        index = self._index_of(rows)
        distinct = tuple(sorted(set(index) - {BASE_ROW}))
        for slot in distinct:
            self._slot(slot)
        if distinct:
            self._check_unmerged()
        mixed = bool(distinct) and (len(distinct) > 1 or BASE_ROW in index)
        if not mixed and not self._mixed and distinct == self._active:
            return
        if mixed:
            device = next(iter(self._sites.values())).module.weight.device
            plan = AdapterRows(index, distinct, device)
            for site in self._sites.values():
                site.select_rows(plan)
        else:
            for site in self._sites.values():
                site.select_one(distinct[0] if distinct else BASE_ROW)
        self._active, self._mixed = distinct, mixed

    def _check_unmerged(self) -> None:
        if self._merged:
            raise UsageError("an adapter is merged into the weights for good; load the base again for other adapters")

    @staticmethod
    def _index_of(rows: int | Sequence[int] | Tensor | None) -> Sequence[int]:
        if rows is None:
            return ()
        if isinstance(rows, int):
            return (rows,)
        if not isinstance(rows, Tensor):
            return rows
        if rows.dim() != 1 or rows.dtype != torch.int64:
            raise UsageError(f"an adapter row index is an int64 vector, got {rows.dtype} of shape {list(rows.shape)}")
        return rows.tolist()

    def parameters(self, slot: int) -> list[tuple[str, nn.Parameter]]:
        """The slot's parameters with their names, in the model's order: what an optimizer trains."""
        adapters = [(path, self._sites[path].adapters[slot]) for path in self._slot(slot)]
        return [(f"{path}.{end}", p) for path, adapter in adapters for end, p in adapter.parameters().items()]

    def low_rank(self, slot: int) -> dict[str, LowRank]:
        """Module path → A, B and their scaling. UsageError for an adapter of another kind."""
        adapters = {path: self._sites[path].adapters[slot] for path in self._slot(slot)}
        low_rank_adapters = {path: adapter for path, adapter in adapters.items() if isinstance(adapter, LowRank)}
        if len(low_rank_adapters) < len(adapters):
            raise UsageError(f"adapter slot {slot} holds no low-rank weights: only torch can run it")
        return low_rank_adapters

    @torch.no_grad()
    def scales(self, slot: int) -> dict[str, Tensor]:
        """DoRA's scales: module path → what the linear's output is multiplied by, float32 [out]."""
        with torch.inference_mode(False):
            return {path: a.scale().float() for path, a in self.low_rank(slot).items() if a.magnitude is not None}

    def state(self, slot: int) -> dict[str, Tensor]:
        """A copy of the slot's tensors on the CPU, float32: what `add` and `peft_files` take."""
        return {name: p.detach().to("cpu", torch.float32, copy=True).contiguous() for name, p in self.parameters(slot)}

    @torch.no_grad()
    def merge(self, slot: int) -> None:
        """Bring the slot's update into the linears' weights for good (computed in float32, stored in the weight's
        dtype). The selection is cleared, and nothing can be selected or merged any more."""
        paths = self._slot(slot)
        self._check_unmerged()
        self.select(None)
        modules = {path: self._sites[path].module for path in paths}
        for path, module in modules.items():
            if not module.weight.is_floating_point():
                raise UsageError(f"{path} holds {module.weight.dtype} weights; merge into the unquantised base instead")
        for path, module in modules.items():
            module.weight.copy_(self._sites[path].adapters[slot].merged(module.weight.float()))
        self._merged = True

    def close(self) -> None:
        """Detach from the model and drop every adapter."""
        self.select(None)
        for slot in list(self._slots):
            self.remove(slot)
        self._fixed.forget()

    def _slot(self, slot: int) -> list[str]:
        if slot not in self._slots:
            raise UsageError(f"adapter slot {slot} holds nothing; slots in use: {sorted(self._slots) or 'none'}")
        return self._slots[slot]


def _fixed(model: nn.Module, sites: Mapping[str, Site | ExpertSite]) -> FixedPlaces:
    path_of = {site.module: path for path, site in sites.items() if isinstance(site, Site)}
    joined = [module.parts for module in model.modules() if isinstance(module, FusedLinears)]
    return FixedPlaces(sites, [[path_of[part] for part in parts] for parts in joined if set(parts) <= path_of.keys()])


def _check_held(path: str, adapter: LinearAdapter | ExpertLowRank, values: Mapping[str, Tensor]) -> None:
    """SkinError where the dtype in which an adapter is kept does not hold what it was given, or what is multiplied by
    it: of several adapters together, B is scaled."""
    stored = {end: parameter.detach() for end, parameter in adapter.parameters().items()}
    if isinstance(adapter, LowRank):
        stored["lora_B"] = stored["lora_B"] * adapter.scaling
    for end, value in stored.items():
        if not bool(torch.isfinite(value).all()):
            largest = float(values[f"{path}.{end}"].abs().max())
            raise SkinError(
                f"adapter tensor {path}.{end} has a value of {largest:g}, which overflows in {value.dtype}, the "
                "base's dtype, by itself or scaled; load the base in a wider one, or train the adapter at a lower "
                "learning rate"
            )
