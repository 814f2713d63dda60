"""Counters and gauges of the engine, for metrics and health checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(kw_only=True)
class Counters:
    """Totals since the engine was opened, in tokens where nothing else is said. prompt_tokens: computed of prompts;
    prefix_hits: found among the prefix_queries looked up. generated_tokens: of answers. computed_tokens: all that went
    through the model, drafted ones included. speculated: drafted; accepted: of these, those that were right. steps,
    step_seconds: engine steps and the time they took."""

    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    computed_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    speculated: int = 0
    accepted: int = 0
    steps: int = 0
    step_seconds: float = 0.0


@dataclass(kw_only=True)
class Stats(Counters):
    """The counters and gauges of one moment. running: admitted requests; waiting: those not admitted yet. cache_bytes:
    size of the prefix cache; of these, cache_pinned_bytes are never evicted and not counted against
    cache_capacity_bytes. adapters: loaded ones."""

    running: int
    waiting: int
    adapters: int
    cache_bytes: int
    cache_pinned_bytes: int
    cache_capacity_bytes: int
    evictions: int


@dataclass(frozen=True)
class StepRecord:
    """One step of an engine, for those who measure it. spans: for each sequence (tokens it had before, tokens computed
    for it, whether its next token was chosen). decodes: how many of them, from the front, were running generations.
    adapters: different ones that took part. copied: cached tokens that requests which began in it were given. ended:
    requests that it brought to their end."""

    spans: tuple[tuple[int, int, bool], ...]
    decodes: int
    adapters: int
    copied: int
    ended: int
    seconds: float


OnStep = Callable[[StepRecord], None]
