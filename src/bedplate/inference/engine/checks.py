"""Refusing what an engine cannot run, before it is queued."""

from __future__ import annotations

import torch
from torch import Tensor

from bedplate.core.errors import ContextLengthExceeded, RequestError, UsageError
from bedplate.inference.engine.requests import Classify, Embed, Generate, Request, Sampling, Score
from bedplate.models.checkpoints.base import Base


def check_request(base: Base, request: Request, virtual: int) -> int:
    """Raises RequestError for what cannot run behind `virtual` soft-prompt tokens; returns the number of tokens to
    generate at most."""
    vocabulary, context = base.spec.vocab_size, base.spec.context_length
    sequences: list[tuple[int, ...]] = [request.tokens]
    if not request.tokens:
        raise RequestError("the prompt has no tokens; it needs at least one", param="prompt")
    if isinstance(request, Generate | Score) and "generate" not in base.model.can:
        verb = "generate" if isinstance(request, Generate) else "score"
        raise RequestError(f"{base.name} is an encoder: it embeds texts, and cannot {verb}")
    if isinstance(request, Score):
        if not request.continuations or not all(request.continuations):
            raise RequestError("scoring needs continuations of at least one token each", param="continuations")
        sequences += request.continuations
    for tokens in sequences:
        if min(tokens) < 0 or max(tokens) >= vocabulary:
            bad = next(token for token in tokens if not 0 <= token < vocabulary)
            raise RequestError(f"token id {bad} is outside the vocabulary of {vocabulary}", param="prompt")
    depth = request.depth if isinstance(request, Classify | Embed) else None
    if depth is not None and not 0 <= depth <= base.spec.layers:
        raise RequestError(f"depth {depth} is not between 0 and {base.spec.layers}", param="depth")
    length = len(request.tokens) + virtual
    wanted = max((len(c) for c in request.continuations), default=0) if isinstance(request, Score) else 0
    if isinstance(request, Generate):
        _check_ids(request.sampling, vocabulary)
        # "To the context's end" asks for at least one token: a prompt that fills the context has no answer.
        asked = request.sampling.max_tokens
        wanted = max(context - length, 1) if asked is None else asked
    if length + wanted > context:
        behind = f" behind {virtual} of a soft prompt" if virtual else ""
        raise ContextLengthExceeded(
            f"the prompt has {len(request.tokens)} tokens{behind} and {wanted} more are asked for, but the context of "
            f"{base.name} is {context} tokens; shorten the prompt or ask for fewer",
            param="max_tokens" if wanted else "prompt",
        )
    return wanted


def _check_ids(sampling: Sampling, vocabulary: int) -> None:
    ids = {"logit_bias": [token for token, _ in sampling.logit_bias], "stop_token_ids": sampling.stop_token_ids}
    for param, tokens in ids.items():
        bad = next((token for token in tokens if not 0 <= token < vocabulary), None)
        if bad is not None:
            raise RequestError(f"{param}: token id {bad} is outside the vocabulary of {vocabulary}", param=param)


def check_vectors(base: Base, vectors: Tensor) -> Tensor:
    """A soft prompt's vectors on the base's device, in its dtype. Raises UsageError where they do not fit."""
    size = base.spec.hidden_size
    if vectors.dim() != 2 or vectors.shape[1] != size or not 0 < len(vectors) < base.spec.context_length:
        raise UsageError(
            f"a soft prompt for {base.name} is a matrix [P, {size}] of fewer than {base.spec.context_length} rows, not "
            f"{list(vectors.shape)}"
        )
    if not bool(torch.isfinite(vectors).all()):
        raise UsageError("the soft prompt holds numbers that are not finite; train it again")
    return vectors.detach().to(base.device, base.dtype)
