"""Whom one talks with: a base or a skin on this machine, or a model of a running server, behind one interface."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from bedplate.core.errors import RequestError, UnknownModelError, UsageError
from bedplate.core.values import Values
from bedplate.text.calls.reading import CUT_REASONS, PlainReader, ReplyPiece
from bedplate.text.calls.reply_form import ReplyForm, reply_form

if TYPE_CHECKING:
    from bedplate.inference.engine.requests import Sampling, Stream
    from bedplate.inference.predict.classical import ClassicalPredictor
    from bedplate.inference.predict.loaded import LoadedSkin
    from bedplate.inference.predict.local import LocalModel
    from bedplate.inference.predict.predictor import Prediction
    from bedplate.inference.remote.endpoint import ChatStream, Endpoint

Messages = Sequence[Mapping[str, str]]
Settings = Mapping[str, Any]

BASE_TEMPERATURE = 0.7
BASE_MAX_TOKENS = 1024


@dataclass(frozen=True)
class Turn:
    """One answer. reasoning: what came before it, where the model keeps it apart. finish_reason "cancelled": it was
    stopped. scores: log-probabilities of a skin's labels. Counts and
    cost are None where they are not known; seconds from the question to the first text and to the end."""

    text: str
    finish_reason: str
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    first_seconds: float | None = None
    seconds: float = 0.0
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    cost_usd: float | None = None
    context_full: bool = False
    reasoning: str = ""

    @property
    def tokens_per_second(self) -> float | None:
        """After the first token; None for fewer than two."""
        if self.first_seconds is None or self.completion_tokens is None or self.completion_tokens < 2:
            return None
        span = self.seconds - self.first_seconds
        return (self.completion_tokens - 1) / span if span > 0 else None


class Reply(Protocol):
    """An answer on its way: iterate it once for its texts, or `pieces` for its reasoning too. `stop` ends it early,
    `turn` says what came."""

    def __iter__(self) -> Iterator[str]: ...
    def pieces(self) -> Iterator[ReplyPiece]: ...
    def stop(self) -> None: ...
    def turn(self) -> Turn: ...


class Partner(Protocol):
    """inputs: a skin's, which reads one message alone; empty for a model that reads the whole conversation."""

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def context_length(self) -> int | None: ...
    @property
    def warnings(self) -> Sequence[str]: ...
    def check(self, settings: Settings) -> None:
        """RequestError for settings that it could never take."""
        ...

    def respond(self, messages: Messages, settings: Settings) -> Reply:
        """RequestError, ContextLengthExceeded, and what a server may fail with."""
        ...

    def close(self) -> None: ...


class LocalReply:
    """A request of the engine on this machine. read: from the finished request to the turn; form: that of the base's
    replies, None where all is content."""

    def __init__(self, stream: Stream, read: Callable[[Stream], Turn], form: ReplyForm | None = None) -> None:
        self._stream, self._read, self._form = stream, read, form

    def __iter__(self) -> Iterator[str]:
        return (piece.text for piece in self.pieces() if piece.section == "content")

    def pieces(self) -> Iterator[ReplyPiece]:
        reader = PlainReader() if self._form is None else self._form.reader()
        for step in self._stream:
            yield from reader.push(step.text)
        yield from reader.finish(cut=self._read(self._stream).finish_reason in CUT_REASONS)

    def stop(self) -> None:
        self._stream.cancel()

    def turn(self) -> Turn:
        turn = self._read(self._stream)
        if self._form is None:
            return turn
        reader = self._form.reader()
        pieces = [*reader.push(turn.text), *reader.finish(cut=turn.finish_reason in CUT_REASONS)]
        texts: dict[str, str] = {"content": "", "reasoning": ""}
        for piece in pieces:
            texts[piece.section] = texts.get(piece.section, "") + piece.text
        return replace(turn, text=texts["content"], reasoning=texts["reasoning"])


class LocalBase:
    """A base on this machine. Without other settings: temperature 0.7, at most 1,024 tokens or the context's end."""

    inputs: tuple[str, ...] = ()
    warnings: Sequence[str] = ()

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self.name = model.base.name
        self.context_length: int | None = model.base.spec.context_length
        if model.tokenizer.chat is None:
            model.close()
            raise UsageError(f"{self.name} has no chat template; use `bedplate generate`")

    def check(self, settings: Settings) -> None:
        _sampling(settings)

    def respond(self, messages: Messages, settings: Settings) -> Reply:
        from bedplate.inference.engine.requests import Generate

        tokens = self._model.tokenizer.encode_chat(messages)
        room = self._model.base.spec.context_length - len(tokens)
        max_tokens = BASE_MAX_TOKENS if room >= BASE_MAX_TOKENS else None
        sampling = _sampling({"temperature": BASE_TEMPERATURE, "max_tokens": max_tokens, **settings})
        form = reply_form(self._model.tokenizer, tokens, ())
        request = Generate(tokens=tuple(tokens), sampling=sampling, marks=frozenset(form.marks.values()))
        return LocalReply(self._model.engine.submit(request), self._turn, form)

    def _turn(self, stream: Stream) -> Turn:
        return _generated(stream, self._model.base.spec.context_length)

    def close(self) -> None:
        self._model.close()


class LocalSkin:
    """A skin on its base on this machine."""

    def __init__(self, skin: LoadedSkin) -> None:
        self._skin = skin
        self.name = skin.skin.name
        self.inputs = tuple(skin.skin.inputs)
        self.context_length: int | None = skin.engine.base.spec.context_length
        self.warnings: Sequence[str] = skin.warnings
        if skin.skin.output.kind == "embedding":
            skin.close()
            raise UsageError(f"{self.name} gives vectors; there is nothing to chat about")

    def check(self, settings: Settings) -> None:
        if settings:
            self._skin.sampling(**_typed(settings))

    def respond(self, messages: Messages, settings: Settings) -> Reply:
        content = messages[-1]["content"]
        row = content if len(self.inputs) == 1 else _fields(content, self.inputs)
        sampling = self._skin.sampling(**_typed(settings)) if settings else None
        return LocalReply(self._skin.engine.submit(self._skin.request(row, sampling)), self._turn)

    def _turn(self, stream: Stream) -> Turn:
        from bedplate.inference.engine.requests import Generation

        result = stream.result()
        if isinstance(result, Generation):
            return _generated(stream, self._skin.engine.base.spec.context_length)
        return _labelled(self._skin.read(result, result.timing.total))

    def close(self) -> None:
        self._skin.close()


class RemoteReply:
    """An answer of a server."""

    def __init__(self, stream: ChatStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)

    def pieces(self) -> Iterator[ReplyPiece]:
        return self._stream.pieces()

    def stop(self) -> None:
        self._stream.close()

    def turn(self) -> Turn:
        answer = self._stream.answer()
        scores: Any = answer.extension.get("scores")
        return Turn(
            answer.text,
            answer.finish_reason,
            answer.prompt_tokens,
            answer.cached_tokens,
            answer.completion_tokens,
            answer.first_seconds,
            answer.seconds,
            scores if isinstance(scores, dict) else {},
            answer.cost_usd,
            reasoning=answer.reasoning,
        )


class RemoteModel:
    """A model of a running server, which knows its own settings. name: None takes the server's first."""

    warnings: Sequence[str] = ()

    def __init__(self, endpoint: Endpoint, name: str | None) -> None:
        self._endpoint = endpoint
        models = {model["id"]: model for model in endpoint.models()}
        if not models:
            raise UsageError(f"{endpoint.url} serves no models")
        self.name = next(iter(models)) if name is None else name
        if self.name not in models:
            raise UnknownModelError(f"{endpoint.url} has no model {name!r}; its models are: {', '.join(models)}")
        facts: Any = models[self.name].get("bedplate")
        facts = facts if isinstance(facts, dict) else {}
        self.inputs: tuple[str, ...] = tuple(map(str, facts.get("inputs") or ()))
        self.context_length: int | None = facts.get("context_length")

    def check(self, settings: Settings) -> None:
        pass  # the server says what it takes

    def respond(self, messages: Messages, settings: Settings) -> Reply:
        return RemoteReply(self._endpoint.chat(self.name, messages, **settings))

    def close(self) -> None:
        pass  # the endpoint is its opener's


def open_local(source: str | None, **settings: Any) -> Partner:
    """A base or a skin's directory. settings: those of `bedplate.load`."""
    if source is None:
        raise UsageError("name a skin or a base, or give --url of a running server")
    from bedplate.inference.predict.classical import ClassicalPredictor
    from bedplate.inference.predict.loaded import LoadedSkin, load
    from bedplate.inference.predict.local import LocalModel

    loaded = load(source, **settings)
    if isinstance(loaded, LocalModel):
        return LocalBase(loaded)
    if isinstance(loaded, LoadedSkin):
        return LocalSkin(loaded)
    if isinstance(loaded, ClassicalPredictor):
        return LocalClassical(loaded)
    loaded.close()
    raise UsageError(f"{source} is not answered by one base here; `bedplate predict` asks it for rows of a file")


class LocalClassical:
    """A skin that is a bag-of-words model, on this machine."""

    def __init__(self, skin: ClassicalPredictor) -> None:
        self._skin = skin
        self.name, self.inputs = skin.skin.name, tuple(skin.skin.inputs)
        self.context_length: int | None = None
        self.warnings: Sequence[str] = skin.warnings

    def check(self, settings: Settings) -> None:
        if settings:
            raise RequestError(f"skin {self.name!r} answers with labels; it has no sampling settings")

    def respond(self, messages: Messages, settings: Settings) -> Reply:
        from bedplate.inference.engine.requests import Request, Stream

        self.check(settings)
        content = messages[-1]["content"]
        classification = self._skin.classified(content if len(self.inputs) == 1 else _fields(content, self.inputs))
        stream = Stream(Request(()))
        stream.finish(classification)
        return LocalReply(stream, lambda _: _labelled(self._skin.read(classification, classification.timing.total)))

    def close(self) -> None:
        self._skin.close()


def _labelled(prediction: Prediction) -> Turn:
    return Turn(
        prediction.output,
        "stop",
        prediction.prompt_tokens,
        prediction.cached_tokens,
        0,
        prediction.seconds,
        prediction.seconds,
        prediction.scores,
    )


def _sampling(settings: Settings) -> Sampling:
    from bedplate.inference.engine.requests import Sampling

    return Sampling(**_typed(settings))


def _typed(settings: Settings) -> dict[str, Any]:
    """As the engine has them: its stop strings are a tuple, the API's a list."""
    typed = dict(settings)
    if "stop" in typed:
        typed["stop"] = tuple(typed["stop"])
    return typed


def _generated(stream: Stream, context: int) -> Turn:
    from bedplate.inference.engine.requests import Generation

    result = stream.result()
    assert isinstance(result, Generation)
    usage, timing = result.usage, result.timing
    return Turn(
        result.text,
        result.finish_reason,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        timing.first,
        timing.total,
        context_full=result.finish_reason == "length" and usage.prompt_tokens + usage.completion_tokens >= context,
    )


def _fields(content: str, inputs: Sequence[str]) -> Values:
    try:
        fields = json.loads(content)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise RequestError(f"this skin takes the inputs {', '.join(inputs)}: give them as one JSON object")
    return fields
