"""`adapt` with a budget of labels: which rows to label next, and a verdict as soon as there is one.

Each call reads what was filled in, asks for more rows or looks at test, and ends. Test rows are drawn at random in an
order that is fixed before anything is labelled; the verdict's error is spent over the looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bedplate.adaptation.climb.start import LABELS, check_output
from bedplate.adaptation.climb.task_file import load_adapt_task
from bedplate.adaptation.labels.files import CANNOT, file_of, read_labels, write_rows
from bedplate.adaptation.labels.looking import Looking
from bedplate.adaptation.labels.plan import Plan, can_be_judged, look_at, next_rows, read_plan
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.task.spec import AdaptSpec
from bedplate.core.arguments import checked
from bedplate.core.files import file_lock
from bedplate.evaluation.leaks.answered import grouping_of, sources_of
from bedplate.evaluation.pool import Pool, load_pool
from bedplate.report.run_report import Report
from bedplate.report.schema_labels import LabelBudget


@dataclass(frozen=True)
class LabelStep:
    """What a call came to. report: the ladder's, once test rows had labels. file: what is to be filled in before the
    same call is made again; None where there is a verdict, or nothing more to buy. says: why, as sentences."""

    report: Report | None
    file: Path | None
    says: tuple[str, ...]

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
    budget: float | None = None,
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
        plan = read_plan(directory, pool, label_budget)
        files = [
            read_labels(file_of(directory, number), task, asked) for number, asked in enumerate(plan.asked, start=1)
        ]
        unfinished = next((one for one in files if one.empty), None)
        if unfinished is not None:
            wait = f"{unfinished.empty} rows of {unfinished.path} have no label yet: fill in {task.data.target!r}"
            return LabelStep(None, unfinished.path, (f"{wait}, and give the same command again.",))
        labels = {key: label for one in files for key, label in one.labels.items()}
        skipped = frozenset[str]().union(*(one.skipped for one in files))
        now, splits = pool.labelled(labels, skipped), pool.splits
        bought = dict.fromkeys(pool.parts, 0) | Counter(splits[key] for key in labels)
        if len(files) < plan.learning or not can_be_judged(now):
            step = _ask(plan, now, bought, directory, None)
            if step.file is not None or not now.drawn("test"):
                return step
        data = now.data()  # refuses what cannot be judged before a look is taken
        plan, whole = look_at(plan, now, bought)
        plan.write(directory)  # before anything is seen
        record = _record(plan, spec, pool, now, bought, len(skipped), whole)
        looking = Looking(data, record, pool.test, len(plan.looks) == 1)
        report = adapt(
            task_path,
            out,
            rungs=rungs,
            budget=budget,
            seed=seed,
            overrides=overrides,
            exhaustive=exhaustive,
            looking=looking,
        )
        if report.verdict["status"] != "INSUFFICIENT_DATA":
            return LabelStep(report, None, (looking.record.said,))
        return _ask(plan, now, bought, directory, report, looking.record.said)


def _ask(
    plan: Plan, now: Pool, bought: Mapping[str, int], directory: Path, report: Report | None, *said: str
) -> LabelStep:
    """The next file, or that there is none."""
    rows, chosen = next_rows(plan, now, bought)
    if not rows:
        spent = sum(bought.values()) >= plan.budget
        why = "the budget is spent" if spent else "no row that the budget reaches is without a label"
        return LabelStep(report, None, (*said, f"No more labels are asked for: {why}."))
    path = file_of(directory, len(plan.asked) + 1)
    write_rows(path, now.task, rows)
    asked = (*plan.asked, tuple(one.row_hash for one in rows))
    plan.model_copy(update={"asked": asked, "chosen": chosen}).write(directory)
    text = (
        f"{len(rows)} rows to label are in {path}: fill in {now.task.data.target!r} (or say under {CANNOT} why not), "
        "and give the same command again."
    )
    return LabelStep(report, path, (*said, text))


def _record(
    plan: Plan,
    spec: AdaptSpec,
    pool: Pool,
    now: Pool,
    bought: Mapping[str, int],
    skipped: int,
    whole: int,
) -> LabelBudget:
    given = {name: sum(bool(one.target) for one in part) for name, part in pool.parts.items()}
    unlabelled = {name: sum(not one.target for one in part) for name, part in now.parts.items()}
    count, every = sum(bought.values()), sum(bought.values()) + sum(unlabelled.values()) + skipped
    parts = ", ".join(f"{number} {name}" for name, number in bought.items())
    said = (
        f"{count} labels were bought ({parts}) of a budget of {plan.budget}; all rows would have taken {every:,}. This "
        f"is look {len(plan.looks)} at test, with {plan.looks[-1].labels} of {whole} rows at most."
    )
    if spec.usd_per_label is not None:
        each = spec.usd_per_label
        said += (
            f" They cost ${count * each:,.2f}; the budget ${plan.budget * each:,.2f}, all rows ${every * each:,.2f}."
        )
    if skipped:
        said += f" {skipped} rows could not be labelled: nothing is said of such."
    return LabelBudget(
        budget=plan.budget,
        bought=dict(bought),
        given=given,
        unlabelled=unlabelled,
        skipped=skipped,
        planned=whole,
        looks=plan.looks,
        chosen=plan.chosen,
        usd_per_label=spec.usd_per_label,
        said=said,
    )
