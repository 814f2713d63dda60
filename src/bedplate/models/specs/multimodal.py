"""A multimodal model as data: towers whose states a projector maps to tokens of a language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.checks import at_least, refuse
from bedplate.models.specs.transformer import TransformerSpec
from bedplate.models.specs.vision import VisionSpec


@dataclass(frozen=True)
class Projector:
    """From a tower's states to the language model's embeddings.

    hidden_size: None: one linear map; otherwise two with an activation between (LLaVA-1.5, 2310.03744). norm: of the
    tower's states before. merge: tokens a side that are put side by side and become one (Qwen2-VL); pool: tokens a side
    that are averaged first (Gemma-3). keeps_class_token: whether the class token goes on.
    """

    hidden_size: int | None = None
    bias: bool = True
    norm: Literal["rms", "layer"] | None = None
    merge: int = 1
    pool: int = 1
    keeps_class_token: bool = False

    def __post_init__(self) -> None:
        at_least(self, 1, "merge", "pool")
        if self.hidden_size is not None:
            at_least(self, 1, "hidden_size")


@dataclass(frozen=True)
class MultimodalSpec:
    """A decoder that reads images as tokens among its own (LLaVA, Qwen2-VL, Gemma-3)."""

    language: TransformerSpec
    vision: VisionSpec
    projector: Projector

    def __post_init__(self) -> None:
        if self.language.kind != "decoder":
            raise UnsupportedModelError(f"the language model's kind is {self.language.kind!r}: it must be 'decoder'")
        side = self.vision.image_size // self.vision.patch_size
        for name, value in (("merge", self.projector.merge), ("pool", self.projector.pool)):
            refuse(side % value, f"{name} is {value}, which does not divide the {side} patches of a side")

    @property
    def image_tokens(self) -> int:
        """Tokens of the language model that one image takes."""
        side = self.vision.image_size // self.vision.patch_size // (self.projector.merge * self.projector.pool)
        return side * side + (self.vision.class_token and self.projector.keeps_class_token)
