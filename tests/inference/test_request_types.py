"""A kind of requests is one file and one row: a new one runs beside the others, and nothing else knows of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.inference.mixtures import mixture, random_prompt
from tests.inference.toy_requests import Likeliest, LikeliestJob, Norm, NormJob
from tests.references import reference_bert

from bedplate.core.errors import DeadlineError, RequestError
from bedplate.inference.engine import requests
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Sampling
from bedplate.inference.engine.requests.table import JOB_TYPES
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.inputs import Inputs


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
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
@pytest.mark.parametrize("budget", [7, 512])
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


def test_the_table_has_every_kind_that_can_be_asked() -> None:
    request_types = {
        candidate
        for candidate in vars(requests).values()
        if isinstance(candidate, type) and issubclass(candidate, requests.Request)
    }
    assert request_types - {requests.Request} == set(JOB_TYPES) - {Norm, Likeliest}
