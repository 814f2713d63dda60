"""What a rung is: one way to adapt, that plans or skips with a reason, then fits and leaves its outcome on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from bedplate.adaptation.context.bases import TaskBase
from bedplate.adaptation.context.context import Context
from bedplate.core.errors import DataError
from bedplate.core.files import atomic_write, read_text
from bedplate.evaluation.harness import Evaluation, Predicts


@dataclass(frozen=True)
class Plan:
    """settings: plain values that decide the outcome (with the context). seconds: expected. left_out: what a larger
    budget would add, as sentences. usd: what endpoints are expected to charge, beside the machine's time."""

    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seconds: float = 0.0
    left_out: tuple[str, ...] = ()
    usd: float = 0.0


SkipKind = Literal["impossible", "budget", "rule"]


@dataclass(frozen=True)
class Skip:
    """Not climbed, because of `reason`. kind: "impossible" stays so; what a budget or a rule of thumb skips is climbed
    where the ladder is exhaustive."""

    reason: str
    kind: SkipKind = "impossible"


def no_time(seconds: float, left: float, beside: str = "") -> Skip:
    """What needs more seconds than the budget has left. beside: what else the rest is kept for."""
    return Skip(f"it needs about {seconds:.0f} s, {max(left, 0):.0f} s of the budget are left{beside}", "budget")


@dataclass(frozen=True)
class Latency:
    """Seconds of single calls through the engine, one at a time."""

    mean: float
    p50: float
    p95: float
    calls: int


@dataclass(frozen=True)
class Export:
    """The skin as read back from disk against the answers that it was chosen by: rows asked again, equal answers, and
    the largest difference of a label's log-probability. In bfloat16 these differ a little between batch sizes, and
    where they do, written text goes another way from there on."""

    rows: int
    equal: int
    difference: float


@dataclass(frozen=True)
class Result:
    """A finished rung. `evaluation` is on valid. `skin`: directory, relative to the run's. `seeds`: one row each, with
    its own estimate; never pooled. `search`: what was tried on valid. `details`: facts for the report. `child`: the
    base that the rung made, a directory relative to the run's. `parts`: the candidates that it is made of. `usd`: what
    endpoints charged. `usd_per_call`: what a call costs, where that is not the machine's time alone."""

    rung: str
    evaluation: Evaluation
    latency: Latency
    train_seconds: float
    reason: str
    skin: str | None = None
    skin_id: str | None = None
    prompt_tokens: int = 0
    seeds: tuple[Mapping[str, Any], ...] = ()
    search: tuple[Mapping[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()
    export: Export | None = None
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    child: str | None = None
    parts: tuple[str, ...] = ()
    usd: float = 0.0
    usd_per_call: float | None = None

    def price(self, usd_per_hour: float, seconds: float) -> float:
        """US dollars of a call that takes so many seconds of a machine at this price."""
        return seconds * usd_per_hour / 3600 if self.usd_per_call is None else self.usd_per_call


class Rung(Protocol):
    """One way to adapt. A reference rung is shown and estimated, and never nominated."""

    @property
    def name(self) -> str: ...

    @property
    def reference(self) -> bool: ...

    def plan(self, context: Context) -> Plan | Skip: ...

    def fit(self, context: Context, plan: Plan, directory: Path) -> Result:
        """`directory` is the rung's own, for state that a resumed run goes on from."""
        ...

    def predictor(self, context: Context, result: Result) -> Predicts:
        """What answers on test, from what `fit` left on disk."""
        ...


@dataclass(frozen=True)
class Finished:
    """A candidate that was climbed. result: as the report has it, under the candidate's name; own: as the rung left it,
    on `context`."""

    name: str
    rung: Rung
    context: Context
    result: Result
    own: Result

    @property
    def directory(self) -> Path:
        """The skin's."""
        assert self.own.skin is not None
        return self.context.out / self.own.skin

    @property
    def child(self) -> Path | None:
        """The directory of the base that the rung made, and its skin stands on."""
        return None if self.own.child is None else self.context.out / self.own.child

    @property
    def base(self) -> TaskBase:
        """What its skin stands on."""
        return self.context.at if self.child is None else self.context.at.child(self.child)


RESULT_FILE, PLAN_FILE, SKIP_FILE = "result.json", "plan.json", "skip.json"


def write_plan(directory: Path, config: str, plan: Plan) -> None:
    """Keep the plan, so that a resumed run does what the interrupted one set out to do."""
    atomic_write(directory / PLAN_FILE, json.dumps({"config": config, **asdict(plan)}, indent=1) + "\n")


def read_plan(directory: Path, config: str) -> Plan | None:
    """The plan of an earlier run of the same configuration, or None."""
    values = _read(directory / PLAN_FILE)
    if values is None or values.pop("config", None) != config:
        return None
    return Plan(values["settings"], values["seconds"], tuple(values["left_out"]), values.get("usd", 0.0))


def write_skip(directory: Path, limits: str, seconds: float, skip: Skip) -> None:
    """Keep what a limit left out, so that the same command leaves it out again, whatever the machine is doing then."""
    values = {"limits": limits, "seconds": seconds, **asdict(skip)}
    atomic_write(directory / SKIP_FILE, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def read_skip(directory: Path, limits: str) -> tuple[Skip, float] | None:
    """What an earlier run left out under the same limits, with the seconds that this took, or None."""
    values = _read(directory / SKIP_FILE)
    if values is None or values.pop("limits", None) != limits:
        return None
    seconds = float(values.pop("seconds"))
    return Skip(**values), seconds


def write_result(directory: Path, config: str, seconds: float, result: Result) -> None:
    """Mark a rung finished: whatever it left on disk before is whole."""
    values = {**asdict(result), "evaluation": result.evaluation.to_json(), "config": config, "seconds": seconds}
    atomic_write(directory / RESULT_FILE, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_result(directory: Path, config: str) -> tuple[Result, float] | None:
    """A finished rung of the same configuration with the seconds it took, or None."""
    values = _read(directory / RESULT_FILE)
    if values is None or values.pop("config", None) != config:
        return None
    seconds = float(values.pop("seconds"))
    values["evaluation"] = Evaluation.from_json(values["evaluation"])
    values["latency"] = Latency(**values["latency"])
    values["export"] = None if values["export"] is None else Export(**values["export"])
    for name in ("seeds", "search", "left_out", "parts"):
        values[name] = tuple(values[name])
    return Result(**values), seconds


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(
            f"{path} is damaged ({error}); remove the directory {path.parent} to do this rung again"
        ) from error
    return values if isinstance(values, dict) else None


def latency(seconds: Sequence[float]) -> Latency:
    """Mean, median and 95th percentile (nearest rank) of single calls."""
    ordered = sorted(seconds)
    rank = max(0, -(-95 * len(ordered) // 100) - 1)
    return Latency(sum(ordered) / len(ordered), ordered[len(ordered) // 2], ordered[rank], len(ordered))


@dataclass(frozen=True)
class RungOutcome:
    """What became of a rung: done (with a result), skipped or failed (with the reason), and the seconds it took. plan:
    what had been planned; skip: what kind of reason it was left out for; reused: whether an earlier run had done it."""

    rung: str
    status: str
    reason: str
    result: Result | None = None
    seconds: float = 0.0
    plan: Plan | None = None
    skip: SkipKind | None = None
    reused: bool = False


@dataclass(frozen=True)
class Tested:
    """A rung on test. latency: of single calls. too_long: rows that did not fit the context and count as wrong."""

    evaluation: Evaluation
    latency: Latency
    too_long: int = 0
