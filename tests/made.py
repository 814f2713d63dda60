"""Bases of random weights that stand in no file, for tests of what every architecture has to do; and a skin on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.tiny import write_tiny_base

from bedplate.models.build import build
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.identity import Identity
from bedplate.models.families import FAMILIES, Family
from bedplate.models.specs.transformer import TransformerSpec
from bedplate.skins.files import write_skin
from bedplate.skins.output import LabelOutput
from bedplate.skins.phrasings import default_continuations, default_prompt
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, Skin

LABELS = ("negative", "positive")


def made_base(spec: TransformerSpec, family: Family | None = None, seed: int = 0) -> Base:
    """A float32 base of this spec without a tokenizer, its weights spread enough that greedy text is no repetition."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = build(spec)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return Base(
        spec=spec,
        held=model.eval().requires_grad_(False),
        tokenizer=None,
        family=family or FAMILIES["hf", "llama"],
        identified=Identity("made", "none", "none"),
        source="made",
        path=Path("made"),
        dtype=torch.float32,
        device=torch.device("cpu"),
        stored_dtype="float32",
    )


def label_skin(root: Path) -> Path:
    """A skin that decides between two labels by a prompt, on a tiny base beside it: `root`/skin and `root`/base."""
    base = load_base(write_tiny_base(root / "base"))
    skin = Skin(
        name="sentiment",
        bases={"main": BaseReference.of(str(root / "base"), "llama", base.identity)},
        inputs={"review": InputField()},
        output=LabelOutput(labels=LABELS, continuations=default_continuations(LABELS)),
        prompt=default_prompt("reviews", "Decide.", ["review"], LABELS),
        evaluated_with=EvaluatedWith(weights="float32"),
    )
    return write_skin(skin, root / "skin")
