"""What every architecture says of itself, so that nobody asks for its class: what it can do, and what it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bedplate.core.errors import UsageError
from bedplate.models.inputs import Inputs, Outputs
from bedplate.models.layers.attention import Attend
from bedplate.models.specs import TextSpec

Ability = Literal["generate", "score", "embed", "classify", "denoise", "transcribe", "encode"]


class Model(nn.Module, ABC):
    """A module that computes what a spec says.

    can: what its outputs are for. reads: the flat fields of a spec that it does something with. spec: what it was built
    from.
    """

    can: ClassVar[frozenset[Ability]]
    reads: ClassVar[frozenset[str]]
    spec: TextSpec
    readers: int = 0
    """How many engines may compute with these weights at any moment."""
    converted: bool = False
    """Whether a training run has put the weights into another dtype for its time."""

    @property
    def writes(self) -> bool:
        """Whether it writes text."""
        return "generate" in self.can

    @property
    def has_encoder(self) -> bool:
        """Whether an encoder reads the prompt beside the decoder that writes the answer."""
        return "encode" in self.can

    @property
    def dtype(self) -> torch.dtype:
        """The type of its first parameter, which is that of all but what is computed more exactly."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def token_table(self) -> nn.Embedding:
        """The vectors of tokens [V, D]. UsageError for a model that reads none."""
        raise UsageError(f"this {self.spec.kind} has no table of tokens")

    @abstractmethod
    def forward(
        self, inputs: Inputs, cache: Attend | None = None, capture: Collection[str] = (), depth: int | None = None
    ) -> Outputs:
        """Hidden states [B, T, D]: of the last block, or after `depth` blocks; those named in `capture` beside them."""

    def encode(
        self, inputs: Inputs, attend: Attend | None = None, capture: Collection[str] = (), depth: int | None = None
    ) -> Outputs:
        """The states of what is read: for all but an encoder–decoder, those that it has anyway. attend: who sees whom,
        where that is not for `inputs.segments` to say."""
        return self(inputs, attend, capture, depth)

    def cross_keys(self, states_BSD: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of an encoder's states, for each of the decoder's layers. UsageError without an encoder."""
        raise UsageError(f"this {self.spec.kind} has no encoder whose states it attends to")

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Next-token logits [N, V] of hidden states [N, D]. UsageError for what cannot generate."""
        can = ", ".join(sorted(self.can))
        raise UsageError(f"this {self.spec.kind} has no next-token logits; it can {can}")

    def denoise(self, latents_BTC: Tensor, timesteps_B: Tensor, condition_BSD: Tensor | None = None) -> Tensor:
        """The prediction [B, T, C] (noise, velocity or data) for noisy latents at these timesteps, conditioned on
        states [B, S, D] if any are given. UsageError for what cannot denoise."""
        raise UsageError(f"this {self.spec.kind} does not denoise")

    def label_logits(self, pooled_ND: Tensor) -> Tensor:
        """Logits [N, L] of the checkpoint's own labels, of states pooled as `spec.classifier` says. UsageError where it
        has none."""
        raise UsageError(f"this {self.spec.kind} has no labels of its own")
