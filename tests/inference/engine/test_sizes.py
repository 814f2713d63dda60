"""How much an engine takes of the memory that there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.made import made_base
from tests.tiny import tiny_spec

from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Generation, Sampling
from bedplate.inference.engine.sizes import PREFIX_BYTES, SLOT_BYTES, engine_sizes, working_bytes
from bedplate.models.checkpoints.base import load_base
from bedplate.models.specs.parts import DeltaRule, Mamba2, ShortConvolution, StateMixer
from bedplate.models.specs.presets import PRESETS

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
SPEC = PRESETS["llama-3.1-8b"]


@pytest.mark.parametrize("free", [4 << 30, 24 << 30, 60 << 30, 170 << 30])
def test_pool_and_step_of_a_device_fit_into_what_is_free_and_use_it(free: int) -> None:
    sizes = engine_sizes(SPEC, torch.bfloat16, CUDA, free)
    pool = sizes.cache_bytes + sizes.slot_bytes
    working = working_bytes(SPEC, torch.bfloat16, sizes.max_step_tokens)
    assert 0.75 * free < pool + working < free
    doubled = working_bytes(SPEC, torch.bfloat16, 2 * sizes.max_step_tokens)
    assert sizes.max_step_tokens == 8192 or doubled > free / 8


def test_what_is_asked_for_is_what_there_is() -> None:
    limits = {"max_step_tokens": 300, "max_rows": 3, "cache_bytes": 7 << 30, "slot_bytes": 5 << 30}
    assert vars(engine_sizes(SPEC, torch.bfloat16, CUDA, 60 << 30, **limits)) == limits
    part = engine_sizes(SPEC, torch.bfloat16, CUDA, 60 << 30, slot_bytes=5 << 30)
    assert part.slot_bytes == 5 << 30
    assert (30 << 30) < part.cache_bytes < (49 << 30)


def test_a_processor_leaves_a_quarter_of_what_is_free() -> None:
    for free in (1 << 30, 6 << 30, None):
        sizes = engine_sizes(SPEC, torch.float32, CPU, free)
        assert (sizes.max_step_tokens, sizes.max_rows) == (512, 16)
        assert sizes.cache_bytes == min(PREFIX_BYTES, (free or 1 << 40) // 4)
        assert sizes.slot_bytes == min(SLOT_BYTES, (free or 1 << 40) // 2)


def test_an_engine_takes_what_memory_allows(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate.inference.engine.engine.free_on", lambda _: 4 << 20)
    with Engine(load_base(tiny_dir)) as engine:
        assert engine.stats().cache_capacity_bytes == 1 << 20
    with Engine(load_base(tiny_dir), cache_bytes=3 << 20) as engine:
        assert engine.stats().cache_capacity_bytes == 3 << 20


@pytest.mark.parametrize("state", [ShortConvolution(3), DeltaRule(4, 2, 6, 8), Mamba2(6, 8, 2, 5)])
def test_layers_that_all_keep_states_have_slots_where_others_have_blocks(state: StateMixer) -> None:
    base = made_base(tiny_spec(state=state))
    requests = [
        Generate((5, 6, 7), Sampling(max_tokens=6, ignore_eos=True)),
        Generate((5, 6, 7, 8), Sampling(max_tokens=6)),
    ]
    texts: list[list[tuple[int, ...]]] = []
    for paged in (False, True):
        with Engine(base, kernel="torch", paged=paged) as engine:
            results = engine.run(requests)
            texts.append([tuple(result.token_ids) for result in results if isinstance(result, Generation)])
    assert len(texts[0]) == 2
    assert texts[0] == texts[1]
