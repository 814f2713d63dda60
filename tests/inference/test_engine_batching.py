"""Small budgets, scarce memory and mixed company change how a request is computed, never what it answers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.inference.mixtures import mixture, random_prompt
from tests.references import reference_bert

from bedplate.core.errors import BusyError, DeadlineError, RequestError
from bedplate.inference.engine import runner as runner_module
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import (
    Classification,
    Embed,
    Embedding,
    Generate,
    Generation,
    Result,
    Sampling,
    Score,
    Scores,
)
from bedplate.inference.forward.compute_lock import ComputeLock
from bedplate.inference.forward.torch import FlatBatch
from bedplate.models.checkpoints.base import Base, load_base


def _close(ours: Result, theirs: Result) -> None:
    assert ours.usage.prompt_tokens == theirs.usage.prompt_tokens
    if isinstance(ours, Generation):
        expected = cast(Generation, theirs)
        assert (ours.token_ids, ours.text, ours.finish_reason) == (
            expected.token_ids,
            expected.text,
            expected.finish_reason,
        )
        np.testing.assert_allclose(ours.logprobs, expected.logprobs, atol=1e-4)
        assert (ours.prompt_logprobs is None) == (expected.prompt_logprobs is None)
        if ours.prompt_logprobs is not None and expected.prompt_logprobs is not None:
            assert ours.prompt_logprobs[0] is None
            np.testing.assert_allclose(ours.prompt_logprobs[1:], expected.prompt_logprobs[1:], atol=1e-4)
            assert len(ours.prompt_top_logprobs) == len(expected.prompt_top_logprobs)
    elif isinstance(ours, Scores):
        np.testing.assert_allclose(ours.totals, cast(Scores, theirs).totals, atol=1e-3)
    elif isinstance(ours, Classification):
        np.testing.assert_allclose(ours.scores, cast(Classification, theirs).scores, atol=1e-3)
    else:
        np.testing.assert_allclose(ours.vector, cast(Embedding, theirs).vector, atol=1e-4)


@pytest.fixture(scope="module")
def base(tiny_dir: Path) -> Base:
    return load_base(tiny_dir)


@pytest.fixture(scope="module")
def alone(base: Base) -> list[Result]:
    """Each request computed in one piece, by an engine that has cached nothing."""
    results: list[Result] = []
    for request in mixture(40):
        with Engine(base) as engine:
            results += engine.run([request])
    return results


@pytest.mark.parametrize("budget", [19, *(pytest.param(other, marks=pytest.mark.slow) for other in (1, 7, 64, 4096))])
def test_every_kind_in_chunks_beside_others_equals_alone(base: Base, alone: list[Result], budget: int) -> None:
    with Engine(base, max_step_tokens=budget, max_rows=5) as engine:
        for ours, theirs in zip(engine.run(mixture(40)), alone, strict=True):
            _close(ours, theirs)
        # A second time much is cached; the answers stay.
        for ours, theirs in zip(engine.run(mixture(40)), alone, strict=True):
            _close(ours, theirs)
        assert engine.stats().prefix_hits > 0
        assert (engine.running, engine.waiting) == (0, 0)


def test_scarce_slots_put_generations_out_and_back_unnoticed(base: Base, alone: list[Result]) -> None:
    # Room for about three of the longest rows.
    token_bytes = 2 * 3 * 2 * 8 * 4
    with Engine(base, max_step_tokens=64, slot_bytes=3 * 90 * token_bytes, cache_bytes=0) as engine:
        for ours, theirs in zip(engine.run(mixture(40)), alone, strict=True):
            _close(ours, theirs)
        long = [Generate(random_prompt(i, 10), Sampling(max_tokens=60, temperature=1.0, seed=i)) for i in range(6)]
        together = engine.run(long)
        assert engine.stats().preemptions > 0
        for request, result in zip(long, together, strict=True):
            _close(result, engine.run([request])[0])


def test_chunked_greedy_equals_transformers(base: Base, reference: Any) -> None:
    prompts = [random_prompt(i, 20 + 40 * i) for i in range(6)]
    with Engine(base, max_step_tokens=13) as engine:
        results = engine.run([Generate(p, Sampling(max_tokens=12, ignore_eos=True)) for p in prompts])
    for prompt, result in zip(prompts, results, strict=True):
        theirs = reference.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert cast(Generation, result).token_ids == tuple(theirs[0, len(prompt) :].tolist())


def _spied(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[FlatBatch]:
    batches: list[FlatBatch] = []
    forward = engine._runner.forward

    def spy(batch: FlatBatch) -> Any:
        batches.append(batch)
        return forward(batch)

    monkeypatch.setattr(engine._runner, "forward", spy)
    return batches


def test_no_step_is_over_budget_and_running_rows_are_in_every_step(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(base, max_step_tokens=20) as engine:
        batches = _spied(engine, monkeypatch)
        with engine.exclusive():
            running = engine.submit(Generate((5, 6), Sampling(max_tokens=60, ignore_eos=True)))
            late = engine.submit(Generate(random_prompt(1, 400), Sampling(max_tokens=1)))
        late.result(timeout=60)
        running.result(timeout=60)
    assert max(len(batch.tokens) for batch in batches) == 20
    chunked = [batch for batch in batches if any(span.length > 2 for span in batch.spans)]
    assert len(chunked) >= 20
    # The running row gets its token beside each chunk of the long prompt.
    assert all(batch.spans[0].length == 1 for batch in chunked[1:])


def test_a_deadline_ends_a_request_running_or_waiting(base: Base) -> None:
    with Engine(base, max_rows=1) as engine:
        soon = time.monotonic() + 0.15
        running = engine.submit(Generate((5,), Sampling(max_tokens=500, ignore_eos=True)))
        waiting = engine.submit(Generate((6,), Sampling(max_tokens=500, ignore_eos=True), deadline=soon))
        with pytest.raises(DeadlineError):
            waiting.result(timeout=60)
        running.cancel()
        cut = Generate((7,), Sampling(max_tokens=511, ignore_eos=True), deadline=time.monotonic() + 0.05)
        with pytest.raises(DeadlineError):
            engine.submit(cut).result(timeout=60)
        late = Score((5, 6), ((7,),), deadline=time.monotonic() - 1)
        with pytest.raises(DeadlineError):
            engine.run([late])
        assert (engine.running, engine.waiting) == (0, 0)


def test_a_waiting_request_can_be_cancelled(base: Base) -> None:
    with Engine(base, max_rows=1) as engine:
        running = engine.submit(Generate((5,), Sampling(max_tokens=500, ignore_eos=True)))
        waiting = engine.submit(Generate((6,), Sampling(max_tokens=5)))
        waiting.cancel()
        with pytest.raises(RequestError, match="cancelled"):
            waiting.result(timeout=60)
        running.cancel()
        assert cast(Generation, running.result(timeout=60)).finish_reason == "cancelled"


def test_one_skins_flood_does_not_starve_another(base: Base) -> None:
    with Engine(base, max_rows=2) as engine:
        with engine.exclusive():
            flood = [engine.submit(Generate((5, i), Sampling(max_tokens=8), skin="flood")) for i in range(3, 60)]
            visitor = engine.submit(Generate((6,), Sampling(max_tokens=2), skin="other"))
        visitor.result(timeout=60)
        assert sum(stream.finished for stream in flood) < 20
        for stream in flood:
            stream.result(timeout=60)


def _failing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error_of: Callable[[FlatBatch], BaseException | None]
) -> None:
    forward = engine._runner.forward

    def fails(batch: FlatBatch) -> Any:
        error = error_of(batch)
        if error is not None:
            raise error
        return forward(batch)

    monkeypatch.setattr(engine._runner, "forward", fails)


def test_a_forward_that_fails_fails_its_request_alone(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(base) as engine:
        _failing(engine, monkeypatch, lambda batch: RuntimeError("bad token") if 66 in batch.tokens else None)
        with engine.exclusive():
            good = [engine.submit(Generate((5, i), Sampling(max_tokens=5, ignore_eos=True))) for i in range(3)]
            bad = engine.submit(Generate((66, 5), Sampling(max_tokens=5)))
        assert all(len(cast(Generation, stream.result(timeout=60)).token_ids) == 5 for stream in good)
        with pytest.raises(RuntimeError, match="bad token"):
            bad.result(timeout=60)
        assert (engine.running, engine.waiting) == (0, 0)


def test_out_of_memory_fails_that_batch_and_later_requests_work(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(base) as engine:
        calls: list[int] = []

        def first_error(batch: FlatBatch) -> BaseException | None:
            calls.append(len(batch.tokens))
            return MemoryError("no room") if len(calls) == 1 else None

        _failing(engine, monkeypatch, first_error)
        with pytest.raises(RuntimeError, match="no room"):
            engine.run([Generate((5, i), Sampling(max_tokens=5)) for i in range(3)])
        assert len(calls) == 1
        assert engine.run([Generate((5,), Sampling(max_tokens=5, ignore_eos=True))])[0].usage.completion_tokens == 5
        before = engine.stats().cache_bytes
        assert before == 0 or before > 0
        assert (engine.running, engine.waiting) == (0, 0)


def test_one_rows_sampling_error_spares_its_neighbours(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = runner_module.sample

    def fails(logits: torch.Tensor, rows: Any) -> torch.Tensor:
        if any(row.prompt[0] == 66 for row in rows):
            raise RuntimeError("bad row")
        return sample(logits, rows)

    monkeypatch.setattr(runner_module, "sample", fails)
    with Engine(base, kernel="torch") as engine:
        with engine.exclusive():
            good = engine.submit(Generate((5, 6), Sampling(max_tokens=5, ignore_eos=True)))
            bad = engine.submit(Generate((66, 5), Sampling(max_tokens=5)))
        assert cast(Generation, good.result(timeout=60)).usage.completion_tokens == 5
        with pytest.raises(RuntimeError, match="bad row"):
            bad.result(timeout=60)


def test_a_hung_step_is_seen_from_outside(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(base) as engine:
        hung, go_on = threading.Event(), threading.Event()

        def block(batch: FlatBatch) -> None:
            hung.set()
            go_on.wait(60)

        _failing(engine, monkeypatch, block)
        assert not engine.stalled(0.0)
        stream = engine.submit(Generate((5,), Sampling(max_tokens=1)))
        assert hung.wait(60)
        time.sleep(0.05)
        assert engine.stalled(0.04)
        assert not engine.stalled(60)
        go_on.set()
        stream.result(timeout=60)
        assert not engine.stalled(1.0)


def test_tenants_share_the_skins_part_and_nothing_else(base: Base) -> None:
    skin, text = random_prompt(1, 40), random_prompt(2, 30)
    with Engine(base) as engine:

        def cached(tenant: str, tokens: tuple[int, ...], shared: int) -> int:
            request = Generate(tokens, Sampling(max_tokens=4, ignore_eos=True), tenant=tenant, shared_tokens=shared)
            return engine.run([request])[0].usage.cached_tokens

        assert cached("a", skin + text, 40) == 0
        assert cached("b", skin + text, 40) == 40
        assert cached("b", skin + text, 40) == 69
        assert cached("a", skin + text + random_prompt(3, 5), 40) >= 69
        # Without a skin's prompt everything is the tenant's.
        assert cached("a", skin + text, 0) == 0
        assert cached("c", skin + text, 0) == 0
        assert cached("c", skin + text, 0) == 69
        # What a model said to one tenant is the tenant's as well, even right behind the shared part.
        whole = cast(Generation, engine.run([Generate(skin, Sampling(max_tokens=20, ignore_eos=True), tenant="a")])[0])
        assert cached("d", skin + whole.token_ids, 40) == 40


def test_the_cache_is_bounded_and_counts_right(base: Base) -> None:
    token_bytes = 2 * 3 * 2 * 8 * 4
    with Engine(base, cache_bytes=200 * token_bytes) as engine:
        for i in range(12):
            engine.run([Generate(random_prompt(i, 50), Sampling(max_tokens=2))])
            assert 0 < engine.stats().cache_bytes <= 200 * token_bytes
        assert engine.stats().evictions > 0
        before = engine.stats()
        assert (before.prompt_tokens, before.prefix_queries) == (12 * 50 - before.prefix_hits, 12 * 50)
        engine.pin(random_prompt(50, 300))
        assert engine.stats().cache_pinned_bytes == 300 * token_bytes
        result = engine.run([Generate((*random_prompt(50, 300), 5), Sampling(max_tokens=1))])[0]
        assert result.usage.cached_tokens == 300


def test_timing_adds_up(base: Base) -> None:
    with Engine(base, max_rows=2) as engine:
        began = time.perf_counter()
        results = engine.run(
            [Generate(random_prompt(i, 30), Sampling(max_tokens=10, ignore_eos=True)) for i in range(6)]
        )
        seconds = time.perf_counter() - began
        assert all(0 <= r.timing.queued <= r.timing.first <= r.timing.total <= seconds for r in results)
        assert max(r.timing.queued for r in results) > 0
        total = sum(r.timing.compute for r in results)
        assert 0 < total <= engine.stats().step_seconds <= seconds


def test_queue_bound_counts_what_is_not_let_in(base: Base) -> None:
    with Engine(base, max_rows=1, max_waiting=2) as engine:
        running = engine.submit(Generate((5,), Sampling(max_tokens=500, ignore_eos=True)))
        next(iter(running))
        waiting = [engine.submit(Generate((6,), Sampling(max_tokens=1))) for _ in range(2)]
        with pytest.raises(BusyError):
            engine.submit(Generate((7,), Sampling(max_tokens=1)))
        running.cancel()
        for stream in waiting:
            stream.result(timeout=60)


def test_engines_under_one_lock_take_turns(base: Base) -> None:
    lock = ComputeLock()
    with Engine(base, compute=lock, max_rows=1) as first, Engine(load_base(base.path), compute=lock) as two:
        busy = first.submit(Generate((5,), Sampling(max_tokens=400, ignore_eos=True)))
        next(iter(busy))
        for i in range(5):
            assert two.submit(Embed(random_prompt(i, 20))).result(timeout=60)
        steps = list(busy.drain()[0])
        busy.cancel()
        # A turn each: five embeddings do not wait for a whole generation.
        assert len(steps) < 200
        inside: list[int] = []

        def enter_lock() -> None:
            with lock:
                inside.append(1)
                time.sleep(0.001)
                inside.append(-1)

        threads = [threading.Thread(target=enter_lock) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(sum(inside[: i + 1]) in (0, 1) for i in range(len(inside)))


def test_an_encoders_documents_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = reference_bert(0).eval()
    reference.save_pretrained(tmp_path)
    size, context = reference.config.vocab_size, reference.config.max_position_embeddings
    rng = random.Random(1)
    texts = [tuple(rng.randrange(size) for _ in range(rng.randint(1, context))) for _ in range(20)]
    with Engine(load_base(tmp_path), max_step_tokens=1) as engine:
        batches = _spied(engine, monkeypatch)
        results = engine.run([Embed(text, "mean", skin=f"s{i % 3}") for i, text in enumerate(texts)])
        assert 1 < len(batches) < 20
        assert max(len(batch.tokens) for batch in batches) <= context
        for text, result in zip(texts, results, strict=True):
            with torch.no_grad():
                states = reference(torch.tensor([text])).last_hidden_state[0]
            expected = torch.nn.functional.normalize(states.mean(0), dim=0)
            np.testing.assert_allclose(cast(Embedding, result).vector, expected.numpy(), atol=1e-5)
