"""`bedplate evaluate`: score a skin on a split of a task with its error bars, or say what rows that came later mean."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bedplate.cli import options, paths
from bedplate.core.errors import UsageError
from bedplate.core.files import atomic_write
from bedplate.core.tables import Column, numbers, show

if TYPE_CHECKING:
    from bedplate.evaluation.drift import Quality
    from bedplate.evaluation.drift_verdict import Drift
    from bedplate.evaluation.examples import TaskData
    from bedplate.evaluation.harness import Evaluation


def evaluate(
    skin: Annotated[
        str, typer.Argument(help="A skin's directory; for search and suites, a base.", callback=paths.skin_or_base)
    ],
    rows: Annotated[
        Path | None,
        typer.Argument(
            metavar="TASK.yaml|NEW.jsonl", help="The task file, or new rows (.jsonl, .csv, .tsv, .parquet)."
        ),
    ] = None,
    overrides: options.Overrides = None,
    split: Annotated[str | None, typer.Option(help="With a task file: train, valid or test. Default: valid.")] = None,
    task: Annotated[
        Path | None,
        options.input_file(help="With new rows: the task file. Default: that of the skin's run."),
    ] = None,
    out: Annotated[Path | None, options.output_file(help="Write the result with all rows to this JSON file.")] = None,
    overwrite: options.Overwrite = False,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="A suite to run on a base, not rows; core: four of them. Repeatable."),
    ] = None,
    limit: Annotated[int | None, options.whole(help="With --suite: most items of a suite. Default: all.")] = None,
    dtype: options.JudgedDtype = None,
    weights: options.JudgedWeights = None,
    kernel: options.JudgedKernel = None,
    allow_other_weights: options.AllowOtherWeights = False,
    include_seen: Annotated[
        bool,
        typer.Option("--include-seen", help="With a task file: also rows that trained or selected the skin."),
    ] = False,
    all_columns: options.AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, without the rows.")] = False,
) -> None:
    """Score a skin on a split of a task: estimate, interval, and where it is wrong; or a base on suites.

    Rows of the split that the run which made the skin had in train (for test: in train or valid) are left out and
    counted, because a skin is better on what it has seen; --include-seen keeps them. Every look at rows with targets
    is in the test ledger.

    With new rows instead of a task: whether they differ from those that the skin was made from (inputs, words, length,
    labels) and, where they have targets, whether quality is below what the skin's report says or below its bar; then
    whether to climb again, in one sentence. All looks at a skin are one test: however often it is looked at, a skin
    with which nothing is wrong is called wrong in at most 5% of cases. Rows that an earlier look had are counted once.

    With --suite, what a base can do besides its tasks: piqa, openbookqa, commonsenseqa, boolq (core is these four;
    accuracy by log-likelihood), grammar, facts, arithmetic, code (small, for bases that are still learning),
    vader-news, vader-movies (loss on general text), refusals. Items longer than the base's context are left out and
    counted.

    \b
      bedplate evaluate runs/x/skins/lora task.yaml --split test data.seed=1
      bedplate evaluate runs/x/skins/lora october.jsonl
      bedplate evaluate smollm2-135m --suite core --limit 300
    """
    paths.free(out, overwrite)
    if suite:
        if rows is not None or split or task is not None or overrides or allow_other_weights or include_seen:
            raise UsageError("--suite takes a base, --limit, --out and the options of weights, and nothing else")
        report, show_result = _on_suites(skin, suite, limit, (dtype, weights, kernel))
    else:
        if rows is None or limit is not None:
            raise UsageError("give a task file or new rows beside the skin, or --suite NAME (and --limit) of a base")
        paths.existing(rows)
        loading = {"dtype": dtype, "weights": weights, "kernel": kernel, "allow_other_weights": allow_other_weights}
        if rows.suffix.lower() in (".yaml", ".yml"):
            if task is not None:
                raise UsageError("--task goes with new rows; here the task file is the argument itself")
            report, show_result = _on_split(skin, rows, split or "valid", overrides or (), loading, include_seen)
        elif split is not None or overrides or include_seen:
            raise UsageError("--split, --include-seen and key=value go with a task file (.yaml), not with new rows")
        else:
            report, show_result = _on_new_rows(skin, rows, task, loading)
    if out is not None:
        atomic_write(out, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if as_json:
        for part in (report, report.get("evaluation") or {}):
            part.pop("rows", None)
        print(json.dumps(report, allow_nan=False))
        return
    show_result()
    if out is not None:
        print(f"written to {out}")


Shown = tuple[dict[str, Any], Callable[[], None]]
"""A report, every row included, and what prints it for people."""


def _on_split(
    skin: str, task_file: Path, split: str, overrides: Sequence[str], loading: Mapping[str, Any], include_seen: bool
) -> Shown:
    from bedplate.data.sources import check_source
    from bedplate.evaluation.task import load_task

    if split not in ("train", "valid", "test"):
        raise UsageError(f"there is no split {split!r}; the splits are train, valid and test")
    task = load_task(task_file, overrides)
    for source in task.data.sources:
        check_source(source, task.directory)
    from bedplate.evaluation import harness
    from bedplate.evaluation.examples import load_examples
    from bedplate.inference.execution.threads import use_cores
    from bedplate.inference.predict.predictor import Predictor

    use_cores()
    data = load_examples(task)
    loaded = harness.load_predictor(skin, **loading)
    if isinstance(loaded, Predictor):
        for warning in loaded.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    result = harness.evaluate(loaded, task, data, split, 0.95, include_seen)
    return _report(result, data), lambda: _show(result, data)


def _on_suites(base: str, names: Sequence[str], limit: int | None, engine_options: tuple[Any, Any, Any]) -> Shown:
    from bedplate.evaluation.suites import suites_of

    suite_names = suites_of(names)  # before anything heavy is imported
    from bedplate.evaluation.suites.suite import run_suite
    from bedplate.inference.execution.threads import use_cores
    from bedplate.inference.predict.opening import OpenOptions, open_base

    use_cores()
    with open_base(base, OpenOptions(*engine_options)).model() as model:
        results = {name: run_suite(model, name, limit) for name in suite_names}
        report = {"base": model.base.name, "weights": model.engine.weights, "kernel": model.engine.kernel}
        context_length = model.base.spec.context_length
    rows: list[tuple[str, ...]] = []
    for name, result in results.items():
        if result.too_long:
            remark = f"left out {result.too_long:,} items that do not fit the context of {context_length:,} tokens"
            print(f"warning: {name}: {remark}", file=sys.stderr)
        for measure, score in result.measures.items():
            interval = "" if score.interval is None else "{:.3f}-{:.3f}".format(*score.interval)
            rows.append((name, measure, f"{score.value:.3f}", interval, str(score.n), str(score.groups)))
    columns = ("suite", "measure", *numbers("value", "95% interval", "n", "groups"))
    suites = {name: result.to_json() for name, result in results.items()}
    return {**report, "suites": suites}, lambda: show(columns, rows)


def _on_new_rows(skin: str, rows: Path, task: Path | None, loading: Mapping[str, Any]) -> Shown:
    from bedplate.adaptation.postprocess.monitor import drift
    from bedplate.inference.execution.threads import use_cores

    use_cores()
    result = drift(skin, rows, task_file=task, **loading)
    return result.to_json(), lambda: _show_drift(result)


def _show_drift(result: Drift) -> None:
    compared = f" against {result.old_rows:,} that the skin was made from" if result.shifts else ""
    print(f"{result.new_rows:,} new rows{compared}; look {result.look} at this skin", end="; ")
    print(f"all looks together raise a false alarm with at most {result.alpha:.0%}")
    rows: list[tuple[str, ...]] = []
    for shift in result.shifts:
        evidence = f"{shift.evidence.value:.3g}", f"{shift.enough:.3g}"
        rows.append((shift.aspect, "yes" if shift.differs else "no", *evidence, shift.explanation))
    if rows:
        show(("compared", "differs", *numbers("evidence", "needed"), Column("what", prose=True)), rows)
    for shift in result.shifts:
        if shift.differs and any(shift.words):
            gained_words, lost_words = (", ".join(words) or "none" for words in shift.words)
            print(f"words that are more frequent now: {gained_words}; less frequent: {lost_words}")
    if result.quality is not None:
        print(_quality(result.quality))
    for note in result.notes:
        print(f"note: {note}")
    print(result.sentence)


def _quality(quality: Quality) -> str:
    summary = f"{quality.metric} {quality.estimate:.3f}"
    if quality.bounds is not None:
        summary += f", {1 - 2 * quality.level:.1%} interval {quality.bounds[0]:.3f}-{quality.bounds[1]:.3f}"
    if quality.promise is None:
        return summary
    promise = quality.promise
    by = "verdict" if promise.by_verdict else f"{promise.split} interval"
    summary += f"; the skin's report promised at least {promise.floor:.3f} ({promise.confidence:.1%}, from its {by})."
    if quality.worse_evidence is not None:
        needed = f"to 1 ({quality.enough:.0f} to 1 would show it)"
        summary += f" Evidence of a drop: {quality.worse_evidence.value:.2g} {needed}."
        if quality.bar_evidence is not None:
            summary += f" Evidence of a value below the bar: {quality.bar_evidence.value:.2g} {needed}."
    return summary


def _report(result: Evaluation, data: TaskData) -> dict[str, Any]:
    from bedplate.evaluation.slices import calibration, slices

    measured = calibration(result)
    return {
        **result.to_json(),
        "coverage": result.coverage,
        "answered": result.answered,
        "slices": [part.model_dump() for part in slices(result)],
        "calibration": None if measured is None else measured.model_dump(),
        "counts": dict(data.counts),
        "hashes": dict(data.hashes),
        "notes": [*data.notes, *data.test.notes],
    }


def _overlap_note(result: Evaluation) -> str:
    from bedplate.evaluation.leaks.seen_rows import describe_counts

    total, counts = result.n + result.left_out, describe_counts(result.seen or {})
    left_out = f"{result.left_out:,} that it was trained on or chosen by are left out" if result.left_out else ""
    had = f"of {total:,} rows of {result.split}, the run that made the skin had {counts}"
    return f"{had}; {left_out or 'all are counted'}"


def _show(result: Evaluation, data: TaskData) -> None:
    from bedplate.evaluation.slices import calibration, slices

    format_score, scale = result.scale.format_score, result.scale
    low, high = sorted(result.interval, key=scale.value)
    percent = f"{result.confidence:.0%}"
    print(f"{result.task}: {result.metric} {format_score(result.estimate)} on {result.split}", end="")
    print(f", {percent} interval {format_score(low)}-{format_score(high)}")
    bound = result.reason
    if result.lower_bound is not None:
        bound = f"one-sided {percent} {scale.lower_bound} {format_score(result.lower_bound)}"
    if scale.lower_is_better:
        print("US dollars of a call by its answers; the price of the call itself is not in them")
    groups = f"{result.n} rows" + (f" in {result.groups} groups" if result.groups < result.n else "")
    print(f"{bound}; {groups}" + (f"; {result.unparsed} answers could not be parsed" if result.unparsed else ""))
    if result.coverage < 1:
        answered_note = "" if result.answered is None else f"; row score among them {format_score(result.answered)}"
        print(f"answered {result.coverage:.1%} of the rows and abstained on the rest{answered_note}")
    measured = calibration(result)
    if measured is not None:
        print(f"expected calibration error {measured.error:.3f}")
    for note in (*data.notes, *data.test.notes):
        print(f"note: {note}")
    if result.seen is not None and any(result.seen.values()):
        print(f"note: {_overlap_note(result)}")
    if result.split == "test":
        print("note: the ledger now has these test rows as opened; a later verdict of `adapt` on them is exploratory")
    rows: list[tuple[str, ...]] = []
    for part in slices(result):
        low, high = sorted(part.interval, key=scale.value)
        interval = f"{format_score(low)}-{format_score(high)}"
        rows.append((f"{part.by} {part.value}", str(part.n), format_score(part.estimate), interval))
    show(("slice", *numbers("n", "row score", f"{percent} interval")), rows)
