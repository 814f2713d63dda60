"""A base on this machine, ready to be asked: what `bedplate.load` returns for a base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray

from bedplate.core import display
from bedplate.core.arguments import checked
from bedplate.core.closing import Closing
from bedplate.core.errors import ContextLengthExceeded, RequestError
from bedplate.inference.engine.engine import Compute, Engine
from bedplate.inference.engine.requests import (
    Classification,
    Embedding,
    Generate,
    Generation,
    Pooling,
    Sampling,
    Score,
    Scores,
)
from bedplate.inference.execution.plan import Kernel, Weights
from bedplate.inference.predict.engine_answers import EngineAnswers
from bedplate.inference.predict.text_reading import embed_requests, label_requests, label_scores, prompt_of, text_tokens
from bedplate.models.checkpoints.base import Base
from bedplate.models.inputs import Inputs
from bedplate.text.tokenizer import TextOrPair, Tokenizer

if TYPE_CHECKING:  # a base alone has no need of them
    from bedplate.inference.predict.predictor import Predictor
    from bedplate.skins.skin import Skin


class LocalModel(EngineAnswers, Closing, display.Displayable):
    """A base with its engine, opened with these weights and kernel. compute: the lock of several that take turns.
    Close it, or use it as a context manager."""

    def __init__(
        self, base: Base, *, weights: Weights = "auto", kernel: Kernel = "auto", compute: Compute | None = None
    ) -> None:
        self.base = base
        self.engine = Engine(base, weights=weights, kernel=kernel, compute=compute)

    @property
    def tokenizer(self) -> Tokenizer:
        """The base's tokenizer; CheckpointError where it has none."""
        return self.base.need_tokenizer()

    @checked
    def generate(
        self,
        prompt: str | Sequence[Mapping[str, str]] | Sequence[int],
        *,
        max_tokens: int | None = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> Generation:
        """Continues a text, answers a conversation (a list of messages), or continues token ids. See Sampling for the
        settings. Raises RequestError, or ContextLengthExceeded where prompt and max_tokens do not fit together (nothing
        is cut off)."""
        sampling = Sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
        return cast(Generation, self.engine.run([Generate(self._ids(prompt), sampling)])[0])

    @checked
    def score(self, prompt: str, continuations: Sequence[str]) -> list[float]:
        """The total log-probability (natural log) of each continuation after the prompt. Prompt and continuation are
        tokenised together; where a continuation's first characters merge with the prompt's last into one token, that
        token is scored too."""
        requests: list[Score] = []
        for continuation in continuations:
            context, continued = self.tokenizer.split_continuation(prompt, continuation)
            if not context or not continued:
                raise RequestError(f"{continuation!r} adds no token to the prompt, so there is nothing to score")
            requests.append(Score(tuple(context), (tuple(continued),)))
        return [total for result in self.engine.run(_merged(requests)) for total in cast(Scores, result).totals]

    @checked
    def embed(
        self,
        texts: Sequence[str],
        *,
        pooling: Pooling | None = None,
        prompt_name: str | None = None,
        truncate: bool | int = False,
    ) -> NDArray[np.float32]:
        """Vectors float32 [N, E]: a sentence encoder's own (what sentence-transformers gives), or means over the states
        of the tokens after the last norm, of unit length.

        pooling: another one ("first", "last", "max" …) of the states as they are, to unit length; special tokens that
        the tokenizer sets ([CLS], [SEP]) take part. prompt_name: which of the encoder's prompts stands before each
        text; None: its default, if it has one. truncate: cut longer texts, to so many tokens or (True) to what the
        encoder was trained on, instead of raising ContextLengthExceeded.
        """
        if isinstance(texts, str):
            raise RequestError("embed takes a list of texts; put the text into a list")
        prompt = prompt_of(self.base, prompt_name)
        requests = embed_requests(self.base, texts, prompt=prompt, truncate=truncate, pooling=pooling)
        vectors = [cast(Embedding, result).vector for result in self.engine.run(requests)]
        size = self.base.embedding_size if pooling is None else self.base.spec.hidden_size
        return np.array(vectors, dtype=np.float32).reshape(len(vectors), size)

    @checked
    def classify(self, inputs: Sequence[TextOrPair], *, truncate: bool | int = False) -> list[dict[str, float]]:
        """The score of every label of the base's own head, for each text or pair of texts: probabilities, or numbers
        where the head was made for them. RequestError for a base without such a head."""
        head = self.base.spec.classifier
        results = self.engine.run(label_requests(self.base, inputs, truncate=truncate))
        assert head is not None
        scores = [label_scores(head, cast(Classification, result).scores) for result in results]
        return [dict(zip(head.labels, row_scores, strict=True)) for row_scores in scores]

    def text_tokens(self, text: str) -> tuple[int, ...]:
        """A text as it is embedded: with the special tokens that the tokenizer sets."""
        return text_tokens(self.tokenizer, text)

    @checked
    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Next-token logits after each of the tokens, float32 [T, V]."""
        if not self.base.writes:
            raise RequestError(f"{self.base.name} writes no text; it has no next-token logits")
        if not tokens or not all(0 <= token < self.base.spec.vocab_size for token in tokens):
            raise RequestError(f"logits needs one or more token ids between 0 and {self.base.spec.vocab_size - 1}")
        if len(tokens) > self.base.spec.main.context_length:
            raise ContextLengthExceeded(
                f"{len(tokens)} tokens are given, but the context of {self.base.name} is "
                f"{self.base.spec.main.context_length} tokens; give fewer"
            )
        with self.engine.exclusive() as base, torch.inference_mode():
            hidden = base.model(Inputs(torch.tensor([list(tokens)], device=base.device))).hidden[0]
            return base.model.head(hidden).float().cpu().numpy()

    def predictor(
        self, skin: Skin, *, embedder: LocalModel | None = None, allow_other_weights: bool = False
    ) -> Predictor:
        """The skin on this base, and on `embedder` where it has a second one. SkinError where it belongs to another, or
        was judged with other weights or another kernel."""
        from bedplate.inference.predict.predictor import Predictor

        second = None if embedder is None else embedder.engine
        return Predictor(self.engine, skin, embedder=second, allow_other_weights=allow_other_weights)

    def _ids(self, prompt: str | Sequence[Mapping[str, str]] | Sequence[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(self.tokenizer.encode_prompt(prompt))
        if prompt and isinstance(prompt[0], Mapping):
            return tuple(self.tokenizer.encode_chat(cast(Sequence[Mapping[str, str]], prompt)))
        return tuple(cast(Sequence[int], prompt))

    @property
    def facts(self) -> dict[str, str]:
        """The model's key facts, a few words each."""
        able = ", ".join(sorted(self.base.can))
        runtime = f"{self.engine.weights} weights, kernel {self.engine.kernel}, on {self.base.device}"
        context = f"{self.base.spec.context_length:,} tokens of context"
        return {"name": self.base.name, "context": context, "can": able, "held": runtime}

    def close(self) -> None:
        """Ends the engine, which gives its memory back."""
        self.engine.close()


def _merged(requests: Sequence[Score]) -> list[Score]:
    """One request where all have the same prompt, so that it is computed once."""
    if len({request.tokens for request in requests}) == 1:
        return [Score(requests[0].tokens, tuple(request.continuations[0] for request in requests))]
    return list(requests)
