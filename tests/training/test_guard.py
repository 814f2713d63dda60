"""Steps that would do harm are skipped and told of; too many of them stop the run."""

from __future__ import annotations

import json
import math

import pytest
import torch

from bedplate.core.errors import TrainingError
from bedplate.training.config import GuardConfig, TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import Sft
from bedplate.training.objectives.objective import Term
from bedplate.training.sources import ExampleSource
from bedplate.training.step_metrics import StepGuard

PLAIN = TrainConfig(learning_rate=0.01, schedule="constant", warmup=0.0, clip=None, save_seconds=None)


class Broken(Sft):
    """The loss is not finite where e2 takes part, and far too large where e5 does."""

    def __init__(self, nan: str = "e2", spike: str = "") -> None:
        super().__init__()
        self._nan, self._spike = nan, spike

    def __call__(self, models, batch):
        term = super().__call__(models, batch)["sft"]
        factor = math.nan if self._nan in batch.ids else 1000.0 if self._spike in batch.ids else 1.0
        return {"sft": Term(term.total * factor, term.weight)}


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("log_steps", [1, 3])
def test_a_step_that_is_not_finite_is_skipped_and_named(log_steps, make_decoder, make_examples, tmp_path) -> None:
    """As if it had not been: the weights are those of a run over the other steps."""
    model, reference = make_decoder(), make_decoder()
    config = PLAIN.model_copy(update={"guard": GuardConfig(allowed=1), "log_steps": log_steps, "ema": 0.5})
    examples = make_examples(8)
    result = train(model, ExampleSource(examples, 2), Broken(), config, tmp_path / "1", model.named_parameters())
    remaining = [e for e in examples if e.id not in {"e2", "e3"}]
    train(reference, ExampleSource(remaining, 2), Sft(), PLAIN, tmp_path / "2", reference.named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))
    metric_rows = rows(tmp_path / "1")
    assert [row["step"] for row in metric_rows if "skipped" in row] == [2]
    assert metric_rows[1]["loss"] is None
    assert metric_rows[1]["skipped_examples"] == ["e2", "e3"]
    assert "loss" in metric_rows[1]["skipped"]
    assert math.isfinite(result.losses["sft"])


def test_more_than_are_allowed_stop_the_run(make_decoder, make_examples, tmp_path) -> None:
    model = make_decoder()
    config = PLAIN.model_copy(update={"guard": GuardConfig(allowed=1, window=3), "log_steps": 2})
    source = ExampleSource(make_examples(4), 2, epochs=4)
    with pytest.raises(TrainingError, match=r"step 2: the loss.*e2, e3; step 4: the loss.*e2, e3.*1 such steps"):
        train(model, source, Broken(), config, tmp_path, model.named_parameters())
    model = make_decoder()
    config = config.model_copy(update={"guard": GuardConfig(allowed=1, window=2)})
    source = ExampleSource(make_examples(4), 2, epochs=4)
    assert train(model, source, Broken(), config, tmp_path / "2", model.named_parameters()).steps == 8


def test_a_spike_is_skipped(make_decoder, make_examples, tmp_path) -> None:
    examples = make_examples(24)
    for sigmas, skipped in ((8.0, [11]), (None, [])):
        model = make_decoder()
        config = PLAIN.model_copy(
            update={"guard": GuardConfig(sigmas=sigmas, window=10, allowed=2), "learning_rate": 1e-4}
        )
        source, out = ExampleSource(examples, 2), tmp_path / str(sigmas)
        train(model, source, Broken("", "e20"), config, out, model.named_parameters())
        assert [row["step"] for row in rows(out) if "skipped" in row] == skipped


def test_the_rule_is_that_of_mean_and_deviation() -> None:
    """Against the mean and deviation of the last steps that were applied, by torch's own."""
    torch.manual_seed(0)
    guard = StepGuard(GuardConfig(sigmas=2.0, window=8, allowed=8), torch.device("cpu"))
    losses, flags, zero = torch.randn(60).abs() + 1, [], torch.zeros(())
    ring: list[float | None] = []
    for number, loss in enumerate(losses, 1):
        recent = torch.tensor([x for x in ring[-8:] if x is not None])
        expected = len(recent) >= 4 and bool(loss > recent.mean() + 2 * recent.std())
        void, stops = guard.judge(number, loss, torch.ones(()), zero)
        assert bool(void) == expected, number
        assert not stops
        ring.append(None if expected else float(loss))
        flags.append(expected)
    assert 0 < sum(flags) < 30


def test_a_guard_goes_on_where_it_was() -> None:
    config = GuardConfig(sigmas=2.0, window=8, allowed=1)
    torch.manual_seed(0)
    losses, unit_norm, zero = torch.rand(12) + 1, torch.ones(()), torch.zeros(())
    losses[9] = 100.0
    first, second = StepGuard(config, torch.device("cpu")), StepGuard(config, torch.device("cpu"))
    whole = [first.judge(n, loss, unit_norm, zero) for n, loss in enumerate(losses, 1)]
    third = StepGuard(config, torch.device("cpu"))
    for n, loss in enumerate(losses[:6], 1):
        second.judge(n, loss, unit_norm, zero)
    third.load({name: x.clone() for name, x in second.tensors().items()})
    assert [third.judge(n, loss, unit_norm, zero) for n, loss in enumerate(losses[6:], 7)] == whole[6:]
    assert any(bool(void) for void, _ in whole)
    assert not StepGuard(GuardConfig(), torch.device("cpu")).tensors()


def test_a_first_spike_stops_a_run_only_where_that_is_said() -> None:
    with pytest.raises(ValueError, match="0: the first spike stops the run"):
        GuardConfig(sigmas=6.0)
    config = GuardConfig(sigmas=6.0, allowed=0)
    assert GuardConfig(**config.model_dump()) == config
