"""A verdict on routed traffic with outcomes that come late or never."""

from __future__ import annotations

import random

import numpy as np
import pytest
from pydantic import ValidationError

from bedplate.core.statistics.betting import lower_bound
from bedplate.serving.durable.feedback_service import (
    Latest,
    _note,  # pyright: ignore[reportPrivateUsage]
)
from bedplate.serving.rollout.verdict import AnsweredCall, Digests, OnlineVerdict, ShadowPair, answer_digest, compare
from bedplate.serving.settings.server_config import JUDGED_WRONG, RouteConfig, RouteVerdict

VERSIONS = {"old": 0.9, "new": 0.1}


class Traffic:
    """A manual clock, users' feedback, and calls whose answer is `a`."""

    def __init__(self, shadow: str | None = None, **settings: object) -> None:
        self.clock, self.outcomes = 0.0, dict[str, str | None]()
        self.digests = Digests(self.outcomes)
        config = RouteConfig.model_validate({"versions": VERSIONS, "shadow": shadow, "verdict": settings})
        assert config.verdict is not None
        self.verdict = OnlineVerdict(config.verdict, shadow, lambda: self.clock)

    def call(self, id: str, version: str, shadow: str | None = None, **outcomes: str | None) -> None:
        if outcomes:
            self.outcomes[id] = outcomes["outcome"]
        copy = None if shadow is None else answer_digest(shadow)
        self.verdict.record(id, version, answer_digest("a"), copy, self.digests)

    def report(self) -> dict[str, object]:
        return self.verdict.report(self.digests)

    def later(self) -> dict[str, object]:
        """The report after the waiting time of every call."""
        self.clock += 60
        return self.report()


def test_calls_count_after_the_waiting_time_and_late_outcomes_still_count() -> None:
    traffic = Traffic(of="new", at_least=0.8, wait_minutes=60)
    for i in range(100):
        traffic.call(str(i), "new")
        traffic.call(f"o{i}", "old", outcome=None)  # not of the version that is judged
    assert (traffic.report()["judged"], traffic.report()["pending"]) == ({"new": 0}, 100)
    traffic.outcomes.update({str(i): None if i < 78 else "b" for i in range(80)})  # said only now; 20 never
    assert traffic.report()["judged"] == {"new": 0}  # complaints come sooner than praise
    traffic.clock = 3600.0
    report = traffic.report()
    assert (report["judged"], report["missing"], report["pending"]) == ({"new": 80}, {"new": 20}, 0)
    assert report["estimate"] == pytest.approx(78 / 80)
    assert report["lower"] == pytest.approx(lower_bound({1.0: 78, 0.0: 2}))
    assert report["status"] == "PASS"
    worst = report["worst_case"]
    assert isinstance(worst, dict)
    assert worst["lower"] == pytest.approx(lower_bound({1.0: 78, 0.0: 22}))
    assert worst["status"] == "INSUFFICIENT_DATA"
    assert "Calls without feedback are left out, as if they were like the judged ones: 20" in str(report["reason"])
    traffic.outcomes["99"] = "b"  # after its time
    assert traffic.report()["missing"] == {"new": 20}


def test_a_canary_is_compared_with_the_current_version() -> None:
    traffic = Traffic(of="new", against="old", margin=0.05, wait_minutes=1)
    rng = random.Random(0)
    for i in range(6000):
        version = "new" if i % 2 else "old"
        traffic.call(str(i), version, outcome=None if rng.random() < 0.9 else "b")
    report = traffic.later()
    assert (report["status"], report["needed"]) == ("PASS", -0.05)
    assert "it may lose 0.05" in str(report["reason"])
    worse = Traffic(of="new", against="old", margin=0.05, wait_minutes=1)
    for i in range(3000):
        worse.call(str(i), "new" if i % 2 else "old", outcome=None if i % 2 == 0 or rng.random() < 0.7 else "b")
    assert worse.later()["status"] == "FAIL"


def test_a_shadow_is_compared_on_the_same_calls() -> None:
    traffic = Traffic("next", of="next", against="old", margin=0.02, wait_minutes=1)
    for i in range(1000):
        traffic.call(str(i), "old", shadow="a", outcome=None)
        traffic.call(f"n{i}", "new", shadow="a", outcome=None)  # a pair with another version
    report = traffic.later()
    assert (report["estimate"], report["judged"]) == (0.0, {"next": 1000})
    assert report["status"] == "PASS"  # differences of no pair: a margin is soon shown
    lost = Traffic("next", of="next", against="old", wait_minutes=1)
    for i in range(400):
        lost.call(str(i), "old", shadow="a" if i % 4 else "b", outcome=None)
    assert lost.later()["estimate"] == pytest.approx(-0.25)
    assert lost.later()["status"] == "FAIL"


def test_an_answer_rated_wrong_does_not_judge_other_answers() -> None:
    targets: Latest[str | None] = Latest(10)
    for row in ({"rating": "bad", "correction": None}, {"rating": None, "correction": None}):
        _note(targets, {"id": "x", "index": 0, **row})
    assert targets["x"] == JUDGED_WRONG
    _note(targets, {"id": "x", "index": 0, "rating": None, "correction": "b"})
    _note(targets, {"id": "x", "index": 0, "rating": "bad", "correction": None})
    assert targets["x"] == "b"  # a correction says more
    traffic = Traffic("next", of="next", at_least=0.5, wait_minutes=1)
    traffic.call("same", "old", shadow="a", outcome=JUDGED_WRONG)
    traffic.call("other", "old", shadow="b", outcome=JUDGED_WRONG)
    report = traffic.later()
    assert (report["judged"], report["missing"], report["estimate"]) == ({"next": 1}, {"next": 1}, 0.0)
    pairs = [
        ShadowPair(name, "t", "old", AnsweredCall((answer_digest("a"),), 1.0, 1.0), AnsweredCall((digest,), 1.0, 1.0))
        for name, digest in (("same", answer_digest("a")), ("other", answer_digest("b")))
    ]
    wrong = answer_digest(JUDGED_WRONG)
    assert compare(pairs, {"same": wrong, "other": wrong})["correctness"]["n"] == 1


@pytest.mark.slow
def test_continuous_looks_pass_a_version_at_the_bar_at_most_at_the_error_rate() -> None:
    rng = np.random.default_rng(1)
    passed = 0
    for _ in range(100):
        traffic = Traffic(of="new", at_least=0.8, wait_minutes=1)
        for i, right in enumerate(rng.random(400) < 0.8):
            traffic.call(str(i), "new", outcome=None if right else "b")
            if i % 100 == 99 and traffic.later()["status"] == "PASS":
                passed += 1
                break
    assert passed / 100 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 100)


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        ({"of": "new"}, "either `at_least`"),
        ({"of": "new", "at_least": 0.9, "against": "old"}, "either `at_least`"),
        ({"of": "new", "against": "new"}, "against itself"),
        ({"of": "new", "at_least": 0.9, "margin": 0.1}, "goes with `against`"),
        ({"of": "other", "at_least": 0.9}, "neither a version of the route nor its shadow"),
        ({"of": "new", "against": "other"}, "no version of the route; a version without calls .* weight 0"),
        ({"of": "new", "at_least": 0.9, "wait_minutes": 0}, "comes after it"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(verdict: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RouteConfig.model_validate({"versions": VERSIONS, "verdict": verdict})


def test_a_verdict_exists_before_any_call() -> None:
    report = OnlineVerdict(RouteVerdict(of="new", at_least=0.9), None).report(Digests({}))
    assert (report["status"], report["estimate"], report["lower"], report["upper"]) == ("INSUFFICIENT_DATA", None, 0, 1)
