"""Which source each row of training comes from: weights, a temperature, caps on epochs, a schedule.

Shares are of tokens: rows are full, so a source's share of rows is its share of tokens. Row i is answered for any i,
the same whoever asks: rows are dealt in blocks, in each block every source the count that brings it nearest to what it
is owed, in an order that seed and block decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pydantic
from numpy.typing import NDArray

from bedplate.core.config import Strict
from bedplate.core.errors import ConfigError, DataError
from bedplate.core.suggestions import did_you_mean, nearest

BLOCK = 1024
"""Rows that are dealt at once."""
Weight = Annotated[float, pydantic.Field(ge=0)]


class MixtureStage(Strict):
    """Weights from a point of training on, `at` from 0 to 1."""

    at: float = pydantic.Field(ge=0, le=1)
    weights: dict[str, Weight] = pydantic.Field(min_length=1)


class MixtureConfig(Strict):
    """How sources are mixed. weights: of every source, in any unit; by default the corpus's, or else its rows, so that
    an epoch of all is one of each. temperature: weights w become w^(1/temperature), as in mT5
    (https://arxiv.org/abs/2010.11934). epochs: maximum passes over a source, for all or by name; its share then goes to
    the others. stages: later weights; `blend`: in steps or linearly."""

    weights: dict[str, Weight] | None = None
    temperature: float = pydantic.Field(default=1.0, gt=0)
    epochs: Annotated[float, pydantic.Field(gt=0)] | dict[str, Annotated[float, pydantic.Field(gt=0)]] | None = None
    stages: tuple[MixtureStage, ...] = ()
    blend: Literal["steps", "linear"] = "steps"

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> MixtureConfig:
        points = [stage.at for stage in self.stages]
        if points != sorted(set(points)):
            raise ValueError(f"the stages begin at {', '.join(map(str, points))}: each must begin after the one before")
        return self


class MixtureDraw(NamedTuple):
    """A row's source, by its number, and its place among all rows of that source, from 0 and through the epochs."""

    source: int
    ordinal: int


class Mixture:
    """Which source and ordinal each row has: a pure function of its arguments. rows: rows of each source, by name;
    total: rows of training. given: weights where the config gives none, by default the rows. ConfigError for unknown or
    missing names, DataError where a weighted source has no rows or all allowed epochs are too few."""

    def __init__(
        self,
        config: MixtureConfig,
        rows: Mapping[str, int],
        total: int,
        seed: int,
        default_weights: Mapping[str, float] | None = None,
    ) -> None:
        self.names, self.total, self._seed = tuple(rows), total, seed
        self._linear = config.blend == "linear"
        first = dict(default_weights or rows) if config.weights is None else config.weights
        self._stages = [(0.0, self._checked(first, "weights", config))]
        for stage in config.stages:
            weights = self._checked(stage.weights, f"the stage at {stage.at:g}", config)
            self._stages = [earlier for earlier in self._stages if earlier[0] < stage.at] + [(stage.at, weights)]
        for number, (name, count) in enumerate(rows.items()):
            if count == 0 and any(weights[number] > 0 for _, weights in self._stages):
                raise DataError(f"the source {name!r} has a weight, but no rows; give it the weight 0 or leave it out")
        self._row_caps = self._caps(config, rows)
        self._before: list[NDArray[np.int64]] = [np.zeros(len(self.names), np.int64)]
        self._owed = np.zeros(len(self.names))
        self._block: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def _checked(self, weights: Mapping[str, float], location: str, config: MixtureConfig) -> NDArray[np.float64]:
        for name in weights:
            if name not in self.names:
                hint = did_you_mean(nearest(name, self.names)) or f"the sources are {', '.join(self.names)}"
                raise ConfigError(f"mixture: {location}: there is no source {name!r}; {hint}")
        missing = [name for name in self.names if name not in weights]
        if missing:
            raise ConfigError(f"mixture: {location}: no weight for {', '.join(missing)}; 0 leaves a source out")
        shares = np.array([weights[name] for name in self.names], np.float64)
        if not shares.sum() > 0:
            raise ConfigError(f"mixture: {location}: no source has a weight above 0")
        shares = np.where(shares > 0, (shares / shares.sum()) ** (1 / config.temperature), 0.0)
        return shares / shares.sum()

    def _caps(self, config: MixtureConfig, rows: Mapping[str, int]) -> NDArray[np.int64]:
        caps = config.epochs
        if isinstance(caps, dict):
            for name in caps:
                if name not in self.names:
                    raise ConfigError(f"mixture: epochs: there is no source {name!r}; it knows {', '.join(self.names)}")
        row_caps = np.full(len(self.names), np.iinfo(np.int64).max)
        for number, (name, count) in enumerate(rows.items()):
            cap = caps.get(name) if isinstance(caps, dict) else caps
            if cap is not None:
                row_caps[number] = int(cap * count)
        row_caps[~np.any([weights > 0 for _, weights in self._stages], axis=0)] = 0
        if row_caps.max() < np.iinfo(np.int64).max and int(row_caps.sum()) < self.total:
            raise DataError(
                f"mixture: {self.total} rows are asked for, but the epochs allowed give {int(row_caps.sum())}; train "
                "on fewer tokens or allow more epochs"
            )
        return row_caps

    def weights_at(self, part: float) -> Mapping[str, float]:
        """The shares at a point of training, from 0 to 1, before caps on epochs."""
        return dict(zip(self.names, self._weights(part).tolist(), strict=True))

    def _weights(self, part: float) -> NDArray[np.float64]:
        number = max(i for i, (at, _) in enumerate(self._stages) if at <= part)
        at, weights = self._stages[number]
        if not self._linear or number + 1 == len(self._stages):
            return weights
        end, later = self._stages[number + 1]
        share = (part - at) / (end - at)
        return weights * (1 - share) + later * share

    def row(self, index: int) -> MixtureDraw:
        """Where row `index` of training comes from. IndexError past the end."""
        if not 0 <= index < self.total:
            raise IndexError(f"there is no row {index} among {self.total}")
        block, offset = divmod(index, BLOCK)
        if self._block is None or self._block[0] != block:
            sources = self._dealt(block)
            ordinals = np.empty(len(sources), np.int64)
            for number in range(len(self.names)):
                mask = sources == number
                ordinals[mask] = self._before[block][number] + np.arange(int(mask.sum()))
            self._block = block, sources, ordinals
        return MixtureDraw(int(self._block[1][offset]), int(self._block[2][offset]))

    def drawn(self, index: int) -> Mapping[str, int]:
        """How many of the first `index` rows come from each source."""
        block, offset = divmod(min(index, self.total), BLOCK)
        self._reach(block)
        counts = self._before[block].copy()
        if offset:
            counts += np.bincount(self._dealt(block)[:offset], minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))

    def _dealt(self, block: int) -> NDArray[np.int64]:
        """The sources of a block's rows, in order."""
        self._reach(block + 1)
        counts = self._before[block + 1] - self._before[block]
        seed = int.from_bytes(hashlib.sha256(f"{self._seed}/{block}".encode()).digest()[:16], "little")
        order = np.random.Generator(np.random.PCG64(seed))
        return order.permutation(np.repeat(np.arange(len(self.names)), counts))

    def _reach(self, block: int) -> None:
        """Deals all blocks before this one."""
        while len(self._before) <= block:
            start = (len(self._before) - 1) * BLOCK
            self._before.append(self._before[-1] + self._counts(start, min(BLOCK, self.total - start)))

    def _counts(self, start: int, size: int) -> NDArray[np.int64]:
        before = self._before[-1]
        remaining = self._row_caps - before
        weights = self._weights((start + size / 2) / self.total) * (remaining > 0)
        if not weights.sum() > 0:  # those of this stage are used up: what is left of the others
            weights = (remaining > 0) * np.max([stage_weights for _, stage_weights in self._stages], axis=0)
        self._owed += weights / weights.sum() * size
        due = self._owed - before
        counts = np.minimum(np.floor(np.maximum(due, 0)), remaining).astype(np.int64)
        while (missing := size - int(counts.sum())) != 0:
            deficit = due - counts
            if missing < 0:
                counts[np.argmin(np.where(counts > 0, deficit, np.inf))] -= 1
                continue
            able = (counts < remaining) & (weights > 0)
            able = able if able.any() else counts < remaining
            number = int(np.argmax(np.where(able, deficit, -np.inf)))
            counts[number] += min(missing, int(remaining[number] - counts[number]), max(1, int(deficit[number])))
        return counts
