"""The training configuration: optimizer, learning-rate schedule, step guard, routers, precision; and the `parallel`
part of a run file.

Schedules are pure functions of the step: warm-up, then cosine (https://arxiv.org/abs/1608.03983), warm-up-stable-decay
(https://arxiv.org/abs/2404.06395) or constant.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from bedplate.core.config import Grown, Strict
from bedplate.core.errors import UsageError
from bedplate.models.specs.split import Recompute

ScheduleName = Literal["cosine", "wsd", "constant"]


def check_schedule(name: ScheduleName, warmup: float, decay: float) -> None:
    """ValueError for a decay that would begin before the warm-up ends."""
    if name == "wsd" and warmup + decay > 1 + 1e-9:
        raise ValueError(
            f"warmup is {warmup:g} and decay {decay:g}: with the schedule wsd they are at most 1 together; lower one"
        )


def schedule_factor(name: ScheduleName, step: float, total: int, warmup: int, decay: int, final: float) -> float:
    """The share of the peak learning rate at a step: linear from 0 over `warmup` steps; then 1 ("constant"), half a
    cosine to `final` over all other steps, or 1 until a linear fall to `final` over the last `decay` steps ("wsd")."""
    if step < warmup:
        return step / warmup
    if name == "constant":
        return 1.0
    if name == "cosine":
        progress = (step - warmup) / max(1, total - warmup)
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    progress = (step - (total - decay)) / max(1, decay)
    return 1.0 if progress < 0 else final + (1.0 - final) * (1.0 - min(1.0, progress))


DtypeChoice = Literal["auto", "bfloat16", "float32"]
"""The compute dtype of training."""
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
OptimizerName = Literal["adamw", "muon"]
Orthogonalisation = Literal["newton_schulz", "polar_express"]
_WITHOUT_EFFECT = ("save_steps", "save_seconds", "log_steps", "recompute")


class RouterConfig(Strict):
    """Router losses and biases of a model with experts.

    balance: weight of the auxiliary loss (Switch Transformer, https://arxiv.org/abs/2101.03961, equation 4) per
    document (DeepSeek-V3, https://arxiv.org/abs/2412.19437, equation 17); with k experts per token it is at least k. z:
    weight of the router z-loss (ST-MoE, https://arxiv.org/abs/2202.08906, equation 5). bias_rate: step size of the
    selection biases of experts above or below the mean load (https://arxiv.org/abs/2408.15664).
    """

    balance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    z: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    bias_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class Rates(Strict):
    """Learning-rate multipliers of embedding tables, the head, matrices inside blocks, and all other parameters (norms,
    biases, routers, parameters outside of the model)."""

    embedding: Positive = 1.0
    head: Positive = 1.0
    matrix: Positive = 1.0
    other: Positive = 1.0


class MuonConfig(Strict):
    """Muon (https://kellerjordan.github.io/posts/muon/) for matrices inside blocks: they move along their
    orthogonalised momentum; AdamW moves everything else.

    orthogonalisation: Newton–Schulz steps with Jordan's coefficients, or Polar Express
    (https://arxiv.org/abs/2505.16932). scale of an update by the matrix's shape: "adamw" is 0.2 √max(rows, columns),
    which keeps AdamW's learning rate and decay (Moonlight, https://arxiv.org/abs/2502.16982); "original" is √max(1,
    rows/columns).
    """

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    nesterov: bool = True
    orthogonalisation: Orthogonalisation = "polar_express"
    iterations: Annotated[int, Field(ge=1, le=20)] = 5
    scale: Literal["adamw", "original"] = "adamw"


class GuardConfig(Strict):
    """The rule by which steps are skipped, and the number of skipped steps at which the run stops.

    A step is skipped when its loss or gradient is not finite or, with `sigmas`, when its loss or gradient norm is that
    many standard deviations above the mean of the last `window` applied steps, once there are half as many (OLMo's
    rule, with 6 and 128: https://github.com/allenai/OLMo-core, `SkipStepOptimizer`). The run stops when more than
    `allowed` of the last `window` steps were skipped; with `sigmas`, `allowed` must be given.
    """

    sigmas: Positive | None = None
    window: Annotated[int, Field(ge=2, le=100_000)] = 128
    allowed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check_allowed(self) -> Self:
        if self.sigmas is not None and "allowed" not in self.model_fields_set:
            raise ValueError(
                "with `sigmas` steps are skipped; say how many of the last `window` may be (`allowed`; 0: the first "
                "spike stops the run)"
            )
        return self


class TrainConfig(Grown):
    """Hyperparameters of a run: AdamW (https://arxiv.org/abs/1711.05101), or Muon for matrices, under a schedule.

    warmup, decay: fractions of all steps (decay is WSD's). final: last learning rate relative to the peak. weight_decay
    applies to matrices only. clip: maximum gradient norm; None: no clipping. steps: None runs the source to its end.
    save_steps, save_seconds: how often the state is saved, besides at the end. log_steps: how many steps are read
    back and written together at most. dtype: compute dtype; "auto" is the fastest measured here, and on resuming the
    run's own. recompute: activations recomputed in the backward pass: none, those that cost no product ("selective"),
    or all of each block ("full"); gradients stay the same. cautious_decay: decay only in the update's direction
    (https://arxiv.org/abs/2510.12402). ema: decay of averaged weights, saved with the state. compile: compile blocks
    (torch.compile), which costs about a minute and seldom pays on a CPU.
    """

    LATE: ClassVar[tuple[str, ...]] = (
        *("dtype", "log_steps", "router", "recompute"),
        *("optimizer", "muon", "rates", "cautious_decay", "ema", "guard", "compile"),
    )

    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    schedule: ScheduleName = "cosine"
    warmup: Fraction = 0.06
    decay: Fraction = 0.2
    final: Fraction = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    steps: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0
    save_steps: Annotated[int, Field(ge=1)] | None = None
    save_seconds: Annotated[float, Field(gt=0)] | None = 60.0
    log_steps: Annotated[int, Field(ge=1)] = 1
    dtype: DtypeChoice = "auto"
    router: RouterConfig = RouterConfig()
    recompute: Recompute = "none"
    optimizer: OptimizerName = "adamw"
    muon: MuonConfig = MuonConfig()
    rates: Rates = Rates()
    cautious_decay: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    guard: GuardConfig = GuardConfig()
    compile: bool = False

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        check_schedule(self.schedule, self.warmup, self.decay)
        return self

    def learning_rate_at(self, step: int, total: int) -> float:
        """Learning rate of step number `step` (from 0) of `total`: the schedule at the middle of the step, so that
        neither the first nor the last step is spent at a rate of zero."""
        warmup, decay = round(self.warmup * total), round(self.decay * total)
        return self.learning_rate * schedule_factor(self.schedule, step + 0.5, total, warmup, decay, self.final)

    def numbers(self) -> dict[str, Any]:
        """The fields that determine the result of a run: all but those for saving and logging, and for
        recomputation."""
        return self.model_dump(mode="json", exclude=set(_WITHOUT_EFFECT))


Axis = Literal["data", "shard", "expert", "tensor"]
AXES: tuple[Axis, ...] = ("data", "shard", "expert", "tensor")
Count = Annotated[int, Field(ge=1)]


class ParallelConfig(Strict):
    """Sizes of the axes of parallelism; their product is the number of processes.

    data: groups that each hold a full replica. shard: ranks that each hold a part of every parameter and its moments
    (FSDP2: https://arxiv.org/abs/2304.11277); None: all remaining ranks. tensor: ranks that split each matrix product.
    expert: ranks with different data that divide the experts among them; they shard all other parameters. context: 1,
    since torch splits a row across ranks for plain attention only, and packed rows need more.
    """

    data: Count = 1
    shard: Count | None = None
    tensor: Count = 1
    expert: Count = 1
    context: Literal[1] = 1

    @property
    def min_processes(self) -> int:
        """The smallest number of processes that the configuration allows."""
        return self.data * (self.shard or 1) * self.tensor * self.expert

    def sizes(self, world: int) -> dict[Axis, int]:
        """The size of each axis, for `world` processes. UsageError where they do not fit."""
        unsharded_size = self.data * self.tensor * self.expert
        shard = self.shard if self.shard is not None else max(1, world // unsharded_size)
        axis_sizes: dict[Axis, int] = {"data": self.data, "shard": shard, "expert": self.expert, "tensor": self.tensor}
        if math.prod(axis_sizes.values()) != world:
            layout = " x ".join(f"{axis} {size}" for axis, size in axis_sizes.items())
            start = "; start them with torchrun or srun" if world == 1 else ""
            count = math.prod(axis_sizes.values())
            raise UsageError(f"{layout} is for {count} processes, and there are {world}{start}")
        return axis_sizes
