"""What a kernel reads from a GGUF file itself stays there until somebody wants the whole model."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import write_tiny_base

from bedplate.core.errors import CheckpointError
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.export import export_gguf
from bedplate.models.checkpoints.gguf import GgufReader, StoredBlocks
from bedplate.models.gguf_header import read_header
from bedplate.models.model import Model

SIZES = {"hidden_size": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "feedforward_size": 96}
DOWN = "layers.1.feedforward.down.weight"


def blocks_only(model: Model, block_types: Mapping[str, str]) -> Collection[str]:
    return [name for name in block_types if name.startswith("layers.")]


@pytest.fixture(params=["q4_1", "q8_0"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    export_gguf(load_base(write_tiny_base(tmp_path / "base", **SIZES)), tmp_path / "x.gguf", request.param)
    return tmp_path / "x.gguf"


def deferred_names(base: Base) -> set[str]:
    return {name for name, tensor in base.raw_model.state_dict().items() if tensor.is_meta}


def test_what_is_left_is_read_when_the_model_is_wanted_and_is_the_same(path: Path) -> None:
    whole, base = load_base(path), load_base(path, leave=blocks_only)
    matrices = {name for name, tensor in whole.model.state_dict().items() if tensor.dim() == 2}
    assert deferred_names(base) == {name for name in matrices if name.startswith("layers.")} != set()
    assert (base.can, base.identity) == (whole.can, whole.identity)
    assert deferred_names(base)  # neither asks for the weights of the model
    embedding = base.raw_model.embedding.weight.data_ptr()
    with torch.inference_mode():
        model = base.model
    assert model is base.raw_model
    assert not deferred_names(base)
    assert model.embedding.weight.data_ptr() == embedding  # a kernel may hold on to it
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert not any(p.requires_grad or p.is_inference() for p in model.parameters())


def test_threads_that_want_it_at_once_read_it_once(path: Path) -> None:
    base, models = load_base(path, leave=blocks_only), list[Model]()
    threads = [threading.Thread(target=lambda: models.append(base.model)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(models) == 4
    assert len(set(map(id, models))) == 1
    assert not deferred_names(base)


def test_a_file_that_has_changed_is_not_taken_for_what_was_loaded(path: Path) -> None:
    base = load_base(path, leave=blocks_only)
    assert base.deferred is not None
    path.write_bytes(path.read_bytes())
    for _ in range(2):
        with pytest.raises(CheckpointError, match="has changed since it was loaded"):
            _ = base.model
    path.unlink()
    with pytest.raises(CheckpointError, match="is gone"):
        _ = base.model


def test_nothing_is_left_where_nothing_is_in_blocks(tmp_path: Path) -> None:
    export_gguf(load_base(write_tiny_base(tmp_path / "base", **SIZES)), tmp_path / "x.gguf", "f16")
    base = load_base(tmp_path / "x.gguf", leave=blocks_only)
    assert base.deferred is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_blocks_that_are_no_numbers_are_refused_by_name(path: Path, value: float) -> None:
    base = load_base(path, leave=blocks_only)
    placed = read_header(path).tensors["blk.1.ffn_down.weight"]
    content = bytearray(path.read_bytes())
    content[placed.begin : placed.begin + 2] = np.float16(value).tobytes()
    path.write_bytes(content)
    stored = StoredBlocks(GgufReader(path), base.family.weights, base.spec.main)
    assert stored[DOWN.replace("1", "0")].finite()
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_down\.weight holds NaN or infinite values"):
        _ = stored[DOWN]
