"""The optimizer of a run: float32 masters, gradient accumulation, clipping, AdamW and Muon, averaged weights, and its
state as plain tensors.

AdamW (https://arxiv.org/abs/1711.05101) may decay cautiously (https://arxiv.org/abs/2510.12402): only in the direction
of the update.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bedplate.core.errors import TrainingError
from bedplate.models.layers.block import Block
from bedplate.models.layers.experts import ExpertLinear
from bedplate.models.layers.linear import Linear
from bedplate.training.config import MuonConfig, Orthogonalisation, TrainConfig
from bedplate.training.ranks import ALONE, Ranks

ParameterRole = Literal["embedding", "head", "matrix", "other"]


def classify_parameters(modules: Iterable[nn.Module]) -> Mapping[int, ParameterRole]:
    """Roles by parameter id: "embedding" (embedding tables); "matrix" (weights of linears inside blocks, including
    experts'); "head" (of linears outside). All others are "other". A table that is also the head is an "embedding".

    modules: all modules of a model, including the model itself.
    """
    all_modules = list(modules)
    inside = {id(m) for block in all_modules if isinstance(block, Block) for m in block.modules()}
    roles: dict[int, ParameterRole] = {}
    for module in all_modules:
        if isinstance(module, Linear | ExpertLinear):
            roles[id(module.weight)] = "matrix" if id(module) in inside else "head"
    tables: dict[int, ParameterRole] = {id(m.weight): "embedding" for m in all_modules if isinstance(m, nn.Embedding)}
    return roles | tables


AVERAGE = "average/"
"""Prefix of the names of averages in a state."""


@contextmanager
def averaged(
    tensors: Mapping[str, Tensor], trainable: Iterable[tuple[str, nn.Parameter]], ranks: Ranks
) -> Generator[None]:
    """A context in which the parameters hold their averages, from a state's `tensors`; afterwards they are restored.

    TrainingError where the state lacks an average.
    """
    parameters = dict(trainable)
    missing = next((name for name in parameters if f"{AVERAGE}{name}" not in tensors), None)
    if missing is not None:
        raise TrainingError(f"this state holds no average of {missing!r}: train with ema, which keeps one")
    originals = {name: ranks.local_part(parameter).clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        try:
            for name, parameter in parameters.items():
                ranks.local_part(parameter).copy_(ranks.local_slice(parameter, tensors[f"{AVERAGE}{name}"]))
            yield
        finally:
            for name, parameter in parameters.items():
                ranks.local_part(parameter).copy_(originals[name])


class _FusedAdamW(torch.optim.AdamW):
    """torch's fused AdamW, which skips the update where `found_inf`, a float32 scalar on the device, is 1 (torch's
    gradient scaler uses the same)."""

    found_inf: Tensor | None = None


class AdamW:
    """AdamW over masters by name. groups: torch's parameter groups, each with its own `rate`, a multiplier of the run's
    learning rate, and `decay`."""

    def __init__(
        self,
        masters: Mapping[str, nn.Parameter],
        groups: Sequence[dict[str, Any]],
        betas: tuple[float, float],
        eps: float,
        cautious: bool,
    ) -> None:
        self._masters, self._cautious = masters, cautious
        groups = [{**group, "weight_decay": 0.0 if cautious else group["decay"]} for group in groups]
        self._adamw = _FusedAdamW(groups, betas=betas, eps=eps, fused=True)
        for master in masters.values():
            # As the fused optimizer creates them: the step is a float32 scalar on the parameter's device.
            self._adamw.state[master] = {
                "step": torch.zeros((), dtype=torch.float32, device=master.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }

    @torch.no_grad()
    def step(self, learning_rate: float, void: Tensor) -> None:
        """Applies one update. void: a scalar on the device; 1: no update."""
        self._adamw.found_inf = void
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate * group["rate"]
        snapshots = [
            (master, master.detach().clone(), group["lr"] * group["decay"])
            for group in (self._adamw.param_groups if self._cautious else ())
            for master in group["params"]
            if group["decay"] and master.grad is not None
        ]
        self._adamw.step()
        for master, before, decay in snapshots:
            # Decays where the update moved a weight toward zero; a skipped step moved none.
            against = (before - master) * before > 0
            master.sub_(before * against, alpha=decay)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The moments of one master and its step count: the tensors themselves, not copies."""
        return dict(self._adamw.state[self._masters[name]])

    @torch.no_grad()
    def load(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Restores the result of `tensors`, for this rank's part."""
        for key, tensor in self.tensors(name).items():
            tensor.copy_(tensors[key])


COEFFICIENTS: dict[Orthogonalisation, Sequence[tuple[float, float, float]]] = {
    # Keller Jordan's, chosen for the steepest slope at zero: singular values end between about 0.7 and 1.2.
    "newton_schulz": ((3.4445, -4.7750, 2.0315),),
    # https://arxiv.org/abs/2505.16932, for 5 steps with its safety factor of 2%, as computed for and used by nanochat
    # (https://github.com/karpathy/nanochat); further steps repeat the fifth.
    "polar_express": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
}
SAFETY: dict[Orthogonalisation, float] = {"newton_schulz": 1.0, "polar_express": 1.02}
"""Factor of the norm by which matrices are divided, so that rounding cannot push a singular value over 1."""
EPS = 1e-7


def orthogonalised(x_OI: Tensor, method: Orthogonalisation, iterations: int) -> Tensor:
    """An approximation of U Vᵀ for matrices U S Vᵀ [..., O, I], in their dtype: an odd polynomial, applied `iterations`
    times."""
    tall = x_OI.shape[-2] > x_OI.shape[-1]
    x = x_OI.mT if tall else x_OI
    length = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    x = x / (length * SAFETY[method]).clamp(min=EPS)
    coefficients = COEFFICIENTS[method]
    for step in range(iterations):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


class Muon:
    """Muon (https://kellerjordan.github.io/posts/muon/): matrices move along their orthogonalised momentum. Matrices of
    one shape are orthogonalised together.

    masters: by name, this rank's part of each master, float32 or wider; parameters: the parameters by name. Momentum
    is orthogonalised in the parameter's compute dtype.
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
        """Updates all matrices that have a gradient. void: a scalar on the device; 1: no update."""
        groups: dict[tuple[torch.Size, torch.dtype], dict[str, Tensor]] = {}
        for name, master in self._masters.items():
            if master.grad is not None:
                parameter = self._parameters[name]
                dtype = self._ranks.computes_in(parameter)
                whole = self._ranks.matrices(parameter, self._momentum_update(name, master.grad, void)).to(dtype)
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

    def _momentum_update(self, name: str, grad: Tensor, void: Tensor) -> Tensor:
        """Adds this gradient to the momentum; returns the update to orthogonalise."""
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


NamedParameters = Iterable[tuple[str, nn.Parameter]]
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_MOMENTUM = "momentum"


class Optimization:
    """The optimizers, masters and averages of the trained parameters, in float32 or wider.

    A half-precision parameter has a float32 master that accumulates the gradients of micro-batches and receives the
    update; the parameter is the rounded master. Decay applies to parameters of two or more dimensions. Each rank has
    masters of its part. originals: by parameter id, values from before the run changed the dtype; masters start from
    them. parameter_roles: by parameter id, from `classify_parameters`.
    """

    def __init__(
        self,
        trainable: NamedParameters,
        config: TrainConfig,
        originals: Mapping[int, Tensor] | None = None,
        parameter_roles: Mapping[int, ParameterRole] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.parameters = dict(trainable)
        self._originals, self._ranks = dict(originals or {}), ranks
        if not self.parameters:
            raise TrainingError("nothing is to be trained: `trainable` is empty")
        self._masters = {name: self._master(parameter) for name, parameter in self.parameters.items()}
        self._clip, self._muon_rate = config.clip, config.rates.matrix
        roles_by_id = parameter_roles or {}
        roles: dict[str, ParameterRole] = {name: roles_by_id.get(id(p), "other") for name, p in self.parameters.items()}
        with_muon = {name for name, role in roles.items() if role == "matrix" and config.optimizer == "muon"}
        by_muon = {name: master for name, master in self._masters.items() if name in with_muon}
        by_adamw = {name: master for name, master in self._masters.items() if name not in with_muon}
        cautious, betas = config.cautious_decay, (config.beta1, config.beta2)
        self._muon = self._adamw = None
        if by_muon:
            self._muon = Muon(by_muon, self.parameters, config.muon, config.weight_decay, cautious, ranks)
        if by_adamw:
            groups = _groups(by_adamw, self.parameters, roles, config)
            self._adamw = AdamW(by_adamw, groups, betas, config.eps, cautious)
        self._ema = config.ema
        averaged_masters = {} if config.ema is None else self._masters
        self._averages = {name: master.detach().clone() for name, master in averaged_masters.items()}

    def _master(self, parameter: nn.Parameter) -> nn.Parameter:
        local = self._ranks.local_part(parameter)
        if not _is_wide(parameter):
            return nn.Parameter(self._originals.get(id(parameter), local).detach().to(torch.float32, copy=True))
        return nn.Parameter(local) if self._ranks.splits(parameter) else parameter

    def collect(self) -> None:
        """Accumulates gradients into the masters, after each backward pass."""
        for name, parameter in self.parameters.items():
            master = self._masters[name]
            if master is parameter or parameter.grad is None:
                continue
            grad = self._ranks.own_gradient(parameter)
            assert grad is not None
            grad = grad.to(master.dtype)
            master.grad = grad if master.grad is None else master.grad.add_(grad)

    def clip(self) -> Tensor:
        """Sums the gradient over ranks, and clips its norm; returns the norm before, a scalar on the device.
        TrainingError when no parameter has a gradient."""
        grads = {name: m.grad for name, m in self._masters.items() if m.grad is not None}
        if not grads:
            raise TrainingError(
                "no trainable parameter received a gradient: are the trainable parameters part of this model, "
                "and is the adapter selected?"
            )
        self._ranks.sum_gradients(self.parameters, grads)
        norm = self._ranks.norm(self.parameters, grads)
        if self._clip is not None:
            nn.utils.clip_grads_with_norm_(list(self._masters.values()), self._clip, norm)
        return norm

    @torch.no_grad()
    def step(self, learning_rate: float, void: Tensor) -> None:
        """Applies one update and clears the gradients. void: a scalar on the device; 1: no update."""
        if self._adamw is not None:
            self._adamw.step(learning_rate, void)
        if self._muon is not None:
            self._muon.step(learning_rate * self._muon_rate, void)
        for master in self._masters.values():
            master.grad = None
        self._write_back()
        if self._ema is not None:
            weight = (1 - self._ema) * (1 - void)
            for name, average in self._averages.items():
                average.lerp_(self._masters[name].detach(), weight.to(average.dtype))

    @torch.no_grad()
    def _write_back(self) -> None:
        for name, parameter in self.parameters.items():
            if not _is_wide(parameter):  # else the master is the parameter's local part
                self._ranks.local_part(parameter).copy_(self._masters[name])

    @torch.no_grad()
    def hand_back(self) -> None:
        """Copies the masters into the originals, in their own dtype."""
        for name, parameter in self.parameters.items():
            if id(parameter) in self._originals:
                self._originals[id(parameter)].copy_(self._masters[name])

    def tensors(self) -> dict[str, Tensor]:
        """Parameters (their masters), moments and averages by name, placed as `Ranks.placed` does."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            state = {"parameter": self._masters[name].detach(), **self._moments(name)}
            if name in self._averages:
                state[AVERAGE.removesuffix("/")] = self._averages[name]
            for key, value in state.items():
                tensors[f"{key}/{name}"] = self._ranks.placed(parameter, value) if value.dim() else value
        return tensors

    def _moments(self, name: str) -> Mapping[str, Tensor]:
        if self._muon is not None and name in self._muon.momenta:
            return {_MOMENTUM: self._muon.momenta[name]}
        return {} if self._adamw is None else self._adamw.tensors(name)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores the result of `tensors`, saved by any number of ranks, into the same parameters."""
        for name, master in self._masters.items():
            parameter = self.parameters[name]

            def local_part(key: str, name: str = name, parameter: nn.Parameter = parameter) -> Tensor:
                stored = tensors[f"{key}/{name}"]
                return self._ranks.local_slice(parameter, stored) if stored.dim() else stored

            master.copy_(local_part("parameter"))
            if self._muon is not None and name in self._muon.momenta:
                self._muon.momenta[name].copy_(local_part(_MOMENTUM))
            elif self._adamw is not None and f"{_MOMENTS[0]}/{name}" in tensors:  # files of earlier versions lack some
                self._adamw.load(name, {key: local_part(key) for key in _MOMENTS})
            if name in self._averages:
                self._averages[name].copy_(local_part(AVERAGE.removesuffix("/")))
        self._write_back()


def _is_wide(parameter: nn.Parameter) -> bool:
    return parameter.dtype in {torch.float32, torch.float64}


def _groups(
    masters: Mapping[str, nn.Parameter],
    parameters: Mapping[str, nn.Parameter],
    parameter_roles: Mapping[str, ParameterRole],
    config: TrainConfig,
) -> list[dict[str, Any]]:
    """Parameter groups by rate and decay, matrices first."""
    masters_by_group: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, master in masters.items():
        key = parameters[name].dim() < 2, getattr(config.rates, parameter_roles[name])
        masters_by_group.setdefault(key, []).append(master)
    ordered = sorted(masters_by_group.items(), key=lambda group: group[0][0])
    return [
        {"params": params, "rate": rate, "lr": rate, "decay": 0.0 if flat else config.weight_decay}
        for (flat, rate), params in ordered
    ]
