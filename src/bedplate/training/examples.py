"""From tokens and conversations to examples, with the loss on exactly what the model is to say."""

from __future__ import annotations

from collections.abc import Sequence

from bedplate.core.errors import DataError, TemplateError
from bedplate.text.chat_template import Message
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.batch import TrainingExample


def completion_example(prompt: Sequence[int], completion: Sequence[int], id: str) -> TrainingExample:
    """Loss on the completion's tokens, none on the prompt's. Raises DataError when either is empty."""
    if not prompt or not completion:
        raise DataError(f"example {id!r}: its {'completion' if prompt else 'prompt'} is empty")
    return TrainingExample((*prompt, *completion), (False,) * len(prompt) + (True,) * len(completion), id)


def answer_example(start: Sequence[int], source: Sequence[int], answer: Sequence[int], id: str) -> TrainingExample:
    """For an encoder–decoder: the encoder reads `source`, and after its start the decoder learns the answer's tokens.
    Raises DataError when one is empty."""
    if not start or not source or not answer:
        raise DataError(f"example {id!r}: its {'answer' if source else 'prompt'} is empty")
    loss = (False,) * len(start) + (True,) * len(answer)
    return TrainingExample((*start, *answer), loss, id, tuple(source))


def conversation_example(tokenizer: Tokenizer, messages: Sequence[Message], id: str) -> TrainingExample:
    """A conversation in the tokenizer's chat template, with loss on every assistant turn and its end token.

    Raises DataError when it cannot be trained on as it would be served (see `text.training_chat`).
    """
    try:
        encoded = tokenizer.encode_conversation(messages)
    except TemplateError as error:
        raise DataError(f"example {id!r}: {error}") from error
    return TrainingExample(tuple(encoded.ids), tuple(encoded.assistant), id)
