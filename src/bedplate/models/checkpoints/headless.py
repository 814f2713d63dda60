"""Decoders whose files leave the head out: embedders, as sentence-transformers and the class of a body save them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bedplate.models.checkpoints.sentence import MODULES
from bedplate.models.families import Family
from bedplate.models.specs import TextSpec


def is_headless(spec: TextSpec, family: Family, names: Collection[str], config: Mapping[str, Any], path: Path) -> bool:
    """Whether a head that is not the token table is left out on purpose (e5-mistral, Qwen3-Embedding-8B): as the
    sentence encoder's file beside it says, or the class that config.json names."""
    if spec.kind != "decoder" or spec.tied_head:
        return False
    if any(family.weights.from_external(name) == "lm_head.weight" for name in names):
        return False
    architectures = config.get("architectures") or ()
    classes = [architectures] if isinstance(architectures, str) else architectures
    # GPT-2's class with a head ends in "LMHeadModel".
    bodies = (str(class_name).endswith("Model") and not str(class_name).endswith("HeadModel") for class_name in classes)
    return (path / MODULES).is_file() or any(bodies)


def body_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of such files in place of what it says of a whole model's."""
    stem = str(config["architectures"][0]).split("For")[0]
    return {"architectures": [f"{stem}Model"], "tie_word_embeddings": False}
