"""A conversation with a base or a skin on this machine, or with a model of a running server; its commands; and what is
seen of it on a terminal, or line by line through a pipe."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from bedplate.core.closing import Closing
from bedplate.core.errors import BedplateError, ContextLengthExceeded, RequestError, UnknownModelError, UsageError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.inference.remote.endpoint import ChatAnswer, Endpoint
from bedplate.text.calls.reading import CUT_REASONS, PlainReader, ReplyPiece, ReplyReader
from bedplate.text.calls.reply_form import reply_form

if TYPE_CHECKING:
    from bedplate.inference.engine.requests import Sampling, Stream
    from bedplate.inference.predict.callable_skin import SkinPredictor
    from bedplate.inference.predict.local import LocalModel

Messages = Sequence[Mapping[str, str]]
Settings = Mapping[str, Any]

BASE_TEMPERATURE = 0.7
BASE_MAX_TOKENS = 1024
# What a model writes must not steer the terminal: control characters but tab and line feed are shown as pictures.
_SAFE = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    127: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}
_LEAVES = "(Ctrl-C again, or Ctrl-D, leaves)"
_DIM, _RED = "2", "31"


class Reply(NamedTuple):
    """An answer on its way: iterate `pieces()` once, or `close()` it early; then `answer()` is what came."""

    pieces: Callable[[], Iterator[ReplyPiece]]
    close: Callable[[], object]
    answer: Callable[[], ChatAnswer]


def local_reply(stream: Stream, reader: ReplyReader) -> Reply:
    """A generation of the engine on this machine, its reasoning told apart by `reader`."""
    texts = {"content": "", "reasoning": ""}

    def pieces() -> Iterator[ReplyPiece]:
        for step in stream:
            yield from count(reader.push(step.text))
        yield from count(reader.finish(cut=answer().finish_reason in CUT_REASONS))

    def count(pieces: Sequence[ReplyPiece]) -> Sequence[ReplyPiece]:
        for piece in pieces:
            texts[piece.section] += piece.text
        return pieces

    def answer() -> ChatAnswer:
        result: Any = stream.result()
        usage, timing = result.usage, result.timing
        tokens = (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        answer = ChatAnswer(texts["content"], result.finish_reason, *tokens, reasoning=texts["reasoning"])
        return replace(answer, first_seconds=timing.first, seconds=timing.total)

    return Reply(pieces, stream.cancel, answer)


class Partner(Closing):
    """A model to talk with. inputs: those of a skin, which reads one message alone; empty for a model that reads the
    whole conversation. RequestError for settings that it can never take, and what a server may fail with."""

    name: str
    inputs: tuple[str, ...] = ()
    warnings: Sequence[str] = ()

    @abstractmethod
    def check(self, settings: Settings) -> None: ...
    @abstractmethod
    def respond(self, messages: Messages, settings: Settings) -> Reply: ...


class LocalBase(Partner):
    """A base on this machine. By default it answers at temperature 0.7 with at most 1,024 tokens."""

    def __init__(self, model: LocalModel) -> None:
        self._model, self.name = model, model.base.name
        if model.tokenizer.chat is None:
            model.close()
            raise UsageError(f"{self.name} has no chat template; use `bedplate generate`")

    def check(self, settings: Settings) -> None:
        from bedplate.inference.engine.requests import Sampling

        Sampling(**settings)

    def respond(self, messages: Messages, settings: Settings) -> Reply:
        from bedplate.inference.engine.requests import Generate, Sampling

        tokens = self._model.tokenizer.encode_chat(messages)
        remaining = self._model.base.spec.context_length - len(tokens)
        max_tokens = BASE_MAX_TOKENS if remaining >= BASE_MAX_TOKENS else None
        with_defaults: dict[str, Any] = {"temperature": BASE_TEMPERATURE, "max_tokens": max_tokens, **settings}
        form = reply_form(self._model.tokenizer, tokens, ())
        request = Generate(tuple(tokens), Sampling(**with_defaults), marks=frozenset(form.marks.values()))
        return local_reply(self._model.engine.submit(request), form.reader())

    def close(self) -> None:
        self._model.close()


class LocalSkin(Partner):
    """A skin on this machine. One that writes text on one base streams it; any other answers in one piece."""

    def __init__(self, predictor: SkinPredictor) -> None:
        from bedplate.inference.predict.skin_bases import LoadedSkin

        skin, output = predictor.skin, predictor.skin.output
        self._predictor, self.warnings = predictor, predictor.warnings
        self.name, self.inputs = skin.name, tuple(skin.inputs)
        self._writer = predictor if isinstance(predictor, LoadedSkin) and output.answered_by == "generate" else None
        if output.as_embedding is not None:
            predictor.close()
            raise UsageError(f"{self.name} gives vectors; there is nothing to chat about")

    def check(self, settings: Settings) -> None:
        self._sampling(settings)

    def _sampling(self, settings: Settings) -> Sampling | None:
        if not settings:
            return None
        if self._writer is None:
            raise RequestError(f"skin {self.name!r} has no sampling settings")
        return self._writer.sampling(**settings)

    def respond(self, messages: Messages, settings: Settings) -> Reply:
        content = messages[-1]["content"]
        row = content if len(self.inputs) == 1 else self._fields(content)
        if self._writer is not None:
            request = self._writer.request(row, self._sampling(settings))
            return local_reply(self._writer.engine.submit(request), PlainReader())
        [prediction] = self._predictor.predict([row])
        tokens = (prediction.prompt_tokens, prediction.cached_tokens, prediction.completion_tokens)
        costs = (prediction.usd, prediction.seconds, prediction.seconds)
        extension = {"scores": dict(prediction.scores)} if prediction.scores else {}
        answer = ChatAnswer(prediction.output, prediction.finish_reason or "stop", *tokens, *costs, extension)
        piece = ReplyPiece("content", answer.text)
        return Reply(lambda: iter([piece]), lambda: None, lambda: answer)

    def _fields(self, content: str) -> dict[str, Any]:
        try:
            fields = json.loads(content)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise RequestError(f"this skin takes the inputs {', '.join(self.inputs)}: give them as one JSON object")
        return fields

    def close(self) -> None:
        self._predictor.close()


class ChatEndpoint(Partner):
    """A model of a running server, which checks settings itself. name: None takes the server's first."""

    def __init__(self, endpoint: Endpoint, name: str | None) -> None:
        self._endpoint = endpoint
        models = {entry["id"]: entry for entry in endpoint.models()}
        if not models:
            raise UsageError(f"{endpoint.url} serves no models")
        self.name = next(iter(models)) if name is None else name
        if self.name not in models:
            raise UnknownModelError(f"{endpoint.url} has no model {name!r}; its models are: {', '.join(models)}")
        facts: Any = models[self.name].get("bedplate")
        self.inputs = tuple(map(str, facts.get("inputs") or ())) if isinstance(facts, dict) else ()

    def check(self, settings: Settings) -> None:
        """The server says what it takes, with its answer."""

    def respond(self, messages: Messages, settings: Settings) -> Reply:
        stream = self._endpoint.chat(self.name, messages, **settings)
        return Reply(stream.pieces, stream.close, stream.answer)

    def close(self) -> None:
        self._endpoint.close()


def open_local(source: str | None, **settings: Any) -> Partner:
    """Opens a base or a skin's directory with the settings of `bedplate.load`."""
    if source is None:
        raise UsageError("name a skin or a base, or give --url of a running server")
    from bedplate.inference.predict.loaded import load
    from bedplate.inference.predict.local import LocalModel

    loaded = load(source, **settings)
    return LocalBase(loaded) if isinstance(loaded, LocalModel) else LocalSkin(loaded)


class Conversation:
    """Messages with a partner. A turn is `begin`, then `finish` when its reply has ended; one that failed leaves no
    trace. settings: sampling settings by name; None leaves one to the model. RequestError for impossible ones."""

    def __init__(self, partner: Partner, *, system: str | None = None, settings: Settings | None = None) -> None:
        self.partner = partner
        self.settings = {name: value for name, value in (settings or {}).items() if value is not None}
        self.messages: list[dict[str, str]] = []
        self._question = ""
        self.set_system(system or "")
        partner.check(self.settings)

    def begin(self, content: str) -> Reply:
        """Asks. Raises BedplateError where that is impossible; the conversation is then what it was."""
        self._question = content
        messages = [{"role": "user", "content": content}]
        if not self.partner.inputs:
            system = [] if self.system is None else [{"role": "system", "content": self.system}]
            messages = [*system, *self.messages, *messages]
        return self.partner.respond(messages, self.settings)

    def finish(self, reply: Reply) -> ChatAnswer:
        """Adds the turn whose reply has ended, or was closed early with some text."""
        answer = reply.answer()
        if answer.finish_reason != "cancelled" or answer.text:
            self.messages.append({"role": "user", "content": self._question})
            self.messages.append({"role": "assistant", "content": answer.text})
        return answer

    def set_system(self, text: str) -> None:
        """Sets the system message; "" for none. Raises UsageError for a skin, which has a prompt of its own."""
        if self.partner.inputs and text:
            raise UsageError(f"{self.partner.name} is a skin: it has a prompt of its own and takes no system message")
        self.system = text or None


COMMANDS = {
    "help": "this list",
    "system": "TEXT sets the system message; alone shows it; - takes it away",
    "reset": "start a new conversation; the system message stays",
    "quit": "leave",
}
HELP = "\n".join(
    [
        *(f"/{name:<7} {help}" for name, help in COMMANDS.items()),
        "A message that begins with / is written with //; a skin of several inputs takes a JSON object of them.",
        "Ctrl-C stops an answer; again, or Ctrl-D, leaves.",
    ]
)


def run_command(conversation: Conversation, line: str) -> str:
    """Runs a line that begins with one /, and returns what to show. Raises UsageError for a command that does not
    exist, and EOFError to leave."""
    name, _, argument = line[1:].partition(" ")
    if name == "quit":
        raise EOFError
    if name == "help":
        return HELP
    if name == "reset":
        conversation.messages = []
        return "a new conversation"
    if name != "system":
        hint = did_you_mean(nearest(name, COMMANDS), show="/{}".format) or "/help lists them"
        raise UsageError(f"there is no command /{name}; {hint} (a message that begins with / is written with //)")
    if argument.strip():
        conversation.set_system("" if argument.strip() == "-" else argument.strip())
    return "there is no system message" if conversation.system is None else f"system message: {conversation.system}"


class Screen:
    """Where answers and remarks go. Through a pipe answers are as the model gave them, and remarks go to stderr."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self._colours = self.is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def answer(self, text: str) -> None:
        self._write(sys.stdout, text)

    def thought(self, text: str) -> None:
        """Shows reasoning, which is not the answer: dimmed on a terminal, and kept out of what a pipe gets."""
        if self.is_terminal:
            self._write(sys.stdout, text, _DIM)

    def remark(self, text: str, style: str = _DIM) -> None:
        self._write(sys.stdout if self.is_terminal else sys.stderr, text, style, end="\n")

    def _write(self, file: TextIO, text: str, style: str = "", end: str = "") -> None:
        shown = text.translate(_SAFE) if self.is_terminal else text
        file.write((f"\x1b[{style}m{shown}\x1b[0m" if style and self._colours else shown) + end)
        file.flush()


def talk(conversation: Conversation) -> None:
    """Chats on a terminal until Ctrl-D, /quit, or Ctrl-C twice."""
    screen = Screen()
    screen.remark(f"{conversation.partner.name}. /help lists the commands, Ctrl-D leaves.")
    _warn(conversation, screen)
    interrupted = False
    with contextlib.suppress(ImportError):
        import_module("readline")  # `input` then edits lines and recalls earlier ones
    while True:
        try:
            content = input("> ")
            interrupted = False
            interrupted = _take(conversation, content, screen) == "cancelled"
        except EOFError:
            screen.answer("\n")
            return
        except KeyboardInterrupt:
            screen.answer("\n")
            if interrupted:
                return
            interrupted = True
            screen.remark(_LEAVES)
        except BedplateError as error:
            screen.remark(f"error: {_advice(error)}", _RED)


def pipe(conversation: Conversation, lines: Iterable[str], *, as_json: bool) -> int:
    """Takes each line as a turn or a command; writes answers to stdout, or one JSON object for each. Returns the exit
    code: 1 where a line failed."""
    screen, code = Screen(), 0
    _warn(conversation, screen)
    for line in lines:
        try:
            _take(conversation, line.rstrip("\r\n"), screen, as_json=as_json)
        except EOFError:
            break
        except BedplateError as error:
            code = 1
            if as_json:
                print(json.dumps({"error": {"message": _advice(error), "code": error.code}}), flush=True)
            else:
                screen.remark(f"error: {_advice(error)}", _RED)
    return code


def _warn(conversation: Conversation, screen: Screen) -> None:
    for warning in conversation.partner.warnings:
        screen.remark(f"warning: {warning}")


def _take(conversation: Conversation, content: str, screen: Screen, *, as_json: bool = False) -> str:
    """Runs a command or asks a message; returns why the answer ended, "" where there is none."""
    if not content.strip():
        return ""
    if content.startswith("/") and not content.startswith("//"):
        shown = run_command(conversation, content)
        if not as_json:
            screen.remark(shown)
        return ""
    content = content[1:] if content.startswith("//") else content
    if not as_json:
        return _show_answer(conversation, content, screen)
    reply = conversation.begin(content)
    for _ in reply.pieces():
        pass
    fields = _answer_fields(content, conversation.finish(reply))
    print(json.dumps(fields, ensure_ascii=False), flush=True)
    return ""


def _show_answer(conversation: Conversation, content: str, screen: Screen) -> str:
    """Shows the answer as it comes, and what it took. Ctrl-C stops it. Returns why it ended."""
    reply, shown, thinking = None, "", False
    try:
        reply = conversation.begin(content)
        for piece in reply.pieces():
            if piece.section == "reasoning":
                screen.thought(piece.text)
                thinking = True
                continue
            if thinking:
                screen.thought("\n\n")
                thinking = False
            screen.answer(piece.text)
            shown += piece.text
    except KeyboardInterrupt:
        if not screen.is_terminal or reply is None:
            raise
        reply.close()
    except BedplateError:
        if shown and not shown.endswith("\n"):
            screen.answer("\n")
        raise
    answer = conversation.finish(reply)
    screen.answer("" if shown.endswith("\n") else "\n")
    scores = _scores(answer)
    width = max(map(len, scores), default=0)
    for label, score in sorted(scores.items(), key=lambda pair: -pair[1]):
        screen.remark(f"  {label:<{width}}  {math.exp(score):6.1%}  {'█' * round(20 * math.exp(score))}")
    ending = {"cancelled": f"stopped {_LEAVES}", "length": "cut off at max_tokens, or the context is full (/reset)"}
    notes = [*(_costs(answer) if screen.is_terminal else ()), ending.get(answer.finish_reason)]
    remark = ", ".join(filter(None, notes))
    if remark:
        screen.remark(f"[{remark}]" if screen.is_terminal else remark)
    return answer.finish_reason


def _answer_fields(content: str, answer: ChatAnswer) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "input": content,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        "completion_tokens": answer.completion_tokens,
        "first_seconds": None if answer.first_seconds is None else round(answer.first_seconds, 4),
        "seconds": round(answer.seconds, 4),
    }
    scores = _scores(answer)
    fields |= {"label": answer.text, "scores": dict(scores)} if scores else {}
    fields |= {"reasoning": answer.reasoning} if answer.reasoning else {}
    return fields if answer.cost_usd is None else fields | {"cost_usd": answer.cost_usd}


def _scores(answer: ChatAnswer) -> Mapping[str, float]:
    scores = answer.extension.get("scores")
    return scores if isinstance(scores, dict) else {}


def _costs(answer: ChatAnswer) -> list[str]:
    """Tokens, seconds and dollars of an answer, where they are known."""
    costs = [f"{answer.completion_tokens or 0} out"]
    if answer.prompt_tokens is not None:
        costs.insert(0, f"{answer.prompt_tokens} tokens in, {answer.cached_tokens or 0} cached")
    if answer.first_seconds is not None:
        costs.append(f"first after {answer.first_seconds:.2f} s")
    costs.append(f"{answer.seconds:.2f} s")
    return costs if answer.cost_usd is None else [*costs, f"${answer.cost_usd:.2g}"]


def _advice(error: BedplateError) -> str:
    full = isinstance(error, ContextLengthExceeded)
    return f"the context is full: {error.message}; /reset begins anew" if full else error.message
