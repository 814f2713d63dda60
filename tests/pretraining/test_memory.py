"""What a dry run says that a device holds is what torch allocates there while the run trains."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pretraining.runs import tiny_run

from bedplate.pretraining.plan.memory import device_bytes
from bedplate.pretraining.plan.sizes import sizes_of
from bedplate.pretraining.plan.spec import spec_of
from bedplate.pretraining.run.corpus import Rows
from bedplate.pretraining.run.model import new_model
from bedplate.pretraining.run.settings import settings_of
from bedplate.pretraining.runfile.file import RunFile
from bedplate.text.bpe import train_bpe
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives import CorruptedSource, Corrupting, Words
from bedplate.training.optimizers import Optimization, kinds_of
from bedplate.training.ranks import ALONE, Ranks
from bedplate.training.sources import DocumentSource

VOCABULARY = 1024
ONE = {"data": 1, "shard": 1, "expert": 1, "tensor": 1}
EXPERTS = {
    "family": "mixtral",
    "config": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 128,
    },
}


BOTH = {
    "family": "t5",
    "config": {
        "d_model": 96,
        "d_kv": 24,
        "num_heads": 4,
        "d_ff": 192,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "n_positions": 130,
        "feed_forward_proj": "gated-gelu",
    },
}
FEW = [f"<extra_id_{number}>" for number in range(40)]


def planned(directory: Path, **changes: Any) -> RunFile:
    """Two steps, of two passes each where nothing else is said."""
    common: dict[str, Any] = {
        "model": {"params": "1M", "context": 128},
        "batch": {"tokens": 2048, "micro_tokens": 1024},
        "tokens": 4096,
        "dtype": "float32",
    }
    return tiny_run(directory, **{**common, **changes})


def peak_of(make: Any) -> int:
    """The most bytes that torch's allocator had given out at any moment of a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        made = make()
    assert made is not None
    assert profile.profiler is not None
    events = [one for one in profile.profiler.kineto_results.events() if one.name() == "[memory]"]  # type: ignore
    now = most = 0
    for one in sorted(events, key=lambda one: one.start_ns()):
        now += one.nbytes()
        most = max(most, now)
    return most


@cache
def tokenizer() -> Tokenizer:
    return train_bpe(["a text to train on"], 320, "a test", ("[MASK]", *FEW, "[R]", "[S]", "[X]"))


def trained(run: RunFile, out: Path, ranks: Any = None) -> Any:
    """The run's own settings and model, on rows without an end."""
    assert run.model is not None
    spec, _ = spec_of(run.model, VOCABULARY, run.objective)
    settings = settings_of(run, spec, 10**6)
    model = new_model(spec, 0)
    given: Ranks = ALONE if ranks is None else ranks(model)
    rows: Rows = settings.rows
    documents = [[(7 * n + 3 * i) % VOCABULARY for i in range(rows.length)] for n in range(2 * rows.batch)]
    source: Any = DocumentSource(documents, rows.length, rows.batch, micro_rows=rows.micro, shard=given.shard)
    objective, parameters = run.made_objective(), list(model.named_parameters())
    if isinstance(objective, Corrupting):
        source = CorruptedSource(source, objective, Words(tokenizer(), VOCABULARY, (0,)), 0)
    return train(model, source, objective, settings.config, out, parameters, ranks=given)


PASS = {"batch": {"tokens": 512, "micro_tokens": 512}, "tokens": 1024}
SMALL = {"batch": {"tokens": 256, "micro_tokens": 128}, "tokens": 512}
CASES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "one pass a step": {"batch": {"tokens": 1024, "micro_tokens": 1024}, "tokens": 2048},
    "short passes": {"batch": {"tokens": 512, "micro_tokens": 256}, "tokens": 1024},
    "made again": {"recompute": "full"},
    "muon and an average": {"optimizer": {"name": "muon", "settings": {"ema": 0.9}}, "recompute": "full"},
    "cautious": {**SMALL, "optimizer": {"settings": {"cautious_decay": True}}},
    "bfloat16": {"dtype": "bfloat16"},
    "z": {**SMALL, "objective_settings": {"z": 1e-4}},
    "masked": {"model": {"params": "1M", "family": "bert", "context": 128}, "objective": "masked", "evaluation": {}},
    "spans": {**PASS, "model": BOTH, "objective": "span_corruption", "objective_settings": {"sentinels": FEW}},
    "denoisers": {**PASS, "model": BOTH, "objective": "mixture_of_denoisers", "objective_settings": {"sentinels": FEW}},
}


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What torch sets up once is not a run's."""
    directory = tmp_path_factory.mktemp("warm")
    trained(planned(directory, **SMALL), directory / "out")


@pytest.mark.parametrize("name", CASES)
def test_memory_is_what_is_allocated(name: str, tmp_path: Path) -> None:
    run = planned(tmp_path, **CASES[name])
    assert run.model is not None
    spec, _ = spec_of(run.model, VOCABULARY, run.objective)
    held = device_bytes(run, spec, sizes_of(run, spec, None), run.dtype, ONE, on_cpu=True)
    assert peak_of(lambda: trained(run, tmp_path / "out")) == pytest.approx(sum(held.values()), rel=0.1), held


@pytest.mark.parametrize("model", [{"params": "1M", "context": 128}, EXPERTS])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_states_are_what_the_optimizer_holds(model: dict[str, Any], name: str, tmp_path: Path) -> None:
    """Counted tensor by tensor."""
    run = planned(tmp_path, model=model, optimizer={"name": name, "settings": {"ema": 0.9}})
    assert run.model is not None
    spec, _ = spec_of(run.model, VOCABULARY)
    held = device_bytes(run, spec, sizes_of(run, spec, None), "float32", ONE, on_cpu=True)
    built = new_model(spec, 0)
    config = TrainConfig(optimizer=run.optimizer.name, ema=0.9)
    optimization = Optimization(built.named_parameters(), config, kinds=kinds_of(built.modules()))
    kept = {n: t.numel() * t.element_size() for n, t in optimization.tensors().items() if not n.startswith("step/")}
    by_kind = {
        kind: sum(size for n, size in kept.items() if n.startswith(f"{kind}/")) for kind in ("parameter", "average")
    }
    assert held["weights"] == by_kind["parameter"]
    assert held["average"] == by_kind["average"]
    assert held["optimizer"] == sum(kept.values()) - sum(by_kind.values())
