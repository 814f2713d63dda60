"""`bedplate plan amortise`: profit and loss by skin and tenant, and what the machine's idle time costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bedplate.cli.options import Overrides
from bedplate.core.progress import console

if TYPE_CHECKING:
    from decimal import Decimal

    from bedplate.economics.bills.amortisation import Statement, StatementRow


def amortise(
    account_file: Annotated[
        Path, typer.Argument(metavar="ACCOUNT.yaml", help="The amortisation file.", show_default=False)
    ],
    overrides: Overrides = None,
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
    from bedplate.economics.bills.amortisation import amortise as amortised
    from bedplate.economics.bills.amortisation import as_values
    from bedplate.economics.bills.amortisation_file import load_account

    statement = amortised(load_account(account_file, overrides or ()))
    if as_json:
        print(json.dumps(as_values(statement), allow_nan=False))
        return
    _show(statement)


def _show(statement: Statement) -> None:
    from rich.markup import escape

    screen = console()
    screen.print(f"[bold]{escape(_sentence(statement))}[/bold]", highlight=False)
    for title, rows in (("skin", statement.skins), ("tenant", statement.tenants)):
        if rows:
            screen.print()
            screen.print(_table(title, rows, statement))
    for line in statement.warnings:
        screen.print(f"[yellow]{escape(line)}[/yellow]", highlight=False)


def _sentence(statement: Statement) -> str:
    rows = statement.skins
    revenue, idle = sum(row.revenue_usd for row in rows), sum(row.machine_usd for row in rows if row.kind == "idle")
    profit = revenue - statement.bill_usd - statement.base_usd
    share, outcome = 100 * idle / statement.bill_usd, "a loss" if profit < 0 else "a profit"
    base = f" and {_text(statement.base_usd)} of the base" if statement.base_usd else ""
    return (
        f"{statement.account.amortise}: skins brought in {_text(revenue)}, and cost {_text(statement.bill_usd)} of "
        f"machine{base}: {outcome} of {_text(abs(profit))}; {_text(idle)} ({share:.0f}%) of the "
        "machine's bill was for standing idle."
    )


def _table(title: str, rows: Sequence[StatementRow], statement: Statement) -> object:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_footer=True)
    table.add_column(title, "all", no_wrap=True)
    sums = (
        ("calls", f"{sum(row.calls for row in rows):,.0f}"),
        ("tokens", f"{sum(row.tokens for row in rows):,.0f}"),
        ("compute s", f"{sum(row.compute_seconds for row in rows):,.0f}"),
        ("machine", _text(sum(row.machine_usd for row in rows))),
        ("base", _text(sum(row.base_usd for row in rows))),
        ("base a call", ""),
        ("revenue", _text(sum(row.revenue_usd for row in rows))),
        ("profit", _text(sum(row.profit_usd for row in rows))),
    )
    for name, total in sums:
        table.add_column(name, total, justify="right", no_wrap=True)
    for row in rows:
        used = row.kind in {"skin", "tenant"}
        table.add_row(
            row.name,
            f"{row.calls:,.0f}" if used else "",
            f"{row.tokens:,.0f}" if used else "",
            f"{row.compute_seconds:,.0f}" if used else "",
            _text(row.machine_usd),
            _text(row.base_usd) if used else "",
            "" if not row.base_usd_per_call else f"${row.base_usd_per_call:.3g}",
            _text(row.revenue_usd) if used else "",
            _text(row.profit_usd),
        )
    return table


def _text(value: Decimal | int) -> str:
    from bedplate.economics.numbers.money import usd

    return usd(float(value)) if value else "$0"
