"""What local models and predictors share: an engine of this machine answers for them."""

from __future__ import annotations

from collections.abc import Sequence

from bedplate.inference.engine.answers import ModelDescription
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Request, Result, Stream


class EngineAnswers:
    """What a base and a skin on an engine of this machine have alike: they answer requests, each as `_on_weights` has
    it."""

    engine: Engine

    def _on_weights(self, request: Request) -> Request:
        """The request, on the weights that are asked."""
        return request

    @property
    def alive(self) -> bool:
        """Whether submitted requests still get answers."""
        return self.engine.alive

    def submit(self, request: Request, /) -> Stream:
        """Queues a request. RequestError for one that cannot run, BusyError where the queue is full."""
        return self.engine.submit(self._on_weights(request))

    def run(self, requests: Sequence[Request], /) -> list[Result]:
        """Answers requests together and returns their results in order."""
        return self.engine.run([self._on_weights(request) for request in requests])

    def tokenize(self, text: str, /) -> list[int]:
        """Token ids of a text as a prompt, with the special tokens that the tokenizer adds."""
        return self.engine.tokenize(text)

    def describe(self) -> ModelDescription:
        """The base's name, abilities, context length and tokenizer."""
        return self.engine.describe()
