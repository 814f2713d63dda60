"""How a budget of labels is spent: fixed before the first is asked for, and written down with every file and look.

Two files come before any base is adapted: half of train's labels with all of valid's, then train's other half and a
first part of test's. Every file after these has test rows only, so that nominees stay what they were when test was
opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pydantic

from bedplate.core.config import Strict
from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import atomic_write, read_text
from bedplate.data.splits import SplitRecord, split_hash
from bedplate.evaluation.examples import Example
from bedplate.evaluation.pool import LabelPool
from bedplate.evaluation.task import Task
from bedplate.report.schema_parts import Count, Look, Sha256
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
    return len(drawn) >= max(1, len(labeled_pool.task.labels)) and all(
        values >= set(value_shares) for value_shares in traffic.shares.values()
    )


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
    return split_hash(
        [SplitRecord(example.id, example.row_hash, example.target, example.group) for example in examples]
    )


STRENGTH = 10.0
"""C of the regression; of a few dozen labels there is nothing to choose it by."""
LEAST_OF_EACH = 2


def least_sure(
    task: Task, labeled: Sequence[Example], waiting: Sequence[Example], count: int
) -> tuple[list[Example], str]:
    """At most `count` of the waiting rows, which come in a random order, and how they were chosen."""
    targets = [example.target for example in labeled]
    rare = sum(targets.count(label) < LEAST_OF_EACH for label in task.labels)
    if not task.labels or rare or len(waiting) <= count:
        why = "there are no more" if len(waiting) <= count else "rows do not have one label each of a few"
        if task.labels and rare and len(waiting) > count:
            why = f"{rare} labels have fewer than {LEAST_OF_EACH} rows so far"
        return list(waiting[:count]), f"at random: {why}"
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    fields = list(task.inputs)
    terms = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=f"(?u){WORD}")
    with threadpool_limits(1):
        x = terms.fit_transform([text_of(example.inputs, fields) for example in labeled])
        model = LogisticRegression(C=STRENGTH, max_iter=2000).fit(x, targets)
        sure = model.predict_proba(terms.transform([text_of(example.inputs, fields) for example in waiting])).max(
            axis=1
        )
    order = np.argsort(sure, kind="stable")[:count]  # rows alike keep their random order
    how = f"the half that came last by the least sure labels of a bag of words fitted on {len(labeled)} rows"
    return [waiting[i] for i in order.tolist()], how
