"""The engine against transformers, and against itself where two ways must agree: batched, cached, shared, alone."""

from __future__ import annotations

import gc
import random
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import write_tiny_base

from bedplate.adapters.head import Head
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears
from bedplate.core.errors import BusyError, ContextLengthExceeded, RequestError, UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import (
    Classification,
    Classify,
    Embed,
    Embedding,
    Generate,
    Generation,
    Sampling,
    Score,
    Scores,
)
from bedplate.inference.predict.local import LocalModel
from bedplate.models.checkpoints.base import load_base
from bedplate.models.inputs import Inputs


def _prompts(count: int, seed: int = 0, low: int = 1, high: int = 60) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(3, 300) for _ in range(rng.randint(low, high))) for _ in range(count)]


def _generate(engine: Engine, requests: list[Generate]) -> list[Generation]:
    return [cast(Generation, result) for result in engine.run(requests)]


def test_greedy_equals_transformers(model: LocalModel, reference: Any) -> None:
    prompts = _prompts(12)
    ours = _generate(model.engine, [Generate(p, Sampling(max_tokens=20, ignore_eos=True)) for p in prompts])
    for prompt, result in zip(prompts, ours, strict=True):
        theirs = reference.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert result.token_ids == tuple(theirs[0, len(prompt) :].tolist())
        assert result.finish_reason == "length"


def test_logprobs_of_prompt_and_output_equal_transformers(model: LocalModel, reference: Any) -> None:
    for prompt in _prompts(4, seed=1, low=2):
        settings_ = Sampling(max_tokens=8, ignore_eos=True, logprobs=5, prompt_logprobs=2)
        result = _generate(model.engine, [Generate(prompt, settings_)])[0]
        whole = torch.tensor([[*prompt, *result.token_ids]])
        expected = reference(whole).logits[0].log_softmax(-1)
        of_tokens = expected[:-1].gather(1, whole[0, 1:, None])[:, 0]
        assert result.prompt_logprobs is not None
        assert result.prompt_logprobs[0] is None
        np.testing.assert_allclose(result.prompt_logprobs[1:], of_tokens[: len(prompt) - 1].tolist(), atol=2e-5)
        np.testing.assert_allclose(result.logprobs, of_tokens[len(prompt) - 1 :].tolist(), atol=2e-5)
        for i, top in enumerate(result.top_logprobs):
            values, ids = expected[len(prompt) - 1 + i].topk(5)
            assert [token for token, _ in top] == ids.tolist()
            np.testing.assert_allclose([value for _, value in top], values.tolist(), atol=2e-5)


def test_log_probabilities_are_few_objects_to_the_garbage_collector(model: LocalModel) -> None:
    """A reply may have millions of them, and a full collection visits every object while nothing else runs."""
    prompt, settings_ = tuple(range(3, 63)), Sampling(max_tokens=8, ignore_eos=True, logprobs=20, prompt_logprobs=20)
    gc.disable()
    try:
        result = _generate(model.engine, [Generate(prompt, settings_)])[0]
        alternatives = [*result.prompt_top_logprobs, *result.top_logprobs]
        inner = [entry for top in alternatives for entry in gc.get_referents(top)]
        tracked = [entry for entry in (*alternatives, *inner) if gc.is_tracked(entry) and not isinstance(entry, type)]
        assert [len(top) for top in alternatives] == [0, *[20] * (len(prompt) - 1 + 8)]
        assert len(tracked) <= len(alternatives)
    finally:
        gc.enable()


def test_batch_equals_one_by_one(model: LocalModel) -> None:
    prompts = _prompts(30, seed=2)
    requests = [Generate(p, Sampling(max_tokens=5 + i % 17)) for i, p in enumerate(prompts)]
    together = _generate(model.engine, requests)
    for request, batched in zip(requests, together, strict=True):
        alone = _generate(model.engine, [request])[0]
        assert (alone.token_ids, alone.text, alone.finish_reason) == (
            batched.token_ids,
            batched.text,
            batched.finish_reason,
        )
        np.testing.assert_allclose(alone.logprobs, batched.logprobs, atol=1e-5)


def test_shared_beginnings_are_computed_once_and_change_nothing(model: LocalModel) -> None:
    common = _prompts(1, seed=3, low=40, high=40)[0]
    prompts = [common + suffix for suffix in _prompts(9, seed=4, low=1, high=9)]
    continuations = ((5,), (6, 7, 8), (9, 10))
    shared = [cast(Scores, r) for r in model.engine.run([Score(p, continuations) for p in prompts])]
    # One of them computes the 40 common tokens, the others find them.
    assert sorted(result.usage.cached_tokens >= 40 for result in shared) == [False] + [True] * 8
    for i, (prompt, result) in enumerate(zip(prompts, shared, strict=True)):
        alone = cast(Scores, model.engine.run([Score(prompt, continuations, tenant=f"alone {i}")])[0])
        assert alone.usage.cached_tokens == 0
        np.testing.assert_allclose(alone.totals, result.totals, atol=1e-4)
    greedy = [Generate(p, Sampling(max_tokens=12, ignore_eos=True)) for p in prompts]
    for i, (request, batched) in enumerate(zip(greedy, _generate(model.engine, greedy), strict=True)):
        assert batched.usage.cached_tokens >= 40
        isolated = _generate(model.engine, [replace(request, tenant=f"apart {i}")])[0]
        assert (isolated.usage.cached_tokens, isolated.token_ids) == (0, batched.token_ids)


def test_equal_prompts_share_all_but_their_last_token(model: LocalModel) -> None:
    prompt = _prompts(1, seed=5, low=30, high=30)[0]
    results = _generate(model.engine, [Generate(prompt, Sampling(max_tokens=4), tenant="new")] * 3)
    assert sorted(result.usage.cached_tokens for result in results) == [0, 29, 29]
    assert len({result.token_ids for result in results}) == 1


def test_salted_requests_do_not_share(model: LocalModel) -> None:
    prompt = _prompts(1, seed=6, low=30, high=30)[0]
    results = _generate(model.engine, [Generate(prompt, Sampling(max_tokens=2), tenant=s) for s in ("a", "b")])
    assert [result.usage.cached_tokens for result in results] == [0, 0]


def test_pinned_prefix_is_used_and_changes_nothing(model: LocalModel) -> None:
    prefix, suffix = _prompts(2, seed=7, low=20, high=20)
    first, two, three = (Generate(prefix + suffix, Sampling(max_tokens=10), tenant=f"pin {i}") for i in range(3))
    before = _generate(model.engine, [first])[0]
    model.engine.pin(prefix)
    try:
        after = _generate(model.engine, [two])[0]
    finally:
        model.engine.unpin(prefix)
    assert (before.usage.cached_tokens, after.usage.cached_tokens) == (0, 20)
    assert before.token_ids == after.token_ids
    # What is no longer pinned is no longer everybody's.
    assert _generate(model.engine, [three])[0].usage.cached_tokens == 0


def test_scores_equal_transformers_teacher_forced(model: LocalModel, reference: Any) -> None:
    prompts = _prompts(8, seed=8)
    continuations = ((11,), (12, 13), (14, 15, 16, 17))
    for prompt, result in zip(prompts, model.engine.run([Score(p, continuations) for p in prompts]), strict=True):
        for continuation, total in zip(continuations, cast(Scores, result).totals, strict=True):
            logits = reference(torch.tensor([prompt + continuation])).logits[0].log_softmax(-1)
            expected = sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(continuation))
            assert total == pytest.approx(expected, abs=1e-4)


def test_embeddings_pool_the_last_hidden_state(model: LocalModel, reference: Any) -> None:
    prompts = _prompts(5, seed=9)
    for pooling in ("mean", "first", "last"):
        results = model.engine.run([Embed(p, pooling) for p in prompts])
        for prompt, result in zip(prompts, results, strict=True):
            states = reference.model(torch.tensor([prompt])).last_hidden_state[0]
            vector = {"mean": states.mean(0), "first": states[0], "last": states[-1]}[pooling]
            expected = (vector / vector.norm()).detach().numpy()
            np.testing.assert_allclose(cast(Embedding, result).vector, expected, atol=1e-5)


def test_classify_reads_the_hidden_state_of_its_depth(model: LocalModel, reference: Any) -> None:
    head = Head(torch.randn(3, 48), torch.randn(3), ("a", "b", "c"))
    prompts = [_prompts(1, seed=10, low=20, high=20)[0] + suffix for suffix in _prompts(6, seed=11)]
    for depth in (1, 2):
        for prompt, result in zip(prompts, model.engine.run([Classify(p, head, depth) for p in prompts]), strict=True):
            states = reference(torch.tensor([prompt]), output_hidden_states=True).hidden_states[depth][0]
            expected = (states[-1] @ head.weight.T + head.bias).tolist()
            np.testing.assert_allclose(cast(Classification, result).scores, expected, atol=1e-4)


def test_mixed_adapters_and_base_equal_separate_runs(tiny_dir: Path) -> None:
    with LocalModel(load_base(tiny_dir)) as model:
        linears = block_linears(model.base.model)
        for i, rank in enumerate((2, 4)):
            generator = torch.Generator().manual_seed(i)
            tensors = {}
            for path, linear in linears.items():
                tensors[f"{path}.lora_A"] = torch.randn(rank, linear.in_features, generator=generator) * 0.2
                tensors[f"{path}.lora_B"] = torch.randn(linear.out_features, rank, generator=generator) * 0.2
            model.engine.load_adapter(f"skin{i}", LoraConfig(r=rank, alpha=2 * rank), tensors)
        prompts = _prompts(12, seed=12)
        keys = [None, "skin0", "skin1"]
        requests = [Generate(p, Sampling(max_tokens=9), adapter=keys[i % 3]) for i, p in enumerate(prompts)]
        together = _generate(model.engine, requests)
        alone = [_generate(model.engine, [request])[0] for request in requests]
        assert [r.token_ids for r in together] == [r.token_ids for r in alone]
        base = [_generate(model.engine, [Generate(p, Sampling(max_tokens=9))])[0] for p in prompts]
        assert [r.token_ids for r in base[1::3]] != [r.token_ids for r in alone[1::3]]
        with pytest.raises(UsageError, match="loaded already"):
            model.engine.load_adapter("skin0", LoraConfig(r=2), {})
        model.engine.unload_adapter("skin0")
        with pytest.raises(RequestError, match="skin0"):
            model.engine.submit(Generate((1, 2), adapter="skin0"))


def test_stream_concatenates_to_the_result(model: LocalModel) -> None:
    stream = model.engine.submit(Generate(_prompts(1, seed=13)[0], Sampling(max_tokens=30, ignore_eos=True)))
    steps = list(stream)
    result = cast(Generation, stream.result())
    assert "".join(step.text for step in steps) == result.text
    assert tuple(step.token_id for step in steps if step.token_id is not None) == result.token_ids
    assert [step.finish_reason for step in steps if step.finish_reason] == ["length"]


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_stop_strings_end_the_text_wherever_they_fall(model: LocalModel, data: st.DataObject) -> None:
    prompt = _prompts(1, seed=data.draw(st.integers(0, 5)))[0]
    whole = _generate(model.engine, [Generate(prompt, Sampling(max_tokens=24, ignore_eos=True))])[0].text
    start = data.draw(st.integers(0, max(len(whole) - 2, 0)))
    stop = whole[start : start + data.draw(st.integers(1, 6))]
    if not stop:
        return
    request = Generate(prompt, Sampling(max_tokens=24, ignore_eos=True, stop=(stop, "never there")))
    stream = model.engine.submit(request)
    streamed = "".join(step.text for step in stream)
    result = cast(Generation, stream.result())
    assert result.text == streamed == whole[: whole.index(stop)]
    assert result.finish_reason == "stop"


def test_seeded_sampling_does_not_depend_on_the_batch(model: LocalModel) -> None:
    prompts = _prompts(10, seed=14)
    requests = [
        Generate(p, Sampling(max_tokens=12, temperature=0.9, top_p=0.95, seed=i)) for i, p in enumerate(prompts)
    ]
    together = [r.token_ids for r in _generate(model.engine, requests)]
    assert together == [_generate(model.engine, [request])[0].token_ids for request in requests]
    reseeded = [Generate(r.tokens, Sampling(max_tokens=12, temperature=0.9, top_p=0.95, seed=99)) for r in requests]
    assert together != [r.token_ids for r in _generate(model.engine, reseeded)]


def test_bad_requests_are_refused_by_name(model: LocalModel) -> None:
    engine = model.engine
    with pytest.raises(RequestError, match="no tokens"):
        engine.submit(Generate(()))
    with pytest.raises(RequestError, match="outside the vocabulary"):
        engine.submit(Generate((1, 10**6)))
    with pytest.raises(ContextLengthExceeded, match="512"):
        engine.submit(Generate((1,) * 500, Sampling(max_tokens=13)))
    with pytest.raises(RequestError, match="continuations"):
        engine.submit(Score((1,), ()))
    for bad in ({"temperature": float("nan")}, {"top_p": 0.0}, {"seed": 2**63}, {"stop": ("",)}, {"max_tokens": -1}):
        with pytest.raises(RequestError) as caught:
            Sampling(**bad)
        assert caught.value.param == next(iter(bad))
    # max_tokens None goes to the context's end and not beyond.
    result = _generate(engine, [Generate((5,) * 500, Sampling(max_tokens=None, ignore_eos=True))])[0]
    assert result.usage.completion_tokens == 12


def test_cancelled_generation_keeps_what_it_has_and_frees_its_row(model: LocalModel) -> None:
    stream = model.engine.submit(Generate((5, 6, 7), Sampling(max_tokens=400, ignore_eos=True)))
    first = next(iter(stream))
    stream.cancel()
    result = cast(Generation, stream.result(timeout=10))
    assert result.finish_reason == "cancelled"
    assert result.token_ids[0] == first.token_id
    assert len(result.token_ids) < 400
    assert _generate(model.engine, [Generate((5, 6, 7), Sampling(max_tokens=3, ignore_eos=True))])[0].token_ids


def test_many_threads_get_their_own_answers(model: LocalModel) -> None:
    prompts = _prompts(24, seed=15)
    expected = [_generate(model.engine, [Generate(p, Sampling(max_tokens=8))])[0].token_ids for p in prompts]
    answers: dict[int, tuple[int, ...]] = {}

    def submit(i: int) -> None:
        time.sleep(random.random() * 0.02)
        answers[i] = cast(
            Generation, model.engine.submit(Generate(prompts[i], Sampling(max_tokens=8))).result()
        ).token_ids

    threads = [threading.Thread(target=submit, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[i] for i in range(len(prompts))] == expected


def test_runs_compute_in_the_callers_thread_and_submissions_in_the_engines(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(load_base(tiny_dir)) as engine:
        thread_names: list[str] = []
        step = engine._steps.step
        monkeypatch.setattr(
            engine._steps, "step", lambda: (thread_names.append(threading.current_thread().name), step())
        )
        for _ in range(100):
            engine.run([Generate((5, 6), Sampling(max_tokens=1))])
        assert set(thread_names) == {threading.current_thread().name}
        thread_names.clear()
        engine.submit(Generate((5, 6), Sampling(max_tokens=1))).result(timeout=10)
        assert set(thread_names) == {"bedplate-engine"}


def test_an_interrupted_run_leaves_an_engine_that_works(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(load_base(tiny_dir)) as engine:
        step, countdown = engine._steps.step, [3]

        def interrupted() -> None:
            countdown[0] -= 1
            if countdown[0] < 0:
                raise KeyboardInterrupt
            step()

        monkeypatch.setattr(engine._steps, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.run([Generate((5, 6), Sampling(max_tokens=50, ignore_eos=True))] * 2)
        monkeypatch.setattr(engine._steps, "step", step)
        assert engine.running == 0
        assert len(_generate(engine, [Generate((5, 6), Sampling(max_tokens=4, ignore_eos=True))])[0].token_ids) == 4
        assert engine.waiting == 0


def test_a_full_queue_says_so_and_a_failing_step_fails_its_request_alone(tiny_dir: Path) -> None:
    engine = Engine(load_base(tiny_dir), max_waiting=2)
    with engine, engine.exclusive():
        # The thread cannot take them: the base is ours meanwhile.
        for _ in range(2):
            engine.submit(Generate((5,), Sampling(max_tokens=1)))
        assert engine.waiting == 2
        with pytest.raises(BusyError, match="2 requests are waiting"):
            engine.submit(Generate((5,), Sampling(max_tokens=1)))
    bad = Head(torch.randn(2, 7), torch.randn(2), ("a", "b"))
    with Engine(load_base(tiny_dir)) as second_engine:
        with second_engine.exclusive():
            good = second_engine.submit(Classify((5, 6), Head(torch.randn(2, 48), torch.randn(2), ("a", "b")), 2))
            failing = second_engine.submit(Classify((5, 6), bad, 2))
        assert isinstance(good.result(timeout=10), Classification)
        with pytest.raises(Exception, match="7 features"):
            failing.result(timeout=10)
        assert isinstance(second_engine.run([Generate((5,), Sampling(max_tokens=1))])[0], Generation)


def test_closing_fails_what_has_not_ended(tiny_dir: Path) -> None:
    engine = Engine(load_base(tiny_dir))
    stream = engine.submit(Generate((5,), Sampling(max_tokens=500, ignore_eos=True)))
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        stream.result(timeout=60)
    with pytest.raises(UsageError, match="closed"):
        engine.submit(Generate((5,)))


def test_bfloat16_stays_near_float32_under_teacher_forcing(tiny_dir: Path, model: LocalModel) -> None:
    with LocalModel(load_base(tiny_dir, dtype="bfloat16")) as rough:
        for prompt in _prompts(3, seed=16, low=20):
            exact, rounded = (torch.from_numpy(variant.logits(prompt)) for variant in (model, rough))
            # The oracle of what bfloat16 may cost is the plain forward pass of rounded weights.
            tokens = torch.tensor([list(prompt)])
            plain = rough.base.model.head(rough.base.model(Inputs(tokens)).hidden[0]).float()
            assert (rounded - plain).norm() / plain.norm() < 0.02
            assert (rounded - exact).norm() / exact.norm() < 0.1


def test_a_base_without_a_tokenizer_takes_ids(tmp_path: Path) -> None:
    directory = write_tiny_base(tmp_path / "ids-only", tokenizer=False)
    with LocalModel(load_base(directory)) as model:
        assert len(model.generate([5, 6, 7], max_tokens=3).token_ids) == 3
        with pytest.raises(Exception, match=r"tokenizer\.json"):
            model.generate("text")
