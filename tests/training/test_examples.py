"""Conversations as training examples: the ids of transformers, and loss on exactly what the assistant must write."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from tests.tiny import write_tiny_base

from bedplate.core.errors import DataError
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.batch import completion_example, conversation_example

CONVERSATION = [
    {"role": "user", "content": "is the product great?"},
    {"role": "assistant", "content": "it works well"},
    {"role": "user", "content": "and the quality"},
    {"role": "assistant", "content": "terrible 你好"},
]


def test_loss_is_on_the_answers_and_their_end_tokens(tmp_path: Path) -> None:
    directory = write_tiny_base(tmp_path / "base")
    tokenizer, theirs = Tokenizer.from_directory(directory), transformers.AutoTokenizer.from_pretrained(directory)
    example = conversation_example(tokenizer, CONVERSATION, "c0")
    assert list(example.ids) == theirs.apply_chat_template(CONVERSATION, return_dict=False)
    learned = [token for token, on in zip(example.ids, example.loss, strict=True) if on]
    assert theirs.decode(learned) == "it works well<|im_end|>terrible 你好<|im_end|>"
    # What inference is given before an answer is what training saw before it.
    for turns in (1, 3):
        prompt = theirs.apply_chat_template(CONVERSATION[:turns], add_generation_prompt=True, return_dict=False)
        assert list(example.ids[: len(prompt)]) == prompt
        assert not example.loss[len(prompt) - 1]
        assert example.loss[len(prompt)]


def test_a_conversation_without_an_answer_has_nothing_to_learn(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(write_tiny_base(tmp_path / "base"))
    with pytest.raises(DataError, match="c1"):
        conversation_example(tokenizer, CONVERSATION[:1], "c1")


def test_a_completion_is_learned_whole_and_nothing_else() -> None:
    example = completion_example([5, 6, 7], [8, 9], "x")
    assert (example.ids, example.loss) == ((5, 6, 7, 8, 9), (False, False, False, True, True))
    with pytest.raises(DataError, match="x"):
        completion_example([5, 6], [], "x")
