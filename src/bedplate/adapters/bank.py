"""The bank: one adapter in training, many in serving, attached to a model's linears and picked by a row index.

A linear knows only its `low_rank` hook; the bank sets that hook on the modules that the current selection needs, so
rows without an adapter run exactly the base's code. A batch that mixes adapters takes one of two paths, which agree:
stack-and-mask (all adapters of the batch in two GEMMs, each row keeping its own columns; S-LoRA's setting,
https://arxiv.org/abs/2311.03285, done with static shapes) for few tokens, and segments sorted by adapter for many.

A bank belongs to one thread, the one that runs its model's forwards: `select` changes what the next forward does.
"""

# Shape suffixes: N rows of the index, I in_features, O out_features, R summed ranks (r: one rank).

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.adapters.lora import LoraConfig, block_linears, check_tensors, initial_tensors, match_targets
from bedplate.core.errors import UsageError
from bedplate.models.layers.linear import Linear

BASE_ROW = -1
MASK_TOKENS = 64
MASK_RANKS = 128
"""A mixed batch is stacked and masked up to this many tokens, or up to this many summed ranks (2 cores, bf16, 576→1536:
eight adapters of rank 16 on 512 tokens took 0.70 ms stacked and 0.53 ms in segments, two took 0.21 and 1.9 ms: sorting
the outputs back costs more than wasted columns); beyond both it is sorted into segments."""


@dataclass(frozen=True)
class LowRank:
    """One adapter at one linear: the update is `scaling · B A dropout(x)`. A: [r, I], B: [O, r]."""

    a: nn.Parameter
    b: nn.Parameter
    scaling: float
    dropout: float

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        """x [..., I] → update [..., O], computed in x's dtype; gradients arrive in the parameters' own."""
        if training and self.dropout > 0.0:
            x = F.dropout(x, self.dropout, training=True)
        h = F.linear(x, self.a.to(x.dtype))
        return F.linear(h * self.scaling, self.b.to(x.dtype))


class Rows:
    """A row index that names at least one adapter, with what the mixed paths derive from it, computed once."""

    def __init__(self, index_N: Tensor, slots: tuple[int, ...]) -> None:
        self.index_N = index_N
        self.slots = slots
        order = torch.argsort(index_N, stable=True)
        self.order_N = order
        self.inverse_N = torch.argsort(order)
        self.counts = [int((index_N == s).sum()) for s in (BASE_ROW, *slots)]
        self._masks: dict[tuple[object, ...], Tensor] = {}

    def mask(self, columns: tuple[tuple[int, int, float], ...], dtype: torch.dtype) -> Tensor:
        """[N, R]: at (row, column) the scaling of the column's adapter if it is the row's, else 0.

        `columns` lists (slot, rank, scaling) in stacking order.
        """
        key = (columns, dtype)
        if key not in self._masks:
            device = self.index_N.device
            ranks = torch.tensor([r for _, r, _ in columns], device=device)
            slot_R = torch.tensor([s for s, _, _ in columns], device=device).repeat_interleave(ranks)
            scale_R = torch.tensor([x for _, _, x in columns], device=device).repeat_interleave(ranks)
            self._masks[key] = ((self.index_N[:, None] == slot_R) * scale_R).to(dtype)
        return self._masks[key]


class Site:
    """One linear of the model and the adapters that the bank's slots hold for it."""

    def __init__(self, path: str, module: Linear) -> None:
        self.path = path
        self.module = module
        self.adapters: dict[int, LowRank] = {}
        self._hook: Callable[[Tensor], Tensor] | None = None
        self._stack: tuple[object, Tensor, Tensor] | None = None

    def set_hook(self, hook: Callable[[Tensor], Tensor] | None) -> None:
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
        module = self.module
        self.set_hook(lambda x: adapter(x, module.training))

    def select_rows(self, rows: Rows) -> None:
        if any(slot in self.adapters for slot in rows.slots):
            self.set_hook(lambda x: self._mixed(x, rows))
        else:
            self.set_hook(None)

    def _mixed(self, x: Tensor, rows: Rows) -> Tensor:
        n = rows.index_N.numel()
        # [1, N, I] with one index per token is a flat batch; anything else is one index per row of dim 0.
        flat = x.dim() == 3 and x.shape[0] == 1 and n == x.shape[1]
        x_N = x[0] if flat else x
        if x_N.shape[0] != n:
            raise UsageError(f"{n} adapter rows were selected, but {self.path} got an input of shape {list(x.shape)}")
        tokens = x_N.numel() // x_N.shape[-1]
        dropping = self.module.training and any(a.dropout > 0 for s, a in self.adapters.items() if s in rows.slots)
        ranks = sum(self.adapters[slot].a.shape[0] for slot in rows.slots if slot in self.adapters)
        by_segment = dropping or (tokens > MASK_TOKENS and ranks > MASK_RANKS)
        y_N = self.segmented(x_N, rows) if by_segment else self.stacked(x_N, rows)
        return y_N[None] if flat else y_N

    def stacked(self, x: Tensor, rows: Rows) -> Tensor:
        """Two GEMMs over all adapters of the batch; each row keeps only its own adapter's columns."""
        active = [(slot, self.adapters[slot]) for slot in rows.slots if slot in self.adapters]
        a_RI, b_OR = self._stacked_weights(active, x.dtype)
        columns = tuple((slot, a.a.shape[0], a.scaling) for slot, a in active)
        mask = rows.mask(columns, x.dtype)
        mask = mask.view(mask.shape[0], *(1,) * (x.dim() - 2), mask.shape[1])
        return F.linear(F.linear(x, a_RI) * mask, b_OR)

    def segmented(self, x: Tensor, rows: Rows) -> Tensor:
        """Rows sorted by adapter, two GEMMs per adapter, sorted back."""
        parts = x.index_select(0, rows.order_N).split(rows.counts)
        updates: list[Tensor] = []
        for slot, part in zip((BASE_ROW, *rows.slots), parts, strict=True):
            adapter = self.adapters.get(slot)
            if adapter is None:
                updates.append(part.new_zeros(*part.shape[:-1], self.module.out_features))
            else:
                updates.append(adapter(part, self.module.training))
        return torch.cat(updates).index_select(0, rows.inverse_N)

    def _stacked_weights(self, active: list[tuple[int, LowRank]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A [R, I] and B [O, R] of the active adapters. Kept for the next step when none of them is being trained."""
        frozen = not any(a.a.requires_grad or a.b.requires_grad for _, a in active)
        key = (dtype, *((slot, id(a), a.a._version, a.b._version) for slot, a in active))
        if frozen and self._stack is not None and self._stack[0] == key:
            return self._stack[1], self._stack[2]
        a_RI = torch.cat([a.a.to(dtype) for _, a in active])
        b_OR = torch.cat([a.b.to(dtype) for _, a in active], dim=1)
        self._stack = (key, a_RI, b_OR) if frozen else None
        return a_RI, b_OR

    def drop_stack(self) -> None:
        self._stack = None


@dataclass
class Slot:
    """What a slot holds."""

    config: LoraConfig
    paths: list[str]
    originals: dict[str, Tensor] | None = field(default=None)
    """The linears' own weights while this slot is merged into them."""


class Bank:
    """Adapters of one model, in numbered slots.

    `hf_name` maps a module path to its Hugging Face name (`layers.0.attention.q` → `…self_attn.q_proj`), so that
    targets may be given in those names. Not thread-safe: use it from the thread that runs the model.
    """

    def __init__(self, model: nn.Module, slots: int = 1, *, hf_name: Callable[[str], str] | None = None) -> None:
        if slots < 1:
            raise UsageError(f"a bank needs at least one slot, got {slots}")
        self._sites = {path: Site(path, module) for path, module in block_linears(model).items()}
        if not self._sites:
            raise UsageError("this model has no linear layers that an adapter could attach to")
        self._hf_name = hf_name
        self._capacity = slots
        self._slots: dict[int, Slot] = {}
        self._active: tuple[int, ...] = ()
        self._index: Tensor | None = None

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots in use."""
        return tuple(self._slots)

    def config(self, slot: int) -> LoraConfig:
        return self._slot(slot).config

    def add(
        self,
        config: LoraConfig,
        tensors: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        *,
        trainable: bool | None = None,
    ) -> int:
        """Put an adapter into a free slot and return the slot. Nothing changes until it is selected.

        `tensors`: `{path}.lora_A` [r, in] and `{path}.lora_B` [out, r] (copied); None starts a fresh one from `seed`.
        `trainable` (default: when `tensors` is None) keeps float32 parameters with gradients; otherwise the adapter
        is stored in its linear's dtype, frozen. Raises SkinError when config or tensors do not fit this model,
        UsageError when the bank is full.
        """
        free = next((i for i in range(self._capacity) if i not in self._slots), None)
        if free is None:
            raise UsageError(f"all {self._capacity} adapter slots are in use; remove one, or make a larger bank")
        paths = match_targets(config.targets, self._sites, self._hf_name)
        modules = {path: self._sites[path].module for path in paths}
        unknown = sorted((config.ranks.keys() | config.alphas.keys()) - modules.keys())
        if unknown:
            raise UsageError(f"LoRA ranks or alphas are set for {unknown[0]!r}, which is not among its targets")
        train = tensors is None if trainable is None else trainable
        values = initial_tensors(config, modules, seed) if tensors is None else tensors
        check_tensors(config, modules, values)
        with torch.inference_mode(False):
            for path, module in modules.items():
                a = self._parameter(values[f"{path}.lora_A"], module, train)
                b = self._parameter(values[f"{path}.lora_B"], module, train, by_columns=not train)
                self._sites[path].adapters[free] = LowRank(a, b, config.scaling(path), config.dropout)
        self._slots[free] = Slot(config, paths)
        return free

    @staticmethod
    def _parameter(value: Tensor, module: Linear, train: bool, by_columns: bool = False) -> nn.Parameter:
        """A copy; `by_columns` makes its transpose contiguous, which is how the native decoder reads a frozen B."""
        dtype = module.weight.dtype if module.weight.is_floating_point() and not train else torch.float32
        value = value.t() if by_columns else value
        copied = torch.empty(value.shape, device=module.weight.device, dtype=dtype).copy_(value)
        return nn.Parameter(copied.t() if by_columns else copied, requires_grad=train)

    def remove(self, slot: int) -> None:
        """Free a slot. Raises UsageError while it is selected or merged."""
        held = self._slot(slot)
        if slot in self._active:
            raise UsageError(f"adapter slot {slot} is selected; select something else before removing it")
        if held.originals is not None:
            raise UsageError(f"adapter slot {slot} is merged into the weights; unmerge it before removing it")
        for path in held.paths:
            del self._sites[path].adapters[slot]
            self._sites[path].drop_stack()
        del self._slots[slot]

    def select(self, rows: int | Tensor | None) -> None:
        """Choose the adapter of every row of the next forwards.

        None or -1: the base. An int: that slot for every row. An int64 tensor [N]: a slot (or -1) per row of the
        batch, or, for a flat batch [1, N, D], per token. Raises UsageError for a slot that holds nothing.
        """
        distinct = self._distinct(rows)
        for slot in distinct:
            self._slot(slot)
        if distinct and any(s.originals is not None for s in self._slots.values()):
            raise UsageError("an adapter is merged into the weights; unmerge it before selecting adapters")
        mixed = isinstance(rows, Tensor) and bool(distinct) and (len(distinct) > 1 or bool((rows == BASE_ROW).any()))
        if not mixed and self._index is None and distinct == self._active:
            return
        if mixed:
            assert isinstance(rows, Tensor)
            device = next(iter(self._sites.values())).module.weight.device
            plan = Rows(rows.to(device), distinct)
            for site in self._sites.values():
                site.select_rows(plan)
        else:
            for site in self._sites.values():
                site.select_one(distinct[0] if distinct else BASE_ROW)
        self._active, self._index = distinct, rows if isinstance(rows, Tensor) and mixed else None

    @staticmethod
    def _distinct(rows: int | Tensor | None) -> tuple[int, ...]:
        if rows is None:
            return ()
        if isinstance(rows, int):
            return () if rows == BASE_ROW else (rows,)
        if rows.dim() != 1 or rows.dtype != torch.int64:
            raise UsageError(f"an adapter row index is an int64 vector, got {rows.dtype} of shape {list(rows.shape)}")
        return tuple(s for s in rows.unique().tolist() if s != BASE_ROW)

    def parameters(self, slot: int) -> list[tuple[str, nn.Parameter]]:
        """The slot's parameters with their names, in the model's order: what an optimizer trains."""
        named: list[tuple[str, nn.Parameter]] = []
        for path in self._slot(slot).paths:
            adapter = self._sites[path].adapters[slot]
            named += [(f"{path}.lora_A", adapter.a), (f"{path}.lora_B", adapter.b)]
        return named

    def state(self, slot: int) -> dict[str, Tensor]:
        """A copy of the slot's tensors on the CPU, float32: what `add` and `write_peft` take."""
        return {name: p.detach().to("cpu", torch.float32, copy=True).contiguous() for name, p in self.parameters(slot)}

    @torch.no_grad()
    def merge(self, slot: int) -> None:
        """Add the slot's update to the linears' weights (computed in float32, stored in the weight's dtype).

        The selection is cleared; only the merged model runs until `unmerge`. The original weights of the adapted
        linears are kept, so `unmerge` restores them bit by bit.
        """
        held = self._slot(slot)
        if any(s.originals is not None for s in self._slots.values()):
            raise UsageError("an adapter is merged into the weights already; unmerge it first")
        self.select(None)
        originals: dict[str, Tensor] = {}
        for path in held.paths:
            weight, adapter = self._sites[path].module.weight, self._sites[path].adapters[slot]
            if not weight.is_floating_point():
                raise UsageError(f"{path} holds {weight.dtype} weights; merge into the unquantised base instead")
            originals[path] = weight.detach().clone()
        for path in held.paths:
            weight, adapter = self._sites[path].module.weight, self._sites[path].adapters[slot]
            delta = (adapter.b.float() @ adapter.a.float()) * adapter.scaling
            weight.copy_(weight.float() + delta)
        held.originals = originals

    @torch.no_grad()
    def unmerge(self, slot: int) -> None:
        """Undo `merge`, restoring the original weights exactly."""
        held = self._slot(slot)
        if held.originals is None:
            raise UsageError(f"adapter slot {slot} is not merged")
        for path, original in held.originals.items():
            self._sites[path].module.weight.copy_(original)
        held.originals = None

    def close(self) -> None:
        """Undo any merge, detach from the model and drop every adapter."""
        for slot, held in self._slots.items():
            if held.originals is not None:
                self.unmerge(slot)
        self.select(None)
        for slot in list(self._slots):
            self.remove(slot)

    def _slot(self, slot: int) -> Slot:
        if slot not in self._slots:
            raise UsageError(f"adapter slot {slot} holds nothing; slots in use: {sorted(self._slots) or 'none'}")
        return self._slots[slot]
