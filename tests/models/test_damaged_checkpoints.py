"""Checkpoints that are not what they say: another model's tokenizer, code of their own, values that are no numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import write_tiny_base

import bedplate
from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.inference.execution.plan import read_stored
from bedplate.models.checkpoints.base import load_base


def change(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    directory = write_tiny_base(tmp_path / "a")
    change(directory, auto_map={"AutoConfig": "configuration.C", "AutoModelForCausalLM": "modeling.LlamaForCausalLM"})
    load_base(directory)  # what a family reads is read
    change(directory, auto_map={"AutoModelForCausalLM": "modeling.MyModel"})
    with pytest.raises(UnsupportedModelError, match=r"its model is 'MyModel', not 'LlamaForCausalLM'; the Python code"):
        load_base(directory)
    change(directory, auto_map=["modeling.MyModel"])
    with pytest.raises(CheckpointError, match="auto_map must be an object"):
        load_base(directory)
    change(directory, auto_map={"AutoModelForCausalLM": "modeling.MyModel"}, model_type="mine")
    with pytest.raises(UnsupportedModelError, match=r"'mine' is not supported.*Python code that its auto_map names"):
        load_base(directory)


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    directory = write_tiny_base(tmp_path / "a")
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    beyond = tokenizer["added_tokens"][-1] | {"id": 1_000, "content": "other", "special": False}
    path.write_text(json.dumps(tokenizer | {"added_tokens": [*tokenizer["added_tokens"], beyond]}))
    with pytest.raises(CheckpointError, match=r"tokenizer has \d+ ids, but the model has only \d+ rows"):
        load_base(directory)


def test_a_damaged_config_is_refused_before_a_model_is_built_of_it(tmp_path: Path) -> None:
    directory = write_tiny_base(tmp_path / "a")
    change(directory, num_hidden_layers=10**7)
    for opened in (load_base, read_stored, bedplate.load):
        with pytest.raises(CheckpointError, match="asks for 10000000 layers"):
            opened(directory)
    (directory / "config.json").write_text("[" * 100_000)
    for opened in (load_base, bedplate.load):
        with pytest.raises(CheckpointError, match=r"config\.json is not"):
            opened(directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    directory = write_tiny_base(tmp_path / "a", dtype=torch.bfloat16)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"layers\.1\.feedforward\.up\.weight holds NaN or infinite values"):
        load_base(directory)
