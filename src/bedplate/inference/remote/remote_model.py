"""One model of an endpoint behind the protocol of whoever answers (`engine.answers.Answers`).

The endpoint's tokenizer is not known here, and it is sent texts: the tokens of its requests and results are the bytes
of these texts in UTF-8. It generates; what it cannot be asked (scores, vectors, grammars) is refused by name.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from typing import Any

from bedplate.core.closing import Closing
from bedplate.core.errors import RequestError, UsageError, need_failure
from bedplate.inference.engine.answers import Facts
from bedplate.inference.engine.requests import (
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
from bedplate.inference.remote.endpoint import ChatAnswer, Endpoint

_SENT = frozenset(("max_tokens", "temperature", "stop", "top_p", "presence_penalty", "frequency_penalty", "seed"))
"""Sampling settings of the protocol's chat requests."""


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
        """Sends the prompt as one message of a user. RequestError for a request or a setting that the API of endpoints
        does not have, UsageError where the model is closed."""
        settings, stream = self._settings(request), Stream(request)

        def fail_where_dropped(future: Future[None]) -> None:
            if future.cancelled():
                stream.fail(UsageError("the model was closed before this request was sent"))

        try:
            future = self._pool.submit(self._answer, stream, settings)
        except RuntimeError:
            raise UsageError(f"the connection to {self.endpoint.url} is closed; open the model again") from None
        future.add_done_callback(fail_where_dropped)
        return stream

    def _settings(self, request: Request) -> dict[str, Any]:
        """The fields of a chat request beside its messages. RequestError for what would be lost on the way."""
        endpoint = f"{self.model} at {self.endpoint.url}"
        if not isinstance(request, Generate) or request.grammar is not None or request.vectors:
            raise RequestError(f"{endpoint} generates text only")
        if request.adapter is not None:
            raise RequestError(f"{endpoint} takes no adapter of this process; leave it out", param="model")
        if any(not 0 <= token < 256 for token in request.tokens):
            raise RequestError(f"{endpoint} takes the bytes of a text: ids from 0 to 255", param="prompt")
        settings, default = dict[str, Any](), Sampling()
        for name in (setting.name for setting in fields(Sampling)):
            value = getattr(request.sampling, name)
            changed = value != getattr(default, name)
            if changed and name not in _SENT:
                raise RequestError(f"{name} cannot be sent to {endpoint}; leave it at its default", param=name)
            if changed or name in ("temperature", "max_tokens"):
                settings[name] = list(value) if name == "stop" else value
        return {name: value for name, value in settings.items() if value is not None}

    def run(self, requests: Sequence[Request], /) -> list[Result]:
        streams = [self.submit(request) for request in requests]
        return [stream.result() for stream in streams]

    def tokenize(self, text: str, /) -> list[int]:
        """The bytes of the text."""
        return list(text.encode("utf-8", "replace"))

    def describe(self) -> Facts:
        return Facts(self.model, frozenset({"generate"}), self._context_length)

    def _answer(self, stream: Stream, settings: dict[str, Any]) -> None:
        started = time.monotonic()
        try:
            if stream.cancelled:
                raise RequestError("the request was cancelled before it was sent", code="cancelled")
            message = {"role": "user", "content": bytes(stream.request.tokens).decode("utf-8", "replace")}
            reply = self.endpoint.chat(self.model, [message], **settings)
            for piece in reply:
                stream.push(Step(None, piece))
                stream.notify()
                if stream.cancelled:
                    reply.close()
                    break
            generation = self._generation(reply.answer(), time.monotonic() - started)
            stream.push(Step(None, "", finish_reason=generation.finish_reason))
            stream.finish(generation)
        except BaseException as error:
            need_failure(error)
            stream.fail(error)

    def _generation(self, answer: ChatAnswer, seconds: float) -> Generation:
        usage = Usage(answer.prompt_tokens or 0, answer.completion_tokens or 0, answer.cached_tokens or 0)
        timing, reason = RequestTiming(0.0, answer.first_seconds or 0.0, seconds), answer.finish_reason
        finish_reason = reason if reason in ("length", "cancelled") else "stop"
        tokens = tuple(self.tokenize(answer.text))
        return Generation(answer.text, tokens, (), finish_reason, usage=usage, timing=timing)

    def close(self) -> None:
        """Waits for running requests, fails those that were not sent yet, and closes the connections."""
        self.alive = False
        self._pool.shutdown(cancel_futures=True)
        self.endpoint.close()
