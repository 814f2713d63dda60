"""Bases of random weights that stand in no file, for tests of what every architecture has to do."""

from __future__ import annotations

from pathlib import Path

import torch

from bedplate.models.build import build
from bedplate.models.checkpoints.base import Base
from bedplate.models.checkpoints.identity import Identity
from bedplate.models.families import FAMILIES, Family
from bedplate.models.specs.transformer import TransformerSpec


def made_base(spec: TransformerSpec, family: Family | None = None, seed: int = 0) -> Base:
    """A float32 base of this spec without a tokenizer, its weights spread enough that greedy text is no repetition."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = build(spec)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return Base(
        spec=spec,
        raw_model=model.eval().requires_grad_(False),
        tokenizer=None,
        family=family or FAMILIES["hf", "llama"],
        identified=Identity("made", "none", "none"),
        source="made",
        path=Path("made"),
        dtype=torch.float32,
        device=torch.device("cpu"),
        stored_dtype="float32",
    )
