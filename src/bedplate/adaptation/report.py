"""The ladder's report: everything behind the verdict as plain values, and the page made from them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bedplate import __version__
from bedplate.adaptation import gate
from bedplate.adaptation.rungs.base import Latency, Result, RungOutcome, Tested
from bedplate.core.files import atomic_write
from bedplate.evaluation.examples import TaskData
from bedplate.evaluation.harness import Comparison, Evaluation, compare
from bedplate.evaluation.slices import calibration, slices
from bedplate.models.precision import dtype_name
from bedplate.report.html import adaptation_page
from bedplate.skins.files import read_skin, write_skin

if TYPE_CHECKING:
    from bedplate.adaptation.context import Context
    from bedplate.evaluation.ledger import Opening

SCHEMA_VERSION = 1
SHOWN_WRONG, SHOWN_RIGHT = 8, 4


@dataclass(frozen=True)
class Report:
    """`data` is report.json; the rest are shorthands into it."""

    data: dict[str, Any]
    directory: Path

    @property
    def verdict(self) -> dict[str, Any]:
        """status (PASS, FAIL, INSUFFICIENT_DATA), skin, reason."""
        return self.data["verdict"]

    @property
    def rungs(self) -> list[dict[str, Any]]:
        """One row for each rung and split."""
        return self.data["rungs"]

    @property
    def skin(self) -> Path | None:
        """The directory of the skin that passed."""
        found = self.verdict["skin"]
        return None if found is None else self.directory / found

    def row(self, rung: str, split: str = "valid") -> dict[str, Any] | None:
        """The row of a rung on a split."""
        return next((r for r in self.rungs if r["rung"] == rung and r["split"] == split), None)

    def to_json(self) -> dict[str, Any]:
        return self.data


def build_report(
    context: Context,
    data: TaskData,
    outcomes: Mapping[str, RungOutcome],
    nomination: gate.Nomination,
    tested: Mapping[str, Tested],
    opening: Opening | None,
    alpha: float,
    confirmations: Sequence[gate.Confirmation],
    decision: gate.Decision,
) -> Report:
    """Put together what was measured; nothing is computed here that could have been decided otherwise."""
    evaluations = {name: t.evaluation for name, t in tested.items()}
    compared = gate.compare_with(evaluations, nomination.nominees, nomination.versus, context.seed)
    comparisons = [_comparison(a, b, c, p) for a, b, c, p in compared]
    primary = next((c for c in comparisons if c["a"] == nomination.primary), None)
    passed = None if decision.rung is None else outcomes[decision.rung].result
    judged = decision.rung or nomination.primary
    classical = _classical(evaluations, judged, context.seed)
    reason = " ".join(filter(None, [_exploratory(opening), decision.reason, classical]))
    rate = context.spec.machine.usd_per_hour
    values: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "task": context.task.task,
        "base": context.spec.base,
        "verdict": {
            "status": decision.status,
            "skin": None if passed is None else passed.skin,
            "reason": reason,
            "rung": decision.rung,
            "exploratory": opening is not None and opening.exploratory,
        },
        "rungs": _rows(outcomes, tested, rate),
        "nominees": {**nomination.to_json(), "confirmations": [c.to_json() for c in confirmations]},
        "comparison": primary,
        "comparisons": comparisons,
        "target": {"metric": context.task.metric, **context.spec.target.model_dump(mode="json")},
        "left_out": {name: list(o.result.left_out) for name, o in outcomes.items() if o.result and o.result.left_out},
        "search": {name: list(o.result.search) for name, o in outcomes.items() if o.result and o.result.search},
        "details": {name: dict(o.result.details) for name, o in outcomes.items() if o.result},
        "export": {name: asdict(o.result.export) for name, o in outcomes.items() if o.result and o.result.export},
        "ledger": None
        if opening is None
        else {"verdict_id": opening.verdict_id, "number": opening.number, "alpha": alpha},
        "data": {
            "counts": dict(data.counts),
            "hashes": dict(data.hashes),
            "notes": [*data.notes, *_too_long(tested)],
            "licences": list(data.licences),
            "test_openings": list(data.test.openings),
        },
        "focus": _focus(context, data, judged, outcomes, evaluations),
        "examples": _examples(context, outcomes, judged),
        "settings": {
            "seed": context.seed,
            "budget": context.spec.budget.model_dump(mode="json"),
            "budget_seconds": context.clock.seconds,
            "rungs": list(context.spec.chosen_rungs),
            "version": __version__,
            "weights_id": context.model.base.identity.weights_id,
            "dtype": dtype_name(context.model.base.dtype),
            "weights": context.model.engine.weights,
            "kernel": context.model.engine.kernel,
        },
        "machine": {
            **context.spec.machine.model_dump(mode="json"),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "python": platform.python_version(),
        },
        "timing": {
            "seconds": round(context.clock.used, 1),
            "rungs": {name: round(o.seconds, 1) for name, o in outcomes.items()},
        },
        "rows": {
            "valid": {name: _per_example(o.result.evaluation) for name, o in outcomes.items() if o.result},
            "test": {name: _per_example(evaluation) for name, evaluation in evaluations.items()},
        },
    }
    return Report(values, context.out)


def _comparison(a: str, b: str, found: Comparison, corrected: float) -> dict[str, Any]:
    """`a` and `b` are rungs; the estimates are a_estimate and b_estimate; p_holm is corrected for all nominees,
    which the one pair that was fixed before test was opened (`comparison`) does not need."""
    values = found.to_json()
    estimates = {"a_estimate": values.pop("a"), "b_estimate": values.pop("b")}
    return {"a": a, "b": b, **estimates, **values, "p_holm": corrected}


def write_report(report: Report, out: Path, skins: Iterable[str]) -> None:
    """report.json and report.html, in the run's directory and (report.json without its rows, which can be many) in each
    of its `skins`, whose ids do not change by it."""
    page = adaptation_page(report.data)
    atomic_write(out / "report.html", page)
    atomic_write(out / "report.json", _text(report.data))
    summary = {key: value for key, value in report.data.items() if key != "rows"}
    carried = {"report.html": page.encode(), "report.json": _text(summary).encode()}
    for skin in skins:
        write_skin(read_skin(out / skin), out / skin, carried, replace=True)


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _rows(outcomes: Mapping[str, RungOutcome], tested: Mapping[str, Tested], rate: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, outcome in outcomes.items():
        if outcome.result is None:
            rows.append(_row(name, outcome.status, outcome.reason, "valid", None, None, None, rate))
            continue
        result = outcome.result
        rows.append(_row(name, "done", result.reason, "valid", result.evaluation, result.latency, result, rate))
        if name in tested:
            t = tested[name]
            rows.append(_row(name, "done", result.reason, "test", t.evaluation, t.latency, result, rate))
    return rows


def _row(
    rung: str,
    status: str,
    reason: str,
    split: str,
    evaluation: Evaluation | None,
    timing: Latency | None,
    result: Result | None,
    rate: float,
) -> dict[str, Any]:
    return {
        "rung": rung,
        "status": status,
        "reason": reason,
        "split": split,
        "estimate": None if evaluation is None else evaluation.estimate,
        "interval": None if evaluation is None else list(evaluation.interval),
        "n": 0 if evaluation is None else evaluation.n,
        "groups": 0 if evaluation is None else evaluation.groups,
        # seeds are a spread on valid; only the chosen one has seen test
        "seeds": [] if result is None or split != "valid" else [dict(seed) for seed in result.seeds],
        "usd_per_1k_calls": None if timing is None else timing.mean * rate / 3.6,
        "p50_ms": None if timing is None else timing.p50 * 1000,
        "p95_ms": None if timing is None else timing.p95 * 1000,
        "train_seconds": None if result is None else result.train_seconds,
        "skin": None if result is None else result.skin,
    }


def _exploratory(opening: Opening | None) -> str | None:
    if opening is None or not opening.exploratory:
        return None
    return (
        f"EXPLORATORY: some of these test rows have served {opening.number - 1} earlier verdict"
        f"{'s' if opening.number > 2 else ''}; only fresh rows can confirm."
    )


def _classical(evaluations: Mapping[str, Evaluation], judged: str | None, seed: int) -> str | None:
    """What the classical baseline says about the nominee, on the same test rows."""
    if judged is None or judged not in evaluations or "from_scratch" not in evaluations:
        return None
    ours, theirs = evaluations[judged], evaluations["from_scratch"]
    found = compare(ours, theirs, seed)
    numbers = f"{theirs.estimate:.3f} on the same rows"
    if found.difference <= 0:
        return f"A classical model of the task's own labels does as well or better ({numbers}): use that one."
    if found.p_value > 0.05:
        return (
            f"A classical model of the task's own labels reads {numbers}; {judged} is not measurably better "
            f"(p = {found.p_value:.2g}): consider it first."
        )
    return f"A classical model of the task's own labels reads {numbers} (p = {found.p_value:.2g} for the difference)."


def _too_long(tested: Mapping[str, Tested]) -> list[str]:
    return [
        f"{t.too_long} test rows are too long for {name} and count as wrong" for name, t in tested.items() if t.too_long
    ]


def _focus(
    context: Context,
    data: TaskData,
    judged: str | None,
    outcomes: Mapping[str, RungOutcome],
    tested: Mapping[str, Evaluation],
) -> dict[str, Any] | None:
    """Calibration and slices of the skin that the verdict is about, worst slice first."""
    if judged is None:
        return None
    result = outcomes[judged].result
    assert result is not None
    evaluation = tested.get(judged, result.evaluation)
    measured = calibration(evaluation)
    return {
        "rung": judged,
        "split": evaluation.split,
        "calibration": None if measured is None else asdict(measured),
        "slices": [asdict(part) for part in sorted(slices(evaluation), key=lambda part: part.estimate)],
    }


def _examples(context: Context, outcomes: Mapping[str, RungOutcome], judged: str | None) -> dict[str, Any]:
    """A few valid rows with their texts: the surest mistakes first, and some right answers. Test texts stay closed."""
    result = None if judged is None else outcomes[judged].result
    if result is None:
        return {"rung": None, "split": "valid", "wrong": [], "right": []}
    inputs = {e.id: e.inputs for e in context.valid}

    def shown(row: Any) -> dict[str, Any]:
        text = "\n".join(inputs[row.id].values())
        return {"id": row.id, "text": text, "target": row.target, "prediction": row.prediction}

    def sureness(row: Any) -> float:
        return max(row.scores.values()) if row.scores else 0.0

    by_sureness = sorted(result.evaluation.rows, key=lambda row: (-sureness(row), row.id))
    wrong = [shown(row) for row in by_sureness if row.score < 1][:SHOWN_WRONG]
    right = [shown(row) for row in by_sureness if row.score == 1]
    return {
        "rung": judged,
        "split": "valid",
        "wrong": wrong,
        "right": right[:: max(1, len(right) // SHOWN_RIGHT)][:SHOWN_RIGHT],
    }


def _per_example(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [asdict(row) for row in evaluation.rows]
