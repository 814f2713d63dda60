"""What all options of a case share: every number of both files as an input, calls, days and prices."""

from __future__ import annotations

from itertools import pairwise

from bedplate.core.config import key_path
from bedplate.economics.costs.decisions.decision_file import Case
from bedplate.economics.costs.decisions.decision_inputs import DecisionInputs
from bedplate.economics.numbers.formula import ZERO, Formula, call
from bedplate.economics.numbers.prices import Dated, Prices
from bedplate.economics.numbers.ranged_quantities import Quantity

DAYS_PER_YEAR = 365.0
DAYS_PER_MONTH = DAYS_PER_YEAR / 12
_RESIZINGS = 4  # times over the horizon that the number of reserved machines is set, where calls grow
_NO_GROWTH = 1e-30  # added to a growth of 0, for which (e^x - 1) / x is not defined; it is lost in any other


class CaseInputs:
    """Every number of a case and its prices, and what all options share."""

    def __init__(self, case: Case, prices: Prices) -> None:
        self.case, self.prices = case, prices
        self.inputs = DecisionInputs()
        self.used_prices: list[tuple[str, str]] = []
        self.source = case.path.name if case.path is not None else case.case
        traffic, value, bar = case.traffic, case.value, case.bar
        self.calls_place = self.inputs.place("traffic.calls_per_day", traffic.calls_per_day, self.source)
        self.days_place = self.inputs.place("traffic.horizon_days", traffic.horizon_days, self.source)
        self.calls_per_day = self.add("traffic.calls_per_day", traffic.calls_per_day)
        self.days = self.add("traffic.horizon_days", traffic.horizon_days)
        growth = self.add("traffic.growth_per_year", traffic.growth_per_year)
        rate = call("log1p", growth + _NO_GROWTH) / DAYS_PER_YEAR
        self.calls = self.calls_per_day * (call("expm1", rate * self.days) / rate)
        self.busiest_days = (self.calls_per_day,)
        """Calls of the busiest day in each part of the horizon for which machines are reserved."""
        if growth != ZERO:
            grown = [
                self.calls_per_day * (growth + 1.0) ** (self.days * (part / _RESIZINGS / DAYS_PER_YEAR))
                for part in range(_RESIZINGS + 1)
            ]
            self.busiest_days = tuple(call("max", begin, end) for begin, end in pairwise(grown))
        self.months = self.days / DAYS_PER_MONTH
        self.cached_share = self.add("traffic.cached_share", traffic.cached_share)
        self.waiting_share = self.add("traffic.waiting_share", traffic.waiting_share)
        self.peak = self.add("traffic.peak_to_mean", traffic.peak_to_mean)
        self.wrong_answer = self.add_optional("value.usd_per_wrong_answer", value.usd_per_wrong_answer)
        self.revenue = ZERO
        if value.usd_per_call is not None:
            self.revenue = self.add("value.usd_per_call", value.usd_per_call) * self.add("value.margin", value.margin)
        self.bar_quality = None if bar.quality is None else self.inputs.place("bar.quality", bar.quality, self.source)
        self.bar_p95_ms = None if bar.p95_ms is None else self.inputs.place("bar.p95_ms", bar.p95_ms, self.source)

    def add(self, name: str, quantity: Quantity, source: str | None = None) -> Formula:
        return self.inputs.add(name, quantity, source or self.source)

    def add_optional(self, name: str, quantity: Quantity | None) -> Formula:
        """ZERO where the file does not state it."""
        return ZERO if quantity is None else self.add(name, quantity)

    def price(self, section: str, name: str, field: str, entry: Dated) -> Formula:
        """A field of a price file's entry."""
        self.used_prices.append((section, name))
        quantity: Quantity = entry  # pyright: ignore[reportAssignmentType]
        for part in field.split("."):
            quantity = getattr(quantity, part)
        file = self.prices.path.name if self.prices.path is not None else "prices"
        return self.add(key_path(["prices", section, name, *field.split(".")]), quantity, f"{file}, {entry.as_of}")
