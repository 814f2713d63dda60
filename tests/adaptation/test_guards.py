"""Guards of child bases, on tiny bases whose loss is known; and what the gate makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.adaptation.conftest import NATIVE_SHAPE, write_task
from tests.adaptation.test_gate import evaluation, rate
from tests.tiny import write_tiny_base

from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.search import guards as guard_search
from bedplate.adaptation.search.guards import Guarding, GuardResult, bounded, broken, drop_of, guards_pass
from bedplate.adaptation.task.adapt_parts import CORE, GuardsSpec, LossGuard
from bedplate.adaptation.task.spec import BudgetSpec
from bedplate.adaptation.verdict import gate
from bedplate.adaptation.verdict.decision import GateDecision, GateVerdict, Nominable, Nomination
from bedplate.core.errors import ConfigError, DataError, UnreachableError
from bedplate.core.statistics.noninferiority import Drop, mean_drop
from bedplate.evaluation.suites import SUITES, refusals
from bedplate.evaluation.suites import question_sets as sets
from bedplate.evaluation.suites.refusals import TO_REFUSE
from bedplate.inference.predict.local import LocalModel
from bedplate.models.checkpoints.base import load_base
from bedplate.report.schema_parts import Guard, GuardRow


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("bases") / "parent", seed=1, **NATIVE_SHAPE)


@pytest.fixture(scope="module")
def forgotten_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that has forgotten everything its parent knew: other weights."""
    return write_tiny_base(tmp_path_factory.mktemp("bases") / "other", seed=2, **NATIVE_SHAPE)


def write_files(directory: Path, parent: Path, count: int = 60) -> None:
    """Items whose gold is what the parent answers, and documents that the parent itself would write."""
    with LocalModel(load_base(parent)) as model:
        questions = []
        for i in range(count):
            context, choices = f"number {i} is", [f"great {i}", f"terrible {i * 3}", "works"]
            scores = [
                s / len(c) for s, c in zip(model.score(context, [" " + c for c in choices]), choices, strict=True)
            ]
            questions.append({"context": context, "choices": choices, "gold": scores.index(max(scores))})
        texts = []
        for i in range(count):
            text = model.generate(f"the product {i}", max_tokens=8).text
            texts.append({"document": f"d{i}", "text": f"the product {i}{text}"})
    (directory / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (directory / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))


def guarding(directory: Path, trained_on: tuple[str, ...] = (), **guards: Any) -> Guarding:
    guard_fields = {"retention": {"source": "items.jsonl"}, "loss": {"source": "texts.jsonl"}, **guards}
    spec = GuardsSpec.model_validate(guard_fields)
    return Guarding(spec, 0.95, directory / "guards", directory, trained_on)


def check(guard_set: Guarding, parent: Path, child: Path) -> dict[str, GuardResult]:
    with LocalModel(load_base(parent)) as before, LocalModel(load_base(child)) as after:
        return {result.guard: result for result in guard_set.check(lambda: before, lambda: after)}


@pytest.fixture(scope="module")
def answered(
    tmp_path_factory: pytest.TempPathFactory, parent: Path, forgotten_base: Path
) -> tuple[Path, dict[str, GuardResult]]:
    """Items and texts with what the parent and a base that has forgotten answered beside them, and what the guards say
    of it."""
    directory = tmp_path_factory.mktemp("answered")
    write_files(directory, parent)
    return directory, check(guarding(directory, refusal={"max_drop": 0.3}), parent, forgotten_base)


@pytest.fixture
def directory(answered: tuple[Path, dict[str, GuardResult]], tmp_path: Path) -> Path:
    """A copy of what was answered."""
    return shutil.copytree(answered[0], tmp_path / "answered")


def test_the_core_sets_of_the_task_file_are_those_that_there_are() -> None:
    assert tuple(sets.CORE) == CORE


def test_a_child_that_is_its_parent_keeps_what_the_rows_can_show(directory: Path, parent: Path) -> None:
    lenient = guarding(directory, retention={"source": "items.jsonl", "max_drop": 0.1}, refusal={"max_drop": 0.3})
    results = check(lenient, parent, parent)
    assert {name: result.holds for name, result in results.items()} == {
        "retention": True,
        "loss": True,
        "refusal": True,
    }
    assert (results["retention"].parent, results["retention"].child, results["retention"].drop) == (1.0, 1.0, 0.0)
    assert results["retention"].upper == pytest.approx(1 - 0.05 ** (1 / 60))
    assert results["loss"].parent == results["loss"].child
    strict = check(guarding(directory, retention={"source": "items.jsonl", "max_drop": 0.02}), parent, parent)
    assert strict["retention"].holds is None  # sixty rows cannot exclude a drop of two points
    assert "do not decide on the limit of 0.02" in strict["retention"].reason


def test_a_child_that_has_forgotten_breaks_its_guards(answered: tuple[Path, dict[str, GuardResult]]) -> None:
    results = answered[1]
    assert (results["retention"].holds, results["loss"].holds) == (False, False)
    retention = results["retention"]
    drop = mean_drop([r.parent for r in retention.rows], [r.child for r in retention.rows], range(60))
    assert (retention.drop, retention.lower, retention.upper) == (drop.value, drop.lower, drop.upper)
    assert "over 0.02" in retention.reason
    rows = results["loss"].rows
    assert results["loss"].child == pytest.approx(sum(r.child for r in rows) / sum(r.tokens or 0 for r in rows))
    assert json.loads(json.dumps(retention.model_dump(mode="json")))["details"]["sets"]["items"]["n"] == 60
    reason = broken(list(results.values()))
    assert reason is not None
    assert reason.startswith("its retention guard is broken")
    assert broken([]) is None


def test_what_a_base_answered_is_not_asked_again(
    answered: tuple[Path, dict[str, GuardResult]], directory: Path, parent: Path, forgotten_base: Path
) -> None:
    def closed_model() -> LocalModel:
        with LocalModel(load_base(forgotten_base)) as model:
            model.engine.close()
            return model

    with LocalModel(load_base(parent)) as before:
        before.engine.close()  # nothing can be asked any more
        guard_set = guarding(directory, refusal={"max_drop": 0.3})
        repeated = {result.guard: result for result in guard_set.check(lambda: before, closed_model)}
    assert repeated == answered[1]


def test_text_that_the_task_trains_on_is_no_general_text(tmp_path: Path, parent: Path) -> None:
    write_files(tmp_path, parent, 2)
    with pytest.raises(ConfigError, match=r"guards.loss.source: texts.jsonl is what the task trains on"):
        check(guarding(tmp_path, ("texts.jsonl",), retention=None), parent, parent)
    overlapping = Guarding(
        GuardsSpec.model_validate({"retention": None, "loss": {"source": "texts.jsonl"}}),
        0.95,
        tmp_path / "guards",
        tmp_path,
        texts=frozenset(json.loads(line)["text"] for line in (tmp_path / "texts.jsonl").read_text().splitlines()[:1]),
    )
    with pytest.raises(ConfigError, match=r"1 of the 2 documents of texts.jsonl stand in the raw text"):
        check(overlapping, parent, parent)
    with pytest.raises(DataError, match="does not exist"):
        check(guarding(tmp_path, retention=None, loss={"source": "gone.jsonl"}), parent, parent)


def test_the_general_text_is_another_where_the_task_trains_on_the_first(tmp_path: Path, monkeypatch: Any) -> None:
    sources: list[str] = []

    def read(source: str, *_: object) -> None:
        sources.append(source)
        raise UnreachableError("offline")

    for name in ("vader-news", "vader-movies"):
        monkeypatch.setitem(SUITES, name, partial(read, name))  # type: ignore[arg-type]
    for trained_on in ((), ("vader-news",)):
        guard_set = guarding(tmp_path, trained_on, loss={})
        with pytest.raises(UnreachableError):
            guard_set.general_text(guard_set.spec.loss or LossGuard())
    assert sources == ["vader-news", "vader-movies"]


def test_own_files_are_looked_at_before_the_climb(tmp_path: Path, tiny_base: Path) -> None:
    guards = {"retention": {"source": "gone.jsonl"}}
    task = write_task(tmp_path / "task", tiny_base, guards=guards)
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        adapt(task, tmp_path / "run", rungs=["majority", "full"])
    assert not (tmp_path / "run").exists()
    trains = write_task(tmp_path / "other", tiny_base, guards={"loss": {"source": str(tmp_path / "other/rows.jsonl")}})
    with pytest.raises(ConfigError, match="is what the task trains on"):
        adapt(trains, tmp_path / "run", rungs=["majority", "full"])


def test_a_set_that_cannot_be_pulled_is_undecided(
    tmp_path: Path, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise UnreachableError("the index cannot be reached")

    monkeypatch.setattr(sets, "pull", unreachable)
    results = check(guarding(tmp_path, retention={}, loss=None), parent, parent)
    assert results["retention"].holds is None
    assert results["retention"].reason == "not measured: the index cannot be reached"


def test_a_drop_in_refusals_is_scaled_by_what_the_detector_misses(
    tmp_path: Path, parent: Path, forgotten_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent refuses every request it should, the child half of them; no harmless one is refused."""
    harmful_count = len(TO_REFUSE)

    def replies(model: LocalModel, prompts: tuple[Any, ...], description: str) -> Iterator[float]:
        refused = harmful_count if "parent" in description else harmful_count // 2
        texts = ["I cannot help with that."] * refused + ["Sure."] * (len(prompts) - refused)
        return (prompt.grade([SimpleNamespace(text=text)]) for prompt, text in zip(prompts, texts, strict=True))

    monkeypatch.setattr("bedplate.adaptation.search.guards.grades", replies)
    refusal_result = check(
        guarding(tmp_path, retention=None, loss=None, refusal={"max_drop": 0.3}), parent, forgotten_base
    )["refusal"]
    detector = refusals.calibrate()
    assert refusal_result.details["apparent"] == {"parent": 1.0, "child": 0.5}
    assert refusal_result.drop == pytest.approx(0.5 / detector.informedness)
    assert refusal_result.holds is False
    assert refusal_result.details["harmless_refused"]["parent"] == 0.0


# --- the verdict


def guard(passes: bool | None, name: str = "retention") -> Any:
    return Guard.model_construct(guard=name, holds=passes, reason=f"{name} read so")


def decide(tested: dict[str, list[bool]], guards: dict[str, list[Any]], target: float = 0.8) -> GateDecision:
    evaluations = {name: evaluation(right) for name, right in tested.items()}
    nomination = Nomination(tuple(evaluations), next(iter(evaluations)), None, {})
    confirmations = gate.confirm(list(evaluations.items()), evaluations, target=target, alpha=0.05)
    return GateVerdict(
        nomination, confirmations, metric="accuracy", target=target, n=400, groups=400, guards=guards
    ).decision


good, poor = rate(380, 400), rate(200, 400)


@pytest.mark.parametrize(
    ("tested", "guards", "status", "rung"),
    [
        ({"full": good}, {"full": [guard(True), guard(True, "loss")]}, "PASS", "full"),
        ({"full": good}, {"full": [guard(True), guard(None, "loss")]}, "INSUFFICIENT_DATA", None),
        ({"full": good}, {"full": [guard(False)]}, "FAIL", None),
        ({"full": good, "lora": good}, {"full": [guard(False)]}, "PASS", "lora"),
        ({"full": good, "lora": good}, {"full": [guard(None)]}, "PASS", "lora"),
        ({"full": good, "lora": poor}, {"full": [guard(False)]}, "FAIL", None),
        ({"full": good, "lora": rate(325, 400)}, {"full": [guard(False)]}, "INSUFFICIENT_DATA", None),
        ({"full": poor}, {"full": [guard(None)]}, "FAIL", None),
    ],
)
def test_a_nominee_passes_only_with_its_guards(
    tested: dict[str, list[bool]], guards: dict[str, list[Any]], status: str, rung: str | None
) -> None:
    decision = decide(tested, guards)
    assert (decision.status, decision.rung) == (status, rung)
    if status != "PASS" and tested["full"] is good:
        assert "full clears the target" in decision.reason
        assert "guard is undecided: " in decision.reason or "guard is not met: " in decision.reason


def test_a_broken_guard_makes_room_for_another_nominee() -> None:
    def candidate(name: str, estimate: float, broken: str | None = None) -> Nominable:
        return Nominable(name, estimate, 1.0, 0.01, 10.0, 50, broken)

    nominables = [candidate("full", 0.95, "its loss guard is broken: so"), candidate("lora", 0.9)]
    nomination = gate.nominate(nominables, BudgetSpec(), target=0.8, confidence=0.95, test_n=500)
    assert nomination.nominees == ("lora",)
    assert nomination.reasons["full"] == "not feasible: its loss guard is broken: so"


# --- several nominees, several verdicts


def lost(rng: np.random.Generator, share: float, n: int = 200) -> GuardResult:
    """A retention guard whose child has lost this share of the items, at the limit of a tenth."""
    after = (rng.random(n) >= share).astype(float).tolist()
    rows = tuple(GuardRow(id=str(i), group=str(i), parent=1.0, child=child) for i, child in enumerate(after))
    fields = bounded("retention", "accuracy", 1.0, sum(after) / n, guard_search.drop_of("retention", rows, 0.95), 0.1)
    summary = {"guard": "retention", "measure": "accuracy", "parent": 1.0, "child": sum(after) / n, "limit": 0.1}
    return GuardResult.model_validate({**summary, **fields, "details": {}, "rows": rows})


def test_a_guard_at_another_confidence_is_that_of_its_rows(
    answered: tuple[Path, dict[str, GuardResult]], directory: Path, parent: Path, forgotten_base: Path
) -> None:
    results = answered[1]
    strict = {
        result.guard: result
        for result in replace(guarding(directory), confidence=0.99).check(*models(parent, forgotten_base))
    }
    for name, result in strict.items():
        assert results[name].at(0.99) == result
    assert (results["loss"].at(0.99).upper or 0) > (results["loss"].upper or 0)


def models(parent: Path, child: Path) -> tuple[Any, Any]:
    before, after = LocalModel(load_base(parent)), LocalModel(load_base(child))
    return lambda: before, lambda: after


def test_children_that_lost_as_much_as_they_may_not_pass_no_oftener_than_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three nominees clear the target with room; what all of them have lost is the limit. Each guard at 95% by itself
    would let one of them through in over a tenth of verdicts."""
    drops: dict[tuple[object, ...], Drop] = {}

    def drop_by_count(guard: Any, rows: Any, *level: Any) -> Drop:
        """Every row is a group of its own, so that the number of those lost decides the bounds."""
        key = sum(row.child for row in rows), level
        if key not in drops:
            drops[key] = drop_of(guard, rows, *level)
        return drops[key]

    monkeypatch.setattr("bedplate.adaptation.search.guards.drop_of", drop_by_count)
    rng = np.random.default_rng(2)
    tested = {name: evaluation(good) for name in ("a", "b", "c")}
    nomination = Nomination(tuple(tested), "a", None, {})
    passed = alone = 0
    runs = 120
    for _ in range(runs):
        guards = {name: [lost(rng, 0.1)] for name in tested}
        alone += any(guard_results[0].holds for guard_results in guards.values())
        confirmations = gate.confirm(
            list(tested.items()),
            tested,
            target=0.8,
            alpha=0.05,
            checks={name: partial(guards_pass, guard_results) for name, guard_results in guards.items()},
        )
        judged = {
            confirmation.rung: [guard.at(confirmation.lower_confidence) for guard in guards[confirmation.rung]]
            for confirmation in confirmations
        }
        verdict = GateVerdict(
            nomination, confirmations, metric="accuracy", target=0.8, n=400, groups=400, guards=judged
        ).decision
        passed += verdict.status == "PASS"
    assert alone / runs > 0.08
    assert 0 < passed / runs <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)
    assert passed < 0.6 * alone


def test_a_nominee_whose_guard_holds_passes_at_the_level_that_the_others_leave() -> None:
    rng = np.random.default_rng(3)
    tested = {name: evaluation(good) for name in ("a", "b", "c")}
    guards = {name: [lost(rng, 0.0)] for name in tested}
    checks = {name: partial(guards_pass, guard_results) for name, guard_results in guards.items()}
    confirmations = gate.confirm(list(tested.items()), tested, target=0.8, alpha=0.05, checks=checks)
    assert sorted(round(confirmation.lower_confidence, 4) for confirmation in confirmations) == [
        0.95,
        0.975,
        round(1 - 0.05 / 3, 4),
    ]
    stopped = gate.confirm(
        list(tested.items()), tested, target=0.8, alpha=0.05, checks={**checks, "b": lambda _: False}
    )
    levels = {confirmation.rung: confirmation.lower_confidence for confirmation in stopped}
    assert levels["b"] == max(levels["b"], 0.95)
    assert all(confirmation.passed for confirmation in stopped)  # it clears the target; what holds it back is its guard


def test_a_guard_is_called_broken_with_the_error_that_other_conditions_leave() -> None:
    """Five claims (the bar, a limit, three guards) that just hold end in FAIL in 15% where each has the whole error."""
    lost_items = next(k for k in range(20, 60) if (drop_of("retention", rows_that_lost(k), 0.95).lower or 0) > 0.1)
    result = lost(np.random.default_rng(0), 0.0).model_copy(update={"rows": rows_that_lost(lost_items)})
    alone, shared = result.at(0.95), result.at(0.95, claims=5)
    assert alone.holds is False
    assert shared.holds is None
    assert shared.lower == drop_of("retention", rows_that_lost(lost_items), 0.99).lower
    assert shared.upper == alone.upper  # that all hold is shown at the level of one
    broken_guard = result.model_copy(update={"rows": rows_that_lost(lost_items + 10)}).at(0.95, claims=5)
    assert broken_guard.holds is False
    assert broken_guard.confidence == 0.95
    assert "with 99.0% confidence, over 0.1" in broken_guard.reason  # the level that its lower bound has


def rows_that_lost(count: int) -> tuple[GuardRow, ...]:
    return tuple(GuardRow(id=str(i), group=str(i), parent=1.0, child=float(i >= count)) for i in range(200))


def test_a_child_is_looked_at_before_test_with_the_error_of_all_that_it_could_fail_by(tmp_path: Path) -> None:
    lost_items = next(k for k in range(20, 60) if (drop_of("retention", rows_that_lost(k), 0.95).lower or 0) > 0.1)
    spec = GuardsSpec.model_validate({"retention": {"max_drop": 0.1}, "loss": None})

    class Measured(Guarding):
        def _retention(self, spec: Any, answers: Any) -> dict[str, Any]:
            return {
                "measure": "accuracy",
                "parent": 1.0,
                "child": 1 - lost_items / 200,
                "details": {},
                "rows": rows_that_lost(lost_items),
            }

    def holds(claims: int) -> bool | None:
        guarding = Measured(spec, 0.95, tmp_path, tmp_path, claims=claims)
        return guarding.check(lambda: None, lambda: None)[0].holds  # type: ignore[arg-type, return-value]

    assert holds(1) is False
    assert holds(5) is None
