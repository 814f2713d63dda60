"""Weights are checked as they are read, held in the dtype that keeps them, and hashed once, when somebody asks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import write_tiny_base
from torch import Tensor
from transformers import BertConfig, BertModel

from bedplate.core import files as core_files
from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.core.files import bedplate_home
from bedplate.inference.execution.plan import lossless_dtypes, read_stored
from bedplate.models.checkpoints import base as base_loading
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.identity import WeightsHash
from bedplate.models.families import FAMILIES

UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def rewritten(directory: Path, name: str, change: Callable[[Tensor], Tensor]) -> Path:
    """The base with one tensor changed, written into the same file."""
    tensors = load_file(directory / "model.safetensors")
    tensors[name] = change(tensors[name].clone())
    save_file({key: value.clone() for key, value in tensors.items()}, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of tensors, as they are hashed; small and new files are kept like large and old ones."""
    monkeypatch.setattr(base_loading, "_KEPT_FROM", 0)
    monkeypatch.setattr(core_files, "_TICK_NS", 0)
    names: list[str] = []
    add = WeightsHash.add

    def noted(self: WeightsHash, name: str, tensor: Tensor) -> None:
        names.append(name)
        add(self, name, tensor)

    monkeypatch.setattr(WeightsHash, "add", noted)
    return names


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_hashed_when_asked_for_and_once_for_a_file(tmp_path: Path, hashed: list[str], dtype: str) -> None:
    directory = write_tiny_base(tmp_path / "base")
    base = load_base(directory, dtype=dtype)
    assert hashed == []
    first = base.identity
    assert sorted(hashed) == sorted(dict(base.model.named_parameters()))
    assert base.identity is first
    assert load_base(directory, dtype="bfloat16").identity == first
    assert len(hashed) == len(set(hashed))


def test_another_content_is_hashed_anew_also_where_its_time_was_set_back(tmp_path: Path, hashed: list[str]) -> None:
    directory = write_tiny_base(tmp_path / "base")
    file = directory / "model.safetensors"
    first, count, was = load_base(directory).identity, len(hashed), file.stat()
    rewritten(directory, UP, lambda tensor: tensor + 1)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    assert load_base(directory).identity != first
    assert len(hashed) == 2 * count


def test_what_has_changed_since_it_was_loaded_is_not_taken_for_what_was(tmp_path: Path, hashed: list[str]) -> None:
    directory = write_tiny_base(tmp_path / "base")
    base = load_base(directory, dtype="bfloat16")
    rewritten(directory, UP, lambda tensor: tensor + 1)
    with pytest.raises(CheckpointError, match="has changed since it was loaded"):
        _ = base.identity
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is gone"):
        _ = base.identity


def test_a_hash_that_cannot_be_one_is_made_again(tmp_path: Path, hashed: list[str]) -> None:
    directory = write_tiny_base(tmp_path / "base")
    first, count = load_base(directory).identity, len(hashed)
    for record in (bedplate_home() / "machine").glob("weights-*.json"):
        record.write_text(record.read_text().replace(first.weights_id, "abc"))
    assert load_base(directory).identity == first
    assert len(hashed) == 2 * count


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.bfloat16, torch.float32), torch.float32),
        ((torch.float32, torch.bfloat16), torch.float32),
        ((torch.bfloat16, torch.float16), torch.float32),
        ((torch.bfloat16, torch.bfloat16), torch.bfloat16),
    ],
)
def test_a_base_is_held_in_what_keeps_all_its_matrices(
    tmp_path: Path, dtypes: tuple[torch.dtype, torch.dtype], expected: torch.dtype
) -> None:
    """dtypes: the token table's, and all others'."""
    directory = write_tiny_base(tmp_path / "base", dtype=dtypes[1])
    rewritten(directory, EMBEDDING, lambda tensor: tensor.to(dtypes[0]))
    base = load_base(directory)
    assert base.dtype == expected
    stored = load_file(directory / "model.safetensors")
    assert torch.equal(base.model.state_dict()["layers.1.feedforward.up.weight"].double(), stored[UP].double())
    assert torch.equal(base.model.state_dict()["embedding.weight"].double(), stored[EMBEDDING].double())
    assert lossless_dtypes(read_stored(directory).types)[0] == str(expected).removeprefix("torch.")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor: (tensor * 100).to(torch.int8), "holds int8 values where real numbers are expected"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "holds float8_e4m3fn values where real numbers are expected"),
        (lambda tensor: tensor.fill_(float("nan")), "holds NaN or infinite values; the checkpoint is damaged"),
    ],
)
def test_what_is_no_weight_is_refused_by_name(tmp_path: Path, change: Callable[[Tensor], Tensor], words: str) -> None:
    directory = rewritten(write_tiny_base(tmp_path / "base"), UP, change)
    with pytest.raises(CheckpointError, match=rf"layers\.1\.feedforward\.up\.weight {words}"):
        load_base(directory)


def test_values_that_a_dtype_cannot_hold_are_refused_for_it_alone(tmp_path: Path) -> None:
    directory = rewritten(write_tiny_base(tmp_path / "base"), UP, lambda tensor: tensor.fill_(1e5))
    with pytest.raises(CheckpointError, match=r"up\.weight holds values that float16 cannot"):
        load_base(directory, dtype="float16")
    assert load_base(directory, dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_fields_that_change_nothing_are_read_over(family: str) -> None:
    config = {**FAMILIES["hf", family].examples[0], "model_type": family}
    spec = FAMILIES["hf", family].to_spec(config)
    harmless = {"unsloth_fixed": True, "unsloth_version": "2025.1.5", "max_sequence_length": 2_048, "unk_token_id": 0}
    poolers = {"pooler_fc_size": 768, "pooler_type": "first_token_transform", "directionality": "bidi"}
    extra = harmless | {"pruned_heads": {}} | (poolers if family == "bert" else {})
    assert FAMILIES["hf", family].to_spec(config | extra) == spec
    with pytest.raises(UnsupportedModelError, match="pruned_heads"):
        FAMILIES["hf", family].to_spec(config | {"pruned_heads": {"0": [1]}})


def test_old_names_of_layer_norms_are_known(tmp_path: Path) -> None:
    """As in files that were converted from TensorFlow's, bert-base-uncased among them."""
    torch.manual_seed(0)
    model = BertModel(BertConfig(**FAMILIES["hf", "bert"].examples[0]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    before = load_base(tmp_path).model.state_dict()
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value.clone()
        for name, value in load_file(tmp_path / "model.safetensors").items()
    }
    assert sum(name.endswith(("gamma", "beta")) for name in tensors) > 4
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    after = load_base(tmp_path).model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
