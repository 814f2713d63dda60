"""Validates requests against a base before they are queued: vocabulary, context length, soft prompts, depth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bedplate.core.errors import ContextLengthExceeded, NotFiniteError, RequestError, UsageError
from bedplate.models.checkpoints.base import Base
from bedplate.models.checkpoints.long_context import extended_context

if TYPE_CHECKING:
    from bedplate.inference.engine.requests.base import PromptVectors


def check_decoder(base: Base, verb: str) -> None:
    """RequestError where the base is an encoder, which cannot generate text."""
    if not base.writes:
        description = "a decoder without its head" if base.causal else "an encoder"
        raise RequestError(f"{base.name} is {description}: it embeds texts, and cannot {verb}")


def check_prompt(base: Base, tokens: Sequence[int], virtual: int, new_tokens: int = 0) -> None:
    """RequestError for an empty prompt, or one with token ids outside of the vocabulary; ContextLengthExceeded where it
    does not fit behind `virtual` soft-prompt tokens with `new_tokens` to generate."""
    if not tokens:
        raise RequestError("the prompt has no tokens; it needs at least one", param="prompt")
    check_ids(base, tokens, vocabulary=base.spec.source_vocab_size)
    if base.has_encoder:
        _check_sides(base, len(tokens), new_tokens)
    elif len(tokens) + virtual + new_tokens > base.spec.context_length:
        behind = f" behind {virtual} of a soft prompt" if virtual else ""
        longest = extended_context(base)
        longer = f"; what `bedplate convert --long-context` writes of this base has {longest}" if longest else ""
        raise ContextLengthExceeded(
            f"the prompt has {len(tokens)} tokens{behind} and {new_tokens} more are asked for, but the context of "
            f"{base.name} is {base.spec.context_length} tokens; shorten the prompt or ask for fewer{longer}",
            param="max_tokens" if new_tokens else "prompt",
        )


def _check_sides(base: Base, prompt: int, new_tokens: int) -> None:
    """ContextLengthExceeded where a prompt is too long for the encoder, or an answer for the decoder."""
    if prompt > base.spec.context_length:
        message = f"the prompt has {prompt} tokens, but the encoder of {base.name} reads {base.spec.context_length}"
        raise ContextLengthExceeded(f"{message}; shorten it", param="prompt")
    room = base.answer_room(prompt)
    if new_tokens > room:
        message = f"{new_tokens} tokens are asked for, but the decoder of {base.name} writes {room}; ask for fewer"
        raise ContextLengthExceeded(message, param="max_tokens")


def check_ids(base: Base, tokens: Sequence[int], param: str = "prompt", vocabulary: int | None = None) -> None:
    """RequestError for a token id outside of the vocabulary. vocabulary: its size, by default that of the model's
    output."""
    vocabulary = base.spec.vocab_size if vocabulary is None else vocabulary
    if tokens and not 0 <= min(tokens) <= max(tokens) < vocabulary:
        bad = next(token for token in tokens if not 0 <= token < vocabulary)
        prefix = "" if param == "prompt" else f"{param}: "
        raise RequestError(f"{prefix}token id {bad} is outside the vocabulary of {vocabulary}", param=param)


def check_room(longest: int | None, prompt: int, new_tokens: int, pinned: int = 0, cached: int = 0) -> None:
    """ContextLengthExceeded where a sequence cannot fit the engine's cache even when it is the only one there.

    longest: tokens that the cache holds. pinned: tokens of pinned prefixes, which are never evicted; the prompt's first
    `cached` tokens are among them.
    """
    if longest is not None and prompt + new_tokens - cached > longest - pinned:
        pinned_note = f" beside {pinned} pinned ones" if pinned else ""
        raise ContextLengthExceeded(
            f"the prompt has {prompt} tokens and {new_tokens} more are asked for, but this engine's cache holds "
            f"{longest} tokens{pinned_note}; shorten the prompt, ask for fewer, or give the engine more memory "
            "(slot_bytes)",
            param="max_tokens" if prompt < longest - pinned else "prompt",
        )


def not_finite(base: Base, adapter: str | None) -> NotFiniteError:
    dtype = str(base.dtype).removeprefix("torch.")
    owner = base.name if adapter is None else f"adapter {adapter!r} on {base.name}"
    return NotFiniteError(
        f"the numbers of {owner} became infinite or NaN in {dtype}, so there is no answer; load the base in a wider "
        f"dtype{'' if adapter is None else ', or train the adapter again'}"
    )


def check_depth(base: Base, depth: int | None) -> None:
    if depth is not None and not 0 <= depth <= base.spec.layers:
        raise RequestError(f"depth {depth} is not between 0 and {base.spec.layers}", param="depth")


def check_prompt_vectors(base: Base, parts: Sequence[PromptVectors], prompt: int) -> None:
    """RequestError for vectors that do not fit the base, or a prompt of `prompt` tokens."""
    if not base.continues:
        raise RequestError(f"the encoder of {base.name} reads token ids; it takes no vectors", param="vectors")
    for part in parts:
        shape, size = list(part.vectors_PD.shape), base.spec.hidden_size
        if len(shape) != 2 or shape[1] != size or not 0 <= part.start <= part.start + shape[0] <= prompt:
            raise RequestError(
                f"vectors of shape {shape} from position {part.start} on do not fit: {base.name} takes [P, {size}], "
                f"within the prompt's {prompt} tokens",
                param="vectors",
            )
        if not re.fullmatch("[0-9a-f]{64}", part.sha256):
            raise RequestError("the sha256 of vectors must be 64 lower-case hexadecimal digits", param="vectors")


def check_vectors(base: Base, vectors: Tensor) -> Tensor:
    """Returns a soft prompt's vectors on the base's device, in its dtype. UsageError where they do not fit."""
    size = base.spec.hidden_size
    if vectors.dim() != 2 or vectors.shape[1] != size or not 0 < len(vectors) < base.spec.context_length:
        raise UsageError(f"a soft prompt for {base.name} is a shorter matrix [P, {size}], not {list(vectors.shape)}")
    vectors = vectors.detach().to(base.device, base.dtype)
    if not bool(torch.isfinite(vectors).all()):
        raise UsageError("the soft prompt holds numbers that are not finite in the base's dtype; train it again")
    return vectors
