"""A vision tower as data: patches, and an encoder over them (ViT, https://arxiv.org/abs/2010.11929; CLIP; SigLIP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.checks import at_least, refuse
from bedplate.models.specs.transformer import TransformerSpec


@dataclass(frozen=True)
class VisionSpec:
    """A square image of `image_size` pixels a side is cut into patches of `patch_size`; each becomes one token.

    frames: images that one patch spans (2 in Qwen2-VL, where a still image is shown twice). class_token: a learned
    token before the patches. patch_bias: the patches' projection has a bias. pooling: how the tokens become one vector:
    "map" is SigLIP's attention pooling with a learned query and its feed-forward (https://arxiv.org/abs/2303.15343),
    "linear" a projection of the class token with tanh (BERT's pooler). projection_size: of CLIP's bias-free map to
    the space shared with text; 0: none. classes: of a classification head; 0: none. Positions are the tower's.
    """

    tower: TransformerSpec
    image_size: int
    patch_size: int
    channels: int = 3
    frames: int = 1
    class_token: bool = False
    patch_bias: bool = True
    pooling: Literal["map", "linear"] | None = None
    projection_size: int = 0
    classes: int = 0

    def __post_init__(self) -> None:
        refuse(self.tower.kind != "tower", f"the vision tower's kind is {self.tower.kind!r}: it must be 'tower'")
        at_least(self, 1, "image_size", "patch_size", "channels", "frames")
        at_least(self, 0, "projection_size", "classes")
        if self.image_size < self.patch_size:
            raise UnsupportedModelError(f"an image of {self.image_size} pixels has no patch of {self.patch_size}")
        if self.tower.positions not in (0, self.tokens):
            raise UnsupportedModelError(
                f"the tower has {self.tower.positions} learned positions, but the image makes {self.tokens} tokens"
            )

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        """Tokens that the tower sees of one image."""
        return self.patches + self.class_token
