"""Muon: orthogonalised momentum for matrices (https://kellerjordan.github.io/posts/muon/).

Matrices of one shape are orthogonalised together. Shapes: [..., O, I].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bedplate.training.config import MuonConfig, Orthogonalisation
from bedplate.training.ranks import Ranks

COEFFICIENTS: dict[Orthogonalisation, Sequence[tuple[float, float, float]]] = {
    # Keller Jordan's, chosen for the steepest slope at zero: singular values end between about 0.7 and 1.2.
    "newton_schulz": ((3.4445, -4.7750, 2.0315),),
    # https://arxiv.org/abs/2505.16932, for 5 steps with its safety factor of 2%, as computed for and used by nanochat
    # (https://github.com/karpathy/nanochat); from the fifth step on they stay as they are.
    "polar_express": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
}
SAFETY: dict[Orthogonalisation, float] = {"newton_schulz": 1.0, "polar_express": 1.02}
"""What the norm is multiplied by before it divides: rounding must not push a singular value over 1."""
EPS = 1e-7


def orthogonalised(x_OI: Tensor, how: Orthogonalisation, iterations: int) -> Tensor:
    """An approximation of U Vᵀ for matrices U S Vᵀ [..., O, I], in the dtype given: an odd polynomial, applied
    `iterations` times."""
    tall = x_OI.shape[-2] > x_OI.shape[-1]
    x = x_OI.mT if tall else x_OI
    length = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    x = x / (length * SAFETY[how]).clamp(min=EPS)
    coefficients = COEFFICIENTS[how]
    for step in range(iterations):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


class Muon:
    """Muon over matrices by name, each with its momentum.

    masters: this rank's part of each, float32 or wider; parameters: what they are the masters of. Momentum is
    orthogonalised in the parameter's compute dtype.
    """

    def __init__(
        self,
        masters: Mapping[str, nn.Parameter],
        parameters: Mapping[str, nn.Parameter],
        config: MuonConfig,
        decay: float,
        cautious: bool,
        ranks: Ranks,
    ) -> None:
        self._masters, self._parameters, self._config, self._ranks = masters, parameters, config, ranks
        self._decay, self._cautious = decay, cautious
        self.momenta = {name: torch.zeros_like(master) for name, master in masters.items()}

    @torch.no_grad()
    def step(self, learning_rate: float, void: Tensor) -> None:
        """Updates all matrices that have a gradient; none where `void`, a scalar on the device, is 1."""
        groups: dict[tuple[torch.Size, torch.dtype], dict[str, Tensor]] = {}
        for name, master in self._masters.items():
            if master.grad is not None:
                parameter = self._parameters[name]
                dtype = self._ranks.computes_in(parameter)
                whole = self._ranks.matrices(parameter, self._moved(name, master.grad, void)).to(dtype)
                groups.setdefault((whole.shape[-2:], whole.dtype), {})[name] = whole
        applied = 1 - void
        for matrices in groups.values():
            counts = [math.prod(whole.shape[:-2]) for whole in matrices.values()]
            shape = rows, columns = next(iter(matrices.values())).shape[-2:]
            of_adamw = self._config.scale == "adamw"
            scale = 0.2 * math.sqrt(max(rows, columns)) if of_adamw else math.sqrt(max(1.0, rows / columns))
            stacked = torch.cat([whole.reshape(-1, *shape) for whole in matrices.values()])
            stacked = orthogonalised(stacked, self._config.orthogonalisation, self._config.iterations)
            for (name, whole), update in zip(matrices.items(), stacked.split(counts), strict=True):
                local_update = self._ranks.part(self._parameters[name], update.view(whole.shape))
                self._update(self._masters[name], local_update * scale, learning_rate, applied)

    def _moved(self, name: str, grad: Tensor, void: Tensor) -> Tensor:
        """The momentum updated with this gradient, ready to be orthogonalised."""
        momentum, factor = self.momenta[name], self._config.momentum
        # A step that is skipped may have a gradient that is not finite.
        grad = torch.where(void > 0, momentum, grad)
        momentum.lerp_(grad, 1 - factor)
        return grad.lerp(momentum, factor) if self._config.nesterov else momentum

    def _update(self, master: nn.Parameter, update: Tensor, learning_rate: float, applied: Tensor) -> None:
        update = update.to(master.dtype) * applied.to(master.dtype)
        if self._decay:
            decay = learning_rate * self._decay * applied.to(master.dtype)
            against = master * decay
            if self._cautious:
                against = against * (update * master > 0)
            master.sub_(against)
        master.add_(update, alpha=-learning_rate)
