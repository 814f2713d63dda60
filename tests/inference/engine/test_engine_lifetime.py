"""How engines and requests end: twice cancelled, closed, forked off, in the middle of what fails, with nobody left."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch
from tests.inference.engine.test_isolation import CONFIG, load, weights
from tests.inference.mixtures import mixture, random_prompt
from tests.inference.test_every_family import base_of
from tests.made import made_base
from tests.tiny import tiny_spec

from bedplate.core.errors import BedplateError, RequestError, UsageError
from bedplate.inference.engine import engine as engine_module
from bedplate.inference.engine import grammar
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Embed, Generate, Generation, Grammar, Sampling
from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.models.checkpoints.base import Base, load_base


@pytest.fixture(scope="module")
def base(tiny_dir: Path) -> Base:
    return load_base(tiny_dir)


def long(tokens: int = 300, adapter: str | None = None, prompt: tuple[int, ...] = (5, 6, 7)) -> Generate:
    return Generate(prompt, Sampling(max_tokens=tokens, ignore_eos=True), adapter=adapter)


def generate_tokens(engine: Engine, request: Generate) -> tuple[int, ...]:
    return cast(Generation, engine.submit(request).result(timeout=60)).token_ids


# Cancelling


def test_cancelling_twice_is_cancelling_once(base: Base) -> None:
    with Engine(base, adapters=1) as engine:
        engine.load_adapter("a", CONFIG, weights(base.model, 1))
        expected = generate_tokens(engine, long(adapter="a"))
        with engine.exclusive():
            running, cancelled = engine.submit(long(adapter="a")), engine.submit(long(adapter="a"))
            for _ in range(3):
                cancelled.cancel()
        with pytest.raises(RequestError, match="cancelled"):
            cancelled.result(timeout=60)
        cancelled.cancel()
        engine.unload_adapter("a")
        with pytest.raises(UsageError, match="all 1 adapter slots are in use"):
            engine.load_adapter("b", CONFIG, weights(base.model, 2))
        assert cast(Generation, running.result(timeout=60)).token_ids == expected
        running.cancel()
        engine.load_adapter("b", CONFIG, weights(base.model, 2))
        begun = engine.submit(long(400, "b"))
        next(iter(begun))
        begun.cancel()
        begun.cancel()
        engine.unload_adapter("b", wait=True)
        assert cast(Generation, begun.result(timeout=60)).finish_reason == "cancelled"
        assert (engine.running, engine.waiting, engine.bank.slots) == (0, 0, ())


def test_an_idle_engine_rests_while_a_soft_prompt_holds_what_was_unloaded(base: Base) -> None:
    with Engine(base) as engine:
        engine.load_adapter("a", CONFIG, weights(base.model, 1))
        engine.load_soft_prompt("soft", torch.randn(3, 48), "a")
        expected = generate_tokens(engine, long(5, "soft"))
        engine.unload_adapter("a")
        assert generate_tokens(engine, long(5, "soft")) == expected
        before = engine.stats().steps
        time.sleep(0.05)
        assert engine.stats().steps - before <= 1
        engine.unload_adapter("soft", wait=True)
        assert engine.bank.slots == ()


# Closing


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _refuses(engine: Engine) -> None:
    """What a closed engine says, and where it has nothing to say."""
    engine.unload_adapter("good")
    engine.unpin(random_prompt(3, 40))
    for late in (
        lambda: engine.submit(long()),
        lambda: engine.run([long()]),
        lambda: engine.load_adapter("c", CONFIG, weights(engine.base.model, 1)),
        lambda: engine.load_soft_prompt("d", torch.randn(16, 48)),
        lambda: engine.pin((5, 6)),
    ):
        with pytest.raises(UsageError, match="closed"):
            late()


@pytest.mark.parametrize("how", [{"kernel": "torch"}, {"paged": True, "slot_bytes": 1 << 22}, {}, {"speculate": False}])
def test_a_closed_engine_is_gone_at_once(tiny_dir: Path, how: dict[str, Any]) -> None:
    """Whatever it did, and whoever still holds an answer or an error of it."""
    with no_collector():
        base = load_base(tiny_dir)
        engine = Engine(base, **how)
        load(engine)
        engine.load_soft_prompt("soft", torch.randn(16, 48), "good")
        engine.pin(random_prompt(3, 40))
        engine.run(mixture(16))
        streams = [
            engine.submit(request) for request in (long(8, "good"), long(8, "soft"), long(8, "bad"), Embed((5, 6)))
        ]
        errors: list[BaseException] = []
        for stream in streams:
            try:
                stream.result(timeout=60)
            except BedplateError as error:
                errors.append(error)
        streams.append(engine.submit(long(500)))
        cache, model = engine._runner.cache, base.model
        watched = [
            weakref.ref(target) for target in (engine, engine._runner, engine._tree, engine._forward, cache, model)
        ]
        buffers = [weakref.ref(buffer) for buffer in cast(SlotCache, cache)._data.values()]
        engine.close()
        engine.close()
        assert [reference() for reference in buffers] == [None] * len(buffers)
        assert (engine.alive, engine.stats().cache_bytes, engine.stats().adapters) == (False, 0, 0)
        _refuses(engine)
        with pytest.raises(UsageError, match="the engine was closed before this request ended"):
            streams[-1].result(timeout=60)
        assert len(errors) == 1
        del engine, cache, model, base
        assert [reference() for reference in watched] == [None] * len(watched)


@pytest.mark.parametrize("how", [{"kernel": "torch"}, {"paged": True, "slot_bytes": 8 << 30}])
def test_engines_one_after_the_other_take_the_memory_of_one(how: dict[str, Any]) -> None:
    process, resident = psutil.Process(), list[int]()
    base = made_base(tiny_spec(layers=1, kv_heads=6, head_dim=64, context_length=4096))
    with no_collector():
        for number in range(20):
            before = process.memory_info().rss
            engine = Engine(base, **how)
            assert process.memory_info().rss - before < 16 << 20, "a cache is not touched before it is used"
            engine.run([long(3)])
            cache = engine._runner.cache
            assert cache is not None
            cache.reserve({0: 4096})  # 12.6 MB
            for keys, values in zip(cache.keys, cache.values, strict=True):
                keys[:400], values[:400] = 1.0, 1.0
            del cache, keys, values
            engine.close()
            del engine
            if number >= 3:
                resident.append(process.memory_info().rss)
    assert max(resident) - resident[0] < 32 << 20


def test_closing_lets_nobody_wait(base: Base) -> None:
    engine = Engine(base, max_rows=1, adapters=2)
    engine.load_adapter("a", CONFIG, weights(base.model, 1))
    begun = engine.submit(long(500, "a"))
    next(iter(begun))
    answers: list[str] = []

    def note(label: str, do: Callable[[], object]) -> None:
        try:
            do()
            answers.append(label)
        except UsageError as error:
            answers.append(f"{label}: {error}")

    def submit_forever() -> None:
        while True:
            engine.submit(long(2))

    doing: list[tuple[str, Callable[[], object]]] = [
        ("unloaded", lambda: engine.unload_adapter("a", wait=True)),
        ("waiting", lambda: engine.submit(long(5)).result(timeout=60)),
        ("asking", submit_forever),
    ]
    threads = [threading.Thread(target=note, args=job) for job in doing]
    for thread in threads:
        thread.start()
    while engine.waiting < 2:
        time.sleep(0.001)
    closers = [threading.Thread(target=engine.close) for _ in range(2)]
    for thread in closers:
        thread.start()
    for thread in (*threads, *closers):
        thread.join(timeout=60)
        assert not thread.is_alive()
    closed = "the engine was closed before this request ended"
    assert sorted(answers) == ["asking: this engine is closed; load the base again", "unloaded", f"waiting: {closed}"]
    with pytest.raises(UsageError, match=closed):
        begun.result(timeout=60)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_is_told_and_the_parent_goes_on(base: Base) -> None:
    with Engine(base) as engine:
        running = engine.submit(long(200))
        next(iter(running))
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            messages: list[str] = []
            for call in (
                lambda: engine.submit(long(1)),
                lambda: engine.run([long(1)]),
                lambda: engine.pin((5, 6)),
                lambda: engine.load_adapter("a", CONFIG, {}),
                lambda: running.result(timeout=60),
                engine.exclusive().__enter__,
                engine.close,
            ):
                try:
                    call()
                    messages.append("nothing")
                except BaseException as error:
                    messages.append(str(error))
            os.write(writes, "\n".join([*messages, str(engine.alive)]).encode())
            os._exit(0)
        os.close(writes)
        with os.fdopen(reads, encoding="utf-8") as pipe:
            messages = pipe.read().splitlines()
        os.waitpid(child, 0)
        assert all("the process that this one was forked from" in line for line in messages[:6]), messages
        assert messages[6:] == ["nothing", "False"]
        assert len(cast(Generation, running.result(timeout=60)).token_ids) == 200
        assert len(generate_tokens(engine, long(4))) == 4


# Failing


def broken(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("broken")


@pytest.mark.parametrize("paged", [False, True])
def test_what_cannot_be_kept_for_others_is_answered_all_the_same(
    base: Base, paged: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Engine(base, paged=paged, slot_bytes=1 << 22, cache_bytes=1 << 20) as engine:
        expected = generate_tokens(engine, long(20))
        monkeypatch.setattr(engine._runner.cache, "save", broken)
        streams = [engine.submit(long(20, prompt=random_prompt(i, 40))) for i in range(3)]
        assert [stream.result(timeout=60).usage.completion_tokens for stream in streams] == [20] * 3
        assert generate_tokens(engine, long(20)) == expected
        assert (engine.running, engine.waiting) == (0, 0)
        assert "could not be saved" in caplog.text


def test_what_fails_around_a_request_fails_it_alone(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is let in, guesses, takes a token, is cancelled, is told of: none of it reaches the others."""
    with Engine(base, kernel="torch", speculate=True) as engine:
        prompt = (5, 6, 7)
        expected = generate_tokens(engine, long(30, prompt=prompt))
        match = engine._tree.match
        monkeypatch.setattr(
            engine._tree, "match", lambda n, key, limit: (broken if key[0] % (1 << 64) == 66 else match)(n, key, limit)
        )
        for setting in ("draft", "accept"):
            with engine.exclusive():
                good = engine.submit(long(30, prompt=prompt))
                bad = engine.submit(long(30, prompt=(8, 9)))
                monkeypatch.setattr(engine._steps._arrivals[-1], setting, broken)
            with pytest.raises(RuntimeError, match="broken"):
                bad.result(timeout=60)
            assert cast(Generation, good.result(timeout=60)).token_ids == expected
        with engine.exclusive():
            good = engine.submit(long(30, prompt=prompt))
            bad = engine.submit(long(30, prompt=(66, 9)))
            cancelled = engine.submit(long(30, prompt=(8, 9)))
            monkeypatch.setattr(engine._steps._arrivals[-1], "cancel", broken)
            cancelled.cancel()
            heard = engine.submit(long(30, prompt=prompt))
        heard._listener = broken
        for stream in (bad, cancelled):
            with pytest.raises(RuntimeError, match="broken"):
                stream.result(timeout=60)
        for stream in (good, heard):
            assert cast(Generation, stream.result(timeout=60)).token_ids == expected
        assert (engine.running, engine.waiting) == (0, 0)


def test_a_grammar_that_was_let_go_is_not_compiled_by_the_engines_thread(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes up to half a second, in which nobody would be answered."""
    monkeypatch.setattr(grammar, "CACHED", 1)
    with Engine(base) as engine, engine.exclusive():
        sampling = Sampling(max_tokens=20, ignore_eos=True)
        streams = [engine.submit(Generate((5, 6), sampling, Grammar("choice", f'["{word}"]'))) for word in ("ab", "cd")]
        monkeypatch.setattr(grammar, "compiled", broken)
        while not all(stream.finished for stream in streams):
            engine._steps.step()
        assert [cast(Generation, stream.result(0)).text for stream in streams] == ["ab", "cd"]


def test_what_is_told_of_steps_may_fail(base: Base, caplog: pytest.LogCaptureFixture) -> None:
    with Engine(base, on_step=broken) as engine:
        assert len(generate_tokens(engine, long(5))) == 5
    assert "it is not called again" in caplog.text


def test_a_thread_that_fails_takes_its_requests_along_and_no_new_ones(
    base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(base)
    with engine.exclusive():
        stream = engine.submit(long(5))
        monkeypatch.setattr(engine._steps, "step", broken)
    with pytest.raises(RuntimeError, match="broken"):
        stream.result(timeout=60)
    with pytest.raises(UsageError, match="closed"):
        engine.submit(long(5))
    engine.close()
    assert "the engine's thread has failed" in caplog.text


def test_memory_that_runs_out_puts_the_youngest_out(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(base, kernel="torch") as engine:
        requests = [long(30, prompt=random_prompt(i, 10)) for i in range(4)]
        expected = [generate_tokens(engine, request) for request in requests]
        cache = engine._runner.cache
        assert cache is not None
        reserve = cache.reserve

        def scarce(lengths: dict[int, int]) -> dict[int, int]:
            if len(lengths) > 2 and max(lengths.values()) > 25:
                raise MemoryError("no room")
            return reserve(lengths)

        monkeypatch.setattr(cache, "reserve", scarce)
        with engine.exclusive():
            streams = [engine.submit(request) for request in requests]
        assert [cast(Generation, stream.result(timeout=60)).token_ids for stream in streams] == expected
        assert engine.stats().preemptions > 0


def test_numbers_with_which_nothing_would_run_are_refused(base: Base) -> None:
    for setting in ("max_step_tokens", "max_rows", "step_adapters"):
        with pytest.raises(UsageError, match=f"{setting} is 0"):
            Engine(base, **{setting: 0})
    with Engine(base) as engine:
        with pytest.raises(RequestError, match="the deadline is not a number"):
            engine.submit(Generate((5,), deadline=float("nan")))
        nested: list[str] = []

        def submit_nested() -> None:
            try:
                engine.run([long(1)])
            except UsageError as error:
                nested.append(str(error))

        stream = engine.submit(long(3))
        stream._listener = submit_nested
        stream.result(timeout=60)
        while len(nested) < 1:
            time.sleep(0.001)
        assert "in the middle of a step" in nested[0]


def test_states_of_a_closed_engine_are_gone(base: Base) -> None:
    with Engine(base_of("lfm2"), kernel="torch") as engine:
        engine.run([long(4)])
        cache = engine._runner.cache
        assert cache is not None
    assert not cache.states._data


def test_an_idle_engine_whose_memory_cannot_be_given_back_goes_on(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "IDLE_SECONDS", 0.01)
    allocate, failed = SlotCache._allocate, threading.Event()

    def fail(cache: SlotCache, rows: int, capacity: int) -> None:
        monkeypatch.setattr(SlotCache, "_allocate", allocate)
        failed.set()
        raise MemoryError

    with Engine(base, kernel="torch") as engine:
        answer = generate_tokens(engine, long(20))
        monkeypatch.setattr(SlotCache, "_allocate", fail)
        assert failed.wait(10)
        assert generate_tokens(engine, long(20)) == answer
