"""Models of images and sound as data: towers, models that read images as tokens, and diffusion transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.checks import at_least, refuse
from bedplate.models.specs.transformer import TransformerSpec


@dataclass(frozen=True)
class VisionSpec:
    """A vision tower (ViT, https://arxiv.org/abs/2010.11929; CLIP; SigLIP): a square image of `image_size` pixels a
    side is cut into patches of `patch_size`; each becomes one token.

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
                f"{self.tower.positions} learned positions, but the image makes {self.tokens} tokens"
            )

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        """Tokens that the tower sees of one image."""
        return self.patches + self.class_token


@dataclass(frozen=True)
class AudioSpec:
    """Whisper's encoder (2212.04356) over the frames of a spectrogram: two convolutions over time (the second of stride
    `stride`), then `tower`.

    mel_bins: features of one frame of the spectrogram. kernel: frames that a convolution sees. A window of
    `window_seconds` is always computed whole; shorter sound is padded to it.
    """

    tower: TransformerSpec
    mel_bins: int
    kernel: int = 3
    stride: int = 2
    window_seconds: float = 30.0
    frames_per_second: float = 100.0

    def __post_init__(self) -> None:
        refuse(self.tower.kind != "tower", f"the audio tower's kind is {self.tower.kind!r}: it must be 'tower'")
        at_least(self, 1, "mel_bins", "kernel", "stride")
        if self.window_seconds <= 0 or self.frames_per_second <= 0:
            raise UnsupportedModelError("window_seconds and frames_per_second must be over 0")

    @property
    def frames(self) -> int:
        """Frames of a window's spectrogram."""
        return round(self.window_seconds * self.frames_per_second)

    @property
    def window_tokens(self) -> int:
        """Tokens that the tower makes of one window."""
        return -(-self.frames // self.stride)


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
        at_least(self, 1, "merge", "pool", "hidden_size")


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


@dataclass(frozen=True)
class TextCondition:
    """Text beside the image's tokens: each block has its own weights for both, and one attention over all of them.

    tokens: of one prompt; size: features of the text encoders' states; pooled_size: of the pooled vector that joins the
    timestep in every block's modulation.
    """

    tokens: int
    size: int
    pooled_size: int

    def __post_init__(self) -> None:
        at_least(self, 1, "tokens", "size", "pooled_size")


@dataclass(frozen=True)
class DiffusionSpec:
    """A diffusion transformer (DiT with adaLN-zero, 2212.09748; SD3's two-stream MMDiT, 2403.03206) over patches of a
    latent image, modulated by timestep and condition in every block.

    latent_size: values a side of the latent; `autoencoder_factor` pixels each. out_channels: of what is predicted
    (8 in DiT: noise and variance). classes: rows of the class table, the one for "no class" included; 0: none.
    text: None: every block sees the image alone. timestep_size: of the sinusoid that the timestep becomes.
    qk_norm: RMS norms of each head's queries and keys (SD3.5). Positions are fixed sinusoids: no parameters.
    """

    layers: int
    hidden_size: int
    heads: int
    feedforward_size: int
    latent_size: int
    latent_channels: int
    out_channels: int
    patch_size: int = 2
    classes: int = 0
    text: TextCondition | None = None
    timestep_size: int = 256
    qk_norm: Literal["head"] | None = None
    autoencoder_factor: int = 8

    def __post_init__(self) -> None:
        at_least(self, 1, "layers", "hidden_size", "heads", "feedforward_size", "latent_size", "latent_channels")
        at_least(self, 1, "out_channels", "patch_size", "timestep_size", "autoencoder_factor")
        at_least(self, 0, "classes")
        refuse(self.hidden_size % self.heads, f"{self.heads} heads do not divide a hidden_size of {self.hidden_size}")
        if self.latent_size % self.patch_size:
            raise UnsupportedModelError(f"patches of {self.patch_size} do not divide a latent of {self.latent_size}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    @property
    def tokens(self) -> int:
        """Tokens of one image."""
        return (self.latent_size // self.patch_size) ** 2

    @property
    def image_size(self) -> int:
        """Pixels a side of the image that the latent stands for."""
        return self.latent_size * self.autoencoder_factor
