"""The training loop: draws steps, weighs loss terms exactly, updates, logs and saves. It evaluates nothing.

1. `train` opens the run's directory, finds a saved state and chooses the arithmetic (precision.py).
2. The models are converted to it, gradients are recorded for the trained parameters only, and masters and moments are
   made (`optimizers.py`); a saved state is loaded into them (`_Run.restore`).
3. `_step` sums each term's weight over micro-batches and ranks before the first forward pass (`_weights`).
4. `_backward` runs a micro-batch through the objective (objectives/) and collects its gradients in float32.
5. The gradient is summed over ranks (ranks.py) and clipped; the guard decides on the device whether the step is
   applied (step_metrics.py); optimizer and routers (routers.py) step. Nothing is read back.
6. `_read` reads the metrics of `log_steps` steps at once and writes a line for each (step_metrics.py).
7. `_save` writes the state (state.py); `on_checkpoint` receives the models. Interrupts take effect between steps.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor

from bedplate.core.errors import TrainingError, UsageError
from bedplate.core.memory import keeping
from bedplate.core.progress import Progress, notice
from bedplate.models.layers.experts import collect_routings
from bedplate.models.layers.recomputation import recomputing
from bedplate.training import precision, state
from bedplate.training.batch import MicroBatch
from bedplate.training.config import TrainConfig
from bedplate.training.objectives.objective import AnyModel, Models, Objective, Term, evaluate_loss
from bedplate.training.optimizers import NamedParameters, Optimization, classify_parameters
from bedplate.training.ranks import ALONE, Ranks
from bedplate.training.routers import Routers
from bedplate.training.sources import BatchSource
from bedplate.training.step_metrics import LOSS, MetricsLog, Skipped, StepGuard, UnreadStep, Utilisation, read_steps


def store_of(out: Path, ranks: Ranks) -> state.StateStore:
    """Opens the state store of the run in this directory, whose saved state may come from another number of
    processes."""
    if ranks.world > 1 or (out / state.SHARDS).exists():
        # torch.distributed's parts take a second to import.
        from bedplate.training.parallel.sharded_states import DistributedStates

        return DistributedStates(out, ranks)
    return state.StateFile(out)


READ_SECONDS = 2.0
"""Steps are read back once this time has passed, however few they are: whoever waits sees that the run goes on."""

B = TypeVar("B", bound=MicroBatch)
OnCheckpoint = Callable[[int, Models], None]
OnRow = Callable[[Mapping[str, Any]], None]

__all__ = ["OnCheckpoint", "TrainResult", "evaluate_loss", "train"]


@dataclass(frozen=True)
class TrainResult:
    """The result of a finished run, over all its resumptions. seconds: spent in steps. losses: the last step's, by
    term. arithmetic: the run's dtype and product library."""

    steps: int
    examples: int
    tokens: int
    seconds: float
    losses: dict[str, float]
    resumed_at: int | None
    metrics_path: Path
    arithmetic: precision.Arithmetic


@dataclass
class _Tally:
    """Counters of a run, saved with its state."""

    step: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict[str, float])


def train(
    models: AnyModel | Models,
    source: BatchSource[B],
    objective: Objective[B],
    config: TrainConfig,
    out: Path,
    trainable: NamedParameters,
    on_checkpoint: OnCheckpoint | None = None,
    *,
    identity: Mapping[str, Any] | None = None,
    description: str = "training",
    store: state.StateStore | None = None,
    ranks: Ranks = ALONE,
    utilisation: Utilisation | None = None,
    on_row: OnRow | None = None,
) -> TrainResult:
    """Trains the `trainable` parameters in place; all others are frozen meanwhile.

    models: the policy, or one model per role of the objective. out: directory of metrics and, without another `store`,
    of the state; a saved state is resumed to bitwise the same weights (same machine, same number of threads), and a
    finished run is only loaded. identity: further values that a resumed run must share with the saved one, such as the
    base's weights_id. on_checkpoint(step, models): called after each save due by `save_steps` and after the last, with
    the random generators restored afterwards. ranks: the processes that train together, each on its share of one
    source. utilisation: adds the share of the devices' peak ("mfu") to each line. on_row: called with each line of
    metrics. Afterwards the models are in their own dtype again, frozen weights bitwise unchanged.

    Raises TrainingError (another run's state in `out`, more skipped steps than `config.guard` allows, a model that
    another run of this process trains), DataError, and KeyboardInterrupt after Ctrl-C or SIGTERM, with the state saved
    at the step's end.
    """
    roles: Models = models if isinstance(models, Mapping) else {"policy": models}
    missing = set(objective.roles) - set(roles)
    if missing:
        raise UsageError(f"the objective {objective.name} needs a model for the role {sorted(missing)[0]!r}")
    trained = dict(trainable)
    about: dict[str, Any] = {
        "trainable": {n: [str(p.dtype), list(p.shape)] for n, p in trained.items()},
        "identity": dict(identity or {}),
    }
    store = store_of(out, ranks) if store is None else store
    with keeping(), state.run_directory(out, ranks.main):
        ranks.barrier()
        last = store.latest()
        arithmetic = precision.run_arithmetic(
            roles, config, store, None if last is None else store.values(last), trained, ranks
        )
        # Distributed models compute in another dtype than their parameters' without conversion.
        with precision.computing(
            roles, arithmetic if ranks.world == 1 else precision.native_arithmetic(precision.policy_of(roles))
        ) as originals:
            parameter_roles = classify_parameters(precision.policy_of(roles).modules())
            optimization = Optimization(trained.items(), config, originals, parameter_roles, ranks)
            with (
                precision.only_trained(roles, optimization),
                precision.compiled(precision.policy_of(roles), config.compile),
                state.seeded(config.seed),
            ):
                routers = Routers.of(precision.policy_of(roles), config.router, trained.values(), ranks)
                run = _Run(
                    models=roles,
                    source=source,
                    objective=objective,
                    config=config,
                    out=out,
                    store=store,
                    optimization=optimization,
                    on_checkpoint=on_checkpoint,
                    about=about,
                    arithmetic=arithmetic,
                    ranks=ranks,
                    routers=routers,
                    utilisation=utilisation,
                    on_row=on_row,
                )
                if last is not None:
                    run.restore(last)
                try:
                    return run.finish(description)
                finally:
                    optimization.hand_back()
                    store.settle()


@dataclass
class _Run(Generic[B]):
    """One process's part of a run, from its current step to the end."""

    models: Models
    source: BatchSource[B]
    objective: Objective[B]
    config: TrainConfig
    out: Path
    store: state.StateStore
    optimization: Optimization
    on_checkpoint: OnCheckpoint | None
    about: dict[str, Any]
    arithmetic: precision.Arithmetic
    ranks: Ranks
    routers: Routers | None
    utilisation: Utilisation | None
    on_row: OnRow | None

    def __post_init__(self) -> None:
        self.device = next(iter(self.optimization.parameters.values())).device
        self.tally = _Tally()
        self.unread: list[UnreadStep] = []
        self.unread_seconds = 0.0
        self.guard = StepGuard(self.config.guard, self.device)
        self.skipped = Skipped(self.config.guard)
        self.spare: B | None = None
        """A batch for passes in which this rank has no data but must join the collectives."""
        self.metrics_at = 0
        self.resumed_at: int | None = None
        self.total = self._total_steps()

    def _fingerprint(self) -> dict[str, Any]:
        config, source = self.config.numbers(), dict(self.source.identity)
        return {"objective": self.objective.name, "config": config, "source": source, **self.about}

    def _total_steps(self) -> int:
        available, requested = self.source.steps, self.config.steps
        total = available if requested is None else requested
        if total is None:
            raise UsageError("this source has no end: say how many steps to train (steps)")
        if available is not None and total > available:
            raise UsageError(f"{total} steps are asked for, but the source holds {available}; lower steps")
        return total

    def finish(self, description: str) -> TrainResult:
        """Trains to the end of the run."""
        with (
            MetricsLog(self.out / state.METRICS_FILE, self.metrics_at, self.ranks.main) as log,
            Progress(description, self.total, "steps", quiet=not self.ranks.main, done=self.tally.step) as bar,
            Interrupts() as interrupts,
        ):
            self._steps(log, bar, interrupts)
        counters = dict(vars(self.tally))
        return TrainResult(
            steps=counters.pop("step"),
            **counters,
            resumed_at=self.resumed_at,
            metrics_path=self.out / state.METRICS_FILE,
            arithmetic=self.arithmetic,
        )

    def _steps(self, log: MetricsLog, bar: Progress, interrupts: Interrupts) -> None:
        save_steps, seconds = self.config.save_steps, self.config.save_seconds
        saved_at = read_at = time.monotonic()
        batches = iter(self.source)
        while self.tally.step < self.total:
            number = self._step(next(batches))
            planned = number == self.total or (save_steps is not None and number % save_steps == 0)
            now = time.monotonic()
            late = seconds is not None and self.ranks.main and now - saved_at >= seconds
            slow = self.ranks.main and now - read_at >= READ_SECONDS
            due, slow, stopped = self.ranks.any_rank(late, slow, interrupts.requested)
            saving = planned or due or stopped
            if saving or slow or len(self.unread) == self.config.log_steps:
                self._read(log, bar)
                read_at = now
            if saving:
                self._save(log)
                saved_at = time.monotonic()
            if stopped or number == self.total:
                self.store.settle()
            if planned and self.on_checkpoint is not None:
                rng_states = state.random_states()
                self.on_checkpoint(number, self.models)
                state.set_random_states(*rng_states)
            # An interrupt while the last state is written is raised here, since no later step checks for it.
            if stopped or (number == self.total and interrupts.requested):
                raise KeyboardInterrupt

    def _step(self, batches: Sequence[B]) -> int:
        """Runs the next step without reading anything back from the device; returns its number."""
        started = time.perf_counter()
        number = self.tally.step + len(self.unread) + 1
        counts = {"tokens": 0}
        for batch in batches:
            for name, count in batch.counts.items():
                counts[name] = counts.get(name, 0) + count
        counts["examples"] = sum(len(batch.ids) for batch in batches)
        weights, passes = self._weights(number, batches), self.ranks.maximum(len(batches))
        if self.ranks.any_rank(not batches and self.spare is None)[0]:  # at the first step of this process
            rank_batches = self.ranks.gather(batches[-1] if batches else None)
            self.spare = next((batch for batch in rank_batches if batch is not None), None)
        with recomputing(self.config.recompute):
            parts = [(batch.ids, self._backward(batch.to(self.device), weights)) for batch in batches]
            for _ in range(passes - len(batches)):
                self._idle(number, batches)
        self.spare = batches[-1] if batches and self.ranks.world > 1 else self.spare
        rate = self.config.learning_rate_at(number - 1, self.total)
        norm = self.optimization.clip()
        step = UnreadStep(number, rate, counts, parts, norm, torch.zeros_like(norm), torch.zeros_like(norm))
        loss, unsound = self.ranks.device_sum(torch.stack((step.loss().to(norm.dtype), step.unsound()))).unbind()
        skipped, stops = self.guard.judge(number, loss, norm, unsound)
        step.skipped, step.stops = self.ranks.device_max(torch.stack((skipped, stops))).unbind()
        self.optimization.step(rate, step.skipped)
        if self.routers is not None:
            self.routers.step(step.skipped)
        self.unread.append(step)
        self.unread_seconds += time.perf_counter() - started
        return number

    def _idle(self, number: int, batches: Sequence[B]) -> None:
        """Runs a forward and backward pass with zero loss, where other ranks have more micro-batches in this step:
        their collectives need this rank in each."""
        spare = batches[-1] if batches else self.spare
        if spare is None:
            raise TrainingError(f"step {number}: some ranks have no examples; use larger steps or fewer ranks")
        terms = self.objective(self.models, spare.to(self.device))
        loss = torch.stack([term.total * 0.0 for term in terms.values()]).sum()
        if loss.requires_grad:
            loss.backward()
        self.optimization.collect()

    def _weights(self, number: int, batches: Sequence[B]) -> Mapping[str, float]:
        """Each term's weight, summed over the whole step; every micro-batch's sums are divided by it."""
        local_weights: dict[str, float] = {}
        for batch in batches:
            router_weights = {} if self.routers is None else self.routers.weights(batch)
            for name, weight in (self.objective.weights(batch) | router_weights).items():
                local_weights[name] = local_weights.get(name, 0.0) + weight
        weights = self.ranks.sums(local_weights)
        for name, weight in weights.items():
            if weight <= 0:
                raise TrainingError(f"step {number}: nothing carries weight in the term {name!r}")
        return weights

    def _terms(self, batch: B) -> dict[str, Term]:
        if self.routers is None:
            return self.objective(self.models, batch)
        with collect_routings() as routings:
            terms = self.objective(self.models, batch)
        return {**terms, **self.routers.terms(routings, batch)}

    def _backward(self, batch: B, weights: Mapping[str, float]) -> dict[str, Tensor]:
        terms = self._terms(batch)
        shares = {name: term.total / weights[name] for name, term in terms.items()}
        loss = torch.stack(list(shares.values())).sum()
        if loss.requires_grad:  # else no trained parameter took part, which `clip` reports
            loss.backward()
        self.optimization.collect()
        metrics = {f"{LOSS}{name}": share.detach() for name, share in shares.items()}
        for name, term in terms.items():
            metrics |= {f"{name}/{metric}": value.detach() / weights[name] for metric, value in term.metrics.items()}
        return metrics

    def _read(self, log: MetricsLog, bar: Progress) -> None:
        """Reads the metrics of the unread steps and writes their lines; the time is divided evenly among them."""
        started = time.perf_counter()
        readings = read_steps(self.unread)
        shown: dict[str, float | str] = {}
        seconds = (self.unread_seconds + time.perf_counter() - started) / len(self.unread)
        for step, reading in zip(self.unread, readings, strict=True):
            about = self.skipped.add(step.number, reading, self.ranks) if reading.skipped else {}
            if reading.stops:
                raise self.skipped.error()
            sums = self.ranks.sums({**reading.values, **step.counts})
            losses = {name.removeprefix(LOSS): value for name, value in sums.items() if name.startswith(LOSS)}
            # names of all ranks, since this one may have had no share of the step
            count_names = {name for names in self.ranks.gather(list(step.counts)) for name in names}
            counts = {name: int(value) for name, value in sums.items() if name in count_names}
            unlisted = count_names if len(losses) > 1 else count_names | {f"{LOSS}{name}" for name in losses}
            values = {
                "step": step.number,
                "loss": sum(losses.values()),
                **{name: value for name, value in sums.items() if name not in unlisted},
                "learning_rate": step.learning_rate,
                "gradient_norm": reading.norm,
                **counts,
                "tokens_per_second": counts["tokens"] / seconds,
                "examples_per_second": counts["examples"] / seconds,
                **about,
            }
            if self.utilisation is not None:
                values["mfu"] = self.utilisation.share(counts["tokens"], seconds, self.ranks.world)
            # JSON has no numbers that are not finite.
            row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
            log.write(row)
            if self.on_row is not None:
                self.on_row(row)
            self.tally.step = step.number
            self.tally.examples += counts["examples"]
            self.tally.tokens += counts["tokens"]
            self.tally.seconds += seconds
            self.tally.losses = self.tally.losses if reading.skipped else losses
            shown = {"loss": sum(losses.values()), "tokens/s": f"{counts['tokens'] / seconds:,.0f}"}
        bar.advance(len(readings), **shown)
        self.unread, self.unread_seconds = [], 0.0

    def _save(self, log: MetricsLog) -> None:
        random_tensors, random_values = state.random_states()
        values = {
            "fingerprint": self._fingerprint(),
            "arithmetic": self.arithmetic.to_json(),
            "source": self.source.state(),
            "metrics_bytes": log.position(),
            "random": random_values,
            "tally": dict(vars(self.tally)),
        }
        self.store.save(self.tally.step, state.RunState(self._tensors() | random_tensors, values))

    def _tensors(self) -> dict[str, Tensor]:
        router_tensors = {} if self.routers is None else self.routers.tensors()
        return self.optimization.tensors() | router_tensors | self.guard.tensors()

    def restore(self, step: int) -> None:
        """Restores all state as it was when the state after this step was saved."""
        state.check_fingerprint(self.out, self.store, self.store.values(step)["fingerprint"], self._fingerprint())
        saved = self.store.load(step, self._tensors())
        self.optimization.load(saved.tensors)
        if self.routers is not None:
            self.routers.load(saved.tensors)
        self.guard.load(saved.tensors)
        self.source.load_state(saved.values["source"])
        state.set_random_states(saved.tensors, saved.values["random"])
        self.tally = _Tally(**saved.values["tally"])
        self.metrics_at, self.resumed_at = int(saved.values["metrics_bytes"]), self.tally.step


class Interrupts:
    """A context in which `requested` turns true at the first SIGINT or SIGTERM; a second one raises KeyboardInterrupt.

    Outside the main thread, where Python allows no handlers, it never turns true.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        with suppress(RuntimeError):  # it came in the middle of a line that is being printed
            notice("the run stops after this step, with its state saved; a second Ctrl-C stops it at once")
