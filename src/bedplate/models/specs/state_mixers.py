"""What may stand in the place of a layer's attention and keeps a state: parts of a TransformerSpec, as data."""

from __future__ import annotations

from dataclasses import dataclass

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.checks import at_least


@dataclass(frozen=True)
class ShortConvolution:
    """A causal convolution between two gates in the place of attention (LFM2, https://arxiv.org/abs/2511.23404).

    width: tokens that it sees, the last of them its own. bias: of the convolution and of both projections.
    """

    width: int = 3
    bias: bool = False

    def __post_init__(self) -> None:
        at_least(self, 2, "width")


@dataclass(frozen=True)
class DeltaRule:
    """A gated delta network in the place of attention (https://arxiv.org/abs/2412.06464).

    heads: of values, each with a state [key_dim, value_dim]; consecutive ones share one of `key_heads` queries and
    keys. width: of the convolution before it, in tokens.
    """

    heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    width: int = 4

    def __post_init__(self) -> None:
        at_least(self, 1, "heads", "key_heads", "key_dim", "value_dim")
        at_least(self, 2, "width")
        if self.heads % self.key_heads:
            raise UnsupportedModelError(
                f"{self.heads} value heads cannot share {self.key_heads} key heads: they must be a multiple"
            )

    @property
    def channels(self) -> int:
        """Features that pass the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.heads * self.value_dim

    @property
    def state_shape(self) -> tuple[int, int, int]:
        return self.heads, self.key_dim, self.value_dim


@dataclass(frozen=True)
class Mamba2:
    """A selective state space in the place of attention (https://arxiv.org/abs/2405.21060).

    heads of `head_dim` features, each with a state [state_dim, head_dim]; `groups` of consecutive heads share what is
    written with and read by. width: of the convolution before it, in tokens. bias: of the projections. step_limits:
    the step of a token is kept between them.
    """

    heads: int
    head_dim: int
    groups: int
    state_dim: int
    width: int = 4
    convolution_bias: bool = True
    bias: bool = False
    step_limits: tuple[float, float] = (0.0, float("inf"))

    def __post_init__(self) -> None:
        at_least(self, 1, "heads", "head_dim", "groups", "state_dim")
        at_least(self, 2, "width")
        if self.heads % self.groups:
            raise UnsupportedModelError(f"{self.heads} heads cannot be {self.groups} groups: they must be a multiple")

    @property
    def inner(self) -> int:
        """Features of all heads."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Features that pass the convolution."""
        return self.inner + 2 * self.groups * self.state_dim

    @property
    def state_shape(self) -> tuple[int, int, int]:
        return self.heads, self.state_dim, self.head_dim


StateMixer = ShortConvolution | DeltaRule | Mamba2


@dataclass(frozen=True)
class StateSpec:
    """What some layers have in the place of attention, and which ones, repeated over the layers; () is (True,) where
    there is a mixer."""

    layers: tuple[bool, ...] = ()
    mixer: StateMixer | None = None
