"""The optimizer of a run: float32 masters, gradient accumulation, clipping, AdamW and Muon, averaged weights, and its
state as plain tensors."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from bedplate.core.errors import TrainingError
from bedplate.models.layers.block import Block
from bedplate.models.layers.experts import ExpertLinear
from bedplate.models.layers.linear import Linear
from bedplate.training.config import TrainConfig
from bedplate.training.optimizers.adamw import AdamW, ParameterGroup
from bedplate.training.optimizers.muon import Muon
from bedplate.training.ranks import ALONE, Ranks

ParameterRole = Literal["embedding", "head", "matrix", "other"]


def kinds_of(modules: Iterable[nn.Module]) -> Mapping[int, ParameterRole]:
    """By a parameter's id: tables; the weights of linears inside of blocks ("matrix", the experts' as well, one a
    matrix) and of those outside ("head"). What is not named is "other". A table that is the head too is a table.

    modules: all of a model, itself among them.
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
"""What the names of averages begin with in a state."""


class Average:
    """Averages of tensors by name, in their own dtype."""

    def __init__(self, decay: float, tensors: Mapping[str, Tensor]) -> None:
        self._decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def step(self, tensors: Mapping[str, Tensor], void: Tensor) -> None:
        """After a step; none where `void`, a scalar that is not read, is 1."""
        for name, average in self.tensors.items():
            average.lerp_(tensors[name].detach(), ((1 - self._decay) * (1 - void)).to(average.dtype))


@contextmanager
def averaged(
    tensors: Mapping[str, Tensor], trainable: Iterable[tuple[str, nn.Parameter]], ranks: Ranks
) -> Generator[None]:
    """The parameters hold their averages, of a state's `tensors`, while it is open, and afterwards what they held.

    TrainingError where the state has none of one.
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


NamedParameters = Iterable[tuple[str, nn.Parameter]]
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_MOMENTUM = "momentum"


class Optimization:
    """Optimizers, masters and averages of the trained parameters, in float32 or wider.

    A half-precision parameter has a float32 master that collects the gradients of micro-batches and takes the update;
    the parameter is the rounded master. Decay falls on parameters of two or more dimensions. Each rank has masters of
    its part. originals: by parameter id, values from before the run changed the dtype; masters start from them.
    parameter_roles: by parameter id, what it is.
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
        self._clip = config.clip
        roles_by_id = parameter_roles or {}
        by_kind: dict[str, ParameterRole] = {
            name: roles_by_id.get(id(p), "other") for name, p in self.parameters.items()
        }
        turned = [name for name, role in by_kind.items() if role == "matrix"] if config.optimizer == "muon" else []
        self._muon_rate = config.rates.matrix
        masters = {name: self._masters[name] for name in turned}
        self._muon = (
            Muon(masters, self.parameters, config.muon, config.weight_decay, config.cautious_decay, ranks)
            if turned
            else None
        )
        adamw_masters = {name: master for name, master in self._masters.items() if name not in masters}
        self._adamw_masters = adamw_masters
        groups = _groups(adamw_masters, self.parameters, by_kind, config)
        betas = (config.beta1, config.beta2)
        self._adamw = AdamW(adamw_masters, groups, betas, config.eps, config.cautious_decay) if adamw_masters else None
        self._average = None if config.ema is None else Average(config.ema, self._masters)

    def _master(self, parameter: nn.Parameter) -> nn.Parameter:
        local = self._ranks.local_part(parameter)
        if not _is_wide(parameter):
            return nn.Parameter(self._originals.get(id(parameter), local).detach().to(torch.float32, copy=True))
        return nn.Parameter(local) if self._ranks.splits(parameter) else parameter

    def collect(self) -> None:
        """After each backward pass: moves gradients that are not their masters' own into the masters' sums."""
        for name, parameter in self.parameters.items():
            master = self._masters[name]
            if master is parameter or parameter.grad is None:
                continue
            grad = self._ranks.own_gradient(parameter)
            assert grad is not None
            grad = grad.to(master.dtype)
            master.grad = grad if master.grad is None else master.grad.add_(grad)

    def clip(self) -> Tensor:
        """Adds up what ranks have of the gradient, and scales the whole of it down to the allowed norm; returns the
        norm before, a scalar that is not read. Raises TrainingError when no parameter has a gradient."""
        grads = {name: m.grad for name, m in self._masters.items() if m.grad is not None}
        if not grads:
            raise TrainingError(
                "no trainable parameter received a gradient: are the trainable parameters part of this model, "
                "and is the adapter selected?"
            )
        self._ranks.add_up(self.parameters, grads)
        norm = self._ranks.norm(self.parameters, grads)
        if self._clip is not None:
            nn.utils.clip_grads_with_norm_(list(self._masters.values()), self._clip, norm)
        return norm

    def step(self, learning_rate: float, void: Tensor) -> None:
        """One update, after which the gradients are gone; none where `void`, a scalar that is not read, is 1."""
        if self._adamw is not None:
            self._adamw.step(learning_rate, void)
        if self._muon is not None:
            self._muon.step(learning_rate * self._muon_rate, void)
        for master in self._masters.values():
            master.grad = None
        if self._average is not None:
            self._average.step(self._masters, void)
        self._write_back()

    @torch.no_grad()
    def _write_back(self) -> None:
        for name, parameter in self.parameters.items():
            if not _is_wide(parameter):  # else the master is what is held of it
                self._ranks.local_part(parameter).copy_(self._masters[name])

    @torch.no_grad()
    def hand_back(self) -> None:
        """Brings what was learned into the originals, in their own dtype."""
        for name, parameter in self.parameters.items():
            if id(parameter) in self._originals:
                self._originals[id(parameter)].copy_(self._masters[name])

    def tensors(self) -> dict[str, Tensor]:
        """Parameters (their masters), moments and averages by name, each placed as the ranks say."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            state = {"parameter": self._masters[name].detach(), **self._moments(name)}
            if self._average is not None:
                state[AVERAGE.removesuffix("/")] = self._average.tensors[name]
            for key, value in state.items():
                tensors[f"{key}/{name}"] = self._ranks.placed(parameter, value) if value.dim() else value
        return tensors

    def _moments(self, name: str) -> Mapping[str, Tensor]:
        if self._muon is not None and name not in self._adamw_masters:
            return {_MOMENTUM: self._muon.momenta[name]}
        return {} if self._adamw is None else self._adamw.tensors(name)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what `tensors` gave, of whatever ranks, into the same parameters."""
        for name, master in self._masters.items():
            parameter = self.parameters[name]

            def local_part(key: str, name: str = name, parameter: nn.Parameter = parameter) -> Tensor:
                stored = tensors[f"{key}/{name}"]
                return self._ranks.local_slice(parameter, stored) if stored.dim() else stored

            master.copy_(local_part("parameter"))
            if self._muon is not None and name not in self._adamw_masters:
                self._muon.momenta[name].copy_(local_part(_MOMENTUM))
            elif self._adamw is not None and f"{_MOMENTS[0]}/{name}" in tensors:  # files of earlier versions lack some
                self._adamw.load(name, {key: local_part(key) for key in _MOMENTS})
            if self._average is not None:
                self._average.tensors[name].copy_(local_part(AVERAGE.removesuffix("/")))
        self._write_back()


def _is_wide(parameter: nn.Parameter) -> bool:
    return parameter.dtype in {torch.float32, torch.float64}


def _groups(
    masters: Mapping[str, nn.Parameter],
    parameters: Mapping[str, nn.Parameter],
    parameter_roles: Mapping[str, ParameterRole],
    config: TrainConfig,
) -> list[ParameterGroup]:
    """By rate and decay, matrices before others."""
    masters_by_group: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, master in masters.items():
        masters_by_group.setdefault(
            (parameters[name].dim() < 2, getattr(config.rates, parameter_roles[name])), []
        ).append(master)
    ordered = sorted(masters_by_group.items(), key=lambda group: group[0][0])
    return [ParameterGroup(params, rate, 0.0 if flat else config.weight_decay) for (flat, rate), params in ordered]
