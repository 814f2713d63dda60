"""Laws: planted ones are found, intervals are those of the reference, ladders that cannot be compared are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm

from bedplate.cli.main import main
from bedplate.core.errors import UsageError
from bedplate.pretraining.scaling_law import Form, ScalingPoint, fit, read_ladder


def point(n: float, d: float, loss: float) -> ScalingPoint:
    return ScalingPoint(f"{n:g}", n, d, 6 * n * d, loss)


def test_the_power_law_and_its_interval_are_those_of_a_straight_line() -> None:
    draw = np.random.default_rng(1)
    sizes = np.geomspace(1e5, 1e7, 7)
    points = [point(n, 20 * n, 40 * (120 * n * n) ** -0.05 * np.exp(draw.normal(0, 0.01))) for n in sizes]
    law = fit(points[:-1], "power")
    prediction = law.predict(points[-1])
    lines = sm.OLS(np.log([p.loss for p in points[:-1]]), sm.add_constant(np.log([p.flops for p in points[:-1]]))).fit()
    frame = lines.get_prediction([[1.0, np.log(points[-1].flops)]]).summary_frame(alpha=0.05)
    assert np.log(prediction.loss) == pytest.approx(frame["mean"][0], abs=1e-6)
    assert np.log(prediction.low) == pytest.approx(frame["obs_ci_lower"][0], abs=1e-5)
    assert np.log(prediction.high) == pytest.approx(frame["obs_ci_upper"][0], abs=1e-5)


@pytest.mark.parametrize("form", ["floor", "chinchilla"])
def test_planted_laws_are_found(form: Form) -> None:
    points = []
    for n in np.geomspace(1e6, 1e9, 5):
        for ratio in (5, 20, 80):
            d = ratio * n
            loss = 1.7 + 400 * n**-0.34 + 410 * d**-0.28 if form == "chinchilla" else 1.7 + 300 * (6 * n * d) ** -0.15
            points.append(point(n, d, loss))
    law = fit(points, form)
    assert law.constants["floor"] == pytest.approx(1.7, rel=0.01)
    assert law.constants["alpha"] == pytest.approx(0.34 if form == "chinchilla" else 0.15, rel=0.02)
    assert law.residual < 1e-4


@pytest.mark.slow
def test_intervals_hold_the_next_run_about_as_often_as_they_say() -> None:
    inside = 0
    for seed in range(30):
        draw = np.random.default_rng(seed)
        points = [
            point(n, 20 * n, (1.5 + 40 * (120 * n * n) ** -0.12) * np.exp(draw.normal(0, 0.01)))
            for n in np.geomspace(1e5, 3e6, 7)
        ]
        prediction = fit(points[:-1], "floor").predict(points[-1], 0.9)
        inside += prediction.low <= points[-1].loss <= prediction.high
    assert inside >= 24


def test_too_few_runs_and_runs_of_one_size() -> None:
    with pytest.raises(UsageError, match="needs 4 runs"):
        fit([point(n, 20 * n, 3.0) for n in (1e6, 2e6, 3e6)], "floor")
    with pytest.raises(UsageError, match="one size"):
        fit([point(1e6, 2e7, loss) for loss in (3.0, 3.1, 2.9)], "power")


def write_run(path: Path, n: float, loss: float, tokenizer: str = "t") -> Path:
    path.mkdir(parents=True)
    record = {"status": "finished", "body": n, "tokens_seen": 20 * n, "data": {"tokenizer": {"id": tokenizer}}}
    text_scores = {"general": False, "tokens": 1000, "nats_per_token": loss, "documents": 3, "bytes": 4000}
    (path / "pretraining.json").write_text(json.dumps(record))
    row = {
        "step": 5,
        "held_out": {"text": text_scores, "other": {**text_scores, "general": True, "nats_per_token": 9.0}},
    }
    (path / "evaluations.jsonl").write_text(json.dumps(row) + "\n")
    return path


def test_a_ladder_from_run_directories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = (1e5, 2e5, 4e5, 8e5)
    runs = [
        write_run(tmp_path / f"{n:g}", n, 30 * (120 * n * n) ** -0.08 * (1 + 0.002 * (-1) ** i))
        for i, n in enumerate(sizes)
    ]
    with pytest.raises(SystemExit) as ended:
        main(["plan", "scaling", *map(str, runs), "--at", "10M:200M", "--json"])
    assert ended.value.code == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["held_out"]["parameters"] == 8e5
    assert plan["inside"]
    assert plan["prediction"]["low"] < plan["prediction"]["loss"] < plan["prediction"]["high"]
    assert plan["asked"][0]["prediction"]["loss"] < plan["held_out"]["loss"]
    with pytest.raises(UsageError, match="another tokenizer"):
        read_ladder([*runs, write_run(tmp_path / "other", 3e5, 3.0, "u")])
    masked = write_run(tmp_path / "masked", 3e5, 3.0)
    record = json.loads((masked / "pretraining.json").read_text())
    (masked / "pretraining.json").write_text(json.dumps({**record, "objective": "masked"}))
    with pytest.raises(UsageError, match="masked was judged on other texts, by another objective"):
        read_ladder([*runs, masked])
    failed = write_run(tmp_path / "failed", 3e5, 3.0)
    row = {"step": 5, "held_out": {}, "errors": ["held-out texts: OutOfMemoryError: no room"]}
    (failed / "evaluations.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UsageError, match=r"failed was not judged at its end .*no room\); leave it out"):
        read_ladder([*runs, failed])
    with pytest.raises(UsageError, match="no finished run"):
        read_ladder([*runs, tmp_path])
    with pytest.raises(UsageError, match="one to hold out"):
        read_ladder(runs[:3])
