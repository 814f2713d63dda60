"""What launchers say, how ranks are arranged, and which module is cut how: all of it data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import tiny_spec
from torch import nn

from bedplate.core.errors import UnsupportedModelError, UsageError
from bedplate.models.build import build
from bedplate.models.layers.linear import Linear
from bedplate.models.specs.parts import DeltaRule
from bedplate.models.specs.position import RelativeBias
from bedplate.models.specs.split import expert_plan, tensor_plan
from bedplate.models.specs.transformer import Experts
from bedplate.training.config import ParallelConfig
from bedplate.training.parallel.launch import Process, first_host, process_of

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "one", "MASTER_PORT": "1234"}
SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
}


def test_launchers() -> None:
    assert process_of({}) == Process(0, 1, 0, None)
    assert process_of(TORCHRUN) == Process(3, 4, 1, ("one", 1234))
    assert process_of(SLURM) == Process(9, 16, 1, ("gpu003", 29_400))
    assert process_of({**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "7"}).address == ("head", 7)
    # Inside an allocation, but not started by srun.
    assert process_of({name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}).world == 1
    for change, message in (
        ({"RANK": "x"}, "RANK is 'x'"),
        ({"RANK": "4"}, "number 4 of 4"),
    ):
        with pytest.raises(UsageError, match=message):
            process_of({**TORCHRUN, **change})
    with pytest.raises(UsageError, match="MASTER_ADDR is not set"):
        process_of({name: value for name, value in TORCHRUN.items() if name != "MASTER_ADDR"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu003", "gpu003"),
        ("gpu003,gpu004", "gpu003"),
        ("gpu[003-007,009]", "gpu003"),
        ("gpu[3,5],cpu1", "gpu3"),
        ("rack[1-2]-n,x", "rack1-n"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_ranks_that_are_left_shard(data: int, shard: int, expert: int, tensor: int) -> None:
    world = data * shard * expert * tensor
    config = ParallelConfig(data=data, expert=expert, tensor=tensor)
    sizes = {"data": data, "shard": shard, "expert": expert, "tensor": tensor}
    assert config.sizes(world) == sizes == config.model_copy(update={"shard": shard}).sizes(world)
    with pytest.raises(UsageError, match=f"and there are {world + 1}"):
        config.model_copy(update={"shard": shard}).sizes(world + 1)
    assert config.sizes(config.min_processes) == {**sizes, "shard": 1}
    if config.min_processes > 1:
        with pytest.raises(UsageError, match="and there are 1; start them with torchrun or srun"):
            config.sizes(1)


@pytest.mark.parametrize(
    "spec",
    [
        tiny_spec(),
        tiny_spec(qk_norm="head", attention_bias=True, attention_gate=True),
        tiny_spec(gated=False),
        tiny_spec(experts=Experts(4, 2, 16, first_dense=1, shared_size=16)),
    ],
)
def test_plans_name_modules_that_exist(spec) -> None:
    """And every product of attention and of the dense feed-forward is cut."""
    model, plan = build(spec, device="meta"), tensor_plan(spec, 2)
    for path, cut in plan.items():
        module = model.get_submodule(path)
        assert isinstance(module, Linear) == (cut in {"columns", "rows"}), path
    linears = {name for name, module in model.named_modules() if isinstance(module, Linear) and "layers." in name}
    assert {path for path, cut in plan.items() if cut != "summed"} == linears
    if spec.experts is not None:
        experts = expert_plan(spec, 2)
        assert len(experts) == spec.layers - 1
        assert all(isinstance(model.get_submodule(path), nn.Module) for path in experts)


@pytest.mark.parametrize(
    ("changes", "ranks", "message"),
    [
        ({}, 4, "6 heads are not a multiple"),
        ({"heads": 4, "kv_heads": 2}, 4, "2 key-value heads"),
        ({"kv_heads": 6, "feedforward_size": 97}, 3, "97 features"),
        ({"qk_norm": "projection"}, 2, "qk_norm = 'projection'"),
        ({"attention_sinks": True}, 2, "attention sinks"),
        ({"rope": None, "relative_bias": RelativeBias()}, 2, "relative bias"),
        ({"state": DeltaRule(4, 2, 6, 8), "state_layers": (True, False, True)}, 2, "its mixer is 'delta_rule'"),
    ],
)
def test_what_cannot_be_cut_is_named(changes, ranks: int, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        tensor_plan(tiny_spec(**changes), ranks)


def test_experts_that_cannot_be_shared() -> None:
    with pytest.raises(UnsupportedModelError, match="has none"):
        expert_plan(tiny_spec(), 2)
    with pytest.raises(UnsupportedModelError, match="3 ranks cannot share 4 experts"):
        expert_plan(tiny_spec(experts=Experts(4, 2, 16)), 3)
