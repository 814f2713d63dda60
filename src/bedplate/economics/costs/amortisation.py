"""Who pays what a base and its machines cost: profit and loss by skin and by tenant, and the price of idle machines.

    machine's bill = USD per hour × machines × hours, paid whether it computes or not
    a skin's share = its compute seconds × USD per hour / 3600, as the server counted them
    idle = the bill less all shares: a row of its own, so that the rows add up to the bill
    a base's share = its price × (the period / its horizon), divided by calls, tokens or compute seconds

Amounts are rounded to millionths of a dollar so that rows add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bedplate.core.display import Brief
from bedplate.core.errors import ConfigError, UsageError
from bedplate.core.quantities import adding_up
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.economics.costs.amortisation_file import AmortisationFile, Basis, Revenue
from bedplate.economics.costs.usage import (
    AccessLogUse,
    MeteredUse,
    ServerUse,
    combine,
    read_access_logs,
    use_between,
    utc,
)

DIGITS = 6
_EXCESS = 1.001  # clocks of two snapshots and of a bill do not agree to the second


@dataclass(frozen=True)
class StatementRow:
    """One skin or tenant, or what no call of theirs paid for. profit_usd: revenue less machine and base."""

    name: str
    row_type: Literal["skin", "tenant", "unanswered", "idle"]
    calls: float = 0.0
    tokens: float = 0.0
    compute_seconds: float = 0.0
    machine_usd: float = 0.0
    base_usd: float = 0.0
    revenue_usd: float = 0.0

    @property
    def profit_usd(self) -> float:
        return round(self.revenue_usd - self.machine_usd - self.base_usd, DIGITS)

    @property
    def base_usd_per_call(self) -> float | None:
        return self.base_usd / self.calls if self.calls else None


@dataclass(frozen=True, repr=False)
class Statement(Brief):
    """skins, tenants: rows whose machine_usd add up to bill_usd, and whose base_usd to base_usd; empty where there is
    no source for them."""

    account: AmortisationFile
    hours: float
    bill_usd: float
    base_usd: float
    skins: tuple[StatementRow, ...]
    tenants: tuple[StatementRow, ...]
    warnings: tuple[str, ...]


def amortise(account: AmortisationFile) -> Statement:
    """The statement of a period. ConfigError, DataError for files; UsageError where figures cannot belong together."""
    logged = None
    if account.access_logs:
        paths = [account.resolve_path(name) for name in account.access_logs]
        logged = read_access_logs(paths, utc(account.period.begins), utc(account.period.ends))
    use = _use_of(account, logged)
    warnings = [*use.warnings, *_differences(use, logged, account)]
    skins = _Division(account, use, warnings).rows("skin", account.revenue.skins)
    tenants: list[StatementRow] = []
    if logged is not None:
        by_tenant = ServerUse(logged.by_tenant, use.busy_seconds)
        tenants = _Division(account, by_tenant, warnings).rows("tenant", account.revenue.tenants)
    elif account.revenue.tenants:
        warnings.append("revenue of tenants is left out: only `access_logs` say what they used")
    return Statement(
        account, account.period.hours, _bill(account), _base(account), tuple(skins), tuple(tenants), tuple(warnings)
    )


def _bill(account: AmortisationFile) -> float:
    """What the machines cost over the period."""
    return round(account.machine.usd_per_hour * account.machine.machines * account.period.hours, DIGITS)


def _base(account: AmortisationFile) -> float:
    """The base's price for the period."""
    base = account.base
    return 0.0 if base is None else round(base.usd * min(1.0, account.period.hours / 24 / base.horizon_days), DIGITS)


def _use_of(account: AmortisationFile, logged: AccessLogUse | None) -> ServerUse:
    """By skin: from /metrics, else from the log, else as expected."""
    if account.servers:
        return combine(
            use_between(
                None if server.before is None else account.resolve_path(server.before),
                account.resolve_path(server.after),
            )
            for server in account.servers
        )
    if logged is not None:
        return ServerUse(logged.by_skin, None)
    days, by_skin = account.period.hours / 24, dict[str, MeteredUse]()
    for name, expected in account.expected.items():
        calls = expected.calls_per_day * days
        usd = expected.seconds_per_call * calls * account.server_rate / 3600
        by_skin[name] = MeteredUse(
            calls, expected.tokens_per_call * calls, 0.0, usd if expected.seconds_per_call else None
        )
    return ServerUse(by_skin, None)


class _Division:
    """Divides the bill and the base's price over the skins, or the tenants, of a period."""

    def __init__(self, account: AmortisationFile, use: ServerUse, warnings: list[str]) -> None:
        self.account, self.use, self.warnings = account, use, warnings
        self.names = sorted(use.by_skin, key=lambda name: (-(use.by_skin[name].cost_usd or 0.0), name))
        self.seconds: list[float] | None = None
        """Compute seconds of each, from what the server says they cost; None where it had no price."""

    def rows(self, row_type: Literal["skin", "tenant"], revenue: Mapping[str, Revenue]) -> list[StatementRow]:
        account, by_name = self.account, self.use.by_skin
        for name in revenue:
            if name not in by_name:
                hint = did_you_mean(nearest(name, by_name))
                self.warnings.append(
                    f"revenue.{row_type}s.{name}: it answered no call in this time{hint and f'; {hint}'}"
                )
                self.names.append(name)
        usages = [by_name.get(name, MeteredUse()) for name in self.names]
        if all(usage.cost_usd is not None or not usage.calls for usage in usages):
            self.seconds = [(usage.cost_usd or 0.0) * 3600 / account.server_rate for usage in usages]
        bill = _bill(account)
        machine, unanswered = self._machine_shares(usages, bill)
        base = [0.0] * len(usages)
        if account.base is not None:
            base = _proportional(_base(account), self._basis(account.base.by, usages, "base.by"))
        rows = [
            StatementRow(
                name,
                row_type,
                usage.calls,
                usage.tokens,
                0.0 if self.seconds is None else self.seconds[place],
                machine[place],
                base[place],
                round(revenue[name].usd(usage, account.period.hours), DIGITS) if name in revenue else 0.0,
            )
            for place, (name, usage) in enumerate(zip(self.names, usages, strict=True))
        ]
        if unanswered:
            rows.append(StatementRow("(unanswered)", "unanswered", machine_usd=unanswered))
        idle = round(bill - sum(machine) - unanswered, DIGITS)
        return [*rows, StatementRow("(idle)", "idle", machine_usd=idle)]

    def _machine_shares(self, usages: Sequence[MeteredUse], bill: float) -> tuple[list[float], float]:
        """What each pays of the bill, and what engine steps took that no answered call paid for."""
        account, busy, seconds = self.account, self.use.busy_seconds, self.seconds
        per_second = account.machine.usd_per_hour / 3600
        unanswered = 0.0
        if account.by == "compute":
            if seconds is None:
                raise ConfigError(
                    "by: compute needs what calls cost: set `price` in the server's file, or divide by tokens or calls"
                )
            shares = [round(each * per_second, DIGITS) for each in seconds]
            # A step's seconds belong to the calls in it; the rest is of calls that failed or whose clients left.
            if busy is not None:
                unanswered = max(0.0, round(busy * per_second - sum(shares), DIGITS))
        else:
            if busy is None and seconds is None:
                raise ConfigError(
                    f"by: {account.by} needs how long the engines were busy: give `servers` with "
                    "bedplate:engine_step_seconds_total, or set `price` in the server's file"
                )
            spent = (sum(seconds or ()) if busy is None else busy) * per_second
            shares = _proportional(spent, self._basis(account.by, usages, "by"))
        used = sum(shares) + unanswered
        if used > bill * _EXCESS:
            raise UsageError(
                f"the calls took {used:.6f} USD of the machines, more than their bill of {bill:.6f} USD: check period, "
                "machines, machine.usd_per_hour and server_usd_per_hour"
            )
        return (_proportional(bill, shares), 0.0) if used > bill else (shares, unanswered)

    def _basis(self, by: Basis, usages: Sequence[MeteredUse], key: str) -> list[float]:
        if by == "compute" and self.seconds is None:
            raise ConfigError(f"{key}: compute needs what calls cost: set `price` in the server's file")
        values = self.seconds or [] if by == "compute" else [getattr(usage, by) for usage in usages]
        if not sum(values):
            raise ConfigError(f"{key}: {by} is zero for everybody; divide by something else")
        return values


def _proportional(amount: float, parts: Sequence[float]) -> list[float]:
    """`amount` in proportion to `parts`, in whole millionths that add up to it."""
    whole = sum(parts)
    return adding_up([amount * part / whole for part in parts], DIGITS)


def _differences(use: ServerUse, logged: AccessLogUse | None, account: AmortisationFile) -> list[str]:
    """Where metrics and log do not cover the same calls."""
    lines: list[str] = []
    if logged is not None and logged.outside:
        lines.append(f"{logged.outside} calls of the access logs are outside the period and left out")
    if logged is not None and account.servers:
        log, metrics = (sum(usage.tokens for usage in by_skin.values()) for by_skin in (logged.by_skin, use.by_skin))
        if abs(log - metrics) > 0.01 * max(log, metrics):
            lines.append(
                f"the access logs have {log:,.0f} tokens, the metrics {metrics:,.0f}: they do not cover the same calls"
            )
    return lines


def as_values(statement: Statement) -> dict[str, Any]:
    """For --json: USD to the millionth."""
    return {
        "amortise": statement.account.amortise,
        "hours": statement.hours,
        "bill_usd": statement.bill_usd,
        "base_usd": statement.base_usd,
        "skins": [_row_values(row) for row in statement.skins],
        "tenants": [_row_values(row) for row in statement.tenants],
        "warnings": list(statement.warnings),
    }


def _row_values(row: StatementRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.row_type,
        "calls": row.calls,
        "tokens": row.tokens,
        "compute_seconds": row.compute_seconds,
        "machine_usd": row.machine_usd,
        "base_usd": row.base_usd,
        "base_usd_per_call": row.base_usd_per_call,
        "revenue_usd": row.revenue_usd,
        "profit_usd": row.profit_usd,
    }
