"""AdamW (https://arxiv.org/abs/1711.05101) over parameters of several rates, with decay that may be cautious
(https://arxiv.org/abs/2510.12402): only where it is the update's own direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class ParameterGroup(NamedTuple):
    """Parameters that share a rate (by which the run's is multiplied) and a decay."""

    masters: Sequence[nn.Parameter]
    rate: float
    decay: float


class _Fused(torch.optim.AdamW):
    """Changes nothing where `found_inf`, a float32 scalar on the device, is 1: torch's own gradient scaler sets it."""

    found_inf: Tensor | None = None


class AdamW:
    """Over masters by name, in `groups`."""

    def __init__(
        self,
        masters: Mapping[str, nn.Parameter],
        groups: Sequence[ParameterGroup],
        betas: tuple[float, float],
        eps: float,
        cautious: bool,
    ) -> None:
        self._masters, self._cautious = masters, cautious
        self._rates = [group.rate for group in groups]
        self._decays = [group.decay for group in groups]
        param_groups = [
            {"params": list(group.masters), "weight_decay": 0.0 if cautious else group.decay, "lr": group.rate}
            for group in groups
        ]
        self._adamw = _Fused(param_groups, betas=betas, eps=eps, fused=True)
        for master in masters.values():
            # As the fused optimizer makes them: the step is a float32 scalar beside the parameter, wherever that is.
            self._adamw.state[master] = {
                "step": torch.zeros((), dtype=torch.float32, device=master.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }

    @torch.no_grad()
    def step(self, learning_rate: float, void: Tensor) -> None:
        """One update; none where `void`, a scalar that is not read, is 1."""
        self._adamw.found_inf = void
        for group, rate in zip(self._adamw.param_groups, self._rates, strict=True):
            group["lr"] = learning_rate * rate
        snapshots = self._before()
        self._adamw.step()
        for master, before, decay in snapshots:
            # What moved against the weight's sign decays; nothing moved in a step that is skipped.
            against = (before - master) * before > 0
            master.sub_(before * against, alpha=decay)

    def _before(self) -> list[tuple[nn.Parameter, Tensor, float]]:
        """For cautious decay: each master that decays, a copy of it, and by how much."""
        if not self._cautious:
            return []
        return [
            (master, master.detach().clone(), group["lr"] * decay)
            for group, decay in zip(self._adamw.param_groups, self._decays, strict=True)
            for master in group["params"]
            if decay and master.grad is not None
        ]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The moments of one master, and how many steps it took: those that are used, not copies."""
        return dict(self._adamw.state[self._masters[name]])

    @torch.no_grad()
    def load(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what `tensors` gave, as it lies here."""
        for key, tensor in self.tensors(name).items():
            tensor.copy_(tensors[key])
