"""Numbers in files that may carry a range, `40` or `{value: 40, low: 30, high: 60}`, and the user's dated price file:
what hosted models, machines, people and labels cost. Bedplate knows no prices itself.

A range is what the writer holds plausible. Draws take it as a triangle with its mode at `value`; a plain number is
taken as exact. Each kind knows its own bounds, so that a zero price or a share of 1.2 is refused where it stands. Every
entry of a price file says when it held (`as_of`) and where it is from (`source`); older ones than `stale_after_days`
warn.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, cast

from pydantic import Field, model_validator

from bedplate.core.config import Strict, load_config
from bedplate.core.errors import ConfigError
from bedplate.core.quantities import count_of
from bedplate.core.suggestions import did_you_mean, nearest

_TIMES = 10.0
EXAMPLE = "EXAMPLE"
"""What the source of a price says that is nobody's."""
LARGEST = 1e15
"""Beyond this, and below its inverse, a number is a slip of the keyboard, and sums would lose their digits."""


class LocatedFile(Strict):
    """The content of a file, which knows where it lies."""

    _path: Path | None = None

    @classmethod
    def load(cls, path: Path | str, overrides: Sequence[str] = ()) -> Self:
        """Reads a file; overrides go before what it says. ConfigError."""
        content = load_config(path, cls, overrides)
        content._path = Path(path)
        return content

    @property
    def path(self) -> Path | None:
        return self._path

    def resolve_path(self, name: str) -> Path:
        """A file that this one names."""
        return Path(name) if self._path is None else self._path.parent / name


class Quantity(Strict):
    """Base of the kinds below; not for use in a file itself."""

    value: float
    low: float
    high: float

    requirement: ClassVar[str] = "a number"
    exclusive_min: ClassVar[float | None] = None
    at_least: ClassVar[float | None] = None
    at_most: ClassVar[float | None] = None

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, raw: Any) -> Any:
        if isinstance(raw, Quantity):
            return {"value": raw.value, "low": raw.low, "high": raw.high}
        raw = count_of(raw) or raw if isinstance(raw, str) else raw
        if isinstance(raw, int | float) and not isinstance(raw, bool):
            return {"value": raw, "low": raw, "high": raw}
        if not isinstance(raw, Mapping):
            hint = _plain_number(raw) if isinstance(raw, str) else ""
            raise ValueError(f"{cls.requirement} is wanted, or {{value, low, high}}, not {raw!r}{hint}")
        values = dict(cast("Mapping[Any, Any]", raw))
        value = values.get("value", 0.0)  # one that is missing is pydantic's to report
        return {"low": value, "high": value, **values}

    @model_validator(mode="after")
    def _in_bounds(self) -> Self:
        for name in ("value", "low", "high"):
            number, shown = getattr(self, name), "" if name == "value" else f" of {name}"
            at_least = -math.inf if self.at_least is None else self.at_least
            at_most = math.inf if self.at_most is None else self.at_most
            if not at_least <= number <= at_most or (self.exclusive_min is not None and number <= self.exclusive_min):
                as_share = f"; write {number / 100:g} for {number:g}%" if self.at_most == 1 < number <= 100 else ""
                raise ValueError(f"{self.requirement} is wanted{shown} (got {number:g}){as_share}")
            if number and not 1 / LARGEST <= abs(number) <= LARGEST:
                raise ValueError(f"a number between {1 / LARGEST:g} and {LARGEST:g} is wanted{shown} (got {number:g})")
        if not self.low <= self.value <= self.high:
            raise ValueError(f"low {self.low:g}, value {self.value:g}, high {self.high:g}: they must not fall")
        return self

    @classmethod
    def exactly(cls, value: float) -> Self:
        """A quantity without a range."""
        return cls(value=value, low=value, high=value)

    @property
    def exact(self) -> bool:
        """Whether no range was given."""
        return self.low == self.high

    def search(self) -> tuple[float, float]:
        """Where a flipping point is looked for: a tenth to ten times, kept within bounds, the stated range included."""
        return self._clamp(min(self.low, self.value / _TIMES), max(self.high, self.value * _TIMES))

    def _clamp(self, low: float, high: float) -> tuple[float, float]:
        lower = 1 / LARGEST if self.exclusive_min == 0 else self.at_least
        upper = LARGEST if self.at_most is None else self.at_most
        return low if lower is None else max(low, lower), min(high, upper)


def _plain_number(text: str) -> str:
    """How to write a percentage, or dollars; empty where the text is neither."""
    value = count_of(text.strip("$% "))
    if value is None:
        return ""
    return f"; write {value / 100 if '%' in text else value:g}"


class Amount(Quantity):
    """More than zero: prices, volumes, tokens, times."""

    requirement = "a number above 0"
    exclusive_min = 0.0


class NonNegative(Quantity):
    """Zero or more: what may be left out."""

    requirement = "0 or a number above 0"
    at_least = 0.0

    def search(self) -> tuple[float, float]:
        return self._clamp(0.0, max(self.high, self.value * _TIMES))


class Factor(Quantity):
    """One or more: peaks over means, runs for each final run, machines at least."""

    requirement = "1 or a number above 1"
    at_least = 1.0


class Share(Quantity):
    """From 0 to 1."""

    requirement = "a share from 0 to 1"
    at_least = 0.0
    at_most = 1.0

    def search(self) -> tuple[float, float]:
        return 0.0, 1.0


class PositiveShare(Quantity):
    """More than 0, up to 1: what something is divided by."""

    requirement = "a share above 0, up to 1"
    exclusive_min = 0.0
    at_most = 1.0

    def search(self) -> tuple[float, float]:
        return min(self.low, self.value / _TIMES), 1.0


class Growth(Quantity):
    """A change per year as a share: 0.5 is half as much again, -0.2 a fifth less."""

    requirement = "a growth above -1, up to 100"
    exclusive_min = -1.0
    at_most = 100.0

    def search(self) -> tuple[float, float]:
        return self._clamp(min(self.low, max(self.value - 0.5, -0.9)), max(self.high, self.value + 2.0))


class Dated(Strict):
    """When a price held, and where it is from."""

    as_of: datetime.date
    source: Annotated[str, Field(min_length=1)]


class HostedTuning(Strict):
    """What tuning a hosted model costs. usd_per_million_training: per token seen, each epoch anew. price_multiplier:
    what the tuned model's calls cost over the untuned one's. usd_per_hour: for keeping it deployed."""

    usd_per_million_training: Amount
    price_multiplier: Amount
    usd_per_hour: NonNegative = NonNegative.exactly(0)


class HostedModel(Dated):
    """USD per million tokens. Without a cached price a repeated prompt costs what any input costs; a prefix that is not
    found in the cache costs the price of writing it there, where there is one. A prefix shorter than
    smallest_cached_prefix_tokens pays in full, or is padded to that length where this is cheaper. batch_discount: the
    share taken off what may wait; the cache does not apply to it."""

    usd_per_million_input: Amount
    usd_per_million_output: Amount
    usd_per_million_cached_input: Amount | None = None
    usd_per_million_cache_write: Amount | None = None
    smallest_cached_prefix_tokens: NonNegative = NonNegative.exactly(0)
    batch_discount: Share = Share.exactly(0)
    tuning: HostedTuning | None = None

    @model_validator(mode="after")
    def _cached_is_cheaper(self) -> HostedModel:
        cached, plain = self.usd_per_million_cached_input, self.usd_per_million_input
        if cached is not None and cached.value > plain.value:
            raise ValueError(f"cached input at {cached.value:g} costs more than input at {plain.value:g}")
        return self


class EmbeddingModel(Dated):
    """A hosted model that turns text into vectors."""

    usd_per_million_input: Amount


class MachinePrice(Dated):
    """An hour of one whole machine, with all its `devices`. device: their name in the hardware table. measured: its
    machine.json (`bedplate plan calibrate`), beside this file."""

    usd_per_hour: Amount
    device: str | None = None
    devices: Annotated[int, Field(ge=1)] = 1
    measured: str | None = None


class StaffRate(Dated):
    """An hour of one person, everything included."""

    usd_per_hour: Amount


class LabellingPrice(Dated):
    """One example, labelled by a person and checked."""

    usd_per_label: Amount


P = TypeVar("P", bound=Dated)


class Prices(LocatedFile):
    """A price file."""

    prices: Annotated[str, Field(min_length=1)]
    """What these prices are, in a few words."""
    stale_after_days: Annotated[int, Field(ge=1)] = 90
    hosted: dict[str, HostedModel] = Field(default_factory=dict[str, HostedModel])
    embeddings: dict[str, EmbeddingModel] = Field(default_factory=dict[str, EmbeddingModel])
    machines: dict[str, MachinePrice] = Field(default_factory=dict[str, MachinePrice])
    staff: dict[str, StaffRate] = Field(default_factory=dict[str, StaffRate])
    labelling: dict[str, LabellingPrice] = Field(default_factory=dict[str, LabellingPrice])

    def find(self, section: str, name: str, needed_by: str) -> Dated:
        """An entry. ConfigError with the nearest names where there is none."""
        return self._lookup(section, getattr(self, section), name, needed_by)

    def hosted_model(self, name: str, needed_by: str) -> HostedModel:
        return self._lookup("hosted", self.hosted, name, needed_by)

    def machine(self, name: str, needed_by: str) -> MachinePrice:
        return self._lookup("machines", self.machines, name, needed_by)

    def _lookup(self, section: str, entries: Mapping[str, P], name: str, needed_by: str) -> P:
        if name in entries:
            return entries[name]
        available = ", ".join(entries) or f"no `{section}` at all"
        hint = did_you_mean(nearest(name, entries, 2)) or f"it has {available}; add one"
        raise ConfigError(f"{self._path or 'the prices'}: no {name!r} in `{section}`, which {needed_by} needs; {hint}")

    def warnings(self, used: Iterable[tuple[str, str]], today: datetime.date) -> list[str]:
        """One line of all used (section, name) whose source says EXAMPLE, and one for each that is older than
        stale_after_days, or dated ahead of `today`."""
        prices: dict[tuple[str, str], Dated] = {pair: getattr(self, pair[0])[pair[1]] for pair in used}
        examples = [f"{section}.{name}" for (section, name), price in prices.items() if EXAMPLE in price.source]
        lines = [f"{EXAMPLE} prices, made up: {', '.join(examples)}; write your own"] if examples else []
        for (section, name), price in prices.items():
            days = (today - price.as_of).days
            if days > self.stale_after_days:
                lines.append(
                    f"{section}.{name}: the price is of {price.as_of}, {days} days ago (more than "
                    f"{self.stale_after_days}); look it up again ({price.source})"
                )
            elif days < 0:
                lines.append(f"{section}.{name}: the price is dated {price.as_of}, which is still to come")
        return lines
