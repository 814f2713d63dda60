"""Client of remote models: an OpenAI-compatible server asked over HTTP, its answers read as they come. Reference: the
API's published schema, "create chat completion"; server-sent events as the HTML standard has them."""

from __future__ import annotations

import contextlib
import email.utils
import json
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast
from urllib.parse import urlsplit

import httpx

from bedplate.core.closing import Closing
from bedplate.core.endpoint_spec import api_address, is_loopback
from bedplate.core.errors import (
    BedplateError,
    BusyError,
    ContextLengthExceeded,
    DeadlineError,
    EndpointError,
    RequestError,
    UnknownModelError,
    UsageError,
)
from bedplate.text.calls.reading import ReplyPiece

RETRIED = frozenset((429, 503))
STUMBLES = frozenset((408, 429, 500, 502, 503, 504))
"""What a patient client asks again after as well: failures that may pass."""
FIRST_WAIT_SECONDS = 0.5
MAX_WAIT_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
_EVENT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class ChatAnswer:
    """A whole answer. Counts are None where the server did not say them; seconds are measured here, from the request.
    extension: what the server says beyond the API (Bedplate: label, log-probability scores).
    reasoning: what the model reasoned before it answered, where the server keeps it apart. alternatives: the answer's
    first token as it could have been, each with its log-probability, where that was asked."""

    text: str
    finish_reason: str
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    first_seconds: float | None = None
    seconds: float = 0.0
    extension: Mapping[str, Any] = field(default_factory=dict[str, Any])
    alternatives: tuple[tuple[str, float], ...] = ()
    reasoning: str = ""


class Endpoint(Closing):
    """One server. Requests that it is too busy for (429, 503) are sent again, as late as its Retry-After says.

    url: "http://host:port" or with "/v1". timeout: seconds without a byte after which an answer is given up. retries:
    how often a busy server is asked again. patient: a server that fails (5xx), falls silent or breaks off is asked
    again too, and waits are drawn from up to twice as long, so that many clients do not come back at once. Safe to
    share between threads. Close it, or use it as a context manager. UsageError for an address or a key that is none.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = 600.0,
        retries: int = 4,
        patient: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = api_address(url)
        self._retries, self._sleep, self._patient = retries, sleep, patient
        if key is not None and not is_key(key):  # httpx would say so too, and quote it
            raise UsageError("the API key has white space in it, or what is not printable ASCII; give the key alone")
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
            # Who asks decides how many requests there are at once: none waits here, its time running, for another.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            # A proxy of the environment is not asked about this machine.
            trust_env=not is_loopback(urlsplit(self.url).hostname or ""),
        )

    def models(self) -> list[dict[str, Any]]:
        content = self._send("GET", "/models").json()
        try:
            return [{**model, "id": str(model["id"])} for model in content["data"]]
        except (KeyError, TypeError, ValueError):
            raise EndpointError(f"{self.url}/models does not answer with a list of models") from None

    def chat(self, model: str, messages: Sequence[Mapping[str, str]], **settings: Any) -> ChatStream:
        """Asks for an answer. `settings`: fields of the API (temperature, max_tokens, seed, stop, …). Raises
        RequestError (ContextLengthExceeded, UnknownModelError) for what the server refuses, BusyError where it stays
        busy, DeadlineError, EndpointError."""
        body = {"model": model, "messages": [dict(message) for message in messages], **settings}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        start = time.perf_counter()
        return ChatStream(self._send("POST", "/chat/completions", body, streamed=True), self.url, start)

    def complete(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        before_retry: Callable[[BedplateError], None] = lambda _: None,
        **settings: Any,
    ) -> ChatAnswer:
        """Asks for an answer and waits for the whole of it; its `seconds` include waits between attempts. Raises what
        `chat` raises. before_retry: is told how each attempt failed that is made again; what it raises ends them."""
        start = time.perf_counter()
        body = {"model": model, "messages": [dict(message) for message in messages], **settings}
        response = self._send("POST", "/chat/completions", body, before_retry=before_retry)
        return _whole_answer(response, self.url, time.perf_counter() - start)

    def _send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        streamed: bool = False,
        before_retry: Callable[[BedplateError], None] = lambda _: None,
    ) -> httpx.Response:
        """The good response, of which only the head has been read where it is `streamed`."""
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                with _failures(self.url):
                    request = self._client.build_request(method, self.url + path, json=body)
                    response = self._client.send(request, stream=True)
                    if not (streamed and response.is_success):
                        with contextlib.closing(response):
                            response.read()
                    if response.is_success:
                        return response
            except (EndpointError, DeadlineError) as error:
                if last or not self._patient:
                    raise
                before_retry(error)
                self._sleep(self._wait(None, attempt))
                continue
            retry_after = _retry_after(response.headers.get("retry-after"))
            wait = self._wait(retry_after, attempt)
            retried = STUMBLES if self._patient else RETRIED
            if response.status_code not in retried or last or (retry_after or 0.0) > MAX_WAIT_SECONDS:
                raise self._error(response, wait if retry_after is None else retry_after)
            before_retry(self._error(response, wait))
            self._sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, retry_after: float | None, attempt: int) -> float:
        """Seconds until the next attempt: what the server asked for, or twice as long each time."""
        wait = min(FIRST_WAIT_SECONDS * 2**attempt, MAX_WAIT_SECONDS) if retry_after is None else retry_after
        return wait * (1 + random.random()) if self._patient else wait

    def _error(self, response: httpx.Response, wait: float) -> BedplateError:
        status = response.status_code
        message, param, code = _error_fields(response)
        if status in {401, 403}:
            return EndpointError(f"{self.url} refuses the API key: {message}", status=status)
        if status in RETRIED:
            later = f" (it asks to wait {wait:g} s)" if "retry-after" in response.headers else ""
            return BusyError(f"{self.url} is busy: {message}{later}")
        if status == 404 and code == "model_not_found":
            return UnknownModelError(message, param=param)
        if code == "context_length_exceeded":
            return ContextLengthExceeded(message, param=param)
        if status >= 500 or code is None:
            return EndpointError(f"{self.url} answered {status}: {message}", status=status)
        return RequestError(message, param=param, code=code)

    def close(self) -> None:
        self._client.close()


def _answer(
    text: str, reason: str, usage: Mapping[str, Any], extension: Mapping[str, Any], seconds: float
) -> ChatAnswer:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    extra = {name: value for name, value in extension.items() if name != "cost_usd"}
    tokens = (usage.get("prompt_tokens"), cached, usage.get("completion_tokens"))
    return ChatAnswer(text, reason, *tokens, extension.get("cost_usd"), seconds=seconds, extension=extra)


def _whole_answer(response: httpx.Response, url: str, seconds: float) -> ChatAnswer:
    """The answer in a reply that was not streamed. EndpointError where it is none of the API."""
    try:
        content: dict[str, Any] = response.json()
        choice: dict[str, Any] = content["choices"][0]
        text = choice["message"]["content"]
        extension = {**(content.get("bedplate") or {}), **(choice.get("bedplate") or {})}
        tokens: list[dict[str, Any]] = (choice.get("logprobs") or {}).get("content") or []
        first = tokens[0].get("top_logprobs") or [] if tokens else []
        reason, usage = str(choice.get("finish_reason") or "stop"), content.get("usage") or {}
        answer = _answer("" if text is None else str(text), reason, usage, extension, seconds)
        alternatives = ((str(alternative["token"]), float(alternative["logprob"])) for alternative in first)
        return replace(answer, alternatives=tuple(alternatives))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise EndpointError(f"{url} sent an answer that is none of the API: {response.text[:80]!r}") from error


class ChatStream:
    """One answer: iterate it once for its texts, or `pieces` for its reasoning too, then ask `answer()`. Closed early,
    the server stops too."""

    def __init__(self, response: httpx.Response, url: str, start: float) -> None:
        self._response, self._url, self._start = response, url, start
        self.text, self.reasoning = "", ""
        self._finish: str | None = None
        self._first: float | None = None
        self._usage: Mapping[str, Any] = {}
        self._extension: dict[str, Any] = {}
        self._seconds = 0.0

    def __iter__(self) -> Iterator[str]:
        """Texts as they come. EndpointError where the answer breaks off or is none."""
        return (piece.text for piece in self.pieces() if piece.section == "content")

    def pieces(self) -> Iterator[ReplyPiece]:
        """Content and reasoning as they come, under the same errors."""
        try:
            with _failures(self._url, self):
                for data in event_data(self._response.iter_bytes()):
                    if data == "[DONE]":
                        break
                    yield from self._read_chunk(data)
        finally:
            self.close()
        if self._finish is None:
            raise EndpointError(f"{self._url} ended the answer after {len(self.text):,} characters without saying why")

    def _read_chunk(self, data: str) -> list[ReplyPiece]:
        try:
            chunk = json.loads(data)
            if "error" in chunk:
                error = chunk["error"]
                message = error.get("message") if isinstance(error, dict) else error
                raise EndpointError(f"{self._url} failed on the answer: {message}", status=500)
            self._usage = chunk.get("usage") or self._usage
            self._extension |= chunk.get("bedplate") or {}
            text = thought = ""
            for choice in chunk["choices"][:1]:
                self._extension |= choice.get("bedplate") or {}
                self._finish = choice.get("finish_reason") or self._finish
                delta = choice.get("delta") or {}
                text = str(delta.get("content") or "")
                # vLLM calls it `reasoning`, most others `reasoning_content`
                thought = str(delta.get("reasoning_content") or delta.get("reasoning") or "")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EndpointError(f"{self._url} sent a chunk that is none of the API: {data[:80]!r}") from error
        if (text or thought) and self._first is None:
            self._first = time.perf_counter() - self._start
        self.text += text
        self.reasoning += thought
        pieces = (ReplyPiece("reasoning", thought), ReplyPiece("content", text))
        return [piece for piece in pieces if piece.text]

    def answer(self) -> ChatAnswer:
        """What came; of a stream that was closed early what had come by then, reason "cancelled"."""
        answer = _answer(self.text, self._finish or "cancelled", self._usage, self._extension, self._seconds)
        return replace(answer, first_seconds=self._first, reasoning=self.reasoning)

    def close(self) -> None:
        """Ends the answer; a second time does nothing."""
        self._seconds = self._seconds or time.perf_counter() - self._start
        self._response.close()


def event_data(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of server-sent events. Only line feeds (and carriage returns before them) end lines: the text of an
    event may hold other characters that Python's `splitlines` would break at."""
    buffer, lines = b"", list[str]()
    for chunk in chunks:
        *whole, buffer = (buffer + chunk).split(b"\n")
        if len(buffer) > _EVENT_BYTES:
            raise EndpointError(f"the server sent an event of more than {_EVENT_BYTES:,} bytes")
        for ended in whole:
            line = ended.removesuffix(b"\r")
            if line.startswith(b"data:"):
                lines.append(line[5:].removeprefix(b" ").decode("utf-8", "replace"))
            elif not line and lines:
                yield "\n".join(lines)
                lines = []


@contextlib.contextmanager
def _failures(url: str, stream: ChatStream | None = None) -> Generator[None]:
    """httpx' failures as ours."""
    try:
        yield
    except httpx.TimeoutException as error:
        if isinstance(error, httpx.ConnectTimeout):
            raise EndpointError(f"{url} cannot be reached in time; is the server running?", status=503) from error
        raise DeadlineError(f"{url} sent nothing for too long; give a longer timeout") from error
    except httpx.ConnectError as error:
        raise EndpointError(f"{url} cannot be reached ({error}); is the server running?", status=503) from error
    except httpx.HTTPError as error:
        progress = "" if stream is None else f" after {len(stream.text):,} characters"
        raise EndpointError(f"{url} broke off its answer{progress} ({error})") from error


def is_key(text: str) -> bool:
    """Whether a header can carry it as a key: printable ASCII without white space."""
    return bool(text) and all("!" <= character <= "~" for character in text)


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number of them or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return seconds if seconds >= 0 else None
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _error_fields(response: httpx.Response) -> tuple[str, str | None, str | None]:
    """Message, param and code of an error; code None where it is not in the API's form."""
    try:
        error = response.json()["error"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.reason_phrase or 'an error'}, without saying more", None, None
    code = error.get("code") or error.get("type") or "invalid_request"
    return message, cast("str | None", error.get("param")), str(code)
