"""What is served under which name: a base as itself, and each skin on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

from bedplate.core.errors import RequestError
from bedplate.inference.engine import Engine
from bedplate.inference.predict import Predictor
from bedplate.inference.requests import Embed, Generate, Generation, Request, Result, Sampling, Usage
from bedplate.serving.fields import SEED_LOW, ChatRequest, CompletionRequest
from bedplate.serving.strict_json import parse_json
from bedplate.skins.output import TextOutput
from bedplate.skins.skin import Skin

COMPLETION_MAX_TOKENS = 16
"""The API's own default for /v1/completions; a chat goes on to the context's end by default."""


@dataclass(frozen=True)
class Answer:
    """One choice of a reply. `extension` is what the API has no field for."""

    text: str
    finish_reason: str
    usage: Usage
    generation: Generation | None = None
    extension: Mapping[str, Any] | None = None


class Served(Protocol):
    """One model name. `chat` and `complete` give the engine requests of a reply's choices, in their order."""

    @property
    def name(self) -> str: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def report(self) -> Path | None:
        """The page that says how it was judged, where there is one."""
        ...

    def chat(self, asked: ChatRequest) -> list[Request]: ...
    def complete(self, asked: CompletionRequest) -> list[Request]: ...
    def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> list[Request]:
        """One request for each text (or its token ids)."""
        ...

    def classify(self, inputs: Sequence[str | Mapping[str, str]]) -> list[Request]:
        """One request for each input; `answer` of its result has the label and its scores."""
        ...

    def answer(self, result: Result) -> Answer: ...
    def notes(self, asked: ChatRequest | CompletionRequest) -> dict[str, Any]:
        """What the reply must say about how the request was read."""
        ...

    def pieces(self) -> Callable[[str], str]:
        """For one stream: from the text that the model gives to the text that the client gets."""
        ...

    def describe(self) -> dict[str, Any]: ...


class ServedBase:
    """The base itself."""

    report: Path | None = None

    def __init__(self, engine: Engine, name: str) -> None:
        self.name = name
        self.engine = engine
        self._tokenizer = engine.base.need_tokenizer()

    def chat(self, asked: ChatRequest) -> list[Request]:
        if self._tokenizer.chat is None:
            raise RequestError(f"the model {self.name!r} has no chat template; use /v1/completions", param="messages")
        tokens = self._tokenizer.encode_chat([message.plain() for message in asked.messages])
        settings: dict[str, Any] = {"temperature": 1.0, "max_tokens": None, **asked.sampling()}
        return _choices(Generate(tuple(tokens), Sampling(**settings)), asked.choices)

    def complete(self, asked: CompletionRequest) -> list[Request]:
        settings: dict[str, Any] = {"temperature": 1.0, "max_tokens": COMPLETION_MAX_TOKENS, **asked.sampling()}
        if asked.echo and asked.logprobs is not None:
            settings["prompt_logprobs"] = max(asked.logprobs, asked.prompt_logprobs or 0)
            # Harnesses ask for one token and cut its entry off: it must be there even where it is the end token.
            settings["ignore_eos"] = asked.max_tokens == 1
        sampling = Sampling(**settings)
        requests: list[Request] = []
        for prompt in asked.prompt:
            tokens = prompt
            if isinstance(prompt, str):
                tokens = (*self._tokenizer.prompt_start, *self._tokenizer.encode(prompt))
            requests += _choices(Generate(cast("tuple[int, ...]", tokens), sampling), asked.choices)
        return requests

    def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> list[Request]:
        encode = self._tokenizer.encode
        requests: list[Request] = []
        for one in inputs:
            # Control tokens in a text are what their characters say; special tokens that the tokenizer sets belong.
            tokens = tuple(encode(one, add_special_tokens=True, parse_special=False)) if isinstance(one, str) else one
            if not tokens:
                raise RequestError(f"input {len(requests)} has no tokens, so it has no embedding", param="input")
            requests.append(Embed(tokens))
        return requests

    def classify(self, inputs: Sequence[str | Mapping[str, str]]) -> list[Request]:
        raise RequestError(f"{self.name!r} is a base and has no labels; ask a skin that has", param="model")

    def answer(self, result: Result) -> Answer:
        generation = cast(Generation, result)
        return Answer(generation.text, generation.finish_reason, generation.usage, generation)

    def notes(self, asked: ChatRequest | CompletionRequest) -> dict[str, Any]:
        return {}

    def pieces(self) -> Callable[[str], str]:
        return str

    def describe(self) -> dict[str, Any]:
        return {"kind": "base", "context_length": self.engine.base.spec.context_length}


class ServedSkin:
    """A skin. Its one input is the last user message or the prompt; several inputs are a JSON object in its place.

    Earlier messages are no input of a skin: how many there were is reported. Sampling settings that a request gives
    override the skin's own where it generates text, and mean nothing where it chooses a label.
    """

    def __init__(self, predictor: Predictor, name: str | None = None) -> None:
        """name: the model name (default: the skin's own)."""
        self._predictor = predictor
        self._skin: Skin = predictor.skin
        self.name = name or self._skin.name
        self.engine = predictor.engine
        self._generates = isinstance(self._skin.output, TextOutput)
        if self._generates:
            predictor.sampling()  # a skin with settings that cannot be is refused when it is loaded

    @property
    def report(self) -> Path | None:
        path = None if self._skin.directory is None else self._skin.directory / "report.html"
        return path if path is not None and path.is_file() and not path.is_symlink() else None

    def chat(self, asked: ChatRequest) -> list[Request]:
        last = next((message for message in reversed(asked.messages) if message.role == "user"), None)
        if last is None:
            raise RequestError("there is no user message; a skin's input is the last one", param="messages")
        return self._requests([last.content], asked)

    def complete(self, asked: CompletionRequest) -> list[Request]:
        if asked.echo:
            raise RequestError(f"{self.name!r} is a skin and does not echo its prompt", param="echo")
        if asked.logprobs is not None:
            raise RequestError(f"{self.name!r} is a skin; ask the base for logprobs", param="logprobs")
        texts = [prompt for prompt in asked.prompt if isinstance(prompt, str)]
        if len(texts) < len(asked.prompt):
            raise RequestError(f"{self.name!r} is a skin: its input is text, not token ids", param="prompt")
        return self._requests(texts, asked)

    def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> list[Request]:
        raise RequestError(f"{self.name!r} is a skin and has no embeddings; ask its base", param="model")

    def classify(self, inputs: Sequence[str | Mapping[str, str]]) -> list[Request]:
        if self._generates:
            raise RequestError(f"{self.name!r} writes text and has no labels; ask a skin that has", param="model")
        return [self._predictor.request(self._input(one) if isinstance(one, str) else one) for one in inputs]

    def _requests(self, texts: Sequence[str], asked: ChatRequest | CompletionRequest) -> list[Request]:
        if asked.prompt_logprobs is not None:
            raise RequestError(f"{self.name!r} is a skin; ask the base for prompt_logprobs", param="prompt_logprobs")
        if not self._generates:
            if asked.choices > 1:
                raise RequestError(f"{self.name!r} answers with a label: n can only be 1", param="n")
            if asked.alternatives is not None:
                raise RequestError(
                    f"{self.name!r} answers with a label: its log-probabilities are in the reply's bedplate field",
                    param="logprobs",
                )
            return [self._predictor.request(self._input(text)) for text in texts]
        changes = asked.sampling()
        if "stop" in changes:  # the skin's own belong to its output
            own = self._predictor.sampling().stop
            changes["stop"] = tuple(dict.fromkeys((*own, *changes["stop"])))
        sampling = self._predictor.sampling(**changes)
        requests: list[Request] = []
        for text in texts:
            requests += _choices(cast(Generate, self._predictor.request(self._input(text), sampling)), asked.choices)
        return requests

    def _input(self, text: str) -> str | Mapping[str, str]:
        names = list(self._skin.inputs)
        if len(names) == 1:
            return text
        try:
            fields = parse_json(text)
        except RequestError as error:
            raise RequestError(
                f"{self.name!r} takes the inputs {', '.join(names)}: write them as a JSON object ({error.message})",
                param="input",
            ) from None
        if not isinstance(fields, dict):
            raise RequestError(f"{self.name!r} takes a JSON object of {', '.join(names)}", param="input")
        return fields

    def answer(self, result: Result) -> Answer:
        try:
            prediction = self._predictor.read(result)
        except RequestError as error:  # what the model gave cannot be read: no fault of the request
            raise RuntimeError(error.message) from error
        if isinstance(result, Generation):
            return Answer(prediction.output, result.finish_reason, result.usage, result)
        scores = {label: finite(score) for label, score in prediction.scores.items()}
        return Answer(prediction.output, "stop", result.usage, None, {"label": prediction.output, "scores": scores})

    def notes(self, asked: ChatRequest | CompletionRequest) -> dict[str, Any]:
        ignored = len(asked.messages) - 1 if isinstance(asked, ChatRequest) else 0
        return {"ignored_messages": ignored} if ignored else {}

    def pieces(self) -> Callable[[str], str]:
        return Stripped().push

    def describe(self) -> dict[str, Any]:
        output = self._skin.output
        labels = {} if isinstance(output, TextOutput) else {"labels": list(output.labels)}
        report = {"report": self.report is not None}
        return {"kind": self._skin.kind, "inputs": list(self._skin.inputs), "output": output.kind, **labels, **report}

    def close(self) -> None:
        self._predictor.close()


class Stripped:
    """`str.strip` of a text that comes in pieces: white space waits until something follows it."""

    def __init__(self) -> None:
        self._begun = False
        self._held = ""

    def push(self, piece: str) -> str:
        text = self._held + piece
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        kept = text.rstrip()
        self._held = text[len(kept) :]
        return kept


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold, as the API writes minus infinity."""
    return max(logprob, -9999.0)


def _choices(request: Generate, count: int) -> list[Request]:
    """The same request `count` times, with seeds of their own; the first keeps the given one."""
    seed = request.sampling.seed
    if seed is None:
        return [request] * count
    return [
        replace(request, sampling=replace(request.sampling, seed=(seed + i - SEED_LOW) % 2**64 + SEED_LOW))
        for i in range(count)
    ]
