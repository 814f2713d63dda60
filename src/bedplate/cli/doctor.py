"""`bedplate doctor`: what this machine is to an engine, and in which way a base would be run on it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from bedplate.cli import paths
from bedplate.cli.options import Wide
from bedplate.core.progress import console
from bedplate.core.tables import Column, numbers, show

if TYPE_CHECKING:
    from bedplate.inference.measure.doctor import Findings, Reading


def doctor(
    base: Annotated[
        str | None,
        typer.Argument(
            help="Catalogue name, directory, .gguf file or hf:owner/name; none: a standard shape, nothing is pulled.",
            callback=paths.base,
        ),
    ] = None,
    wide: Wide = False,
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
    from bedplate.inference.measure.doctor import examine
    from bedplate.inference.ways.threads import use_cores

    use_cores()
    found = examine(base)
    if as_json:
        print(json.dumps(found.to_json(), allow_nan=False))
        return
    _show(found)


def _show(found: Findings) -> None:
    from rich.markup import escape

    screen = console()
    for line in (*_machine(found), *_kernel(found), *_roofs(found)):
        screen.print(escape(line))
    screen.print()
    columns = ("way", *numbers("decode 1", "decode 16", "prefill"), Column("note", prose=True))
    rows = [(str(one.way), *_cells(one), _note(one, found)) for one in found.readings]
    show(columns, rows, title=f"{found.base}, stored as {' and '.join(found.stored)}")
    screen.print()
    screen.print(f"[bold]chosen: {found.chosen}[/bold]: {escape(found.why)}")


def _machine(found: Findings) -> list[str]:
    one = found.processor
    cores = f"{one.cores} core{'s' if one.cores > 1 else ''} on {one.allowed} of {one.online} logical processors"
    places = f", {one.sockets} sockets, {one.nodes} NUMA nodes" if max(one.sockets, one.nodes) > 1 else ""
    quota = "no quota" if one.quota is None else f"a quota of {one.quota:g} cores"
    busy = "" if one.load is None else f", load {one.load:.2f}"
    native, torch = found.threads
    said = " (as the environment says)" if found.threads_said else ""
    lines = [
        f"processor  {one.name} ({one.architecture}): {cores}{places}, {quota}{busy}",
        f"threads    {native} of the kernel, {torch} of torch{said}",
    ]
    if one.caches:
        lines.append("caches     " + ", ".join(f"{name} {_size(size)}" for name, size in one.caches.items()))
    if one.load is not None and one.load > one.cores:
        lines.append("note       other work is running: times below are too long, and may choose wrongly")
    return lines


def _size(size: int) -> str:
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB"


def _kernel(found: Findings) -> list[str]:
    kernel = found.kernel
    if kernel.reason is not None:
        return [f"kernel     none: {kernel.reason}; torch computes, and in 8 or 4 bits only if asked for"]
    others = [level for level in kernel.levels if level != kernel.level]
    also = f"; it also has {', '.join(others)}" if others else ""
    compiler = "no compiler" if kernel.compiler is None else f"compiler {kernel.compiler}"
    return [f"kernel     {kernel.level}{also} (build {(kernel.digest or '')[:12]}; {compiler})"]


def _roofs(found: Findings) -> list[str]:
    machine = found.machine
    products = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in machine.flops_per_second.items())
    reads = machine.bandwidth_bytes_per_second / 1e9
    return [f"roofs      memory reads {reads:.1f} GB/s; products in GFLOP/s: {products}"]


def _cells(one: Reading) -> list[str]:
    cells: list[str] = []
    for of in ("decode_1", "decode_16", "prefill"):
        known = of in one.rates
        cells.append(f"{one.rates[of]:,.0f} ({one.of_roof[of]:.0%})" if known else "–")
    return cells


def _note(one: Reading, found: Findings) -> str:
    if one.reason is not None:
        return one.reason
    if one.way == found.chosen:
        return "chosen"
    notes = [] if one.own else ["does not keep what is stored"]
    return ", ".join([*notes, "measured once, far behind"] if one.stopped else notes)
