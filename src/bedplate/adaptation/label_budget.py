"""`adapt` with a budget of labels: which rows to label next, and a verdict as soon as there is one.

Each call reads what was filled in, asks for more rows or looks at test, and ends. Test rows are drawn at random in an
order that is fixed before anything is labelled; the verdict's error is spent over the looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate.adaptation.labels import label_plan
from bedplate.adaptation.labels.label_plan import Looking
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.search.start import LABELS, check_output
from bedplate.adaptation.task.task_file import load_adapt_task
from bedplate.core.arguments import checked
from bedplate.core.files import file_lock
from bedplate.evaluation.examples import sources_of
from bedplate.evaluation.leaks.hidden_groups import grouping_of
from bedplate.evaluation.pool import LabelPool, load_pool
from bedplate.report.run_report import Report
from bedplate.report.schema_parts import LabelBudget


@dataclass(frozen=True)
class LabelStep:
    """What a call came to. report: the ladder's, once test rows had labels. file: what is to be filled in before the
    same call is made again; None where there is a verdict, or nothing more to buy. messages: why, as sentences."""

    report: Report | None
    file: Path | None
    messages: tuple[str, ...]

    @property
    def status(self) -> str:
        """The verdict; INSUFFICIENT_DATA as long as there is none."""
        return "INSUFFICIENT_DATA" if self.report is None else self.report.verdict["status"]


@checked
def adapt_with_labels(
    task_path: Path | str,
    out: Path | str,
    label_budget: int,
    *,
    rungs: Sequence[str] | None = None,
    budget: float | str | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    exhaustive: bool = False,
) -> LabelStep:
    """One step of adapting a base to a task whose rows have no labels yet, or some of them: ask for labels, or judge.

    label_budget: labels that may be bought in all, given out to train, valid and test by `data.split`. Further
    arguments are those of `adapt`. Fill in the file that is named and make the same call again, until none is.

    Raises what `adapt` raises; DataError for a file that was not filled in as it should be, or whose labels were
    changed after they were judged by; UsageError for a budget that does not reach, or another than the run began with.
    """
    out = Path(out)
    task, spec = load_adapt_task(task_path, overrides, rungs)
    check_output(out)
    pool, directory = load_pool(task), out / LABELS
    with file_lock(directory / ".lock"):
        grouping_of(task, sources_of(task))  # before anybody labels rows that would be split as they may not be
        plan = label_plan.read_plan(directory, pool, label_budget)
        paths = [label_plan.file_of(directory, number + 1) for number in range(len(plan.asked))]
        files = [label_plan.read_labels(path, task, keys) for path, keys in zip(paths, plan.asked, strict=True)]
        unfinished = next((label_file for label_file in files if label_file.empty), None)
        if unfinished is not None:
            wait = f"{unfinished.empty} rows of {unfinished.path} have no label yet: fill in {task.data.target!r}"
            return LabelStep(None, unfinished.path, (f"{wait}, and give the same command again.",))
        labels = {key: label for label_file in files for key, label in label_file.labels.items()}
        skipped = frozenset[str]().union(*(label_file.skipped for label_file in files))
        labeled_pool, splits = pool.labelled(labels, skipped), pool.splits
        bought = dict.fromkeys(pool.parts, 0) | Counter(splits[key] for key in labels)
        if len(files) < plan.learning or not label_plan.can_be_judged(labeled_pool):
            step = _next_step(plan, labeled_pool, bought, directory, None)
            if step.file is not None or not labeled_pool.drawn("test"):
                return step
        data = labeled_pool.data()  # refuses what cannot be judged before a look is taken
        plan, whole = label_plan.look_at(plan, labeled_pool, bought)
        plan.write(directory)  # before anything is seen
        record = _record(plan, spec.usd_per_label, pool, labeled_pool, bought, len(skipped), whole)
        looking = Looking(data, record, pool.test, len(plan.looks) == 1)
        limits: dict[str, Any] = {"budget": budget, "exhaustive": exhaustive}
        report = adapt(task_path, out, rungs=rungs, seed=seed, overrides=overrides, **limits, looking=looking)
        if report.verdict["status"] != "INSUFFICIENT_DATA":
            looked = report.data["ledger"] is not None  # else test stayed closed, and the record tells of no look
            return LabelStep(report, None, (looking.record.said,) if looked else ())
        return _next_step(plan, labeled_pool, bought, directory, report, looking.record.said)


def _next_step(
    plan: label_plan.LabelPlan,
    labeled_pool: LabelPool,
    bought: Mapping[str, int],
    directory: Path,
    report: Report | None,
    *messages: str,
) -> LabelStep:
    """The next file, or that there is none."""
    rows, chosen = label_plan.next_rows(plan, labeled_pool, bought)
    if not rows:
        spent = sum(bought.values()) >= plan.budget
        why = "the budget is spent" if spent else "every row that the budget covers has a label"
        return LabelStep(report, None, (*messages, f"No more labels are needed: {why}."))
    path = label_plan.file_of(directory, len(plan.asked) + 1)
    label_plan.write_rows(path, labeled_pool.task, rows)
    requested = (*plan.asked, tuple(row.row_hash for row in rows))
    plan.model_copy(update={"asked": requested, "chosen": chosen}).write(directory)
    text = (
        f"{len(rows)} rows to label are in {path}: fill in {labeled_pool.task.data.target!r} (or say under "
        f"{label_plan.CANNOT} why not), and give the same command again."
    )
    return LabelStep(report, path, (*messages, text))


def _record(
    plan: label_plan.LabelPlan,
    price: float | None,
    pool: LabelPool,
    labeled_pool: LabelPool,
    bought: Mapping[str, int],
    skipped: int,
    whole: int,
) -> LabelBudget:
    prelabeled = {name: sum(bool(example.target) for example in part) for name, part in pool.parts.items()}
    unlabelled = {name: sum(not example.target for example in part) for name, part in labeled_pool.parts.items()}
    count, all_rows = sum(bought.values()), sum(bought.values()) + sum(unlabelled.values()) + skipped
    parts = ", ".join(f"{number} {name}" for name, number in bought.items())
    summary = (
        f"{count} labels were bought ({parts}) of a budget of {plan.budget}; all rows would have taken {all_rows:,}. "
        f"{label_plan.look_sentence(plan.looks, whole)}"
    )
    if price is not None:
        cost, most, of_all = (f"${number * price:,.2f}" for number in (count, plan.budget, all_rows))
        summary += f" They cost {cost}; the budget {most}, all rows {of_all}."
    if skipped:
        summary += f" {skipped} rows could not be labelled: the verdict does not cover such rows."
    return LabelBudget(
        budget=plan.budget,
        bought=dict(bought),
        given=prelabeled,
        unlabelled=unlabelled,
        skipped=skipped,
        planned=whole,
        looks=plan.looks,
        chosen=plan.chosen,
        usd_per_label=price,
        said=summary,
    )
