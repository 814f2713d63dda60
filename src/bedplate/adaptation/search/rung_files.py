"""What a rung keeps in its own directory: its plan, what a limit left out, its result."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.outcome import ExportCheck, Latency, RungPlan, RungResult, Skip
from bedplate.core.errors import DataError
from bedplate.core.files import atomic_write, read_text
from bedplate.evaluation.harness import Evaluation

RESULT_FILE, PLAN_FILE, SKIP_FILE = "result.json", "plan.json", "skip.json"


def write_plan(directory: Path, config: str, plan: RungPlan) -> None:
    """Keep the plan, so that a resumed run does what the interrupted one set out to do."""
    atomic_write(directory / PLAN_FILE, json.dumps({"config": config, **asdict(plan)}, indent=1) + "\n")


def read_plan(directory: Path, config: str) -> RungPlan | None:
    """The plan of an earlier run of the same configuration, or None."""
    values = _read(directory / PLAN_FILE)
    if values is None or values.pop("config", None) != config:
        return None
    left_out, usd, pace = tuple(values["left_out"]), values.get("usd", 0.0), values.get("pace", 1.0)
    return RungPlan(values["settings"], values["seconds"], left_out, usd, pace)


def write_skip(directory: Path, limits: str, seconds: float, skip: Skip) -> None:
    """Keep what a limit left out, so that the same command leaves it out again, whatever the machine is doing then."""
    values = {"limits": limits, "took": seconds, **asdict(skip)}
    atomic_write(directory / SKIP_FILE, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def read_skip(directory: Path, limits: str) -> tuple[Skip, float] | None:
    """What an earlier run left out under the same limits, with the seconds that this took, or None."""
    values = _read(directory / SKIP_FILE)
    if values is None or values.pop("limits", None) != limits:
        return None
    seconds = float(values.pop("took", 0.0))
    return Skip(**values), seconds


def write_result(directory: Path, config: str, seconds: float, result: RungResult) -> None:
    """Mark a rung finished: whatever it left on disk before is whole."""
    values = {**asdict(result), "evaluation": result.evaluation.to_json(), "config": config, "seconds": seconds}
    atomic_write(directory / RESULT_FILE, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_result(directory: Path, config: str) -> tuple[RungResult, float] | None:
    """A finished rung of the same configuration with the seconds it took, or None."""
    values = _read(directory / RESULT_FILE)
    if values is None or values.pop("config", None) != config:
        return None
    seconds = float(values.pop("seconds"))
    values["evaluation"] = Evaluation.from_json(values["evaluation"])
    values["latency"] = Latency(**values["latency"])
    values["export"] = None if values["export"] is None else ExportCheck(**values["export"])
    for name in ("seeds", "search", "left_out", "parts"):
        values[name] = tuple(values[name])
    return RungResult(**values), seconds


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
