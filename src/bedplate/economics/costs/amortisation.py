"""Who pays what a base and its machines cost: profit and loss by skin and by tenant, and the price of idle machines.

    machine's bill = USD per hour × machines × hours, paid whether it computes or not
    a skin's share = its compute seconds × USD per hour / 3600, as the server counted them
    idle = the bill less all shares: a row of its own, so that the rows add up to the bill
    a base's share = its price × (the period / its horizon), divided by calls, tokens or compute seconds

Amounts are rounded to millionths of a dollar so that rows add up.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from bedplate.core.config import Strict
from bedplate.core.display import Brief
from bedplate.core.errors import ConfigError, UsageError
from bedplate.core.quantities import adding_up
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.economics.costs.usage import MeteredUse, Use, combine, read_access_logs, use_between, utc
from bedplate.economics.numbers.prices import Dated, LocatedFile

Basis = Literal["compute", "tokens", "calls"]
Positive = Annotated[float, Field(gt=0)]
ZeroOrMore = Annotated[float, Field(ge=0)]
Time = Annotated[datetime.datetime, AfterValidator(utc)]

HOURS_PER_MONTH = 730.0
DIGITS = 6
_EXCESS = 1.001  # clocks of two snapshots and of a bill do not agree to the second


class Period(Strict):
    """What the bill covers, from `begins` until before `ends`; without a zone it is UTC."""

    begins: Time
    ends: Time

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.hours <= 0:
            raise ValueError(f"it ends at {self.ends}, not after it begins at {self.begins}")
        return self

    @property
    def hours(self) -> float:
        return (self.ends - self.begins).total_seconds() / 3600


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
        return round(by_use + self.usd_per_month * hours / HOURS_PER_MONTH, DIGITS)


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

    @property
    def bill_usd(self) -> float:
        """What the machines cost in the period."""
        return round(self.machine.usd_per_hour * self.machine.machines * self.period.hours, DIGITS)

    @property
    def base_usd(self) -> float:
        """What of the base's price falls on the period."""
        share = 0.0 if self.base is None else min(1.0, self.period.hours / 24 / self.base.horizon_days)
        return 0.0 if self.base is None else round(self.base.usd * share, DIGITS)


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
    period, path, logged = account.period, account.resolve_path, None
    if account.access_logs:
        logged = read_access_logs(map(path, account.access_logs), period.begins, period.ends)
    if account.servers:
        use = combine(use_between(pair.before and path(pair.before), path(pair.after)) for pair in account.servers)
    else:
        use = logged or _planned(account)
    skins = _rows(account, "skin", use.by_skin, use.busy_seconds)
    tenants = _rows(account, "tenant", logged.by_tenant, use.busy_seconds) if logged else []
    warnings = (*use.warnings, *_warnings(account, use, logged))
    return Statement(account, period.hours, account.bill_usd, account.base_usd, tuple(skins), tuple(tenants), warnings)


def _planned(account: AmortisationFile) -> Use:
    use = Use()
    for name, expected in account.expected.items():
        calls = expected.calls_per_day * account.period.hours / 24
        usd = calls * expected.seconds_per_call * account.server_rate / 3600
        use.by_skin[name] = MeteredUse(calls, expected.tokens_per_call * calls, 0.0, usd or None)
    return use


def _rows(
    account: AmortisationFile,
    row_type: Literal["skin", "tenant"],
    by_name: Mapping[str, MeteredUse],
    busy: float | None,
) -> list[StatementRow]:
    """The bill and the base's price divided over the skins, or the tenants: who took most is first, who pays but made
    no call is last. busy: seconds of the engines' steps, None where they were not counted."""
    revenue = account.revenue.skins if row_type == "skin" else account.revenue.tenants
    pairs = {**dict.fromkeys(revenue, MeteredUse()), **by_name}.items()
    use = dict(sorted(pairs, key=lambda pair: (pair[0] not in by_name, -(pair[1].cost_usd or 0.0), pair[0])))
    usages, seconds = list(use.values()), None
    if all(usage.cost_usd is not None or not usage.calls for usage in usages):  # else the server had no price
        seconds = [(usage.cost_usd or 0.0) * 3600 / account.server_rate for usage in usages]
    paid, spent = _machine_usd(account, seconds, busy)
    machine = _divided(paid, "by", account.by, usages, seconds)
    base = _divided(account.base_usd, "base.by", account.base.by if account.base else "calls", usages, seconds)
    rows = [
        StatementRow(
            name,
            row_type,
            usage.calls,
            usage.tokens,
            seconds[place] if seconds else 0.0,
            machine[place],
            base[place],
            revenue[name].usd(usage, account.period.hours) if name in revenue else 0.0,
        )
        for place, (name, usage) in enumerate(use.items())
    ]
    if spent > paid:
        rows.append(StatementRow("(unanswered)", "unanswered", machine_usd=round(spent - paid, DIGITS)))
    return [*rows, StatementRow("(idle)", "idle", machine_usd=round(account.bill_usd - spent, DIGITS))]


def _machine_usd(account: AmortisationFile, seconds: Sequence[float] | None, busy: float | None) -> tuple[float, float]:
    """What the calls pay of the machines' bill, and that with what engine steps took for calls that failed or whose
    clients left."""
    if account.by != "compute" and busy is None and seconds is None:
        raise ConfigError(
            f"by: {account.by} needs how long the engines were busy: give `servers` with "
            "bedplate:engine_step_seconds_total, or set `price` in the server's file"
        )
    answered, per_second = math.fsum(seconds or ()), account.machine.usd_per_hour / 3600
    if account.by != "compute" and busy is not None:
        answered = busy
    paid, spent = answered * per_second, max(answered, busy or 0.0) * per_second
    if spent > account.bill_usd * _EXCESS:
        machines, hours = account.machine.machines, account.period.hours * account.machine.machines
        check = "calls_per_day and seconds_per_call" if account.expected else "servers and server_usd_per_hour"
        raise UsageError(
            f"the calls take {spent / per_second / 3600:,.2f} hours of the machines (${spent:,.2f}), more than the "
            f"{hours:,.2f} hours (${account.bill_usd:,.2f}) of {machines}: check period, machines, {check}"
        )
    return round(min(paid, account.bill_usd), DIGITS), round(min(spent, account.bill_usd), DIGITS)


def _divided(
    usd: float, key: str, by: Basis, usages: Sequence[MeteredUse], seconds: Sequence[float] | None
) -> list[float]:
    """`usd` in proportion to compute seconds, tokens or calls, in whole millionths that add up to it."""
    parts = seconds if by == "compute" else [getattr(usage, by) for usage in usages]
    if parts is None:
        raise ConfigError(
            f"{key}: compute needs what calls cost: set `price` in the server's file, or divide by tokens or calls"
        )
    whole = math.fsum(parts)
    if usd and not whole:
        raise ConfigError(f"{key}: {by} is zero for everybody; divide by something else")
    return adding_up([usd * part / whole if whole else 0.0 for part in parts], DIGITS)


def _warnings(account: AmortisationFile, use: Use, logged: Use | None) -> Iterator[str]:
    """Where metrics, log and revenue do not speak of the same calls."""
    if logged is not None and logged.outside:
        yield f"{logged.outside} calls of the access logs are outside the period and left out"
    if logged is not None and account.servers:
        log, metrics = (sum(usage.tokens for usage in source.by_skin.values()) for source in (logged, use))
        if abs(log - metrics) > 0.01 * max(log, metrics):
            tokens = f"the access logs have {log:,.0f} tokens, the metrics {metrics:,.0f}"
            yield f"{tokens}: they do not cover the same calls"
    users = {"skins": use.by_skin, **({"tenants": logged.by_tenant} if logged is not None else {})}
    for group, by_name in users.items():
        for name in getattr(account.revenue, group):
            if name not in by_name:
                hint = did_you_mean(nearest(name, by_name))
                yield f"revenue.{group}.{name}: it answered no call in this time{hint and f'; {hint}'}"
    charged = sum(usage.cost_usd or 0.0 for usage in use.by_skin.values())
    rate = charged * 3600 / use.busy_seconds if use.busy_seconds else account.server_rate
    if charged and not 0.8 < rate / account.server_rate < 1.2:
        yield (
            f"the servers counted ${charged:.4g} for {use.busy_seconds:,.0f} s of engine steps, ${rate:.3g} an hour, "
            f"and compute is reckoned at ${account.server_rate:g}: where their own file has another price, name it "
            "(server_usd_per_hour)"
        )
    if logged is None and account.revenue.tenants:
        yield "revenue of tenants is left out: only `access_logs` say what they used"


def as_values(statement: Statement) -> dict[str, Any]:
    """For --json: USD to the millionth."""
    values: dict[str, Any] = {
        "amortise": statement.account.amortise,
        **vars(statement),
        "warnings": list(statement.warnings),
    }
    del values["account"]
    return values | {group: [_row_values(row) for row in values[group]] for group in ("skins", "tenants")}


def _row_values(row: StatementRow) -> dict[str, Any]:
    values = {**vars(row), "base_usd_per_call": row.base_usd_per_call, "profit_usd": row.profit_usd}
    return {"kind" if name == "row_type" else name: value for name, value in values.items()}
