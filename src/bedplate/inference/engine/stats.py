"""Counters and gauges of the engine, for metrics and health checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from bedplate.inference.forward.radix import RadixTree


@dataclass
class Counters:
    """Totals since the engine was made. prefix_queries and prefix_hits are tokens."""

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


@dataclass(frozen=True)
class Stats:
    """A moment of an engine.

    running: requests that are let in; waiting: those that are not. prompt_tokens: prompts' tokens that were computed,
    prefix_hits those that were found among the prefix_queries tokens looked up. generated_tokens: tokens said;
    computed_tokens: all that went through the base, guesses included. speculated: tokens guessed, accepted: guessed
    right. cache_bytes: held by the prefix cache, of them cache_pinned_bytes never evicted and not counted against
    cache_capacity_bytes. adapters: loaded. steps, step_seconds: engine steps and the time they took.
    """

    running: int
    waiting: int
    preemptions: int
    prompt_tokens: int
    generated_tokens: int
    computed_tokens: int
    prefix_queries: int
    prefix_hits: int
    speculated: int
    accepted: int
    cache_bytes: int
    cache_pinned_bytes: int
    cache_capacity_bytes: int
    evictions: int
    adapters: int
    steps: int
    step_seconds: float


def stats_of(counters: Counters, tree: RadixTree, *, running: int, waiting: int, adapters: int) -> Stats:
    """This moment, of what is counted and of the prefix cache."""
    return Stats(
        **asdict(counters),
        running=running,
        waiting=waiting,
        adapters=adapters,
        cache_bytes=tree.used,
        cache_pinned_bytes=tree.pinned,
        cache_capacity_bytes=tree.capacity,
        evictions=tree.evictions,
    )


@dataclass(frozen=True)
class StepRecord:
    """One step of an engine, for those who measure it.

    spans: for each sequence (tokens it had before, tokens computed for it, whether its next token was chosen).
    decodes: how many of them, from the front, were running generations. adapters: different ones that took part.
    copied: cached tokens that requests which began in it were given. ended: requests that it brought to their end.
    """

    spans: tuple[tuple[int, int, bool], ...]
    decodes: int
    adapters: int
    copied: int
    ended: int
    seconds: float


OnStep = Callable[[StepRecord], None]
