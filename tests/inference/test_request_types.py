"""A request type is one file and one row: a new one runs beside the others, and nothing else knows of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.inference.mixtures import mixture, random_prompt
from tests.inference.toy_requests import (
    Denoise,
    DenoiseJob,
    DenoisingDecoder,
    Feedback,
    FeedbackJob,
    Likeliest,
    LikeliestJob,
    Norm,
    NormJob,
    reference_denoised,
)
from tests.references import reference_bert
from tests.tiny import write_tiny_base

from bedplate.core.errors import DeadlineError, RequestError
from bedplate.inference.engine import requests
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, PromptVectors, Sampling
from bedplate.inference.engine.requests.table import JOB_TYPES
from bedplate.inference.native.packed_weights import unsupported
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.inputs import Inputs


@pytest.fixture(autouse=True)
def toy_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(JOB_TYPES, Norm, NormJob)
    monkeypatch.setitem(JOB_TYPES, Likeliest, LikeliestJob)


@pytest.fixture(scope="module")
def base(tiny_dir: Path) -> Base:
    return load_base(tiny_dir)


@torch.inference_mode()
def _expected(base: Base, tokens: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
    hidden = base.model(Inputs(torch.tensor([tokens]))).hidden[0]
    return float(hidden[-1].norm()), tuple(base.model.head(hidden).argmax(-1).tolist())


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("budget", [19, *(pytest.param(few, marks=pytest.mark.slow) for few in (7, 512))])
def test_new_kinds_run_in_chunks_and_from_the_cache_beside_all_others(base: Base, budget: int, paged: bool) -> None:
    shared = random_prompt(99, 30)
    prompts = [shared + random_prompt(i, 5 + 9 * i) for i in range(4)]
    mixed = mixture(16)
    with Engine(base, max_step_tokens=budget, max_rows=5, paged=paged, kernel="torch") as engine:
        alone = engine.run(mixed)
        for round_number in range(2):
            with engine.exclusive():
                streams: list[Any] = []
                for i, request in enumerate(mixed):
                    prompt = prompts[i % 4]
                    toy = (Norm, Likeliest)[i // 4 % 2](prompt, tenant=f"t{round_number}")
                    streams.append((prompt, engine.submit(request), engine.submit(toy)))
            for (prompt, stream, toy), expected in zip(streams, alone, strict=True):
                norm, likeliest = _expected(base, prompt)
                answer = toy.result(timeout=60)
                if isinstance(answer.value, float):
                    assert answer.value == pytest.approx(norm, rel=1e-4)
                else:
                    assert answer.value == likeliest
                    assert answer.usage.cached_tokens == 0
                assert answer.usage.prompt_tokens == len(prompt)
                result = stream.result(timeout=60)
                assert type(result) is type(expected)
                for name in ("token_ids", "text", "finish_reason"):
                    assert getattr(result, name, None) == getattr(expected, name, None)
        last = engine.run([Norm(prompts[3], tenant="t1")])[0]
        assert last.usage.cached_tokens >= len(prompts[3]) // 16 * 16 - 16
        assert (engine.running, engine.waiting) == (0, 0)


def test_a_new_kind_is_refused_cancelled_and_late_like_any(base: Base) -> None:
    with Engine(base, max_rows=1) as engine:
        with pytest.raises(RequestError, match="outside the vocabulary"):
            engine.submit(Norm((5, 10**6)))
        with pytest.raises(RequestError, match="no tokens"):
            engine.submit(Norm(()))
        with pytest.raises(DeadlineError):
            engine.run([Norm((5, 6), deadline=0.0)])
        with engine.exclusive():
            running = engine.submit(Generate((5,), Sampling(max_tokens=20, ignore_eos=True)))
            waiting = engine.submit(Norm(random_prompt(1, 40)))
            waiting.cancel()
        with pytest.raises(RequestError, match="cancelled"):
            waiting.result(timeout=60)
        assert running.result(timeout=60).usage.completion_tokens == 20


def test_a_new_kind_that_only_reads_runs_on_an_encoder(tmp_path: Path) -> None:
    reference_bert(0).eval().save_pretrained(tmp_path)
    base = load_base(tmp_path)
    with Engine(base) as engine:
        texts = [(1, 2, 3), (4, 5, 6, 7)]
        for text, answer in zip(texts, engine.run([Norm(text) for text in texts]), strict=True):
            with torch.inference_mode():
                expected = base.model(Inputs(torch.tensor([text]))).hidden[0, -1].norm()
            assert answer.value == pytest.approx(float(expected), rel=1e-4)


def test_the_table_has_every_request_type() -> None:
    request_types = {
        candidate
        for candidate in vars(requests).values()
        if isinstance(candidate, type) and issubclass(candidate, requests.Request)
    }
    assert request_types - {requests.Request} == set(JOB_TYPES) - {Norm, Likeliest}


# --- vectors and latents beside tokens

NATIVE_SIZES = {"hidden_size": 64, "heads": 4, "kv_heads": 2, "head_dim": 32}


@pytest.fixture
def unified(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Base:
    """A base whose model writes and denoises."""
    monkeypatch.setitem(JOB_TYPES, Feedback, FeedbackJob)
    monkeypatch.setitem(JOB_TYPES, Denoise, DenoiseJob)
    base = load_base(tiny_dir)
    base.model.__class__ = DenoisingDecoder
    return base


@torch.inference_mode()
def _fed_back(base: Base, prompt: tuple[int, ...], steps: int) -> list[float]:
    """The last state after `steps` states that were fed back, every pass from the beginning."""
    size = base.spec.hidden_size
    thoughts = torch.zeros(0, size)
    for _ in range(steps + 1):
        tokens = torch.tensor([[*prompt, *[0] * len(thoughts)]])
        mask = torch.arange(tokens.shape[1])[None] >= len(prompt)
        vectors = torch.cat([torch.zeros(len(prompt), size), thoughts])[None]
        last = base.model(Inputs(tokens, vectors=vectors, vector_mask=mask)).hidden[0, -1]
        thoughts = torch.cat([thoughts, last[None]])
    return thoughts[-1].tolist()


@pytest.mark.parametrize("paged", [False, True])
def test_vectors_and_latents_run_in_one_batch_with_text_and_answer_as_alone(unified: Base, paged: bool) -> None:
    texts = mixture(6)
    fed = [Feedback(random_prompt(50 + i, 9 + 20 * i), steps=3) for i in range(2)]
    denoised = [Denoise((), seed=i, steps=2 + i) for i in range(3)]
    with Engine(unified, max_step_tokens=24, paged=paged, kernel="torch") as engine:
        alone = [engine.run([text])[0] for text in texts]
        seen: list[tuple[bool, bool, bool]] = []
        forward = engine._runner.torch_forward  # pyright: ignore[reportPrivateUsage]
        original = type(forward).__call__

        def spy(self: Any, batch: Any) -> Any:
            fed_tokens = sum(len(part.vectors_PD) for part in batch.vectors)
            seen.append((len(batch.tokens) > fed_tokens, bool(batch.vectors), bool(batch.latents)))
            return original(self, batch)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(type(forward), "__call__", spy)
            found = engine.run([*texts, *fed, *denoised])
    assert (True, True, True) in seen  # tokens, vectors and latents, at once
    for expected, result in zip(alone, found, strict=False):
        for name in ("token_ids", "text", "finish_reason"):
            assert getattr(result, name, None) == getattr(expected, name, None)
    results: list[Any] = found[len(texts) :]
    for request, answer in zip(fed, results, strict=False):
        assert answer.value == pytest.approx(_fed_back(unified, request.tokens, request.steps), rel=1e-3, abs=1e-4)
    for request, answer in zip(denoised, results[len(fed) :], strict=True):
        assert answer.value == pytest.approx(reference_denoised(cast(Any, unified.model), request), rel=1e-5)


@pytest.mark.parametrize("kernel", ["torch", "native"])
def test_prompts_with_vectors_answer_like_their_tokens_and_are_cached_by_their_hash(
    tmp_path: Path, kernel: Any
) -> None:
    base = load_base(write_tiny_base(tmp_path / "base", **NATIVE_SIZES))
    if kernel == "native" and unsupported(base.spec, base.dtype, base.device) is not None:
        pytest.skip("no native kernel here")
    prompt = random_prompt(7, 40)
    image = base.model.embedding.weight[list(prompt[5:25])].detach()
    placeholders = (*prompt[:5], *[3] * 20, *prompt[25:])
    other = image.flip(0).contiguous()
    sampling = Sampling(max_tokens=8, ignore_eos=True)

    def seen(vectors: torch.Tensor, sha256: str) -> Generate:
        return Generate(placeholders, sampling, vectors=(PromptVectors(5, vectors, sha256),), shared_tokens=40)

    with Engine(base, kernel=kernel, max_step_tokens=16) as engine:
        written: Any = engine.run([Generate(prompt, sampling, shared_tokens=40)])[0]
        first: Any = engine.run([seen(image, "ab" * 32)])[0]
        again: Any = engine.run([seen(image, "ab" * 32)])[0]
        changed: Any = engine.run([seen(other, "cd" * 32)])[0]
        stand_ins: Any = engine.run([Generate(placeholders, sampling, shared_tokens=40)])[0]
    assert first.token_ids == again.token_ids == written.token_ids
    assert first.logprobs == pytest.approx(written.logprobs, abs=1e-4)
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (5, 39)
    assert changed.usage.cached_tokens == stand_ins.usage.cached_tokens == 5
    assert changed.token_ids != first.token_ids


def test_vectors_that_do_not_fit_are_refused(base: Base) -> None:
    size = base.spec.hidden_size
    with Engine(base) as engine:
        for start, shape in ((0, (2, size + 1)), (0, (9, size)), (3, (2, size)), (-1, (2, size))):
            with pytest.raises(RequestError, match="do not fit"):
                engine.submit(Generate((5, 6, 7, 8), vectors=(PromptVectors(start, torch.zeros(shape), "00" * 32),)))
        for sha256 in ("00", "zz" * 32, "AB" * 32, ""):
            with pytest.raises(RequestError, match="64 lower-case hexadecimal digits"):
                engine.submit(Generate((5, 6, 7, 8), vectors=(PromptVectors(0, torch.zeros(2, size), sha256),)))
        with pytest.raises(RequestError, match="cannot denoise"):
            DenoiseJob(Denoise(()), engine._adapters.base, engine._resources)  # pyright: ignore[reportPrivateUsage]
