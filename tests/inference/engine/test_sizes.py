"""How much an engine takes of the memory that there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.sizes import PREFIX_BYTES, SLOT_BYTES, engine_sizes, working_bytes
from bedplate.models.checkpoints.base import load_base
from bedplate.models.specs.presets import PRESETS

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
SPEC = PRESETS["llama-3.1-8b"].spec


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
