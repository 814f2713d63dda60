"""The one training loop. It draws steps, weighs terms exactly, updates, records, saves; it evaluates nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from bedplate.core.errors import TrainingError, UsageError
from bedplate.core.progress import Progress
from bedplate.models.layers.kept import recomputing
from bedplate.models.layers.routing import listening
from bedplate.training.arithmetic import Arithmetic, choose, held
from bedplate.training.batch import MicroBatch
from bedplate.training.computing import computing, lacks_room, of_one_dtype, only_trained
from bedplate.training.config import TrainConfig
from bedplate.training.interrupts import Interrupts
from bedplate.training.metrics_log import MetricsLog
from bedplate.training.objectives import AnyModel, Models, Objective, Term
from bedplate.training.optimizers import NamedParameters, Optimization
from bedplate.training.random_states import random_states, seeded, set_random_states
from bedplate.training.readings import LOSS, UnreadStep, read_steps
from bedplate.training.routers import Routers
from bedplate.training.sources import BatchSource
from bedplate.training.state import METRICS_FILE, RunState, StateFile, StateStore, check_fingerprint, run_directory

logger = logging.getLogger("bedplate.training")
B = TypeVar("B", bound=MicroBatch)
OnCheckpoint = Callable[[int, Models], None]
Reduce = Callable[[Mapping[str, float]], Mapping[str, float]]
"""One rank's sums → those of all ranks together."""


def own_sums(sums: Mapping[str, float]) -> Mapping[str, float]:
    """The sums of all ranks, where there is one."""
    return sums


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
    store: StateStore | None = None,
    reduce: Reduce = own_sums,
) -> TrainResult:
    """Trains the `trainable` parameters in place; every other one is frozen meanwhile.

    models: the policy, or one model per role of the objective. out: where metrics and, unless there is another `store`,
    the state go; a saved state is resumed, to the same weights bit by bit (same machine, same number of threads), and a
    finished run is only loaded. It computes in the dtype that `config.dtype` asks for, or in what is measured to be
    fastest here; a resumed run in what it began with. Afterwards the models are in their own dtype again, frozen
    weights bit by bit what they were.
    identity: what else a resumed run must have in common with the saved one, such as the base's weights_id.
    on_checkpoint(step, models) is called after each save that `save_steps` asks for, and after the last; what it draws
    from the global random generators is undone.
    reduce: where several ranks train on shares of one source, adds up what each of them counts.

    Raises TrainingError (another run's state in `out`, a loss or gradient that is not finite, a model that another run
    of this process computes with), DataError, and KeyboardInterrupt after Ctrl-C or SIGTERM, with the state saved at
    the step's end.
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
    store = StateFile(out) if store is None else store
    with run_directory(out):
        last = store.latest()
        saved = None if last is None else store.load(last)
        arithmetic = _arithmetic(roles, config, store, saved, trained)
        with computing(roles, arithmetic) as originals:
            optimization = Optimization(trained.items(), config, originals)
            with only_trained(roles, optimization), seeded(config.seed):
                shared = None if reduce is own_sums else reduce
                routers = Routers.of(policy_of(roles), config.router, trained.values(), shared)
                made = (config, out, store, optimization, on_checkpoint, about, arithmetic, reduce, routers)
                run = _Run(roles, source, objective, *made)
                if saved is not None:
                    run.restore(saved)
                    del saved  # it is as large as what is trained
                try:
                    return run.finish(description)
                finally:
                    optimization.hand_back()


def _arithmetic(
    roles: Models, config: TrainConfig, store: StateStore, saved: RunState | None, trained: Mapping[str, nn.Parameter]
) -> Arithmetic:
    """What the run computes in: a saved run's own, else what is asked for, or the fastest that memory allows."""
    policy = policy_of(roles)
    own = held(policy)
    if saved is not None:
        try:
            # runs of earlier versions computed in what their models were held in
            return Arithmetic.of_json(saved.values.get("arithmetic", own.to_json()))
        except (KeyError, ValueError, TypeError) as error:
            raise TrainingError(
                f"{store}: the saved state names no arithmetic ({error}); delete it to start anew"
            ) from error
    if not of_one_dtype(roles):
        return own
    weights = {id(p) for model in roles.values() for p in model.parameters()}
    kind = "weights" if any(id(p) in weights for p in trained.values()) else "adapters"
    found = choose(policy, kind, config.dtype)
    reason = lacks_room(roles, found)
    if reason is None or config.dtype != "auto":
        return found
    logger.warning("training in %s is faster here, but %s; it goes on in %s", found.dtype, reason, own.dtype)
    return own


def policy_of(models: Models) -> AnyModel:
    """The model that is trained."""
    return models.get("policy", next(iter(models.values())))


class _Run(Generic[B]):
    def __init__(
        self,
        models: Models,
        source: BatchSource[B],
        objective: Objective[B],
        config: TrainConfig,
        out: Path,
        store: StateStore,
        optimization: Optimization,
        on_checkpoint: OnCheckpoint | None,
        about: dict[str, Any],
        arithmetic: Arithmetic,
        reduce: Reduce,
        routers: Routers | None,
    ) -> None:
        self.models, self.source, self.objective, self.config, self.out = models, source, objective, config, out
        self.store, self.optimization, self.on_checkpoint = store, optimization, on_checkpoint
        self.about, self.arithmetic, self.reduce, self.routers = about, arithmetic, reduce, routers
        self.device = next(iter(optimization.parameters.values())).device
        self.tally = _Tally()
        self.unread: list[UnreadStep] = []
        self.unread_seconds = 0.0
        self.void = torch.zeros((), device=self.device)
        """1 from the first step on that is not to be applied, because something in it is not finite."""
        self.metrics_at = 0
        self.resumed_at: int | None = None
        self.total = self._total_steps()

    def _fingerprint(self, source: Mapping[str, Any]) -> dict[str, Any]:
        config = self.config.numbers()
        return {"objective": self.objective.name, "config": config, "source": dict(source), **self.about}

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
        """From where it stands to the end."""
        with (
            MetricsLog(self.out / METRICS_FILE, self.metrics_at) as log,
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
            self.resumed_at,
            self.out / METRICS_FILE,
            self.arithmetic,
        )

    def _steps(self, log: MetricsLog, bar: Progress, interrupts: Interrupts) -> None:
        every, seconds = self.config.save_steps, self.config.save_seconds
        saved_at = time.monotonic()
        batches = iter(self.source)
        while self.tally.step < self.total:
            number = self._step(next(batches))
            planned = number == self.total or (every is not None and number % every == 0)
            due = seconds is not None and time.monotonic() - saved_at >= seconds
            stopped = interrupts.requested
            saving = planned or due or stopped
            if saving or len(self.unread) == self.config.log_steps:
                self._read(log, bar)
            if saving:
                self._save(log)
                saved_at = time.monotonic()
            if planned and self.on_checkpoint is not None:
                kept = random_states()
                self.on_checkpoint(number, self.models)
                set_random_states(*kept)
            # What comes while the last state is written is not lost either: there is no later step to look at it.
            if stopped or (number == self.total and interrupts.requested):
                raise KeyboardInterrupt

    def _step(self, batches: Sequence[B]) -> int:
        """The next step, of which nothing is read back; returns its number."""
        started = time.perf_counter()
        number = self.tally.step + len(self.unread) + 1
        counts = {"tokens": 0}
        for batch in batches:
            for name, count in batch.counts.items():
                counts[name] = counts.get(name, 0) + count
        counts["examples"] = sum(len(batch.ids) for batch in batches)
        weights = self._weights(number, batches)
        with recomputing(self.config.recompute):
            parts = [(batch.ids, self._backward(batch.to(self.device), weights)) for batch in batches]
        rate = self.config.learning_rate_at(number - 1, self.total)
        step = UnreadStep(number, rate, counts, parts, self.optimization.clip())
        self.void = torch.maximum(self.void, step.sound().logical_not().to(self.void.dtype))
        self.optimization.step(rate, self.void)
        if self.routers is not None:
            self.routers.step(self.void)
        self.unread.append(step)
        self.unread_seconds += time.perf_counter() - started
        return number

    def _weights(self, number: int, batches: Sequence[B]) -> Mapping[str, float]:
        """Each term's weight over the whole step; every micro-batch's sums are divided by it."""
        own: dict[str, float] = {}
        for batch in batches:
            found = self.objective.weights(batch)
            for name, weight in (found if self.routers is None else {**found, **self.routers.weights(batch)}).items():
                own[name] = own.get(name, 0.0) + weight
        weights = self.reduce(own)
        for name, weight in weights.items():
            if weight <= 0:
                raise TrainingError(f"step {number}: nothing carries weight in the term {name!r}")
        return weights

    def _terms(self, batch: B) -> dict[str, Term]:
        if self.routers is None:
            return self.objective(self.models, batch)
        with listening() as routings:
            terms = self.objective(self.models, batch)
        return {**terms, **self.routers.terms(routings, batch)}

    def _backward(self, batch: B, weights: Mapping[str, float]) -> dict[str, Tensor]:
        terms = self._terms(batch)
        shares = {name: term.total / weights[name] for name, term in terms.items()}
        loss = torch.stack(list(shares.values())).sum()
        if loss.requires_grad:  # else nothing trainable took part, which `clip` reports
            loss.backward()
        self.optimization.collect()
        found = {f"{LOSS}{name}": share.detach() for name, share in shares.items()}
        for name, term in terms.items():
            found |= {f"{name}/{metric}": value.detach() / weights[name] for metric, value in term.metrics.items()}
        return found

    def _read(self, log: MetricsLog, bar: Progress) -> None:
        """Reads what the steps since the last time left, and writes it; each took its share of the time."""
        started = time.perf_counter()
        read = read_steps(self.unread)
        seconds = (self.unread_seconds + time.perf_counter() - started) / len(self.unread)
        for step, (values, norm) in zip(self.unread, read, strict=True):
            sums = self.reduce({**values, **step.counts})
            losses = {name.removeprefix(LOSS): value for name, value in sums.items() if name.startswith(LOSS)}
            counts = {name: int(sums[name]) for name in step.counts}
            log.write(
                {
                    "step": step.number,
                    "loss": sum(losses.values()),
                    **{name: sums[name] for name in values if len(losses) > 1 or not name.startswith(LOSS)},
                    "learning_rate": step.learning_rate,
                    "gradient_norm": norm,
                    **counts,
                    "tokens_per_second": counts["tokens"] / seconds,
                    "examples_per_second": counts["examples"] / seconds,
                }
            )
            bar.advance(1, loss=sum(losses.values()))
            before = self.tally
            self.tally = _Tally(
                step.number,
                before.examples + counts["examples"],
                before.tokens + counts["tokens"],
                before.seconds + seconds,
                losses,
            )
        self.unread, self.unread_seconds = [], 0.0

    def _save(self, log: MetricsLog) -> None:
        random_tensors, random_values = random_states()
        values = {
            "fingerprint": self._fingerprint(self.source.identity),
            "arithmetic": self.arithmetic.to_json(),
            "source": self.source.state(),
            "metrics_bytes": log.position(),
            "random": random_values,
            "tally": vars(self.tally),
        }
        self.store.save(self.tally.step, RunState(self._tensors() | random_tensors, values))

    def _tensors(self) -> dict[str, Tensor]:
        own = {} if self.routers is None else self.routers.tensors()
        return self.optimization.tensors() | own

    def restore(self, saved: RunState) -> None:
        """Everything as it was when `saved` was written."""
        before = saved.values["fingerprint"]
        wanted = self._fingerprint(self.source.identity_like(before["source"]))
        check_fingerprint(self.out, self.store, before, wanted)
        self.optimization.load(saved.tensors)
        if self.routers is not None:
            self.routers.load(saved.tensors)
        self.source.load_state(saved.values["source"])
        set_random_states(saved.tensors, saved.values["random"])
        self.tally = _Tally(**saved.values["tally"])
        self.metrics_at, self.resumed_at = int(saved.values["metrics_bytes"]), self.tally.step


@torch.no_grad()
def evaluate_loss(models: AnyModel | Models, batches: Iterable[B], objective: Objective[B]) -> dict[str, float]:
    """Each term's loss over all batches, weighted exactly, with the models in evaluation mode."""
    roles: Models = models if isinstance(models, Mapping) else {"policy": models}
    device = next(next(iter(roles.values())).parameters()).device
    modes = [(m, m.training) for model in roles.values() for m in model.modules()]
    totals: dict[str, list[Tensor]] = {}
    weights: dict[str, float] = {}
    try:
        for model in roles.values():
            model.train(False)
        for batch in batches:
            objective.weights(batch)  # which may read the batch, and does so where it is
            for name, term in objective(roles, batch.to(device)).items():
                totals.setdefault(name, []).append(term.total)
                weights[name] = weights.get(name, 0.0) + term.weight
    finally:
        for module, mode in modes:
            module.training = mode
    return {name: sum(torch.stack(found).tolist()) / weights[name] for name, found in totals.items()}
