"""The four worked cases: the answer, its reasons and its flipping points, these by arithmetic of their own."""

from __future__ import annotations

import datetime
import math
from pathlib import Path

import pytest

from bedplate.economics.costs.decisions import Decision, decide, load_case
from bedplate.economics.costs.decisions.decision import Flip, Sensitivity
from bedplate.economics.costs.decisions.explanation import answer, reasons

EXAMPLES = Path(__file__).parents[3] / "examples/decide"
TODAY = datetime.date(2026, 11, 25)
MONTHS = 365 / (365 / 12)


def worked(name: str) -> Decision:
    return decide(*load_case(EXAMPLES / f"{name}.yaml"), TODAY)


def sensitivity(decision: Decision, name: str) -> Sensitivity:
    return next(candidate for candidate in decision.sensitivities if candidate.input.name == name)


def flip(decision: Decision, name: str, side: str) -> Flip:
    point = getattr(sensitivity(decision, name), side)
    assert point is not None
    return point


def test_hosted_wins_at_low_volume() -> None:
    decision = worked("hosted_at_low_volume")
    assert decision.answer == "prompt-large"
    assert answer(decision).startswith("Prompt a hosted model: prompt-large costs $6,806 over 365 days (90%: $6,")
    assert answer(decision).endswith("$0.0212 a call; next is tune-small, which costs $8,775 more.")
    why = reasons(decision)
    assert why[0] == "prompt-small is out: its quality may be as low as 0.83, and the bar is 0.88."
    lines = "+$5,500 tuning work, +$2,967 tuning again, +$900 training labels, -$592 all else"
    assert why[1] == f"tune-small costs $8,775 more: {lines}."
    assert "tune-open: 1 reserved machine is paid day and night, and calls take 0.065% of what it can do." in why

    # the volume from which tuning pays: USD of a call of each, and what tuning costs beyond the other's setup
    prefix, fresh, output = 1020 * 1.33, 180 * 1.33, 4 * 1.33
    large = (prefix * (0.8 * 0.30 + 0.2 * 3.75) + fresh * 3 + output * 15) / 1e6
    tuned_prefix = 40 * 1.33  # shorter than the cache takes
    small = (tuned_prefix * 0.40 + fresh * 0.40 + output * 1.60) * 2 / 1e6
    run = 3000 * 3 * (tuned_prefix + fresh + output) * 5 / 1e6
    extra = 3000 * 0.30 + 50 * 110 + run + 2 * (500 * 0.30 + 12 * 110 + run)  # again on days 180 and 360
    rate = 1.2 ** (1 / 365)
    days = (rate**365 - 1) / math.log(rate)
    volume = extra / (large - small) / days
    assert flip(decision, "traffic.calls_per_day", "above").at == pytest.approx(volume, rel=1e-6)
    pair = decision.break_even("tune-small", "prompt-large")
    assert pair is not None
    assert pair.calls_per_day == pytest.approx(volume, rel=1e-6)
    assert pair.interval is not None
    assert pair.interval[0] is not None
    assert pair.interval[0] < volume

    quality = flip(decision, "options.prompt-large.quality", "below")
    assert (quality.at, quality.to, quality.within) == (pytest.approx(0.905), "tune-small", True)  # 0.88 + 0.025
    assert flip(decision, "bar.p95_ms", "below").at == pytest.approx(1800)
    assert not sensitivity(decision, "prices.hosted.hosted-large.usd_per_million_output").flips
    assert not sensitivity(decision, "prices.labelling.example.usd_per_label").flips


def test_open_weights_and_tuning_win_at_volume() -> None:
    decision = worked("open_weights_at_volume")
    assert decision.answer == "tune-open"
    assert decision.ranking == ("tune-open", "tune-hosted", "prompt-large")
    assert answer(decision).startswith("Tune open weights: tune-open costs $230,060 over 730 days (90%: $2")
    why = reasons(decision)
    assert why[0] == "prompt-open is out: its quality is at most 0.912, and the bar is 0.93."
    assert why[1].startswith("tune-hosted costs $209,663 more: +$180,191 output (calls), +$165,175 input (calls)")
    assert "-$105,120 reserved machines" in why[1]
    assert "tune-open: 2 reserved machines are paid day and night, and calls take 30% of what they can do." in why

    # two machines are enough around the break-even: both costs are straight lines there
    tokens = [words * 1.36 for words in (60, 220, 60)]
    live = (tokens[0] * 0.40 + tokens[1] * 0.40 + tokens[2] * 1.60) * 2 / 1e6
    call = 0.5 * live + 0.5 * live / 2  # half of the calls wait for the batch price
    example = sum(tokens)
    hosted_run, open_run = 8000 * 3 * example * 5 / 1e6, 8000 * 3 * 340 * 1.42 / 9000 / 3600 * 3
    hosted = 40 * 110 + 8000 * 0.30 + 100 * 110 + hosted_run + 8 * (300 + 20 * 110 + hosted_run) + 4 * 110 * 2 * MONTHS
    ours = 160 * 110 + 8000 * 0.30 + 160 * 110 + open_run + 8 * (300 + 24 * 110 + open_run) + 24 * 110 * 2 * MONTHS
    machines = 2 * 3 * 24 * 730
    days = (1.25**2 - 1) / math.log(1.25) * 365
    volume = (ours + machines - hosted) / call / days
    pair = decision.break_even("tune-open", "tune-hosted")
    assert pair is not None
    assert pair.calls_per_day == pytest.approx(volume, rel=1e-6)
    assert flip(decision, "traffic.calls_per_day", "below").at == pytest.approx(volume, rel=1e-6)
    assert flip(decision, "traffic.calls_per_day", "below").to == "tune-hosted"
    assert flip(decision, "options.tune-open.quality", "below").at == pytest.approx(0.94)  # 0.93 + 0.01
    cheaper = flip(decision, "bar.quality", "below")
    assert (cheaper.at, cheaper.to) == (pytest.approx(0.887), "prompt-open")
    machine = flip(decision, "prices.machines.gpu-large.usd_per_hour", "above")
    assert (machine.to, machine.within) == ("tune-hosted", False)
    lead = decision.outcome("tune-hosted").net_usd - decision.outcome("tune-open").net_usd
    hours = 2 * 24 * 730 + 9 * 8000 * 3 * 340 * 1.42 / 9000 / 3600  # of serving, and of nine tuning runs
    assert machine.at == pytest.approx(3 + lead / hours, rel=1e-6)
    assert decision.outcome("tune-open").best_in == 1


def test_retrieval_wins_as_knowledge_changes() -> None:
    decision = worked("retrieval_as_knowledge_changes")
    assert decision.answer == "retrieval-small"
    assert decision.ranking == ("retrieval-small", "retrieval-open", "tune-small", "handbook-in-prompt")
    assert answer(decision).startswith(
        "Prompt a hosted model with retrieval: retrieval-small costs $22,685 over 365 days (90%: $2"
    )
    why = "\n".join(reasons(decision))
    assert "tune-small costs $23,904 more: +$32,358 tuning again, +$6,600 tuning work" in why
    assert "handbook-in-prompt costs $127,243 more: +$140,991 repeated prompt (calls)" in why

    # tuned again n times in the year; retrieval wins while that costs more than the rest saves
    run = 3000 * 3 * (60 + 25 + 120) * 1.33 * 5 / 1e6
    refresh_usd = (150 + 50) * 0.30 + 5 * 110 + run
    tuned = decision.outcome("tune-small").total_usd - 52 * refresh_usd  # 52 times, every 7 days
    max_refreshes = int(
        (decision.outcome("retrieval-small").total_usd - tuned) / refresh_usd
    )  # refreshes that it may have
    changes = flip(decision, "knowledge.changes_every_days", "above")
    assert changes.at == pytest.approx(365 / (max_refreshes + 1), rel=1e-6)
    assert (changes.to, changes.within) == ("tune-small", False)
    volume = sensitivity(decision, "traffic.calls_per_day")
    assert volume.below is not None
    assert volume.above is not None
    assert (volume.below.to, volume.above.to) == ("handbook-in-prompt", "retrieval-open")


def test_from_scratch_wins_under_isolation_alone() -> None:
    decision = worked("from_scratch_for_isolation")
    assert decision.answer == "own-3b"
    assert answer(decision).startswith("Tune a base pretrained from scratch: own-3b costs $302,")
    assert answer(decision).endswith("a call; no other option is feasible.")
    why = reasons(decision)
    assert why[0] == (
        "regulatory_isolation (the supervisor audits all training data, and nothing may run elsewhere): only weights "
        "trained here, on known data, and run here: hosted models and others' open weights are out. "
        "Ruled out: prompt-hosted, tune-open."
    )
    assert why[1].startswith("Without regulatory_isolation it would be prompt-hosted at $92,923: ")
    assert why[1].endswith("costs $209,710.")
    assert "own-1b is out: its quality may be as low as 0.86, and the bar is 0.88." in why
    assert decision.unconstrained == "prompt-hosted"
    assert decision.outcome("tune-open").broken == ("regulatory_isolation",)
    # a constraint is no price: no price and no volume flips the answer, only what the bars look at
    assert {candidate.input.name for candidate in decision.sensitivities if candidate.flips} == {
        "bar.quality",
        "options.own-1b.quality",
        "options.own-3b.quality",
    }
    assert flip(decision, "options.own-3b.quality", "below").at == pytest.approx(0.90)
    assert flip(decision, "bar.quality", "below").to == "own-1b"
    free = decide(*load_case(EXAMPLES / "from_scratch_for_isolation.yaml", None, ["constraints={}"]), TODAY)
    assert free.answer == "prompt-hosted"
