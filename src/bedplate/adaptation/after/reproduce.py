"""A skin made again from what it recorded, and compared with the one that is there.

Its rung is climbed in a new directory with the run's task file, seed and plan, after the rungs that it builds on. The
plan is taken over because how much is done depends on the time that was left then. Test is not opened.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bedplate.adaptation.after.recorded import (
    Change,
    Recorded,
    base_differences,
    code_differences,
    data_differences,
    parent_of,
    recorded_of,
)
from bedplate.adaptation.climb.candidates import Candidate, candidates_of
from bedplate.adaptation.climb.fingerprint import config_of
from bedplate.adaptation.climb.format_trial import in_weights
from bedplate.adaptation.climb.kept import read_plan, write_plan
from bedplate.adaptation.climb.start import LOCK_FILE, begin, check_bases, check_output, climb_candidate, opened
from bedplate.adaptation.climb.task_file import load_adapt_task
from bedplate.adaptation.context.clock import Clock
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import Plan
from bedplate.adaptation.rungs import chosen_rungs
from bedplate.adaptation.rungs.answers import ask
from bedplate.adaptation.task.spec import AdaptSpec
from bedplate.core.errors import CheckpointError, DataError, HubError, UsageError
from bedplate.core.files import atomic_write, file_lock, read_text
from bedplate.core.progress import progress
from bedplate.evaluation.comparison import Comparison, compare
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.task import Task
from bedplate.inference.predict.loaded import load as load_skin
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.ways.way import QUANTISED
from bedplate.skins.difference import Part, compare_skins
from bedplate.skins.files import read_skin
from bedplate.skins.skin import Skin

REPRODUCTION_FILE = "reproduction.json"
Status = Literal["identical", "equivalent", "different", "not_possible"]


@dataclass(frozen=True)
class Reproduction:
    """status: identical (every file, bit for bit); equivalent (numbers differ, and no answer on valid does); different;
    or not_possible. differences: what it was made from and is not what it was. comparison: the new skin minus the old
    one on valid, both as they are served now; None where a remote model answers. recorded: the old one's estimate, when
    it was made."""

    skin: str
    skin_id: str
    status: Status
    reason: str
    differences: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()
    directory: str | None = None
    parts: tuple[Part, ...] = ()
    rows: int = 0
    equal_answers: int = 0
    recorded: float | None = None
    estimate: float | None = None
    comparison: Comparison | None = None

    @property
    def reproduced(self) -> bool:
        return self.status in ("identical", "equivalent")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"reproduced": self.reproduced}


def reproduce(directory: Path | str, out: Path | str, *, task_file: Path | None = None) -> Reproduction:
    """Make the skin in `directory` again in `out`, a new directory, and compare the two.

    task_file: the task, where the run's own directory is gone or its task file has moved. What was made from other data
    or on another base is not made again; the answer says what differs. The same call resumes where an interrupted one
    stopped. Raises UsageError where nothing says how the skin was made, SkinError, ConfigError.
    """
    out = Path(out)
    then = recorded_of(Path(directory), task_file)
    _check_place(out, then.id)
    task, spec = load_adapt_task(then.settings, rungs=then.asked["rungs"], beside=then.beside)
    try:
        found = _Again(then, task, spec, out).made()
    except (DataError, HubError, CheckpointError) as error:  # of what it was made from
        found = _not_possible(then, (), error.message)
    if (out / REPRODUCTION_FILE).is_file():
        atomic_write(out / REPRODUCTION_FILE, json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n")
    return found


@dataclass
class _Again:
    then: Recorded
    task: Task
    spec: AdaptSpec
    out: Path
    differences: list[Change] = field(default_factory=list[Change])
    notes: list[str] = field(default_factory=list[str])

    def made(self) -> Reproduction:
        then, task = self.then, self.task
        parent = parent_of(then, task)
        if isinstance(parent, Change):
            return _not_possible(then, [parent])
        data = load_examples(task, None if parent is None else parent.assigned)
        self.differences += [*data_differences(then.skin, data), *code_differences(then)]
        if any(one.decides for one in self.differences):
            return _not_possible(then, self.differences)
        asked, limits = then.asked, self.spec.budget
        clock = Clock(asked["budget_seconds"], usd=limits.train_usd, usd_per_hour=self.spec.machine.usd_per_hour)
        seed, exhaustive = asked["seed"], asked["exhaustive"]
        run = opened(task, self.spec, data, self.out, clock, seed=seed, exhaustive=exhaustive, parent=parent)
        with run as contexts:
            self.differences += base_differences(then.report, contexts)
            if any(one.decides for one in self.differences):
                return _not_possible(then, self.differences)
            check_bases(contexts)
            with file_lock(self.out / LOCK_FILE):
                self._mark()
                begin(contexts, data, self.out, then.beside)
                return self._climbed(candidates_of(contexts, chosen_rungs(self.spec)))

    def _mark(self) -> None:
        """That what is in the directory belongs to this reproduction."""
        values = {"skin": self.then.skin.name, "skin_id": self.then.id, "status": "unfinished"}
        atomic_write(self.out / REPRODUCTION_FILE, json.dumps(values, indent=1) + "\n")

    def _climbed(self, found: Sequence[Candidate]) -> Reproduction:
        wanted = _needed(self.then, found)
        for candidate in progress(wanted, "making it again"):
            self._take_over_plan(candidate)
            outcome = climb_candidate(candidate)
            if outcome.result is None or outcome.result.skin is None:
                return _not_possible(
                    self.then, self.differences, f"{candidate.name} {outcome.status} this time: {outcome.reason}"
                )
        return self._compared(wanted[-1])

    def _take_over_plan(self, candidate: Candidate) -> None:
        """Put the run's plan where the rung will look for its own."""
        config = config_of(candidate.context, candidate.rung)
        if read_plan(candidate.directory, config) is not None:  # of an interrupted reproduction
            return
        settings = self.then.plan(candidate.name)
        if settings is None:
            self.notes.append(f"the plan of {candidate.name} was not recorded: how much is done was planned anew")
        else:
            write_plan(candidate.directory, config, Plan(settings))

    def _compared(self, candidate: Candidate) -> Reproduction:
        old, new = self.then.skin, self._made(candidate)
        parts = compare_skins(old, new)
        comparison, equal, rows = None, 0, 0
        if not old.is_remote:
            first, second = (_on_valid(candidate.context, skin) for skin in (old, new))
            comparison = compare(second, first, candidate.context.seed)
            pairs = zip(first.rows, second.rows, strict=True)
            equal, rows = sum(a.prediction == b.prediction for a, b in pairs), first.n
        status, reason = judged(parts, equal, rows)
        return Reproduction(
            old.name,
            self.then.id,
            status,
            reason,
            tuple(self.differences),
            tuple(self.notes),
            str(new.directory),
            parts,
            rows,
            equal,
            self.then.estimate,
            candidate.climbed.result.evaluation.estimate if comparison is None else comparison.a,
            comparison,
        )

    def _made(self, candidate: Candidate) -> Skin:
        """The new skin, in the format of quantised weights that the old one was judged in, where it was in one."""
        new, judged = read_skin(candidate.climbed.directory), self.then.skin.evaluated_with
        if judged is None or judged.weights not in QUANTISED or judged == new.evaluated_with:
            return new
        return in_weights(candidate, judged)


def judged(parts: Sequence[Part], equal: int, rows: int) -> tuple[Status, str]:
    """What the files and the answers on valid say together. rows: 0 where nobody was asked."""
    other = [part for part in parts if not part.equal]
    if not other:
        return "identical", "every file is the same, bit for bit"
    said = ", ".join(
        f"{part.name} differs" if part.largest is None else f"{part.name} differs by at most {part.largest:.3g}"
        for part in other
    )
    answers = f"{equal} of {rows} answers on valid are the same" if rows else "nobody was asked"
    only_numbers = all(part.largest is not None for part in other)
    return "equivalent" if only_numbers and equal == rows > 0 else "different", f"{said}; {answers}"


def _check_place(out: Path, id_: str) -> None:
    """A run of `adapt` is no place: its rungs would be taken for the new ones."""
    marker = out / REPRODUCTION_FILE
    used = out.is_dir() and any(one.name != LOCK_FILE for one in out.iterdir())
    if used and (not marker.is_file() or json.loads(read_text(marker)).get("skin_id") != id_):
        raise UsageError(
            f"{out} holds something else than an earlier reproduction of this skin; choose a new directory"
        )
    check_output(out)


def _not_possible(then: Recorded, differences: Sequence[Change], reason: str | None = None) -> Reproduction:
    if reason is None:
        named = ", ".join(one.what for one in differences if one.decides)
        reason = f"it was made from something else than what is here: {named}"
    return Reproduction(then.skin.name, then.id, "not_possible", reason, tuple(differences), recorded=then.estimate)


def _needed(then: Recorded, found: Sequence[Candidate]) -> list[Candidate]:
    """The candidate, last, after those that it builds on: for a cascade its two skins, and the prompt of each base as
    it is. UsageError where the task has it no more."""
    by_name, name = {one.name: one for one in found}, then.candidate
    own = by_name.get(name)
    wanted = {name, *(() if own is None else own.rung.parts(then.report["details"][name]))}
    for one in sorted(wanted):
        if one not in by_name:
            raise UsageError(f"the task has no candidate {one!r} any more; it has {', '.join(by_name)}")
    done = {row["rung"] for row in then.report["rungs"] if row["status"] == "done"}
    places = {by_name[one].context.suffix for one in wanted if by_name[one].traits.needs != "nothing"}
    plain = [one for one in found if one.traits.role == "baseline" and one.context.suffix in places]
    wanted |= done & {one.name for one in plain}
    ordered = [one for one in found if one.name in wanted]
    return sorted(ordered, key=lambda one: (one.name == name, one.traits.role != "baseline"))


def _on_valid(context: Context, skin: Skin) -> Evaluation:
    """A skin as read back from disk: on the base that is loaded, where it stands on that."""
    assert skin.directory is not None
    main = skin.bases.get("main")
    if skin.cascade is None and main is not None and main.has_weights_of(context.at.facts.identity):
        predictor = context.predictor(skin)
    else:
        predictor = load_skin(skin.directory)
    if isinstance(predictor, LocalModel):
        raise UsageError(f"{skin.directory} is a base and no skin")
    with closing(predictor):
        predictions = ask(predictor, context.valid)
    return evaluate_predictions(context.task, context.valid, predictions, seed=context.seed)
