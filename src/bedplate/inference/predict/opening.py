"""A base opened in the way that was asked for, or, where nothing was, in the fastest that keeps what is stored.

The way is chosen from the checkpoint's header, so that the base is read once, in the dtype that it then has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from bedplate.core.errors import CheckpointError, UsageError
from bedplate.inference.forward.compute_lock import ComputeLock
from bedplate.inference.predict.held_as import Held
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.ways.calibrate import Use
from bedplate.inference.ways.choice import Choice, choose, left_in_file
from bedplate.inference.ways.way import QUANTISED, Kernel, Stored, Way, Weights, asked_ways, read_stored
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.precision import resolve_device


@dataclass(frozen=True)
class Asked:
    """What was asked for of a way; None and "auto" ask for nothing. quantised: whether a checkpoint's own integers may
    be chosen; who trains on a base, or reads its inner states, needs weights that are not."""

    dtype: str | None = None
    weights: Weights | None = None
    kernel: Kernel | None = None
    use: Use = "generate"
    quantised: bool = True
    loaded: str | None = None
    """The dtype that the base has already: ways of others are no longer possible."""


@dataclass(frozen=True)
class Opened:
    """A loaded base, and how its engine is to be opened."""

    base: Base
    held: Held

    def model(self, compute: ComputeLock | None = None) -> LocalModel:
        """The base on its engine."""
        return LocalModel(self.base, weights=self.held.weights, kernel=self.held.kernel, compute=compute)


def chosen(source: str | Path, asked: Asked = Asked(), device: str | torch.device = "auto") -> Choice:
    """The way in which `open_base` would hold a base, without reading its weights.

    Raises HubError, CheckpointError, UnsupportedModelError; UsageError where this machine or base cannot do what was
    asked.
    """
    target = resolve_device(device)
    return _chosen(_stored(source, target), source, asked, target)


def _chosen(stored: Stored, source: str | Path, asked: Asked, device: torch.device) -> Choice:
    try:
        return choose(stored.spec, _ways(stored, asked), device, asked.use)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error


def open_base(source: str | Path, asked: Asked = Asked(), device: str | torch.device = "auto") -> Opened:
    """Loads a base (catalogue name, directory, .gguf file, hf:owner/name) in the way that is asked for, or chosen.

    Raises what `chosen` and `load_base` raise.
    """
    target = resolve_device(device)
    stored = _stored(source, target)
    way = _chosen(stored, source, asked, target).way
    held = held_in(way)
    return Opened(load_base(source, dtype=held.dtype, device=device, leave=left_in_file(way)), held)


def open_as(source: str | Path, held: Held, device: str | torch.device = "auto", use: Use = "generate") -> Opened:
    """Loads a base as it is to be held; where that leaves its dtype open, in the fastest way that fits the rest."""
    if held.dtype == "auto":
        return open_base(source, Asked(weights=held.weights, kernel=held.kernel, use=use), device)
    return Opened(load_base(source, dtype=held.dtype, device=device), held)


def held_in(way: Way) -> Held:
    """A way as a base is loaded and its engine opened."""
    return Held(way.dtype, QUANTISED.get(way.weights, "auto"), way.kernel)


def _ways(stored: Stored, asked: Asked) -> tuple[Way, ...]:
    weights, kernel = asked.weights, asked.kernel
    ways = asked_ways(stored.types, dtype=asked.dtype, weights=weights, kernel=kernel, quantised=asked.quantised)
    if asked.loaded is None:
        return ways
    fitting = tuple(way for way in ways if way.dtype == asked.loaded)
    return fitting or asked_ways(stored.types, dtype=asked.loaded, weights=weights, kernel=kernel)


def _stored(source: str | Path, device: torch.device) -> Stored:
    try:
        return read_stored(source)
    except (CheckpointError, UsageError):
        # Reading the whole says more exactly what is wrong with it.
        load_base(source, device=device)
        raise
