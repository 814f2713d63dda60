"""A diffusion transformer as data: DiT with adaLN-zero (2212.09748), and the two-stream MMDiT of SD3 (2403.03206)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.checks import at_least, refuse


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
    """A transformer over patches of a latent image, modulated by timestep and condition in every block.

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
