"""Who pays what a base and its machines cost: profit and loss by skin and by tenant, and the price of idle machines.

    machine's bill = USD per hour × machines × hours, paid whether it computes or not
    a skin's share = its compute seconds × USD per hour / 3600, as the server counted them
    idle = the bill less all shares: a row of its own, so that the rows add up to the bill
    a base's share = its price × (the period / its horizon), divided by calls, tokens or compute seconds

Amounts are rounded to millionths of a dollar so that rows add up.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bedplate.core.config import Strict
from bedplate.core.display import Brief
from bedplate.core.errors import ConfigError, UsageError
from bedplate.core.quantities import adding_up
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.economics.costs.usage import (
    AccessLogUse,
    MeteredUse,
    ServerUse,
    combine,
    read_access_logs,
    use_between,
    utc,
)
from bedplate.economics.numbers.prices import Dated, LocatedFile

Basis = Literal["compute", "tokens", "calls"]

HOURS_PER_MONTH = 730.0

Positive = Annotated[float, Field(gt=0)]
ZeroOrMore = Annotated[float, Field(ge=0)]


class Period(Strict):
    """What the bill covers, from `begins` until before `ends`; without a zone it is UTC."""

    begins: datetime.datetime
    ends: datetime.datetime

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.hours <= 0:
            raise ValueError(f"it ends at {self.ends}, not after it begins at {self.begins}")
        return self

    @property
    def hours(self) -> float:
        return (utc(self.ends) - utc(self.begins)).total_seconds() / 3600


class BilledMachine(Dated):
    """usd_per_hour of one machine."""

    usd_per_hour: Positive
    machines: Annotated[int, Field(ge=1)] = 1


class Snapshots(Strict):
    """Two texts of one server's /metrics; without `before` it is counted since the server began."""

    before: str | None = None
    after: str


class Expected(Strict):
    """A skin that is planned: calls a day, tokens of a call (both ways), seconds of the machine that a call takes."""

    calls_per_day: Positive
    tokens_per_call: ZeroOrMore = 0.0
    seconds_per_call: ZeroOrMore = 0.0


class BasePrice(Strict):
    """What making the base cost, over the days that it is used for."""

    usd: Positive
    horizon_days: Positive
    by: Basis = "tokens"


class Revenue(Strict):
    """What a skin or a tenant brings in: the sum of these."""

    usd_per_call: ZeroOrMore = 0.0
    usd_per_million_tokens: ZeroOrMore = 0.0
    usd_per_month: ZeroOrMore = 0.0

    def usd(self, usage: MeteredUse, hours: float) -> float:
        by_use = self.usd_per_call * usage.calls + self.usd_per_million_tokens * usage.tokens / 1e6
        return by_use + self.usd_per_month * hours / HOURS_PER_MONTH


class RevenueTable(Strict):
    """By the name that a skin is served under, and by tenant."""

    skins: dict[str, Revenue] = Field(default_factory=dict[str, Revenue])
    tenants: dict[str, Revenue] = Field(default_factory=dict[str, Revenue])


class AmortisationFile(LocatedFile):
    """An amortisation file: a period, the machines' bill, what was used, the base's price, and who pays what.

    server_usd_per_hour: the `price` in the servers' own file, where it is not the machine's.
    by: what the machine's busy time is divided by; compute is what each call took of it.
    """

    amortise: Annotated[str, Field(min_length=1)]
    period: Period
    machine: BilledMachine
    server_usd_per_hour: Positive | None = None
    by: Basis = "compute"
    servers: tuple[Snapshots, ...] = ()
    access_logs: tuple[str, ...] = ()
    expected: dict[str, Expected] = Field(default_factory=dict[str, Expected])
    base: BasePrice | None = None
    revenue: RevenueTable = RevenueTable()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.expected and (self.servers or self.access_logs):
            raise ValueError("`expected` is for a plan; with `servers` or `access_logs` there is nothing to expect")
        if not (self.expected or self.servers or self.access_logs):
            raise ValueError("say what was used: `servers` (snapshots of /metrics), `access_logs`, or `expected`")
        return self

    @property
    def server_rate(self) -> float:
        """USD per hour that the servers charge their calls with."""
        return self.server_usd_per_hour or self.machine.usd_per_hour


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
    period, base, logged = account.period, account.base, None
    if account.access_logs:
        paths = [account.resolve_path(name) for name in account.access_logs]
        logged = read_access_logs(paths, utc(period.begins), utc(period.ends))
    use = _use_of(account, logged)
    warnings = [*use.warnings, *_differences(use, logged, account)]
    bill = round(account.machine.usd_per_hour * account.machine.machines * period.hours, DIGITS)
    base_usd = 0.0 if base is None else round(base.usd * min(1.0, period.hours / 24 / base.horizon_days), DIGITS)
    division = _Division(account, bill, base_usd, use.busy_seconds, warnings)
    skins, tenants = division.rows("skin", use.by_skin, account.revenue.skins), list[StatementRow]()
    if logged is not None:
        tenants = division.rows("tenant", logged.by_tenant, account.revenue.tenants)
    elif account.revenue.tenants:
        warnings.append("revenue of tenants is left out: only `access_logs` say what they used")
    return Statement(account, period.hours, bill, base_usd, tuple(skins), tuple(tenants), tuple(warnings))


def _use_of(account: AmortisationFile, logged: AccessLogUse | None) -> ServerUse:
    """By skin: from /metrics, else from the log, else as expected."""
    if account.servers:
        return combine(
            use_between(server.before and account.resolve_path(server.before), account.resolve_path(server.after))
            for server in account.servers
        )
    if logged is not None:
        return ServerUse(logged.by_skin)
    days, by_skin = account.period.hours / 24, dict[str, MeteredUse]()
    for name, expected in account.expected.items():
        calls = expected.calls_per_day * days
        usd = expected.seconds_per_call * calls * account.server_rate / 3600
        tokens = expected.tokens_per_call * calls
        by_skin[name] = MeteredUse(calls, tokens, 0.0, usd if expected.seconds_per_call else None)
    return ServerUse(by_skin)


@dataclass(frozen=True)
class _Division:
    """Divides the bill and the base's price over the skins, or the tenants, of a period. busy_seconds: of the engines'
    steps, None where they were not counted."""

    account: AmortisationFile
    bill: float
    base_usd: float
    busy_seconds: float | None
    warnings: list[str]

    def rows(
        self, row_type: Literal["skin", "tenant"], by_name: Mapping[str, MeteredUse], revenue: Mapping[str, Revenue]
    ) -> list[StatementRow]:
        account = self.account
        use = dict(sorted(by_name.items(), key=lambda pair: (-(pair[1].cost_usd or 0.0), pair[0])))
        for name in revenue:
            if name not in by_name:
                hint = did_you_mean(nearest(name, by_name))
                self.warnings.append(
                    f"revenue.{row_type}s.{name}: it answered no call in this time{hint and f'; {hint}'}"
                )
                use[name] = MeteredUse()
        usages = list(use.values())
        # Compute seconds of each, from what the server says they cost; None where it had no price.
        seconds: list[float] | None = None
        if all(usage.cost_usd is not None or not usage.calls for usage in usages):
            seconds = [(usage.cost_usd or 0.0) * 3600 / account.server_rate for usage in usages]

        def parts(by: Basis, key: str) -> list[float]:
            """What each is charged in proportion to."""
            if by == "compute" and seconds is None:
                raise ConfigError(f"{key}: compute needs what calls cost: set `price` in the server's file")
            values = seconds or [] if by == "compute" else [getattr(usage, by) for usage in usages]
            if not sum(values):
                raise ConfigError(f"{key}: {by} is zero for everybody; divide by something else")
            return values

        machine, unanswered = self._machine_shares(seconds, parts)
        base = [0.0] * len(use)
        if account.base is not None:
            base = _proportional(self.base_usd, parts(account.base.by, "base.by"))
        rows = [
            StatementRow(
                name,
                row_type,
                usage.calls,
                usage.tokens,
                0.0 if seconds is None else seconds[place],
                machine[place],
                base[place],
                round(revenue[name].usd(usage, account.period.hours), DIGITS) if name in revenue else 0.0,
            )
            for place, (name, usage) in enumerate(use.items())
        ]
        if unanswered:
            rows.append(StatementRow("(unanswered)", "unanswered", machine_usd=unanswered))
        idle = round(self.bill - sum(machine) - unanswered, DIGITS)
        return [*rows, StatementRow("(idle)", "idle", machine_usd=idle)]

    def _machine_shares(
        self, seconds: list[float] | None, parts: Callable[[Basis, str], list[float]]
    ) -> tuple[list[float], float]:
        """What each pays of the bill, and what engine steps took that no answered call paid for."""
        account, busy, unanswered = self.account, self.busy_seconds, 0.0
        per_second = account.machine.usd_per_hour / 3600
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
            shares = _proportional(spent, parts(account.by, "by"))
        used = sum(shares) + unanswered
        if used > self.bill * _EXCESS:
            raise UsageError(
                f"the calls took {used:.6f} USD of the machines, more than their bill of {self.bill:.6f} USD: check "
                "period, machines, machine.usd_per_hour and server_usd_per_hour"
            )
        return (_proportional(self.bill, shares), 0.0) if used > self.bill else (shares, unanswered)


def _proportional(amount: float, parts: Sequence[float]) -> list[float]:
    """`amount` in proportion to `parts`, in whole millionths that add up to it."""
    whole = sum(parts)
    return adding_up([amount * part / whole for part in parts], DIGITS)


def _differences(use: ServerUse, logged: AccessLogUse | None, account: AmortisationFile) -> Iterator[str]:
    """Where metrics and log do not cover the same calls."""
    if logged is not None and logged.outside:
        yield f"{logged.outside} calls of the access logs are outside the period and left out"
    if logged is not None and account.servers:
        log, metrics = (sum(usage.tokens for usage in by_skin.values()) for by_skin in (logged.by_skin, use.by_skin))
        if abs(log - metrics) > 0.01 * max(log, metrics):
            tokens = f"the access logs have {log:,.0f} tokens, the metrics {metrics:,.0f}"
            yield f"{tokens}: they do not cover the same calls"


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
    values = {**vars(row), "base_usd_per_call": row.base_usd_per_call, "profit_usd": row.profit_usd}
    return {"kind" if name == "row_type" else name: value for name, value in values.items()}
