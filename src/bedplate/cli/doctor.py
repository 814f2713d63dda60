"""`bedplate doctor`: what this machine gives an engine, and the execution plan that a base would run under."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllColumns
from bedplate.core.progress import console
from bedplate.core.tables import Column, numbers, show


def doctor(
    base: Annotated[
        str | None,
        typer.Argument(
            help="Catalogue name, directory, .gguf file or hf:owner/name; none: a standard shape, nothing is pulled.",
            callback=paths.base,
        ),
    ] = None,
    all_columns: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what this machine can do with a base: the speed of each execution plan, and the plan that is chosen.

    A plan is the dtype that the base is loaded in, the kernel that computes it (torch, or the compiled decoder), and
    what its products read: weights in that dtype, or integers of 8 or 4 bits. `generate`, `chat`, `serve` and `adapt`
    take the fastest plan that keeps what the checkpoint stores, by the measurement that this command makes anew and
    keeps: 256 tokens in and 64 out, once alone and once as one of 16. --dtype, --weights and --kernel override it
    there; a skin runs under the plan that it was judged under.

    \b
      decode 1, decode 16   tokens a second that are written, alone and by 16 sequences together
      prefill               tokens a second of a prompt of 256 that are read
      (63%)                 of the roof: reading all weights once, or computing all products, as fast as was measured;
                            left out above 100%, where other work slowed the measurement of the roof

    Measure on a quiet machine. More threads than cores, a container's quota and other work are what slows most:
    OMP_NUM_THREADS says how many threads there are to be, by default one for each core that this process may use.
    """
    from bedplate.inference.execution.threads import use_cores
    from bedplate.inference.measure.machine_report import examine

    use_cores()
    findings = examine(base)
    if as_json:
        print(json.dumps(findings, allow_nan=False))
        return
    _show(findings)


def _show(findings: dict[str, Any]) -> None:
    from rich.markup import escape

    screen, base, chosen = console(), findings["base"], findings["chosen"]
    for line in (*_machine(findings), _kernel(findings["kernel"]), _roofs(findings["roofs"])):
        screen.print(escape(line))
    screen.print()
    columns = ("plan", *numbers("decode 1", "decode 16", "prefill"), Column("note", prose=True))
    rows = [(_plan(plan), *_cells(plan), _note(plan, chosen)) for plan in findings["ways"]]
    show(columns, rows, title=f"{base['name']}, stored as {' and '.join(base['stored'])}")
    screen.print()
    screen.print(f"[bold]chosen: {_plan(chosen)}[/bold]: {escape(chosen['why'])}")


def _plan(plan: dict[str, Any]) -> str:
    from bedplate.inference.execution.plan import ExecutionPlan

    return str(ExecutionPlan(plan["dtype"], plan["kernel"], plan["weights"]))


def _machine(findings: dict[str, Any]) -> list[str]:
    cpu, threads = findings["processor"], findings["threads"]
    plural = "s" if cpu["cores"] > 1 else ""
    cores = f"{cpu['cores']} core{plural} on {cpu['allowed']} of {cpu['online']} logical processors"
    several = max(cpu["sockets"], cpu["nodes"]) > 1
    places = f", {cpu['sockets']} sockets, {cpu['nodes']} NUMA nodes" if several else ""
    quota = "no quota" if cpu["quota"] is None else f"a quota of {cpu['quota']:g} cores"
    busy = "" if cpu["load"] is None else f", load {cpu['load']:.2f}"
    source = " (as the environment says)" if threads["from_environment"] else ""
    lines = [
        f"processor  {cpu['name']} ({cpu['architecture']}): {cores}{places}, {quota}{busy}",
        f"threads    {threads['native']} of the kernel, {threads['torch']} of torch{source}",
    ]
    if cpu["caches"]:
        lines.append("caches     " + ", ".join(f"{name} {_size(size)}" for name, size in cpu["caches"].items()))
    if cpu["load"] is not None and cpu["load"] > cpu["cores"]:
        lines.append("note       other work is running: times below are too long, and may choose wrongly")
    return lines


def _size(size: int) -> str:
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB"


def _kernel(kernel: dict[str, Any]) -> str:
    if kernel["reason"] is not None:
        return f"kernel     none: {kernel['reason']}; torch computes, and in 8 or 4 bits only if asked for"
    extra_levels = [level for level in kernel["levels"] if level != kernel["level"]]
    levels_note = f"; it also has {', '.join(extra_levels)}" if extra_levels else ""
    compiler = "no compiler" if kernel["compiler"] is None else f"compiler {kernel['compiler']}"
    refusal = kernel["tiles_refused"]
    tiles_note = "" if refusal is None else f"; without the processor's AMX: {refusal}"
    return f"kernel     {kernel['level']}{levels_note} (build {kernel['digest'][:12]}; {compiler}){tiles_note}"


def _roofs(roofs: dict[str, Any]) -> str:
    products = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in roofs["flops_per_second"].items())
    reads = roofs["bandwidth_bytes_per_second"] / 1e9
    return f"roofs      memory reads {reads:.1f} GB/s; products in GFLOP/s: {products}"


def _cells(plan: dict[str, Any]) -> list[str]:
    rates, shares = plan["tokens_per_second"], plan["of_roof"]
    passes = ("decode_1", "decode_16", "prefill")
    return [f"{rates[name]:,.0f}{_share(shares[name])}" if name in rates else "–" for name in passes]


def _share(share: float | None) -> str:
    return "" if share is None else f" ({share:.0%})"


def _note(plan: dict[str, Any], chosen: dict[str, Any]) -> str:
    if plan["reason"] is not None:
        return plan["reason"]
    if _plan(plan) == _plan(chosen):
        return "chosen"
    notes = [] if plan["keeps_what_is_stored"] else ["does not keep what is stored"]
    return ", ".join([*notes, "measured once, far behind"] if plan["stopped_early"] else notes)
