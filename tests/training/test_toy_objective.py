"""A row added to the table of objectives: trained, written, kept, and exact however its steps are cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.training.toy_objective import LikelihoodAndRating, RatedSource

from bedplate.core.errors import UsageError
from bedplate.training.config import TrainConfig
from bedplate.training.loop import evaluate_loss, train
from bedplate.training.objectives import OBJECTIVES

CONFIG = TrainConfig(learning_rate=0.01, schedule="constant", warmup=0.0, save_steps=1, save_seconds=None)


@pytest.fixture
def objective(monkeypatch: pytest.MonkeyPatch) -> LikelihoodAndRating:
    monkeypatch.setitem(OBJECTIVES, "toy", LikelihoodAndRating)
    return OBJECTIVES["toy"]()


def rows(path: Path) -> list[dict[str, float]]:
    speeds = ("tokens_per_second", "examples_per_second")
    return [
        {k: v for k, v in json.loads(line).items() if k not in speeds}
        for line in (path / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize("micro_tokens", [40, 1])
def test_terms_and_metrics_are_means_over_the_step_however_it_is_cut(
    micro_tokens, objective, make_decoder, make_examples, tmp_path
) -> None:
    examples = make_examples(12)
    weights: list[dict[str, torch.Tensor]] = []
    for name, tokens in (("whole", 10_000), ("cut", micro_tokens)):
        model, reference = make_decoder(), make_decoder(seed=1)
        roles = {"policy": model, "reference": reference}
        source = RatedSource(examples, 6, micro_tokens=tokens)
        before = evaluate_loss(roles, next(iter(RatedSource(examples, 6))), objective)
        frozen = reference.norm.weight.clone()
        result = train(roles, source, objective, CONFIG, tmp_path / name, model.named_parameters())
        first, last = rows(tmp_path / name)
        assert first["loss/likelihood"] == pytest.approx(before["likelihood"])
        assert first["loss/rating"] == pytest.approx(before["rating"])
        assert first["loss"] == pytest.approx(sum(before.values()))
        assert result.losses == {"likelihood": last["loss/likelihood"], "rating": last["loss/rating"]}
        assert torch.equal(reference.norm.weight, frozen)
        weights.append(dict(model.named_parameters()))
    whole, cut = rows(tmp_path / "whole"), rows(tmp_path / "cut")
    assert [list(row) for row in whole] == [list(row) for row in cut]
    for whole_row, cut_row in zip(whole, cut, strict=True):
        assert whole_row.pop("tokens") <= cut_row.pop("tokens")  # a beginning that is shared is computed once
        assert whole_row == pytest.approx(cut_row)
        assert whole_row["rating/error"] > 0.1
        assert whole_row["likelihood/reference"] > 0.1
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, msg=name)


def test_a_run_broken_off_goes_on(objective, make_decoder, make_examples, tmp_path) -> None:
    examples = make_examples(8)

    def stop(step: int, _: object) -> None:
        if step == 1:
            raise InterruptedError

    def run(out: Path, on_checkpoint=None) -> dict[str, torch.Tensor]:
        model = make_decoder(torch.float32)
        roles = {"policy": model, "reference": make_decoder(torch.float32, seed=1)}
        source = RatedSource(examples, 4, micro_tokens=40)
        train(roles, source, objective, CONFIG, out, model.named_parameters(), on_checkpoint)
        return dict(model.named_parameters())

    expected = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "parts", stop)
    resumed = run(tmp_path / "parts")
    assert all(torch.equal(value, expected[name]) for name, value in resumed.items())
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_model_that_is_missing_is_named(objective, make_decoder, make_examples, tmp_path) -> None:
    model = make_decoder()
    with pytest.raises(UsageError, match="toy needs a model for the role 'reference'"):
        train(model, RatedSource(make_examples(4), 2), objective, CONFIG, tmp_path, model.named_parameters())
