"""Requests of all sorts, forty at once, cancelled, out of time, put out, while adapters come and go: each is answered
as alone, and nothing is left behind."""

from __future__ import annotations

import queue
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tests.inference.engine.test_isolation import CONFIG, weights
from tests.inference.mixtures import free_blocks, random_prompt
from tests.inference.test_every_family import numbers
from tests.near import assert_near
from tests.tiny import write_tiny_base

from bedplate.adapters.head import Head
from bedplate.core.errors import DeadlineError, NotFiniteError, RequestError, UsageError
from bedplate.inference.engine import runner
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import (
    Classify,
    Embed,
    Generate,
    Generation,
    Grammar,
    Request,
    Result,
    Sampling,
    Score,
    Stream,
)
from bedplate.inference.forward.paged import PagedCache
from bedplate.models.checkpoints.base import Base, load_base

AT_ONCE = 40
TOKEN = 2 * 2 * 2 * 8 * 4
"""Bytes of one token's keys and values."""
STEADY = (None, None, "a", "soft", "soft.a", "bad")
CHANGING = ("b", "c")
"""Keys whose weights change now and then; each has two."""
GRAMMARS = (
    Grammar("choice", '["positive", "negative", "neutral"]'),
    Grammar("regex", "[a-e]{3,9}"),
    Grammar("json_schema", '{"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"]}'),
)
HEAD = Head(torch.randn(3, 48, generator=torch.Generator().manual_seed(1)), torch.zeros(3), ("a", "b", "c"))


def some_request(number: int) -> Request:
    rng = random.Random(number)
    common = random_prompt(rng.randrange(3), 24) if rng.random() < 0.6 else ()
    tokens = common + random_prompt(1000 + number, rng.randint(1, 30))
    of_all: dict[str, Any] = {
        "adapter": rng.choice((*STEADY, *CHANGING, *CHANGING)),
        "skin": rng.choice(("one", "two")),
        "tenant": rng.choice(("", "t", "u")),
        "shared_tokens": rng.choice((0, 24)),
    }
    roll = rng.random()
    if roll < 0.08:
        return Score(tokens, tuple(random_prompt(number + i, rng.randint(1, 5)) for i in range(3)), **of_all)
    if roll < 0.14:
        return Embed(tokens, rng.choice(("mean", "last", "first")), **of_all)
    if roll < 0.2:
        return Classify(tokens, HEAD, rng.randint(1, 2), **of_all)
    drawn: dict[str, Any] = {"temperature": 0.8, "seed": number, "top_k": rng.choice((0, 12))}
    sampling = Sampling(
        max_tokens=rng.choice((1, 4, 9, 24)),
        stop=rng.choice(((), (), ("e",), ("the", "qu"))),
        ignore_eos=rng.random() < 0.5,
        logprobs=rng.choice((None, 2)),
        frequency_penalty=rng.choice((0.0, 0.0, 0.7)),
        **(drawn | {"top_p": rng.choice((1.0, 0.9))} if rng.random() < 0.5 else {}),
    )
    return Generate(tokens, sampling, grammar=rng.choice(GRAMMARS) if rng.random() < 0.2 else None, **of_all)


def name_of(key: str, version: int) -> str:
    return f"{key}.{version}"


def load_all(engine: Engine) -> None:
    """What stays loaded."""
    model = engine.base.model
    engine.load_adapter("a", CONFIG, weights(model, 1))
    engine.load_adapter("bad", CONFIG, weights(model, 2, 1e38))
    vectors = torch.randn(16, 48, generator=torch.Generator().manual_seed(5))
    engine.load_soft_prompt("soft", vectors)
    engine.load_soft_prompt("soft.a", vectors.flip(0), "a")


def load_version(engine: Engine, key: str, version: int, under: str) -> None:
    """Waits for a slot: versions that were taken away keep theirs until their last request has ended."""
    tensors, end = weights(engine.base.model, 10 + 2 * CHANGING.index(key) + version), time.monotonic() + 60
    while True:
        try:
            return engine.load_adapter(under, CONFIG, tensors)
        except UsageError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


class Alone:
    """The answers of requests one by one, each computed once."""

    def __init__(self, base: Base) -> None:
        self.engine = Engine(base, kernel="torch", cache_bytes=0, speculate=False)
        load_all(self.engine)
        for key in CHANGING:
            for version in (0, 1):
                load_version(self.engine, key, version, name_of(key, version))
        self._results: dict[tuple[int, int], Result | None] = {}

    def __call__(self, number: int, version: int) -> Result | None:
        """None where there is no finite answer."""
        request = some_request(number)
        if request.adapter in CHANGING:
            request = replace(request, adapter=name_of(request.adapter, version))
        if (number, version) not in self._results:
            try:
                self._results[number, version] = self.engine.run([request])[0]
            except NotFiniteError:
                self._results[number, version] = None
        return self._results[number, version]


@dataclass(frozen=True, eq=False)
class Running:
    number: int
    version: int
    stream: Stream


class Company:
    """Keeps forty requests in an engine, and does to them what callers do."""

    def __init__(self, engine: Engine, variant_count: int, seed: int) -> None:
        self.engine, self.variant_count, self.rng = engine, variant_count, random.Random(seed)
        self.versions = dict.fromkeys(CHANGING, 0)
        self.pool = ThreadPoolExecutor(2)
        self.ended: queue.SimpleQueue[Running] = queue.SimpleQueue()
        load_all(engine)
        for key in CHANGING:
            load_version(engine, key, 0, key)

    def submit_next(self) -> Running:
        number = self.rng.randrange(self.variant_count)
        request = some_request(number)
        if self.rng.random() < 0.08:
            request = replace(request, deadline=time.monotonic() + self.rng.random() * 0.05)
        pending = Running(number, self.versions.get(request.adapter or "", 0), self.engine.submit(request))
        notified: list[bool] = []

        def notify() -> None:
            if pending.stream.finished and not notified:
                notified.append(True)
                self.ended.put(pending)

        pending.stream.listen(notify)
        return pending

    def run(self, count: int) -> list[Running]:
        running: dict[int, Running] = {}
        finished: list[Running] = []
        while len(finished) < count:
            while len(running) < AT_ONCE and len(running) + len(finished) < count:
                pending = self.submit_next()
                running[id(pending)] = pending
            if self.rng.random() < 0.25:
                victim = self.rng.choice(list(running.values())).stream
                for _ in range(self.rng.randint(1, 3)):
                    self.pool.submit(victim.cancel)
            if self.rng.random() < 0.02:
                key = self.rng.choice(CHANGING)
                self.engine.unload_adapter(key, wait=self.rng.random() < 0.3)
                self.versions[key] ^= 1
                load_version(self.engine, key, self.versions[key], key)
            pending = self.ended.get(timeout=120)
            if running.pop(id(pending), None) is not None:
                finished.append(pending)
        self.pool.shutdown()
        return finished

    def leave(self) -> None:
        """Nothing holds anything any more."""
        engine = self.engine
        for key in ("soft", "soft.a", "a", "bad", *CHANGING):
            engine.unload_adapter(key, wait=True)
        engine.run([Embed((5,))])  # whoever has an answer may have it before the engine has done with the request
        assert (engine.running, engine.waiting, engine._adapters.base.users, engine.bank.slots) == (0, 0, 0, ())
        engine._tree.clear()
        cache = engine._runner.cache
        assert engine.stats().cache_bytes == 0
        assert not isinstance(cache, PagedCache) or free_blocks(cache) == cache.blocks


def outcome(finished: Running, alone: Result | None) -> str:
    """How a request ended, which is checked against its answer alone."""
    stream, label = finished.stream, f"request {finished.number}, version {finished.version}"
    steps, _ = stream.drain()
    try:
        result = stream.result(0)
    except DeadlineError:
        assert stream.request.deadline is not None, label
        return "deadline"
    except NotFiniteError:
        assert alone is None, label
        return "not finite"
    except RequestError:
        assert stream.cancelled, label
        return "cancelled before"
    assert alone is not None, label
    if isinstance(result, Generation):
        assert isinstance(alone, Generation), label
        assert "".join(step.text for step in steps) == result.text, label
        if result.finish_reason == "cancelled":
            assert stream.cancelled, label
            assert result.token_ids == alone.token_ids[: len(result.token_ids)], label
            return "cancelled"
        assert (result.token_ids, result.text, result.finish_reason) == (
            alone.token_ids,
            alone.text,
            alone.finish_reason,
        ), label
    assert_near(numbers(result), numbers(alone), 2e-4, label)
    return "answered"


def check_variety(answered: list[Request]) -> None:
    """Whatever a request may have was there."""
    texts = [request for request in answered if isinstance(request, Generate)]
    assert {type(request) for request in answered} == {Generate, Score, Embed, Classify}
    assert {request.adapter for request in texts} == {*STEADY, *CHANGING} - {"bad"}
    assert {request.tenant for request in texts} == {"", "t", "u"}
    assert {request.grammar for request in texts} == {None, *GRAMMARS}
    assert (
        {bool(request.sampling.stop) for request in texts}
        == {request.sampling.seed is None for request in texts}
        == {False, True}
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(write_tiny_base(tmp_path_factory.mktemp("concurrent") / "tiny", layers=2))


@pytest.fixture(scope="module")
def alone(base: Base) -> Any:
    one_by_one = Alone(base)
    yield one_by_one
    one_by_one.engine.close()


@pytest.mark.parametrize("paged", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    ("count", "variant_count"),
    [(220, 80), pytest.param(10_000, 2_000, marks=(pytest.mark.slow, pytest.mark.timeout(1800)))],
)
def test_forty_at_once_are_answered_as_one_by_one(
    base: Base, alone: Alone, paged: bool, count: int, variant_count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "HEADROOM", 0)
    scarce = (0 if paged else 200) * TOKEN  # blocks are shared with the prefix cache
    with Engine(
        base,
        kernel="torch",
        speculate=True,
        paged=paged,
        adapters=8,
        step_adapters=4,
        max_rows=12,
        max_step_tokens=48,
        slot_bytes=scarce,
        cache_bytes=(250 if paged else 400) * TOKEN,
    ) as engine:
        company = Company(engine, variant_count, seed=count + paged)
        finished = company.run(count)
        stats = engine.stats()
        company.leave()
    ends = [outcome(run, alone(run.number, run.version)) for run in finished]
    outcomes = Counter(ends)
    assert outcomes.total() == count
    check_variety([run.stream.request for run, end in zip(finished, ends, strict=True) if end == "answered"])
    print(f"{'pages' if paged else 'slots'}: {dict(outcomes)}, {stats}")
    assert (
        min(outcomes[ending] for ending in ("answered", "cancelled", "cancelled before", "deadline", "not finite")) > 0
    )
    assert stats.preemptions > 0
    assert stats.evictions > 0
    assert stats.prefix_hits > 0
    assert stats.accepted > 0
