"""TensorBoard's scalars of a run, which does not depend on them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bedplate.pretraining.run.outputs import TensorBoard


def row(step: int) -> dict[str, Any]:
    speed = {"tokens": 100, "tokens_per_second": 50.0, "tokens/web": 60, "tokens/code": 40}
    return {"step": step, "loss": 5.0 / step, "learning_rate": 1e-3, "gradient_norm": 1.0, **speed}


def test_a_failure_is_reported_once_and_nothing_is_written_after_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", fails)
    with caplog.at_level(logging.WARNING), TensorBoard(tmp_path, 0) as writer:
        writer.row(row(1))
        writer.row(row(2))
    assert caplog.text.count("disk full") == 1


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    with TensorBoard(tmp_path, 1) as writer:
        for step in (2, 3):
            writer.row(row(step))
        writer.judged(
            {"step": 3, "held_out": {"text": {"bits_per_byte": 1.5}}, "suites": {"code": {"value": 0.5}}, "samples": []}
        )
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert [(event.step, round(event.value, 4)) for event in accumulator.Scalars("train/loss")] == [
        (2, 2.5),
        (3, 1.6667),
    ]
    assert accumulator.Scalars("tokens/web")[0].value == 60
    assert accumulator.Scalars("held_out/text/bits_per_byte")[0].value == 1.5
