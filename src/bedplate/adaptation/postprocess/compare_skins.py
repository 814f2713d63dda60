"""Two skins on the same rows, which neither was made from: a paired comparison, what a call takes, what it costs.

Rows of either skin's train, valid and test splits are left out, whether its test was opened or not. What the test
ledger knows of the others makes the comparison EXPLORATORY, and each further one on the same rows spends less error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.context import LATENCY_CALLS
from bedplate.adaptation.context.outcome import Latency, latency
from bedplate.adaptation.postprocess.origin import Origin, origin_of
from bedplate.adaptation.rungs.answers import predict_examples, single_calls
from bedplate.adaptation.task.spec import MachineSpec
from bedplate.core import display
from bedplate.core.arguments import checked
from bedplate.core.errors import DataError, UnknownDataError, UsageError
from bedplate.core.files import sha256_json
from bedplate.core.statistics.multiplicity import spent_alpha
from bedplate.data.splits import SplitRecord, split_hash
from bedplate.economics.numbers.money import figures
from bedplate.evaluation import evaluated
from bedplate.evaluation.evaluated import PairedComparison
from bedplate.evaluation.examples import SPLITS, Example
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.in_memory import fresh_rows
from bedplate.evaluation.ledger import Opening, keys_of, ledger_for
from bedplate.evaluation.metrics import METRICS
from bedplate.evaluation.task import Task, load_task
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.predictor import Prediction


@dataclass(frozen=True)
class ComparedSkin:
    """One of the two, by its name, or by its directory where both have one name. latency: of single calls;
    usd_per_1k_calls: None where the price of the machine is not known."""

    name: str
    id: str
    directory: str
    evaluation: Evaluation
    latency: Latency
    too_long: int
    usd_per_1k_calls: float | None


@dataclass(frozen=True, repr=False)
class SideBySide:
    """Every comparison is a minus b. comparison: by the task's metric, which the verdict is by, at the confidence that
    is left for these rows; others: by further metrics of such outputs, for orientation only. left_out: rows that a
    skin had, by its directory and their split. verdict: "a", "b" (is better) or "undecided"."""

    a: ComparedSkin
    b: ComparedSkin
    verdict: str
    sentence: str
    exploratory: bool
    number: int
    comparison: PairedComparison
    others: tuple[PairedComparison, ...]
    left_out: dict[str, dict[str, int]]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return display.line("comparison", self.sentence)

    def to_json(self) -> dict[str, Any]:
        """Plain values, both evaluations with their rows."""
        return asdict(self)


@checked
def compare(
    a: Path | str,
    b: Path | str,
    rows: Any,
    *,
    task_file: Path | str | None = None,
    usd_per_hour: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> SideBySide:
    """Compare two skins, by their directories, on new rows with targets: a file of them, or a table. task_file: by
    default that of the run which made a. usd_per_hour: what the machine costs; by default what the task file says.

    The rows are recorded in the test ledger before they are asked. Raises UsageError for skins that answer different
    things, DataError for rows without targets or that one of the skins had, all of them.
    """
    first_origin = origin_of(a, None if task_file is None else load_task(task_file))
    task = first_origin.task
    origins = (first_origin, origin_of(b, task))
    if first_origin.id == origins[1].id:
        raise UsageError(f"{a} and {b} are the same skin ({first_origin.id[:12]}); give two")
    if task.output.form.as_embedding is not None:
        raise UsageError(f"{a} returns vectors; only skins that return answers can be compared")
    task.scorer.ready()
    fresh = fresh_rows(task, rows)
    if not fresh.labelled:
        raise UnknownDataError(f"{fresh.source} has no column {task.data.target!r} with the right answers; add it")
    notes = [*fresh.notes]
    for origin in origins:
        notes += [f"{note}: some of these rows may be among them" for note in origin.notes]
    examples, left_out = _unseen(fresh.examples, origins, notes)
    if not examples:
        raise DataError(
            f"every row of {fresh.source} is in the data of {origins[0].skin.name} or {origins[1].skin.name}; give "
            "fresh rows"
        )
    opening = _opened(task, rows, examples, origins)
    notes += opening.notes
    if usd_per_hour is None and task.adapt is not None and "machine" in task.adapt:
        usd_per_hour = MachineSpec.model_validate(task.adapt["machine"]).usd_per_hour
    predictions: list[Sequence[Prediction | None]] = []
    sides: list[ComparedSkin] = []
    for origin, name in zip(origins, _names(origins), strict=True):
        answered, side = _side(origin, name, task, examples, usd_per_hour, seed)
        predictions.append(answered)
        sides.append(side)
    level = 1 - spent_alpha(1 - confidence, opening.number)
    comparison = evaluated.compare(sides[0].evaluation, sides[1].evaluation, seed, level)
    secondary_comparisons: list[PairedComparison] = []
    for variant_task in _by_other_metrics(task):
        first, second = (evaluate_predictions(variant_task, examples, p, split="new", seed=seed) for p in predictions)
        secondary_comparisons.append(evaluated.compare(first, second, seed))
    verdict, sentence = _verdict(sides[0], sides[1], comparison, opening)
    comparisons = comparison, tuple(secondary_comparisons)
    exploratory, number = opening.exploratory, opening.number
    return SideBySide(sides[0], sides[1], verdict, sentence, exploratory, number, *comparisons, left_out, tuple(notes))


def _unseen(
    examples: Sequence[Example], origins: Sequence[Origin], notes: list[str]
) -> tuple[list[Example], dict[str, dict[str, int]]]:
    """The rows that neither skin had in any split, and how many each had in which."""
    left_out: dict[str, dict[str, int]] = {}
    memberships = [origin.had(examples) for origin in origins]
    for origin, name, mine in zip(origins, _names(origins), memberships, strict=True):
        had = Counter(mine)
        if any(mine):
            left_out[str(origin.directory)] = {split: had[split] for split in SPLITS if had[split]}
            counts = ", ".join(f"{had[split]} of its {split}" for split in SPLITS if had[split])
            notes.append(f"left out: rows that {name} was made from or judged by ({counts} split)")
    return [e for e, *splits in zip(examples, *memberships, strict=True) if not any(splits)], left_out


def _opened(task: Task, source: Any, examples: Sequence[Example], origins: Sequence[Origin]) -> Opening:
    rows = split_hash([SplitRecord(e.id, e.row_hash, e.target, e.group) for e in examples])
    question = {"compare": sorted(origin.id for origin in origins), "task": task.hash, "rows": rows}
    reason = f"compare {origins[0].skin.name} with {origins[1].skin.name}"
    keys = keys_of((e.id, e.inputs) for e in examples)
    files = [source] if isinstance(source, str | Path) else []
    return ledger_for(None, *files).open(sha256_json(question), keys, task=task.task, reason=reason)


def _names(origins: Sequence[Origin]) -> list[str]:
    """What they are called: by their directories where both have one name."""
    names = [origin.skin.name for origin in origins]
    return names if names[0] != names[1] else [str(origin.directory) for origin in origins]


def _side(
    origin: Origin, name: str, task: Task, examples: Sequence[Example], usd_per_hour: float | None, seed: int
) -> tuple[list[Prediction | None], ComparedSkin]:
    predictor = load(origin.directory)
    assert not isinstance(predictor, LocalModel)
    with closing(predictor):
        predictions = predict_examples(predictor, examples)
        calls = single_calls(predictor, examples[:LATENCY_CALLS])  # they stand in the order of their hashes
    if not calls:
        raise DataError(f"every row is too long for {origin.skin.name}")
    timing = latency([call.seconds for call in calls])
    charged = sum(call.usd or 0.0 for call in calls) / len(calls)
    usd = None if usd_per_hour is None else 1000 * (timing.mean * usd_per_hour / 3600 + charged)
    evaluation = evaluate_predictions(task, examples, predictions, split="new", seed=seed)
    too_long = sum(p is None for p in predictions)
    return predictions, ComparedSkin(name, origin.id, str(origin.directory), evaluation, timing, too_long, usd)


def _by_other_metrics(task: Task) -> list[Task]:
    """The task scored by each further metric of the table that such outputs have."""
    fitting = [name for name, metric in METRICS.items() if task.output.kind in metric.outputs and name != task.metric]
    if task.output.abstain is None:
        fitting = [name for name in fitting if not METRICS[name].selective]
    return [task.model_copy(update={"metric": name}) for name in fitting]


def _verdict(a: ComparedSkin, b: ComparedSkin, comparison: PairedComparison, opening: Opening) -> tuple[str, str]:
    """Who is better by the task's metric beyond chance, and what that costs."""
    low, high = comparison.interval
    difference = comparison.difference
    # the test and the interval are made in two ways: a claim takes both
    sure = comparison.p_value <= 1 - comparison.confidence and (low > 0 or high < 0)
    verdict = ("a" if difference > 0 else "b") if sure else "undecided"
    leader, runner_up = (b, a) if verdict == "b" else (a, b)
    if verdict == "b":  # told as what the better one is ahead by
        difference, low, high = -difference, -high, -low
    ends = f"{comparison.confidence:.1%} interval {low:+.3f} to {high:+.3f}, p = {comparison.p_value:.2g}"
    by = f"{comparison.metric} {difference:+.3f}, {ends}"
    if sure:
        statement = f"{leader.name} is better than {runner_up.name} on these {comparison.n} rows ({by})"
    else:
        by = f"{leader.name} minus {runner_up.name}: {by}"
        statement = (
            f"Neither {leader.name} nor {runner_up.name} was shown to be better on these {comparison.n} rows ({by})"
        )
    return verdict, f"{opening.exploratory_remark()} {statement}{_prices(leader, runner_up)}.".lstrip()


def _prices(leader: ComparedSkin, runner_up: ComparedSkin) -> str:
    """How much dearer a call of the dearer is, in money, or where no price is known in time."""
    if leader.usd_per_1k_calls and runner_up.usd_per_1k_calls:
        ratio, verb = leader.usd_per_1k_calls / runner_up.usd_per_1k_calls, "costs"
    elif leader.latency.mean > 0 and runner_up.latency.mean > 0:
        ratio, verb = leader.latency.mean / runner_up.latency.mean, "takes"
    else:
        return ""
    dearer, cheaper, ratio = (runner_up, leader, 1 / ratio) if ratio < 1 else (leader, runner_up, ratio)
    times = figures(ratio, 2)
    if times == "1":
        return f"; a call of {dearer.name} {verb} about as much as one of {cheaper.name}"
    return f"; a call of {dearer.name} {verb} {times} times as much as one of {cheaper.name}"
