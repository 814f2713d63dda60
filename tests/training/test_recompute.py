"""What a run makes again for the backward pass changes nothing but memory, which is as the cost model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rows import slow_unless
from tests.tiny import tiny_spec
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.economics.model.footprint import kept_bytes
from bedplate.models.build import build
from bedplate.models.layers.recomputation import recomputing
from bedplate.models.specs.parts import DeltaRule, LatentAttention
from bedplate.models.specs.split import Recompute
from bedplate.models.specs.transformer import Experts, TransformerSpec
from bedplate.training.batch import pack_examples
from bedplate.training.config import RouterConfig, TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import Sft
from bedplate.training.sources import ExampleSource

SETTINGS: tuple[Recompute, ...] = ("none", "selective", "full")
EXPERTS = Experts(6, 2, 24, first_dense=1, selection_bias=True, scoring="sigmoid", shared_size=16)
SPECS: dict[str, TransformerSpec] = {
    "gated": tiny_spec(),
    "plain": tiny_spec(norm="layer", gated=False, activation="gelu", parallel=True),
    "sandwich": tiny_spec(norm_placement="sandwich", qk_norm="head", windows=(20, None), norm_offset=1.0),
    "branch": tiny_spec(norm_placement="branch", qk_norm="projection"),
    "latent": tiny_spec(kv_heads=6, head_dim=12, latent=LatentAttention(16, 8, 4, 8, q_rank=24)),
    "experts": tiny_spec(experts=EXPERTS),
}


@pytest.mark.parametrize(
    "name", slow_unless({"gated", "experts", "state", "dropout"}.__contains__, [*SPECS, "state", "dropout"])
)
def test_weights_and_what_is_written_are_the_same(name: str, make_examples: Any, tmp_path: Path) -> None:
    """Bit by bit, after steps of several micro-batches; routers count what they chose once, and what is dropped is
    dropped again."""
    config = TrainConfig(learning_rate=0.01, save_seconds=None, steps=3)
    if name == "experts":
        config = config.model_copy(update={"router": RouterConfig(balance=0.1, bias_rate=0.05)})
    part = DeltaRule(heads=4, key_heads=2, key_dim=6, value_dim=8)
    state = tiny_spec(state=part, state_layers=(True, False, True), attention_gate=True)
    outcomes: list[tuple[dict[str, torch.Tensor], list[dict[str, Any]]]] = []
    for setting in SETTINGS:
        torch.manual_seed(0)
        model = build(SPECS.get(name, state if name == "state" else tiny_spec()))
        trained = dict(model.named_parameters())
        if name == "dropout":
            bank = Bank(model)
            slot = bank.add(LoraConfig(r=4, dropout=0.3), trainable=True)
            bank.select(slot)
            trained = dict(bank.parameters(slot))
        source = ExampleSource(make_examples(18), 6, micro_tokens=40)
        run_config = config.model_copy(update={"recompute": setting})
        result = train(model, source, Sft(), run_config, tmp_path / setting, trained.items())
        rows = [json.loads(line) for line in result.metrics_path.read_text().splitlines()]
        speeds = {"tokens_per_second", "examples_per_second"}
        values = {n: p.detach().clone() for n, p in (trained | dict(model.named_buffers())).items()}
        outcomes.append((values, [{k: v for k, v in row.items() if k not in speeds} for row in rows]))
    for values, rows in outcomes[1:]:
        assert rows == outcomes[0][1]
        assert all(torch.equal(value, outcomes[0][0][n]) for n, value in values.items())


class Alive(TorchDispatchMode):
    """The storages that operations make, others than what was there before, and how many bytes are still there."""

    def __init__(self, before: set[int]) -> None:
        super().__init__()
        self._before = before
        self._allocated: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                storage = x.untyped_storage()
                if storage.data_ptr() not in self._before:
                    self._allocated[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        return out

    def live_bytes(self) -> dict[int, int]:
        """The bytes of each that is still there, by its place."""
        return {place: size for place, (storage, size) in self._allocated.items() if not storage.expired()}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", slow_unless({"gated", "latent", "experts"}.__contains__, SPECS))
def test_kept_bytes_are_those_of_the_cost_model(name: str, setting: Recompute, make_examples: Any) -> None:
    model, batch = build(SPECS[name]), pack_examples(make_examples(40, prefix=0))
    inputs, T = batch.inputs, batch.tokens.numel()
    attend = inputs.layout(causal=True)
    before = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.no_grad(), Alive(before) as alive:
        model(inputs, attend)  # masks are made once for all passes
    with recomputing(setting), Alive(before | alive.live_bytes().keys()) as alive:
        hidden = model(inputs, attend).hidden
        saved_bytes = sum(alive.live_bytes().values()) - hidden.nbytes
    estimate = kept_bytes(SPECS[name], T, bytes_per_value=4, recompute=setting)
    assert saved_bytes == pytest.approx(estimate.stored, rel=0.1)
