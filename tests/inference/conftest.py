"""A tiny base in float32, shared by the room's tests, and transformers' model of the same files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.tiny import write_tiny_base

from bedplate.inference.predict.local import LocalModel
from bedplate.models.checkpoints.base import load_base


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def model(tiny_dir: Path) -> Iterator[LocalModel]:
    with LocalModel(load_base(tiny_dir)) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def reference(tiny_dir: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32).eval().requires_grad_(False)
