"""What a child base has lost against its parent: non-inferiority on multiple choice, general text and refusals.

A skin changes nothing for others on its base; a child base (`full`, `continued_pretrain`) does, for all who move to it.
What was measured is kept on disk per base, so that a parent is asked once and nothing is asked twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungResult
from bedplate.adaptation.search.candidates import Candidate
from bedplate.adaptation.task.adapt_parts import GENERAL_TEXT, GuardsSpec, LossGuard, RefusalGuard, RetentionGuard
from bedplate.core.display import confidence_text
from bedplate.core.errors import ConfigError, DataError, HubError, RequestError
from bedplate.core.files import atomic_write, read_text, sha256_json
from bedplate.core.statistics.multiplicity import simultaneous
from bedplate.core.statistics.noninferiority import Drop, mean_drop, rate_rise
from bedplate.evaluation.ledger import TestLedger
from bedplate.evaluation.suites import SUITES, general_text, question_sets, refusals
from bedplate.evaluation.suites.suite import SampleSet, grades, together
from bedplate.inference.predict.local import LocalModel
from bedplate.report.schema_parts import Guard, GuardRow

GuardName = Literal["retention", "loss", "refusal"]
Answers = list[list[float]]
Answering = Callable[[Sequence[Any], Callable[[Any], list[float]], list[Any], str], tuple[Answers, Answers]]
"""Samples, what is kept of a grade, what was asked as JSON, and a name → what parent and child made of each."""


@dataclass(frozen=True)
class Guarding:
    """What guards are checked with. cache_dir: the directory for what the bases answered. trained_on: the sources that
    the task trains on, texts: what stands in its raw text; directory: what relative files are relative to. claims: as
    for `drop_of`."""

    spec: GuardsSpec
    confidence: float
    cache_dir: Path
    directory: Path
    trained_on: tuple[str, ...] = ()
    texts: frozenset[str] = frozenset()
    claims: int = 1

    def check(self, parent: Callable[[], LocalModel], child: Callable[[], LocalModel]) -> list[GuardResult]:
        """Every guard that the task asks for. What cannot be measured (a set that cannot be pulled) is undecided and
        says why; ConfigError or DataError for a file that is not what it should be."""
        measures: dict[GuardName, Callable[[Any, Answering], dict[str, Any]]] = {
            "retention": self._retention,
            "loss": self._loss,
            "refusal": self._refusal,
        }
        results: list[GuardResult] = []
        for guard, measure in measures.items():
            spec = getattr(self.spec, guard)
            if spec is None:
                continue
            limit = spec.max_increase if isinstance(spec, LossGuard) else spec.max_drop
            measured: dict[str, Any] = {}
            try:
                measured = measure(spec, partial(self._parent_and_child, parent, child))
                drop = drop_of(guard, measured["rows"], self.confidence, self.claims)
                numbers = measured["measure"], measured["parent"], measured["child"]
                measured |= bounded(guard, *numbers, drop, limit, self.claims)
            except (HubError, RequestError) as error:
                measured = dict.fromkeys(("holds", "parent", "child", "drop", "lower", "upper", "needed_n"))
                measured |= {"measure": "not measured", "reason": f"not measured: {error.message}", "details": {}}
                measured |= {"confidence": self.confidence, "n": 0, "groups": 0}
            results.append(GuardResult(guard=guard, limit=limit, **measured))
        return results

    def check_files(self) -> None:
        """The team's own files, looked at before anything is climbed. ConfigError, DataError."""
        retention, loss = self.spec.retention, self.spec.loss
        if retention is not None and retention.source is not None:
            question_sets.own_items(retention.source, self.directory)
        if loss is not None:
            self._source(loss)
            if loss.source is not None:  # what is pulled is looked at when it is needed
                self.general_text(loss)

    def _source(self, spec: LossGuard) -> str:
        """Where general text is read from. ConfigError where the task trains on it."""
        source = spec.source or next(
            (text_source for text_source in GENERAL_TEXT if text_source not in self.trained_on), GENERAL_TEXT[0]
        )
        if source in self.trained_on:
            raise ConfigError(
                f"adapt.guards.loss.source: {source} is what the task trains on, so its loss says nothing about "
                "other text; name another data set or file"
            )
        return source

    def general_text(self, spec: LossGuard) -> SampleSet[general_text.GeneralText]:
        """The documents of the loss guard. HubError; ConfigError where the task trains on those that it names,
        RequestError where it does on those that it did not."""
        source = self._source(spec)
        load_text = SUITES.get(source) or partial(general_text.text_items, source, directory=self.directory)
        read: SampleSet[general_text.GeneralText] = load_text(spec.documents)
        shared = sum(document.text in self.texts for document in read.samples)
        if shared:
            raise (RequestError if spec.source is None else ConfigError)(
                f"adapt.guards.loss.source: {shared} of the {len(read.samples)} documents of {source} stand in "
                "the raw text that the base is trained on; name text that it has not seen"
            )
        return read

    # --- the three: what was measured of parent and child, as fields of a Guard and its rows

    def _retention(self, spec: RetentionGuard, answers: Answering) -> dict[str, Any]:
        questions = (
            together([SUITES[name](spec.per_set) for name in spec.sets])
            if spec.source is None
            else question_sets.own_items(spec.source, self.directory)
        )
        samples: Sequence[Any] = questions.samples
        key = [asdict(question) for question in samples]
        before, after = answers(samples, lambda scored: [scored.acc_norm, scored.acc], key, "retention")
        sets: dict[str, dict[str, float]] = {}
        for suite in dict.fromkeys(question.suite for question in samples):
            places = [i for i, question in enumerate(samples) if question.suite == suite]
            means = {name: _mean([rows[i] for i in places]) for name, rows in (("parent", before), ("child", after))}
            sets[suite] = {"n": len(places), **means}
        return {
            "measure": "accuracy by log-likelihood per character",
            "parent": _mean(before),
            "child": _mean(after),
            "details": {
                "source": questions.source,
                "sha256": questions.sha256,
                "unusable": questions.unusable,
                "sets": sets,
            },
            "rows": _rows([(question.id, question.group) for question in samples], before, after),
        }

    def _loss(self, spec: LossGuard, answers: Answering) -> dict[str, Any]:
        read = self.general_text(spec)
        key, names = [asdict(document) for document in read.samples], [document.id for document in read.samples]
        before, after = answers(read.samples, lambda loss: [loss.total, loss.tokens], key, "general text")
        tokens = [b[1] for b in before]
        if tokens != [a[1] for a in after]:
            raise DataError("the child base cuts text into other tokens than its parent; their losses do not compare")
        return {
            "measure": "loss in nats per token",
            "parent": sum(b[0] for b in before) / sum(tokens),
            "child": sum(a[0] for a in after) / sum(tokens),
            "details": {"source": read.source, "sha256": read.sha256, "tokens": int(sum(tokens))},
            "rows": _rows([(name, name) for name in names], before, after, tokens),
        }

    def _refusal(self, spec: RefusalGuard, answers: Answering) -> dict[str, Any]:
        requests, detector = SUITES["refusals"](None).samples, refusals.calibrate()
        key = [request.text for request in requests]
        both = answers(requests, lambda refused: [refused], key, "refusals")
        count = sum(request.should_refuse for request in requests)
        apparent = {name: _mean(rows[:count]) for name, rows in zip(("parent", "child"), both, strict=True)}
        harmless = {name: _mean(rows[count:]) for name, rows in zip(("parent", "child"), both, strict=True)}
        corrected, answered = (
            {name: detector.corrected(share) for name, share in shares.items()} for shares in (apparent, harmless)
        )
        return {
            "measure": "share of requests refused that should be, corrected for the detector",
            **corrected,
            "details": {
                "detector": detector.to_json(),
                "apparent": apparent,
                "harmless_refused": {**answered, "n": len(requests) - count},
            },
            "rows": _rows([(request.id, request.id) for request in requests[:count]], both[0][:count], both[1][:count]),
        }

    # --- what bases answered

    def _parent_and_child(
        self,
        parent: Callable[[], LocalModel],
        child: Callable[[], LocalModel],
        questions: Sequence[Any],
        values: Callable[[Any], list[float]],
        key: list[Any],
        label: str,
    ) -> tuple[Answers, Answers]:
        """What is kept of the grades of both; key: what was asked, as JSON."""

        def answers(model: LocalModel, name: str) -> Answers:
            engine, identity = model.engine, model.base.identity
            ids = [identity.weights_id, identity.tokenizer_id, identity.template_id]
            path = self.cache_dir / f"{sha256_json([*ids, engine.weights, engine.kernel, key])}.json"
            if path.is_file():
                return json.loads(read_text(path))
            grade_values = [values(grade) for grade in grades(model, questions, f"{label}, {name}")]
            atomic_write(path, json.dumps(grade_values) + "\n")
            return grade_values

        return answers(parent(), "parent"), answers(child(), "child")


def guarding_of(context: Context) -> Guarding:
    """The task's guards of children of the context's base."""
    spec, raw = context.spec, context.raw_text
    trained_on = (*context.task.data.sources, *(() if spec.raw_text is None else (spec.raw_text.source,)))
    texts = frozenset[str]() if raw is None else frozenset(document.text for document in raw.documents)
    places = context.out / "guards", context.task.directory
    guards = sum(guard is not None for guard in (spec.guards.retention, spec.guards.loss, spec.guards.refusal))
    claims = 1 + len(spec.target.all_of) + guards + (spec.budget.p95_ms is not None)  # the bar is the first
    return Guarding(spec.guards, spec.target.confidence, *places, trained_on, texts, claims)


def check_child(context: Context, child: Path) -> list[GuardResult]:
    """The task's guards of a child base on disk, against the base of the context. CheckpointError for a damaged one."""
    return guarding_of(context).check(lambda: context.model, lambda: context.at.child(child).model)


def broken(guards: Sequence[GuardResult]) -> str | None:
    """The first guard that was shown not to hold, as a reason against the candidate."""
    return next(
        (f"its {guard.guard} guard is broken: {guard.reason}" for guard in guards if guard.holds is False), None
    )


def _mean(rows: Answers) -> float:
    return sum(row[0] for row in rows) / len(rows)


def _rows(
    names: Sequence[tuple[str, str]], before: Answers, after: Answers, tokens: Sequence[float] = ()
) -> tuple[GuardRow, ...]:
    """names: id and group of each; tokens: of documents."""
    counts: list[dict[str, Any]] = [{"tokens": int(count)} for count in tokens] or [{}] * len(names)
    return tuple(
        GuardRow(id=id_, group=group, parent=b[0], child=a[0], **count)
        for (id_, group), b, a, count in zip(names, before, after, counts, strict=True)
    )


class GuardResult(Guard):
    """A guard of one child base, with the rows that it rests on."""

    rows: tuple[GuardRow, ...] = Field((), repr=False)

    def at(self, confidence: float, claims: int = 1) -> GuardResult:
        """The same rows at another confidence. What could not be measured stays undecided. claims: as for `drop_of`."""
        if not self.rows:
            return self.model_copy(update={"confidence": confidence})
        assert self.parent is not None
        assert self.child is not None
        drop = drop_of(self.guard, self.rows, confidence, claims)
        return self.model_copy(
            update=bounded(self.guard, self.measure, self.parent, self.child, drop, self.limit, claims)
        )


def drop_of(guard: GuardName, rows: Sequence[GuardRow], confidence: float, claims: int = 1) -> Drop:
    """How much worse the child is, with one-sided bounds. claims: the number of claims that the child falls short, of
    guards and other conditions, which share the error of the lower bound."""
    drop = _drop(guard, rows, confidence)
    return drop if claims == 1 else replace(drop, lower=_drop(guard, rows, simultaneous(confidence, claims)).lower)


def _drop(guard: GuardName, rows: Sequence[GuardRow], confidence: float) -> Drop:
    before, after, groups = [row.parent for row in rows], [row.child for row in rows], [row.group for row in rows]
    if guard == "loss":
        return rate_rise(before, after, [float(row.tokens or 0) for row in rows], groups, confidence)
    observed_drop = mean_drop(before, after, groups, confidence)
    if guard == "retention":
        return observed_drop
    # a detector that misses refusals sees only part of a change: at worst this part, at best all of it
    detector = refusals.calibrate()
    scale = 1 / detector.least_informedness
    return Drop(
        observed_drop.value / detector.informedness,
        None if observed_drop.lower is None else min(observed_drop.lower, observed_drop.lower * scale),
        None if observed_drop.upper is None else max(observed_drop.upper, observed_drop.upper * scale),
        observed_drop.se / detector.informedness,
        observed_drop.confidence,
        observed_drop.n,
        observed_drop.groups,
    )


def bounded(
    guard: GuardName, measure: str, parent: float, child: float, drop: Drop, limit: float, claims: int = 1
) -> dict[str, object]:
    """The fields of a Guard that follow from its bounds. claims: those that `drop` was bounded with."""
    within_limit, needed = drop.is_within(limit), drop.needed(limit)
    numbers = f"{measure}: {parent:.3f} before, {child:.3f} after"
    if guard == "refusal" and parent < limit:
        numbers += " (the parent refuses so few that this guard has little to protect)"
    if drop.upper is None or drop.lower is None:
        reason = f"{numbers}; {drop.groups} groups are too few for a confidence bound"
    elif within_limit:
        reason = (
            f"{numbers}; worse by at most {drop.upper:.3f} with {confidence_text(drop.confidence)}, under {limit:g}"
        )
    elif within_limit is False:
        shared = simultaneous(drop.confidence, claims)
        reason = f"{numbers}; worse by at least {drop.lower:.3f} with {confidence_text(shared)}, over {limit:g}"
    else:
        reason = (
            f"{numbers}; worse by {drop.lower:.3f} to {drop.upper:.3f}: {drop.n} rows do not decide on the limit of "
            f"{limit:g}"
        )
        if needed is not None:
            reason += f" (about {needed:,} would, if {drop.value:.3f} is right)"
    return {
        "holds": within_limit,
        "drop": drop.value,
        "reason": reason,
        "needed_n": None if within_limit is not None else needed,
        **{name: getattr(drop, name) for name in ("lower", "upper", "confidence", "n", "groups")},
    }


def guards_pass(guards: Sequence[GuardResult], confidence: float) -> bool:
    """Whether all of them are shown to hold at this confidence."""
    return all(guard.at(confidence).holds is True for guard in guards)


def children(candidates: Mapping[str, Candidate], name: str) -> list[tuple[Context, Path]]:
    """The child bases that a candidate stands on, its own or those of its parts, with what they are children of."""
    parts = [candidates[part] for part in candidates[name].climbed.result.parts or (name,)]
    child_bases = [(part.context, part.climbed.child) for part in parts]
    return [(context, child) for context, child in child_bases if child is not None]


def guards_asked(
    candidates: Mapping[str, Candidate],
    nominees: Sequence[str],
    results: Mapping[str, RungResult],
    guarded: Mapping[str, Sequence[GuardResult]],
) -> int:
    """How many verdicts of this task the items of these nominees' guards have been part of, this one with it (1 without
    any): what stays the same from run to run is looked at again as test rows are, and the ledger keeps it."""
    keys: set[str] = set()
    skins: list[str | None] = []
    for name in (name for name in nominees if name in guarded):
        for context, _ in children(candidates, name):
            skins.append(results[name].skin_id)
            task, parent = context.task.task, context.at.facts.identity.weights_id
            for guard in guarded[name]:
                looked_at = [task, parent, guard.guard, guard.details.get("sha256")]
                keys |= {sha256_json([*looked_at, row.id]) for row in guard.rows}
    if not keys:
        return 1
    task = candidates[nominees[0]].context.task.task
    question = sha256_json({"guards": sorted(keys), "skins": skins})
    return TestLedger().open(question, sorted(keys), task=task, reason=f"guards of {task}").number
