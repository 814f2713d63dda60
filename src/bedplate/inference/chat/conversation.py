"""One conversation with a model: its messages and settings, and the commands that change them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bedplate.core.errors import UsageError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.inference.chat.partners import Partner, Reply
from bedplate.inference.remote.endpoint import ChatAnswer

SETTINGS: Mapping[str, type] = {
    **dict.fromkeys(("temperature", "top_p", "min_p"), float),
    **dict.fromkeys(("repetition_penalty", "presence_penalty", "frequency_penalty"), float),
    **dict.fromkeys(("max_tokens", "top_k", "seed"), int),
    "stop": str,
}


class Conversation:
    """A turn is `begin`, then `finish` when its reply has ended; one that failed leaves no trace."""

    def __init__(
        self, partner: Partner, *, system: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.partner = partner
        self.system: str | None = None
        self.settings: dict[str, Any] = {}
        self.messages: list[dict[str, str]] = []
        self._question = ""
        self.set_system(system or "")
        self.set(settings or {})

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

    def set(self, changes: Mapping[str, Any]) -> None:
        """Changes settings, all or none; None takes one away. Raises RequestError for a value that is impossible."""
        merged = {name: value for name, value in (self.settings | dict(changes)).items() if value is not None}
        self.partner.check(merged)
        self.settings = merged


def read_settings(text: str) -> dict[str, Any]:
    """Reads `temperature=0.7 seed=` as changes; an empty value takes a setting away. Raises UsageError."""
    changes: dict[str, Any] = {}
    for pair in text.split():
        name, equals, value = pair.partition("=")
        if not equals or name not in SETTINGS:
            raise UsageError(f"{pair!r} is not a setting; write name=value with one of {', '.join(SETTINGS)}")
        try:
            changes[name] = SETTINGS[name](value) if value else None
        except ValueError:
            raise UsageError(f"{name} cannot be {value!r}") from None
    if changes.get("stop"):
        changes["stop"] = [changes["stop"].replace("\\n", "\n")]
    return changes


class Command(NamedTuple):
    """A line that begins with /. run: gets the conversation and what follows the name, and returns what to show."""

    usage: str
    help: str
    run: Callable[[Conversation, str], str]


def _help(conversation: Conversation, argument: str) -> str:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"{command.usage:<{width}}  {command.help}" for command in COMMANDS.values()]
    lines += [
        "",
        '""" alone begins and ends a text of several lines; a message that begins with / is written with //.',
        "Ctrl-C stops an answer; again, or Ctrl-D, leaves.",
    ]
    return "\n".join(lines)


def _system(conversation: Conversation, argument: str) -> str:
    if argument:
        conversation.set_system("" if argument == "-" else argument)
    return "there is no system message" if conversation.system is None else f"system message: {conversation.system}"


def _set(conversation: Conversation, argument: str) -> str:
    conversation.set(read_settings(argument))
    settings = [f"{name}={value}" for name, value in conversation.settings.items()]
    defaults = ", ".join(name for name in SETTINGS if name not in conversation.settings)
    return f"set: {' '.join(settings) or 'nothing'}\nleft to the model: {defaults}"


def _reset(conversation: Conversation, argument: str) -> str:
    conversation.messages = []
    return "a new conversation"


def _quit(conversation: Conversation, argument: str) -> str:
    raise EOFError


COMMANDS: dict[str, Command] = {
    "help": Command("/help", "this list", _help),
    "system": Command("/system [TEXT]", "show or set the system message; - for none", _system),
    "set": Command("/set [NAME=VALUE …]", "show or change settings; NAME= leaves one to the model", _set),
    "reset": Command("/reset", "start a new conversation; system message and settings stay", _reset),
    "quit": Command("/quit", "leave", _quit),
}


def run_command(conversation: Conversation, line: str) -> str:
    """Runs a line that begins with one /, and returns what to show. Raises UsageError for a command that does not
    exist, and EOFError to leave."""
    name, _, argument = line[1:].partition(" ")
    if name not in COMMANDS:
        hint = did_you_mean(nearest(name, COMMANDS), show="/{}".format) or "/help lists them"
        raise UsageError(f"there is no command /{name}; {hint} (a message that begins with / is written with //)")
    return COMMANDS[name].run(conversation, argument.strip())
