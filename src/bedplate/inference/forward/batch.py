"""What a forward pass is given, and what it gives.

Shapes: N tokens of a flat batch, W of them whose logits are wanted, V vocabulary, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from bedplate.inference.forward.adapters import Loaded
from bedplate.inference.forward.spans import Span


@dataclass(frozen=True)
class FlatBatch:
    """New tokens of several sequences, one after the other.

    logit_indices: numbers of the tokens whose logits are asked for. likeliest: of these no more than what follows likeliest
    (see Greedy); logits may be given all the same. depth: run so many blocks only. states: hidden states of all tokens
    are asked for. types: of the tokens; () where all are 0. sources: texts that the encoder reads before,
    which end up in their rows of the cache. reads: the tokens are whole texts for the encoder themselves, and spans
    have no rows.
    """

    tokens: Sequence[int]
    spans: Sequence[Span]
    adapters: Sequence[Loaded]
    logit_indices: Sequence[int]
    depth: int | None = None
    states: bool = False
    types: Sequence[int] = ()
    sources: Sequence[EncoderSource] = ()
    reads: bool = False
    likeliest: bool = False


@dataclass(frozen=True)
class EncoderSource:
    """What an encoder reads for one sequence: it stands at the beginning of the row."""

    row: int
    tokens: Sequence[int]
    adapter: Loaded


@dataclass(frozen=True)
class Greedy:
    """What rows need of their logits: each wanted token's likeliest successor, its log-probability, and the log of the
    sum that makes logits into log-probabilities."""

    tokens: list[int]
    logprobs: list[float]
    logsumexp: list[float]


@dataclass(frozen=True)
class PassOutput:
    """logits_WV: float32; None where no more than `greedy` was asked for and found. hidden_ND: the last norm's output,
    or the state after `depth` blocks. greedy: where the forward found it on the way."""

    logits_WV: Tensor | None
    hidden_ND: Tensor | None = None
    greedy: Greedy | None = None
