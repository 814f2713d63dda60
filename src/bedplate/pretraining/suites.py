"""What a model can do at a checkpoint: suites of skills, run by the evaluation harness as for any base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bedplate.evaluation.suites.suite_scores import run_suite
from bedplate.inference.predict.local import LocalModel

SKILLS = ("grammar", "facts", "arithmetic", "code")
"""Those of SUITES that were written for checkpoints."""
MEASURES = ("acc", "score", "nats_per_token")
"""Which measure of a suite makes its curve: the first that it has."""


def suite_rows(model: LocalModel, names: Sequence[str], item_count: int) -> dict[str, dict[str, Any]]:
    """Of each suite the measure that makes its curve, its value and interval, and of how many items."""
    return {name: _row(run_suite(model, name, item_count).to_json()["measures"]) for name in names}


def _row(measures: Mapping[str, Any]) -> dict[str, Any]:
    measure = next((name for name in MEASURES if name in measures), next(iter(measures)))
    estimate = measures[measure]
    return {"measure": measure, "value": estimate["value"], "interval": estimate["interval"], "n": estimate["n"]}
