"""What a decode step asks of a device: how many operations the host starts, and how often it waits; counted on CPU
tensors that say they are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from tests.counting import Counted
from tests.made import made_base
from tests.tiny import tiny_spec

from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears, initial_tensors
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Generation, Result, Sampling
from bedplate.inference.engine.requests.job import RequestJob
from bedplate.inference.engine.runner import Runner
from bedplate.inference.engine.scheduled_tokens import ScheduledTokens
from bedplate.inference.forward import kv_cache
from bedplate.inference.forward.batch import FlatBatch, LoadedAdapter
from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.inference.forward.paged import PagedCache
from bedplate.inference.forward.spans import Span
from bedplate.inference.forward.torch import TorchForward
from bedplate.models.checkpoints.base import Base
from bedplate.models.families import FAMILIES
from bedplate.models.layers.fused.linears import FusedLinears, fuse_linears

LAYERS = 32
ROWS = 8


@cache
def base() -> Base:
    return made_base(tiny_spec(layers=LAYERS, hidden_size=24, heads=3, kv_heads=1, feedforward_size=32))


def requests_for(adapters: Sequence[str | None]) -> list[Generate]:
    """Prompts of different lengths, each with its adapter."""
    settings = Sampling(max_tokens=5, ignore_eos=True)
    return [
        Generate(tuple(range(3 + row, 20 + 3 * row)), settings, adapter=adapters[row % len(adapters)])
        for row in range(ROWS)
    ]


def steps(
    engine: Engine, requests: list[Generate], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Result], list[Counted]]:
    """The answers, and what each step counted in which all rows wrote."""
    counts: list[Counted] = []
    run: Callable[[Runner, Sequence[ScheduledTokens]], list[RequestJob]] = Runner.execute

    def execute(self: Runner, work: Sequence[ScheduledTokens]) -> list[RequestJob]:
        if len(work) < ROWS or not all(share.job.decoding for share in work):
            return run(self, work)
        with monkeypatch.context() as patched, Counted() as counted:
            patched.setattr(torch.Tensor, "is_cpu", property(lambda tensor: False))
            ended = run(self, work)
        counts.append(counted)
        return ended

    with monkeypatch.context() as patched:
        patched.setattr(Runner, "execute", execute)
        results = engine.run(requests)
    return results, counts


@pytest.mark.parametrize("paged", [True, False])
def test_a_step_of_the_base_is_few_operations_and_waits_once(paged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fuse_linears(base().model)
    with Engine(base(), kernel="torch", paged=paged, slot_bytes=1 << 22, cache_bytes=1 << 20, adapters=4) as engine:
        results, counted = steps(engine, requests_for([None]), monkeypatch)
        for result, request in zip(results, requests_for([None]), strict=True):
            (alone,) = engine.run([request])
            assert isinstance(result, Generation)
            assert isinstance(alone, Generation)
            assert result.token_ids == alone.token_ids
    assert len(counted) >= 3
    for step in counted:
        assert step.started <= 350, step.operations.most_common()
        assert step.waited <= 1, step.waits


@pytest.mark.parametrize(
    ("device", "blocks", "laid"), [("cuda", False, True), ("cpu", True, True), ("cpu", False, False)]
)
def test_no_device_computes_a_step_in_more(device: str, blocks: bool, laid: bool) -> None:
    """Linears that read the same input are apart on a CPU's slots alone, where no operation waits to be started."""
    local_base = made_base(tiny_spec())
    cache = (PagedCache if blocks else SlotCache)(local_base.spec, torch.float32, local_base.device, 1 << 20)
    TorchForward(replace(local_base, device=torch.device(device)), None, cache)
    with torch.inference_mode():
        whole = [
            module.product(torch.zeros(1, 1, module.parts[0].in_features))
            for module in local_base.model.modules()
            if isinstance(module, FusedLinears)
        ]
    assert whole
    assert all((product is not None) == laid for product in whole)


def test_keys_that_layers_share_are_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a prompt that begins, of one that goes on beside others, and of a step."""
    family = FAMILIES["hf", "gemma4_text"]
    local_base = made_base(family.to_spec(dict(family.examples[0])), family)
    cache = SlotCache(local_base.spec, torch.float32, local_base.device)
    cache.reserve({0: 20, 1: 20})
    forward, written, original = TorchForward(local_base, None, cache), list[int](), kv_cache.write_kv
    monkeypatch.setattr(kv_cache, "write_kv", lambda *arguments: (written.append(1), original(*arguments)))
    sources = {local_base.spec.keys_of(layer) for layer in range(local_base.spec.layers)}
    assert len(sources) < local_base.spec.layers
    pieces = [Span(0, 0, 7)], [Span(0, 7, 3), Span(1, 0, 5)], [Span(0, 10, 1), Span(1, 5, 1)]
    with torch.inference_mode():
        for spans in pieces:
            written.clear()
            count = sum(span.length for span in spans)
            forward(FlatBatch([5] * count, spans, [LoadedAdapter(None)] * len(spans), [count - 1]))
            assert len(written) == len(sources)


def test_adapters_add_few_operations_and_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of its own for each row of four; one product with all A of projections that read the same, one mask, and one
    product for each linear that is added to what is there."""
    fuse_linears(base().model)
    config, names = LoraConfig(r=2), [f"skin{i}" for i in range(4)]
    with Engine(base(), kernel="torch", paged=True, slot_bytes=1 << 22, cache_bytes=1 << 20, adapters=4) as engine:
        _, without = steps(engine, requests_for([None]), monkeypatch)
        for seed, name in enumerate(names):
            tensors = initial_tensors(config, block_linears(base().model), seed)
            generator = torch.Generator().manual_seed(seed)
            engine.load_adapter(
                name, config, {n: torch.randn(t.shape, generator=generator) for n, t in tensors.items()}
            )
        results, counted = steps(engine, requests_for(names), monkeypatch)
        for result, request in zip(results, requests_for(names), strict=True):
            (alone,) = engine.run([request])
            assert isinstance(result, Generation)
            assert isinstance(alone, Generation)
            assert result.token_ids == alone.token_ids
    for step in counted[1:]:  # the first puts the weights of these adapters together
        assert step.started - without[-1].started <= 15 * LAYERS + 20, step.operations.most_common()
        assert step.waited <= without[-1].waited, step.waits
