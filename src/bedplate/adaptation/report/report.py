"""The ladder's report: everything behind the verdict in the parts of the schema, and the page made from them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.bases import BaseFacts
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import Latency, RungOutcome, RungResult, Tested
from bedplate.adaptation.report.data_card import data_card, examples, focus
from bedplate.adaptation.rungs import chosen_rungs, in_role
from bedplate.adaptation.search import planner
from bedplate.adaptation.search.formats import not_tried
from bedplate.adaptation.search.rung_files import environment
from bedplate.adaptation.task.target_spec import CURRENT
from bedplate.adaptation.verdict import advice, gate, rules_of_thumb
from bedplate.adaptation.verdict.label_ceiling import second_labels
from bedplate.adaptation.verdict.ladder_run import LadderRun
from bedplate.core.files import atomic_write
from bedplate.core.version import __version__
from bedplate.evaluation.costs import Scale
from bedplate.evaluation.evaluated import PairedComparison
from bedplate.evaluation.harness import Evaluation
from bedplate.report import schema, schema_parts
from bedplate.report.html import adaptation_page
from bedplate.report.run_report import Report
from bedplate.report.schema_parts import Curve, LabelBudget, Split
from bedplate.skins import records
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import read_skin, write_skin
from bedplate.skins.skin import BaseReference

MEASURED_FIELDS = (
    *("estimate", "interval", "coverage", "answered", "usd_per_1k_calls", "p50_ms", "p95_ms"),
    *("train_seconds", "skin", "weights", "kernel"),
)
"""Fields of a row that are null where the rung was not made."""


def build_report(run: LadderRun) -> Report:
    """Put together what was measured; nothing is computed here that could have been decided otherwise."""
    context, verdict = run.context, run.verdict
    outcomes, results, tested = run.served, run.results, run.tested
    evaluations = {name: t.evaluation for name, t in tested.items()}
    net = {name: run.criteria.net(t.evaluation, results[name], t.latency) for name, t in tested.items()}
    compared = gate.compare_with(net, verdict.nomination.nominees, verdict.nomination.versus, context.seed)
    valid = {name: result.evaluation for name, result in results.items()}
    judged = verdict.decision.rung or verdict.nomination.primary
    focus_split, read = ("test", evaluations) if judged in evaluations else ("valid", valid)
    left_out = (*planner.not_tried(outcomes), *not_tried(run.formats))
    labels = None if run.looking is None else run.looking.record_at(run.alpha, run.opening is not None)
    opening = run.opening
    report_file = schema.ReportFile(
        schema_version=schema.SCHEMA_VERSION,
        task=context.task.task,
        verdict=_verdict(run, left_out, net),
        rungs=(*_current_rows(run), *_rows(run)),
        nominees=schema.Nominees(**verdict.nomination.to_json(), confirmations=tuple(verdict.confirmations)),
        comparisons=tuple(_comparison(*pair, planned=pair[0] == verdict.nomination.primary) for pair in compared),
        target=_target(run),
        requirements={name: tuple(requirements) for name, requirements in verdict.requirements.items()},
        predictions=tuple(
            schema_parts.RulePrediction(**prediction)
            for prediction in rules_of_thumb.score(run.expectations, outcomes, tested, context.seed)
        ),
        guards={name: tuple(guards) for name, guards in run.guards.items()},
        limits={name: tuple(limits) for name, limits in verdict.limits.items()},
        formats=dict(run.formats),
        forecasts=tuple(planner.forecasts(context, outcomes)),
        not_tried=left_out,
        search={name: tuple(schema.Tried(**trial) for trial in r.search) for name, r in results.items() if r.search},
        details={name: dict(result.details) for name, result in results.items()},
        export={name: schema.Export(**vars(result.export)) for name, result in results.items() if result.export},
        ledger=None
        if opening is None
        else schema.Ledger(verdict_id=opening.verdict_id, number=opening.number, alpha=run.alpha, notes=opening.notes),
        labels=labels,
        data=_data(run, labels, valid, next(iter(evaluations.values()), None)),
        focus=None if judged is None else focus(judged, focus_split, read[judged]),
        examples=examples(context.valid, valid, judged),
        curve=None,
        lineage=_lineage(run.contexts, context.out, outcomes),
        settings=_settings(context),
        machine=_machine(context),
        timing=_time_spent(run),
        rows=schema.Rows(
            valid=_results(run, "valid", valid),
            test=_results(run, "test", evaluations),
            calls={
                "valid": {name: result.latency.seconds for name, result in results.items()},
                "test": {name: t.latency.seconds for name, t in tested.items()},
            },
            guards={name: {guard.guard: guard.rows for guard in guards} for name, guards in run.guards.items()},
        ),
    )
    values = report_file.model_dump(mode="json", exclude_unset=True)
    if context.task.scale.lower_is_better:
        in_dollars(values, context.task.scale)
    return Report(values, context.out)


def _verdict(
    run: LadderRun, left_out: Sequence[schema_parts.NotTried], net: Mapping[str, Evaluation]
) -> schema.Verdict:
    decision, opening = run.verdict.decision, run.opening
    remark = None if opening is None else opening.exploratory_remark("test rows")
    passed = None if decision.rung is None else run.results[decision.rung]
    untried = advice.untried(left_out, run.outcomes, decision.status)
    baseline = run.results.get(in_role("classical"))
    servable = baseline is not None and baseline.skin is not None
    classical = advice.classical(run.verdict, net, run.context.seed, servable=servable)
    return schema.Verdict(
        status=decision.status,
        skin=None if passed is None else passed.skin,
        reason=" ".join(filter(None, [remark, decision.reason, untried, classical])),
        rung=decision.rung,
        exploratory=opening is not None and opening.exploratory,
        kept_out=tuple(
            schema.BudgetChange(rung=changes.rung, estimate=changes.estimate, **vars(change))
            for changes in run.verdict.kept_out
            for change in changes.changes
        ),
    )


def _data(
    run: LadderRun, labels: LabelBudget | None, valid: Mapping[str, Evaluation], test: Evaluation | None
) -> schema.Data:
    context, data = run.context, run.data
    return schema.Data(
        counts=dict(data.counts),
        hashes=dict(data.hashes),
        notes=(*data.notes, *_too_long(run.tested), *_one_look(labels)),
        licences=data.licences,
        test_openings=tuple(data.test.openings),
        second_labels=second_labels(context.task, data, context.spec.target.confidence),
        grouping=data.grouping,
        card=data_card(context.labels, context.train, context.valid, valid, test),
    )


def _settings(context: Context) -> schema.Settings:
    return schema.Settings(
        seed=context.seed,
        budget=context.spec.budget.model_dump(mode="json"),
        budget_seconds=context.clock.seconds,
        exhaustive=context.exhaustive,
        rungs=chosen_rungs(context.spec),
        version=__version__,
        environment=environment(),
    )


def _machine(context: Context) -> schema_parts.Machine:
    return schema_parts.Machine(
        **context.spec.machine.model_dump(mode="json"),
        processor=platform.machine(),
        cores=os.cpu_count(),
        system=platform.system(),
        python=platform.python_version(),
    )


def _time_spent(run: LadderRun) -> schema_parts.Timing:
    clock, watch = run.context.clock, run.watch
    return schema_parts.Timing(
        seconds=round(clock.used, 1),
        usd=clock.spent,
        rungs={name: round(o.seconds, 2) for name, o in run.outcomes.items()},
        guards=watch.of("guards"),
        formats=watch.of("formats"),
        tests=watch.of("tests"),
        latency=watch.of("latency"),
        reserved=None if run.reserved is None else round(run.reserved, 2),
        processor_seconds=round(watch.processor, 1),
        resumed=any(o.reused for o in run.outcomes.values()),
    )


def _results(run: LadderRun, split: Split, evaluations: Mapping[str, Evaluation]) -> dict[str, tuple[Any, ...]]:
    """What each candidate, and the system that runs today, made of each row; what is so of every row where the task
    says nothing is left out."""
    current, plain = run.criteria.current.get(split), {"weight": 1.0, "slices": None}
    return {
        name: tuple(
            schema.RowResult(**{k: v for k, v in vars(row).items() if k not in plain or v != plain[k]})
            for row in evaluation.rows
        )
        for name, evaluation in (({} if current is None else {CURRENT: current}) | dict(evaluations)).items()
    }


def _comparison(a: str, b: str, comparison: PairedComparison, corrected: float, *, planned: bool) -> schema.Comparison:
    """`a` and `b` are rungs; p_holm is corrected for all nominees, which the one pair that was planned before test was
    opened does not need."""
    values = comparison.to_json()
    a_estimate, b_estimate = values.pop("a"), values.pop("b")
    return schema.Comparison(
        a=a, b=b, planned=planned, a_estimate=a_estimate, b_estimate=b_estimate, **values, p_holm=corrected
    )


def _lineage(contexts: Sequence[Context], out: Path, outcomes: Mapping[str, RungOutcome]) -> schema.Lineage:
    """The bases and the skins on them, by their hashes; those of the data stand with the data."""
    skins: dict[str, schema.SkinMade] = {}
    for name, outcome in outcomes.items():
        result = outcome.result
        if result is None or result.skin is None or result.skin_id is None:
            continue
        skin = read_skin(out / result.skin)
        skins[name] = schema.SkinMade(
            directory=result.skin,
            skin_id=result.skin_id,
            kind=skin.kind,
            seed=skin.provenance.seed,
            parents=skin.provenance.parents,
            plan={} if outcome.plan is None else dict(outcome.plan.settings),
            bases={
                role: used.weights_id if isinstance(used, BaseReference) else used.name
                for role, used in skin.bases.items()
            },
        )
    facts = {context.at.source: context.at.facts for context in contexts}
    bases = [schema.BaseUsed(**base.to_json(), source=source) for source, base in facts.items()]
    return schema.Lineage(bases=tuple(bases), skins=skins)


def write_report(report: Report, out: Path, skins: Iterable[str]) -> None:
    """report.json and report.html, in the run's directory and (report.json without its rows, which can be many) in each
    of its `skins`, whose ids do not change by it. The report of an earlier verdict in this directory is kept beside it,
    as `report-N.json` and `report-N.html`: a verdict cannot be had a second time."""
    _keep_earlier(report, out)
    page = adaptation_page(report.data)
    atomic_write(out / "report.html", page)
    atomic_write(out / "report.json", _text(report.data))
    summary = {key: value for key, value in report.data.items() if key != "rows"}
    carried = {"report.html": page.encode(), "report.json": _text(summary).encode()}
    for skin in skins:
        write_skin(read_skin(out / skin), out / skin, carried, replace=True)


def _keep_earlier(report: Report, out: Path) -> None:
    """Renames the report of another verdict; those of the rounds of one labelling are parts of a single verdict."""
    ledger = report.data["ledger"]
    if ledger is None or report.data["labels"] is not None or not (out / "report.json").is_file():
        return
    earlier = json.loads((out / "report.json").read_bytes())["ledger"]
    if earlier is not None and earlier["verdict_id"] != ledger["verdict_id"]:
        for suffix in ("json", "html"):
            with suppress(FileNotFoundError):
                (out / f"report.{suffix}").replace(out / f"report-{earlier['number']}.{suffix}")


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _rows(run: LadderRun) -> Iterator[schema.Row]:
    """One for each candidate and split that it was evaluated on."""
    for name, outcome in run.served.items():
        result = outcome.result
        yield _row(run, name, outcome, "valid", None if result is None else (result.evaluation, result.latency))
        if result is not None and name in run.tested:
            tested = run.tested[name]
            yield _row(run, name, outcome, "test", (tested.evaluation, tested.latency))


def _row(
    run: LadderRun, rung: str, outcome: RungOutcome, split: Split, measured: tuple[Evaluation, Latency] | None
) -> schema.Row:
    """One row. measured: the evaluation on this split and its single calls; None where the rung was not made."""
    result, base = outcome.result, run.candidates[rung].base
    if result is None or measured is None:
        status = "skipped" if outcome.status == "skipped" else "failed"
        values: dict[str, Any] = {"n": 0, "groups": 0, "seeds": (), **dict.fromkeys(MEASURED_FIELDS)}
        return schema.Row(rung=rung, base=base, status=status, reason=outcome.reason, split=split, **values)
    (evaluation, timing), spec = measured, run.context.spec
    rate, mean = spec.machine.usd_per_hour, timing.mean_interval(0.95)
    lower, upper = (None if bound is None else 1000 * bound for bound in timing.p95_bounds(spec.target.confidence))

    def price(seconds: float) -> float:
        return 1000 * result.price(rate, seconds)

    priced = run.criteria.priced(evaluation, result, timing)
    # a cascade's two skins say their own
    evaluated_with = None if result.skin is None else read_skin(run.context.out / result.skin).evaluated_with
    return schema.Row(
        rung=rung,
        base=base,
        status="done",
        reason=result.reason,
        split=split,
        estimate=priced.estimate,
        interval=priced.interval,
        n=evaluation.n,
        groups=evaluation.groups,
        coverage=evaluation.coverage,
        answered=evaluation.answered,
        # seeds are a spread on valid; only the chosen one has seen test
        seeds=tuple(schema.Seed(**seed) for seed in result.seeds) if split == "valid" else (),
        usd_per_1k_calls=price(timing.mean),
        p50_ms=timing.p50 * 1000,
        p95_ms=timing.p95 * 1000,
        usd_interval=None if mean is None or result.usd_per_call is not None else (price(mean[0]), price(mean[1])),
        p95_bounds_ms=(lower, upper),
        p95_worth=timing.worth(),
        calls=timing.calls,
        load=timing.load,
        train_seconds=result.train_seconds,
        skin=result.skin,
        weights=None if evaluated_with is None else evaluated_with.weights,
        kernel=None if evaluated_with is None else evaluated_with.kernel,
    )


def _current_rows(run: LadderRun) -> Iterator[schema.Row]:
    """The system that runs today, on valid and, once it was opened, on test."""
    task, spec = run.context.task, run.context.task.data.current
    splits: tuple[Split, ...] = ("valid", "test")
    for split in splits:
        if spec is None or split not in run.criteria.current:
            continue
        priced = run.criteria.priced_current(split)
        missing = priced.evaluation.unparsed
        unusable = f"; {missing} rows without a usable answer count as wrong" if missing else ""
        if task.scale.lower_is_better and spec.usd_per_1k_calls is None:
            unusable += "; the price of its calls is unknown and not included"
        yield schema.Row(
            rung=CURRENT,
            base=None,
            status="done",
            reason=f"the system in use, never nominated: its answers are in the column {spec.column!r}{unusable}",
            split=split,
            estimate=priced.estimate,
            interval=priced.interval,
            n=priced.n,
            groups=priced.groups,
            coverage=priced.evaluation.coverage,
            answered=priced.evaluation.answered,
            seeds=(),
            usd_per_1k_calls=spec.usd_per_1k_calls,
            p50_ms=spec.p50_ms,
            p95_ms=spec.p95_ms,
            train_seconds=None,
            skin=None,
        )


def _target(run: LadderRun) -> schema.Target:
    """The report's target; what the task does not ask for is left out."""
    target, scale = run.context.spec.target, run.context.task.scale
    optional: dict[str, Any] = {name: getattr(target, name) for name in ("against", "margin", "better_by")}
    given: dict[str, Any] = {name: value for name, value in optional.items() if value is not None}
    if scale.worst_usd is not None:
        given["worst_usd"] = scale.worst_usd
    if target.value is None:
        given["value_given"] = False
    if scale.lower_is_better:
        given["lower_is_better"] = True
    value, metric = scale.value(run.verdict.target), run.context.task.metric_name
    return schema.Target(metric=metric, value=value, confidence=target.confidence, **given)


def _one_look(labels: LabelBudget | None) -> tuple[str, ...]:
    if labels is None or len(labels.looks) == 1:
        return ()
    return (
        "p-values of comparisons on test are for a single look; several were taken, and only the verdict's bounds "
        "account for that",
    )


def _too_long(tested: Mapping[str, Tested]) -> list[str]:
    return [
        f"{t.too_long} test rows are too long for {name} and count as wrong" for name, t in tested.items() if t.too_long
    ]


def record(report: Report, out: Path, task: str, bases: Sequence[BaseFacts], results: Iterable[RungResult]) -> None:
    """Bases, skins, run and report. results: of all candidates, places below `out`."""
    all_results = list(results)
    with Catalog.open() as catalog:
        catalog.record([records.of_identity(b.short, b.identity, b.path, b.family) for b in bases])
        for place in [out / result.skin for result in all_results if result.skin is not None]:
            catalog.record(records.of_skin(read_skin(place), place))
        catalog.record([records.of_report(out / "report.json", report.data)])
        catalog.add([out / result.child for result in all_results if result.child is not None])
        catalog.record(records.of_run(out))


def in_dollars(report: dict[str, Any], scale: Scale) -> None:
    """Turns the estimates, intervals, bounds and differences of report.json's values into dollars, in place. The rows
    keep their scores, and so do formats, which are held against a margin of scores."""
    for row in report["rungs"]:
        _turn(row, scale, "estimate", "answered", interval="interval")
        for seed in row["seeds"]:
            _turn(seed, scale, "estimate", interval="interval")
    for change in report["verdict"].get("kept_out", ()):
        _turn(change, scale, "estimate")
    for confirmation in report["nominees"]["confirmations"]:
        _turn(confirmation, scale, "estimate", "expected", "expected_low")
        ends = [None if confirmation[name] is None else scale.value(confirmation[name]) for name in ("upper", "lower")]
        confirmation["lower"], confirmation["upper"] = ends
        levels = confirmation["upper_confidence"], confirmation["lower_confidence"]
        confirmation["lower_confidence"], confirmation["upper_confidence"] = levels
    for comparison in report["comparisons"]:
        _turn(comparison, scale, "a_estimate", "b_estimate")
        _difference_in_dollars(comparison, scale)
    for tried in (trial for searched in report["search"].values() for trial in searched):
        _turn(tried, scale, "estimate")
    if report["focus"] is not None:
        for part in report["focus"]["slices"]:
            _turn(part, scale, "estimate", interval="interval")


def curve_in_dollars(curve: Curve, scale: Scale) -> Curve:
    """The same of learning curves, which have no price of the call in them."""
    if scale.worst_usd is None:
        return curve
    values = curve.model_dump(mode="json")
    for point in (*values["points"], *values["flat"]):
        _turn(point, scale, "estimate", interval="interval")
        for draw in point.get("draws", ()):
            _turn(draw, scale, "estimate")
    for gap in (difference for crossover in values["crossovers"] for difference in crossover["differences"]):
        _difference_in_dollars(gap, scale)
    return Curve.model_validate(values)


def _turn(part: dict[str, Any], scale: Scale, *names: str, interval: str | None = None) -> None:
    for name in names:
        if part.get(name) is not None:
            part[name] = scale.value(part[name])
    if interval is not None and part[interval] is not None:
        part[interval] = list(scale.ends(*part[interval]))


def _difference_in_dollars(part: dict[str, Any], scale: Scale) -> None:
    part["difference"] = scale.difference(part["difference"])
    part["interval"] = sorted(scale.difference(end) for end in part["interval"])
