"""Where states are kept: behind one interface, in a file whose layout earlier versions wrote too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bedplate.core.errors import TrainingError
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import Sft
from bedplate.training.sources import ExampleSource
from bedplate.training.state import RunState, StateFile

CONFIG = TrainConfig(learning_rate=0.01, save_steps=2, save_seconds=None)


class InMemory:
    """Keeps every state."""

    def __init__(self) -> None:
        self.states: dict[int, RunState] = {}

    def save(self, step: int, state: RunState) -> None:
        tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
        self.states[step] = RunState(tensors, json.loads(json.dumps(state.values)))

    def latest(self) -> int | None:
        return max(self.states, default=None)

    def values(self, step: int) -> dict[str, Any]:
        return self.states[step].values

    def load(self, step: int, templates: Mapping[str, torch.Tensor] | None = None) -> RunState:
        return self.states[step]

    def settle(self) -> None:
        pass

    def remove(self) -> None:
        self.states.clear()


def stop_at(target_step: int):
    def stop(step: int, _: object) -> None:
        if step == target_step:
            raise InterruptedError

    return stop


def run(model, examples, out: Path, on_checkpoint=None, store=None):
    source = ExampleSource(examples, 2, order="shuffled", epochs=2)
    train(model, source, Sft(), CONFIG, out, model.named_parameters(), on_checkpoint, store=store)
    return dict(model.named_parameters())


def test_a_run_resumes_from_any_store_and_from_any_state_in_it(make_decoder, make_examples, tmp_path) -> None:
    examples, store = make_examples(8), InMemory()
    expected = run(make_decoder(torch.float32), examples, tmp_path / "file")
    with pytest.raises(InterruptedError):
        run(make_decoder(torch.float32), examples, tmp_path / "memory", stop_at(4), store)
    assert sorted(store.states) == [2, 4]
    assert not StateFile(tmp_path / "memory").path.exists()
    del store.states[4]
    resumed = run(make_decoder(torch.float32), examples, tmp_path / "memory", store=store)
    assert sorted(store.states) == [2, 4, 6, 8]
    assert all(torch.equal(value, expected[name]) for name, value in resumed.items())
    lines = [(tmp_path / out / "metrics.jsonl").read_text().splitlines() for out in ("file", "memory")]
    assert [json.loads(line)["loss"] for line in lines[0]] == [json.loads(line)["loss"] for line in lines[1]]


def test_the_file_holds_the_last_state(make_decoder, make_examples, tmp_path) -> None:
    store = StateFile(tmp_path)
    assert store.latest() is None
    run(make_decoder(), make_examples(8), tmp_path)
    assert store.latest() == 8
    assert store.load(8).values["tally"]["step"] == 8
    with pytest.raises(TrainingError, match="after step 8, not 6"):
        store.load(6)
    store.remove()
    store.remove()
    assert store.latest() is None


def test_a_file_of_an_earlier_version_is_resumed(make_decoder, make_examples, tmp_path) -> None:
    """Its layout, key by key."""
    examples = make_examples(8)
    expected = run(make_decoder(torch.float32), examples, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(make_decoder(torch.float32), examples, tmp_path / "parts", stop_at(4))
    path = StateFile(tmp_path / "parts").path
    with safe_open(path, "pt") as file:
        values = json.loads(file.metadata()["bedplate"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(values) == {"version", "fingerprint", "arithmetic", "source", "metrics_bytes", "random", "tally"}
    assert values["version"] == 1
    assert set(values["fingerprint"]) == {"objective", "config", "source", "trainable", "identity"}
    assert set(values["fingerprint"]["config"]) == {
        *("learning_rate", "schedule", "warmup", "decay", "final", "beta1", "beta2", "eps", "weight_decay", "clip"),
        *("steps", "seed"),
    }
    assert set(values["fingerprint"]["source"]) == {
        *("examples", "batch_size", "epochs", "seed", "order", "share_prefix", "micro_tokens"),
    }
    assert values["source"] == {"epoch": 1, "step": 0}
    assert set(values["tally"]) == {"step", "examples", "tokens", "seconds", "losses"}
    names = [name for name, _ in make_decoder().named_parameters()]
    assert set(tensors) == {"rng/torch"} | {
        f"{key}/{name}" for key in ("parameter", "step", "exp_avg", "exp_avg_sq") for name in names
    }
    save_file(tensors, path, {"bedplate": json.dumps(values)})
    resumed = run(make_decoder(torch.float32), examples, tmp_path / "parts")
    assert all(torch.equal(value, expected[name]) for name, value in resumed.items())
