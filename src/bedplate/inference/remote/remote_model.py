"""One model of an endpoint behind the protocol of whoever answers (`engine.answers.Answers`).

The endpoint's tokenizer is not known here, and it is sent texts: the tokens of its requests and results are the bytes
of these texts in UTF-8. It generates; what it cannot be asked (scores, vectors, grammars) is refused by name.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bedplate.core.closing import Closing
from bedplate.core.errors import RequestError, need_failure
from bedplate.inference.engine.answers import Facts
from bedplate.inference.engine.requests import (
    FinishReason,
    Generate,
    Generation,
    Request,
    RequestTiming,
    Result,
    Sampling,
    Step,
    Stream,
    Usage,
)
from bedplate.inference.remote.endpoint import Endpoint

_SETTINGS = ("top_p", "presence_penalty", "frequency_penalty", "seed")
"""Sampling settings of the protocol's chat requests; they are sent where they differ from the defaults."""


class RemoteModel(Closing):
    """A model of an endpoint, asked with up to `concurrency` requests at once. Closing it closes the endpoint.

    with RemoteModel(Endpoint("http://localhost:8000"), "llama") as model:
        stream = model.submit(Generate(tuple(model.tokenize("The capital of France is"))))
        print(stream.result().text)
    """

    def __init__(self, endpoint: Endpoint, model: str, *, context_length: int = 1 << 20, concurrency: int = 8) -> None:
        self.endpoint, self.model = endpoint, model
        self._context_length = context_length
        self._pool = ThreadPoolExecutor(concurrency, "bedplate-remote")
        self.alive = True

    def submit(self, request: Request, /) -> Stream:
        """Sends the prompt as one message of a user. RequestError for what an endpoint cannot be asked."""
        if not isinstance(request, Generate) or request.grammar is not None or request.vectors:
            asked = "a grammar or vectors" if isinstance(request, Generate) else type(request).__name__
            raise RequestError(
                f"{self.model} at {self.endpoint.url} generates text only; it cannot be asked for {asked}"
            )
        stream = Stream(request)
        self._pool.submit(self._answer, stream, request)
        return stream

    def run(self, requests: Sequence[Request], /) -> list[Result]:
        """Sends all requests and returns their results in order."""
        streams = [self.submit(request) for request in requests]
        return [stream.result() for stream in streams]

    def tokenize(self, text: str, /) -> list[int]:
        """The bytes of the text."""
        return list(text.encode("utf-8", "replace"))

    def describe(self) -> Facts:
        """Describes the model as far as it is known without asking it."""
        return Facts(self.model, frozenset({"generate"}), self._context_length)

    def _answer(self, stream: Stream, request: Generate) -> None:
        started = time.monotonic()
        try:
            message = {"role": "user", "content": bytes(request.tokens).decode("utf-8", "replace")}
            reply = self.endpoint.chat(self.model, [message], **_settings(request.sampling))
            for piece in reply:
                stream.push(Step(None, piece))
                stream.notify()
                if stream.cancelled:
                    reply.close()
                    break
            answer = reply.answer()
            ends: dict[str, FinishReason] = {"length": "length", "cancelled": "cancelled"}
            usage = Usage(answer.prompt_tokens or 0, answer.completion_tokens or 0, answer.cached_tokens or 0)
            timing = RequestTiming(0.0, answer.first_seconds or 0.0, time.monotonic() - started)
            tokens = tuple(answer.text.encode("utf-8", "replace"))
            finish_reason = ends.get(answer.finish_reason, "stop")
            stream.finish(Generation(answer.text, tokens, (), finish_reason, usage, timing=timing))
        except BaseException as error:
            need_failure(error)
            stream.fail(error)

    def close(self) -> None:
        """Waits for running requests, and closes the connections."""
        self.alive = False
        self._pool.shutdown(cancel_futures=True)
        self.endpoint.close()


def _settings(sampling: Sampling) -> dict[str, Any]:
    default = Sampling()
    settings: dict[str, Any] = {"temperature": sampling.temperature}
    for name in _SETTINGS:
        if getattr(sampling, name) != getattr(default, name):
            settings[name] = getattr(sampling, name)
    if sampling.max_tokens is not None:
        settings["max_tokens"] = sampling.max_tokens
    if sampling.stop:
        settings["stop"] = list(sampling.stop)
    return settings
