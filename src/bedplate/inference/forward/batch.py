"""The input and output of a forward pass: `FlatBatch` and `PassOutput`; and the loaded adapters that its rows run on.

Shapes: N tokens of a flat batch, W of them whose logits are needed, V vocabulary, D features, P vectors, T patches and
C channels of a latent, S conditioning states.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from bedplate.adapters.bank import BASE_ROW
from bedplate.adapters.linear_adapter import AdapterConfig
from bedplate.inference.forward.spans import Span


@dataclass(eq=False)
class LoadedAdapter:
    """One version of an adapter or soft prompt, or the base (key None); also the namespace of its cached prefixes.

    slot: in the bank. virtual: number of soft-prompt tokens. parent: the adapter whose slot a soft prompt uses. users:
    number of requests and soft prompts that use it. config: its shape, for updates. fingerprint: SHA-256 of its
    weights, once computed.
    """

    key: str | None
    slot: int = BASE_ROW
    virtual: int = 0
    parent: LoadedAdapter | None = None
    users: int = 0
    retired: bool = False
    config: AdapterConfig | None = None
    version: int = 1
    fingerprint: str | None = None
    freed: threading.Event = field(default_factory=threading.Event)

    @property
    def virtual_tokens(self) -> tuple[int, ...]:
        """Placeholder ids of the soft prompt's vectors, outside of every vocabulary."""
        return tuple(range(-self.virtual, 0))


@dataclass(frozen=True)
class FlatBatch:
    """The new tokens of several sequences, concatenated, with the inputs that are not tokens.

    logit_indices: indices of the tokens whose logits are needed. likeliest: only the likeliest successor of each is
    needed (see `Greedy`); logits may be returned all the same. depth: number of blocks to run; None: all. states: the
    hidden states of all tokens are needed. types: token types; () where all are 0. sources: texts that the encoder
    reads first, into their rows of the cache. reads: the tokens are whole texts for the encoder, and spans have no
    rows. vectors: features that replace the embeddings of some tokens. latents: denoising calls made in the same pass.
    """

    tokens: Sequence[int]
    spans: Sequence[Span]
    adapters: Sequence[LoadedAdapter]
    logit_indices: Sequence[int]
    depth: int | None = None
    states: bool = False
    types: Sequence[int] = ()
    sources: Sequence[EncoderSource] = ()
    reads: bool = False
    likeliest: bool = False
    vectors: Sequence[VectorInput] = ()
    latents: Sequence[LatentInput] = ()


@dataclass(frozen=True)
class VectorInput:
    """Features [P, D] that replace the embeddings of the batch's tokens from index `at` on."""

    at: int
    vectors_PD: Tensor


@dataclass(frozen=True)
class LatentInput:
    """One denoising call: noisy latents [T, C], their timestep, and any states [S, D] that condition them."""

    latents_TC: Tensor
    timestep: float
    adapter: LoadedAdapter
    condition_SD: Tensor | None = None


@dataclass(frozen=True)
class EncoderSource:
    """The text that an encoder reads for one sequence; its keys and values go to the beginning of the sequence's
    row."""

    row: int
    tokens: Sequence[int]
    adapter: LoadedAdapter


@dataclass(frozen=True)
class Greedy:
    """The likeliest successor of each token whose logits are needed, its log-probability, and the logits' logsumexp."""

    tokens: list[int]
    logprobs: list[float]
    logsumexp: list[float]


@dataclass(frozen=True)
class PassOutput:
    """logits_WV: float32; None where `greedy` is all that was needed. hidden_ND: the output of the last norm, or the
    states after `depth` blocks. greedy: set where the forward computes it on the way. denoised: the prediction of each
    denoising call [T, C]."""

    logits_WV: Tensor | None
    hidden_ND: Tensor | None = None
    greedy: Greedy | None = None
    denoised: Sequence[Tensor] = ()
