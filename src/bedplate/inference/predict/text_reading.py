"""Requests of texts that are read, not continued: their vectors, and the labels of a base's own head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from bedplate.core.errors import ContextLengthExceeded, RequestError, UsageError
from bedplate.inference.engine.requests import Embed, Label, Pooling
from bedplate.models.checkpoints.base import Base
from bedplate.models.specs.sentence import Similarity
from bedplate.models.specs.transformer import Classifier
from bedplate.text.tokenizer import EncoderInput, TextOrPair, Tokenizer

QUERIES, DOCUMENTS = ("query",), ("document", "passage", "corpus")
"""Publishers' names of the prompts of queries and of documents (as sentence-transformers)."""

Read = TextOrPair | tuple[int, ...]
"""A text, a pair of texts, or a text's token ids."""


def prompt_of(base: Base, name: str | None = None) -> str:
    """The publisher's prompt before a text, by name (None: the default one). RequestError for an unknown name."""
    spec = None if base.sentence is None else base.sentence.spec
    prompts = {} if spec is None else dict(spec.prompts)
    name = name if name is not None or spec is None else spec.default_prompt
    if name is None:
        return ""
    if name not in prompts:
        available = f"it has {', '.join(prompts)}" if prompts else "it has none"
        raise RequestError(f"{base.name} has no prompt {name!r}; {available}", param="prompt_name")
    return prompts[name]


def side_prompt(base: Base, *names: str) -> str:
    """The first of these prompts that the base has, or what stands before any text: for queries, and for what is
    searched, where publishers call them differently."""
    prompts = {} if base.sentence is None else dict(base.sentence.spec.prompts)
    return prompt_of(base, next((name for name in names if name in prompts), None))


def text_tokens(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """A text's tokens with the special ones that the tokenizer sets, as for /v1/embeddings."""
    return tuple(tokenizer.reading.encode(text, add_special_tokens=True, parse_special=False))


def longest(base: Base, truncate: bool | int) -> int | None:
    """The length that a text is cut to; None where none is cut. True: as its publisher says, or to the context."""
    if truncate is False:
        return None
    max_tokens = None if base.sentence is None else base.sentence.spec.max_tokens
    max_tokens = max_tokens or base.need_tokenizer().max_length
    whole = base.spec.context_length
    return min((max_tokens or whole) if truncate is True else truncate, whole)


def embed_requests(
    base: Base,
    texts: Sequence[str | tuple[int, ...]],
    *,
    prompt: str = "",
    truncate: bool | int = False,
    pooling: Pooling | None = None,
    **common: Any,
) -> list[Embed]:
    """One request for each text, or its token ids as they are. `prompt`: what stands before each text. `common`: more
    fields. RequestError for a text without tokens, ContextLengthExceeded for one that the base cannot take whole."""
    skip = _prompt_tokens(base, prompt)
    inputs = _tokens(base, [prompt + text if isinstance(text, str) else text for text in texts], truncate)
    return [
        Embed(encoder_input.ids, pooling, skip=skip if isinstance(text, str) else 0, **common)
        for text, encoder_input in zip(texts, inputs, strict=True)
    ]


def label_requests(base: Base, inputs: Sequence[Read], *, truncate: bool | int = False) -> list[Label]:
    """One request for each text or pair."""
    if base.spec.classifier is None:
        raise RequestError(f"{base.name} has no labels of its own; ask a classifier, or a skin", param="model")
    has_types = base.spec.main.token_types > 1
    return [
        Label(encoder_input.ids, encoder_input.types if has_types else ())
        for encoder_input in _tokens(base, inputs, truncate)
    ]


def _tokens(base: Base, inputs: Sequence[Read], truncate: bool | int) -> list[EncoderInput]:
    written = [_written(raw_input) for raw_input in inputs]
    texts = [text for text in written if text is not None]
    if base.sentence is not None and base.sentence.spec.lower:
        # One character at a time, as the library that did it in training: no letter looks at its neighbours.
        texts = ["".join(map(str.lower, text)) if isinstance(text, str) else text for text in texts]
    try:
        encoded = iter(base.need_tokenizer().encoder_inputs(texts, longest(base, truncate)) if texts else ())
    except UsageError as error:
        raise RequestError(str(error), param="truncate_prompt_tokens") from error
    encoded_inputs = [
        next(encoded) if text is not None else EncoderInput(cast("tuple[int, ...]", raw_input))
        for raw_input, text in zip(inputs, written, strict=True)
    ]
    for number, encoder_input in enumerate(encoded_inputs):
        if not encoder_input.ids:
            raise RequestError(f"input {number} has no tokens, so there is nothing to read", param="input")
        if len(encoder_input.ids) > base.spec.context_length:
            message = f"input {number} has {len(encoder_input.ids):,} tokens; {base.name} reads"
            advice = "at most: shorten it, or ask for it to be cut"
            raise ContextLengthExceeded(f"{message} {base.spec.context_length:,} {advice}", param="input")
    return encoded_inputs


def _written(raw_input: Read) -> TextOrPair | None:
    """The text or pair; None for token ids."""
    written = isinstance(raw_input, str) or (raw_input and isinstance(raw_input[0], str))
    return cast(TextOrPair, raw_input) if written else None


def _prompt_tokens(base: Base, prompt: str) -> int:
    """The number of first tokens that are the prompt's, where these are not pooled."""
    if not prompt or base.sentence is None or base.sentence.spec.pools_prompt:
        return 0
    (prompt_input,) = _tokens(base, [prompt], False)
    return len(prompt_input.ids) - (prompt_input.ids[-1] in base.need_tokenizer().special_ids)


def gives_numbers(head: Classifier) -> bool:
    """Whether a head's scores are numbers, and no probabilities."""
    return head.problem == "score" and (head.raw or len(head.labels) > 1)


def label_scores(head: Classifier, logits: Sequence[float]) -> list[float]:
    """Label scores from a head's logits: probabilities that sum to 1 where one label is right, independent ones where
    several may be, and for a single label its sigmoid, or the number itself where the head gives that."""
    if gives_numbers(head):
        return list(logits)
    if head.problem == "one":
        top = max(logits)
        weights = [math.exp(logit - top) for logit in logits]
        return [weight / sum(weights) for weight in weights]
    return [1 / (1 + math.exp(-logit)) if logit > -700 else 0.0 for logit in logits]


def similarities(compared: Similarity, vectors: Sequence[Sequence[float]]) -> list[float]:
    """The similarity of each further vector to the first one: higher is nearer, distances are negated."""
    query, *candidates = (np.asarray(vector, dtype=np.float64) for vector in vectors)
    if compared == "cosine":
        query = query / (np.linalg.norm(query) or 1.0)
        return [float(query @ candidate) / (float(np.linalg.norm(candidate)) or 1.0) for candidate in candidates]
    if compared == "dot":
        return [float(query @ candidate) for candidate in candidates]
    order = 1 if compared == "manhattan" else 2
    return [-float(np.linalg.norm(query - candidate, order)) for candidate in candidates]
