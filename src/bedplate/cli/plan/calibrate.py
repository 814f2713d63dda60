"""`bedplate plan calibrate`: measures this machine, for predictions of its latency and prices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllColumns, Dtype, Kernel, Weights, output_file, unset
from bedplate.core.errors import UsageError
from bedplate.core.processor import is_busy, load_average
from bedplate.core.progress import console
from bedplate.core.tables import numbers, show

if TYPE_CHECKING:
    from bedplate.economics.hardware.machine import EngineSpeed, MeasuredMachine, TuningSpeed
    from bedplate.inference.predict.opening import Opened


def calibrate(
    base: Annotated[
        str | None,
        typer.Argument(help="The base whose engine is measured too; none: the machine alone.", callback=paths.base),
    ] = None,
    dtype: Dtype = "auto",
    weights: Weights = "auto",
    kernel: Kernel = "auto",
    tuning: Annotated[bool, typer.Option("--tuning", help="Measure LoRA training steps as well.")] = False,
    rank: Annotated[int, typer.Option(help="Rank of the measured LoRA adapters.", min=1)] = 16,
    url: Annotated[
        str | None, unset("A running server of this base here: measures what it adds to its engine.")
    ] = None,
    out: Annotated[Path | None, output_file(help="Default: machine/machine.json in BEDPLATE_HOME.")] = None,
    all_columns: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure memory bandwidth, products, the steps of a base's engine and of its tuning, in about a minute; other work
    on the machine disturbs it. What was measured before of other bases stays in the file."""
    from bedplate.economics.hardware.machine import machine_file, read_machine, write_machine
    from bedplate.inference.execution.threads import use_cores
    from bedplate.inference.measure.speeds import measure_machine
    from bedplate.inference.predict.opening import OpenOptions, open_base

    use_cores()
    if base is None and (tuning or url is not None):
        raise UsageError("--tuning and --url are about a base; name it: bedplate plan calibrate BASE")
    machine_path = machine_file() if out is None else out
    machine = measure_machine()
    if machine_path.exists():
        before = read_machine(machine_path)
        if (before.cpu, before.threads) == (machine.cpu, machine.threads):
            machine = machine.model_copy(update={"engines": before.engines, "tuning": before.tuning})
    write_machine(machine, machine_path)
    if base is not None:
        options = OpenOptions(dtype, weights, kernel, quantised=not tuning)
        for speed in _measured_speeds(open_base(base, options), base, rank, tuning, url):
            machine = machine.with_speed(speed)
            write_machine(machine, machine_path)  # each is kept as soon as it is there
    if as_json:
        print(machine.model_dump_json())
        return
    _show(machine, machine_path)


def _measured_speeds(
    opened: Opened, base: str, rank: int, tuning: bool, url: str | None
) -> Iterator[EngineSpeed | TuningSpeed]:
    """Measures one thing after the other."""
    from bedplate.inference.measure.speeds import measure_engine, measure_server, measure_tuning

    loaded, settings = opened.base, opened.load_format
    speed = measure_engine(loaded, base, weights=settings.weights, kernel=settings.kernel, adapter_rank=rank)
    yield speed
    if url is not None:
        yield speed.model_copy(update={"server": measure_server(url, base, speed, loaded.spec.vocab_size)})
    if tuning:
        yield measure_tuning(loaded, base, rank=rank)


def _show(machine: MeasuredMachine, out: Path) -> None:
    from rich.markup import escape

    console().print(
        f"[bold]{escape(machine.cpu)}[/], {machine.threads} threads, {machine.memory_bytes / 1e9:.0f} GB: reads "
        f"{machine.bandwidth_bytes_per_second / 1e9:.0f} GB/s; products "
        + ", ".join(f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in machine.flops_per_second.items())
    )
    if machine.engines:
        speeds = numbers("prefill 512", "decode 1", "decode 16", "fit's median error")
        rows = [(engine.base, engine.weights, engine.kernel, *_speeds(engine)) for engine in machine.engines]
        show(("base", "weights", "kernel", *speeds), rows)
    for tuning_speed in machine.tuning:
        rate = 1024 / tuning_speed.seconds(1024, 1024 * 64 / 2, 16)
        console().print(
            f"tuning {tuning_speed.base}, {tuning_speed.dtype}, rank {tuning_speed.rank}: {rate:,.0f} tokens/s",
            markup=False,
        )
    load = load_average()
    if load is not None and is_busy(load):
        warning = f"note: other work is running (load average {load:.1f}), so these speeds are too low"
        console().print(f"{warning}; calibrate again on a quiet machine", markup=False)
    console().print(f"kept in {out}", markup=False)


def _speeds(engine: EngineSpeed) -> list[str]:
    import statistics

    from bedplate.economics.hardware.machine import Load, step_seconds

    prefill = 512 / step_seconds(engine, Load(512, 1, pairs=512 * 513 / 2, started=1))
    decodes = [rows / step_seconds(engine, Load(rows, rows, keys=256.0 * rows)) for rows in (1, 16)]
    errors = [abs(spread.fitted / spread.seconds - 1) for spread in engine.measured]
    error = f"{statistics.median(errors):.1%}" if errors else "–"
    return [*(f"{rate:,.0f} tok/s" for rate in (prefill, *decodes)), error]
