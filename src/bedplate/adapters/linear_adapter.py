"""What a kind of adapter on linears is: how it is configured, and what it does at one linear. A bank knows no more. The
kind that we have is a low-rank update, plain (LoRA) or with magnitudes (DoRA).

DoRA (https://arxiv.org/abs/2402.09353): y = s ⊙ (W x + c B A x) + b with s = m / ‖W + c B A‖. The low-rank weights turn
the direction of each output feature's weights, the vector m sets their length. The norm follows the updates but takes
no gradient (section 4.3). Conventions are peft's.
"""

# Shape suffixes: I in_features, O out_features, r rank.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.core.errors import UsageError
from bedplate.models.layers.experts import ExpertLinear
from bedplate.models.layers.linear import Linear

Adaptable = Linear | ExpertLinear
"""What adapters attach to; experts take LoRA alone."""


class LinearAdapter(ABC):
    dropout: float = 0.0
    """Dropout of its input, while training."""

    @abstractmethod
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by the end of its name, in order."""

    @abstractmethod
    def update(self, x: Tensor, y: Tensor | None, module: Linear) -> Tensor:
        """What to add to the linear's output: x [..., I] and, where the kind `reads_output`, y [..., O] → [..., O], in
        x's dtype."""

    @abstractmethod
    def merged(self, weight_OI: Tensor) -> Tensor:
        """The linear's weight with the adapter in it, both float32."""

    @property
    def reads_output(self) -> bool:
        """Whether `update` needs the linear's own output."""
        return True

    def output(self, x: Tensor, module: Linear) -> Tensor:
        """The whole output, where every row has this adapter."""
        y = module.plain(x)
        return y + self.update(x, y, module)


class AdapterConfig(Protocol):
    """One adapter's shape. Tensors are named by their ends, to which a bank adds the module's path before them.

    paths: the module paths that it adapts, in the order of `modules`; SkinError or UsageError for one that is none.
    shapes: of its tensors at one linear. initial: a fresh adapter there, float32 on the CPU, with which the model is as
    without. attach: the adapter there, with copies of the tensors: float32 parameters, or frozen in its dtype."""

    def paths(self, modules: Iterable[str], hf_name: Callable[[str], str] | None) -> list[str]: ...
    def shapes(self, path: str, module: Any) -> dict[str, tuple[int, ...]]: ...
    def initial(self, path: str, module: Any, generator: torch.Generator) -> dict[str, Tensor]: ...
    def attach(self, path: str, module: Linear, tensors: Mapping[str, Tensor], trainable: bool) -> LinearAdapter: ...


def stored(value: Tensor, module: Adaptable, trainable: bool, by_columns: bool = False) -> nn.Parameter:
    """A copy as a bank keeps it; `by_columns` makes its transpose contiguous."""
    dtype = module.weight.dtype if module.weight.is_floating_point() and not trainable else torch.float32
    value = value.t() if by_columns else value
    copied = torch.empty(value.shape, device=module.weight.device, dtype=dtype).copy_(value)
    return nn.Parameter(copied.t() if by_columns else copied, requires_grad=trainable)


MAGNITUDE = "lora_magnitude_vector"
"""The end of its tensors' names, beside `lora_A` and `lora_B`."""


@torch.no_grad()
def row_norms(weight_OI: Tensor, a_rI: Tensor, b_Or: Tensor, scaling: float) -> Tensor:
    """‖W + c B A‖ of every output feature, float32 or wider [O], without making B A. ‖W‖² + 2c Σ (W Aᵀ) ⊙ B + c² Σ (B
    (A Aᵀ)) ⊙ B: r columns are summed instead of I. UsageError for integer weights."""
    if not weight_OI.is_floating_point():
        raise UsageError(f"DoRA needs the base's weights in floating point to know their length, not {weight_OI.dtype}")
    dtype = torch.promote_types(weight_OI.dtype, torch.float32)
    weight, a, b = weight_OI.to(dtype), a_rI.to(dtype), b_Or.to(dtype)
    squares = weight.pow(2).sum(1) + 2 * scaling * (weight @ a.T * b).sum(1) + scaling**2 * (b @ (a @ a.T) * b).sum(1)
    return squares.clamp_min(0.0).sqrt()


class Magnitude:
    """The lengths m [O] of one adapter at one linear."""

    def __init__(self, vector: nn.Parameter, module: Linear) -> None:
        self.vector, self.module = vector, module
        self._norms: tuple[tuple[int, ...], Tensor] | None = None

    def scale(self, a_rI: Tensor, b_Or: Tensor, scaling: float) -> Tensor:
        """s [O], float32 or wider, with a gradient to m alone. The norms of what is not being trained are kept."""
        weight = self.module.weight
        if self.vector.requires_grad:
            return self.vector / row_norms(weight, a_rI, b_Or, scaling)
        key = (id(weight), weight._version, a_rI._version, b_Or._version)
        if self._norms is None or self._norms[0] != key:
            with torch.inference_mode(False):  # training may come after serving
                self._norms = (key, row_norms(weight, a_rI, b_Or, scaling))
        return self.vector / self._norms[1]


def dora_update(product: Tensor, low_rank: Tensor, less_one: Tensor) -> Tensor:
    """What to add to `product` (W x, without the bias), given c B A x and s − 1 (all [..., O]; 0 is plain LoRA)."""
    return low_rank + less_one.to(product.dtype) * (product + low_rank)


@dataclass(frozen=True, eq=False)
class LowRank(LinearAdapter):
    """The update is `scaling · B A dropout(x)`, and with magnitudes what DoRA makes of it. A: [r, I], B: [O, r]."""

    a: nn.Parameter
    b: nn.Parameter
    scaling: float
    dropout: float = 0.0
    magnitude: Magnitude | None = None

    def parameters(self) -> Mapping[str, nn.Parameter]:
        tensors = {"lora_A": self.a, "lora_B": self.b}
        return tensors if self.magnitude is None else tensors | {MAGNITUDE: self.magnitude.vector}

    @property
    def reads_output(self) -> bool:
        return self.magnitude is not None

    def update(self, x: Tensor, y: Tensor | None, module: Linear) -> Tensor:
        """Computed in x's dtype; gradients arrive in the parameters' own."""
        dropping = module.training and self.dropout > 0.0
        if dropping:
            x = F.dropout(x, self.dropout, training=True)
        h = F.linear(x, self.a.to(x.dtype))
        update = F.linear(h * self.scaling, self.b.to(x.dtype))
        if self.magnitude is None:
            return update
        assert y is not None
        # as in peft, all of DoRA's update sees the input that was dropped out
        product = F.linear(x, module.weight) if dropping else without_bias(y, module)
        return dora_update(product, update, self.scale() - 1.0)

    def output(self, x: Tensor, module: Linear) -> Tensor:
        if self.magnitude is not None or (module.training and self.dropout > 0.0):
            return super().output(x, module)
        x_TI = x.reshape(-1, x.shape[-1])
        a, b = self.a.to(x.dtype), self.b.to(x.dtype)
        # What is not trained may lie on quantised weights, which `plain` alone multiplies as they are stored.
        fused = self.a.requires_grad and module.products == "torch" and not module.weight.requires_grad
        if fused and (module.bias is None or not module.bias.requires_grad):
            y_TO: Any = _FrozenLowRank.apply(x_TI, module.weight, module.bias, a, b, self.scaling)
        else:
            y_TO = module.plain(x_TI).addmm_(F.linear(x_TI, a), b.t(), alpha=self.scaling)
        output: Tensor = y_TO.view(*x.shape[:-1], -1)
        return output

    def merged(self, weight_OI: Tensor) -> Tensor:
        changed = weight_OI + (self.b.float() @ self.a.float()) * self.scaling
        return changed if self.magnitude is None else changed * self.scale()[:, None]

    def scale(self) -> Tensor:
        """What a linear with magnitudes multiplies its outputs by: [O]."""
        assert self.magnitude is not None
        return self.magnitude.scale(self.a, self.b, self.scaling)


class _FrozenLowRank(torch.autograd.Function):
    """x Wᵀ + bias + c (x Aᵀ) Bᵀ of frozen W, [T, I] → [T, O], with gradients to x, A and B. Recorded by
    autograd, the sum of the outputs and that of the gradients to x would each be one more pass over memory; here the
    low-rank product accumulates into the other one."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_rI: Tensor, b_Or: Tensor, scaling: float
    ) -> Tensor:
        h_Tr = F.linear(x_TI, a_rI).mul_(scaling)
        ctx.save_for_backward(x_TI, weight_OI, a_rI, b_Or, h_Tr)
        ctx.scaling = scaling
        return F.linear(x_TI, weight_OI, bias_O).addmm_(h_Tr, b_Or.t())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_TI, weight_OI, a_rI, b_Or, h_Tr = ctx.saved_tensors
        to_h_Tr = (grad @ b_Or).mul_(ctx.scaling)
        to_x = (grad @ weight_OI).addmm_(to_h_Tr, a_rI) if ctx.needs_input_grad[0] else None
        return to_x, None, None, to_h_Tr.t() @ x_TI, (h_Tr.t() @ grad).t(), None


def without_bias(y: Tensor, module: Linear) -> Tensor:
    """A linear's output → its product alone."""
    return y if module.bias is None else y - module.bias
