"""Scaling laws: fitted to finished runs, the largest held out to check the prediction, with intervals.

    power       L = a · C^-α                      a straight line between logarithms (Kaplan et al. 2001.08361)
    floor       L = E + a · C^-α                  with what no amount of compute removes (Henighan et al. 2010.14701)
    chinchilla  L = E + A · N^-α + B · D^-β       over parameters and tokens apart (Hoffmann et al. 2203.15556)

C is training operations. Least squares of log losses; the prediction's interval is that of one more run (delta method,
Student's t): it covers the law's constants and the scatter of runs, not the law's form. Bates and Watts 1988, sections
1.3 and 2.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bedplate.core.errors import UsageError
from bedplate.pretraining.run.directory import evaluations, read_record

Form = Literal["power", "floor", "chinchilla"]
MIN_RUNS: dict[Form, int] = {"power": 3, "floor": 4, "chinchilla": 6}
"""Runs that a form needs: one more than its constants."""
_STARTS = 8


@dataclass(frozen=True)
class ScalingPoint:
    """One run. parameters: without the token table; loss: nats a token on held-out texts."""

    name: str
    parameters: float
    tokens: float
    flops: float
    loss: float


@dataclass(frozen=True)
class LossPrediction:
    """loss: the law's; low, high: within which one more run lies, at `confidence`."""

    loss: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Law:
    """A fitted law. constants by name; residual: standard deviation of log losses around it."""

    form: Form
    constants: dict[str, float]
    residual: float
    points: int
    _theta: np.ndarray
    _covariance: np.ndarray

    @property
    def degrees(self) -> int:
        """Degrees of freedom."""
        return self.points - len(self._theta)

    def predict(self, point: ScalingPoint, confidence: float = 0.95) -> LossPrediction:
        """What one more run of this size is predicted to reach."""
        from scipy import stats

        inputs = _inputs([point])
        center = float(_FORMS[self.form][0](self._theta, inputs)[0])
        slope = _jacobian(self.form, self._theta, inputs)[0]
        spread = float(np.sqrt(max(0.0, slope @ self._covariance @ slope) + self.residual**2))
        reach = float(stats.t.ppf((1 + confidence) / 2, self.degrees)) * spread
        loss, low, high = (float(np.exp(log_loss)) for log_loss in (center, center - reach, center + reach))
        return LossPrediction(loss, low, high, confidence)


def fit(points: Sequence[ScalingPoint], form: Form | None = None) -> Law:
    """The law of these runs; form None: `floor` where there are runs enough for it, else `power`. UsageError for too
    few runs, or runs of one size."""
    form = form or ("floor" if len(points) >= MIN_RUNS["floor"] else "power")
    if form not in MIN_RUNS:
        raise UsageError(f"there is no law {form!r}; there are {', '.join(MIN_RUNS)}")
    if len(points) < MIN_RUNS[form]:
        raise UsageError(f"the law {form!r} needs {MIN_RUNS[form]} runs beside the held-out one, not {len(points)}")
    inputs, losses = _inputs(points), np.log([point.loss for point in points])
    if len(np.unique(inputs[:, 0])) < 2:
        raise UsageError("all runs are of one size; a law needs runs of several")
    theta = _least_squares(form, inputs, losses)
    log_loss, constants = _FORMS[form]
    residuals = losses - log_loss(theta, inputs)
    variance = float(residuals @ residuals) / (len(points) - len(theta))
    jacobian = _jacobian(form, theta, inputs)
    covariance = variance * np.linalg.pinv(jacobian.T @ jacobian)
    return Law(form, constants(theta), float(np.sqrt(variance)), len(points), theta, covariance)


def _inputs(points: Sequence[ScalingPoint]) -> np.ndarray:
    """Logarithms of operations, parameters and tokens [N, 3], about 1e12, 1e6 and 1e6 as zero."""
    return np.log([[p.flops / 1e12, p.parameters / 1e6, p.tokens / 1e6] for p in points])


def _chinchilla(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    terms = np.logaddexp(theta[0] - theta[1] * x[:, 1], theta[2] - theta[3] * x[:, 2])
    return np.logaddexp(theta[4], terms)


def _power_constants(t: np.ndarray) -> dict[str, float]:
    return {"a": float(np.exp(t[0] + t[1] * np.log(1e12))), "alpha": float(t[1])}


def _chinchilla_constants(t: np.ndarray) -> dict[str, float]:
    a, b = np.exp(t[0] + t[1] * np.log(1e6)), np.exp(t[2] + t[3] * np.log(1e6))
    return {"a": float(a), "alpha": float(t[1]), "b": float(b), "beta": float(t[3]), "floor": float(np.exp(t[4]))}


_Log = Callable[[np.ndarray, np.ndarray], np.ndarray]
_FORMS: dict[Form, tuple[_Log, Callable[[np.ndarray], dict[str, float]]]] = {
    "power": (lambda theta, x: theta[0] - theta[1] * x[:, 0], _power_constants),
    "floor": (
        lambda theta, x: np.logaddexp(theta[2], theta[0] - theta[1] * x[:, 0]),
        lambda theta: {**_power_constants(theta), "floor": float(np.exp(theta[2]))},
    ),
    "chinchilla": (_chinchilla, _chinchilla_constants),
}
"""Form: log loss of (constants, inputs), and the constants by name, as the law is written."""


def _least_squares(form: Form, inputs: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """From several starts, as the sum of squares has more than one valley; the best end."""
    from scipy import optimize

    log_loss = _FORMS[form][0]
    best, lowest_cost = None, np.inf
    for start in _starts(form, losses):
        solution = optimize.least_squares(lambda theta: log_loss(theta, inputs) - losses, start, x_scale="jac")
        if solution.cost < lowest_cost:
            best, lowest_cost = solution.x, solution.cost
    assert best is not None
    return best


def _starts(form: Form, losses: np.ndarray) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    low = float(losses.min())
    if form == "power":
        return [np.array([float(losses.mean()), 0.1])]
    starts: list[np.ndarray] = []
    for _ in range(_STARTS):
        floor = low + np.log(draw.uniform(0.05, 0.95))
        rate = draw.uniform(0.05, 0.6)
        if form == "floor":
            starts.append(np.array([low, rate, floor]))
        else:
            starts.append(np.array([low, rate, low, draw.uniform(0.05, 0.6), floor]))
    return starts


def _jacobian(form: Form, theta: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Jacobian of log losses by the constants [N, K]."""
    from scipy.optimize import approx_fprime

    jacobian: Any = approx_fprime(theta, lambda constants: _FORMS[form][0](constants, inputs))
    return np.atleast_2d(jacobian)


@dataclass(frozen=True)
class Ladder:
    """A law of all runs but the largest (`held_out`), what it predicts for that, and whether what was reached lies
    within the interval; and the same law's prediction for further sizes (`extrapolations`)."""

    points: tuple[ScalingPoint, ...]
    held_out: ScalingPoint
    law: Law
    prediction: LossPrediction
    inside: bool
    extrapolations: tuple[tuple[ScalingPoint, LossPrediction], ...]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        law = {"form": self.law.form, "constants": self.law.constants, "residual": self.law.residual}
        return {
            "runs": [asdict(point) for point in self.points],
            "held_out": asdict(self.held_out),
            "law": {**law, "degrees_of_freedom": self.law.degrees},
            "prediction": asdict(self.prediction),
            "error": self.held_out.loss - self.prediction.loss,
            "inside": self.inside,
            "asked": [{**asdict(point), "prediction": asdict(prediction)} for point, prediction in self.extrapolations],
        }


def read_ladder(
    directories: Sequence[Path], form: Form | None = None, queries: Sequence[tuple[float, float]] = ()
) -> Ladder:
    """Fits all runs but the largest, by operations. queries: further (parameters, tokens), for which all runs are
    fitted.

    UsageError for a run that is not finished, runs that cannot be compared (of other texts or tokenizers), or too few.
    """
    keyed_points = sorted((read_point(path) for path in directories), key=lambda pair: pair[0].flops)
    first = keyed_points[0][1] if keyed_points else None
    mismatch = next((point.name for point, key in keyed_points if key != first), None)
    if mismatch is not None:
        raise UsageError(
            f"{mismatch} was judged on other texts, by another objective or with another tokenizer than "
            f"{keyed_points[0][0].name}"
        )
    points = [point for point, _ in keyed_points]
    if len(points) < 4:
        raise UsageError(f"{len(points)} runs: at least 4 are needed: three to fit and one to hold out")
    *small, largest = points
    law = fit(small, form)
    prediction = law.predict(largest)
    whole = fit(points, law.form) if queries else law
    query_points = [ScalingPoint("asked", n, d, 6 * n * d, float("nan")) for n, d in queries]
    return Ladder(
        tuple(points),
        largest,
        law,
        prediction,
        prediction.low <= largest.loss <= prediction.high,
        tuple((point, whole.predict(point)) for point in query_points),
    )


def read_point(path: Path) -> tuple[ScalingPoint, Any]:
    """A finished run as a point, and what runs must have in common to be compared."""
    record, judged = read_record(path), evaluations(path)
    if record.get("status") != "finished" or not judged:
        raise UsageError(f"{path} holds no finished run ({record.get('status', 'no pretraining.json')})")
    learned = {name: score for name, score in judged[-1]["held_out"].items() if not score["general"]}
    if not learned:
        failed = "; ".join(judged[-1].get("errors", ())) or "all of its texts are general"
        raise UsageError(f"{path} was not judged at its end on any text that it learned ({failed}); leave it out")
    tokens = sum(score["tokens"] for score in learned.values())
    loss = sum(score["nats_per_token"] * score["tokens"] for score in learned.values()) / tokens
    body, train_tokens = float(record["body"]), float(record["tokens_seen"])
    key = [
        record.get("objective"),
        record["data"]["tokenizer"]["id"],
        {name: (score["documents"], score["bytes"]) for name, score in learned.items()},
    ]
    return ScalingPoint(str(path), body, train_tokens, 6 * body * train_tokens, loss), key
