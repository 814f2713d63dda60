"""Every decoder of the families' table in the engine: whatever company a request has, it is answered as alone.

Tokens are equal. Numbers are as near as sums in another order leave them: products over several rows are blocked in
another way than over one, keys that are gathered are summed in another order than keys that lie together, and a
recurrence is cut into chunks where a step ends.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tests.made import made_base
from tests.near import assert_near
from tests.rows import slow_unless

from bedplate.adapters.head import Head
from bedplate.core.errors import UnsupportedModelError
from bedplate.inference.engine import prefix_store, runner
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import (
    Classification,
    Classify,
    Embed,
    Embedding,
    Generate,
    Generation,
    Request,
    Result,
    Sampling,
    Score,
    Scores,
)
from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.models.checkpoints.base import Base
from bedplate.models.families import FAMILIES
from bedplate.models.specs.transformer import TransformerSpec

GROWING = (3, 4)
"""Requests that begin with at most 36 tokens and end with more than 40."""
TOLERANCE = 2e-4
"""Of the largest value: random weights are sharp, and a rounding in an early layer grows."""


@cache
def base_of(name: str) -> Base:
    family = FAMILIES["hf", name]
    return made_base(family.to_spec(dict(family.examples[0])), family)


def _decoders() -> list[str]:
    specs = {
        name: family.to_spec(dict(family.examples[0]))
        for (format_, name), family in FAMILIES.items()
        if format_ == "hf"
    }
    return [name for name, spec in specs.items() if isinstance(spec, TransformerSpec) and spec.kind == "decoder"]


def requests(base: Base) -> list[Request]:
    """Of every kind; three begin alike, one says the same again and again, so that its next tokens are guessed."""
    words, size = base.spec.vocab_size, base.spec.hidden_size
    generator = torch.Generator().manual_seed(1)
    random = torch.randint(3, words, (200,), generator=generator).tolist()
    shared, greedy = tuple(random[:33]), Sampling(max_tokens=9, ignore_eos=True)
    head = Head(torch.randn(3, size, generator=generator), torch.zeros(3), ("a", "b", "c"))
    return [
        Generate((*shared, *random[40:55]), greedy, shared_tokens=33),
        Generate((*random[80:84], *random[90:96] * 8), greedy),
        Score((*shared, *random[100:108]), ((5,), (6, 7, 8), (9, 10), tuple(random[60:78])), shared_tokens=33),
        Generate(tuple(random[110:145]), Sampling(max_tokens=9, temperature=0.8, seed=3, ignore_eos=True)),
        Generate(tuple(random[150:186]), greedy),
        Classify((*shared, *random[120:140]), head, 2, shared_tokens=33),
        Embed(tuple(random[140:190])),
    ]


def numbers(result: Result) -> list[float]:
    if isinstance(result, Generation):
        return list(result.logprobs)
    if isinstance(result, Scores):
        return list(result.totals)
    if isinstance(result, Classification):
        return list(result.scores)
    assert isinstance(result, Embedding)
    return list(result.vector)


def assert_same_results(ours: list[Result], alone: list[Result], message: str) -> None:
    for result, reference in zip(ours, alone, strict=True):
        if isinstance(result, Generation) and isinstance(reference, Generation):
            assert result.token_ids == reference.token_ids, message
        assert_near(numbers(result), numbers(reference), TOLERANCE, message)


UNLIKE = {"llama", "gemma4_text", "gpt_neox", "gpt_oss", "granitemoehybrid", "lfm2", "qwen3_next", "deepseek_v3"}
"""Of each way to attend, to know positions, to keep a state, to share out among experts: the other families have parts
of these."""


@pytest.mark.parametrize("name", slow_unless(UNLIKE.__contains__, _decoders()))
def test_company_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(name)
    batch, states = requests(base), base.spec.state.mixer is not None
    monkeypatch.setattr(runner, "HEADROOM", 3)
    monkeypatch.setattr(prefix_store, "SNAPSHOT", 8)
    with Engine(base, kernel="torch", cache_bytes=0, speculate=False) as engine:
        alone = [engine.run([request])[0] for request in batch]
    with Engine(base, kernel="torch", max_step_tokens=13, speculate=not states) as engine:
        assert_same_results(engine.run(batch), alone, "together, in chunks")
        before = engine.stats().prefix_hits
        assert before >= 33  # what two of three begin with
        assert_same_results(engine.run(batch), alone, "from the prefix cache")
        assert engine.stats().prefix_hits - before >= 3 * 33
    little = SlotCache(base.spec, torch.float32, torch.device("cpu"))._bytes([40, 40])
    with Engine(base, kernel="torch", slot_bytes=little, speculate=False) as engine:
        assert_same_results(
            engine.run([batch[i] for i in GROWING]), [alone[i] for i in GROWING], "put out and computed again"
        )
        assert engine.stats().preemptions > 0
    with Engine(base, paged=True, slot_bytes=1 << 22, cache_bytes=1 << 22, max_step_tokens=29) as engine:
        for message in ("in blocks", "from blocks that are shared"):
            assert_same_results(engine.run(batch), alone, message)


def test_what_keeps_states_is_not_guessed_for() -> None:
    with pytest.raises(UnsupportedModelError, match="has recurrent states, which cannot be rewound"):
        Engine(base_of("lfm2"), kernel="torch", speculate=True)
