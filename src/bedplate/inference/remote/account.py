"""What one remote model has answered and what that cost: kept in a file, so that nothing is paid for twice, and a cap
that is never passed."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bedplate.core.errors import DataError, EndpointError, UsageError
from bedplate.core.files import append_jsonl, read_jsonl
from bedplate.inference.remote.endpoint import ChatAnswer

_MESSAGE_TOKENS = 32
"""What a chat template may add to each message, and more."""


@dataclass(frozen=True)
class TokenPrices:
    """US dollars for a million tokens: read, read from the server's cache, and written."""

    input: float = 0.0
    cached_input: float = 0.0
    output: float = 0.0

    def usd(self, prompt_tokens: float, cached_tokens: float, completion_tokens: float) -> float:
        """What so many tokens cost; the cached ones are some of the prompt's."""
        fresh = prompt_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * self.cached_input + completion_tokens * self.output) / 1e6

    def max_cost(self, messages: Sequence[Mapping[str, str]], max_tokens: int, extra_text: str = "") -> float:
        """The most that a request can cost: no token is shorter than a byte. extra_text: what else a server may read as
        part of the prompt (a schema)."""
        size = sum(len(value.encode()) for message in messages for value in message.values()) + len(extra_text.encode())
        return (size + _MESSAGE_TOKENS * (len(messages) + 1)) * self.input / 1e6 + max_tokens * self.output / 1e6


class Account:
    """Answers by the hash of what was asked, and the money spent on them. path: where they are kept (None: in memory
    only). price: None where it is not known; an answer then costs what its server says, if that says it. max_usd: no
    request is sent that could take the whole past it; UsageError without a price. Requests that failed after they were
    sent may have been charged, and count with the most they can have cost. Safe to share between threads."""

    def __init__(
        self, path: Path | None = None, *, price: TokenPrices | None = None, max_usd: float | None = None
    ) -> None:
        if max_usd is not None and price is None:
            raise UsageError(f"spending is to end at max_usd of ${max_usd:g}, but no price is given; give one")
        self.price = price
        self._path, self._max = path, max_usd
        self._lock = threading.Lock()
        self._reserved = 0.0
        self._answers: dict[str, ChatAnswer] = {}
        self._costs: dict[str, float | None] = {}
        self.spent = 0.0
        """US dollars, of earlier runs as well, as far as they are known."""
        self.lost = 0
        """Requests that may have been charged and gave nothing."""
        if path is not None and path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        for number, row in enumerate(read_jsonl(path, allow_torn_tail=True), start=1):
            try:
                usd = float(row["usd"] or 0.0)
                if "lost" in row:
                    self.lost += 1
                    self.spent += usd
                    continue
                values = dict(row["answer"])
                values["alternatives"] = tuple((str(token), float(value)) for token, value in values["alternatives"])
                answer = ChatAnswer(**values)
                # What was asked before a price was known is priced now.
                self._record(str(row["key"]), answer, usd or self._usd(answer))
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{path}, line {number}: no answer of a remote model; remove the file") from error

    def cached_answer(self, key: str) -> ChatAnswer | None:
        """The answer that was paid for already."""
        return self._answers.get(key)

    def cost(self, key: str) -> float | None:
        """US dollars that a known answer had cost; None where nobody says."""
        return self._costs[key]

    def max_cost(self, messages: Sequence[Mapping[str, str]], max_tokens: int, extra_text: str = "") -> float:
        """The most that a request can cost (`TokenPrices.max_cost`); 0 without a price."""
        return 0.0 if self.price is None else self.price.max_cost(messages, max_tokens, extra_text)

    def _usd(self, answer: ChatAnswer) -> float | None:
        """What an answer cost, from its tokens; without a price, as its server says."""
        if self.price is None:
            return answer.cost_usd
        if answer.prompt_tokens is None or answer.completion_tokens is None:
            return None
        return self.price.usd(answer.prompt_tokens, answer.cached_tokens or 0, answer.completion_tokens)

    def _record(self, key: str, answer: ChatAnswer, usd: float | None) -> None:
        self._answers[key], self._costs[key] = answer, usd
        self.spent += usd or 0.0

    def reserve(self, max_cost: float, description: str) -> float:
        """Put aside what a request may cost, before it is sent. EndpointError (status 402) where it passes the cap."""
        with self._lock:
            whole = self.spent + self._reserved + max_cost
            if self._max is not None and whole > self._max:
                raise EndpointError(
                    f"{description}: another request could take the ${self.spent:.4f} spent so far past max_usd of "
                    f"${self._max:g}; raise max_usd to continue (answers are kept)",
                    status=402,
                )
            self._reserved += max_cost
        return max_cost

    def release(self, reserved: float) -> None:
        """The request was not sent, or refused: it costs nothing."""
        with self._lock:
            self._reserved -= reserved

    def settle(self, key: str, answer: ChatAnswer, reserved: float) -> None:
        """Keep an answer. Where the server did not count its tokens, it costs what was put aside."""
        usd = self._usd(answer)
        if usd is None and self.price is not None:
            usd = reserved
        values = asdict(answer) | {"extension": dict(answer.extension)}
        with self._lock:
            self._reserved -= reserved
            self._record(key, answer, usd)
            self._write({"key": key, "usd": usd, "answer": values})

    def lose(self, key: str, reserved: float, why: str) -> None:
        """A request that was sent and failed: the server may have charged for it."""
        with self._lock:
            self._reserved -= reserved
            self.spent += reserved
            self.lost += 1
            self._write({"key": key, "usd": reserved, "lost": why})

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._path is not None:
            append_jsonl(self._path, [row])
