"""The ladder's report: everything behind the verdict in the parts of the schema, and the page made from them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.clock import Stopwatch
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.environment import environment
from bedplate.adaptation.context.outcome import Latency, RungOutcome, RungResult, Tested
from bedplate.adaptation.report import reference_rows
from bedplate.adaptation.report.data_card import data_card
from bedplate.adaptation.report.dollars import in_dollars
from bedplate.adaptation.report.error_analysis import examples, focus
from bedplate.adaptation.rungs import chosen_rungs, in_role
from bedplate.adaptation.search import planner
from bedplate.adaptation.search.formats import not_tried
from bedplate.adaptation.search.guard_drops import GuardResult
from bedplate.adaptation.verdict import gate
from bedplate.adaptation.verdict.acceptance import Hurdles
from bedplate.adaptation.verdict.admission import BudgetChanges
from bedplate.adaptation.verdict.estimates import Priced
from bedplate.adaptation.verdict.second_labels import second_labels
from bedplate.core.files import atomic_write
from bedplate.core.version import __version__
from bedplate.evaluation.comparison import PairedComparison, compare
from bedplate.evaluation.examples import TaskData
from bedplate.evaluation.harness import Evaluation
from bedplate.evaluation.ledger import Opening
from bedplate.evaluation.task_row import GradedRow
from bedplate.report import schema, schema_parts, schema_plan
from bedplate.report.html import adaptation_page
from bedplate.report.run_report import Report
from bedplate.report.schema_parts import Requirement
from bedplate.report.schema_parts import LabelBudget
from bedplate.report.schema_parts import Split
from bedplate.skins.files import read_skin, write_skin
from bedplate.skins.skin import BaseReference


def build_report(
    contexts: Sequence[Context],
    data: TaskData,
    outcomes: Mapping[str, RungOutcome],
    bases: Mapping[str, str | None],
    nomination: gate.Nomination,
    tested: Mapping[str, Tested],
    opening: Opening | None,
    alpha: float,
    confirmations: Sequence[schema.Confirmation],
    decision: gate.GateDecision,
    *,
    predictions: Sequence[Mapping[str, Any]],
    guards: Mapping[str, Sequence[GuardResult]],
    limits: Mapping[str, Sequence[schema_plan.Limit]],
    formats: Mapping[str, schema_plan.Formats],
    kept_out: Sequence[BudgetChanges] = (),
    reserved: float | None = None,
    labels: LabelBudget | None = None,
    watch: Stopwatch,
    hurdles: Hurdles,
    required: Mapping[str, Sequence[Requirement]],
    bar: float,
) -> Report:
    """Put together what was measured; nothing is computed here that could have been decided otherwise.

    contexts: one for each base, the task's first in front. outcomes, tested: by candidate, in the weights to serve.
    bases: candidate → the base it stands on, as the task file names it; None where none has a part in it. required:
    what the target asks of the nominees beside its bar, which is a score.
    """
    context = contexts[0]
    scale = context.task.scale
    results = {name: o.result for name, o in outcomes.items() if o.result}
    evaluations = {name: t.evaluation for name, t in tested.items()}
    net = {name: hurdles.net(t.evaluation, results[name], t.latency) for name, t in tested.items()}
    compared = gate.compare_with(net, nomination.nominees, nomination.versus, context.seed)
    valid = {name: result.evaluation for name, result in results.items()}
    passed = None if decision.rung is None else outcomes[decision.rung].result
    judged = decision.rung or nomination.primary
    classical = _classical(net, judged, context.seed, results)
    left_out = (*planner.not_tried(outcomes), *not_tried(formats))
    untried = _untried(left_out) if decision.status == "PASS" else None
    reason = " ".join(filter(None, [_exploratory(opening), decision.reason, untried, classical]))
    rate = context.spec.machine.usd_per_hour
    report_file = schema.ReportFile(
        schema_version=schema.SCHEMA_VERSION,
        task=context.task.task,
        verdict=schema.Verdict(
            status=decision.status,
            skin=None if passed is None else passed.skin,
            reason=reason,
            rung=decision.rung,
            exploratory=opening is not None and opening.exploratory,
            kept_out=tuple(
                schema.BudgetChange(rung=admission.rung, estimate=admission.estimate, **vars(change))
                for admission in kept_out
                for change in admission.changes
            ),
        ),
        rungs=(
            *reference_rows.current_rows(context.task, hurdles),
            *_rows(context.out, outcomes, tested, bases, rate, context.spec.target.confidence, hurdles),
        ),
        nominees=schema.Nominees(**nomination.to_json(), confirmations=tuple(confirmations)),
        comparisons=tuple(_comparison(*pair, planned=pair[0] == nomination.primary) for pair in compared),
        target=reference_rows.target_of(context.task, context.spec.target, bar),
        requirements={name: tuple(nominee_checks) for name, nominee_checks in required.items()},
        predictions=tuple(schema_plan.RulePrediction(**prediction) for prediction in predictions),
        guards={name: tuple(nominee_guards) for name, nominee_guards in guards.items()},
        limits={name: tuple(nominee_limits) for name, nominee_limits in limits.items()},
        formats=dict(formats),
        forecasts=tuple(planner.forecasts(context, outcomes)),
        not_tried=left_out,
        search={name: tuple(schema.Tried(**trial) for trial in r.search) for name, r in results.items() if r.search},
        details={name: dict(result.details) for name, result in results.items()},
        export={name: schema.Export(**vars(result.export)) for name, result in results.items() if result.export},
        ledger=None
        if opening is None
        else schema.Ledger(verdict_id=opening.verdict_id, number=opening.number, alpha=alpha, notes=opening.notes),
        labels=labels,
        data=schema.Data(
            counts=dict(data.counts),
            hashes=dict(data.hashes),
            notes=(*data.notes, *_too_long(tested), *_one_look(labels)),
            licences=data.licences,
            test_openings=tuple(data.test.openings),
            second_labels=second_labels(context.task, data, context.spec.target.confidence),
            grouping=data.grouping,
            card=data_card(context.labels, context.train, context.valid, valid, next(iter(evaluations.values()), None)),
        ),
        focus=_focus(judged, valid, evaluations),
        examples=examples(context.valid, valid, judged),
        curve=None,
        lineage=_lineage(contexts, context.out, outcomes),
        settings=schema.Settings(
            seed=context.seed,
            budget=context.spec.budget.model_dump(mode="json"),
            budget_seconds=context.clock.seconds,
            exhaustive=context.exhaustive,
            rungs=chosen_rungs(context.spec),
            version=__version__,
            environment=environment(),
        ),
        machine=schema_plan.Machine(
            **context.spec.machine.model_dump(mode="json"),
            processor=platform.machine(),
            cores=os.cpu_count(),
            system=platform.system(),
            python=platform.python_version(),
        ),
        timing=schema_plan.Timing(
            seconds=round(context.clock.used, 1),
            usd=context.clock.spent,
            rungs={name: round(o.seconds, 2) for name, o in outcomes.items()},
            guards=watch.of("guards"),
            formats=watch.of("formats"),
            tests=watch.of("tests"),
            latency=watch.of("latency"),
            reserved=None if reserved is None else round(reserved, 2),
            processor_seconds=round(watch.processor, 1),
            resumed=any(o.reused for o in outcomes.values()),
        ),
        rows=schema.Rows(
            valid=_results(hurdles.current_system("valid") | valid),
            test=_results(hurdles.current_system("test") | evaluations),
            calls={
                "valid": {name: result.latency.seconds for name, result in results.items()},
                "test": {name: tested_skin.latency.seconds for name, tested_skin in tested.items()},
            },
            guards={
                name: {guard.guard: guard.rows for guard in nominee_guards} for name, nominee_guards in guards.items()
            },
        ),
    )
    values = report_file.model_dump(mode="json", exclude_unset=True)
    if scale.lower_is_better:
        in_dollars(values, scale)
    return Report(values, context.out)


def _results(evaluations: Mapping[str, Evaluation]) -> dict[str, tuple[schema.RowResult, ...]]:
    return {
        name: tuple(schema.RowResult(**_row_fields(row)) for row in evaluation.rows)
        for name, evaluation in evaluations.items()
    }


def _row_fields(row: GradedRow) -> dict[str, Any]:
    """What a row's result holds; what is so of every row where the task says nothing is left out."""
    plain = {"weight": 1.0, "slices": None}
    return {name: value for name, value in vars(row).items() if name not in plain or value != plain[name]}


def _focus(
    judged: str | None, valid: Mapping[str, Evaluation], tested: Mapping[str, Evaluation]
) -> schema_parts.Focus | None:
    if judged is None:
        return None
    return focus(judged, "test", tested[judged]) if judged in tested else focus(judged, "valid", valid[judged])


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
    skin_outcomes = {name: o for name, o in outcomes.items() if o.result is not None and o.result.skin is not None}
    return schema.Lineage(
        bases=tuple(_base(context) for context in contexts),
        skins={name: _lineage_skin(out, outcome) for name, outcome in skin_outcomes.items()},
    )


def _base(context: Context) -> schema.BaseUsed:
    facts = context.at.facts
    return schema.BaseUsed(
        **facts.to_json(),
        source=context.source,
        family=facts.family,
        tokenizer_id=facts.identity.tokenizer_id,
        template_id=facts.identity.template_id,
    )


def _lineage_skin(out: Path, outcome: RungOutcome) -> schema.SkinMade:
    result = outcome.result
    assert result is not None
    assert result.skin is not None
    assert result.skin_id is not None
    skin = read_skin(out / result.skin)
    return schema.SkinMade(
        directory=result.skin,
        skin_id=result.skin_id,
        kind=skin.kind,
        seed=skin.provenance.seed,
        parents=skin.provenance.parents,
        plan={} if outcome.plan is None else dict(outcome.plan.settings),
        bases={
            role: used.weights_id if isinstance(used, BaseReference) else used.name for role, used in skin.bases.items()
        },
    )


def write_report(report: Report, out: Path, skins: Iterable[str]) -> None:
    """report.json and report.html, in the run's directory and (report.json without its rows, which can be many) in each
    of its `skins`, whose ids do not change by it."""
    page = adaptation_page(report.data)
    atomic_write(out / "report.html", page)
    atomic_write(out / "report.json", _text(report.data))
    summary = {key: value for key, value in report.data.items() if key != "rows"}
    carried = {"report.html": page.encode(), "report.json": _text(summary).encode()}
    for skin in skins:
        write_skin(read_skin(out / skin), out / skin, carried, replace=True)


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _rows(
    out: Path,
    outcomes: Mapping[str, RungOutcome],
    tested: Mapping[str, Tested],
    bases: Mapping[str, str | None],
    rate: float,
    confidence: float,
    hurdles: Hurdles,
) -> Iterator[schema.Row]:
    """One for each candidate and split that it was evaluated on."""
    for name, outcome in outcomes.items():
        base, result = bases[name], outcome.result
        if result is None:
            yield _row(name, base, outcome, "valid", None, None, out, rate, confidence)
            continue
        priced = hurdles.priced(result.evaluation, result, result.latency)
        yield _row(name, base, outcome, "valid", priced, result.latency, out, rate, confidence)
        if name in tested:
            priced = hurdles.priced(tested[name].evaluation, result, tested[name].latency)
            yield _row(name, base, outcome, "test", priced, tested[name].latency, out, rate, confidence)


def _row(
    rung: str,
    base: str | None,
    outcome: RungOutcome,
    split: Split,
    priced: Priced | None,
    timing: Latency | None,
    out: Path,
    rate: float,
    confidence: float,
) -> schema.Row:
    result, evaluation = outcome.result, None if priced is None else priced.evaluation
    skin = None if result is None else result.skin
    evaluated_with = (
        None if skin is None else read_skin(out / skin).evaluated_with
    )  # a cascade's two skins say their own
    return schema.Row(
        rung=rung,
        base=base,
        status="done" if result is not None else "skipped" if outcome.status == "skipped" else "failed",
        reason=outcome.reason if result is None else result.reason,
        split=split,
        estimate=None if priced is None else priced.estimate,
        interval=None if priced is None else priced.interval,
        n=0 if evaluation is None else evaluation.n,
        groups=0 if evaluation is None else evaluation.groups,
        coverage=None if evaluation is None else evaluation.coverage,
        answered=None if evaluation is None else evaluation.answered,
        # seeds are a spread on valid; only the chosen one has seen test
        seeds=() if result is None or split != "valid" else tuple(schema.Seed(**seed) for seed in result.seeds),
        usd_per_1k_calls=None if timing is None or result is None else 1000 * result.price(rate, timing.mean),
        p50_ms=None if timing is None else timing.p50 * 1000,
        p95_ms=None if timing is None else timing.p95 * 1000,
        **({} if timing is None or result is None else _timing(result, timing, rate, confidence)),
        train_seconds=None if result is None else result.train_seconds,
        skin=skin,
        weights=None if evaluated_with is None else evaluated_with.weights,
        kernel=None if evaluated_with is None else evaluated_with.kernel,
    )


def _timing(result: RungResult, timing: Latency, rate: float, confidence: float) -> dict[str, Any]:
    """What is known of the price and of the p95 beside their estimates."""
    mean = timing.mean_interval(0.95)
    lower, upper = (None if bound is None else 1000 * bound for bound in timing.p95_bounds(confidence))
    charged = result.usd_per_call is not None
    return {
        "usd_interval": None if mean is None or charged else tuple(1000 * result.price(rate, end) for end in mean),
        "p95_bounds_ms": (lower, upper),
        "calls": timing.calls,
        "load": timing.load,
    }


def _untried(left_out: Sequence[schema_plan.NotTried]) -> str | None:
    names = [omission.rung for omission in left_out if omission.what == "rung" and omission.kind != "impossible"]
    return f"Not tried, so that the cheapest may be among them: {', '.join(names)}." if names else None


def _one_look(labels: LabelBudget | None) -> tuple[str, ...]:
    if labels is None or len(labels.looks) == 1:
        return ()
    return (
        "p-values of comparisons on test are those of one look; several were taken, and only the verdict's bounds "
        "allow for that",
    )


def _exploratory(opening: Opening | None) -> str | None:
    if opening is None or not opening.exploratory:
        return None
    return (
        f"EXPLORATORY: some of these test rows have served {opening.number - 1} earlier verdict"
        f"{'s' if opening.number > 2 else ''}; only fresh rows can confirm."
    )


def _classical(
    evaluations: Mapping[str, Evaluation], judged: str | None, seed: int, results: Mapping[str, RungResult]
) -> str | None:
    """What the classical baseline says about the nominee, on the same test rows; and which skin it is."""
    classical = in_role("classical")
    if judged is None or judged == classical or judged not in evaluations or classical not in evaluations:
        return None
    ours, theirs = evaluations[judged], evaluations[classical]
    comparison = compare(ours, theirs, seed)
    numbers = f"{theirs.scale.format_score(theirs.estimate)} on the same rows"
    place = results[classical].skin
    location = "" if place is None else f" ({place})"
    if comparison.difference <= 0:
        return f"A classical model of the task's own labels does as well or better ({numbers}): use that one{location}."
    if comparison.p_value > 0.05:
        return (
            f"A classical model of the task's own labels scores {numbers}; {judged} is not measurably better "
            f"(p = {comparison.p_value:.2g}): consider it first{location}."
        )
    return f"A classical model of the task's own labels scores {numbers} (p = {comparison.p_value:.2g} for the difference)."


def _too_long(tested: Mapping[str, Tested]) -> list[str]:
    return [
        f"{t.too_long} test rows are too long for {name} and count as wrong" for name, t in tested.items() if t.too_long
    ]
