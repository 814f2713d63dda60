"""The tokenizer of an encoder–decoder, which reads one text and writes another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from bedplate.core.files import sha256_json
from bedplate.text import directory as tokenizer_files
from bedplate.text.directory import TokenizerParts, save_target
from bedplate.text.tokenizer import EncoderInput, TextOrPair, Tokenizer


class SourceTargetTokenizer(Tokenizer):
    """Prompts and answers are whole texts, each with what the post-processor sets around it. around: before and behind
    a prompt. answer_start: before an answer. source: the tokenizer of the texts that are read, where they have a
    vocabulary of their own."""

    answers_apart = True

    def __init__(
        self,
        made_of: TokenizerParts,
        around: tuple[tuple[int, ...], tuple[int, ...]],
        answer_start: tuple[int, ...],
        source: Tokenizer | None,
    ) -> None:
        super().__init__(made_of)
        self._around, self._answer_start, self._source = around, answer_start, source

    @classmethod
    def of(cls, tokenizer: Tokenizer, first_is_forced: bool, target: Tokenizer | None = None) -> SourceTargetTokenizer:
        """From the tokenizer of what is read. first_is_forced: an answer's first token is the decoder's start's, and no
        part of it. target: of what is written, where that has a vocabulary of its own."""
        writing, source = (tokenizer, None) if target is None else (target, tokenizer)
        answer_start = () if first_is_forced else writing.around()[0]
        return cls(writing._parts, tokenizer.around(), answer_start, source)

    @cached_property
    def prompt_start(self) -> tuple[int, ...]:
        return self._around[0]

    @property
    def prompt_end(self) -> tuple[int, ...]:
        return self._around[1]

    @property
    def reading(self) -> Tokenizer:
        return self if self._source is None else self._source

    def unneeded(self, size: int) -> tuple[str, ...]:
        return super().unneeded(size) if self._source is None else ()

    def without(self, tokens: Sequence[str]) -> Tokenizer:
        parts = tokenizer_files.without(self._parts, tokens)
        return SourceTargetTokenizer(parts, self._around, self._answer_start, self._source)

    def save(self, directory: Path | str, *, types: bool = False) -> None:
        if self._source is None:
            super().save(directory, types=types)
        else:
            self._source.save(directory, types=types)
            save_target(self._parts, Path(directory))

    @cached_property
    def identity(self) -> str:
        written = tokenizer_files.identity(self._parts)
        return written if self._source is None else sha256_json([self._source.identity, written])

    def encode_answer(self, text: str) -> list[int]:
        return [*self._answer_start, *super().encode_answer(text)]

    def encode_completion(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        return self.encode_prompt(prompt, parse_special=False), self.encode_answer(answer)

    def split_continuation(self, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
        return self.encode_prompt(prompt), self.encode_answer(continuation)

    def beside(self, answer: int) -> int:
        return 0

    def common_start(self, prompts: Sequence[list[int]]) -> list[int]:
        return []  # a state of an encoder depends on what follows as well

    def encoder_inputs(self, inputs: Sequence[TextOrPair], limit: int | None = None) -> list[EncoderInput]:
        return (
            super().encoder_inputs(inputs, limit)
            if self._source is None
            else self._source.encoder_inputs(inputs, limit)
        )
