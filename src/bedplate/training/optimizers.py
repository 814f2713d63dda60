"""The optimizer behind one small surface: float32 masters, exact accumulation, clipping, and state as plain tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from bedplate.core.errors import TrainingError
from bedplate.training.config import TrainConfig

NamedParameters = Iterable[tuple[str, nn.Parameter]]


class _AdamW(torch.optim.AdamW):
    """Changes nothing where `found_inf`, a float32 scalar on the device, is 1: torch's own gradient scaler sets it."""

    found_inf: Tensor | None = None


class Optimization:
    """AdamW over `trainable`, in float32 (or wider) whatever the parameters' own type.

    A half-precision parameter has a float32 master that collects the gradients of the micro-batches and takes the
    update; the parameter is the master, rounded. Decay falls on parameters of two and more dimensions.

    originals: by a parameter's id, what it held before the run changed its dtype; masters start from that.
    """

    def __init__(
        self, trainable: NamedParameters, config: TrainConfig, originals: Mapping[int, Tensor] | None = None
    ) -> None:
        self.parameters = dict(trainable)
        self._originals = dict(originals or {})
        if not self.parameters:
            raise TrainingError("nothing is to be trained: `trainable` is empty")
        self._masters = {name: _master(p, self._originals.get(id(p), p)) for name, p in self.parameters.items()}
        self._clip = config.clip
        matrices = [m for m in self._masters.values() if m.dim() >= 2]
        others = [m for m in self._masters.values() if m.dim() < 2]
        groups = [
            {"params": params, "weight_decay": decay}
            for params, decay in ((matrices, config.weight_decay), (others, 0.0))
            if params
        ]
        self._adamw = _AdamW(
            groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
        )

    def collect(self) -> None:
        """After each backward pass: moves half-precision gradients into their masters' sums."""
        for name, parameter in self.parameters.items():
            master = self._masters[name]
            if master is parameter or parameter.grad is None:
                continue
            grad = parameter.grad.to(master.dtype)
            master.grad = grad if master.grad is None else master.grad.add_(grad)
            parameter.grad = None

    def clip(self) -> Tensor:
        """Scales the whole gradient down to the allowed norm; returns the norm before, a scalar that is not read.
        Raises TrainingError when no parameter has a gradient."""
        grads = [m.grad for m in self._masters.values() if m.grad is not None]
        if not grads:
            raise TrainingError(
                "no trainable parameter received a gradient: are the trainable parameters part of this model, "
                "and is the adapter selected?"
            )
        norm = nn.utils.get_total_norm(grads)
        if self._clip is not None:
            nn.utils.clip_grads_with_norm_(list(self._masters.values()), self._clip, norm)
        return norm

    def step(self, learning_rate: float, void: Tensor) -> None:
        """One update, after which the gradients are gone; none where `void`, a scalar that is not read, is 1."""
        self._adamw.found_inf = void
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self._write_back()

    @torch.no_grad()
    def _write_back(self) -> None:
        for name, parameter in self.parameters.items():
            if self._masters[name] is not parameter:
                parameter.copy_(self._masters[name])

    @torch.no_grad()
    def hand_back(self) -> None:
        """Brings what was learned into the originals, in their own dtype."""
        for name, parameter in self.parameters.items():
            if id(parameter) in self._originals:
                self._originals[id(parameter)].copy_(self._masters[name])

    def tensors(self) -> dict[str, Tensor]:
        """Parameters (their masters) and moments by name."""
        found: dict[str, Tensor] = {}
        for name, master in self._masters.items():
            found[f"parameter/{name}"] = master.detach()
            for key, value in self._adamw.state.get(master, {}).items():
                found[f"{key}/{name}"] = value
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what `tensors` gave, into the same parameters."""
        for name, master in self._masters.items():
            master.copy_(tensors[f"parameter/{name}"])
            # As the fused optimizer makes them: the step is a float32 scalar beside the parameter, wherever that is.
            kinds = {"step": torch.float32, "exp_avg": master.dtype, "exp_avg_sq": master.dtype}
            found = {key: dtype for key, dtype in kinds.items() if f"{key}/{name}" in tensors}
            if found:
                self._adamw.state[master] = {
                    key: tensors[f"{key}/{name}"].to(master.device, dtype, copy=True) for key, dtype in found.items()
                }
        self._write_back()


def _master(parameter: nn.Parameter, original: Tensor) -> nn.Parameter:
    if parameter.dtype in {torch.float32, torch.float64}:
        return parameter
    return nn.Parameter(original.detach().to(torch.float32, copy=True))
