"""Who carries what a base and its machines cost: profit and loss by skin and by tenant, and the price of standing idle.

    machine's bill = USD per hour × machines × hours, paid whether it computes or not
    a skin's share = its compute seconds × USD per hour / 3600, as the server counted them
    idle = the bill less all shares: a row of its own, so that the rows add up to the bill
    a base's share = its price × (the period / its horizon), divided by calls, tokens or compute seconds

Amounts are whole millionths of a dollar (Decimal): rows add up exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from typing import Any, Literal

from bedplate.core.display import Brief
from bedplate.core.errors import ConfigError, UsageError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.economics.costs.amortisation_file import AmortisationFile, Basis, Revenue, utc
from bedplate.economics.costs.usage import Counted, CountedUse, Logged, count_between, read_access_logs, together

RowKind = Literal["skin", "tenant", "unanswered", "idle"]

MICRO = Decimal("0.000001")
_EXCESS = 1.001  # clocks of two snapshots and of a bill do not agree to the second


@dataclass(frozen=True)
class StatementRow:
    """One skin or tenant, or what no call of theirs paid for. profit_usd: revenue less machine and base."""

    name: str
    row_type: RowKind
    calls: float
    tokens: float
    compute_seconds: float
    machine_usd: Decimal
    base_usd: Decimal
    revenue_usd: Decimal

    @property
    def profit_usd(self) -> Decimal:
        return self.revenue_usd - self.machine_usd - self.base_usd

    @property
    def base_usd_per_call(self) -> float | None:
        return float(self.base_usd) / self.calls if self.calls else None


@dataclass(frozen=True, repr=False)
class Statement(Brief):
    """skins, tenants: rows whose machine_usd add up to bill_usd, and whose base_usd to base_usd; empty where there is
    no source for them."""

    account: AmortisationFile
    hours: float
    bill_usd: Decimal
    base_usd: Decimal
    skins: tuple[StatementRow, ...]
    tenants: tuple[StatementRow, ...]
    warnings: tuple[str, ...]


def amortise(account: AmortisationFile) -> Statement:
    """The statement of a period. ConfigError, DataError for files; UsageError where figures cannot belong together."""
    hours, machine = account.period.hours, account.machine
    bill = _micro(machine.usd_per_hour * machine.machines * hours)
    base = Decimal(0)
    if account.base is not None:
        base = _micro(account.base.usd * min(1.0, hours / 24 / account.base.horizon_days))
    logged = None
    if account.access_logs:
        begins, ends = utc(account.period.begins), utc(account.period.ends)
        logged = read_access_logs([account.resolve_path(name) for name in account.access_logs], begins, ends)
    counted = _counted(account, logged)
    warnings = [*counted.warnings, *_compared(counted, logged, account)]
    skins = _rows(account, counted, "skin", bill, base, account.revenue.skins, warnings)
    tenants: list[StatementRow] = []
    if logged is not None:
        by_tenant = Counted(logged.by_tenant, counted.busy_seconds)
        tenants = _rows(account, by_tenant, "tenant", bill, base, account.revenue.tenants, warnings)
    elif account.revenue.tenants:
        warnings.append("revenue of tenants is left out: only `access_logs` say what they used")
    return Statement(account, hours, bill, base, tuple(skins), tuple(tenants), tuple(warnings))


def divide(amount: Decimal, parts: Sequence[float]) -> list[Decimal]:
    """`amount` in proportion to `parts`, in whole millionths that add up to it (largest remainders first).

    UsageError where nothing is there to divide by.
    """
    exact = [Fraction(part) for part in parts]
    whole = sum(exact)
    if whole <= 0:
        raise UsageError("a cost cannot be divided by what is zero for everybody: divide it by something else")
    units = int(amount / MICRO)
    shares = [units * part / whole for part in exact]
    floors = [share.numerator // share.denominator for share in shares]
    by_remainder = sorted(range(len(parts)), key=lambda i: (floors[i] - shares[i], i))
    for i in by_remainder[: units - sum(floors)]:
        floors[i] += 1
    return [floor * MICRO for floor in floors]


def _counted(account: AmortisationFile, logged: Logged | None) -> Counted:
    """By skin: from /metrics, else from the log, else as expected."""
    if account.servers:
        return together(
            count_between(
                None if server.before is None else account.resolve_path(server.before),
                account.resolve_path(server.after),
            )
            for server in account.servers
        )
    if logged is not None:
        return Counted(logged.by_skin, None)
    days = account.period.hours / 24
    rate = account.server_usd_per_hour or account.machine.usd_per_hour
    by_skin = {
        name: CountedUse(
            calls=usage.calls_per_day * days,
            prompt_tokens=usage.tokens_per_call * usage.calls_per_day * days,
            cost_usd=usage.seconds_per_call * usage.calls_per_day * days * rate / 3600
            if usage.seconds_per_call
            else None,
        )
        for name, usage in account.expected.items()
    }
    return Counted(by_skin, None)


def _rows(
    account: AmortisationFile,
    counted: Counted,
    row_type: Literal["skin", "tenant"],
    bill: Decimal,
    base: Decimal,
    revenue: Mapping[str, Revenue],
    warnings: list[str],
) -> list[StatementRow]:
    busiest = sorted(counted.by_skin, key=lambda name: (-(counted.by_skin[name].cost_usd or 0.0), name))
    names = [*busiest, *(name for name in revenue if name not in counted.by_skin)]
    for name in names[len(counted.by_skin) :]:
        hint = did_you_mean(nearest(name, counted.by_skin))
        warnings.append(f"revenue.{row_type}s.{name}: it answered no call in this time{hint and f'; {hint}'}")
    usages = [counted.by_skin.get(name, CountedUse()) for name in names]
    seconds = _compute_seconds(account, usages)
    machine, unanswered = _machine_shares(account, counted, usages, seconds, bill)
    bases = [Decimal(0)] * len(names)
    if account.base is not None:
        bases = divide(base, _basis(account.base.by, usages, seconds, "base.by"))
    rows = [
        StatementRow(
            name,
            row_type,
            usage.calls,
            usage.tokens,
            call_seconds,
            machine_usd,
            base_usd,
            _micro(revenue[name].usd(usage, account.period.hours)) if name in revenue else Decimal(0),
        )
        for name, usage, call_seconds, machine_usd, base_usd in zip(
            names, usages, seconds or [0.0] * len(names), machine, bases, strict=True
        )
    ]
    zero = Decimal(0)
    if unanswered:
        rows.append(StatementRow("(unanswered)", "unanswered", 0.0, 0.0, 0.0, unanswered, zero, zero))
    idle = bill - sum(machine, unanswered)
    return [*rows, StatementRow("(idle)", "idle", 0.0, 0.0, 0.0, idle, zero, zero)]


def _compute_seconds(account: AmortisationFile, usages: Sequence[CountedUse]) -> list[float] | None:
    """Of each, from what the server said they cost; None where it had no price."""
    if any(usage.cost_usd is None and usage.calls for usage in usages):
        return None
    rate = account.server_usd_per_hour or account.machine.usd_per_hour
    return [(usage.cost_usd or 0.0) * 3600 / rate for usage in usages]


def _machine_shares(
    account: AmortisationFile,
    counted: Counted,
    usages: Sequence[CountedUse],
    seconds: Sequence[float] | None,
    bill: Decimal,
) -> tuple[list[Decimal], Decimal]:
    """What each carries of the bill, and what steps took that no answered call paid for."""
    per_second = account.machine.usd_per_hour / 3600
    busy = counted.busy_seconds
    if account.by == "compute":
        if seconds is None:
            raise ConfigError(
                "by: compute wants to know what calls cost: set `price` in the server's file, or divide by tokens or "
                "calls"
            )
        shares = [_micro(call_seconds * per_second) for call_seconds in seconds]
        # A step's seconds belong to the calls in it; the rest is of calls that failed or whose clients left.
        unanswered = Decimal(0) if busy is None else max(Decimal(0), _micro(busy * per_second) - sum(shares))
    else:
        if busy is None and seconds is None:
            raise ConfigError(
                f"by: {account.by} wants to know how long the engines were busy: give `servers` with "
                "bedplate:engine_step_seconds_total, or set `price` in the server's file"
            )
        spent = _micro((sum(seconds or ()) if busy is None else busy) * per_second)
        shares, unanswered = divide(spent, _basis(account.by, usages, seconds, "by")), Decimal(0)
    used = sum(shares, unanswered)
    if used > bill * Decimal(_EXCESS):
        raise UsageError(
            f"the calls took {used} USD of the machines, more than their bill of {bill} USD: check period, machines, "
            "machine.usd_per_hour and server_usd_per_hour"
        )
    if used > bill:
        shares, unanswered = divide(bill, [float(share) for share in shares]), Decimal(0)
    return shares, unanswered


def _basis(by: Basis, usages: Sequence[CountedUse], seconds: Sequence[float] | None, key: str) -> list[float]:
    if by == "calls":
        amounts = [usage.calls for usage in usages]
    elif by == "tokens":
        amounts = [usage.tokens for usage in usages]
    elif seconds is None:
        raise ConfigError(f"{key}: compute wants to know what calls cost: set `price` in the server's file")
    else:
        amounts = list(seconds)
    if not sum(amounts):
        raise ConfigError(f"{key}: {by} is zero for everybody; divide by something else")
    return amounts


def _compared(counted: Counted, logged: Logged | None, account: AmortisationFile) -> list[str]:
    """Where metrics and log do not cover the same calls."""
    if logged is None:
        return []
    lines: list[str] = []
    if logged.outside:
        lines.append(f"{logged.outside} calls of the access logs are outside the period and left out")
    if account.servers:
        theirs, ours = (sum(usage.tokens for usage in usages.values()) for usages in (logged.by_skin, counted.by_skin))
        if abs(theirs - ours) > 0.01 * max(theirs, ours):
            lines.append(
                f"the access logs have {theirs:,.0f} tokens, the metrics {ours:,.0f}: they do not cover the same calls"
            )
    return lines


def _micro(usd: float) -> Decimal:
    return Decimal(usd).quantize(MICRO, ROUND_HALF_EVEN)


def as_values(statement: Statement) -> dict[str, Any]:
    """For --json: USD to the millionth."""
    return {
        "amortise": statement.account.amortise,
        "hours": statement.hours,
        "bill_usd": float(statement.bill_usd),
        "base_usd": float(statement.base_usd),
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
        "machine_usd": float(row.machine_usd),
        "base_usd": float(row.base_usd),
        "base_usd_per_call": row.base_usd_per_call,
        "revenue_usd": float(row.revenue_usd),
        "profit_usd": float(row.profit_usd),
    }
