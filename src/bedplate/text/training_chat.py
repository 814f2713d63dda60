"""A conversation as training data: its ids, and which of them the assistant wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bedplate.core.errors import TemplateError
from bedplate.text.chat_template import Message


@dataclass(frozen=True)
class TrainingChat:
    """`ids`: the whole conversation. `assistant[i]`: ids[i] is the assistant's, its end token included: what
    instruction tuning puts its loss on. `spans`: the same as half-open ranges, one per assistant message; ids up to a
    span's start are exactly the prompt that inference gives for that answer."""

    ids: list[int]
    spans: tuple[tuple[int, int], ...]

    @property
    def assistant(self) -> list[bool]:
        mask = [False] * len(self.ids)
        for start, end in self.spans:
            mask[start:end] = [True] * (end - start)
        return mask


def conversation(
    messages: Sequence[Message],
    encode: Callable[[Sequence[Message], bool], list[int]],
    is_special: Callable[[int], bool],
    is_blank: Callable[[Sequence[int]], bool],
) -> TrainingChat:
    """`encode(messages, add_generation_prompt)`: ids of a conversation. For each assistant message, its prompt (the
    messages before it and the generation prompt) must be a prefix of the whole conversation, and so must the
    conversation up to and including it; otherwise training would see other ids than inference: TemplateError."""
    ids = encode(messages, False)
    spans: list[tuple[int, int]] = []
    for position, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        if position == 0:
            raise TemplateError("the conversation begins with an assistant message; there is no prompt to answer")
        prompt = encode(messages[:position], True)
        upto = encode(messages[: position + 1], False)
        _check_prefix(
            prompt, ids, f"the prompt of message {position}", "it starts with text that merges with the prompt"
        )
        _check_prefix(upto, ids, f"the conversation up to message {position}", "the template rewrites earlier messages")
        end = len(upto)
        # the end token belongs to the answer, a line break that the template sets behind it does not
        last = next((i for i in range(end - 1, len(prompt) - 1, -1) if is_special(ids[i])), None)
        if last is not None and is_blank(ids[last + 1 : end]):
            end = last + 1
        if end <= len(prompt):
            raise TemplateError(f"message {position}: the template writes nothing for this answer")
        spans.append((len(prompt), end))
    if not spans:
        raise TemplateError("the conversation has no assistant message, so nothing in it can be learned")
    return TrainingChat(ids, tuple(spans))


def _check_prefix(prefix: list[int], ids: list[int], prefix_name: str, why: str) -> None:
    if ids[: len(prefix)] != prefix:
        raise TemplateError(
            f"{prefix_name} is not a prefix of the whole conversation under this chat template, so it cannot be "
            "trained on as "
            f"it would be used ({why}); strip white space from the contents, or split the conversation at this answer"
        )
