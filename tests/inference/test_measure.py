"""What an engine says of its steps, and what is measured and fitted from it: on a tiny base, and on made-up costs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.economics.test_machine import engine as made_up
from tests.serving.conftest import running
from tests.tiny import NATIVE_SHAPE, write_tiny_base

from bedplate.cli.main import main
from bedplate.core.errors import EndpointError, UsageError
from bedplate.economics.hardware.machine import Load, ServerSpeed, read_machine, step_seconds
from bedplate.economics.serving.replica import MeasuredSteps
from bedplate.economics.serving.simulation import ArrivingCall, ServiceModel, simulate
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Sampling
from bedplate.inference.engine.stats import StepRecord
from bedplate.inference.measure import speeds as measure
from bedplate.inference.measure.speeds import (
    CALL_SHAPES,
    MeasuredStep,
    StepKind,
    fit_engine,
    fit_server,
    load_of,
    measure_engine,
    measure_server,
)
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.export import export_gguf
from bedplate.serving.server.app import loaded_server


@pytest.fixture(scope="module")
def base(tiny_dir: Path) -> Base:
    return load_base(tiny_dir)


@pytest.fixture
def log() -> list[StepRecord]:
    return []


@pytest.fixture
def watched(base: Base, log: list[StepRecord]) -> Iterator[Engine]:
    with Engine(base, max_step_tokens=16, max_rows=3, speculate=False, on_step=log.append) as engine:
        yield engine


def generate(tokens: int, count: int, seed: int = 0) -> Generate:
    generator = random.Random(seed)
    return Generate(tuple(generator.randrange(300) for _ in range(tokens)), Sampling(max_tokens=count, ignore_eos=True))


def test_steps_say_what_they_computed(watched: Engine, log: list[StepRecord]) -> None:
    watched.run([generate(20, 3), generate(5, 4, seed=1)])
    stats = watched.stats()
    assert len(log) == stats.steps
    assert sum(count for record in log for _, count, _ in record.spans) == stats.computed_tokens
    assert sum(chosen for record in log for _, _, chosen in record.spans) == stats.generated_tokens == 7
    assert sum(record.ended for record in log) == 2
    assert sum(record.seconds for record in log) <= stats.step_seconds
    # The shorter prompt first, then as much of the longer one as the budget of 16 leaves.
    assert log[0].spans == ((0, 5, True), (0, 11, False))
    assert log[1].spans == ((5, 1, True), (11, 9, True))
    assert [record.decodes for record in log[:3]] == [0, 1, 2]


def test_loads_are_counted_by_hand(watched: Engine, log: list[StepRecord]) -> None:
    watched.run([generate(20, 3), generate(5, 4, seed=1)])
    first, second = map(load_of, log[:2])
    assert first == Load(tokens=16, rows=1, keys=16.0, pairs=15.0 + 66.0, started=1)
    # One row decodes at 6 keys; 9 tokens after 11 others see 12 … 20 keys.
    assert second == Load(tokens=10, rows=2, keys=26.0, pairs=float(sum(range(12, 21))), started=1)


def test_cached_beginnings_are_counted_as_copied(watched: Engine, log: list[StepRecord]) -> None:
    request = generate(40, 2)
    watched.run([request])
    log.clear()
    watched.run([request])
    assert (log[0].copied, log[0].spans) == (39, ((39, 1, True),))


def test_an_observer_that_is_not_there_costs_nothing(base: Base) -> None:
    with Engine(base) as plain:
        assert plain.run([generate(5, 2)])[0].usage.completion_tokens == 2


def test_known_costs_are_found_again() -> None:
    generator = random.Random(3)
    true = made_up(
        blocks={"counts": (1, 2, 3, 4, 6, 8, 12, 16), "seconds": tuple(0.002 + 0.0007 * n for n in range(8))},
        head={"counts": (1, 16), "seconds": (0.001, 0.004)},
    )
    measurements: list[MeasuredStep] = []
    for _ in range(400):
        tokens = generator.choice([1, 2, 3, 4, 6, 8, 12, 16])
        load = Load(
            tokens=tokens,
            rows=generator.randint(0, tokens),
            keys=float(generator.randint(0, 5000)),
            pairs=float(generator.randint(0, 5000)),
            copied=generator.randint(0, 500),
            started=generator.randint(0, 3),
            ended=generator.randint(0, 3),
            adapters=generator.randint(0, 3),
            adapted_tokens=tokens,
        )
        measurements.append(MeasuredStep(load, step_seconds(true, load), 5))
    fit = made_up(**fit_engine(measurements))
    for measurement in measurements:
        assert step_seconds(fit, measurement.load) == pytest.approx(measurement.seconds, rel=1e-6)
    assert fit.key_seconds == pytest.approx(true.key_seconds, rel=1e-4)
    assert all(spread.fitted == pytest.approx(spread.seconds, rel=1e-6) for spread in fit.measured)


@pytest.mark.slow
def test_a_tiny_bases_engine_is_measured(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_REPEATS", 2)
    speed = measure_engine(base, "tiny", adapter_rank=4)
    assert (speed.base, speed.weights, speed.kernel) == ("tiny", "float32", "torch")
    assert speed.adapter_rank == 4
    assert set(measure.BATCHES) <= set(speed.blocks.counts)
    assert step_seconds(speed, Load(256, 1, pairs=256 * 257 / 2)) > step_seconds(speed, Load(1, 1)) > 0
    assert {"adapters", "copied"} <= {name for spread in speed.measured for name in spread.load}
    assert (base.spec.context_length, base.model.training) == (512, False)


def test_training_steps_are_measured_and_leave_the_base_as_it_was(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    times = [0.5 + 0.01 * t + 1e-5 * p + 0.02 * n for t, p, n in _sizes()]
    real = measure.fastest_steps(base, "tiny", [StepKind(2, 8, 1), StepKind(1, 4, 2)], rank=2)
    assert len(real) == 2
    assert all(0 < seconds < 60 for seconds in real)
    assert all(torch.equal(before[name], p) for name, p in base.model.named_parameters())
    monkeypatch.setattr(measure, "fastest_steps", lambda *_: times)
    speed = measure.measure_tuning(base, "tiny", rank=2)
    # Costs that were made up are found again: 100 tokens in 10 examples, 10 of them learned.
    assert speed.seconds(100, 550, 10) == pytest.approx(0.5 + 1.0 + 5.5e-3 + 0.2, rel=1e-3)


def _sizes() -> list[tuple[float, float, float]]:
    return [k.loads for k in measure.STEP_SHAPES]


def test_what_a_server_adds_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_tiny_base(tmp_path / "base", **NATIVE_SHAPE)
    monkeypatch.setattr("bedplate.inference.measure.speeds.SERVER_TURNS", 2)
    nothing = made_up(
        blocks={"counts": (1,), "seconds": (0.0,)},
        head={"counts": (1,), "seconds": (0.0,)},
        **dict.fromkeys(("key_seconds", "pair_seconds", "copy_seconds", "start_seconds", "end_seconds"), 0.0),
    )
    with loaded_server(base, [], state=tmp_path / "state") as state, running(state) as url:
        name = next(iter(state.registry.models))
        speed = measure_server(url, name, nothing, 300)
        with pytest.raises(EndpointError, match="answered 404"):
            measure_server(url, "another", nothing, 300)
    # Against an engine that takes no time, the server is all there is.
    assert speed.call_seconds + speed.start_seconds + speed.step_seconds + speed.row_seconds > 0
    with pytest.raises(EndpointError, match="was not reached"):
        measure_server("http://127.0.0.1:9", "tiny", nothing, 300)


@pytest.mark.parametrize(
    "costs",
    [(1.0, 0.004, 0.002, 0.0006, 0.0003), (1.3, 0.0, 0.003, 0.0, 0.0002), (0.8, 0.005, 0.0, 0.001, 0.0)],
)
def test_what_a_server_adds_is_found_again(costs: tuple[float, float, float, float, float]) -> None:
    """Calls of a simulated server with made-up costs give the costs."""
    pace, call, start, step, row = costs
    server = ServerSpeed(pace=pace, call_seconds=call, start_seconds=start, step_seconds=step, row_seconds=row)
    engine = made_up()
    service = ServiceModel(MeasuredSteps(engine.model_copy(update={"server": server})), call_seconds=call)
    durations = {
        (rows, prompt, tokens): simulate(service, [ArrivingCall(0.0, prompt, 0, tokens) for _ in range(rows)]).seconds
        for rows, prompt, tokens in CALL_SHAPES
    }
    speed = fit_server(engine, durations)
    for name, value in server.model_dump().items():
        assert getattr(speed, name) == pytest.approx(value, abs=1e-9), name


def test_calls_of_one_token_pay_for_the_server_s_work() -> None:
    """An engine that answers in no time still serves no more calls than its server can begin."""
    server = ServerSpeed(call_seconds=0.0, start_seconds=0.01, step_seconds=0.0, row_seconds=0.0)
    engine = made_up().model_copy(update={"server": server})
    calls = [ArrivingCall(0.0, 16, 0, 1) for _ in range(100)]
    assert simulate(ServiceModel(MeasuredSteps(engine)), calls).seconds >= 100 * 0.01


@pytest.mark.parametrize("file", [None, "base.gguf"])
def test_the_command_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: str | None
) -> None:
    """Of a GGUF file too, of which some weights are read when torch first needs them."""
    source = write_tiny_base(tmp_path / "base", **NATIVE_SHAPE)
    if file is not None:
        export_gguf(load_base(source), source := tmp_path / file, "q8_0")
    for name, value in {"_REPEATS": 1, "_SECONDS": 0.01, "_SIZE": 128, "_BYTES": 1 << 24}.items():
        monkeypatch.setattr(measure, name, value)
    out = tmp_path / "machine.json"
    with pytest.raises(SystemExit) as ended:
        main(["plan", "calibrate", str(source), "--out", str(out)])
    assert ended.value.code == 0
    assert "decode 16" in capsys.readouterr().out
    first = read_machine(out)
    assert [engine_speed.base for engine_speed in first.engines] == [str(source)]
    assert first.bandwidth_bytes_per_second > 1e8
    with pytest.raises(SystemExit) as ended:
        main(["plan", "calibrate", "--out", str(out), "--json"])
    assert ended.value.code == 0
    assert read_machine(out).engines == first.engines
    with pytest.raises(SystemExit) as ended:
        main(["plan", "serve", str(source), "--machine", str(out), "--prompt-tokens", "20", "--usd-per-hour", "1"])
    assert ended.value.code == 0
    assert "usd per call" in capsys.readouterr().out


def test_tuning_and_a_server_are_about_a_base(capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--tuning"], ["--url", "http://127.0.0.1:1"]):
        with pytest.raises(SystemExit) as ended:
            main(["plan", "calibrate", *option])
        assert ended.value.code == 2
        assert "name it" in capsys.readouterr().err


def test_an_encoder_has_no_steps_to_measure(minilm_dir: Path) -> None:
    encoder = load_base(minilm_dir)
    with pytest.raises(UsageError, match="is an encoder"):
        measure_engine(encoder, "minilm")
    with pytest.raises(UsageError, match="is an encoder"):
        measure.fastest_steps(encoder, "minilm", [StepKind(1, 4, 1)])


def test_records_are_plain() -> None:
    record = StepRecord(((0, 3, True), (7, 1, True)), 0, 1, 7, 1, 0.5)
    assert load_of(record) == Load(
        4, 2, keys=11.0, pairs=6.0 + 8.0, copied=7, started=2, ended=1, adapters=1, adapted_tokens=4
    )
