"""Who follows a run: the terminal's view and TensorBoard, neither of which the run depends on."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bedplate.pretraining.run.follow import Follower, TensorBoard


def row(step: int, **extra: Any) -> dict[str, Any]:
    speed = {"tokens": 100, "tokens_per_second": 50.0, "tokens/web": 60, "tokens/code": 40}
    return {"step": step, "loss": 5.0 / step, "learning_rate": 1e-3, "gradient_norm": 1.0, **speed, **extra}


def write(path: Path, *rows: dict[str, Any], tail: str = "") -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in rows) + tail)


def test_every_whole_line_is_given_once_also_after_a_cut(tmp_path: Path) -> None:
    log, steps = tmp_path / "metrics.jsonl", list[int]()
    write(log, row(1), row(2), tail='{"step": 3')
    with Follower(log, [lambda record: steps.append(record["step"])], interval=0.01):
        until = time.monotonic() + 10
        while len(steps) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert steps == [1, 2]
        with log.open("r+") as file:  # as a run cuts it back that goes on after having been killed
            file.truncate(len("".join(json.dumps(row(step)) + "\n" for step in (1, 2))))
            file.seek(0, 2)
            file.write("".join(json.dumps(row(step)) + "\n" for step in (3, 4)))
    assert steps == [1, 2, 3, 4]


def test_steps_that_were_cut_off_and_made_again_are_given_once(tmp_path: Path) -> None:
    """As where a killed run is resumed at its last saved state, step 2."""
    log, steps = tmp_path / "metrics.jsonl", list[int]()
    write(log, *(row(step) for step in range(1, 6)))
    with Follower(log, [lambda record: steps.append(record["step"])], interval=0.01):
        until = time.monotonic() + 10
        while len(steps) < 5 and time.monotonic() < until:
            time.sleep(0.01)
        with log.open("r+") as file:
            file.truncate(len("".join(json.dumps(row(step)) + "\n" for step in (1, 2))))
            file.seek(0, 2)
            file.write("".join(json.dumps(row(step, note="again")) + "\n" for step in range(3, 12)))
    assert steps == list(range(1, 12))


def test_who_fails_is_left_out_and_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log, steps = tmp_path / "metrics.jsonl", list[int]()

    def fails(record: Any) -> None:
        raise OSError("disk full")

    write(log, row(1), row(2))
    with (
        caplog.at_level(logging.WARNING),
        Follower(log, [fails, lambda record: steps.append(record["step"])], interval=60),
    ):
        pass
    assert steps == [1, 2]
    assert caplog.text.count("disk full") == 1


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path, 1)
    for step in (1, 2, 3):  # the first was written before the run was gone on with
        writer(row(step))
    writer.judged(
        {"step": 3, "held_out": {"text": {"bits_per_byte": 1.5}}, "suites": {"code": {"value": 0.5}}, "samples": []}
    )
    writer.close()
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert [(event.step, round(event.value, 4)) for event in accumulator.Scalars("train/loss")] == [
        (2, 2.5),
        (3, 1.6667),
    ]
    assert accumulator.Scalars("tokens/web")[0].value == 60
    assert accumulator.Scalars("held_out/text/bits_per_byte")[0].value == 1.5
