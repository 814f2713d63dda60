"""Mixtures: planted responses are found, draws are those of least squares, a search goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.corpus.made import write_corpus
from tests.pretraining.runs import tiny_run

from bedplate.cli.main import main
from bedplate.core.errors import ConfigError, TrainingError, UsageError
from bedplate.pretraining.mixing import search as search_module
from bedplate.pretraining.mixing.response import Response, _fitted, best, capped, design, fit
from bedplate.pretraining.mixing.search import search
from bedplate.pretraining.runfile.file import RunFile
from bedplate.skins.catalog import Catalog

FIRST = np.array([0.7, 0.2, 0.1])
ALL = np.ones(3)


def planted(shares: np.ndarray) -> np.ndarray:
    """Losses of three domains: an exponential, a mixed one, a power."""
    return np.stack(
        [
            0.8 + 1.2 * np.exp(-3 * shares[:, 0] - 0.5 * shares[:, 1]),
            1.0 + 0.5 * np.exp(-4 * shares[:, 1]),
            0.9 * (shares[:, 2] + 0.02) ** -0.1,
        ],
        axis=1,
    )


# --- which mixtures are tried


def test_mixtures_are_spread_and_more_of_them_keep_the_first() -> None:
    small_design, large_design = design(FIRST, ALL, 9, 3), design(FIRST, ALL, 200, 3)
    assert np.array_equal(large_design[:9], small_design)
    assert np.array_equal(large_design[0], FIRST)
    assert not np.array_equal(design(FIRST, ALL, 9, 4)[1:], small_design[1:])
    assert np.allclose(large_design.sum(axis=1), 1)
    assert large_design.min() >= 0
    assert (large_design.min(axis=0) < 0.02).all()
    assert (large_design.max(axis=0) > 0.8).all(), "some are nearly of one source"
    assert large_design.mean(axis=0)[0] > large_design.mean(axis=0)[2], "around the first"
    with pytest.raises(UsageError, match="at most 1024"):
        design(FIRST, ALL, 2000, 3)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.001, 1), st.floats(0.05, 1)), min_size=2, max_size=6).filter(
        lambda sources: sum(limit for _, limit in sources) >= 1
    )
)
def test_what_a_source_may_not_have_goes_to_the_others(sources: list[tuple[float, float]]) -> None:
    shares, limits = np.array(sources).T
    capped_shares = capped(shares, limits)
    assert capped_shares.sum() == pytest.approx(1)
    assert (capped_shares <= limits + 1e-9).all()
    free = capped_shares < limits - 1e-9
    assert np.ptp((capped_shares / shares)[free]) < 1e-6 if free.any() else True
    assert np.allclose(design(capped_shares, limits, 20, 0).sum(axis=1), 1)
    assert (design(capped_shares, limits, 20, 0) <= limits + 1e-9).all()


def test_sources_that_are_too_few_for_a_run() -> None:
    with pytest.raises(UsageError, match="may give 60% of the tokens asked for"):
        capped(FIRST, np.full(3, 0.2))


# --- responses


def test_draws_are_those_of_least_squares() -> None:
    """Of a straight line between shares and log losses: statsmodels' intervals of the mean and of one more run."""
    draw = np.random.default_rng(0)
    shares = design(FIRST, ALL, 12, 0)
    losses = np.exp(shares @ [0.5, 0.1, 0.3] + draw.normal(0, 0.02, 12))
    fitted = _fitted("exponential", 0.0, shares, losses)
    assert fitted is not None
    queries = np.array([[0.3, 0.3, 0.4], [0.9, 0.05, 0.05]])
    draws = Response((fitted,), (1.0,), 0.0).draws(40_000, 1)
    theirs = sm.OLS(np.log(losses), shares).fit().get_prediction(queries).summary_frame(alpha=0.1)
    assert np.allclose(np.log(fitted.at(queries, fitted.constants)), theirs["mean"])
    for ours, low, high in (
        (draws.at(queries), "mean_ci_lower", "mean_ci_upper"),
        (draws.one_run(queries), "obs_ci_lower", "obs_ci_upper"),
    ):
        bounds = np.quantile(np.log(ours), [0.05, 0.95], axis=1)
        assert np.allclose(bounds, [theirs[low], theirs[high]], atol=0.05 * (theirs[high] - theirs[low]).max())


@pytest.mark.parametrize(
    ("form", "number"), [("exponential", 0.0), ("exponential", 0.8), ("power", 0.03), ("quadratic", 0.0)]
)
def test_the_error_is_that_of_fits_without_each_run(form: str, number: float) -> None:
    shares = design(FIRST, ALL, 14, 0)
    losses = planted(shares)[:, 0]
    fitted = _fitted(form, number, shares, losses)
    assert fitted is not None
    missed: list[float] = []
    for test_row in range(14):
        train_rows = np.arange(14) != test_row
        features = proxied_features(form, number, shares)
        constants = np.linalg.lstsq(features[train_rows], np.log(losses[train_rows] - fitted.floor))[0]
        missed.append(np.log(losses[test_row]) - np.log(fitted.floor + np.exp(features[test_row] @ constants)))
    assert fitted.error == pytest.approx(np.sqrt(np.mean(np.square(missed))), rel=1e-6)


def proxied_features(form: str, number: float, shares: np.ndarray) -> np.ndarray:
    a, b, c = shares.T
    if form == "power":
        return np.stack([np.ones_like(a), np.log(a + number), np.log(b + number), np.log(c + number)], axis=1)
    return np.stack([a, b, c], axis=1) if form == "exponential" else np.stack([a, b, c, a * b, a * c, b * c], axis=1)


def test_a_planted_best_is_found_and_intervals_hold_it() -> None:
    mixtures = np.random.default_rng(9).dirichlet(ALL, 60_000)
    goal = planted(mixtures).mean(axis=1)
    true, lowest = mixtures[goal.argmin()], goal.min()
    before = planted(FIRST[None]).mean()
    covered = gained = 0
    for seed in range(4):
        shares = design(FIRST, ALL, 18, seed)
        draw = np.random.default_rng(seed)
        losses = planted(shares) * np.exp(draw.normal(0, 0.003, (18, 3)))
        responses = [fit(shares, losses[:, domain]) for domain in range(3)]
        assert min(response.explained for response in responses) > 0.9
        optimum = best(shares, shares[0], ALL, responses, [1, 1, 1], seed)
        chosen = np.array([share.value for share in optimum.shares])
        assert chosen.sum() == pytest.approx(1)
        reached = planted(chosen[None])[0]
        assert reached.mean() - lowest < 0.1 * (before - lowest)
        assert optimum.better > 0.99
        assert optimum.gain.low < optimum.gain.high
        covered += sum(
            interval.low <= loss <= interval.high for interval, loss in zip(optimum.losses, reached, strict=True)
        )
        covered += sum(
            interval.low <= share <= interval.high for interval, share in zip(optimum.shares, true, strict=True)
        )
        gained += abs(optimum.gain.value - (before - reached.mean())) < 0.3 * (before - lowest)
    assert covered >= 18, "24 intervals of 90%"
    assert gained >= 3


def test_what_the_goal_does_not_count_is_given_up_and_noise_explains_nothing() -> None:
    shares = design(FIRST, ALL, 18, 0)
    responses = [fit(shares, planted(shares)[:, domain]) for domain in range(3)]
    optimum = best(shares, shares[0], ALL, responses, [0, 0, 1], 0)
    assert optimum.shares[2].value > 0.9 * shares[:, 2].max()
    limited = best(shares, shares[0], np.array([1, 1, 0.3]), responses, [0, 0, 1], 0)
    assert limited.shares[2].value == pytest.approx(0.3, abs=0.01)
    noise = np.exp(np.random.default_rng(5).normal(0, 0.01, 18))
    assert fit(shares, noise).explained < 0.3
    unclear = best(shares, shares[0], ALL, [fit(shares, noise)], [1], 0)
    assert unclear.gain.low < 0.01
    assert unclear.shares[0].high - unclear.shares[0].low > 0.3
    with pytest.raises(UsageError, match="at least 6 are needed to fit a response to 3 sources"):
        fit(shares[:5], noise[:5])
    with pytest.raises(UsageError, match="do not differ enough"):
        fit(np.tile(FIRST, (9, 1)), noise[:9])


# --- searches


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    texts = {name: [f"{name} says {n} {'abcdefg'[n % 7] * 9}" for n in range(30)] for name in ("web", "code", "books")}
    return write_corpus(tmp_path / "corpus", texts, valid=4)


def run_of(place: Path, **changes: Any) -> RunFile:
    data = {"corpus": "corpus", "mixture": {"weights": {"web": 7, "code": 2, "books": 1}}, "general": ["books"]}
    return tiny_run(place, **{"data": data, **changes})


class Trainer:
    """In the place of training: what a run with a mixture would read, by the planted response."""

    def __init__(self, patch: pytest.MonkeyPatch, stop: int | None = None) -> None:
        self.ran: list[dict[str, float]] = []
        self.stop = stop
        patch.setattr(search_module, "pretrain", self)

    def __call__(self, run: RunFile, place: Path, *, catalogued: bool = True) -> None:
        assert not catalogued, "nobody is to adapt the base of a measurement"
        if len(self.ran) == self.stop:
            raise KeyboardInterrupt
        assert run.data.mixture is not None
        weights: Mapping[str, float] = run.data.mixture.weights or {}
        self.ran.append(dict(weights))
        names = ("web", "code", "books")
        shares = np.array([weights[name] for name in names]) / sum(weights.values())
        losses = planted(shares[None])[0].tolist()
        place.mkdir(parents=True)
        token_counts = {name: round(share * 1e6) for name, share in zip(names, shares.tolist(), strict=True)}
        (place / "pretraining.json").write_text(json.dumps({"status": "finished", "seen": token_counts}))
        domain_losses = {name: {"bits_per_byte": loss} for name, loss in zip(names, losses, strict=True)}
        (place / "evaluations.jsonl").write_text(json.dumps({"step": 9, "held_out": domain_losses}) + "\n")


def test_a_search_goes_on_and_grows(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = corpus.parent
    run = run_of(place)
    first = Trainer(monkeypatch, stop=4)
    with pytest.raises(KeyboardInterrupt):
        search(run, place / "out", runs=12)
    second = Trainer(monkeypatch)
    progress: list[int] = []
    mixture = search(
        run, place / "out", runs=12, on_progress=lambda number, count, _: progress.append(100 * number + count)
    )
    assert len(first.ran) == 4
    assert len(second.ran) == 12 + 1 - 4
    assert progress == [100 * number + 13 for number in range(1, 14)]
    assert first.ran[0] == {"web": 0.7, "code": 0.2, "books": 0.1}
    assert mixture.goal == {"web": 1.0, "code": 1.0}, "books may be forgotten, and are no part of what is to be learned"
    saved = json.loads((place / "out/mixture.json").read_text())
    assert saved == json.loads(json.dumps(mixture.to_json()))
    assert sum(saved["weights"].values()) == pytest.approx(1, abs=1e-5)
    assert saved["gain"]["measured"] > 0
    assert saved["domains"]["web"]["inside"] in (True, False)
    third = Trainer(monkeypatch)
    extended = search(run, place / "out", runs=20)
    assert len(third.ran) in (8, 9), "the runs that were made stay; the best may be the same"
    assert extended.proxies[:12] == mixture.proxies
    repeated = search(run, place / "out", runs=20)
    assert len(third.ran) in (8, 9)
    assert repeated.to_json() == extended.to_json()
    with pytest.raises(UsageError, match=r"begun with other values: tokens: 2304 before, 4608 now; give another --out"):
        search(run_of(place, tokens=4608), place / "out")
    assert search(run_of(place, log_steps=5), place / "out", runs=20).to_json() == extended.to_json()
    (place / "out/search.json").write_text("{")
    with pytest.raises(UsageError, match=r"search.json is damaged"):
        search(run, place / "out")
    (place / "mine").mkdir()
    (place / "mine/mixture.json").write_text("{}")
    with pytest.raises(UsageError, match="is not empty and holds no search"):
        search(run, place / "mine")
    for name, value in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"), "121a9", strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="one process; start it without torchrun"):
        search(run, place / "ranks")
    assert not (place / "ranks").exists()


def test_a_goal_and_the_epochs_that_a_run_allows(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = corpus.parent
    Trainer(monkeypatch)
    free = search(run_of(place), place / "free", runs=12, goal={"books": 1.0})
    assert free.weights["books"] > 0.5
    tokens = {name: 26 * (len(f"{name} says 10 ") + 10) for name in ("web", "code", "books")}
    scarce = search(run_of(place), place / "scarce", runs=12, goal={"books": 1.0}, tokens=4 * tokens["books"] / 0.4)
    assert scarce.weights["books"] == pytest.approx(0.4, abs=0.02)
    assert max(proxy.shares["books"] for proxy in scarce.proxies) < 0.42
    for wrong, message in (
        ({"book": 1.0}, "the goal names 'book', .*did you mean 'books'"),
        ({"books": 0.0}, "the goal is empty"),
        ({"books": -1.0}, "not below 0"),
    ):
        with pytest.raises(UsageError, match=message):
            search(run_of(place), place / "wrong", goal=wrong)
    with pytest.raises(UsageError, match="3 sources need at least 6"):
        search(run_of(place), place / "wrong", runs=5)
    with pytest.raises(UsageError, match="of the tokens asked for"):
        search(run_of(place), place / "wrong", tokens=1e9)


def test_what_there_is_no_mixture_of(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = corpus.parent
    Trainer(monkeypatch)
    for mixture, message in (
        ({"weights": {"web": 1, "code": 0, "books": 0}}, "has one source to learn from"),
        ({"weights": {"web": 1, "code": 1}}, "no weight for books"),
        ({"stages": [{"at": 0.5, "weights": {"web": 1, "code": 1, "books": 1}}]}, "leave the stages out"),
    ):
        with pytest.raises(ConfigError, match=message):
            search(run_of(place, data={"corpus": "corpus", "mixture": mixture}), place / "x")
    with pytest.raises(ConfigError, match=r"give data\.corpus or data\.recipe"):
        search(tiny_run(place), place / "x")

    def unjudged(run: RunFile, out: Path, *, catalogued: bool) -> None:
        out.mkdir(parents=True)
        (out / "pretraining.json").write_text(json.dumps({"status": "finished", "seen": {"web": 1}}))
        (out / "evaluations.jsonl").write_text(json.dumps({"step": 9, "held_out": {}}) + "\n")

    monkeypatch.setattr(search_module, "pretrain", unjudged)
    with pytest.raises(TrainingError, match=r"was not judged on web, code, books .*remove it and run"):
        search(run_of(place), place / "y")


def test_on_the_command_line(corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    place = corpus.parent
    Trainer(monkeypatch)
    run_of(place)

    def run_command(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["data", "search-mixture", str(place / "run.yaml"), "--out", str(place / "o[u]t"), *words])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    code, out, err = run_command("--runs", "9", "--goal", "web=2", "--goal", "code=1")
    assert code == 0
    assert err.startswith("run 1 of 10: web 70%, code 20%, books 10%: web ")
    assert "weights: {" in out
    assert str(place / "o[u]t") in out
    code, out, _ = run_command("--runs", "9", "--goal", "web=2", "--goal", "code=1", "--json")
    assert json.loads(out)["goal"] == {"web": 2.0, "code": 1.0}
    for words in (("--goal", "=1"), ("--goal", "web=many"), ("--goal", "web=-1"), ("--tokens", "some")):
        code, _, err = run_command(*words)
        assert code != 0
        assert err.startswith("error: --")
    assert "two weights" in run_command("--goal", "web=1", "--goal", "web=2")[2]


@pytest.mark.slow
def test_small_runs_are_trained_and_judged(tmp_path: Path) -> None:
    """What is to be read is learned from: text of one source alone says nothing of the other's."""
    texts = {
        "one": [f"the cat sat on the mat and the dog ran to the park {n}" for n in range(60)],
        "two": [f"import os, sys; print(os.path.join(sys.argv[{n}]))" for n in range(60)],
    }
    write_corpus(tmp_path / "corpus", texts, valid=6)
    data = {"corpus": "corpus", "mixture": {"weights": {"one": 3, "two": 1}}}
    run = tiny_run(
        tmp_path, data=data, tokens=4096, model={"params": "120k", "context": 32}, evaluation={"tokens": 512}
    )
    mixture = search(run, tmp_path / "out", runs=5, goal={"two": 1.0})
    shares = np.array([proxy.shares["two"] for proxy in mixture.proxies])
    losses = np.array([proxy.losses["two"] for proxy in mixture.proxies])
    assert np.corrcoef(shares, losses)[0, 1] < -0.7
    assert mixture.weights["two"] > mixture.proxies[0].shares["two"]
    assert mixture.checked.losses["two"] < mixture.proxies[0].losses["two"]
    assert all((tmp_path / "out/runs" / proxy.name / "base/config.json").is_file() for proxy in mixture.proxies)
    with Catalog.open() as catalog:
        assert not catalog.entries("base")
