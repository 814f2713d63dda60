"""`bedplate doctor`: what this machine is to an engine, and in which way a base would be run on it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllColumns
from bedplate.core.progress import console
from bedplate.core.tables import Column, numbers, show

if TYPE_CHECKING:
    from bedplate.inference.measure.doctor import Findings, PlanSpeeds


def doctor(
    base: Annotated[
        str | None,
        typer.Argument(
            help="Catalogue name, directory, .gguf file or hf:owner/name; none: a standard shape, nothing is pulled.",
            callback=paths.base,
        ),
    ] = None,
    wide: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what this machine can do with a base, what each way of running it gives, and which one is chosen.

    A way is the dtype that the base is loaded in, the kernel that computes it (torch, or the compiled decoder), and
    what its products read: weights in that dtype, or integers of 8 or 4 bits. `generate`, `chat`, `serve` and `adapt`
    take the fastest way that keeps what the checkpoint stores, by the measurement that this command makes anew and
    keeps: 256 tokens in and 64 out, once alone and once as one of 16. --dtype, --weights and --kernel override it
    there; a skin runs in the way that it was judged in.

    \b
      decode 1, decode 16   tokens a second that are written, alone and by 16 sequences together
      prefill               tokens a second of a prompt of 256 that are read
      (63%)                 of the roof: reading all weights once, or computing all products, as fast as was measured

    Measure on a quiet machine. More threads than cores, a container's quota and other work are what slows most:
    OMP_NUM_THREADS says how many threads there are to be, by default one for each core that this process may use.
    """
    from bedplate.inference.execution.threads import use_cores
    from bedplate.inference.measure.doctor import examine

    use_cores()
    findings = examine(base)
    if as_json:
        print(json.dumps(findings.to_json(), allow_nan=False))
        return
    _show(findings)


def _show(findings: Findings) -> None:
    from rich.markup import escape

    screen = console()
    for line in (*_machine(findings), *_kernel(findings), *_roofs(findings)):
        screen.print(escape(line))
    screen.print()
    columns = ("way", *numbers("decode 1", "decode 16", "prefill"), Column("note", prose=True))
    rows = [(str(reading.plan), *_cells(reading), _note(reading, findings)) for reading in findings.speeds]
    show(columns, rows, title=f"{findings.base}, stored as {' and '.join(findings.stored)}")
    screen.print()
    screen.print(f"[bold]chosen: {findings.chosen}[/bold]: {escape(findings.why)}")


def _machine(findings: Findings) -> list[str]:
    processor = findings.processor
    cores = f"{processor.cores} core{'s' if processor.cores > 1 else ''} on {processor.allowed} of {processor.online} logical processors"
    places = (
        f", {processor.sockets} sockets, {processor.nodes} NUMA nodes"
        if max(processor.sockets, processor.nodes) > 1
        else ""
    )
    quota = "no quota" if processor.quota is None else f"a quota of {processor.quota:g} cores"
    busy = "" if processor.load is None else f", load {processor.load:.2f}"
    native, torch = findings.threads
    threads_note = " (as the environment says)" if findings.threads_said else ""
    lines = [
        f"processor  {processor.name} ({processor.architecture}): {cores}{places}, {quota}{busy}",
        f"threads    {native} of the kernel, {torch} of torch{threads_note}",
    ]
    if processor.caches:
        lines.append("caches     " + ", ".join(f"{name} {_size(size)}" for name, size in processor.caches.items()))
    if processor.load is not None and processor.load > processor.cores:
        lines.append("note       other work is running: times below are too long, and may choose wrongly")
    return lines


def _size(size: int) -> str:
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB"


def _kernel(findings: Findings) -> list[str]:
    kernel = findings.kernel
    if kernel.reason is not None:
        return [f"kernel     none: {kernel.reason}; torch computes, and in 8 or 4 bits only if asked for"]
    extra_levels = [level for level in kernel.levels if level != kernel.level]
    levels_note = f"; it also has {', '.join(extra_levels)}" if extra_levels else ""
    compiler = "no compiler" if kernel.compiler is None else f"compiler {kernel.compiler}"
    return [f"kernel     {kernel.level}{levels_note} (build {(kernel.digest or '')[:12]}; {compiler})"]


def _roofs(findings: Findings) -> list[str]:
    machine = findings.machine
    products = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in machine.flops_per_second.items())
    reads = machine.bandwidth_bytes_per_second / 1e9
    return [f"roofs      memory reads {reads:.1f} GB/s; products in GFLOP/s: {products}"]


def _cells(reading: PlanSpeeds) -> list[str]:
    cells: list[str] = []
    for of in ("decode_1", "decode_16", "prefill"):
        measured = of in reading.rates
        cells.append(f"{reading.rates[of]:,.0f} ({reading.of_roof[of]:.0%})" if measured else "–")
    return cells


def _note(reading: PlanSpeeds, findings: Findings) -> str:
    if reading.reason is not None:
        return reading.reason
    if reading.plan == findings.chosen:
        return "chosen"
    notes = [] if reading.lossless else ["does not keep what is stored"]
    return ", ".join([*notes, "measured once, far behind"] if reading.stopped else notes)
