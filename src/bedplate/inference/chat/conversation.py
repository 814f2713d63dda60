"""One conversation: what was said, under which settings, and how it is changed, saved and loaded again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bedplate.core.errors import ConfigError, UsageError
from bedplate.core.files import atomic_write
from bedplate.inference.chat.partners import Partner, Reply, Turn

FORMAT = 1
# The settings that can be set, and what their text is read as.
SETTINGS: Mapping[str, Callable[[str], Any]] = {
    "temperature": float,
    "max_tokens": int,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "stop": lambda text: [text.replace("\\n", "\n")],
}


class Conversation:
    """With one partner at a time, which `open_partner` opens by name.

    A turn is `begin`, then `finish` when its reply has ended; one that failed leaves no trace but can be tried again.
    """

    def __init__(
        self,
        partner: Partner,
        open_partner: Callable[[str], Partner],
        *,
        system: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.partner, self._open = partner, open_partner
        self.system: str | None = None
        self.settings: dict[str, Any] = {}
        self.messages: list[dict[str, str]] = []
        self.turns: list[Turn] = []
        self._question: str | None = None
        try:
            if system is not None:
                self.set_system(system)
            self.set(settings or {})
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """The chat is over."""
        self.partner.close()

    def begin(self, content: str) -> Reply:
        """Asks. BedplateError where that cannot be: then nothing was said."""
        self._question = content
        messages = [{"role": "user", "content": content}]
        if not self.partner.inputs:
            system = [] if self.system is None else [{"role": "system", "content": self.system}]
            messages = [*system, *self.messages, *messages]
        return self.partner.respond(messages, self.settings)

    def finish(self, reply: Reply) -> Turn:
        """Keeps the turn whose reply has ended, or was stopped with something said."""
        turn = reply.turn()
        assert self._question is not None
        if turn.finish_reason != "cancelled" or turn.text:
            self.messages += [{"role": "user", "content": self._question}, {"role": "assistant", "content": turn.text}]
            self.turns.append(turn)
            self._question = None
        return turn

    def retry(self) -> str:
        """What to ask again: the last question, whose answer is taken back. UsageError where there is none."""
        if self._question is not None:
            return self._question
        return self.undo()

    def undo(self) -> str:
        """Takes back the last question and its answer. Returns the question."""
        if not self.messages:
            raise UsageError("nothing has been said yet")
        *self.messages, question, _ = self.messages
        if self.turns:
            self.turns.pop()
        self._question = None
        return question["content"]

    def reset(self) -> None:
        """Forgets what was said; the system message and the settings stay."""
        self.messages, self.turns, self._question = [], [], None

    def set_system(self, text: str) -> None:
        """The system message; "" for none. UsageError for a skin, which has a prompt of its own."""
        if self.partner.inputs and text:
            raise UsageError(f"{self.partner.name} is a skin: it has a prompt of its own and takes no system message")
        self.system = text or None

    def set(self, changes: Mapping[str, Any]) -> None:
        """Changes settings; None takes one away. All or none. RequestError for a value that cannot be."""
        merged = {name: value for name, value in (self.settings | dict(changes)).items() if value is not None}
        self.partner.check(merged)
        self.settings = merged

    def change_partner(self, name: str) -> None:
        """Goes on with another model. What cannot be opened leaves everything as it was."""
        partner = self._open(name)
        try:
            partner.check(self.settings)
            if partner.inputs and self.system is not None:
                raise UsageError(f"{partner.name} is a skin and takes no system message; clear it first (/system -)")
        except BaseException:
            partner.close()
            raise
        self.close()
        self.partner = partner

    def save(self, path: Path) -> None:
        """Writes the conversation as JSON. UsageError for a file that exists."""
        if path.exists():
            raise UsageError(f"{path} exists already; choose another name")
        content = {
            "bedplate_chat": FORMAT,
            "model": self.partner.name,
            "system": self.system,
            "settings": self.settings,
            "messages": self.messages,
        }
        atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def load(self, path: Path) -> None:
        """Reads what `save` wrote in place of what was said; the model stays. ConfigError, UsageError, RequestError."""
        try:
            content = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{path} is not a saved conversation: {error}") from error
        system, settings, messages = _checked(content, path)
        self.partner.check(settings)
        self.set_system(system or "")
        self.settings = settings
        self.reset()
        self.messages = messages


def read_settings(text: str) -> dict[str, Any]:
    """`temperature=0.7 seed=` as changes; an empty value takes a setting away. UsageError."""
    changes: dict[str, Any] = {}
    for pair in text.split():
        name, equals, value = pair.partition("=")
        if not equals or name not in SETTINGS:
            raise UsageError(f"{pair!r} is not a setting; write name=value with one of {', '.join(SETTINGS)}")
        try:
            changes[name] = SETTINGS[name](value) if value else None
        except ValueError:
            raise UsageError(f"{name} cannot be {value!r}") from None
    return changes


def _checked(content: Any, path: Path) -> tuple[str | None, dict[str, Any], list[dict[str, str]]]:
    def wrong(problem: str) -> ConfigError:
        return ConfigError(f"{path} is not a conversation that /save wrote: {problem}")

    if not isinstance(content, dict) or content.get("bedplate_chat") != FORMAT:
        raise wrong(f'it has no "bedplate_chat": {FORMAT}')
    system, settings, messages = (content.get(name) for name in ("system", "settings", "messages"))
    if not (system is None or isinstance(system, str)) or not isinstance(settings, dict):
        raise wrong("system is not a text, or settings are not an object")
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise wrong(f"there is no setting {unknown[0]!r}")
    if not isinstance(messages, list) or len(messages) % 2:
        raise wrong("messages are not a list of questions and answers")
    validated: list[dict[str, str]] = []
    for number, message in enumerate(messages):
        role = "assistant" if number % 2 else "user"
        if not isinstance(message, dict) or message.get("role") != role or not isinstance(message.get("content"), str):
            raise wrong(f"message {number} is not a text of the {role}")
        validated.append({"role": role, "content": message["content"]})
    return system, settings, validated
