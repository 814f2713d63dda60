"""The training configuration and batch sizes that follow from a run file and its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pydantic

from bedplate.core.errors import ConfigError
from bedplate.models.specs import TextSpec
from bedplate.pretraining.plan.sizes import RunSizes, sizes_of
from bedplate.pretraining.run.data import RowShape
from bedplate.pretraining.runfile.file import RunFile
from bedplate.training.config import TrainConfig


@dataclass(frozen=True)
class RunSettings:
    """What follows from the file."""

    config: TrainConfig
    rows: RowShape
    sizes: RunSizes

    @property
    def steps(self) -> int:
        return self.sizes.steps

    def shown(self) -> dict[str, Any]:
        """For people."""
        config = self.config
        return {
            "tokens": self.sizes.tokens,
            "steps": self.steps,
            "tokens_of_a_step": self.rows.batch * self.rows.length,
            "sequence": self.rows.length,
            "learning_rate": config.learning_rate,
            "schedule": f"{config.schedule}, warm-up {config.warmup:g}, decay {config.decay:g}",
            "weight_decay": config.weight_decay,
            "clip": config.clip,
            "seed": config.seed,
        }


def settings_of(run: RunFile, spec: TextSpec, available: int) -> RunSettings:
    """available: tokens that there are to learn, once. ConfigError for settings that cannot be."""
    sizes = sizes_of(run, spec, available)
    rows = RowShape(sizes.length, sizes.batch, sizes.micro)
    return RunSettings(_config(run, sizes.rate, sizes.steps), rows, sizes)


def _config(run: RunFile, rate: float, steps: int) -> TrainConfig:
    """The loop's configuration."""
    optimizer, schedule = run.optimizer, run.schedule
    fields: dict[str, Any] = {
        "learning_rate": rate,
        "schedule": schedule.name,
        "warmup": schedule.warmup,
        "decay": schedule.decay,
        "final": schedule.final,
        "beta1": optimizer.beta1,
        "beta2": optimizer.beta2,
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "clip": optimizer.clip,
        "steps": steps,
        "seed": run.seed,
        "save_steps": max(1, round(run.checkpoints.every * steps)),
        "save_seconds": run.checkpoints.seconds,
        "log_steps": run.log_steps,
        "dtype": run.dtype,
        "router": run.router,
        "recompute": run.recompute,
    }
    reserved = [name for name in optimizer.settings if name in fields]
    if reserved:
        raise ConfigError(f"optimizer.settings.{reserved[0]}: the run file has a key of its own for it")
    if optimizer.name != "adamw":
        fields["optimizer"] = optimizer.name
    try:
        return TrainConfig(**fields, **optimizer.settings)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"optimizer.settings: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
