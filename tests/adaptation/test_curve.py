"""Learning curves: sizes, nested draws, the crossover's arithmetic against brute force, whole runs on a tiny base."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.adaptation.conftest import write_task
from tests.homes import new_home

from bedplate.adaptation.context import context as contexts
from bedplate.adaptation.curve import learning_curve as curves
from bedplate.adaptation.curve.crossover import OverDraws, Resamples, crossing, crossing_of
from bedplate.adaptation.curve.learning_curve import DRAWS, curve_sentences, pays_from, possible_sizes
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.report.report import Report
from bedplate.adaptation.rungs import RUNGS
from bedplate.core.errors import UsageError
from bedplate.data.splits import SplitRecord, nested
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.task import Task, load_task
from bedplate.report.schema_parts import BreakEven, Crossover, Labels

RUNG_LIST = ["majority", "from_scratch", "zero_shot", "few_shot", "probe", "lora"]


def test_every_rung_has_a_place():
    """What learns from labels has points, what learns from none is a flat line, and the others say why not."""
    shown = {name: rung.traits for name, rung in RUNGS.items() if rung.traits.no_curve is None}
    assert {name: traits.side for name, traits in shown.items() if traits.learns} == {
        "from_scratch": "reference",
        **dict.fromkeys(["few_shot", "knn_few_shot", "prompt_search"], "prompt"),
        **dict.fromkeys(["probe", "soft_prompt", "lora", "dora", "full"], "weights"),
    }
    flat = {name: traits.side for name, traits in shown.items() if not traits.learns}
    assert flat == dict.fromkeys(["zero_shot", "own_prompt", "hosted"], "prompt")
    assert all(rung.traits.no_curve for name, rung in RUNGS.items() if name not in shown)


# --- sizes and draws


def test_sizes_above_train_become_all_of_it_and_are_said():
    assert possible_sizes([100, 50], 200) == ((50, 100), ())
    sizes, notes = possible_sizes([50, 200, 2000], 177)
    assert sizes == (50, 177)
    assert len(notes) == 2
    assert "2,000" in notes[1]
    for bad_sizes in ([1, 50], [50, 50], [300], []):
        with pytest.raises(UsageError):
            possible_sizes(bad_sizes, 200)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=30),
    st.lists(st.integers(1, 120), min_size=1, max_size=5, unique=True),
    st.integers(0, 3),
)
def test_draws_are_nested_and_of_whole_groups(groups: list[int], sizes: list[int], seed: int):
    records = [SplitRecord(f"{g}/{i}", f"{g}/{i}", "a", str(g)) for g, count in enumerate(groups) for i in range(count)]
    sizes.sort()
    nested_draws = nested(records, sizes, seed)
    before: set[str] = set()
    for size, part in zip(sizes, nested_draws, strict=True):
        ids = {record.id for record in part}
        assert before <= ids
        assert len(ids) <= size
        for group in {record.group for record in part}:
            assert sum(r.group == group for r in part) == groups[int(group)]
        unused_counts = [groups[g] for g in range(len(groups)) if str(g) not in {r.group for r in part}]
        assert all(len(ids) + count > size for count in unused_counts)  # nothing that fits is left out
        before = ids


# --- the crossover


def slow_crossing(places: list[float], line: list[float]) -> float:
    if line[-1] <= 0:
        return math.inf
    for i in reversed(range(len(line) - 1)):
        if line[i] <= 0:
            return float(np.interp(0.0, [line[i], line[i + 1]], [places[i], places[i + 1]]))
    return -math.inf


@given(st.lists(st.lists(st.sampled_from([-0.3, -0.1, 0.0, 0.1, 0.2]), min_size=4, max_size=4), min_size=1, max_size=9))
def test_the_last_rise_above_zero_counts(lines: list[list[float]]):
    places = np.log([50.0, 100.0, 500.0, 1772.0])
    crossings = crossing_of(places, np.array(lines))
    assert crossings.tolist() == pytest.approx([slow_crossing(list(places), line) for line in lines])


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return load_task(write_task(tmp_path_factory.mktemp("task"), Path("no-base")))


def evaluations(task: Task, right: np.ndarray, groups: list[str]) -> Evaluation:
    """Rows that are right or not, as an evaluation."""
    rows = [Example(str(i), {"review": str(i)}, "positive", group, f"{i:064x}") for i, group in enumerate(groups)]
    return evaluate_predictions(task, rows, ["positive" if is_right else "negative" for is_right in right])


def test_resamples_agree_with_resampling_rows_by_hand(task: Task):
    rng = np.random.default_rng(0)
    groups = [f"g{i // 3}" for i in range(150)]
    first, second = (evaluations(task, rng.random(150) < p, groups) for p in (0.7, 0.8))
    resamples = Resamples(first, seed=3, count=50)
    resampled = resamples.of(OverDraws({0: first, 1: second}))
    times, shares = resamples._times, resamples._shares([0, 1])
    scores = np.array([[row.score for row in evaluation.rows] for evaluation in (first, second)])
    for b in (0, 7, 49):
        weights = np.array([times[b, i // 3] for i in range(150)])
        by_hand = [float((weights * draw_scores).sum() / weights.sum()) for draw_scores in scores]
        assert resampled[b] == pytest.approx(float(shares[b] @ by_hand))
    assert shares.sum(axis=1) == pytest.approx(1.0)
    with pytest.raises(UsageError, match="same rows"):
        resamples.of(OverDraws({0: evaluations(task, scores[0, :149] > 0, groups[:149])}))


def test_the_spread_of_few_draws_is_not_understated(task: Task):
    """With S draws the resampled mean's variance is the estimated one, s²/S, not (S−1)/S of it (Rao & Wu)."""
    groups = [f"g{i}" for i in range(200)]
    rng = np.random.default_rng(1)
    evaluations_by_draw = {d: evaluations(task, rng.random(200) < p, groups) for d, p in enumerate((0.5, 0.7, 0.9))}
    resamples = Resamples(evaluations_by_draw[0], count=20_000)
    shares = resamples._shares(sorted(evaluations_by_draw))
    estimates = np.array([evaluations_by_draw[d].estimate for d in sorted(evaluations_by_draw)])
    assert (shares @ estimates).std() == pytest.approx(estimates.std(ddof=1) / math.sqrt(3), rel=0.02)


def simulated(
    task: Task, rng: np.random.Generator, truth: list[float], draws: int, groups: int, luck: float = 0.01
) -> list[OverDraws]:
    """Points of a rung whose quality is `truth` by size: rows have their own difficulty, draws their own luck."""
    names = [f"g{i // 4}" for i in range(groups * 4)]
    whole = evaluations(task, rng.random(len(names)) < 0.5, names)

    def drawn(p: float) -> Evaluation:
        scores = (rng.random(len(names)) < p + rng.normal(0, luck)).astype(float)
        rows = tuple(replace(row, score=float(score)) for row, score in zip(whole.rows, scores, strict=True))
        return replace(whole, rows=rows, estimate=float(scores.mean()))

    return [OverDraws({draw: drawn(p) for draw in range(draws)}) for p in truth]


def test_intervals_cover_the_true_quality_and_the_true_crossover(task: Task):
    """At 95% nominal, with few draws and groups of four: quality at one size, and the place of the crossing."""
    labels = [50.0, 100.0, 200.0, 400.0, 800.0]
    prompted, tuned = [0.70] * 5, [0.55, 0.62, 0.69, 0.76, 0.83]
    true = math.exp(np.interp(0.0, [-0.01, 0.06], [math.log(200), math.log(400)]))
    covered = inside = 0
    rounds = 30
    rng = np.random.default_rng(5)
    for number in range(rounds):
        ours, theirs = simulated(task, rng, tuned, 3, 60), simulated(task, rng, prompted, 3, 60)
        resamples = Resamples(ours[0].by_draw[0], seed=number, count=400)
        low, high = resamples.interval(ours[2])
        covered += low <= 0.69 <= high
        crossing_point = crossing(resamples, labels, ours, theirs)
        assert crossing_point.interval is not None
        inside += crossing_point.interval[0] <= true <= crossing_point.interval[1]
        assert 0.9 < crossing_point.crosses <= 1
    assert covered >= 0.88 * rounds
    assert inside >= 0.88 * rounds


@pytest.mark.slow
def test_differences_cover_where_draws_differ(task: Task):
    """Three draws of 60 groups, whose luck is as large as the rows' noise: by the groups alone 0.89 are covered."""
    luck, rounds, inside = 0.04, 60, 0
    rng = np.random.default_rng(4)
    for number in range(rounds):
        ours, theirs = simulated(task, rng, [0.8], 3, 60, luck), simulated(task, rng, [0.75], 3, 60, luck)
        crossing_point = crossing(Resamples(ours[0].by_draw[0], seed=number, count=400), [100.0], ours, theirs)
        _, _, (low, high) = crossing_point.differences[0]
        inside += low <= 0.05 <= high
    assert inside >= 0.92 * rounds


def test_a_crossover_that_is_not_there_says_so(task: Task):
    rng = np.random.default_rng(2)
    labels = [50.0, 100.0, 200.0]
    low, high = simulated(task, rng, [0.5, 0.5, 0.5], 2, 60), simulated(task, rng, [0.9, 0.9, 0.9], 2, 60)
    resamples = Resamples(low[0].by_draw[0])
    never = crossing(resamples, labels, low, high)
    assert (never.labels, never.interval, never.crosses) == (math.inf, (math.inf, math.inf), 0.0)
    always = crossing(resamples, labels, high, low)
    assert (always.labels, always.interval, always.crosses) == (-math.inf, (-math.inf, -math.inf), 1.0)
    short_curve = simulated(task, rng, [0.5, 0.9], 2, 20)
    assert (
        crossing(Resamples(short_curve[0].by_draw[0]), [50.0, 100.0], short_curve, short_curve[:1] * 2).interval is None
    )


def test_flat_rungs_stand_for_every_draw(task: Task):
    rng = np.random.default_rng(3)
    ours = simulated(task, rng, [0.6, 0.8], 3, 60)
    flat = OverDraws(simulated(task, rng, [0.7], 1, 60)[0].by_draw, flat=True)
    crossing_point = crossing(Resamples(ours[0].by_draw[0]), [50.0, 200.0], ours, [flat, flat])
    assert 50 < crossing_point.labels < 200
    assert crossing_point.draws == 3


# --- what it says


def crossover(labels: Labels, interval: tuple[Labels, Labels] | None) -> Crossover:
    pair = {"tuned": "lora", "prompted": "few_shot"}
    return Crossover(**pair, labels=labels, interval=interval, crosses=0.93, draws=3, differences=())


def test_sentences_of_each_outcome():
    pays = [
        BreakEven(tuned="lora", prompted="few_shot", size=size, calls=calls, reason="why")
        for size, calls in ((50, None), (200, 1234.5), (1000, 0.0))
    ]
    sentences = curve_sentences([crossover(150.0, (90.0, "beyond"))], pays, [50.0, 1000.0])
    assert sentences[0] == (
        "On this task tuning (lora) overtakes prompting (few_shot) at about 150 labels (95% interval: 90 to more than "
        "the 1,000 available; it overtakes in 93% of the resamples)."
    )
    assert sentences[1] == "At 200 labels lora pays for itself against few_shot after about 1,234 calls: why."
    assert (
        "does not overtake prompting (few_shot) within the 1,000 labels available"
        in curve_sentences([crossover("beyond", ("beyond", "beyond"))], pays, [50, 1000])[0]
    )
    below = curve_sentences([crossover("below", ("below", 80.0))], pays, [50.0, 1000.0])
    assert "already at 50 labels" in below[0]
    assert "50 or fewer to 80" in below[0]
    assert "never" in below[1]
    assert "too few groups" in curve_sentences([crossover(150.0, None)], pays, [50.0, 1000.0])[0]
    assert "no crossover to report" in curve_sentences([], [], [])[0]


@pytest.mark.parametrize(
    ("ours", "theirs", "calls", "phrase"),
    [
        ((0.10, 0.001), (0.01, 0.002), 90.0, "less per 1,000 calls"),
        ((0.10, 0.002), (0.01, 0.002), None, "the same per call"),
        ((0.10, 0.003), (0.01, 0.002), None, "more per call"),
        ((0.01, 0.001), (0.10, 0.002), 0.0, "no more to make"),
        ((0.01, 0.002), (0.10, 0.001), None, "more after 90 calls"),
    ],
)
def test_break_even_is_extra_cost_over_saving(
    ours: tuple[float, float], theirs: tuple[float, float], calls: float | None, phrase: str
):
    break_even, reason = pays_from("lora", "few_shot", ours, theirs)
    assert break_even == (None if calls is None else pytest.approx(calls))
    assert phrase in reason


# --- whole runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Report, Path, Path]:
    directory = tmp_path_factory.mktemp("curve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_HOME", str(new_home(directory / "home")))
        task = write_task(directory, tiny_base, groups=48)
        patch.setattr(curves, "DRAWS", 2)
        patch.setattr(contexts, "LATENCY_CALLS", 12)
        report = adapt(task, directory / "out", rungs=RUNG_LIST, curve=[20, 500])
    return report, directory, task


def test_a_run_has_every_point_with_its_draws(run: tuple[Report, Path, Path]):
    curve = run[0].data["curve"]
    assert curve["sizes"] == [20, 48]
    assert curve["left_out"] == ["500 labels are more than train has; the last point is all 48 of it"]
    assert {(p["rung"], p["size"]) for p in curve["points"]} == {
        (rung, size) for rung in ("from_scratch", "few_shot", "probe", "lora") for size in (20, 48)
    }
    for point in curve["points"]:
        assert [draw["seed"] for draw in point["draws"]] == [0, 1]
        assert all(draw["labels"] <= point["size"] for draw in point["draws"])
        assert point["interval"][0] <= point["estimate"] <= point["interval"][1]
        assert point["estimate"] == pytest.approx(np.mean([draw["estimate"] for draw in point["draws"]]))
    assert [flat["rung"] for flat in curve["flat"]] == ["zero_shot"]
    learned = {p["size"]: p["estimate"] for p in curve["points"] if p["rung"] == "from_scratch"}
    assert learned[48] > learned[20]  # words decide these labels
    pairs = {(c["tuned"], c["prompted"]) for c in curve["crossovers"]}
    assert pairs == {(a, b) for a in ("probe", "lora") for b in ("few_shot", "zero_shot")}
    assert [row["size"] for row in curve["break_even"]] == [20, 48]
    assert len(curve["says"]) == 2


def test_the_curve_trained_on_its_own_rows_and_opened_nothing(run: tuple[Report, Path, Path]):
    report, directory, _ = run
    assert len(report.data["data"]["test_openings"]) == 1
    out = directory / "out"
    for path in (out / "curve").rglob("*"):
        assert path.is_dir() or path.name in ("plan.json", "result.json"), path  # no weights are kept
    plan = json.loads((out / "curve/lora/20-1/plan.json").read_text())["settings"]
    assert plan["seeds"] == 1
    used = next(p for p in report.data["curve"]["points"] if (p["rung"], p["size"]) == ("lora", 20))["draws"][1]
    assert plan["rows"] == used["labels"] <= 20
    valid = {row["row_hash"] for row in report.data["rows"]["valid"]["lora"]}
    saved_point = json.loads((out / "curve/lora/20-1/result.json").read_text())
    assert {row["row_hash"] for row in saved_point["evaluation"]["rows"]} == valid


def test_the_page_and_the_command_line_say_the_crossover(
    run: tuple[Report, Path, Path], capsys: pytest.CaptureFixture[str]
):
    from markupsafe import escape

    from bedplate.cli.adapt import show

    report, directory, _ = run
    sentences = report.data["curve"]["says"]
    page = (directory / "out" / "report.html").read_text()
    assert all(str(escape(sentence)) in page for sentence in sentences)
    show(report)
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "accuracy on valid, by labels" in printed
    assert all(sentence[:60] in printed for sentence in sentences)


def test_the_same_command_goes_on_and_a_longer_budget_too(
    run: tuple[Report, Path, Path], monkeypatch: pytest.MonkeyPatch
):
    report, directory, task = run
    monkeypatch.setenv("BEDPLATE_HOME", str(directory / "home"))
    monkeypatch.setattr(curves, "DRAWS", 2)
    monkeypatch.setattr(contexts, "LATENCY_CALLS", 12)
    (directory / "out/curve/probe/20-1/result.json").unlink()
    fitted: list[str] = []
    for name in RUNG_LIST:
        fit = type(RUNGS[name]).fit

        def counted(self: object, context: object, *args: object, name: str = name, fit: object = fit) -> object:
            fitted.append(name)
            return fit(self, context, *args)  # type: ignore[operator]

        monkeypatch.setattr(type(RUNGS[name]), "fit", counted)
    rerun = adapt(task, directory / "out", rungs=RUNG_LIST, curve=[20, 500])
    assert fitted == ["probe"]  # the lost point alone
    ours, theirs = (
        {(p["rung"], p["size"]): p["estimate"] for p in curve_report.data["curve"]["points"]}
        for curve_report in (report, rerun)
    )
    assert ours == theirs
    fitted.clear()
    longer = adapt(task, directory / "out", rungs=["majority", "from_scratch"], curve=[20], budget=1e6)
    assert fitted == []  # what is finished does not depend on the budget
    assert {p["rung"] for p in longer.data["curve"]["points"]} == {"from_scratch"}


def test_what_the_time_does_not_allow_is_left_out_and_said(toy_task: Path, tmp_path: Path):
    report = adapt(toy_task, tmp_path / "out", rungs=["zero_shot", "lora"], curve=[20, 40], budget=0.05)
    curve = report.data["curve"]
    assert curve["points"] == []
    assert sum(note.count("(draw ") for note in curve["left_out"]) == 2 * DRAWS
    assert curve["left_out"][0].startswith("lora at 20 labels (draw 0)")
    assert "skipped, it needs about" in curve["left_out"][0]
    assert "no crossover to report" in curve["says"][0]
    assert "left out" in (tmp_path / "out" / "report.html").read_text().lower()


def test_impossible_sizes_are_refused_before_time_is_spent(toy_task: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="train has 40 rows"):
        adapt(toy_task, tmp_path / "out", curve=[2000])
    assert not (tmp_path / "out").exists()
