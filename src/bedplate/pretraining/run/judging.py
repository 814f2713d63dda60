"""What is looked at when a checkpoint was saved. Nothing that goes wrong here ends the run: it is written down."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bedplate.core.errors import TrainingError, is_interrupt
from bedplate.core.files import append_jsonl
from bedplate.models.checkpoints.base import Base
from bedplate.models.checkpoints.export import export_base
from bedplate.pretraining.run.directory import CHECKPOINTS, EVALUATIONS
from bedplate.pretraining.run.held_out import HeldBatches
from bedplate.pretraining.run.samples import asked, samples
from bedplate.pretraining.runfile.file import CheckpointsPart, EvaluationPart
from bedplate.pretraining.suites import suite_rows

logger = logging.getLogger("bedplate.pretraining")


def attempt(what: str, call: Callable[[], object]) -> None:
    """Does what a run can do without: where it fails, that costs a warning. Interrupts get out."""
    try:
        call()
    except Exception as error:
        if is_interrupt(error):
            raise
        logger.warning("%s could not be written: %s: %s; the run continues", what, type(error).__name__, error)


@dataclass(frozen=True)
class Judge:
    """Judges the base of one run. held: a part of what was held out. wrote: called with each row that is written."""

    out: Path
    base: Base
    evaluation: EvaluationPart
    checkpoints: CheckpointsPart
    held: Sequence[HeldBatches]
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
            ("held-out texts", lambda: row.update(held_out=self._held(self.held if all_of is None else all_of))),
            ("samples and suites", lambda: self._ask(row)),
            *((("the checkpoint's base", lambda: self._keep(step, number)),) if number and all_of is None else ()),
        )
        for what, judge in parts:
            try:
                judge()
            except Exception as error:
                if is_interrupt(error):
                    raise
                row["errors"].append(f"{what}: {type(error).__name__}: {error}")
                logger.warning("step %d: %s could not be evaluated: %s; the run continues", step, what, error)
        row["seconds"] = time.perf_counter() - started
        attempt(f"the evaluation of step {step}", lambda: append_jsonl(self.out / EVALUATIONS, [row]))
        attempt(f"the evaluation of step {step} on the terminal and in TensorBoard", lambda: self.wrote(row))
        return row

    def _held(self, held: Sequence[HeldBatches]) -> dict[str, Any]:
        found = {one.name: asdict(one.score(self.base.model)) for one in held}
        lost = [name for name, one in found.items() if not math.isfinite(one["nats_per_token"])]
        if lost:  # no number that a row could hold
            raise TrainingError(f"the loss on {', '.join(lost)} is not finite")
        return found

    def _ask(self, row: dict[str, Any]) -> None:
        wanted = self.evaluation
        if not ((wanted.prompts or wanted.suites) and "generate" in self.base.can):
            return
        with asked(self._now()) as model:
            row["samples"] = samples(model, wanted.prompts, wanted.sample_tokens)
            row["suites"] = suite_rows(model, wanted.suites, wanted.items)

    def _now(self) -> Base:
        """The base in what the run computes in at the moment."""
        return replace(self.base, dtype=next(self.base.model.parameters()).dtype, lineage=dict(self.base.lineage))

    @torch.no_grad()
    def _keep(self, step: int, number: int) -> None:
        """This checkpoint as a base, and those that the rules no longer keep removed."""
        last, every = self.checkpoints.bases, self.checkpoints.bases_every
        place = self.out / CHECKPOINTS / f"{number:03d}-step-{step}"
        if (last or (every and number % every == 0)) and not place.exists():
            now = self._now()
            export_base(replace(now, lineage={**now.lineage, "made": {"step": step}}), place)
        found = sorted((self.out / CHECKPOINTS).glob("[0-9]*-step-*"), key=lambda p: int(p.name.partition("-")[0]))
        kept = {p for p in found if every and int(p.name.partition("-")[0]) % every == 0} | set(
            found[-last:] if last else ()
        )
        for old in found:
            if old not in kept:
                shutil.rmtree(old)
