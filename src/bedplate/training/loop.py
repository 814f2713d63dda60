"""The one training loop. It draws steps, weighs terms exactly, updates, records, saves; it evaluates nothing."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bedplate.core.errors import TrainingError, UsageError
from bedplate.core.progress import Progress
from bedplate.models.model import Model
from bedplate.training.arithmetic import Arithmetic, choose, held
from bedplate.training.batch import Batch
from bedplate.training.computing import computing, lacks_room
from bedplate.training.config import TrainConfig
from bedplate.training.interrupts import Interrupts
from bedplate.training.metrics import MetricsLog
from bedplate.training.objectives import Models, Objective
from bedplate.training.optimizers import NamedParameters, Optimization
from bedplate.training.sources import BatchSource
from bedplate.training.state import (
    METRICS_FILE,
    RunState,
    check_fingerprint,
    load_state,
    random_states,
    run_directory,
    save_state,
    seeded,
    set_random_states,
)

logger = logging.getLogger("bedplate.training")
OnCheckpoint = Callable[[int, Models], None]


@dataclass(frozen=True)
class TrainResult:
    """What a finished run did, over all its resumptions; seconds are spent in steps. The last step's losses by term.
    arithmetic: what it computed in."""

    steps: int
    examples: int
    tokens: int
    seconds: float
    losses: dict[str, float]
    resumed_at: int | None
    metrics_path: Path
    arithmetic: Arithmetic


@dataclass
class _Tally:
    """What a run counts; saved with its state."""

    step: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict[str, float])


def train(
    models: Model | Models,
    source: BatchSource,
    objective: Objective,
    config: TrainConfig,
    out: Path,
    trainable: NamedParameters,
    on_checkpoint: OnCheckpoint | None = None,
    *,
    identity: Mapping[str, Any] | None = None,
    description: str = "training",
) -> TrainResult:
    """Trains the `trainable` parameters in place; every other one is frozen meanwhile.

    models: the policy, or one model per role of the objective. out: where state and metrics go; a saved state there is
    resumed, to the same weights bit by bit (same machine, same number of threads), and a finished run is only loaded.
    It computes in the dtype that `config.dtype` asks for, or in what is measured to be fastest here; a resumed run in
    what it began with. Afterwards the models are in their own dtype again, frozen weights bit by bit what they were.
    identity: what else a resumed run must have in common with the saved one, such as the base's weights_id.
    on_checkpoint(step, models) is called after each save that `save_steps` asks for, and after the last; what it draws
    from the global random generators is undone.

    Raises TrainingError (another run's state in `out`, a loss or gradient that is not finite), DataError, and
    KeyboardInterrupt after Ctrl-C or SIGTERM, with the state saved at the step's end.
    """
    roles: Models = {"policy": models} if isinstance(models, nn.Module) else models
    missing = set(objective.roles) - set(roles)
    if missing:
        raise UsageError(f"the objective {objective.name} needs a model for the role {sorted(missing)[0]!r}")
    trained = dict(trainable)
    about: dict[str, Any] = {
        "trainable": {n: [str(p.dtype), list(p.shape)] for n, p in trained.items()},
        "identity": dict(identity or {}),
    }
    with run_directory(out):
        arithmetic = _arithmetic(roles, config, out, trained)
        with computing(_movable(roles), arithmetic) as originals:
            optimization = Optimization(trained.items(), config, originals)
            with _only_trained(roles, optimization), seeded(config.seed):
                run = _Run(roles, source, objective, config, out, optimization, on_checkpoint, about, arithmetic)
                try:
                    return run.finish(description)
                finally:
                    optimization.hand_back()


def _movable(roles: Models) -> Models:
    """The models whose dtype may change for the run: all, or none where they differ."""
    dtypes = {p.dtype for model in roles.values() for p in model.parameters()}
    return roles if len(dtypes) == 1 else {}


def _arithmetic(roles: Models, config: TrainConfig, out: Path, trained: Mapping[str, nn.Parameter]) -> Arithmetic:
    """What the run computes in: a saved run's own, else what is asked for, or the fastest that memory allows."""
    policy = roles.get("policy", next(iter(roles.values())))
    own, saved = held(policy), load_state(out)
    if saved is not None:
        try:
            # runs of earlier versions computed in what their models were held in
            return Arithmetic.of_json(saved.values.get("arithmetic", own.to_json()))
        except (KeyError, ValueError, TypeError) as error:
            raise TrainingError(
                f"{out}: the saved state names no arithmetic ({error}); delete it to start anew"
            ) from error
    movable = _movable(roles)
    if not movable:
        return own
    weights = {id(p) for model in roles.values() for p in model.parameters()}
    kind = "weights" if any(id(p) in weights for p in trained.values()) else "adapters"
    found = choose(policy, kind, config.dtype)
    reason = lacks_room(movable, found)
    if reason is None or config.dtype != "auto":
        return found
    logger.warning("training in %s is faster here, but %s; it goes on in %s", found.dtype, reason, own.dtype)
    return own


@contextmanager
def _only_trained(models: Models, optimization: Optimization) -> Generator[None]:
    """Gradients on exactly the trained parameters, the policy in training mode; all as before afterwards."""
    every = {id(p): p for model in models.values() for p in model.parameters()}
    every |= {id(p): p for p in optimization.parameters.values()}
    before = [(p, p.requires_grad) for p in every.values()]
    modes = [(m, m.training) for model in models.values() for m in model.modules()]
    trained = {id(p) for p in optimization.parameters.values()}
    try:
        for p in every.values():
            p.requires_grad_(id(p) in trained)
        for role, model in models.items():
            model.train(role == "policy")
        yield
    finally:
        for p, required in before:
            p.requires_grad_(required)
            p.grad = None
        for module, mode in modes:
            module.training = mode


class _Run:
    def __init__(
        self,
        models: Models,
        source: BatchSource,
        objective: Objective,
        config: TrainConfig,
        out: Path,
        optimization: Optimization,
        on_checkpoint: OnCheckpoint | None,
        about: dict[str, Any],
        arithmetic: Arithmetic,
    ) -> None:
        self.models, self.source, self.objective, self.config, self.out = models, source, objective, config, out
        self.optimization, self.on_checkpoint, self.arithmetic = optimization, on_checkpoint, arithmetic
        self.device = next(iter(optimization.parameters.values())).device
        self.tally = _Tally()
        self.total = self._total_steps()
        self.fingerprint: dict[str, Any] = {
            "objective": objective.name,
            "config": config.numbers(),
            "source": source.identity,
            **about,
        }

    def _total_steps(self) -> int:
        available, asked = self.source.steps, self.config.steps
        if available is None and asked is None:
            raise UsageError("this source has no end: say how many steps to train (steps)")
        if available is not None and asked is not None and asked > available:
            raise UsageError(
                f"{asked} steps are asked for, but the source holds {available}; add epochs or lower steps"
            )
        total = asked if asked is not None else available
        assert total is not None
        return total

    def finish(self, description: str) -> TrainResult:
        """From the saved state, if there is one, to the end."""
        saved = load_state(self.out)
        metrics_at = 0 if saved is None else self._restore(saved)
        resumed_at = None if saved is None else self.tally.step
        with (
            MetricsLog(self.out / METRICS_FILE, metrics_at) as log,
            Progress(description, self.total, "steps") as bar,
            Interrupts() as interrupts,
        ):
            bar.advance(self.tally.step)
            self._steps(log, bar, interrupts)
        done = self.tally
        return TrainResult(
            done.step,
            done.examples,
            done.tokens,
            done.seconds,
            done.losses,
            resumed_at,
            self.out / METRICS_FILE,
            self.arithmetic,
        )

    def _steps(self, log: MetricsLog, bar: Progress, interrupts: Interrupts) -> None:
        saved_at = time.monotonic()
        batches = iter(self.source)
        while self.tally.step < self.total:
            row = self._step(next(batches))
            log.write(row)
            bar.advance(1, loss=sum(self.tally.losses.values()))
            last = self.tally.step == self.total
            every = self.config.save_steps
            planned = last or (every is not None and self.tally.step % every == 0)
            seconds = self.config.save_seconds
            due = seconds is not None and time.monotonic() - saved_at >= seconds
            if planned or due or interrupts.requested:
                self._save(log)
                saved_at = time.monotonic()
            if planned and self.on_checkpoint is not None:
                kept = random_states()
                self.on_checkpoint(self.tally.step, self.models)
                set_random_states(*kept)
            if interrupts.requested:
                raise KeyboardInterrupt

    def _step(self, batches: Sequence[Batch]) -> dict[str, Any]:
        started = time.perf_counter()
        batches = [batch.to(self.device) for batch in batches]
        weights = self._summed_weights(batches)
        losses = dict.fromkeys(weights, 0.0)
        for batch in batches:
            for name, value in self._backward(batch, weights).items():
                losses[name] += value
        norm = self.optimization.clip()
        if not math.isfinite(norm):
            raise self._not_finite(f"the gradient's norm is {norm}", batches)
        rate = self.config.learning_rate_at(self.tally.step, self.total)
        self.optimization.step(rate)
        seconds = time.perf_counter() - started
        tokens, examples = sum(b.token_count for b in batches), sum(len(b.ids) for b in batches)
        tally = self.tally
        self.tally = _Tally(
            tally.step + 1, tally.examples + examples, tally.tokens + tokens, tally.seconds + seconds, losses
        )
        return {
            "step": self.tally.step,
            "loss": sum(losses.values()),
            **({f"loss/{name}": value for name, value in losses.items()} if len(losses) > 1 else {}),
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens": tokens,
            "targets": sum(b.target_count for b in batches),
            "examples": examples,
            "tokens_per_second": tokens / seconds,
            "examples_per_second": examples / seconds,
        }

    def _summed_weights(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Each term's weight over the whole step; every micro-batch's loss is divided by it."""
        weights: dict[str, float] = {}
        for batch in batches:
            for name, weight in self.objective.weights(batch).items():
                weights[name] = weights.get(name, 0.0) + weight
        for name, weight in weights.items():
            if weight <= 0:
                raise TrainingError(f"step {self.tally.step + 1}: nothing carries weight in the term {name!r}")
        return weights

    def _backward(self, batch: Batch, weights: Mapping[str, float]) -> dict[str, float]:
        terms = self.objective(self.models, batch)
        shares = {name: term.total / weights[name] for name, term in terms.items()}
        losses = {name: float(share.detach()) for name, share in shares.items()}
        if not all(math.isfinite(value) for value in losses.values()):
            raise self._not_finite(f"the loss is {losses}", [batch])
        loss = torch.stack(list(shares.values())).sum()
        if loss.requires_grad:  # else nothing trainable took part, which `clip` reports
            loss.backward()
        self.optimization.collect()
        return losses

    def _not_finite(self, what: str, batches: Sequence[Batch]) -> TrainingError:
        ids = [id for batch in batches for id in batch.ids]
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        return TrainingError(
            f"step {self.tally.step + 1}: {what}, on the examples {shown}. The state before this step is kept; "
            "lower the learning rate, or look at these examples"
        )

    def _save(self, log: MetricsLog) -> None:
        random_tensors, random_values = random_states()
        values = {
            "fingerprint": self.fingerprint,
            "arithmetic": self.arithmetic.to_json(),
            "source": self.source.state(),
            "metrics_bytes": log.position(),
            "random": random_values,
            "tally": vars(self.tally),
        }
        save_state(self.out, RunState(self.optimization.tensors() | random_tensors, values))

    def _restore(self, saved: RunState) -> int:
        """Everything as it was when `saved` was written; returns where the metrics stood."""
        check_fingerprint(self.out, saved.values["fingerprint"], self.fingerprint)
        self.optimization.load(saved.tensors)
        self.source.load_state(saved.values["source"])
        set_random_states(saved.tensors, saved.values["random"])
        self.tally = _Tally(**saved.values["tally"])
        return int(saved.values["metrics_bytes"])


@torch.no_grad()
def evaluate_loss(models: Model | Models, batches: Iterable[Batch], objective: Objective) -> dict[str, float]:
    """Each term's loss over all batches, weighted exactly, with the models in evaluation mode."""
    roles: Models = {"policy": models} if isinstance(models, nn.Module) else models
    modes = [(m, m.training) for model in roles.values() for m in model.modules()]
    totals: dict[str, float] = {}
    weights: dict[str, float] = {}
    try:
        for model in roles.values():
            model.eval()
        for batch in batches:
            for name, term in objective(roles, batch).items():
                totals[name] = totals.get(name, 0.0) + float(term.total)
                weights[name] = weights.get(name, 0.0) + term.weight
    finally:
        for module, mode in modes:
            module.training = mode
    return {name: totals[name] / weights[name] for name in totals}
