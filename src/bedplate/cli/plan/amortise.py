"""`bedplate plan amortise`: profit and loss by skin and tenant, and what the machine's idle time costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllColumns, Overrides
from bedplate.core.progress import console
from bedplate.core.quantities import adding_up
from bedplate.core.tables import numbers, show
from bedplate.economics.numbers.money import exact_usd, round_columns

if TYPE_CHECKING:
    from bedplate.economics.costs.amortisation import Statement, StatementRow


def amortise(
    account_file: Annotated[
        Path,
        typer.Argument(
            metavar="ACCOUNT.yaml", help="The amortisation file.", show_default=False, callback=paths.existing
        ),
    ],
    overrides: Overrides = None,
    all_columns: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Who carries a base's and its machines' cost: profit and loss by skin and tenant, idle time as a row of its own.

    The file names two texts of the server's /metrics, or what is expected; access logs (JSON lines) for the tenants;
    the machines' price; what the base cost; and what skins and tenants pay:

    \b
      amortise: October
      period: {begins: 2026-10-01, ends: 2026-11-01}
      machine: {usd_per_hour: 0.40, as_of: 2026-10-01, source: our contract}
      servers: [{before: begin.txt, after: end.txt}]
      access_logs: [access.jsonl]
      base: {usd: 12000, horizon_days: 730, by: tokens}
      revenue: {skins: {reviews: {usd_per_call: 0.0004}}, tenants: {shop: {usd_per_month: 300}}}

    The rows add up to the machines' bill. examples/amortise has one.
    """
    from bedplate.economics.costs.amortisation import amortise as amortised
    from bedplate.economics.costs.amortisation import as_values
    from bedplate.economics.costs.amortisation_file import load_account

    statement = amortised(load_account(account_file, overrides or ()))
    if as_json:
        print(json.dumps(as_values(statement), allow_nan=False))
        return
    _show(statement)


def _show(statement: Statement) -> None:
    from rich.markup import escape

    screen = console()
    screen.print(f"[bold]{escape(_sentence(statement))}[/bold]")
    for title, rows in (("skin", statement.skins), ("tenant", statement.tenants)):
        if rows:
            screen.print()
            _table(title, rows)
    for line in statement.warnings:
        screen.print(f"[yellow]{escape(line)}[/yellow]")


def _sentence(statement: Statement) -> str:
    rows = statement.skins
    idle = sum(row.machine_usd for row in rows if row.row_type == "idle")
    (machine, base, revenue), digits = _rounded(rows)
    profit = sum(revenue) - sum(machine) - sum(base)
    share, outcome = 100 * idle / statement.bill_usd, "a loss" if profit < 0 else "a profit"
    of_base = f" and {exact_usd(sum(base), digits)} of the base" if statement.base_usd else ""
    return (
        f"{statement.account.amortise}: skins brought in {exact_usd(sum(revenue), digits)}, and cost "
        f"{exact_usd(sum(machine), digits)} of machine{of_base}: {outcome} of {exact_usd(abs(profit), digits)}; "
        f"{exact_usd(idle, digits)} ({share:.0f}%) of the machine's bill was for standing idle."
    )


def _rounded(rows: Sequence[StatementRow]) -> tuple[list[list[float]], int]:
    """Machine, base and revenue of each row, so that every column adds up as it is printed."""
    return round_columns(
        *([getattr(row, f"{column}_usd") for row in rows] for column in ("machine", "base", "revenue"))
    )


def _table(title: str, rows: Sequence[StatementRow]) -> None:
    columns, digits = _rounded(rows)
    seconds = adding_up([row.compute_seconds for row in rows], 0)
    lines: list[tuple[str, ...]] = []
    for row, spent, machine, base, revenue in zip(rows, seconds, *columns, strict=True):
        used = row.row_type in {"skin", "tenant"}
        counts = (f"{row.calls:,.0f}", f"{row.tokens:,.0f}", f"{spent:,.0f}") if used else ("", "", "")
        lines.append(
            (
                row.name,
                *counts,
                exact_usd(machine, digits),
                exact_usd(base, digits) if used else "",
                "" if not row.base_usd_per_call else f"${row.base_usd_per_call:.3g}",
                exact_usd(revenue, digits) if used else "",
                exact_usd(revenue - machine - base, digits),
            )
        )
    machine, base, revenue = map(sum, columns)
    sums = (
        "all",
        f"{sum(row.calls for row in rows):,.0f}",
        f"{sum(row.tokens for row in rows):,.0f}",
        f"{sum(seconds):,.0f}",
        exact_usd(machine, digits),
        exact_usd(base, digits),
        "",
        exact_usd(revenue, digits),
        exact_usd(revenue - machine - base, digits),
    )
    names = (*numbers("calls"), *numbers("tokens", "compute s", extra=True), *numbers("machine", "base"))
    show((title, *names, *numbers("base a call", extra=True), *numbers("revenue", "profit")), [*lines, sums])
