"""Schedules equal transformers' at whole steps."""

from __future__ import annotations

import typing

import pytest
import torch
import transformers
from pydantic import ValidationError

from bedplate.pretraining.runfile.file import SchedulePart
from bedplate.training.config import ScheduleName, TrainConfig, schedule_factor


def _reference(scheduler_of, total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = scheduler_of(optimizer)
    factors = []
    for _ in range(total + 1):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize(("total", "warmup"), [(50, 10), (50, 0), (3, 1), (1, 0)])
def test_cosine(total, warmup) -> None:
    expected = _reference(lambda o: transformers.get_cosine_schedule_with_warmup(o, warmup, total), total)
    assert [schedule_factor("cosine", i, total, warmup, 0, 0.0) for i in range(total + 1)] == pytest.approx(expected)


@pytest.mark.parametrize(("total", "warmup", "decay", "final"), [(50, 10, 10, 0.0), (50, 5, 20, 0.1), (20, 0, 20, 0.0)])
def test_wsd(total, warmup, decay, final) -> None:
    expected = _reference(
        lambda o: transformers.get_wsd_schedule(
            o,
            num_warmup_steps=warmup,
            num_decay_steps=decay,
            num_training_steps=total,
            decay_type="linear",
            min_lr_ratio=final,
        ),
        total,
    )
    ours = [schedule_factor("wsd", i, total, warmup, decay, final) for i in range(total + 1)]
    start = warmup if final else 0  # transformers warms up from the last rate, we from 0
    assert ours[start:] == pytest.approx(expected[start:])


def test_constant() -> None:
    expected = _reference(lambda o: transformers.get_constant_schedule_with_warmup(o, 4), 20)
    assert [schedule_factor("constant", i, 20, 4, 0, 0.0) for i in range(21)] == pytest.approx(expected)


@pytest.mark.parametrize("build", [lambda **parts: TrainConfig(schedule="wsd", **parts), SchedulePart])
def test_a_decay_that_begins_before_the_warm_up_ends_is_refused(build) -> None:
    with pytest.raises(ValidationError, match=r"warmup is 0.5 and decay 0.6: with the schedule wsd"):
        build(warmup=0.5, decay=0.6)
    assert build(warmup=0.3, decay=0.7).decay == 0.7
    assert TrainConfig(schedule="cosine", warmup=0.9).decay == 0.2


def test_the_rate_of_no_step_is_zero_and_all_are_within_the_peak() -> None:
    for name in typing.get_args(ScheduleName):
        config = TrainConfig(learning_rate=0.5, schedule=name, warmup=0.2, decay=0.4)
        rates = [config.learning_rate_at(step, 10) for step in range(10)]
        assert all(0 < rate <= 0.5 for rate in rates)
        assert rates[0] == pytest.approx(0.125)
