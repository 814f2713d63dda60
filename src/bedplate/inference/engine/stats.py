"""Counters and gauges of the engine, for metrics and health checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(kw_only=True)
class Counters:
    """Totals since the engine was opened, in tokens unless stated otherwise.

    prompt_tokens: prompt tokens computed. prefix_queries: prompt tokens looked up in the prefix cache; prefix_hits:
    found there. generated_tokens: output tokens. computed_tokens: all that went through the model, drafted ones
    included. speculated: drafted; accepted: drafted and accepted. steps, step_seconds: engine steps and their duration.
    preemptions: number of preempted requests.
    """

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
    """A snapshot of counters and gauges. running: admitted requests; waiting: queued ones. cache_bytes: size of the
    prefix cache; of these, cache_pinned_bytes are never evicted and do not count against cache_capacity_bytes.
    adapters: loaded ones."""

    running: int
    waiting: int
    adapters: int
    cache_bytes: int
    cache_pinned_bytes: int
    cache_capacity_bytes: int
    evictions: int


@dataclass(frozen=True)
class StepRecord:
    """Measurements of one engine step. spans: for each sequence (tokens before, tokens computed, whether its next token
    was chosen). decodes: number of running generations, which come first. adapters: number of different ones. copied:
    tokens that requests which began in this step took from the prefix cache. ended: requests that ended in it."""

    spans: tuple[tuple[int, int, bool], ...]
    decodes: int
    adapters: int
    copied: int
    ended: int
    seconds: float


OnStep = Callable[[StepRecord], None]
