"""Evaluation of a checkpoint: held-out loss, samples, skill suites, exported bases. Failures are recorded, not
raised."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bedplate.core.errors import TrainingError, is_interrupt
from bedplate.core.files import append_jsonl
from bedplate.evaluation.suites.suite import run_suite
from bedplate.inference.predict.local import LocalModel
from bedplate.models.checkpoints.base import Base
from bedplate.models.checkpoints.export import export_base
from bedplate.pretraining.run.directory import CHECKPOINTS, EVALUATIONS
from bedplate.pretraining.run.held_out import HeldBatches
from bedplate.pretraining.run.model import inference_copy, samples
from bedplate.pretraining.runfile.file import CheckpointsPart, EvaluationPart

SKILLS = ("grammar", "facts", "arithmetic", "code")
"""Those of SUITES that were written for checkpoints."""
MEASURES = ("acc", "score", "nats_per_token")
"""Which measure of a suite makes its curve: the first that it has."""


def suite_rows(model: LocalModel, names: Sequence[str], item_count: int) -> dict[str, dict[str, Any]]:
    """For each suite, the measure that makes its curve, with value, interval and number of items."""
    return {name: _row(run_suite(model, name, item_count).to_json()["measures"]) for name in names}


def _row(measures: Mapping[str, Any]) -> dict[str, Any]:
    measure = next((name for name in MEASURES if name in measures), next(iter(measures)))
    estimate = measures[measure]
    return {"measure": measure, "value": estimate["value"], "interval": estimate["interval"], "n": estimate["n"]}


logger = logging.getLogger("bedplate.pretraining")


def attempt(subject: str, call: Callable[[], object]) -> None:
    """Does what a run can do without: where it fails, that costs a warning. Interrupts get out."""
    try:
        call()
    except Exception as error:
        if is_interrupt(error):
            raise
        logger.warning("%s could not be written: %s: %s; the run continues", subject, type(error).__name__, error)


@dataclass(frozen=True)
class Judge:
    """Judges the base of one run. holdouts: a part of what was held out. wrote: called with each row that is
    written."""

    out: Path
    base: Base
    evaluation: EvaluationPart
    checkpoints: CheckpointsPart
    holdouts: Sequence[HeldBatches]
    wrote: Callable[[dict[str, Any]], None]

    def at(self, step: int, tokens: int, number: int, *, all_of: Sequence[HeldBatches] | None = None) -> dict[str, Any]:
        """Judges, writes and returns a row. number: which checkpoint this is, from 1. all_of: held-out texts to read in
        the place of a part of them: the run's end, whose base is exported anyway. Only an interrupt gets out, and a row
        that cannot be written costs a warning."""
        started = time.perf_counter()
        row: dict[str, Any] = {
            "step": step,
            "tokens": tokens,
            "held_out": {},
            "samples": [],
            "suites": {},
            "errors": [],
        }
        parts = (
            (
                "held-out texts",
                lambda: row.update(held_out=self._score_holdouts(self.holdouts if all_of is None else all_of)),
            ),
            ("samples and suites", lambda: self._generate(row)),
            *((("the checkpoint's base", lambda: self._save_base(step, number)),) if number and all_of is None else ()),
        )
        for part_name, judge in parts:
            try:
                judge()
            except Exception as error:
                if is_interrupt(error):
                    raise
                row["errors"].append(f"{part_name}: {type(error).__name__}: {error}")
                logger.warning("step %d: %s could not be evaluated: %s; the run continues", step, part_name, error)
        row["seconds"] = time.perf_counter() - started
        attempt(f"the evaluation of step {step}", lambda: append_jsonl(self.out / EVALUATIONS, [row]))
        attempt(f"the evaluation of step {step} on the terminal and in TensorBoard", lambda: self.wrote(row))
        return row

    def _score_holdouts(self, holdouts: Sequence[HeldBatches]) -> dict[str, Any]:
        scores = {holdout.name: asdict(holdout.score(self.base.model)) for holdout in holdouts}
        lost = [name for name, score in scores.items() if not math.isfinite(score["nats_per_token"])]
        if lost:  # no number that a row could hold
            raise TrainingError(f"the loss on {', '.join(lost)} is not finite")
        return scores

    def _generate(self, row: dict[str, Any]) -> None:
        evaluation = self.evaluation
        if not ((evaluation.prompts or evaluation.suites) and "generate" in self.base.can):
            return
        with inference_copy(self._current_base()) as model:
            row["samples"] = samples(model, evaluation.prompts, evaluation.sample_tokens)
            row["suites"] = suite_rows(model, evaluation.suites, evaluation.items)

    def _current_base(self) -> Base:
        """The base in what the run computes in at the moment."""
        return replace(self.base, dtype=next(self.base.model.parameters()).dtype, lineage=dict(self.base.lineage))

    @torch.no_grad()
    def _save_base(self, step: int, number: int) -> None:
        """This checkpoint as a base, and those that the rules no longer keep removed."""
        last, interval = self.checkpoints.bases, self.checkpoints.bases_every
        place = self.out / CHECKPOINTS / f"{number:03d}-step-{step}"
        if (last or (interval and number % interval == 0)) and not place.exists():
            base = self._current_base()
            export_base(replace(base, lineage={**base.lineage, "made": {"step": step}}), place)
        directories = sorted(
            (self.out / CHECKPOINTS).glob("[0-9]*-step-*"), key=lambda p: int(p.name.partition("-")[0])
        )
        retained = {p for p in directories if interval and int(p.name.partition("-")[0]) % interval == 0} | set(
            directories[-last:] if last else ()
        )
        for old in directories:
            if old not in retained:
                shutil.rmtree(old)
