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
from typing import Any, TypeVar

from bedplate.adaptation.climb.guard_drops import GuardName, GuardResult, bounded, drop_of
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.task.guard_spec import GENERAL_TEXT, GuardsSpec, LossGuard, RefusalGuard, RetentionGuard
from bedplate.core.errors import ConfigError, DataError, HubError, RequestError
from bedplate.core.files import atomic_write, read_text, sha256_json
from bedplate.evaluation.ledger import Ledger
from bedplate.evaluation.suites import SUITES, items, refusals, text
from bedplate.evaluation.suites.multiple_choice import Scored
from bedplate.evaluation.suites.suite import Items, SuiteItem, grades, together
from bedplate.inference.predict.local import LocalModel
from bedplate.report.schema_plan import GuardRow

Answers = list[list[float]]
G = TypeVar("G")


@dataclass(frozen=True)
class Guarding:
    """What guards are checked with. kept: the directory for what the bases answered. trained_on: the sources that the
    task trains on, texts: what stands in its raw text; directory: what relative files are relative to."""

    spec: GuardsSpec
    confidence: float
    kept: Path
    directory: Path
    trained_on: tuple[str, ...] = ()
    texts: frozenset[str] = frozenset()

    def check(self, parent: Callable[[], LocalModel], child: Callable[[], LocalModel]) -> list[GuardResult]:
        """Every guard that the task asks for. What cannot be measured (a set that cannot be pulled) is undecided and
        says why; ConfigError or DataError for a file that is not what it should be."""
        asked = (
            (self._retention, self.spec.retention),
            (self._loss, self.spec.loss),
            (self._refusal, self.spec.refusal),
        )
        found: list[GuardResult] = []
        for guard, spec in asked:
            if spec is not None:
                try:
                    found.append(guard(spec, parent, child))
                except (HubError, RequestError) as error:
                    found.append(_unmeasured(guard.__name__[1:], spec, self.confidence, error.message))
        return found

    def check_files(self) -> None:
        """The team's own files, looked at before anything is climbed. ConfigError, DataError."""
        retention, loss = self.spec.retention, self.spec.loss
        if retention is not None and retention.source is not None:
            items.own_items(retention.source, self.directory)
        if loss is not None:
            self._source(loss)
            if loss.source is not None:  # what is pulled is looked at when it is needed
                self.general_text(loss)

    def _source(self, spec: LossGuard) -> str:
        """Where general text is read from. ConfigError where the task trains on it."""
        source = spec.source or next((one for one in GENERAL_TEXT if one not in self.trained_on), GENERAL_TEXT[0])
        if source in self.trained_on:
            raise ConfigError(
                f"adapt.guards.loss.source: {source} is what the task trains on, so its loss says nothing about "
                "other text; name another data set or file"
            )
        return source

    def general_text(self, spec: LossGuard) -> Items[text.GeneralText]:
        """The documents of the loss guard. HubError; ConfigError where the task trains on those that it names,
        RequestError where it does on those that it did not."""
        source = self._source(spec)
        asked = SUITES.get(source) or partial(text.text_items, source, directory=self.directory)
        read: Items[text.GeneralText] = asked(spec.documents)
        shared = sum(one.text in self.texts for one in read.items)
        if shared:
            raise (RequestError if spec.source is None else ConfigError)(
                f"adapt.guards.loss.source: {shared} of the {len(read.items)} documents of {source} stand in "
                "the raw text that the base is trained on; name text that it has not seen"
            )
        return read

    # --- the three

    def _retention(self, spec: Any, parent: Callable[[], LocalModel], child: Callable[[], LocalModel]) -> GuardResult:
        assert isinstance(spec, RetentionGuard)
        asked = (
            together([SUITES[name](spec.per_set) for name in spec.sets])
            if spec.source is None
            else items.own_items(spec.source, self.directory)
        )

        def values(found: Scored) -> list[float]:
            return [found.acc_norm, found.acc]

        key = [asdict(one) for one in asked.items]
        before, after = self._both(asked.items, values, key, "retention", parent, child)
        sets: dict[str, dict[str, float]] = {}
        for one, b, a in zip(asked.items, before, after, strict=True):
            row = sets.setdefault(one.suite, {"n": 0, "parent": 0.0, "child": 0.0})
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
            {"source": asked.source, "sha256": asked.sha256, "unusable": asked.unusable, "sets": sets},
            [_row(one.id, one.group, b[0], a[0]) for one, b, a in zip(asked.items, before, after, strict=True)],
        )

    def _loss(self, spec: Any, parent: Callable[[], LocalModel], child: Callable[[], LocalModel]) -> GuardResult:
        assert isinstance(spec, LossGuard)
        read = self.general_text(spec)

        def values(found: text.Loss) -> list[float]:
            return [found.total, found.tokens]

        key = [asdict(one) for one in read.items]
        before, after = self._both(read.items, values, key, "general text", parent, child)
        if [b[1] for b in before] != [a[1] for a in after]:
            raise DataError("the child base cuts text into other tokens than its parent; their losses do not compare")
        tokens = [b[1] for b in before]
        names = [one.id for one in read.items]
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
        asked, detector = SUITES["refusals"](None).items, refusals.calibrate()

        def values(refused: float) -> list[float]:
            return [refused]

        before, after = self._both(asked, values, [one.text for one in asked], "refusals", parent, child)
        wanted = sum(one.wanted for one in asked)
        corrected = [detector.corrected(_mean(rows)) for rows in (before[:wanted], after[:wanted])]
        answered = [detector.corrected(_mean(rows)) for rows in (before[wanted:], after[wanted:])]
        return _result(
            "refusal",
            "share of requests refused that should be, corrected for the detector",
            corrected[0],
            corrected[1],
            self.confidence,
            spec.max_drop,
            {
                "detector": detector.to_json(),
                "apparent": {"parent": _mean(before[:wanted]), "child": _mean(after[:wanted])},
                "harmless_refused": {"parent": answered[0], "child": answered[1], "n": len(asked) - wanted},
            },
            [
                _row(one.id, one.id, b[0], a[0])
                for one, b, a in zip(asked[:wanted], before[:wanted], after[:wanted], strict=True)
            ],
        )

    # --- what bases answered

    def _both(
        self,
        asked: Sequence[SuiteItem[G]],
        values: Callable[[G], list[float]],
        key: list[Any],
        what: str,
        parent: Callable[[], LocalModel],
        child: Callable[[], LocalModel],
    ) -> tuple[Answers, Answers]:
        """What is kept of the grades of both; key: what was asked, as JSON."""

        def answers(model: LocalModel, name: str) -> Answers:
            engine, identity = model.engine, model.base.identity
            ids = [identity.weights_id, identity.tokenizer_id, identity.template_id]
            path = self.kept / f"{sha256_json([*ids, engine.weights, engine.kernel, key])}.json"
            if path.is_file():
                return json.loads(read_text(path))
            found = [values(grade) for grade in grades(model, asked, f"{what}, {name}")]
            atomic_write(path, json.dumps(found) + "\n")
            return found

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
        frozenset() if raw is None else frozenset(one.text for one in raw.documents),
    )


def check_child(context: Context, child: Path) -> list[GuardResult]:
    """The task's guards of a child base on disk, against the base of the context. CheckpointError for a damaged one."""
    return guarding_of(context).check(lambda: context.model, lambda: context.at.child(child).model)


def guards_opened(task: str, looked: Sequence[tuple[str | None, str, Sequence[GuardResult]]]) -> int:
    """How many verdicts of this task the guards' items have been part of, this one with it: what stays the same from
    run to run is looked at again as test rows are, and the ledger keeps it. looked: skin, its base's parent, its
    guards."""
    keys = {
        sha256_json([task, parent, one.guard, one.details.get("sha256"), row.id])
        for _, parent, guards in looked
        for one in guards
        for row in one.rows
    }
    if not keys:
        return 1
    question = sha256_json({"guards": sorted(keys), "skins": [skin for skin, _, _ in looked]})
    return Ledger().open(question, sorted(keys), task=task, reason=f"guards of {task}").number


def broken(guards: Sequence[GuardResult]) -> str | None:
    """The first guard that was shown not to hold, as a reason against the candidate."""
    return next((f"its {one.guard} guard is broken: {one.reason}" for one in guards if one.holds is False), None)


def _mean(rows: Answers) -> float:
    return sum(row[0] for row in rows) / len(rows)


def _row(name: str, group: str, parent: float, child: float, **more: int) -> GuardRow:
    return GuardRow(id=name, group=group, parent=parent, child=child, **more)


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
