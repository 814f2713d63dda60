"""Weights that are updated while requests run: adapters keep the version they began with, a base is computed again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.inference.mixtures import random_prompt
from tests.tiny import write_tiny_base
from torch import Tensor

from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears
from bedplate.core.errors import BedplateError, TrainingError, UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Generation, Sampling
from bedplate.inference.execution.plan import Kernel, Weights
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.training.precision import Arithmetic, computing

CONFIG = LoraConfig(r=4, alpha=8)
PROMPT = random_prompt(3, 40)


def _tensors(base: Base, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for path, linear in block_linears(base.model).items():
        tensors[f"{path}.lora_A"] = torch.randn(4, linear.in_features, generator=generator) * 0.2
        tensors[f"{path}.lora_B"] = torch.randn(linear.out_features, 4, generator=generator) * 0.2
    return tensors


def _request(count: int = 10, adapter: str | None = "a", **more: Any) -> Generate:
    return Generate(PROMPT, Sampling(max_tokens=count, ignore_eos=True), adapter=adapter, **more)


def _answer(engine: Engine, count: int = 10, adapter: str | None = "a", **more: Any) -> Generation:
    return cast(Generation, engine.run([_request(count, adapter, **more)])[0])


@pytest.fixture
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine(load_base(tiny_dir), adapters=2, kernel="torch") as opened:
        yield opened


def _fresh(tiny_dir: Path, seed: int, count: int) -> tuple[int, ...]:
    """What an engine answers that has only ever had these adapter weights."""
    with Engine(load_base(tiny_dir), kernel="torch") as alone:
        alone.load_adapter("a", CONFIG, _tensors(alone.base, seed))
        return _answer(alone, count).token_ids


def test_an_update_puts_the_older_cache_out_of_reach_and_keeps_pinned_prefixes(engine: Engine, tiny_dir: Path) -> None:
    engine.load_adapter("a", CONFIG, _tensors(engine.base, 1))
    engine.pin(PROMPT[:20], "a")
    before = _answer(engine)
    assert _answer(engine).usage.cached_tokens == len(PROMPT) - 1
    prints = [engine.fingerprint("a")]
    assert engine.update("a", _tensors(engine.base, 2)) == 2
    after = _answer(engine)
    assert after.usage.cached_tokens == 20  # the pinned part, computed anew
    assert after.token_ids == _fresh(tiny_dir, 2, 10) != before.token_ids
    prints.append(engine.fingerprint("a"))
    assert engine.update("a", _tensors(engine.base, 1)) == 3
    assert _answer(engine).token_ids == before.token_ids
    prints.append(engine.fingerprint("a"))
    assert prints[0] == prints[2] != prints[1]
    assert len(engine.bank.slots) == 1


def test_running_requests_end_on_the_version_that_they_began_with(engine: Engine, tiny_dir: Path) -> None:
    engine.load_adapter("a", CONFIG, _tensors(engine.base, 1))
    running = engine.submit(_request(100))
    next(iter(running))
    engine.update("a", _tensors(engine.base, 2))
    later = engine.submit(_request(10))
    assert (running.weights_version, later.weights_version) == (1, 2)
    assert cast(Generation, later.result(60)).token_ids == _fresh(tiny_dir, 2, 10)
    assert cast(Generation, running.result(60)).token_ids == _fresh(tiny_dir, 1, 100)
    engine.unload_adapter("a", wait=True)
    assert engine.bank.slots == ()


def test_updates_under_traffic_answer_each_request_by_one_version(engine: Engine, tiny_dir: Path) -> None:
    expected = {seed: _fresh(tiny_dir, seed, 6) for seed in (1, 2)}
    engine.load_adapter("a", CONFIG, _tensors(engine.base, 1))
    answers: list[tuple[int, tuple[int, ...]]] = []
    stop = threading.Event()

    def ask(tenant: str) -> None:
        while not stop.is_set():
            stream = engine.submit(_request(6, tenant=tenant))
            answers.append((stream.weights_version, cast(Generation, stream.result(60)).token_ids))

    threads = [threading.Thread(target=ask, args=(f"t{i % 2}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for number in range(6):
        made = False
        while not made:  # an older version may still have both spare slots
            with contextlib.suppress(UsageError):
                made = engine.update("a", _tensors(engine.base, 2 - number % 2)) > 0
    stop.set()
    for thread in threads:
        thread.join()
    assert answers
    for version, tokens in answers:
        assert tokens == expected[2 - version % 2]


def test_an_update_that_cannot_be_leaves_the_older_version(engine: Engine) -> None:
    engine.load_adapter("a", CONFIG, _tensors(engine.base, 1))
    before = _answer(engine)
    for tensors in ({}, {"nowhere.lora_A": torch.zeros(4, 4)}):
        with pytest.raises(BedplateError):
            engine.update("a", tensors)
    with pytest.raises(UsageError, match="no adapter 'b'"):
        engine.update("b", {})
    engine.load_soft_prompt("soft", torch.randn(4, engine.base.spec.hidden_size), "a")
    with pytest.raises(UsageError, match="soft prompt"):
        engine.update("a", _tensors(engine.base, 2))
    with pytest.raises(UsageError, match="soft prompt"):
        engine.update("soft", {})
    assert len({engine.fingerprint(key) for key in (None, "a", "soft")}) == 3
    assert _answer(engine).token_ids == before.token_ids


@pytest.mark.parametrize("paged", [False, True])
def test_a_base_is_updated_under_running_requests_which_are_computed_again(tiny_dir: Path, paged: bool) -> None:
    with Engine(load_base(tiny_dir), kernel="torch", paged=paged) as engine:
        first = engine.fingerprint()
        before = _answer(engine, 12, None)
        changed = {
            name: tensor + 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
            for name, tensor in engine.base.model.named_parameters()
            if "layers.1" in name
        }
        running = engine.submit(_request(150, None))
        next(iter(running))
        assert engine.update(None, changed) == 2
        begun = cast(Generation, running.result(60)).token_ids
        after = _answer(engine, 12, None, tenant="new")
        assert engine.fingerprint() != first
        # What was generated stays; what follows is the new weights' continuation of it.
        again = Generate((*PROMPT, *begun[:149]), Sampling(max_tokens=1, ignore_eos=True))
        assert cast(Generation, engine.run([again])[0]).token_ids == begun[149:]
        with Engine(engine.base, kernel="torch", paged=paged) as fresh:
            assert _answer(fresh, 12, None).token_ids == after.token_ids != before.token_ids
        for bad in ({"nowhere": torch.zeros(1)}, {next(iter(changed)): torch.zeros(1)}):
            with pytest.raises(UsageError, match="does not fit"):
                engine.update(None, bad)
        engine.pin(PROMPT[:16])
        with pytest.raises(UsageError, match="remove them first"):
            engine.update(None, changed)


def test_training_converts_no_weights_under_an_engine_that_shares_them(engine: Engine) -> None:
    models, other = {"policy": engine.base.model}, Arithmetic("bfloat16")
    with pytest.raises(TrainingError, match="an engine computes with these weights"), computing(models, other):
        pass
    with engine.exclusive(), computing(models, other):
        assert {p.dtype for p in engine.base.model.parameters()} == {torch.bfloat16}
        with pytest.raises(UsageError, match="has converted this engine's weights"):
            _answer(engine, adapter=None)
    assert len(_answer(engine, adapter=None).token_ids) == 10
    engine.close()
    with computing(models, other):
        assert engine.base.model.converted


def _changed_base(engine: Engine) -> dict[str, Tensor]:
    """New values of the first parameter in a block."""
    name, parameter = next((n, p) for n, p in engine.base.model.named_parameters() if "layers.1" in n)
    return {name: parameter.detach() + 0.1}


def test_an_adapter_that_is_unloaded_during_its_update_leaves_no_slot(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.load_adapter("a", CONFIG, _tensors(engine.base, 1))
    engine.pin(PROMPT[:20], "a")
    compute_prefix = engine._runner.compute_prefix

    def unload_meanwhile(*args: Any, **options: Any) -> None:
        compute_prefix(*args, **options)
        engine._adapters.retire("a")

    monkeypatch.setattr(engine._runner, "compute_prefix", unload_meanwhile)
    with pytest.raises(UsageError, match="was unloaded during its update"):
        engine.update("a", _tensors(engine.base, 2))
    engine._adapters.sweep()
    assert engine.bank.slots == ()
    assert engine.stats().cache_bytes == 0


def test_a_soft_prompt_that_fails_before_its_prefix_lets_its_adapter_go(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.load_adapter("a", CONFIG, _tensors(engine.base, 1))

    def broken(slot: int) -> dict[str, Tensor]:
        raise MemoryError("no room")

    monkeypatch.setattr(engine.bank, "state", broken)
    with pytest.raises(MemoryError):
        engine.load_soft_prompt("soft", torch.randn(4, engine.base.spec.hidden_size), "a")
    engine.unload_adapter("a")
    assert engine.bank.slots == ()


def test_a_base_that_another_engine_computes_with_is_not_updated(engine: Engine) -> None:
    changed = _changed_base(engine)
    with Engine(engine.base, kernel="torch"):
        with pytest.raises(UsageError, match="another engine computes"):
            engine.update(None, changed)
        with engine.exclusive(), engine.exclusive(), pytest.raises(UsageError, match="another engine computes"):
            engine.update(None, changed)
    with engine.exclusive():
        assert engine.update(None, changed) == 2
    assert engine.update(None, changed) == 3


@pytest.mark.parametrize(("weights", "kernel"), [("int8", "torch"), ("int8", "auto"), ("auto", "auto")])
def test_a_base_whose_copies_answer_elsewhere_is_not_updated(tmp_path: Path, weights: Weights, kernel: Kernel) -> None:
    sizes = {"hidden_size": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "feedforward_size": 96}
    base = load_base(write_tiny_base(tmp_path / "base", **sizes))
    with Engine(base, kernel="torch") as engine:
        with Engine(base, weights=weights, kernel=kernel), pytest.raises(UsageError, match="another engine computes"):
            engine.update(None, _changed_base(engine))
        assert engine.update(None, _changed_base(engine)) == 2


def test_an_engine_that_is_being_closed_lends_its_base_without_counting_itself(engine: Engine) -> None:
    with engine._compute:
        closer = threading.Thread(target=engine.close)
        closer.start()
        while not engine._closed:
            pass
        with engine.exclusive() as base:
            assert base.model.readers == 0
        assert base.model.readers == 1
    closer.join(30)
    assert base.model.readers == 0


def test_a_base_is_not_updated_under_requests_of_unloaded_adapters(engine: Engine) -> None:
    engine.load_adapter("a", CONFIG, _tensors(engine.base, 1))
    running = engine.submit(_request(300))
    next(iter(running))
    with engine.exclusive():
        engine.unload_adapter("a")
        with pytest.raises(UsageError, match="let the requests end"):
            engine.update(None, _changed_base(engine))
    running.result(60)
    assert engine.update(None, _changed_base(engine)) == 2


def test_converted_weights_are_not_updated_nor_read_for_prefixes(engine: Engine) -> None:
    engine.load_adapter("a", CONFIG, _tensors(engine.base, 1))
    with engine.exclusive(), computing({"policy": engine.base.model}, Arithmetic("bfloat16")):
        for adapter in (None, "a"):
            with pytest.raises(UsageError, match="has converted"):
                engine.update(adapter, {})
        with pytest.raises(UsageError, match="has converted"):
            engine.pin(PROMPT[:20])
        with pytest.raises(UsageError, match="has converted"):
            engine.load_soft_prompt("soft", torch.randn(4, engine.base.spec.hidden_size))
        with pytest.raises(UsageError, match="has converted"):
            Engine(engine.base)


def test_requests_are_computed_again_in_their_order(engine: Engine) -> None:
    streams = [engine.submit(_request(100, None)) for _ in range(3)]
    for stream in streams:
        next(iter(stream))
    with engine.exclusive():
        order: list[int] = []
        put_back = engine._runner.put_back
        active = [job.number for job in engine._runner.active]

        def record(job: Any) -> None:
            order.append(job.number)
            put_back(job)

        engine._runner.put_back = record
        engine._runner.recompute_running()
        engine._runner.put_back = put_back
    assert order == active[::-1]
    assert len(order) == 3
    assert [len(cast(Generation, stream.result(60)).token_ids) for stream in streams] == [100] * 3
