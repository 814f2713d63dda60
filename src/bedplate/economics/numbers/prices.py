"""The user's dated price file: what hosted models, machines, people and labels cost. Bedplate knows no prices itself.

Every entry says when it held (`as_of`) and where it is from (`source`); entries older than `stale_after_days` warn.
A price may carry a range: `{value: 3, low: 2, high: 3}`.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, model_validator

from bedplate.core.config import Strict, load_config
from bedplate.core.errors import ConfigError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.economics.numbers.ranged_quantities import Amount, NonNegative, Share


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


class Prices(Strict):
    """A price file."""

    prices: Annotated[str, Field(min_length=1)]
    """What these prices are, in a few words."""
    stale_after_days: Annotated[int, Field(ge=1)] = 90
    hosted: dict[str, HostedModel] = Field(default_factory=dict[str, HostedModel])
    embeddings: dict[str, EmbeddingModel] = Field(default_factory=dict[str, EmbeddingModel])
    machines: dict[str, MachinePrice] = Field(default_factory=dict[str, MachinePrice])
    staff: dict[str, StaffRate] = Field(default_factory=dict[str, StaffRate])
    labelling: dict[str, LabellingPrice] = Field(default_factory=dict[str, LabellingPrice])

    _path: Path | None = None

    @property
    def path(self) -> Path | None:
        """The file that these were read from."""
        return self._path

    def hosted_model(self, name: str, needed_by: str) -> HostedModel:
        """ConfigError with the nearest names where there is no such entry; so do the others below."""
        return self._lookup("hosted", self.hosted, name, needed_by)

    def embedder(self, name: str, needed_by: str) -> EmbeddingModel:
        return self._lookup("embeddings", self.embeddings, name, needed_by)

    def machine(self, name: str, needed_by: str) -> MachinePrice:
        return self._lookup("machines", self.machines, name, needed_by)

    def staff_rate(self, name: str, needed_by: str) -> StaffRate:
        return self._lookup("staff", self.staff, name, needed_by)

    def label(self, name: str, needed_by: str) -> LabellingPrice:
        return self._lookup("labelling", self.labelling, name, needed_by)

    def _lookup(self, section: str, entries: Mapping[str, P], name: str, needed_by: str) -> P:
        if name in entries:
            return entries[name]
        available = ", ".join(entries) or f"no `{section}` at all"
        hint = did_you_mean(nearest(name, entries, 2)) or f"it has {available}; add one"
        raise ConfigError(f"{self._path or 'the prices'}: no {name!r} in `{section}`, which {needed_by} needs; {hint}")

    def warnings(self, used: Iterable[tuple[str, str]], today: datetime.date) -> list[str]:
        """One line for each used (section, name) that is older than stale_after_days, or dated ahead of `today`."""
        lines: list[str] = []
        for section, name in dict.fromkeys(used):
            price: Dated = getattr(self, section)[name]
            days = (today - price.as_of).days
            if days > self.stale_after_days:
                lines.append(
                    f"{section}.{name}: the price is of {price.as_of}, {days} days ago (more than "
                    f"{self.stale_after_days}); look it up again ({price.source})"
                )
            elif days < 0:
                lines.append(f"{section}.{name}: the price is dated {price.as_of}, which is still to come")
        return lines


def load_prices(path: Path | str, overrides: Sequence[str] = ()) -> Prices:
    """Read a price file; `overrides` as hosted.NAME.usd_per_million_input=2. Raises ConfigError."""
    prices = load_config(path, Prices, overrides)
    prices._path = Path(path)  # pyright: ignore[reportPrivateUsage]
    return prices
