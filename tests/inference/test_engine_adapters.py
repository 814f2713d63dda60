"""Adapters and soft prompts that come and go while requests run; soft prompts against peft."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import peft
import pytest
import torch
import transformers
from torch import Tensor

from bedplate.adapters.head import Head
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears
from bedplate.core.errors import ContextLengthExceeded, RequestError, UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import (
    Classification,
    Classify,
    Embed,
    Generate,
    Generation,
    Sampling,
    Score,
    Scores,
)
from bedplate.models.checkpoints.base import load_base

CONFIG = LoraConfig(r=4, alpha=8)


def _prompt(seed: int, length: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(3, 300) for _ in range(length))


def _tensors(engine: Engine, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for path, linear in block_linears(engine.base.model).items():
        tensors[f"{path}.lora_A"] = torch.randn(4, linear.in_features, generator=generator) * 0.2
        tensors[f"{path}.lora_B"] = torch.randn(linear.out_features, 4, generator=generator) * 0.2
    return tensors


@pytest.fixture
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine(load_base(tiny_dir), adapters=3) as adapter_engine:
        yield adapter_engine


def _generate(engine: Engine, tokens: tuple[int, ...], adapter: str | None, count: int = 10) -> Generation:
    request = Generate(tokens, Sampling(max_tokens=count, ignore_eos=True), adapter=adapter)
    return cast(Generation, engine.run([request])[0])


def test_unloading_lets_requests_end_on_their_weights_and_frees_the_slot_after(engine: Engine) -> None:
    prompt = _prompt(1, 20)
    engine.load_adapter("a", CONFIG, _tensors(engine, 1))
    expected = _generate(engine, prompt, "a", 300).token_ids
    running = engine.submit(Generate(prompt, Sampling(max_tokens=300, ignore_eos=True), adapter="a"))
    next(iter(running))
    engine.unload_adapter("a")
    with pytest.raises(RequestError, match="no adapter 'a'"):
        engine.submit(Generate(prompt, adapter="a"))
    # The key is free at once for other weights, and the two do not mix.
    engine.load_adapter("a", CONFIG, _tensors(engine, 2))
    new = _generate(engine, prompt, "a")
    assert new.usage.cached_tokens == 0
    assert new.token_ids != expected[:10]
    assert cast(Generation, running.result(timeout=30)).token_ids == expected
    engine.unload_adapter("a", wait=True)
    assert engine.bank is not None
    assert engine.bank.slots == ()
    assert engine.stats().adapters == 0


def test_waiting_for_an_unload_returns_when_the_last_request_has_ended(engine: Engine) -> None:
    engine.load_adapter("a", CONFIG, _tensors(engine, 1))
    running = engine.submit(Generate((5,), Sampling(max_tokens=200, ignore_eos=True), adapter="a"))
    engine.unload_adapter("a", wait=True)
    assert running.finished
    assert engine.bank is not None
    assert engine.bank.slots == ()
    with pytest.raises(UsageError, match="no adapter"):
        engine.unload_adapter("a")


def test_a_reloaded_key_never_sees_the_old_cache(engine: Engine) -> None:
    prompt = _prompt(2, 60)
    outputs: list[tuple[int, ...]] = []
    for seed in (1, 2, 1):
        engine.load_adapter("a", CONFIG, _tensors(engine, seed))
        first = _generate(engine, prompt, "a")
        assert first.usage.cached_tokens == 0
        assert _generate(engine, prompt, "a").usage.cached_tokens == 59
        outputs.append(first.token_ids)
        engine.unload_adapter("a")
        assert engine.stats().cache_bytes == 0
    assert outputs[0] == outputs[2] != outputs[1]


def test_slots_are_bounded_and_freed(engine: Engine) -> None:
    for i in range(3):
        engine.load_adapter(f"a{i}", CONFIG, _tensors(engine, i))
    with pytest.raises(UsageError, match="all 3 adapter slots"):
        engine.load_adapter("a3", CONFIG, _tensors(engine, 3))
    engine.unload_adapter("a1")
    engine.load_adapter("a3", CONFIG, _tensors(engine, 3))


def test_a_cap_on_adapters_in_a_step_changes_no_answer(tiny_dir: Path) -> None:
    with Engine(load_base(tiny_dir), adapters=4, step_adapters=1) as engine:
        for i in range(4):
            engine.load_adapter(f"a{i}", CONFIG, _tensors(engine, i))
        requests = [
            Generate(_prompt(i, 12), Sampling(max_tokens=8, ignore_eos=True), adapter=f"a{i % 4}", skin=f"s{i % 4}")
            for i in range(16)
        ]
        together = engine.run(requests)
        for request, result in zip(requests, together, strict=True):
            assert cast(Generation, result).token_ids == cast(Generation, engine.run([request])[0]).token_ids


def test_loads_and_unloads_under_traffic(engine: Engine) -> None:
    prompts = [_prompt(i, 15) for i in range(4)]
    expected: dict[tuple[int, int], tuple[int, ...]] = {}
    for seed in range(3):
        engine.load_adapter("x", CONFIG, _tensors(engine, seed))
        for i, prompt in enumerate(prompts):
            expected[seed, i] = _generate(engine, prompt, "x", 5).token_ids
        engine.unload_adapter("x")
    stop = threading.Event()
    errors: list[BaseException] = []
    answered = [0]

    def client() -> None:
        rng = random.Random(threading.get_ident())
        while not stop.is_set():
            i = rng.randrange(4)
            try:
                request = Generate(prompts[i], Sampling(max_tokens=5, ignore_eos=True), adapter="live")
                token_ids = cast(Generation, engine.submit(request).result(timeout=20)).token_ids
                assert token_ids in [expected[seed, i] for seed in range(3)]
                answered[0] += 1
            except RequestError:
                pass  # between two versions
            except BaseException as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=client) for _ in range(3)]
    for thread in threads:
        thread.start()
    for seed in (0, 1, 2, 0, 1, 2):
        engine.load_adapter("live", CONFIG, _tensors(engine, seed))
        _generate(engine, prompts[0], None, 5)
        engine.unload_adapter("live", wait=seed == 1)
    stop.set()
    for thread in threads:
        thread.join(timeout=30)
    assert not errors
    assert answered[0] > 0
    assert (engine.running, engine.waiting) == (0, 0)


@pytest.fixture(scope="module")
def vectors() -> Tensor:
    return torch.randn(7, 48, generator=torch.Generator().manual_seed(3)) * 0.5


@pytest.fixture(scope="module")
def tuned(tiny_dir: Path, vectors: Tensor) -> Any:
    """peft's model with the same virtual tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32).eval()
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(vectors))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that will go
        model = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(vectors)
    return model.requires_grad_(False)


def test_a_soft_prompt_equals_pefts(engine: Engine, tuned: Any, vectors: Tensor) -> None:
    engine.load_soft_prompt("soft", vectors)
    for length in (1, 9, 40):
        prompt = _prompt(length, length)
        ours = _generate(engine, prompt, "soft", 8)
        assert ours.usage.prompt_tokens == length
        assert ours.usage.cached_tokens == 0
        whole = torch.tensor([[*prompt, *ours.token_ids]])
        logits = tuned(input_ids=whole, attention_mask=torch.ones_like(whole)).logits[0, len(vectors) :]
        expected = logits.log_softmax(-1)[length - 1 : -1]
        assert ours.token_ids == tuple(expected.argmax(-1).tolist())
        chosen = expected.gather(1, torch.tensor(ours.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(ours.logprobs), chosen, atol=1e-4, rtol=0)
        scores = cast(
            Scores, engine.run([Score(prompt, ((ours.token_ids[0],), ours.token_ids[:3]), adapter="soft")])[0]
        )
        assert scores.totals[0] == pytest.approx(float(chosen[0]), abs=1e-4)
        assert scores.totals[1] == pytest.approx(float(chosen[:3].sum()), abs=1e-4)
    assert _generate(engine, _prompt(9, 9), "soft", 8).usage.cached_tokens == 8


def test_a_soft_prompts_states_equal_pefts(engine: Engine, tuned: Any, vectors: Tensor) -> None:
    engine.load_soft_prompt("soft", vectors)
    prompt = _prompt(5, 12)
    ids = torch.tensor([prompt])
    embedded = torch.cat([vectors[None], tuned.get_input_embeddings()(ids)], dim=1)
    states = tuned.base_model(inputs_embeds=embedded, output_hidden_states=True).hidden_states
    head = Head(torch.randn(2, 48, generator=torch.Generator().manual_seed(1)), torch.zeros(2), ("a", "b"))
    for pooling in ("last", "mean", "first"):
        mine = states[2][0, len(vectors) :]
        pooled = {"last": mine[-1], "mean": mine.mean(0), "first": mine[0]}[pooling]
        request = Classify(prompt, head, 2, cast(Any, pooling), adapter="soft")
        scores = cast(Classification, engine.run([request])[0]).scores
        torch.testing.assert_close(torch.tensor(scores), pooled @ head.weight.T, atol=1e-4, rtol=1e-4)


def test_a_soft_prompt_counts_against_the_context_and_goes_with_its_key(engine: Engine, vectors: Tensor) -> None:
    engine.load_soft_prompt("soft", vectors)
    with pytest.raises(ContextLengthExceeded, match="behind 7 of a soft prompt"):
        engine.submit(Generate((5,) * 500, Sampling(max_tokens=6), adapter="soft"))
    assert _generate(engine, (5,) * 500, "soft", 5).usage.completion_tokens == 5
    assert engine.stats().cache_pinned_bytes > 0
    with pytest.raises(UsageError, match="loaded already"):
        engine.load_soft_prompt("soft", vectors)
    with pytest.raises(UsageError, match=r"\[P, 48\]"):
        engine.load_soft_prompt("bad", torch.zeros(3, 47))
    with pytest.raises(UsageError, match="not finite"):
        engine.load_soft_prompt("bad", torch.full((3, 48), torch.nan))
    with pytest.raises(UsageError, match="soft prompt itself"):
        engine.load_soft_prompt("bad", vectors, adapter="soft")
    engine.unload_adapter("soft")
    assert engine.stats().cache_bytes == 0


def test_a_soft_prompt_on_an_adapter_keeps_its_slot(engine: Engine, vectors: Tensor) -> None:
    engine.load_adapter("a", CONFIG, _tensors(engine, 1))
    engine.load_soft_prompt("both", vectors, adapter="a")
    engine.load_soft_prompt("soft", vectors)
    prompt = _prompt(4, 10)
    combined, plain = _generate(engine, prompt, "both").token_ids, _generate(engine, prompt, "soft").token_ids
    assert combined != plain
    engine.pin(prompt[:8], "both")
    assert _generate(engine, (*prompt[:8], 9), "both").usage.cached_tokens == 8
    engine.unload_adapter("a")
    assert engine.bank is not None
    assert len(engine.bank.slots) == 1
    assert _generate(engine, prompt, "both").token_ids == combined
    engine.unload_adapter("both")
    assert engine.bank.slots == ()


def test_mixed_company_with_soft_prompts(engine: Engine, vectors: Tensor) -> None:
    engine.load_adapter("a", CONFIG, _tensors(engine, 1))
    engine.load_soft_prompt("both", vectors, adapter="a")
    keys = [None, "a", "both"]
    requests = [
        Generate(_prompt(i, 6 + i), Sampling(max_tokens=6, ignore_eos=True), adapter=keys[i % 3]) for i in range(9)
    ]
    together = [cast(Generation, result).token_ids for result in engine.run([*requests, Embed((5, 6))])[:-1]]
    alone = [cast(Generation, engine.run([request])[0]).token_ids for request in requests]
    assert together == alone
