"""What is left of the time goes to larger fits: a rung that left rows, seeds, phrasings or sets out, or was left out
itself, is climbed once more, now that it is known what it really takes.

The first fit moves into `smaller/`, so that the one that is kept lies where the rung's skin always lies; where the
larger one does worse on valid, the first is kept there. Which rungs were climbed again is on disk, so that a repeated
command decides nothing anew.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.fits import SMALLER
from bedplate.adaptation.context.outcome import RungOutcome, RungPlan
from bedplate.adaptation.search import planner
from bedplate.adaptation.search.candidates import Candidate
from bedplate.adaptation.search.run_rung import climb
from bedplate.adaptation.search.rung_files import fingerprint, limits_of
from bedplate.adaptation.search.start import climb_candidate
from bedplate.core.errors import DataError
from bedplate.core.files import atomic_write, read_text, sha256_json

GROWTH_FILE = "larger.json"
CLEARLY = 1.3
"""Times what was done at first; less is not worth doing again, unless it takes over what was finished."""


@dataclass(frozen=True)
class Larger:
    """A rung that was climbed again: which candidate stands for it now, with what became of it."""

    candidate: Candidate
    outcome: RungOutcome


class RefitHistory:
    """Which rungs of this run were climbed again, in order, and whether that is decided."""

    def __init__(self, first: Context) -> None:
        self._path = first.out / GROWTH_FILE
        self._key = limits_of(first, sha256_json(fingerprint(first)))
        self.names: list[str] = []
        self.finished = False
        if self._path.is_file():
            try:
                values: dict[str, Any] = json.loads(read_text(self._path))
                if values["key"] == self._key:
                    self.names, self.finished = list(values["names"]), bool(values["done"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{self._path} is damaged ({error}); remove it and {first.out / SMALLER}") from error

    def was_grown(self, name: str) -> bool:
        return name in self.names

    def grows(self, candidate: Candidate) -> None:
        """Write down that a candidate is climbed again, before anything of it is moved; what a run with other limits
        had moved before is gone then."""
        if candidate.name in self.names:
            return
        for folder in ("skins", "rungs"):
            shutil.rmtree(candidate.context.out / SMALLER / folder / candidate.rung.name, ignore_errors=True)
        self.names.append(candidate.name)
        self._write()

    def ends(self) -> None:
        """Nothing else will be climbed again, whatever the machine is doing when the command is repeated."""
        self.finished = True
        self._write()

    def _write(self) -> None:
        values = {"key": self._key, "names": self.names, "done": self.finished}
        atomic_write(self._path, json.dumps(values, indent=1) + "\n")


def smaller_of(candidate: Candidate) -> Candidate:
    """The candidate as it was climbed first, in its place beside the larger fit."""
    context = candidate.context
    return replace(candidate, context=_elsewhere(context, context.out / SMALLER), inner=SMALLER)


def _elsewhere(context: Context, out: Path, *, fresh: bool = False, **changes: Any) -> Context:
    """The same in another directory. fresh: the base's speed is measured anew."""
    run_directory = context.run_directory if out == context.out else None
    relocated = replace(context, out=out, until=math.inf, readings={}, run_directory=run_directory, **changes)
    relocated.format_gain = context.format_gain
    if not fresh:
        relocated.throughput = context.throughput
    return relocated


def wants_more(candidate: Candidate, outcome: RungOutcome) -> bool:
    """Whether time alone kept a rung of a base from being climbed, or from being climbed whole."""
    if not candidate.on_base or candidate.traits.makes_child or candidate.unfit is not None:
        return False
    if outcome.status == "skipped":
        return outcome.skip == "budget" and not outcome.needs.keys() & {"p95_ms", "usd_per_1k_calls"}
    return outcome.result is not None and bool(outcome.result.left_out)


def again_of(candidate: Candidate, outcome: RungOutcome, usual: float) -> Candidate:
    """The candidate with what it was seen to take beside what it was expected to; `usual` where it was left out."""
    context, before, pace = candidate.context, outcome.plan, outcome.pace or usual
    previous_settings = None if outcome.result is None or before is None else before.settings
    next_context = _elsewhere(context, context.out, pace=pace, before=previous_settings, fresh=outcome.result is None)
    next_context.until = context.until
    return replace(candidate, context=next_context)


def larger_plan(candidate: Candidate, outcome: RungOutcome, usual: float) -> Candidate | None:
    """The candidate as it would be climbed again in the time that there is now; None where that is not clearly more
    than was done."""
    larger_candidate, before = again_of(candidate, outcome, usual), outcome.plan
    plan = planner.planned(larger_candidate.context, candidate.rung)
    if not isinstance(plan, RungPlan):
        return None
    if outcome.result is None or before is None:
        return larger_candidate
    takes_over = bool(plan.settings.get("takes_over"))
    worthwhile = takes_over or plan.seconds >= CLEARLY * outcome.seconds
    return larger_candidate if worthwhile and plan.settings != before.settings else None


def climb_larger(candidate: Candidate, origin: Candidate, outcome: RungOutcome) -> Larger:
    """Climb a candidate again in its own place, which `make_way` clears; the better of the two on valid stands. origin:
    the candidate as it was climbed before, with that outcome."""
    make_way(candidate)
    first = origin if origin.inner == SMALLER else smaller_of(origin)
    chosen = candidate.context.chosen
    prompt = chosen.prompt
    refit = climb(candidate.context, candidate.rung.name, candidate.directory)
    chosen.prompt = prompt  # what others were built on stays
    result, before = refit.result, outcome.result
    named = replace(refit, rung=candidate.name)
    if result is None:
        if before is None:
            return Larger(first, outcome)
        smaller_result = first.finish(origin.rung_result(before))
        return Larger(first, replace(outcome, result=smaller_result, seconds=outcome.seconds + refit.seconds))
    if before is not None and result.evaluation.estimate < before.evaluation.estimate:
        reason = (
            f"{before.reason}; a larger fit in the time that was left scored "
            f"{result.evaluation.scale.format_score(result.evaluation.estimate)} on valid"
        )
        smaller_result = first.finish(replace(origin.rung_result(before), reason=reason))
        return Larger(
            first, replace(outcome, result=smaller_result, reason=reason, seconds=outcome.seconds + refit.seconds)
        )
    if before is not None:
        scored = before.evaluation.scale.format_score(before.evaluation.estimate)
        reason = f"{result.reason}; a smaller fit before scored {scored} on valid"
        result = replace(result, reason=reason)
    larger_result = candidate.finish(result)
    took = refit.seconds + outcome.seconds
    return Larger(candidate, replace(named, result=larger_result, reason=larger_result.reason, seconds=took))


def make_way(candidate: Candidate) -> None:
    """Move what a rung left into its place beside, the skin first: a rung whose skin is not there is climbed again."""
    out, rung = candidate.context.out, candidate.rung.name
    for place in (out / "skins" / rung, out / "rungs" / rung):
        target = out / SMALLER / place.relative_to(out)
        if target.exists():  # what lies in its own place is the larger fit's
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            os.rename(place, target)
        else:
            target.mkdir()


def first_of(candidate: Candidate, growth: RefitHistory) -> tuple[Candidate, RungOutcome]:
    """A candidate climbed for the first time, wherever that lies, and what became of it."""
    if growth.was_grown(candidate.name):
        make_way(candidate)
        candidate = smaller_of(candidate)
    return candidate, climb_candidate(candidate)


def names_by_worth(candidates: Mapping[str, Candidate], outcomes: Mapping[str, RungOutcome]) -> list[str]:
    """What is expected to gain most from more time first; of equals the best on valid, and what was left out last."""

    def standing(name: str) -> tuple[float, float]:
        result = outcomes[name].result
        return candidates[name].traits.worth, -1.0 if result is None else result.evaluation.estimate

    return sorted(outcomes, key=standing, reverse=True)
