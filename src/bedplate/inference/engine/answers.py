"""Defines `Answers`, the protocol of everything that answers requests: a local base, a skin, a remote endpoint.

Suites, predictors and the server's routes depend on `Answers`; only the code that loads models depends on the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bedplate.core.errors import UsageError
from bedplate.inference.engine.requests import Request, Result, Stream
from bedplate.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ModelDescription:
    """The name, capabilities and limits of what implements `Answers`.

    name: of the base or the skin. can: its capabilities ("generate", "score", "embed", "classify", …), as `Model.can`.
    context_length: maximum tokens of a prompt with its answer. tokenizer: None where texts are sent unencoded; tokens
    are then the bytes of the text.
    """

    name: str
    can: frozenset[str]
    context_length: int
    tokenizer: Tokenizer | None = None

    def need_tokenizer(self) -> Tokenizer:
        """Returns the tokenizer. UsageError where texts are sent instead of token ids."""
        if self.tokenizer is None:
            raise UsageError(f"{self.name} has no tokenizer here, so it cannot be asked by token ids")
        return self.tokenizer


class Answers(Protocol):
    """The interface of everything that answers requests: `Engine`, `LocalModel`, a skin's `Predictor`.

    alive: whether submitted requests still get answers. submit: queues a request; RequestError for one that cannot run,
    BusyError where the queue is full. run: answers requests together and returns their results in order. tokenize:
    token ids of a text as a prompt, with the special tokens that the tokenizer adds. describe: name, capabilities and
    limits, known without running a request.
    """

    @property
    def alive(self) -> bool: ...
    def submit(self, request: Request, /) -> Stream: ...
    def run(self, requests: Sequence[Request], /) -> list[Result]: ...
    def tokenize(self, text: str, /) -> list[int]: ...
    def describe(self) -> ModelDescription: ...
