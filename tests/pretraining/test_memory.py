"""What a dry run says that a device holds is what torch allocates there while the run trains."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pretraining.runs import tiny_run
from tests.rows import slow_unless

from bedplate.pretraining.plan.dry_run import device_bytes
from bedplate.pretraining.plan.sizes import config_of, sizes_of, spec_of
from bedplate.pretraining.run.pretrain import new_model
from bedplate.pretraining.runfile.file import RunFile
from bedplate.text.bpe import train_bpe
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.objective import CorruptedSource, Corrupting, CorruptionVocabulary
from bedplate.training.optimizers import Optimization, classify_parameters
from bedplate.training.ranks import ALONE, Ranks
from bedplate.training.sources import DocumentSource

VOCABULARY = 1024
SINGLE_DEVICE = {"data": 1, "shard": 1, "expert": 1, "tensor": 1}
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


ENCODER_DECODER = {
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
SENTINELS = [f"<extra_id_{number}>" for number in range(40)]


def planned(directory: Path, **changes: Any) -> RunFile:
    """Two steps, of two passes each where nothing else is said."""
    common: dict[str, Any] = {
        "model": {"params": "1M", "context": 128},
        "batch": {"tokens": 2048, "micro_tokens": 1024},
        "tokens": 4096,
        "dtype": "float32",
    }
    return tiny_run(directory, **{**common, **changes})


def peak_of(call: Any) -> int:
    """The most bytes that torch's allocator had given out at any moment of a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    assert result is not None
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


@cache
def tokenizer() -> Tokenizer:
    return train_bpe(["a text to train on"], 320, "a test", ("[MASK]", *SENTINELS, "[R]", "[S]", "[X]"))


def trained(run: RunFile, out: Path, ranks: Any = None) -> Any:
    """The run's own settings and model, on rows without an end."""
    assert run.model is not None
    spec, _ = spec_of(run.model, VOCABULARY, run.objective)
    rows = sizes_of(run, spec, 10**6)
    model = new_model(spec, 0)
    resolved_ranks: Ranks = ALONE if ranks is None else ranks(model)
    documents = [[(7 * n + 3 * i) % VOCABULARY for i in range(rows.length)] for n in range(2 * rows.batch)]
    source: Any = DocumentSource(documents, rows.length, rows.batch, micro_rows=rows.micro, shard=resolved_ranks.shard)
    objective, parameters = run.made_objective(), list(model.named_parameters())
    if isinstance(objective, Corrupting):
        source = CorruptedSource(source, objective, CorruptionVocabulary(tokenizer(), VOCABULARY, (0,)), 0)
    return train(model, source, objective, config_of(run, rows), out, parameters, ranks=resolved_ranks)


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
    "spans": {
        **PASS,
        "model": ENCODER_DECODER,
        "objective": "span_corruption",
        "objective_settings": {"sentinels": SENTINELS},
    },
    "denoisers": {
        **PASS,
        "model": ENCODER_DECODER,
        "objective": "mixture_of_denoisers",
        "objective_settings": {"sentinels": SENTINELS},
    },
}


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What torch sets up once is not a run's."""
    directory = tmp_path_factory.mktemp("warm")
    trained(planned(directory, **SMALL), directory / "out")


QUICK_CASES = ("adamw", "muon and an average", "spans")


@pytest.mark.parametrize("name", slow_unless(QUICK_CASES.__contains__, CASES))
def test_memory_is_what_is_allocated(name: str, tmp_path: Path) -> None:
    run = planned(tmp_path, **CASES[name])
    assert run.model is not None
    spec, _ = spec_of(run.model, VOCABULARY, run.objective)
    byte_counts = device_bytes(run, spec, sizes_of(run, spec, None), run.dtype, SINGLE_DEVICE, on_cpu=True)
    assert peak_of(lambda: trained(run, tmp_path / "out")) == pytest.approx(sum(byte_counts.values()), rel=0.1), (
        byte_counts
    )


@pytest.mark.parametrize("model", [{"params": "1M", "context": 128}, EXPERTS])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_states_are_what_the_optimizer_holds(model: dict[str, Any], name: str, tmp_path: Path) -> None:
    """Counted tensor by tensor."""
    run = planned(tmp_path, model=model, optimizer={"name": name, "settings": {"ema": 0.9}})
    assert run.model is not None
    spec, _ = spec_of(run.model, VOCABULARY)
    byte_counts = device_bytes(run, spec, sizes_of(run, spec, None), "float32", SINGLE_DEVICE, on_cpu=True)
    built = new_model(spec, 0)
    config = TrainConfig(optimizer=run.optimizer.name, ema=0.9)
    optimization = Optimization(built.named_parameters(), config, parameter_roles=classify_parameters(built.modules()))
    tensor_bytes = {
        n: t.numel() * t.element_size() for n, t in optimization.tensors().items() if not n.startswith("step/")
    }
    by_kind = {
        prefix: sum(size for n, size in tensor_bytes.items() if n.startswith(f"{prefix}/"))
        for prefix in ("parameter", "average")
    }
    assert byte_counts["weights"] == by_kind["parameter"]
    assert byte_counts["average"] == by_kind["average"]
    assert byte_counts["optimizer"] == sum(tensor_bytes.values()) - sum(by_kind.values())
