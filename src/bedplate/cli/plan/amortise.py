"""`bedplate plan amortise`: profit and loss by skin and tenant, and what the machine's idle time costs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllColumns, Overrides
from bedplate.core.errors import UsageError
from bedplate.core.files import read_text
from bedplate.core.progress import console
from bedplate.core.quantities import adding_up
from bedplate.core.tables import numbers, show
from bedplate.economics.numbers.money import exact_usd, round_columns

if TYPE_CHECKING:
    from bedplate.economics.costs.amortisation import Statement, StatementRow


def amortise(
    account_file: Annotated[
        Path, typer.Argument(metavar="ACCOUNT.yaml", help="The amortisation file.", callback=paths.existing)
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
    from bedplate.economics.costs.amortisation import AmortisationFile, as_values
    from bedplate.economics.costs.amortisation import amortise as amortised

    if re.search(r"^case\s*:", read_text(account_file), re.MULTILINE):
        raise UsageError(f"{account_file} is a decision file: bedplate plan decide {account_file}")
    statement = amortised(AmortisationFile.load(account_file, overrides or ()))
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


def _rounded(rows: Sequence[StatementRow]) -> tuple[list[list[float]], Callable[[float], str]]:
    """Machine, base and revenue of each row, so that every column adds up as it is printed; and how to print them."""
    names = ("machine_usd", "base_usd", "revenue_usd")
    columns, digits = round_columns(*([getattr(row, name) for row in rows] for name in names))
    return columns, lambda usd: exact_usd(usd, digits)


def _sentence(statement: Statement) -> str:
    columns, usd = _rounded(statement.skins)
    machine, base, revenue = map(sum, columns)
    idle = sum(row.machine_usd for row in statement.skins if row.row_type == "idle")
    profit = revenue - machine - base
    of_base = f" and {usd(base)} of the base" if statement.base_usd else ""
    return (
        f"{statement.account.amortise}: skins brought in {usd(revenue)}, and cost {usd(machine)} of machine{of_base}: "
        f"{'a loss' if profit < 0 else 'a profit'} of {usd(abs(profit))}; {usd(idle)} "
        f"({100 * idle / statement.bill_usd:.0f}%) of the machine's bill was for standing idle."
    )


def _table(title: str, rows: Sequence[StatementRow]) -> None:
    columns, usd = _rounded(rows)
    seconds = adding_up([row.compute_seconds for row in rows], 0)
    lines: list[tuple[str, ...]] = []
    for row, spent, machine, base, revenue in zip(rows, seconds, *columns, strict=True):
        profit, of_call = usd(revenue - machine - base), row.base_usd_per_call
        if row.row_type in {"skin", "tenant"}:
            counts = (f"{row.calls:,.0f}", f"{row.tokens:,.0f}", f"{spent:,.0f}")
            per_call = f"${of_call:.3g}" if of_call else ""
            lines.append((row.name, *counts, usd(machine), usd(base), per_call, usd(revenue), profit))
        else:
            lines.append((row.name, "", "", "", usd(machine), "", "", "", profit))
    machine, base, revenue = map(sum, columns)
    counts = (sum(row.calls for row in rows), sum(row.tokens for row in rows), sum(seconds))
    money = (usd(machine), usd(base), "", usd(revenue), usd(revenue - machine - base))
    names = (*numbers("calls"), *numbers("tokens", "compute s", extra=True), *numbers("machine", "base"))
    footer = ("all", *(f"{count:,.0f}" for count in counts), *money)
    show((title, *names, *numbers("base a call", extra=True), *numbers("revenue", "profit")), [*lines, footer])
