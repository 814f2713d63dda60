"""machine.json: curves as numpy interpolates them, costs that add up, and files that are damaged."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import ConfigError, UsageError
from bedplate.economics.hardware.machine import (
    EngineSpeed,
    Load,
    MeasuredMachine,
    SecondsCurve,
    ServerSpeed,
    StepShape,
    TuningSpeed,
    read_machine,
    served_seconds,
    step_seconds,
    write_machine,
)

SHAPE = StepShape(blocks=1000, head=500, key_features=20, query_features=40)
TODAY = datetime.date(2026, 1, 2)


def engine(**changes: Any) -> EngineSpeed:
    values: dict[str, Any] = {
        "base": "small",
        "shape": SHAPE,
        "weights": "int4",
        "kernel": "native",
        "threads": 2,
        "measured_at": TODAY,
        "blocks": SecondsCurve(counts=(1, 2, 16), seconds=(0.004, 0.003, 0.017)),
        "head": SecondsCurve(counts=(1, 16), seconds=(0.001, 0.002)),
        "key_seconds": 1e-6,
        "pair_seconds": 1e-7,
        "copy_seconds": 1e-8,
        "start_seconds": 1e-3,
        "end_seconds": 2e-3,
        "adapter_seconds": 5e-4,
        "adapter_token_seconds": 1e-5,
        "adapter_rank": 16,
    }
    return EngineSpeed(**(values | changes))


def machine(**changes: Any) -> MeasuredMachine:
    values: dict[str, Any] = {
        "cpu": "a cpu",
        "threads": 2,
        "memory_bytes": 8_000_000_000,
        "measured_at": TODAY,
        "bandwidth_bytes_per_second": 3e10,
        "flops_per_second": {"bfloat16": 4e11},
        "engines": (engine(),),
    }
    return MeasuredMachine(**(values | changes))


@given(
    st.dictionaries(st.integers(1, 600), st.floats(0, 1), min_size=2, max_size=8),
    st.floats(1, 600),
)
def test_curves_go_straight_between_points_as_numpys_do(points: dict[int, float], at: float) -> None:
    counts = tuple(sorted(points))
    curve = SecondsCurve(counts=counts, seconds=tuple(points[n] for n in counts))
    if at <= counts[-1]:
        assert curve.at(at) == pytest.approx(float(np.interp(at, counts, curve.seconds)), abs=1e-12)
    else:
        assert curve.at(at) == pytest.approx(curve.seconds[-1] * at / counts[-1])
    assert curve.at(0) == 0.0


@pytest.mark.parametrize(
    "values",
    [
        {"counts": (), "seconds": ()},
        {"counts": (1, 2), "seconds": (1.0,)},
        {"counts": (2, 2), "seconds": (1.0, 1.0)},
        {"counts": (0, 1), "seconds": (1.0, 1.0)},
        {"counts": (1,), "seconds": (-1.0,)},
        {"counts": (1,), "seconds": (float("nan"),)},
    ],
)
def test_curves_that_cannot_be_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        SecondsCurve(**values)


def test_a_steps_parts_add_up() -> None:
    load = Load(tokens=9, rows=4, keys=300.0, pairs=50.0, copied=7, started=2, ended=1, adapters=3, adapted_tokens=9)
    blocks, head = 0.003 + (0.017 - 0.003) * 7 / 14, 0.001 + 0.001 * 3 / 15
    overhead = 300e-6 + 50e-7 + 7e-8 + 2e-3 + 2e-3 + 3 * 5e-4 + 9e-5
    assert step_seconds(engine(), load) == pytest.approx(blocks + head + overhead)


def test_another_size_is_scaled_part_by_part() -> None:
    bare = engine(key_seconds=0.0, pair_seconds=0.0, copy_seconds=0.0, start_seconds=0.0, end_seconds=0.0)
    double = StepShape(blocks=2000, head=500, key_features=20, query_features=40)
    load = Load(tokens=2, rows=1)
    assert step_seconds(bare, load, double) == pytest.approx(2 * 0.003 + 0.001)
    keys = StepShape(blocks=1000, head=500, key_features=60, query_features=80)
    heavier_load = Load(tokens=2, rows=1, keys=1e6, pairs=1e6)
    fresh = step_seconds(engine(), heavier_load, keys) - step_seconds(engine(), load, keys)
    assert fresh == pytest.approx(3 * 1.0 + 2 * 0.1)


def test_a_server_adds_to_steps_that_choose_tokens() -> None:
    server = ServerSpeed(call_seconds=0.01, start_seconds=0.005, step_seconds=0.002, row_seconds=0.0003)
    assert served_seconds(server, Load(4, 4), 0.0) == pytest.approx(0.002 + 4 * 0.0003)
    assert served_seconds(server, Load(99, 4, started=2), 1.0) == pytest.approx(1.002 + 4 * 0.0003 + 2 * 0.005)
    assert served_seconds(server, Load(512, 0), 0.5) == 0.5
    slower = server.model_copy(update={"pace": 1.1})
    assert served_seconds(slower, Load(4, 4), 1.0) == pytest.approx(1.1 + 0.002 + 4 * 0.0003)


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    tuning = TuningSpeed(
        base="small",
        shape=SHAPE,
        dtype="bfloat16",
        rank=16,
        threads=2,
        measured_at=TODAY,
        fixed_seconds=0.1,
        token_seconds=0.001,
        pair_seconds=1e-6,
        target_seconds=0.002,
    )
    original = machine(tuning=(tuning,))
    assert write_machine(original, tmp_path / "machine.json") == tmp_path / "machine.json"
    assert read_machine(tmp_path / "machine.json") == original
    assert tuning.seconds(100, 1000, 10) == pytest.approx(0.1 + 0.1 + 0.001 + 0.02)


def test_nothing_measured_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run: bedplate plan calibrate"):
        read_machine(tmp_path / "machine.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [("threads", 0), ("bandwidth_bytes_per_second", -1), ("version", 2), ("surprise", 1), ("engines", [{}])],
)
def test_a_damaged_file_is_named_with_the_place(tmp_path: Path, key: str, value: Any) -> None:
    file = tmp_path / "machine.json"
    write_machine(machine(), file)
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ConfigError, match=rf"machine\.json: .*{key}.*measure again"):
        read_machine(file)
    file.write_text("{")
    with pytest.raises(ConfigError, match="measure again"):
        read_machine(file)


def test_engines_are_found_by_base_and_weights_and_replaced_when_measured_anew() -> None:
    measured = machine().with_speed(engine(weights="bfloat16")).with_speed(engine(key_seconds=7.0))
    assert [e.weights for e in measured.engines] == ["bfloat16", "int4"]
    assert measured.engine("small", "int4").key_seconds == 7.0
    assert measured.engine("small").weights == "int4"
    with pytest.raises(UsageError, match=r"large in int8 was not measured.*small \(bfloat16\), small \(int4\)"):
        measured.engine("large", "int8")
