"""How a budget of labels is spent: fixed before the first is asked for, and written down with every file and look.

Two files come before any base is adapted: half of train's labels with all of valid's, then train's other half and a
first part of test's. Every file after these has test rows only, so that nominees stay what they were when test was
opened. The error of the verdict is spent over the looks by the share of the planned rows that have labels (`core.
statistics.repeated_looks`); the bounds shown are repeated confidence bounds, so they hold together at their level.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydantic

from bedplate.adaptation.context.outcome import BoundedEstimate, Resting
from bedplate.core.config import Strict
from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import atomic_write, read_text
from bedplate.core.statistics.multiplicity import look_levels
from bedplate.core.statistics.proportions import Side
from bedplate.data.rows import SourceRows, blank
from bedplate.data.sources import read_rows
from bedplate.data.splits import Assigned, SplitRecord, split_hash
from bedplate.evaluation.examples import Example, TaskData, TestHandle, load_examples, sources_of, target_of
from bedplate.evaluation.leaks.hidden_groups import grouping_of
from bedplate.evaluation.pool import LabelPool
from bedplate.evaluation.task import Task
from bedplate.report.schema_parts import Count, LabelBudget, Look, Sha256
from bedplate.skins.classical import WORD
from bedplate.skins.lookup_index import text_of

LEARNING = 2
"""Files before the first look, where there is anything to learn from."""
LOOKS = 5
"""Looks at test, where each gets an equal part of its labels."""
PLAN_FILE = "plan.json"


class LabelPlan(Strict):
    """budget: labels in all; train, valid, test: of each at most. asked: row hashes of every file that was written.
    chosen: how the train rows were."""

    pool: Sha256
    budget: Count
    train: Count
    valid: Count
    test: Count
    asked: tuple[tuple[Sha256, ...], ...] = ()
    chosen: str = "at random"
    looks: tuple[Look, ...] = ()

    def write(self, directory: Path) -> None:
        atomic_write(directory / PLAN_FILE, self.model_dump_json(indent=1) + "\n")

    @property
    def learning(self) -> int:
        """Files before the first look; one where train and valid came with all their labels."""
        return LEARNING if self.train or self.valid else 1


def planned(pool: LabelPool, budget: int) -> LabelPlan:
    """The budget given out by the fractions of the task's splits. UsageError where it does not reach."""
    fractions = pool.task.data.split.fractions
    assert fractions is not None  # `load_pool` has seen to it
    missing = {name: sum(not example.target for example in part) for name, part in pool.parts.items()}
    valid, test = (round(budget * fractions[name]) for name in ("valid", "test"))
    allotment = {"train": budget - valid - test, "valid": valid, "test": test}
    if not sum(missing.values()):
        raise UsageError(f"{pool.task.path}: every row has a label already; adapt without a label budget")
    minimum = max(LOOKS, len(pool.task.labels))
    short = next((name for name in allotment if allotment[name] < minimum and missing[name] > allotment[name]), None)
    if short is not None:
        raise UsageError(
            f"a budget of {budget} labels leaves {allotment[short]} for {short} by data.split, and {minimum} are the "
            "least; give a larger --label-budget"
        )
    train, valid, test = (min(allotment[name], missing[name]) for name in ("train", "valid", "test"))
    return LabelPlan(pool=pool.hash, budget=budget, train=train, valid=valid, test=test)


def read_plan(directory: Path, pool: LabelPool, budget: int) -> LabelPlan:
    """The plan of a run, as its first call made it. DataError where its rows have changed; UsageError for another
    budget."""
    path = directory / PLAN_FILE
    if not path.exists():
        return planned(pool, budget)
    try:
        plan = LabelPlan.model_validate_json(read_text(path))
    except pydantic.ValidationError as error:
        raise DataError(f"{path} is damaged ({error.error_count()} fields); restore it") from error
    if plan.budget != budget:
        raise UsageError(
            f"this run has a budget of {plan.budget} labels, which its levels rest on; give --label-budget "
            f"{plan.budget}, or begin another run with the rows that have labels now"
        )
    if plan.pool != pool.hash:
        raise DataError(
            f"{pool.task.path}: the rows or the splits of its source are no longer those that labels were asked for "
            f"({path}); put them back, or begin another run"
        )
    return plan


def next_rows(plan: LabelPlan, labeled_pool: LabelPool, bought: Mapping[str, int]) -> tuple[list[Example], str]:
    """The rows of the next file, in an order that says nothing of their splits, and how train's were chosen; none where
    the budget is spent or no row is left. labeled_pool: the rows with all labels so far; bought: how many of each split
    were."""
    waiting = {name: [example for example in part if not example.target] for name, part in labeled_pool.parts.items()}
    number, chosen, rows = len(plan.asked) + 1, plan.chosen, list[Example]()
    if number <= plan.learning:
        rows += waiting["valid"][: plan.valid - bought["valid"]]
        count = plan.train - bought["train"]
        if number < plan.learning:
            rows += waiting["train"][: math.ceil(count / 2)]
        else:
            labeled = [example for example in labeled_pool.parts["train"] if example.target]
            picked, chosen = least_sure(labeled_pool.task, labeled, waiting["train"], count)
            rows += picked
    if number >= plan.learning:
        part = math.ceil(plan.test * min(1.0, (number - plan.learning + 1) / LOOKS))
        part = max(part, min(plan.test, len(labeled_pool.task.labels)))  # fewer cannot be judged
        rows += waiting["test"][: max(0, part - bought["test"])]
    return sorted(rows, key=lambda example: example.row_hash), chosen


def can_be_judged(labeled_pool: LabelPool) -> bool:
    """Whether the test rows with labels so far are a test split: as many as there are labels, and some of every value
    that has a share of the traffic."""
    drawn, traffic = labeled_pool.drawn("test"), labeled_pool.task.data.traffic
    values = {example.slices[traffic.column] for example in drawn} if traffic.column is not None else set[str]()
    enough = len(drawn) >= max(1, len(labeled_pool.task.labels))
    return enough and all(values >= set(shares) for shares in traffic.shares.values())


def look_sentence(looks: Sequence[Look], whole: int) -> str:
    """Which look this is, of how many test rows that may be judged in all."""
    return f"This is look {len(looks)} at test, with {looks[-1].labels} of at most {whole} rows."


def look_at(plan: LabelPlan, labeled_pool: LabelPool, bought: Mapping[str, int]) -> tuple[LabelPlan, int]:
    """The plan with a look at the test rows that have labels now, unless they are those of its last look, and how many
    rows would be judged at most. DataError where labels of earlier looks have changed since, or came after the last."""
    drawn = labeled_pool.drawn("test")
    for number, look in enumerate(plan.looks, start=1):
        if len(drawn) < look.labels or _hash(drawn[: look.labels]) != look.rows:
            raise DataError(
                f"labels of test rows have changed since look {number} judged by them: a verdict cannot be taken back "
                "by other labels; put them back, or begin another run"
            )
    undrawn = labeled_pool.parts["test"][len(drawn) :]
    remaining, extra_rows = plan.test - bought["test"], 0
    for example in undrawn:
        if not example.target and remaining <= 0:
            break
        remaining, extra_rows = remaining - (not example.target), extra_rows + 1
    whole = len(drawn) + extra_rows
    if plan.looks and plan.looks[-1].labels == len(drawn):
        return plan, whole
    before = plan.looks[-1].share if plan.looks else 0.0
    if before >= 1:
        raise DataError(
            f"look {len(plan.looks)} was the last and had the rest of the error: labels that test rows got after it "
            "cannot be judged; take these out again, or begin another run"
        )
    share = 1.0 if not extra_rows else min(1.0, max(len(drawn) / whole, before + 1e-3))
    look = Look(labels=len(drawn), share=share, level=0.0, rows=_hash(drawn))
    return plan.model_copy(update={"looks": (*plan.looks, look)}), whole


def _hash(examples: Sequence[Example]) -> str:
    return split_hash([SplitRecord(e.id, e.row_hash, e.target, e.group) for e in examples])


STRENGTH = 10.0
"""C of the regression; of a few dozen labels there is nothing to choose it by."""
LEAST_OF_EACH = 2


def least_sure(
    task: Task, labeled: Sequence[Example], waiting: Sequence[Example], count: int
) -> tuple[list[Example], str]:
    """At most `count` of the waiting rows, which come in a random order, and how they were chosen."""
    targets, why = [example.target for example in labeled], None
    rare = sum(targets.count(label) < LEAST_OF_EACH for label in task.labels)
    if len(waiting) <= count:
        why = "there are no more"
    elif not task.labels:
        why = "rows do not have one label each of a few"
    elif rare:
        why = f"{rare} labels have fewer than {LEAST_OF_EACH} rows so far"
    if why is not None:
        return list(waiting[:count]), f"at random: {why}"
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    known, unknown = ([text_of(e.inputs, list(task.inputs)) for e in part] for part in (labeled, waiting))
    terms = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=f"(?u){WORD}")
    with threadpool_limits(1):
        model = LogisticRegression(C=STRENGTH, max_iter=2000).fit(terms.fit_transform(known), targets)
        sure = model.predict_proba(terms.transform(unknown)).max(axis=1)
    order = np.argsort(sure, kind="stable")[:count]  # rows alike keep their random order
    how = f"the half that came last by the least sure labels of a bag of words fitted on {len(labeled)} rows"
    return [waiting[i] for i in order.tolist()], how


# --- files of rows for people to label: CSV, read back when the column of the target is filled in

KEY, CANNOT = "row_key", "cannot_label"
"""Columns beside the task's own: what a row is known by, and why it cannot be labelled."""


@dataclass(frozen=True)
class Labelled:
    """One file. labels: by row hash, of the rows that have one; skipped: those that nobody can label; empty: rows that
    wait for either."""

    path: Path
    labels: Mapping[str, str]
    skipped: frozenset[str]
    empty: int


def file_of(directory: Path, number: int) -> Path:
    """The file of a round, counted from 1."""
    return directory / f"round-{number}.csv"


def write_rows(path: Path, task: Task, examples: Sequence[Example]) -> None:
    """The rows with an empty target. UsageError where the task has a column of a name that is needed here; DataError
    for another file of that name, which somebody may have filled in."""
    texts = {spec.column: name for name, spec in task.inputs.items()}
    grouped = [name for name in task.data.group_columns if name not in ("id", *texts)]  # it stands there already
    columns = (KEY, "id", *texts, *grouped, task.data.target, CANNOT)
    duplicate = next((name for name in columns if columns.count(name) > 1), None)
    if duplicate is not None:
        problem = f"two columns of {path.name} would be called {duplicate!r}; rename the task's column"
        raise UsageError(f"{task.path}: {problem}")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for example in examples:
        input_texts = example.texts
        linked = dict(link.split("=", 1) for link in example.links)
        group = [linked.get(name, "") for name in grouped]
        writer.writerow([example.row_hash, example.id, *(input_texts[name] for name in texts.values()), *group, "", ""])
    text = file.getvalue()
    if path.exists() and path.read_bytes() != text.encode():
        raise DataError(
            f"{path} exists, and the plan beside it does not name it: labels in it would be lost; put the plan of this "
            "run back, or move the file away"
        )
    atomic_write(path, text)


def read_labels(path: Path, task: Task, row_keys: Sequence[str]) -> Labelled:
    """What people wrote. row_keys: the rows that the file was written with. DataError naming the file and the line."""
    rows = read_rows(path.name, path.parent)
    for column in (KEY, task.data.target, CANNOT):
        if column not in rows.columns:
            raise DataError(f"{path}: the column {column!r} is gone; fill in the file as it was written")
    labels: dict[str, str] = {}
    skipped: set[str] = set()
    read_keys: set[str] = set()
    for row, line in zip(rows.rows, rows.lines, strict=True):
        location, key = rows.location(line), str(row[KEY])
        if key not in row_keys or key in read_keys:
            problem = "stands twice" if key in read_keys else "is none that was asked for here"
            raise DataError(f"{location}: the row_key {key[:12]!r} {problem}; leave that column as it is")
        read_keys.add(key)
        filled = not blank(row[task.data.target])
        if filled and not blank(row[CANNOT]):
            raise DataError(
                f"{location}: the row has a label and a reason why it cannot have one; leave one of the two"
            )
        if filled:
            labels[key] = target_of(task, row, location, None, task.data.target)
        elif not blank(row[CANNOT]):
            skipped.add(key)
    missing = len(set(row_keys) - read_keys)
    if missing:
        raise DataError(
            f"{path}: {missing} rows that were asked for are gone; put them back, and write under {CANNOT} why where "
            "one cannot be labelled: rows that are left out unseen would make the estimate a biased one"
        )
    return Labelled(path, labels, frozenset(skipped), len(read_keys) - len(labels) - len(skipped))


@dataclass(frozen=True)
class SequentialVerdict(Resting):
    """An evaluation as confirmation asks for it, whose bounds hold at all looks together. shares: of the planned rows,
    at each look, the last of which is this one."""

    shares: tuple[float, ...]

    @property
    def estimate(self) -> float:
        return self.evaluation.estimate

    def bound(self, confidence: float, side: Side = "lower") -> float:
        """At the level that this look has of an error of 1 - confidence. Raises InsufficientGroups."""
        return self.evaluation.bound(1 - look_levels(1 - confidence, self.shares)[-1], side)


class SingleLook:
    """A verdict on rows that all have their labels: nothing is shared among looks."""

    def looked(self, evaluation: BoundedEstimate) -> BoundedEstimate:
        """The evaluation as confirmation takes it."""
        return evaluation

    def level(self, confidence: float) -> float:
        """What something beside the bar is to be shown at, where it may be taken for shown at this confidence."""
        return confidence


SINGLE_LOOK = SingleLook()


@dataclass(frozen=True)
class Looking(SingleLook):
    """The rows as far as they have labels, and what the verdict rests on. whole: all test rows that may come, which the
    ledger has from the first look on; first: whether test was closed so far, so that nominees are chosen."""

    data: TaskData
    record: LabelBudget
    whole: TestHandle
    first: bool

    def looked(self, evaluation: BoundedEstimate) -> BoundedEstimate:
        return SequentialVerdict(evaluation, self._shares)

    def level(self, confidence: float) -> float:
        return 1 - look_levels(1 - confidence, self._shares)[-1]

    def record_at(self, alpha: float, opened: bool) -> LabelBudget:
        """The record with the level of each look, of the error that this verdict may spend. opened: whether test was,
        which a rung that had no time may postpone."""
        levels = look_levels(alpha, self._shares)
        looks = [
            look.model_copy(update={"level": level}) for look, level in zip(self.record.looks, levels, strict=True)
        ]
        summary, sentence = self.record.said, look_sentence(self.record.looks, self.record.planned)
        postponed = f"Test stayed closed, so that look {len(looks)} is still to come."
        summary = summary if opened else summary.replace(sentence, postponed)
        return self.record.model_copy(update={"looks": tuple(looks), "said": summary})

    @property
    def _shares(self) -> tuple[float, ...]:
        return tuple(look.share for look in self.record.looks)


def rows_of(
    task: Task, looking: Looking | None, assigned: Assigned | None, memory_rows: Mapping[str, SourceRows]
) -> TaskData:
    """A task's rows, once it has said which of them belong together. memory_rows: those that are in memory, by
    prefix."""
    sources = memory_rows or sources_of(task)
    grouping = grouping_of(task, sources)
    data = load_examples(task, assigned, sources) if looking is None else looking.data
    return replace(data, grouping=grouping)
