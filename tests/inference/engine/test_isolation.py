"""Infinities and NaN of one request stay with it: whoever computes beside it, or after it in the same memory, is
answered as alone."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.inference.mixtures import random_prompt
from tests.inference.test_every_family import assert_same_results, base_of, requests
from tests.near import assert_near
from tests.references import reference_bert
from tests.rows import slow_unless
from tests.tiny import tiny_spec
from torch import Tensor

from bedplate.adapters.head import Head
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears
from bedplate.core.errors import NotFiniteError, UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Classify, Embed, Generate, Request, Sampling, Score
from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.inference.forward.paged import PagedCache
from bedplate.inference.forward.spans import Span
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.layers.attention import RowAttention
from bedplate.models.layers.attention_options import AttentionOptions
from bedplate.models.model import Model

CONFIG = LoraConfig(r=4, alpha=6)
CPU = torch.device("cpu")
WINDOW = 20


def weights(model: Model, seed: int, scale: float = 0.2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for path, linear in block_linears(model).items():
        tensors[f"{path}.lora_A"] = torch.randn(4, linear.in_features, generator=generator).clamp(-3, 3) * scale
        tensors[f"{path}.lora_B"] = torch.randn(linear.out_features, 4, generator=generator) * 0.2
    return tensors


def load(engine: Engine) -> None:
    """An adapter, and one whose numbers are finite and whose products are not."""
    engine.load_adapter("good", CONFIG, weights(engine.base.model, 1))
    engine.load_adapter("bad", CONFIG, weights(engine.base.model, 2, 1e38))


def adapted(batch: list[Request], adapter: str | None) -> list[Request]:
    return [replace(request, adapter=adapter) for request in batch]


def opened(base: Base, paged: bool) -> dict[str, Any]:
    return {"paged": True, "slot_bytes": 1 << 22, "cache_bytes": 1 << 21} if paged else {"kernel": "torch"}


@pytest.mark.parametrize(
    ("name", "paged"),
    slow_unless(
        {
            ("llama", False),
            ("qwen3_next", False),
            ("gpt_oss", True),
            ("deepseek_v3", True),
            ("lfm2", True),
        }.__contains__,
        itertools.product(("llama", "gpt_oss", "deepseek_v3", "lfm2", "qwen3_next"), (False, True)),
    ),
)
def test_neighbours_and_successors_are_answered_as_alone(name: str, paged: bool) -> None:
    base = base_of(name)
    plain = requests(base)
    batch = [*adapted(plain[1:3], "good"), *plain[3:6]]
    with Engine(base, kernel="torch", cache_bytes=0, speculate=False) as engine:
        load(engine)
        alone = [engine.run([request])[0] for request in batch]
    with Engine(base, max_step_tokens=150, **opened(base, paged)) as engine:
        load(engine)
        for _ in range(2):
            with engine.exclusive():
                bad = [engine.submit(request) for request in adapted(plain[:4], "bad")]
                good = [engine.submit(request) for request in batch]
            assert_same_results(
                [stream.result(timeout=60) for stream in good], alone, "beside infinities, and where they were"
            )
            for stream in bad:
                with pytest.raises(NotFiniteError, match="adapter 'bad' on made became infinite or NaN in float32"):
                    stream.result(timeout=60)
        before = engine.stats().cache_bytes
        engine.unload_adapter("bad")
        assert engine.stats().cache_bytes == before, "what failed is not kept for others"


def test_an_encoders_batch_is_answered_as_alone(tmp_path: Path) -> None:
    reference_bert(0).eval().save_pretrained(tmp_path)
    base = load_base(tmp_path)
    texts = [tuple(3 + (i * k) % 40 for k in range(1, 4 + i)) for i in range(6)]
    with Engine(base) as engine:
        load(engine)
        keys = [None, "good"] * 3
        batch = [Embed(text, "mean", adapter=key) for text, key in zip(texts, keys, strict=True)]
        alone = [engine.run([request])[0] for request in batch]
        with engine.exclusive():
            bad = engine.submit(Embed(texts[3], "mean", adapter="bad"))
            good = [engine.submit(request) for request in batch]
        assert_same_results([stream.result(timeout=60) for stream in good], alone, "beside infinities")
        with pytest.raises(NotFiniteError, match="adapter 'bad'"):
            bad.result(timeout=60)


def test_every_kind_says_that_its_numbers_are_not_finite(tiny_dir: Path) -> None:
    head = Head(torch.randn(3, 48), torch.randn(3), ("a", "b", "c"))
    tokens = random_prompt(1, 12)
    with Engine(load_base(tiny_dir)) as engine:
        load(engine)
        batch: list[Request] = [
            Generate(tokens),
            Generate(tokens, Sampling(temperature=1.0, logprobs=2, seed=1)),
            Generate(tokens, Sampling(max_tokens=0, prompt_logprobs=1)),
            Score(tokens, ((5,), (6, 7))),
            Embed(tokens),
            Embed(tokens, "last", depth=1),
            Classify(tokens, head, 2),
        ]
        for request in adapted(batch, "bad"):
            with pytest.raises(NotFiniteError, match="adapter 'bad'"):
                engine.submit(request).result(timeout=60)
        assert (engine.running, engine.waiting, engine.stats().cache_bytes) == (0, 0, 0)


def test_a_soft_prompt_that_makes_infinities_is_refused() -> None:
    base = base_of("gpt2")
    with Engine(base, kernel="torch") as engine:
        with pytest.raises(UsageError, match="the soft prompt makes infinities"):
            engine.load_soft_prompt("soft", torch.full((3, base.spec.hidden_size), 3e38))
        engine.load_soft_prompt("soft", torch.randn(3, base.spec.hidden_size))


@pytest.mark.parametrize("layout", ["slots", "blocks"])
@pytest.mark.parametrize("how", [AttentionOptions(), AttentionOptions(window=WINDOW), AttentionOptions(softcap=3.0)])
def test_what_another_has_or_left_is_not_read(layout: str, how: AttentionOptions) -> None:
    spec = tiny_spec(layers=1, windows=(how.window,))
    cache = SlotCache(spec, torch.float32, CPU) if layout == "slots" else PagedCache(spec, torch.float32, CPU, 1 << 20)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 90, 6, 8, generator=generator)
    k, v = k[:, :, :2], v[:, :, :2]
    whole = RowAttention(causal=True)(0, q, k, v, how)

    def attended(spans: list[Span], broken: frozenset[int] = frozenset()) -> None:
        cache.reserve({span.row: span.end for span in spans})
        parts = [torch.cat([x[:, span.start : span.end] for span in spans], dim=1) for x in (q, k, v)]
        of_row = torch.tensor([span.row for span in spans for _ in range(span.length)])
        for row in broken:
            parts[1][:, of_row == row] = torch.nan
            parts[2][:, of_row == row] = torch.inf
        output = cache.attend(spans)(0, *parts, how)
        for span in spans:
            if span.row not in broken:
                assert_near(output[:, of_row == span.row], whole[:, span.start : span.end])

    bad = frozenset({0, 2})
    attended([Span(0, 0, 60), Span(1, 0, 40), Span(2, 0, 70), Span(3, 0, 5)], bad)
    attended([Span(0, 60, 1), Span(1, 40, 1), Span(2, 70, 1), Span(3, 5, 1)], bad)
    for row in (0, 2, 3):
        cache.free(row)
    attended([Span(0, 0, 7), Span(1, 41, 1), Span(2, 0, 33), Span(3, 0, 50)])
    for start in range(3):
        attended([Span(0, 7 + start, 1), Span(1, 42 + start, 1), Span(2, 33 + start, 1), Span(3, 50 + start, 1)])
