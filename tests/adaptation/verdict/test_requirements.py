"""Several requirements at once: the bounds of each, their effect on the verdict, and its error rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from bedplate.adaptation.context.outcome import Latency, RungResult
from bedplate.adaptation.task.target_spec import TargetSpec, check_target
from bedplate.adaptation.verdict import gate
from bedplate.adaptation.verdict.acceptance import Bar, NomineesOnTest
from bedplate.adaptation.verdict.decision import GateDecision, GateVerdict, Nomination
from bedplate.adaptation.verdict.requirements import CallPrice, Priced, RequirementResult, requirements_of
from bedplate.core.errors import ConfigError
from bedplate.core.statistics.proportions import binomial_lower, binomial_upper
from bedplate.evaluation.evaluated import Evaluation
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import evaluate_predictions
from bedplate.evaluation.task import Task
from bedplate.inference.predict.predictor import Prediction

COSTS = {"costs": {"a": {"b": 1.0}, "b": {"a": 4.0}}}


def task(metric: Any = "accuracy", **data: Any) -> Task:
    return Task.model_validate(
        {
            "task": "t",
            "inputs": {"x": {"column": "x"}},
            "output": {"kind": "label", "labels": ["a", "b"]},
            "data": {"source": "s", "target": "y", "split": {"train": 0.6, "valid": 0.2, "test": 0.2}, **data},
            "metric": metric,
        }
    )


def evaluated(
    right: Sequence[bool], of: Task | None = None, sure: float | None = None, german: int = 10, split: str = "test"
) -> Evaluation:
    """Rows of label a and b in turn, every tenth (by default) in German."""
    examples = [
        Example(
            str(i), {"x": str(i)}, "ab"[i % 2], str(i), f"{i:064d}", slices={"language": "en" if i % german else "de"}
        )
        for i in range(len(right))
    ]
    answers: list[Any] = ["ab"[(i + (not is_right)) % 2] for i, is_right in enumerate(right)]
    if sure is not None:
        other_logprob = float(np.log1p(-sure))
        answers = [
            Prediction(label, label, {label: float(np.log(sure)), "b" if label == "a" else "a": other_logprob})
            for label in answers
        ]
    return evaluate_predictions(of or task(), examples, answers, split=split)


def wrong_every(k: int, n: int = 400) -> list[bool]:
    return [i % k != 1 for i in range(n)]


def only(target: dict[str, Any], evaluation: Evaluation, **kwargs: Any) -> RequirementResult:
    (shown,) = requirements_of(TargetSpec.model_validate(target), evaluation, **kwargs)
    return shown


def test_a_slice_has_a_bar_of_its_own_with_the_rows_that_would_decide() -> None:
    evaluation = evaluated([i % 40 != 0 for i in range(400)])  # 10 of the 40 German rows are wrong
    target = {"value": 0.8, "all_of": [{"where": {"language": "de"}, "at_least": 0.7}]}
    requirement = only(target, evaluation).at(0.95)
    assert (requirement.value, requirement.n, requirement.slice) == (0.75, 40, "language: de")
    assert requirement.lower == pytest.approx(binomial_lower(30, 40, 0.95))
    assert requirement.upper == pytest.approx(binomial_upper(30, 40, 0.95))
    assert requirement.holds is None
    assert requirement.needed_n is not None
    assert requirement.needed_n > 10 * 400 * 0.5  # a tenth of the test rows are German
    assert f"about {requirement.needed_n:,} test rows in all would" in requirement.reason
    satisfied = only({"value": 0.8, "all_of": [{"where": {"language": "de"}, "at_least": 0.5}]}, evaluation).at(0.95)
    assert (satisfied.holds, satisfied.needed_n) == (True, None)
    broken = only({"value": 0.8, "all_of": [{"where": {"language": "de"}, "at_least": 0.95}]}, evaluation).at(0.95)
    assert broken.holds is False
    missing = only({"value": 0.8, "all_of": [{"where": {"language": "fr"}, "at_least": 0.5}]}, evaluation).at(0.95)
    assert (missing.holds, missing.value) == (None, None)
    assert "no test row has language: fr" in missing.reason


def test_every_label_and_every_value_of_a_column_is_one_requirement() -> None:
    evaluation = evaluated(wrong_every(8))  # every fourth row of label b is wrong
    target = TargetSpec.model_validate({"value": 0.8, "all_of": [{"every": "label", "at_least": 0.6}]})
    a, b = (shown.at(0.95) for shown in requirements_of(target, evaluation))
    assert (a.slice, a.value, b.slice, b.value) == ("label: a", 1.0, "label: b", 0.75)
    target = TargetSpec.model_validate({"value": 0.8, "all_of": [{"every": "language", "at_least": 0.6}]})
    assert [shown.slice for shown in requirements_of(target, evaluation)] == ["language: de", "language: en"]


def test_another_metric_and_the_calibration_error_are_bounded_on_the_same_rows() -> None:
    evaluation = evaluated(wrong_every(8), sure=0.9)
    requirement = only({"value": 0.8, "all_of": [{"metric": "macro_f1", "at_least": 0.8}]}, evaluation).at(0.95)
    assert requirement.value == pytest.approx((2 * 200 / (400 + 50) + 2 * 150 / (300 + 50)) / 2)
    target = {"value": 0.8, "all_of": [{"metric": "calibration_error", "at_most": 0.1}]}
    error = only(target, evaluation).at(0.95)
    assert (error.direction, error.value) == ("at_most", pytest.approx(0.9 - 0.875))
    assert error.holds is True
    assert error.lower is not None
    assert error.upper is not None
    assert error.lower < 0.025 < error.upper < 0.1
    assert "at most" in error.reason
    silent = only(target, evaluated(wrong_every(8))).at(0.95)
    assert (silent.holds, silent.value) == (None, None)
    assert "carry no probabilities" in silent.reason


def test_a_slice_has_the_metric_that_is_named_whatever_the_task_is_judged_by() -> None:
    right = [i % 40 != 0 and i % 13 > 0 for i in range(400)]
    for metric in ("accuracy", "macro_f1"):
        evaluation = evaluated(right, task(metric), german=3)
        german = [row for row in evaluation.rows if (row.slices or {})["language"] == "de"]
        targets, predictions = [row.target for row in german], [row.prediction for row in german]
        condition = {"where": {"language": "de"}, "at_least": 0.5}
        named = only({"value": 0.8, "all_of": [{"metric": "macro_f1", **condition}]}, evaluation)
        assert named.at(0.95).value == pytest.approx(f1_score(targets, predictions, average="macro"))
        assert named.words == "macro f1 where language: de at least 0.5"
        plain = only({"value": 0.8, "all_of": [condition]}, evaluation)
        assert plain.at(0.95).value == pytest.approx(accuracy_score(targets, predictions))
        assert plain.words.startswith("accuracy where" if metric == "accuracy" else "row score where")


def test_a_skin_is_compared_with_the_current_system() -> None:
    current, new = evaluated(wrong_every(8)), evaluated(wrong_every(7))
    baseline = Priced(current)
    close = only({"against": "current", "margin": 0.05}, new, reference=baseline).at(0.95)
    assert close.value == pytest.approx(new.estimate - current.estimate)
    assert close.lower is not None
    gap = np.array([a.score - b.score for a, b in zip(new.rows, current.rows, strict=True)])
    by_t = gap.mean() - stats.t.ppf(0.95, 399) * gap.std(ddof=1) / 20
    assert close.lower == pytest.approx(by_t, abs=0.002)  # further out by the side that the changes lean to
    assert close.holds is None
    assert close.needed_n is not None
    better = only({"against": "current", "better_by": 0}, evaluated([True] * 400), reference=baseline).at(0.95)
    assert (better.holds, better.requirement) == (True, "better than current")
    worse = only({"against": "current", "margin": 0.02}, evaluated(wrong_every(3)), reference=baseline).at(0.95)
    assert worse.holds is False


def test_without_a_value_the_bar_is_the_current_system_less_the_margin() -> None:
    target = TargetSpec.model_validate({"against": "current", "margin": 0.05})
    current, new = evaluated(wrong_every(8)), evaluated(wrong_every(20))
    bar = Bar(target, task().scale, {"test": Priced(current)})
    assert bar.score("test") == pytest.approx(current.estimate - 0.05)
    judged = bar.judged(new)
    (shown,) = bar.requirements(new)
    assert judged.bound(0.97) - current.estimate == pytest.approx(shown.at(0.97).lower)
    confirmations = gate.confirm([("x", judged)], {"x": judged}, target=bar.score("test"), alpha=0.05)
    assert confirmations[0].passed == shown.is_shown(confirmations[0].lower_confidence)


def test_comparisons_include_the_price_of_a_call() -> None:
    costs = task(COSTS)
    new, current = evaluated(wrong_every(8), costs), evaluated(wrong_every(8), costs)
    assert new.scale.value(new.estimate) == pytest.approx(50 * 4.0 / 400)
    bar = Bar(TargetSpec.model_validate({"value": 0.8}), costs.scale)
    calls = Latency(2.0, 2.0, 2.0, 4, (1.0, 2.0, 2.0, 3.0))
    price = bar.price(RungResult("x", new, calls, 0.0, ""), calls, 36.0)  # a cent a second
    assert bar.scale.value(Priced(new, price).estimate) == pytest.approx(0.5 + 0.02)
    assert bar.scale.value(Priced(new, price).bound(0.95)) > bar.scale.value(new.bound(0.95)) + 0.02
    target = {"against": "current", "better_by": 0}
    dearer = only(target, new, price=price, reference=Priced(current, CallPrice.fixed(0.01 / 4))).at(0.95)
    assert dearer.value == pytest.approx(0.01)  # in dollars of a call: the skin costs a cent more
    assert dearer.direction == "at_most"
    cheap = only({"value": 0.8, "all_of": [{"where": {"language": "de"}, "at_most": 0.8}]}, new, price=price).at(0.95)
    assert cheap.value == pytest.approx(new.scale.value(float(np.mean([r.score for r in new.rows[::10]]))) + 0.02)


def verdict(shown: dict[str, list[RequirementResult]], tested: dict[str, Evaluation], bar: float = 0.8) -> GateDecision:
    names = tuple(tested)
    checks = {n: lambda level, n=n: all(requirement.is_shown(level) for requirement in shown[n]) for n in names}
    claims = NomineesOnTest(bar, {}, shown).claims
    confirmations = gate.confirm(list(tested.items()), tested, target=bar, alpha=0.05, checks=checks, claims=claims)
    requirements = {
        c.rung: [requirement.at(c.lower_confidence) for requirement in shown[c.rung]] for c in confirmations
    }
    nomination = Nomination(names, names[0], None, {})
    return GateVerdict(
        nomination, confirmations, metric="accuracy", target=bar, n=400, groups=400, requirements=requirements
    ).decision


def test_the_verdict_names_the_requirement_and_the_rows_that_it_needs() -> None:
    evaluation = evaluated([i % 40 != 0 for i in range(400)])

    def decided(at_least: float) -> GateDecision:
        target = {"value": 0.8, "all_of": [{"where": {"language": "de"}, "at_least": at_least}]}
        return verdict({"x": [only(target, evaluation)]}, {"x": evaluation})

    passed, undecided, failed = decided(0.5), decided(0.7), decided(0.95)
    assert (passed.status, passed.rung) == ("PASS", "x")
    assert "The further requirements hold: accuracy where language: de at least 0.5" in passed.reason
    assert undecided.status == "INSUFFICIENT_DATA"
    assert "accuracy where language: de at least 0.7: 0.750 on 40 rows" in undecided.reason
    assert "test rows in all would" in undecided.reason
    assert failed.status == "FAIL"
    assert "but a requirement is not met: accuracy where language: de at least 0.95" in failed.reason


def test_the_bar_shares_the_error_of_a_fail_with_the_further_requirements() -> None:
    right = [i % 400 >= 94 for i in range(400)]  # 306 of 400

    def at(alpha: float) -> float:
        return float(stats.beta.ppf(1 - alpha, 306 + 1, 400 - 306))

    assert at(0.05) < 0.803 < at(0.05 / 3)
    evaluation = evaluated(right)
    alone = verdict({"x": []}, {"x": evaluation}, 0.803)
    assert alone.status == "FAIL"
    target = TargetSpec.model_validate({"value": 0.803, "all_of": [{"every": "label", "at_least": 0.76}]})
    shown = {"x": requirements_of(target, evaluation)}
    assert verdict(shown, {"x": evaluation}, 0.803).status == "INSUFFICIENT_DATA"  # each of three claims has a third
    assert NomineesOnTest(0.803, {}, shown).claims == 3
    assert NomineesOnTest(0.803, {}, {}).claims == 1
    against = {"x": [only({"against": "current", "margin": 0.02}, evaluation, reference=Priced(evaluation))]}
    assert NomineesOnTest(0.803, {}, against).claims == 1  # the bar is that comparison


def test_a_requirement_shares_the_error_of_a_fail_with_guards_and_limits() -> None:
    evaluation = evaluated([i % 400 >= 94 for i in range(400)])  # 306 of 400
    target = TargetSpec.model_validate({"value": 0.5, "all_of": [{"metric": "accuracy", "at_least": 0.81}]})
    shown = {"x": requirements_of(target, evaluation)}
    assert NomineesOnTest(0.5, {}, shown).at({"x": 0.95})["x"][0].holds is False
    among_four = NomineesOnTest(0.5, {}, shown, conditions=4)
    assert among_four.claims == 6
    assert among_four.at({"x": 0.95})["x"][0].holds is None


def test_rows_that_both_answer_alike_promise_no_verdict_from_one_row() -> None:
    evaluation = evaluated(wrong_every(8, 60))
    judged = Bar(
        TargetSpec.model_validate({"against": "current", "margin": 0.02}), task().scale, {"test": Priced(evaluation)}
    )
    (confirmation,) = gate.confirm(
        [("x", judged.judged(evaluation))], {"x": judged.judged(evaluation)}, target=judged.score("test"), alpha=0.05
    )
    assert not confirmation.passed
    rows = np.log(0.05) / np.log(1 - 0.02)  # that many without any change show a share under 2%
    assert confirmation.needed_n is not None
    assert confirmation.needed_n > rows


def test_false_passes_with_one_of_three_requirements_broken_stay_within_the_level() -> None:
    """Two nominees clear the bar; of each, one slice is at its bar, and the others have room."""
    rng = np.random.default_rng(0)
    target = TargetSpec.model_validate(
        {"value": 0.6, "all_of": [{"every": "language", "at_least": 0.7}, {"where": {"label": "a"}, "at_least": 0.6}]}
    )
    passed = 0
    for _ in range(50):
        tested = {}
        for name in "xy":
            rate = np.where(np.arange(300) % 3 == 0, 0.7, 0.9)
            tested[name] = evaluated((rng.random(300) < rate).tolist(), german=3)
        passed += (
            verdict({n: requirements_of(target, evaluation) for n, evaluation in tested.items()}, tested, 0.6).status
            == "PASS"
        )
    assert passed / 50 <= 0.05 + 3 * (0.05 * 0.95 / 50) ** 0.5


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"confidence": 0.9}, "give a `value`"),
        ({"value": 0.8, "against": "current"}, "`against` goes with"),
        ({"against": "current", "margin": 0.1, "better_by": 0}, "either `margin` or"),
        ({"against": "current", "margin": 0}, "write `better_by: 0`"),
        ({"value": 0.8, "all_of": [{"metric": "accurcy", "at_least": 0.8}]}, "no metric 'accurcy'.*accuracy"),
        ({"value": 0.8, "all_of": [{"at_least": 0.8}]}, "say of what"),
        ({"value": 0.8, "all_of": [{"every": "label"}]}, "either `at_least` or `at_most`"),
        ({"value": 0.8, "all_of": [{"metric": "calibration_error", "at_least": 0.1}]}, "give `at_most`"),
        ({"value": 0.8, "all_of": [{"where": {"a": "b"}, "every": "c", "at_least": 0.1}]}, "either `where`"),
    ],
)
def test_targets_that_say_too_little_are_refused(target: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TargetSpec.model_validate(target)


@pytest.mark.parametrize(
    ("metric", "target", "message"),
    [
        ("accuracy", {"value": 1.5}, "adapt.target.value: 1.5 cannot be cleared"),
        ("accuracy", {"against": "current", "margin": 0.02}, "name their column under `data.current`"),
        ("accuracy", {"against": "own_promt", "margin": 0.02}, "neither 'current' nor a rung"),
        ("accuracy", {"value": 0.8, "all_of": [{"every": "country", "at_least": 0.5}]}, r"data.slices: \[country\]"),
        ("accuracy", {"value": 0.8, "all_of": [{"where": {"label": "c"}, "at_least": 0.5}]}, "'c' is no label"),
        ("accuracy", {"value": 0.8, "all_of": [{"metric": "coverage", "at_least": 0.5}]}, "without `output.abstain`"),
        ("accuracy", {"value": 0.8, "all_of": [{"metric": "rouge_l", "at_least": 0.5}]}, "does not fit"),
        ("accuracy", {"value": 0.8, "all_of": [{"every": "label", "at_least": 1.5}]}, "lies outside 0 to 1"),
        (
            "macro_f1",
            {"value": 0.8, "all_of": [{"metric": "macro_f1", "every": "label", "at_least": 0.5}]},
            "rows of one label cannot show macro_f1",
        ),
        (COSTS, {"value": 9.0}, "never costs more than"),
        (COSTS, {"value": 0.5, "all_of": [{"every": "label", "at_least": 0.5}]}, "costs are bounded from above"),
    ],
)
def test_targets_that_do_not_fit_the_task_are_refused(metric: Any, target: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_target(TargetSpec.model_validate(target), task(metric), ["zero_shot", "own_prompt"])
