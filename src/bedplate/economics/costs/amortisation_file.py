"""The amortisation file: a period, the machines' bill, what was used, the base's price, and who pays what."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bedplate.core.config import Strict, load_config
from bedplate.economics.costs.usage import MeteredUse, utc
from bedplate.economics.numbers.prices import Dated

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


class AmortisationFile(Strict):
    """An amortisation file. server_usd_per_hour: the `price` in the servers' own file, where it is not the machine's.
    by: what the machine's busy time is divided by; compute is what each call took of it."""

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

    _directory: Path = Path()

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

    def resolve_path(self, name: str) -> Path:
        return self._directory / name


def load_account(path: Path | str, overrides: Sequence[str] = ()) -> AmortisationFile:
    """Read an amortisation file. Raises ConfigError."""
    account = load_config(path, AmortisationFile, overrides)
    account._directory = Path(path).parent  # pyright: ignore[reportPrivateUsage]
    return account
