"""Labels bought one file at a time, as a person would: asked for, filled in, looked at, until there is a verdict."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests.adaptation.labels.conftest import Fill
from tests.adaptation.test_gate import evaluation, rate
from tests.adaptation.test_monitor import run_cli

from bedplate.adaptation.context.outcome import no_time
from bedplate.adaptation.label_budget import LabelStep, adapt_with_labels
from bedplate.adaptation.labels.label_plan import (
    LOOKS,
    Looking,
    SequentialVerdict,
    can_be_judged,
    least_sure,
    look_at,
    next_rows,
    planned,
)
from bedplate.adaptation.rungs import RUNGS as LADDER
from bedplate.adaptation.task.task_file import load_adapt_task
from bedplate.adaptation.verdict import gate
from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import bedplate_home, read_jsonl
from bedplate.core.statistics.multiplicity import look_levels, spent_alpha
from bedplate.evaluation.pool import load_pool
from bedplate.evaluation.task import load_task
from bedplate.report.schema_parts import LabelBudget, Look

RUNGS = ["majority", "from_scratch"]


def until(task: Path, out: Path, fill: Fill, budget: int) -> tuple[list[LabelStep], list[int]]:
    """Every step, and how many rows were filled in after each."""
    steps, filled = [adapt_with_labels(task, out, budget, rungs=RUNGS)], list[int]()
    while (path := steps[-1].file) is not None:
        filled.append(fill(path))
        steps.append(adapt_with_labels(task, out, budget, rungs=RUNGS))
    return steps, filled


def test_labels_are_asked_for_until_there_is_a_verdict(unlabelled: tuple[Path, Fill], tmp_path: Path) -> None:
    task, fill = unlabelled
    steps, filled = until(task, tmp_path / "out", fill, 240)
    assert [step.report is None for step in steps[:2]] == [True, True]
    report = steps[-1].report
    assert report is not None
    assert report.verdict["status"] == "PASS"  # a word gives the label away, and the bar is 0.75
    labels = report.data["labels"]
    assert sum(labels["bought"].values()) == sum(filled) < 240
    assert (labels["bought"]["train"], labels["bought"]["valid"]) == (120, 60)
    assert labels["looks"][-1]["labels"] == labels["bought"]["test"] == len(report.data["rows"]["test"]["from_scratch"])
    assert f"{sum(filled)} labels were bought" in labels["said"]
    assert "all rows would have taken 320" in labels["said"]
    assert labels["said"] in (tmp_path / "out" / "report.html").read_text()
    (confirmation,) = report.data["nominees"]["confirmations"]
    alpha = spent_alpha(0.1, 1)
    level = look_levels(alpha, [look["share"] for look in labels["looks"]])[-1]
    right = sum(row["score"] for row in report.data["rows"]["test"]["from_scratch"])
    n = labels["looks"][-1]["labels"]
    assert labels["looks"][-1]["level"] == pytest.approx(level)
    assert confirmation["lower"] == pytest.approx(stats.beta.ppf(level, right, n - right + 1))
    entries = read_jsonl(bedplate_home() / "ledger" / "test-openings.jsonl")
    assert [opening["number"] for opening in entries] == [1]  # however many looks were taken
    assert adapt_with_labels(task, tmp_path / "out", 240, rungs=RUNGS).report is not None  # and again, the same


@pytest.mark.slow  # five looks, each a ladder's end
def test_a_bar_that_is_not_reached_spends_the_budget_and_says_so(unlabelled: tuple[Path, Fill], tmp_path: Path) -> None:
    task, fill = unlabelled
    out = tmp_path / "out"
    overrides = ["adapt.target.value=0.95", "adapt.target.confidence=0.99", "adapt.usd_per_label=0.05"]
    step = adapt_with_labels(task, out, 100, rungs=RUNGS, overrides=overrides)
    nominations: list[list[str]] = []
    while step.file is not None:
        fill(step.file)
        step = adapt_with_labels(task, out, 100, rungs=RUNGS, overrides=overrides)
        if step.report is not None:
            nominations.append(json.loads((out / "nomination.json").read_text())["nominees"])
    assert step.report is not None
    assert step.status == "INSUFFICIENT_DATA"
    labels = step.report.data["labels"]
    assert sum(labels["bought"].values()) == 100
    assert [look["share"] for look in labels["looks"]] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert "the budget is spent" in step.messages[-1]
    assert "They cost $5.00; the budget $5.00, all rows $16.00." in labels["said"]
    assert len(nominations) == LOOKS
    assert all(names == nominations[0] for names in nominations)
    # labels that a look was judged by stay what they were
    first = out / "labels" / "round-2.csv"
    first.write_text(
        first.read_text().replace("positive", "NOW").replace("negative", "positive").replace("NOW", "negative")
    )
    with pytest.raises(DataError, match="changed since look 1"):
        adapt_with_labels(task, out, 100, rungs=RUNGS, overrides=overrides)


def test_the_command_names_the_file_and_exits_as_without_a_verdict(
    unlabelled: tuple[Path, Fill], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, fill = unlabelled
    out = tmp_path / "out"
    words = ("adapt", task, "--out", out, "--label-budget", "240", "--rungs", ",".join(RUNGS))
    path = out / "labels" / "round-1.csv"
    code, printed, _ = run_cli(capsys, *words)
    assert (code, str(path) in printed) == (4, True)
    code, printed, _ = run_cli(capsys, *words)
    assert (code, "have no label yet" in printed) == (4, True)
    fill(path)
    code, printed, _ = run_cli(capsys, *words, "--json")
    assert code == 4
    waiting = json.loads(printed)
    assert (waiting["verdict"], waiting["file"]) == (None, str(out / "labels" / "round-2.csv"))
    fill(out / "labels" / "round-2.csv")
    code, printed, _ = run_cli(capsys, *words)
    assert (code in (0, 4), "labels were bought" in printed) == (True, True)
    assert run_cli(capsys, *words, "--curve", "10,20")[0] == 2


def test_where_test_stays_closed_no_look_at_it_is_told(
    unlabelled: tuple[Path, Fill], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, fill = unlabelled
    monkeypatch.setattr(type(LADDER["probe"]), "plan", lambda self, context: no_time(1e3))

    def step() -> LabelStep:
        return adapt_with_labels(task, tmp_path / "out", 240, rungs=[*RUNGS, "probe"], budget=120)

    while (path := (last := step()).file) is not None:
        fill(path)
    assert last.report is not None
    assert last.status == "OUT_OF_BUDGET"
    assert last.report.data["ledger"] is None
    said = last.report.data["labels"]["said"]
    assert "Test stayed closed, so that look 1 is still to come." in said
    assert "This is look" not in said
    assert last.messages == ()


def rewritten(path: Path, change: object) -> None:
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    table = change(table)  # pyright: ignore[reportCallIssue, reportUnknownVariableType]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))  # pyright: ignore[reportUnknownArgumentType]
        writer.writeheader()
        writer.writerows(table)  # pyright: ignore[reportUnknownArgumentType]


def test_files_that_were_filled_in_wrongly_are_refused_with_their_place(
    unlabelled: tuple[Path, Fill], tmp_path: Path
) -> None:
    task, fill = unlabelled
    out = tmp_path / "out"
    step = adapt_with_labels(task, out, 240, rungs=RUNGS)
    assert step.file is not None
    fill(step.file)
    whole = step.file.read_text()
    cases = {
        "are gone": lambda rows: rows[1:],
        "stands twice": lambda rows: [*rows, rows[0]],
        "none that was asked": lambda rows: [{**rows[0], "row_key": "ab" * 32}, *rows[1:]],
        "one of the task's labels": lambda rows: [{**rows[0], "label": "maybe"}, *rows[1:]],
        "leave one of the two": lambda rows: [{**rows[0], "cannot_label": "unclear"}, *rows[1:]],
    }
    for message, change in cases.items():
        rewritten(step.file, change)
        with pytest.raises(DataError, match=message):
            adapt_with_labels(task, out, 240, rungs=RUNGS)
        step.file.write_text(whole)
    with pytest.raises(UsageError, match="has a budget of 240"):
        adapt_with_labels(task, out, 300, rungs=RUNGS)
    rewritten(step.file, lambda rows: [{**rows[0], "label": "", "cannot_label": "unreadable"}, *rows[1:]])
    second = adapt_with_labels(task, out, 240, rungs=RUNGS)
    assert second.file is not None  # goes on, and asks for another in its place
    with (tmp_path / "task" / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"id": "new", "text": "one more", "label": None, "group": "new"}) + "\n")
    with pytest.raises(DataError, match="no longer those"):
        adapt_with_labels(task, out, 240, rungs=RUNGS)


def test_the_budget_is_given_out_before_anything_is_asked(unlabelled: tuple[Path, Fill]) -> None:
    pool = load_pool(load_task(unlabelled[0]))
    plan = planned(pool, 240)
    assert (plan.train, plan.valid, plan.test) == (120, 60, 60)
    none = dict.fromkeys(pool.parts, 0)
    rows, chosen = next_rows(plan, pool, none)
    splits = [pool.splits[row.row_hash] for row in rows]
    assert (splits.count("train"), splits.count("valid"), splits.count("test")) == (60, 60, 0)
    assert chosen == "at random"
    requested_plan = plan.model_copy(update={"asked": (tuple(row.row_hash for row in rows),)})
    labeled_pool = pool.labelled({row.row_hash: "positive" for row in rows})
    second, chosen = next_rows(requested_plan, labeled_pool, {"train": 60, "valid": 60, "test": 0})
    splits = [pool.splits[row.row_hash] for row in second]
    assert (splits.count("train"), splits.count("valid"), splits.count("test")) == (60, 0, 12)
    assert "1 labels have fewer than 2 rows" in chosen  # no negative one has come in
    first = [row.row_hash for row in pool.parts["test"][:12]]
    assert {row.row_hash for row in second if pool.splits[row.row_hash] == "test"} == set(first)
    with pytest.raises(UsageError, match="leaves 2 for valid"):
        planned(pool, 10)
    with pytest.raises(UsageError, match="every row has a label"):
        planned(pool.labelled(dict.fromkeys(pool.splits, "positive")), 240)


def test_train_rows_are_those_that_a_first_model_doubts(unlabelled: tuple[Path, Fill]) -> None:
    pool = load_pool(load_task(unlabelled[0]))
    labels = {
        row.row_hash: "positive"
        if any(word in row.texts["review"] for word in ("great", "works", "well"))
        else "negative"
        for row in pool.parts["train"][:40]
    }
    labeled_pool = pool.labelled(labels)
    labeled = [row for row in labeled_pool.parts["train"] if row.target]
    waiting = [row for row in labeled_pool.parts["train"] if not row.target]
    odd = next(iter(waiting))
    strange = type(odd)(odd.id, {"review": "nothing of the kind"}, "", odd.group, odd.row_hash)
    chosen, how = least_sure(pool.task, labeled, [*waiting[1:], strange], 5)
    assert strange in chosen  # whose words were never seen
    assert "fitted on 40 rows" in how


def test_a_look_is_taken_once_and_the_last_one_has_the_whole_share(unlabelled: tuple[Path, Fill]) -> None:
    pool = load_pool(load_task(unlabelled[0]))
    plan = planned(pool, 240)
    part = pool.parts["test"]
    partial_pool = pool.labelled({row.row_hash: "positive" for row in part[:12]})
    looked, whole = look_at(plan, partial_pool, {"train": 120, "valid": 60, "test": 12})
    assert (whole, looked.looks[0].labels, looked.looks[0].share) == (60, 12, 0.2)
    assert look_at(looked, partial_pool, {"train": 120, "valid": 60, "test": 12})[0] == looked
    full_pool = pool.labelled({row.row_hash: "positive" for row in part[:60]})
    assert look_at(looked, full_pool, {"train": 120, "valid": 60, "test": 60})[0].looks[1].share == 1.0


def test_a_first_look_has_as_many_rows_as_there_are_labels(unlabelled: tuple[Path, Fill], tmp_path: Path) -> None:
    """A fifth of five labels is one row, which is no test split of two labels."""
    task, fill = unlabelled
    steps, _ = until(task, tmp_path / "out", fill, 20)
    reports = [step.report for step in steps if step.report is not None]
    assert [look["labels"] for look in reports[0].data["labels"]["looks"]] == [2]


def test_rows_are_judged_once_every_value_that_has_a_share_is_among_them(
    unlabelled: tuple[Path, Fill], tmp_path: Path
) -> None:
    rows = tmp_path / "task" / "rows.jsonl"
    original_rows = [json.loads(line) for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps({**row, "language": "en"}) + "\n" for row in original_rows))
    task = load_task(unlabelled[0], ["data.traffic.shares={language: {en: 0.9, fr: 0.1}}"])
    pool = load_pool(task)
    labels = {row.row_hash: "positive" for row in pool.parts["test"][:12]}
    assert not can_be_judged(pool.labelled(labels))
    third = pool.parts["test"][2].id
    changed = [{**row, "language": "fr" if row["id"] == third else "en"} for row in original_rows]
    rows.write_text("".join(json.dumps(row) + "\n" for row in changed))
    pool = load_pool(task)
    assert can_be_judged(pool.labelled(labels))
    assert not can_be_judged(pool.labelled(dict(list(labels.items())[:2])))


def test_a_label_that_comes_after_the_last_look_is_not_judged(unlabelled: tuple[Path, Fill]) -> None:
    pool = load_pool(load_task(unlabelled[0]))
    plan, part = planned(pool, 240), pool.parts["test"]
    labels = {row.row_hash: "positive" for row in part[:60]}
    last, whole = look_at(plan, pool.labelled(labels), {"train": 120, "valid": 60, "test": 60})
    assert (whole, last.looks[-1].share) == (60, 1.0)
    labels[part[60].row_hash] = "positive"  # it could not be labelled at first
    with pytest.raises(DataError, match="look 1 was the last"):
        look_at(last, pool.labelled(labels), {"train": 120, "valid": 60, "test": 61})
    assert look_at(plan, pool.labelled(labels), {"train": 120, "valid": 60, "test": 61})[1] == 61


def test_a_look_s_level_is_of_the_error_that_the_verdict_may_spend(unlabelled: tuple[Path, Fill]) -> None:
    pool = load_pool(load_task(unlabelled[0]))
    looks = tuple(Look(labels=n, share=n / 60, level=0.0, rows="0" * 64) for n in (12, 24))
    none: dict[str, int] = {}
    record = LabelBudget(
        budget=240, bought=none, given=none, unlabelled=none, skipped=0, planned=60, looks=looks, chosen="", said=""
    )
    data: Any = None
    for number in (1, 2):
        alpha = spent_alpha(0.1, number)
        adjusted = Looking(data, record, pool.test, first=True).record_at(alpha, opened=True)
        assert [look.level for look in adjusted.looks] == list(look_levels(alpha, (0.2, 0.4)))


def test_labels_are_not_written_over_where_the_plan_is_gone(unlabelled: tuple[Path, Fill], tmp_path: Path) -> None:
    task, fill = unlabelled
    step = adapt_with_labels(task, tmp_path / "out", 240, rungs=RUNGS)
    assert step.file is not None
    (step.file.parent / "plan.json").unlink()
    assert adapt_with_labels(task, tmp_path / "out", 240, rungs=RUNGS).file == step.file  # nobody has filled it in
    fill(step.file)
    (step.file.parent / "plan.json").unlink()
    filled = step.file.read_bytes()
    with pytest.raises(DataError, match="labels in it would be lost"):
        adapt_with_labels(task, tmp_path / "out", 240, rungs=RUNGS)
    assert step.file.read_bytes() == filled


def test_bounds_of_all_looks_hold_together_for_several_nominees() -> None:
    """Three nominees at the bar, five looks, Holm at each: how often any passes at any look."""
    rng = np.random.default_rng(0)
    runs, n, bar = 120, 150, 0.8
    ends = [30, 60, 90, 120, 150]
    right = np.sqrt(0.6) * rng.standard_normal((runs, 1, n)) + np.sqrt(0.4) * rng.standard_normal((runs, 3, n))
    passed = 0
    for outcomes in right < stats.norm.ppf(bar):
        for k, end in enumerate(ends):
            shares = tuple(e / n for e in ends[: k + 1])
            tested = [
                (str(c), SequentialVerdict(_Right(outcomes[c, :end].astype(float)), shares))  # pyright: ignore[reportArgumentType]
                for c in range(3)
            ]
            confirmations = gate.confirm(tested, dict(tested), target=bar, alpha=0.05)
            if any(confirmation.passed for confirmation in confirmations):
                passed += 1
                break
    assert 0 < passed / runs <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)


class _Right:
    """Right and wrong answers as an evaluation has them, bounded by the exact formula."""

    row_variance, design_effect = None, 1.0

    def __init__(self, scores: np.ndarray) -> None:
        self.n, self.estimate, self._right = len(scores), float(scores.mean()), int(scores.sum())

    def bound(self, confidence: float, side: str = "lower") -> float:
        low, high = stats.beta.ppf(
            [1 - confidence, confidence],
            [self._right, self._right + 1],
            [self.n - self._right + 1, self.n - self._right],
        )
        return float(np.nan_to_num(low if side == "lower" else high, nan=0.0 if side == "lower" else 1.0))


def test_an_evaluation_at_a_look_is_bounded_at_that_look_s_level() -> None:
    whole = evaluation(rate(90, 100))
    at = SequentialVerdict(whole, (0.2, 0.4))
    level = look_levels(0.05, (0.2, 0.4))[-1]
    assert level < 0.05
    assert at.bound(0.95) == pytest.approx(stats.beta.ppf(level, 90, 11))
    assert at.bound(0.95, "upper") == pytest.approx(stats.beta.ppf(1 - level, 91, 10))
    assert SequentialVerdict(whole, (1.0,)).bound(0.95) == pytest.approx(whole.bound(0.95))


@pytest.mark.parametrize("column", ["text", "id"])
def test_rows_may_be_grouped_by_a_column_that_the_file_has_anyway(
    unlabelled: tuple[Path, Fill], tmp_path: Path, column: str
) -> None:
    task, fill = unlabelled
    overrides = [f"data.group_by={column}"]
    step = adapt_with_labels(task, tmp_path / "out", 240, rungs=RUNGS, overrides=overrides)
    assert step.file is not None
    with step.file.open(newline="") as file:
        assert next(csv.reader(file)) == ["row_key", "id", "text", "label", "cannot_label"]
    fill(step.file)
    second = adapt_with_labels(task, tmp_path / "out", 240, rungs=RUNGS, overrides=overrides)
    assert second.file is not None
    assert second.file.name == "round-2.csv"


def test_where_nothing_is_left_to_ask_for_no_file_is_named(
    unlabelled: tuple[Path, Fill],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    none = LabelStep(None, None, ("No more labels are needed.",))
    monkeypatch.setattr("bedplate.adaptation.label_budget.adapt_with_labels", lambda *_, **__: none)
    code, printed, _ = run_cli(
        capsys, "adapt", unlabelled[0], "--out", tmp_path / "o", "--label-budget", "240", "--json"
    )
    assert (code, json.loads(printed)["file"]) == (4, None)


def test_the_task_file_has_the_price_of_a_label(unlabelled: tuple[Path, Fill]) -> None:
    assert load_adapt_task(unlabelled[0], ["adapt.usd_per_label=0.1"])[1].usd_per_label == 0.1
