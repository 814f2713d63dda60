"""A skin on disk, for tests of what reads one."""

from __future__ import annotations

from pathlib import Path

from tests.tiny import write_tiny_base

from bedplate.models.checkpoints.base import load_base
from bedplate.skins.files import write_skin
from bedplate.skins.output import LabelOutput
from bedplate.skins.phrasings import default_continuations, default_prompt
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, Skin

LABELS = ("negative", "positive")


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
