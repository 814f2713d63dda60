"""What a child base has lost against its parent: non-inferiority on multiple choice, general text and refusals.

A skin changes nothing for others on its base; a child base (`full`, `continued_pretrain`) does, for all who move to it.
What was measured is kept on disk per base, so that a parent is asked once and nothing is asked twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungResult
from bedplate.adaptation.search.candidates import Candidate
from bedplate.adaptation.task.adapt_parts import GENERAL_TEXT, GuardsSpec, LossGuard, RefusalGuard, RetentionGuard
from bedplate.core.errors import ConfigError, DataError, HubError, RequestError
from bedplate.core.files import atomic_write, read_text, sha256_json
from bedplate.core.statistics.noninferiority import Drop, mean_drop, rate_rise
from bedplate.evaluation.ledger import TestLedger
from bedplate.evaluation.suites import SUITES, general_text, question_sets, refusals
from bedplate.evaluation.suites.question_sets import Scored
from bedplate.evaluation.suites.suite import SampleSet, SuiteItem, grades, together
from bedplate.inference.predict.local import LocalModel
from bedplate.report.schema_plan import Guard, GuardRow

Answers = list[list[float]]
G = TypeVar("G")


@dataclass(frozen=True)
class Guarding:
    """What guards are checked with. cache_dir: the directory for what the bases answered. trained_on: the sources that
    the task trains on, texts: what stands in its raw text; directory: what relative files are relative to."""

    spec: GuardsSpec
    confidence: float
    cache_dir: Path
    directory: Path
    trained_on: tuple[str, ...] = ()
    texts: frozenset[str] = frozenset()

    def check(self, parent: Callable[[], LocalModel], child: Callable[[], LocalModel]) -> list[GuardResult]:
        """Every guard that the task asks for. What cannot be measured (a set that cannot be pulled) is undecided and
        says why; ConfigError or DataError for a file that is not what it should be."""
        checks = (
            (self._retention, self.spec.retention),
            (self._loss, self.spec.loss),
            (self._refusal, self.spec.refusal),
        )
        results: list[GuardResult] = []
        for guard, spec in checks:
            if spec is not None:
                try:
                    results.append(guard(spec, parent, child))
                except (HubError, RequestError) as error:
                    results.append(_unmeasured(guard.__name__[1:], spec, self.confidence, error.message))
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

    # --- the three

    def _retention(self, spec: Any, parent: Callable[[], LocalModel], child: Callable[[], LocalModel]) -> GuardResult:
        assert isinstance(spec, RetentionGuard)
        questions = (
            together([SUITES[name](spec.per_set) for name in spec.sets])
            if spec.source is None
            else question_sets.own_items(spec.source, self.directory)
        )

        def values(scored: Scored) -> list[float]:
            return [scored.acc_norm, scored.acc]

        key = [asdict(question) for question in questions.samples]
        before, after = self._parent_and_child(questions.samples, values, key, "retention", parent, child)
        sets: dict[str, dict[str, float]] = {}
        for question, b, a in zip(questions.samples, before, after, strict=True):
            row = sets.setdefault(question.suite, {"n": 0, "parent": 0.0, "child": 0.0})
            row["n"] += 1
            row["parent"] += b[0]
            row["child"] += a[0]
        for row in sets.values():
            row["parent"], row["child"] = row["parent"] / row["n"], row["child"] / row["n"]
        return _result(
            "retention",
            "accuracy by log-likelihood per character",
            _mean(before),
            _mean(after),
            self.confidence,
            spec.max_drop,
            {"source": questions.source, "sha256": questions.sha256, "unusable": questions.unusable, "sets": sets},
            [
                _row(question.id, question.group, b[0], a[0])
                for question, b, a in zip(questions.samples, before, after, strict=True)
            ],
        )

    def _loss(self, spec: Any, parent: Callable[[], LocalModel], child: Callable[[], LocalModel]) -> GuardResult:
        assert isinstance(spec, LossGuard)
        read = self.general_text(spec)

        def values(loss: general_text.Loss) -> list[float]:
            return [loss.total, loss.tokens]

        key = [asdict(document) for document in read.samples]
        before, after = self._parent_and_child(read.samples, values, key, "general text", parent, child)
        if [b[1] for b in before] != [a[1] for a in after]:
            raise DataError("the child base cuts text into other tokens than its parent; their losses do not compare")
        tokens = [b[1] for b in before]
        names = [document.id for document in read.samples]
        return _result(
            "loss",
            "loss in nats per token",
            sum(b[0] for b in before) / sum(tokens),
            sum(a[0] for a in after) / sum(tokens),
            self.confidence,
            spec.max_increase,
            {"source": read.source, "sha256": read.sha256, "tokens": int(sum(tokens))},
            [_row(name, name, b[0], a[0], tokens=int(b[1])) for name, b, a in zip(names, before, after, strict=True)],
        )

    def _refusal(self, spec: Any, parent: Callable[[], LocalModel], child: Callable[[], LocalModel]) -> GuardResult:
        assert isinstance(spec, RefusalGuard)
        requests, detector = SUITES["refusals"](None).samples, refusals.calibrate()

        def values(refused: float) -> list[float]:
            return [refused]

        before, after = self._parent_and_child(
            requests, values, [request.text for request in requests], "refusals", parent, child
        )
        harmful_count = sum(request.should_refuse for request in requests)
        corrected = [detector.corrected(_mean(rows)) for rows in (before[:harmful_count], after[:harmful_count])]
        answered = [detector.corrected(_mean(rows)) for rows in (before[harmful_count:], after[harmful_count:])]
        return _result(
            "refusal",
            "share of requests refused that should be, corrected for the detector",
            corrected[0],
            corrected[1],
            self.confidence,
            spec.max_drop,
            {
                "detector": detector.to_json(),
                "apparent": {"parent": _mean(before[:harmful_count]), "child": _mean(after[:harmful_count])},
                "harmless_refused": {"parent": answered[0], "child": answered[1], "n": len(requests) - harmful_count},
            },
            [
                _row(request.id, request.id, b[0], a[0])
                for request, b, a in zip(
                    requests[:harmful_count], before[:harmful_count], after[:harmful_count], strict=True
                )
            ],
        )

    # --- what bases answered

    def _parent_and_child(
        self,
        questions: Sequence[SuiteItem[G]],
        values: Callable[[G], list[float]],
        key: list[Any],
        label: str,
        parent: Callable[[], LocalModel],
        child: Callable[[], LocalModel],
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
    data, raw = context.task.data, context.raw_text
    trained_on = [*data.sources]
    if context.spec.raw_text is not None:
        trained_on.append(context.spec.raw_text.source)
    return Guarding(
        context.spec.guards,
        context.spec.target.confidence,
        context.out / "guards",
        context.task.directory,
        tuple(trained_on),
        frozenset() if raw is None else frozenset(document.text for document in raw.documents),
    )


def check_child(context: Context, child: Path) -> list[GuardResult]:
    """The task's guards of a child base on disk, against the base of the context. CheckpointError for a damaged one."""
    return guarding_of(context).check(lambda: context.model, lambda: context.at.child(child).model)


def guards_opened(task: str, looked: Sequence[tuple[str | None, str, Sequence[GuardResult]]]) -> int:
    """How many verdicts of this task the guards' items have been part of, this one with it: what stays the same from
    run to run is looked at again as test rows are, and the ledger keeps it. looked: skin, its base's parent, its
    guards."""
    keys = {
        sha256_json([task, parent, guard.guard, guard.details.get("sha256"), row.id])
        for _, parent, guards in looked
        for guard in guards
        for row in guard.rows
    }
    if not keys:
        return 1
    question = sha256_json({"guards": sorted(keys), "skins": [skin for skin, _, _ in looked]})
    return TestLedger().open(question, sorted(keys), task=task, reason=f"guards of {task}").number


def broken(guards: Sequence[GuardResult]) -> str | None:
    """The first guard that was shown not to hold, as a reason against the candidate."""
    return next(
        (f"its {guard.guard} guard is broken: {guard.reason}" for guard in guards if guard.holds is False), None
    )


def _mean(rows: Answers) -> float:
    return sum(row[0] for row in rows) / len(rows)


def _row(name: str, group: str, parent: float, child: float, **counts: int) -> GuardRow:
    return GuardRow(id=name, group=group, parent=parent, child=child, **counts)


def _result(
    guard: GuardName,
    measure: str,
    parent: float,
    child: float,
    confidence: float,
    limit: float,
    details: Mapping[str, Any],
    rows: Sequence[GuardRow],
) -> GuardResult:
    return GuardResult.model_validate(
        {
            "guard": guard,
            "measure": measure,
            "parent": parent,
            "child": child,
            "limit": limit,
            "details": dict(details),
            "rows": tuple(rows),
            **bounded(guard, measure, parent, child, drop_of(guard, rows, confidence), limit),
        }
    )


def _unmeasured(name: str, spec: Any, confidence: float, why: str) -> GuardResult:
    limit = spec.max_increase if isinstance(spec, LossGuard) else spec.max_drop
    guard: GuardName = "loss" if name == "loss" else "refusal" if name == "refusal" else "retention"
    nothing: dict[str, Any] = dict.fromkeys(("holds", "parent", "child", "drop", "lower", "upper", "needed_n"))
    numbers = {"limit": limit, "confidence": confidence, "n": 0, "groups": 0, "details": {}}
    return GuardResult(guard=guard, measure="not measured", reason=f"not measured: {why}", **numbers, **nothing)


GuardName = Literal["retention", "loss", "refusal"]


class GuardResult(Guard):
    """A guard of one child base, with the rows that it rests on."""

    rows: tuple[GuardRow, ...] = Field((), repr=False)

    def at(self, confidence: float) -> GuardResult:
        """The same rows at another confidence. What could not be measured stays undecided."""
        if not self.rows:
            return self.model_copy(update={"confidence": confidence})
        assert self.parent is not None
        assert self.child is not None
        drop = drop_of(self.guard, self.rows, confidence)
        return self.model_copy(update=bounded(self.guard, self.measure, self.parent, self.child, drop, self.limit))


def drop_of(guard: GuardName, rows: Sequence[GuardRow], confidence: float) -> Drop:
    """How much worse the child is, with one-sided bounds."""
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


def bounded(guard: GuardName, measure: str, parent: float, child: float, drop: Drop, limit: float) -> dict[str, object]:
    """The fields of a Guard that follow from its bounds."""
    within_limit, needed = drop.is_within(limit), drop.needed(limit)
    numbers = f"{measure}: {parent:.3f} before, {child:.3f} after"
    if guard == "refusal" and parent < limit:
        numbers += " (the parent refuses so few that there is little to lose: this guard says little)"
    if drop.upper is None or drop.lower is None:
        reason = f"{numbers}; {drop.groups} groups are too few for a bound"
    elif within_limit:
        reason = f"{numbers}; worse by at most {drop.upper:.3f} with {drop.confidence:.1%} confidence, under {limit:g}"
    elif within_limit is False:
        reason = f"{numbers}; worse by at least {drop.lower:.3f} with {drop.confidence:.1%} confidence, over {limit:g}"
    else:
        reason = (
            f"{numbers}; worse by {drop.lower:.3f} to {drop.upper:.3f}, so {drop.n} rows do not decide on {limit:g}"
        )
        if needed is not None:
            reason += f" (about {needed:,} would)"
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
    """How many verdicts the items of these nominees' guards have been part of, this one with it; 1 without any."""
    looked = [
        (results[name].skin_id, at.at.facts.identity.weights_id, guarded[name])
        for name in nominees
        if name in guarded
        for at, _ in children(candidates, name)
    ]
    return guards_opened(candidates[nominees[0]].context.task.task, looked) if looked else 1
