"""What a model can do at a checkpoint: suites of skills, asked through the evaluation room as of any base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bedplate.core.errors import ConfigError
from bedplate.evaluation.suites import SUITES
from bedplate.evaluation.suites.suite_scores import need_suite, run_suite
from bedplate.inference.predict.local import LocalModel

SKILLS = ("grammar", "facts", "arithmetic", "code")
"""Those of SUITES that were written for checkpoints."""
MEASURES = ("acc", "score", "nats_per_token")
"""Which measure of a suite makes its curve: the first that it has."""


def check_suites(names: Sequence[str]) -> None:
    """ConfigError where there is no such suite."""
    for name in names:
        if name not in SUITES:
            try:
                need_suite(name)
            except Exception as error:
                raise ConfigError(f"evaluation.suites: {error}") from error


def suite_rows(model: LocalModel, names: Sequence[str], items: int) -> dict[str, dict[str, Any]]:
    """Of each suite the measure that makes its curve, its value and interval, and of how many items."""
    return {name: _row(run_suite(model, name, items).to_json()["measures"]) for name in names}


def _row(measures: Mapping[str, Any]) -> dict[str, Any]:
    measure = next((name for name in MEASURES if name in measures), next(iter(measures)))
    found = measures[measure]
    return {"measure": measure, "value": found["value"], "interval": found["interval"], "n": found["n"]}
