"""Requests of every kind in the company of each other, for the engine's tests under scarcity and in other caches."""

from __future__ import annotations

import random

import torch

from bedplate.adapters.head import Head
from bedplate.inference.engine.requests import Classify, Embed, Generate, Request, Sampling, Score
from bedplate.inference.forward.paged import PagedCache


def free_blocks(cache: PagedCache) -> int:
    """Free blocks of the largest pool."""
    return max(cache.pools.values(), key=lambda pool: pool.blocks).free


def random_prompt(seed: int, length: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(3, 300) for _ in range(length))


def mixture(count: int) -> list[Request]:
    """Requests of eight kinds in turn, whose prompts partly begin alike; the base has 48 features and 3 layers."""
    head = Head(torch.randn(3, 48, generator=torch.Generator().manual_seed(1)), torch.zeros(3), ("a", "b", "c"))
    shared = random_prompt(99, 30)
    requests: list[Request] = []
    for i in range(count):
        tokens = (shared if i % 3 == 0 else ()) + random_prompt(i, 5 + 11 * (i % 6))
        sampled = Sampling(max_tokens=9, temperature=0.8, top_p=0.9, seed=i, ignore_eos=True)
        variants: list[Request] = [
            Generate(tokens, Sampling(max_tokens=7 + i % 5, ignore_eos=True)),
            Generate(tokens, sampled, skin="b"),
            Score(tokens, ((5,), (6, 7, 8), (9, 10))),
            Classify(tokens, head, 2),
            Classify(tokens, head, 1, "mean"),
            Embed(tokens),
            Embed(tokens, "first", depth=1),
            Generate(tokens, Sampling(max_tokens=3, prompt_logprobs=2, logprobs=2, ignore_eos=True), tenant="t"),
        ]
        requests.append(variants[i % len(variants)])
    return requests
