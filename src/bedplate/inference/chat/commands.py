"""What a line that begins with / does. One row of COMMANDS each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bedplate.core.errors import UsageError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.inference.chat.conversation import SETTINGS, Conversation, read_settings


@dataclass(frozen=True)
class CommandOutcome:
    """message: what to show. question: what to ask next. leave: whether the chat is over."""

    message: str = ""
    question: str | None = None
    leave: bool = False


@dataclass(frozen=True)
class Command:
    usage: str
    help: str
    run: Callable[[Conversation, str], CommandOutcome]


def _help(conversation: Conversation, argument: str) -> CommandOutcome:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"{command.usage:<{width}}  {command.help}" for command in COMMANDS.values()]
    lines += [
        "",
        r'A line that ends with \ continues in the next; """ alone begins and ends a text of several lines.',
        "A message that begins with / is written with //. Ctrl-C stops an answer; again, or Ctrl-D, leaves.",
    ]
    return CommandOutcome("\n".join(lines))


def _system(conversation: Conversation, argument: str) -> CommandOutcome:
    if not argument:
        return CommandOutcome(conversation.system or "there is no system message")
    conversation.set_system("" if argument == "-" else argument)
    return CommandOutcome("the system message is set" if conversation.system else "there is no system message now")


def _reset(conversation: Conversation, argument: str) -> CommandOutcome:
    conversation.reset()
    return CommandOutcome("a new conversation")


def _retry(conversation: Conversation, argument: str) -> CommandOutcome:
    return CommandOutcome(question=conversation.retry())


def _undo(conversation: Conversation, argument: str) -> CommandOutcome:
    return CommandOutcome(f"taken back: {_short(conversation.undo())}")


def _save(conversation: Conversation, argument: str) -> CommandOutcome:
    conversation.save(_file(argument, "/save"))
    return CommandOutcome(f"saved to {argument}")


def _load(conversation: Conversation, argument: str) -> CommandOutcome:
    conversation.load(_file(argument, "/load"))
    return CommandOutcome(f"{len(conversation.messages) // 2} turns loaded")


def _set(conversation: Conversation, argument: str) -> CommandOutcome:
    if argument:
        conversation.set(read_settings(argument))
    assignments = [f"{name}={value}" for name, value in conversation.settings.items()]
    unset = ", ".join(name for name in SETTINGS if name not in conversation.settings)
    return CommandOutcome(f"set: {' '.join(assignments) or 'nothing'}\nleft to the model: {unset}")


def _model(conversation: Conversation, argument: str) -> CommandOutcome:
    if argument:
        conversation.change_partner(argument)
    partner = conversation.partner
    reads = f"reads {', '.join(partner.inputs)}" if partner.inputs else "reads the whole conversation"
    return CommandOutcome(f"{partner.name}: {reads}")


def _tokens(conversation: Conversation, argument: str) -> CommandOutcome:
    turns = conversation.turns
    if not turns:
        return CommandOutcome("no tokens yet")
    prompt, cached, completion = (
        sum(getattr(turn, name) or 0 for turn in turns)
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
    )
    lines = [f"{len(turns)} turns: {prompt:,} prompt tokens, {cached:,} of them cached; {completion:,} answered"]
    costs = [turn.cost_usd for turn in turns if turn.cost_usd is not None]
    if costs:
        lines.append(f"cost: ${sum(costs):.3g}")
    context = conversation.partner.context_length
    if context is not None and not conversation.partner.inputs:
        used = (turns[-1].prompt_tokens or 0) + (turns[-1].completion_tokens or 0)
        lines.append(f"the context holds {context:,} tokens; {used:,} are used")
    return CommandOutcome("\n".join(lines))


def _quit(conversation: Conversation, argument: str) -> CommandOutcome:
    return CommandOutcome(leave=True)


COMMANDS: dict[str, Command] = {
    "help": Command("/help", "this list", _help),
    "system": Command("/system [TEXT]", "show or set the system message; - for none", _system),
    "reset": Command("/reset", "forget what was said", _reset),
    "retry": Command("/retry", "ask the last question again", _retry),
    "undo": Command("/undo", "take the last question and its answer back", _undo),
    "save": Command("/save FILE", "write the conversation to a file", _save),
    "load": Command("/load FILE", "continue a saved conversation", _load),
    "set": Command("/set [NAME=VALUE …]", "show or change settings; NAME= leaves one to the model", _set),
    "model": Command("/model [NAME]", "show or change the model", _model),
    "tokens": Command("/tokens", "what was used so far", _tokens),
    "quit": Command("/quit", "leave", _quit),
}
_NO_ARGUMENT = {"help", "reset", "retry", "undo", "tokens", "quit"}


def run_command(conversation: Conversation, line: str) -> CommandOutcome:
    """Runs a line that begins with one /. UsageError for a command that does not exist."""
    name, _, argument = line[1:].partition(" ")
    if name not in COMMANDS:
        hint = did_you_mean(nearest(name, COMMANDS), show="/{}".format) or "/help lists them"
        raise UsageError(f"there is no command /{name}; {hint} (a message that begins with / is written with //)")
    argument = argument.strip()
    if argument and name in _NO_ARGUMENT:
        raise UsageError(f"/{name} takes nothing after it")
    return COMMANDS[name].run(conversation, argument)


def _file(argument: str, command: str) -> Path:
    if not argument:
        raise UsageError(f"{command} needs a file: {command} FILE")
    return Path(argument).expanduser()


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"
