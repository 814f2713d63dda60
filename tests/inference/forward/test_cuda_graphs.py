"""Decode steps that are recorded and replayed: what is replayed here are the operations that were started, over the
memory that they were given, so that whatever the host looked at while recording would be wrong afterwards."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import pytest
import torch
from tests.counting import Counted
from tests.made import made_base
from tests.near import assert_near
from tests.rows import slow_unless
from tests.tiny import tiny_spec
from torch import is_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bedplate.adapters.bank import BASE_ROW, Bank
from bedplate.adapters.linear_adapter import MAGNITUDE
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears, initial_tensors
from bedplate.core.errors import UsageError
from bedplate.inference.engine import engine as engine_module
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Generation, Sampling
from bedplate.inference.forward import cuda_graphs
from bedplate.inference.forward.batch import FlatBatch, LoadedAdapter
from bedplate.inference.forward.cuda_graphs import CudaRecorder, RecordedDecode, Run
from bedplate.inference.forward.paged import PagedCache
from bedplate.inference.forward.spans import Span
from bedplate.inference.forward.torch import TorchForward
from bedplate.models.checkpoints.base import Base
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs
from bedplate.models.layers import grouped
from bedplate.models.specs.transformer import Experts, LongRopeScaling, Rope, TransformerSpec

CPU = torch.device("cpu")
RECORDABLE = ("llama", "qwen2", "gemma2", "gemma3_text", "olmo3", "phi3", "gpt_neox", "smollm3", "gpt2")


class Tape(TorchDispatchMode):
    """What was started, over which memory: played again, it asks nothing of the program."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, result))
        return result

    def play(self) -> None:
        for func, args, kwargs, before in self._calls:
            results, input_places = (
                func(*args, **kwargs),
                {place_of(x) for x in tree_leaves((args, kwargs)) if is_tensor(x)},
            )
            for old, new in zip(tree_leaves(before), tree_leaves(results), strict=True):
                if is_tensor(old) and place_of(old) not in input_places:  # else it is a part of what was given
                    old.copy_(new)


def place_of(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


class Recorder:
    """Records on a tape, as a device does, and counts what that asks for."""

    def __init__(self) -> None:
        self.counted: list[Counted] = []

    def __call__(self, run: Run) -> Run:
        run()  # as a device does first
        tape = Tape()
        with Counted() as counted, tape:
            outputs = run()
        self.counted.append(counted)

        def replay() -> tuple[torch.Tensor, torch.Tensor]:
            tape.play()
            return outputs

        return replay


def spec_of(name: str) -> TransformerSpec:
    family = FAMILIES["hf", name]
    spec = family.to_spec(dict(family.examples[0]))
    assert isinstance(spec, TransformerSpec)
    return spec


@pytest.mark.parametrize(
    "name",
    slow_unless({"llama", "gemma2", "gpt_neox", "gpt2", "gpt_oss"}.__contains__, [*RECORDABLE, "mixtral", "gpt_oss"]),
)
@torch.inference_mode()
def test_a_replayed_step_is_as_one_that_is_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a rope that another one takes the place of in between (phi3), and of experts where torch has products of
    groups."""
    spec = spec_of(name)
    if name == "phi3":
        assert isinstance(spec.position.rope, Rope)
        pairs = int(spec.attention.head_dim * spec.position.rope.fraction) // 2
        scaling = LongRopeScaling((1.0,) * pairs, (3.0,) * pairs, 7, 4.0)
        spec = spec.with_(rope=replace(spec.position.rope, scaling=scaling))
    if spec.experts is not None:
        monkeypatch.setattr(grouped, "uses_grouped_mm", lambda x: True)
    base, record = made_base(spec, FAMILIES["hf", name]), Recorder()
    caches = [
        PagedCache(spec, torch.float32, CPU, 1 << 21, block=4, step=8, scratch=scratch) for scratch in (True, False)
    ]
    recorded = TorchForward(base, None, caches[0], joined=True, record=record)
    plain = TorchForward(base, None, caches[1])
    generator = torch.Generator().manual_seed(0)
    # Each takes its blocks in an order of its own.
    caches[1].reserve({9: 20})
    positions = {0: 3, 1: 9, 2: 1, 3: 6}
    for forward, cache in ((recorded, caches[0]), (plain, caches[1])):
        cache.reserve(positions)
        tokens = torch.randint(
            3, spec.vocab_size, (sum(positions.values()),), generator=generator.manual_seed(1)
        ).tolist()
        forward(FlatBatch(tokens, [Span(row, 0, n) for row, n in positions.items()], [LoadedAdapter(None)] * 4, ()))
    for rows in ([0, 1, 2], [0, 1, 2], [3], [1, 3, 2], [0, 1, 2, 3], [2, 0, 1], [0], [3], [1, 2], [0, 3], [1]):
        spans = [Span(row, positions[row], 1) for row in rows]
        positions |= {span.row: span.end for span in spans}
        tokens = torch.randint(3, spec.vocab_size, (len(rows),), generator=generator).tolist()
        batch = FlatBatch(tokens, spans, [LoadedAdapter(None)] * len(rows), range(len(rows)))
        for cache in caches:
            cache.reserve(positions)
        ours, theirs = recorded(batch), plain(batch)
        assert ours.logits_WV is not None
        assert ours.logits_WV.shape == (len(rows), spec.vocab_size)
        assert_near(ours.logits_WV, theirs.logits_WV, 1e-4, f"{rows}")
        assert_near(ours.hidden_ND, theirs.hidden_ND, 1e-4, f"{rows}")
    assert 3 <= len(record.counted) < 11  # by powers of two of rows and of blocks
    for counted in record.counted:
        assert counted.waited == 0, counted.waits


CONFIGS = (
    LoraConfig(r=2, alpha=3),
    LoraConfig(r=3, alpha=6, targets=("q", "v", "up", "down")),
    LoraConfig(r=5, alpha=5, rslora=True, dora=True, targets=("k", "up", "o")),
    LoraConfig(r=20, alpha=30, targets=("o", "k")),
)


def adapter(base: Base, config: LoraConfig, seed: int) -> dict[str, torch.Tensor]:
    linears = block_linears(base.model)
    modules = {path: linears[path] for path in config.paths([*linears], None)}
    generator = torch.Generator().manual_seed(seed)
    fresh = initial_tensors(config, modules, seed)
    drawn = {name: torch.randn(tensor.shape, generator=generator) * 0.2 for name, tensor in fresh.items()}
    return {name: fresh[name] * (1 + noise) if name.endswith(MAGNITUDE) else noise for name, noise in drawn.items()}


def test_an_engine_that_records_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    base, record = made_base(tiny_spec()), Recorder()
    sampling = Sampling(max_tokens=24, ignore_eos=True)
    adapters = [None, "a", "b", "a", None]
    requests = [Generate(tuple(range(3 + row, 9 + 4 * row)), sampling, adapter=adapters[row]) for row in range(5)]
    weights = {name: (config, adapter(base, config, 1)) for name, config in zip("ab", CONFIGS, strict=False)}

    def opened() -> Engine:
        engine = Engine(base, kernel="torch", paged=True, slot_bytes=1 << 22, cache_bytes=1 << 20)
        for name, (config, tensors) in weights.items():
            engine.load_adapter(name, config, tensors)
        return engine

    with opened() as engine:
        alone = [engine.run([request])[0] for request in requests]
    init = PagedCache.__init__
    monkeypatch.setattr(PagedCache, "__init__", lambda self, *args, **kwargs: init(self, *args, **kwargs, scratch=True))
    monkeypatch.setattr(engine_module, "recorder", lambda device: record)
    with opened() as engine:
        for replayed, plain in zip(engine.run(requests), alone, strict=True):
            assert isinstance(replayed, Generation)
            assert isinstance(plain, Generation)
            assert replayed.token_ids == plain.token_ids
    assert record.counted


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt_neox"])
def test_a_replayed_step_has_its_rows_adapters(name: str) -> None:
    """Of other ranks, linears and kinds, that come and go and take the slots of others: as with a bank that puts a
    batch's adapters together."""
    spec = spec_of(name)
    base, record = made_base(spec, FAMILIES["hf", name]), Recorder()
    caches = [PagedCache(spec, torch.float32, CPU, 1 << 21, block=4, scratch=scratch) for scratch in (True, False)]
    banks = [Bank(base.model, 8) for _ in range(2)]
    recorded = TorchForward(base, banks[0], caches[0], joined=True, record=record)
    plain = TorchForward(base, banks[1], caches[1], joined=True)
    generator, positions = torch.Generator().manual_seed(0), {0: 3, 1: 9, 2: 1, 3: 6}
    for forward, cache in ((recorded, caches[0]), (plain, caches[1])):
        cache.reserve(positions)
        tokens = torch.randint(
            3, spec.vocab_size, (sum(positions.values()),), generator=generator.manual_seed(1)
        ).tolist()
        with torch.inference_mode():
            forward(FlatBatch(tokens, [Span(row, 0, n) for row, n in positions.items()], [LoadedAdapter(None)] * 4, ()))

    def add(config: LoraConfig, seed: int) -> None:
        for bank in banks:
            bank.add(config, adapter(base, config, seed))

    def step(*slots: int) -> None:
        """Of the first rows, with these adapters."""
        spans = [Span(row, positions[row], 1) for row in range(len(slots))]
        positions.update({span.row: span.end for span in spans})
        tokens = torch.randint(3, spec.vocab_size, (len(slots),), generator=generator).tolist()
        loaded = [LoadedAdapter(str(slot), slot) for slot in slots]
        batch = FlatBatch(tokens, spans, loaded, range(len(slots)))
        for cache in caches:
            cache.reserve(positions)
        with torch.inference_mode():
            ours, theirs = recorded(batch), plain(batch)
        assert_near(ours.logits_WV, theirs.logits_WV, 1e-4, f"{slots}")
        assert_near(ours.hidden_ND, theirs.hidden_ND, 1e-4, f"{slots}")

    add(CONFIGS[0], 1)
    step(0, BASE_ROW, 0)
    step(0, BASE_ROW, 0)
    step(BASE_ROW, 0, BASE_ROW)
    assert len(record.counted) == 1
    add(CONFIGS[1], 2)
    step(1, 0, BASE_ROW)
    step(0, 1, 1)
    step(BASE_ROW, BASE_ROW)
    step(1, 1, 1, 1)
    for seed, config in enumerate(CONFIGS[2:], 3):
        add(config, seed)
    step(0, 3, 1, BASE_ROW)
    step(2, 0, 1, 3)
    recordings = len(record.counted)
    step(2, BASE_ROW, 3, 0)
    step(1, 2, 0, 1)
    assert len(record.counted) == recordings
    for bank in banks:
        bank.remove(1)
    step(0, 2, 0, 3)
    add(CONFIGS[0], 9)
    step(1, 2, 1, 0)
    for counted in record.counted:
        assert counted.waited == 0, counted.waits
    banks[0].merge(0)
    with pytest.raises(UsageError, match="merged"):
        recorded(FlatBatch([5], [Span(0, positions[0], 1)], [LoadedAdapter("0", 0)], [0]))


def test_adapters_that_have_no_places_run_as_they_do() -> None:
    """One that is being trained may change; of more adapters than places, those of a step have them."""
    base, record = made_base(tiny_spec()), Recorder()
    cache = PagedCache(base.spec, torch.float32, CPU, 1 << 20, scratch=True)
    cache.reserve({0: 30})
    bank = Bank(base.model, 40)
    forward = TorchForward(base, bank, cache, joined=True, record=record)
    config = LoraConfig(r=2, targets=("q",))
    trained = bank.add(config, adapter(base, config, 0), trainable=True)
    cache.reserve({0: 30, **dict.fromkeys(range(1, 36), 4)})
    loaded = LoadedAdapter("trained", trained)
    with torch.inference_mode():
        assert forward(FlatBatch([5], [Span(0, 0, 1)], [loaded], [0])).logits_WV is not None
    assert not record.counted
    slots = [bank.add(config, adapter(base, config, seed)) for seed in range(1, 36)]
    for chosen, recordings in ((slots[:20], 1), (slots[15:35], 1), (slots[:3], 2), (slots, 2)):
        batch = FlatBatch(
            [7] * len(chosen),
            [Span(row, 0, 1) for row in range(1, len(chosen) + 1)],
            [LoadedAdapter(str(slot), slot) for slot in chosen],
            range(len(chosen)),
        )
        with torch.inference_mode():
            output = forward(batch)
            bank.select(chosen)
            hidden = base.model(Inputs(torch.full((len(chosen), 1), 7))).hidden[:, 0]
            bank.select(None)
        assert_near(output.hidden_ND, hidden, 1e-4)
        assert len(record.counted) == recordings


@pytest.mark.parametrize(
    ("name", "reason"),
    [("lfm2", "states"), ("deepseek_v3", "latents"), ("olmoe", "experts")],
)
def test_what_the_host_looks_at_is_not_recorded(name: str, reason: str) -> None:
    base = made_base(spec_of(name), FAMILIES["hf", name])
    cache = PagedCache(base.spec, torch.float32, CPU, 1 << 20, scratch=True)
    recorded = RecordedDecode(base.model, cache, Recorder())
    assert recorded.reason is not None
    assert reason in recorded.reason


def test_a_recording_that_fails_is_told_and_the_step_is_run(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other shapes are recorded all the same, and so is this one after a while."""
    base, record, tried = made_base(tiny_spec()), Recorder(), []

    def fails_once(run: Run) -> Run:
        tried.append(run)
        if len(tried) == 1:
            raise RuntimeError("operation not permitted when stream is capturing")
        return record(run)

    monkeypatch.setattr(cuda_graphs, "RETRY_STEPS", 2)
    cache = PagedCache(base.spec, torch.float32, CPU, 1 << 20, scratch=True)
    cache.reserve({0: 8, 1: 8})
    forward = TorchForward(base, None, cache, record=fails_once)

    def step(start: int, rows: int = 1) -> None:
        spans = [Span(row, start, 1) for row in range(rows)]
        with torch.inference_mode():
            out = forward(FlatBatch([5] * rows, spans, [LoadedAdapter(None)] * rows, range(rows)))
        assert out.logits_WV is not None

    step(0, 2)
    assert "not permitted when stream is capturing" in caplog.text
    for start, attempts in ((1, 2), (2, 2)):
        step(start)
        assert len(tried) == attempts
    for start, attempts in ((1, 2), (2, 2), (3, 3), (4, 3)):
        step(start, 2)
        assert len(tried) == attempts


def test_experts_whose_rows_torch_does_not_take_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 18 × 4 bytes are no multiple of 16: their products ask the device for the experts' counts."""
    monkeypatch.setattr(grouped, "uses_grouped_mm", lambda x: True)
    for size, recorded in ((16, True), (18, False)):
        base, record = made_base(tiny_spec(experts=Experts(4, 2, size))), Recorder()
        cache = PagedCache(base.spec, torch.float32, CPU, 1 << 20, scratch=True)
        cache.reserve({0: 8})
        with torch.inference_mode():
            TorchForward(base, None, cache, record=record)(FlatBatch([5], [Span(0, 0, 1)], [LoadedAdapter(None)], [0]))
        assert [counted.waited for counted in record.counted] == [0] * recorded


class Device:
    """What `torch.cuda` does of graphs: a pool ends with the last of its graphs, and takes no other afterwards."""

    def __init__(self) -> None:
        self.living: WeakSet[Any] = WeakSet()
        self.pools = 0
        device = self

        class CUDAGraph:
            _pool: int

            def pool(self) -> int:
                return self._pool

            def replay(self) -> None: ...

        @contextmanager
        def graph(graph: Any, pool: int | None = None) -> Generator[None]:
            assert pool is None or any(other.pool() == pool for other in device.living), "the pool has ended"
            device.pools += pool is None
            graph._pool = device.pools if pool is None else pool
            yield
            device.living.add(graph)

        self.CUDAGraph, self.graph = CUDAGraph, graph
        self.Stream = self.current_stream = lambda: SimpleNamespace(wait_stream=lambda other: None)
        self.stream = lambda stream: nullcontext()


def test_recordings_share_a_pool_while_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    device, record = Device(), CudaRecorder()
    monkeypatch.setattr(torch, "cuda", device)
    run = lambda: (torch.zeros(1), torch.zeros(1))  # noqa: E731
    replays = [record(run) for _ in range(2)]
    del replays[0]
    replays.append(record(run))
    assert device.pools == 1
    replays.clear()
    replays.append(record(run))
    assert device.pools == 2
