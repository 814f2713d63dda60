"""Decode steps that are recorded and replayed: what is replayed here is the very call that was recorded, over the
memory it was given, so that whatever the host looked at while recording would be wrong afterwards."""

from __future__ import annotations

import pytest
import torch
from tests.counting import Counted
from tests.made import made_base
from tests.near import assert_near
from tests.tiny import tiny_spec

from bedplate.inference.engine import engine as engine_module
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Generation, Sampling
from bedplate.inference.forward.adapters import Loaded
from bedplate.inference.forward.batch import FlatBatch
from bedplate.inference.forward.graphs import Recorded, Run
from bedplate.inference.forward.paged import PagedCache
from bedplate.inference.forward.spans import Span
from bedplate.inference.forward.torch import TorchForward
from bedplate.models.families import FAMILIES
from bedplate.models.specs.transformer import TransformerSpec

CPU = torch.device("cpu")
RECORDABLE = ("llama", "qwen2", "gemma2", "gemma3_text", "olmo3", "phi3", "gpt_neox", "smollm3")


class Recorder:
    """Records nothing, and counts what it was asked to."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.counted: list[Counted] = []

    def __call__(self, run: Run) -> Run:
        run()  # as a device does first
        with Counted() as counted:
            run()
        self.runs.append(run)
        self.counted.append(counted)
        return run


def spec_of(name: str) -> TransformerSpec:
    family = FAMILIES["hf", name]
    spec = family.to_spec(dict(family.examples[0]))
    assert isinstance(spec, TransformerSpec)
    return spec


@pytest.mark.parametrize("name", RECORDABLE)
@torch.inference_mode()
def test_a_replayed_step_is_as_one_that_is_run(name: str) -> None:
    spec = spec_of(name)
    base, record = made_base(spec, FAMILIES["hf", name]), Recorder()
    caches = [
        PagedCache(spec, torch.float32, CPU, 1 << 21, block=4, step=8, scratch=scratch) for scratch in (True, False)
    ]
    recorded = TorchForward(base, None, caches[0], joined=True, record=record)
    plain = TorchForward(base, None, caches[1])
    generator = torch.Generator().manual_seed(0)
    # Each takes its blocks in an order of its own.
    caches[1].reserve({9: 20})
    done = {0: 3, 1: 9, 2: 1, 3: 6}
    for ways, cache in ((recorded, caches[0]), (plain, caches[1])):
        cache.reserve(done)
        tokens = torch.randint(3, spec.vocab_size, (sum(done.values()),), generator=generator.manual_seed(1)).tolist()
        ways(FlatBatch(tokens, [Span(row, 0, n) for row, n in done.items()], [Loaded(None)] * 4, ()))
    for rows in ([0, 1, 2], [0, 1, 2], [3], [1, 3, 2], [0, 1, 2, 3], [2, 0, 1], [0], [3], [1, 2], [0, 3], [1]):
        spans = [Span(row, done[row], 1) for row in rows]
        done |= {span.row: span.end for span in spans}
        tokens = torch.randint(3, spec.vocab_size, (len(rows),), generator=generator).tolist()
        batch = FlatBatch(tokens, spans, [Loaded(None)] * len(rows), range(len(rows)))
        for cache in caches:
            cache.reserve(done)
        ours, theirs = recorded(batch), plain(batch)
        assert ours.logits_WV is not None
        assert ours.logits_WV.shape == (len(rows), spec.vocab_size)
        assert_near(ours.logits_WV, theirs.logits_WV, 1e-4, f"{rows}")
        assert_near(ours.hidden_ND, theirs.hidden_ND, 1e-4, f"{rows}")
    assert 3 <= len(record.runs) < 11  # by powers of two of rows and of blocks
    for counted in record.counted:
        assert counted.waited == 0, counted.waits


def test_an_engine_that_records_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    base, record = made_base(tiny_spec()), Recorder()
    said = Sampling(max_tokens=24, ignore_eos=True)
    asked = [Generate(tuple(range(3 + row, 9 + 4 * row)), said) for row in range(5)]
    with Engine(base, kernel="torch", paged=True, slot_bytes=1 << 22, cache_bytes=1 << 20) as engine:
        alone = [engine.run([one])[0] for one in asked]
    init = PagedCache.__init__
    monkeypatch.setattr(PagedCache, "__init__", lambda self, *args, **kwargs: init(self, *args, **kwargs, scratch=True))
    monkeypatch.setattr(engine_module, "recorder", lambda device: record)
    with Engine(base, kernel="torch", paged=True, slot_bytes=1 << 22, cache_bytes=1 << 20) as engine:
        for one, other in zip(engine.run(asked), alone, strict=True):
            assert isinstance(one, Generation)
            assert isinstance(other, Generation)
            assert one.token_ids == other.token_ids
    assert record.runs


@pytest.mark.parametrize(
    ("name", "reason"),
    [("lfm2", "states"), ("deepseek_v3", "latents"), ("olmoe", "experts"), ("gpt2", "learned positions")],
)
def test_what_the_host_looks_at_is_not_recorded(name: str, reason: str) -> None:
    base = made_base(spec_of(name), FAMILIES["hf", name])
    cache = PagedCache(base.spec, torch.float32, CPU, 1 << 20, scratch=True)
    found = Recorded(base.model, cache, Recorder())
    assert found.reason is not None
    assert reason in found.reason


def test_a_recording_that_fails_is_told_and_the_step_is_run(caplog: pytest.LogCaptureFixture) -> None:
    base = made_base(tiny_spec())

    def record(run: Run) -> Run:
        raise RuntimeError("operation not permitted when stream is capturing")

    cache = PagedCache(base.spec, torch.float32, CPU, 1 << 20, scratch=True)
    cache.reserve({0: 8})
    forward = TorchForward(base, None, cache, record=record)
    with torch.inference_mode():
        out = forward(FlatBatch([5], [Span(0, 0, 1)], [Loaded(None)], [0]))
    assert out.logits_WV is not None
    assert "not permitted when stream is capturing" in caplog.text
