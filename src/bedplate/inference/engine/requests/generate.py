"""Text generation: requests that continue a prompt token by token."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bedplate.core import display
from bedplate.core.errors import RequestError
from bedplate.inference.engine.checks import check_decoder, check_ids, check_prompt, not_finite
from bedplate.inference.engine.grammar import Matcher
from bedplate.inference.engine.requests.base import FinishReason, Request, Result, Step
from bedplate.inference.engine.requests.job import EngineResources, PassRequest, PassResult, RequestJob
from bedplate.inference.engine.row_state import RowState
from bedplate.inference.engine.sampling import Grammar, Sampling
from bedplate.inference.engine.token_selection import NO_ALTERNATIVES, Alternatives, WritingRow
from bedplate.inference.forward.batch import LoadedAdapter
from bedplate.text.json_schema import INVALID
from bedplate.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Generate(Request):
    """Continues `tokens`, constrained by `grammar` if any. marks: the special tokens that appear in the text, for
    callers that parse it by them; all others are left out."""

    sampling: Sampling = field(default_factory=Sampling)
    grammar: Grammar | None = None
    marks: frozenset[int] = frozenset()


@dataclass(frozen=True, repr=False)
class Generation(Result):
    """Generated text. `logprobs` per output token (natural log, of the model's own distribution); `prompt_logprobs`
    and `prompt_top_logprobs` per prompt token, None and () for the first."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    top_logprobs: tuple[Alternatives, ...] = ()
    prompt_logprobs: tuple[float | None, ...] | None = None
    prompt_top_logprobs: tuple[Alternatives, ...] = ()

    def __repr__(self) -> str:
        text = repr(display.shortened(self.text, 80))
        return display.line("generation", text, f"{len(self.token_ids)} tokens", f"ended by {self.finish_reason}")


class GenerateJob(RequestJob[Generate]):
    """The job of a generation. limit: maximum number of tokens to generate."""

    writes: ClassVar[bool] = True
    holds_row: ClassVar[bool] = True

    def __init__(self, request: Generate, adapter: LoadedAdapter, resources: EngineResources) -> None:
        self.limit = 0
        self._matcher: Callable[[], Matcher] | None = None
        super().__init__(request, adapter, resources)
        # An encoder's input is not part of the generated sequence.
        begun = self.starts if self.source else request.tokens
        self.state = RowState(request.sampling, begun, end_ids=resources.ends, never=resources.never)
        self.text = TextStream(resources.base.tokenizer, request.sampling.stop, request.marks)
        self.plain = is_plain(request.sampling)
        self._drafter: Drafter | None = None
        self._logprobs: list[float] = []
        self._top_logprobs: list[Alternatives] = []
        self._prompt_logprobs: list[float | None] = []
        self._prompt_top_logprobs: list[Alternatives] = []

    def check(self) -> None:
        base, request, virtual = self.resources.base, self.request, self.adapter.virtual
        check_decoder(base, "generate")
        check_ids(base, [token for token, _ in request.sampling.logit_bias], "logit_bias")
        check_ids(base, request.sampling.stop_token_ids, "stop_token_ids")
        # "To the context's end" asks for at least one token: a prompt that fills the context has no answer.
        max_tokens = request.sampling.max_tokens
        room = base.answer_room(virtual + len(request.tokens))
        if self.resources.longest is not None:
            room = min(room, self.resources.longest - self.prompt_end)
        self.limit = max(room, 1) if max_tokens is None else max_tokens
        check_prompt(base, request.tokens, virtual, self.limit)
        if request.sampling.prompt_logprobs is not None and self.source:
            raise RequestError(f"{base.name} encodes prompts, which have no log-probabilities", param="prompt_logprobs")
        if request.grammar is not None:
            self._matcher = self.resources.grammars.compile(request.grammar)

    @property
    def _needs_prompt_logprobs(self) -> bool:
        """Whether log-probabilities of the prompt are requested and not computed yet."""
        return self.request.sampling.prompt_logprobs is not None and not self.begun

    @property
    def reusable(self) -> int | None:
        return None if self._needs_prompt_logprobs else super().reusable

    @property
    def generated_tokens(self) -> int:
        return len(self.state.output)

    @property
    def max_new_tokens(self) -> int:
        return self.limit

    @property
    def decoding(self) -> bool:
        return self.begun and self.row is not None and len(self.tokens) - self.computed_tokens == 1

    def draft(self, max_tokens: int) -> Sequence[int]:
        budget = min(max_tokens, self.limit - len(self.state.output) - 1)
        if self._drafter is not None:
            return self._drafter.draft(budget)
        # Tokens that a grammar forces are drafted: they are certain to be accepted.
        return [] if self.state.matcher is None else self.state.matcher.forced()[:budget]

    def cacheable_length(self, begin: int, end: int) -> int:
        return end if end - begin > 1 else 0

    def pass_request(self, begin: int, end: int) -> PassRequest:
        if self._needs_prompt_logprobs:
            return PassRequest(range(begin, end))
        # Under a grammar or with withheld tokens, another token than the likeliest may be chosen.
        likeliest = self.plain and self.request.grammar is None and not self.state.withheld
        return PassRequest(range(end - 1, end) if end == len(self.tokens) else (), likeliest=likeliest)

    def consume(self, pass_result: PassResult) -> WritingRow | None:
        if self._needs_prompt_logprobs:
            self._collect_prompt_logprobs(pass_result.begin, pass_result.logits_WV)
        if pass_result.end < len(self.tokens):
            return None
        if not self.begun:
            self._begin()
        if self.ended:
            return None
        return WritingRow(self, pass_result.logits_index + len(pass_result.positions) - 1, pass_result.draft)

    def _collect_prompt_logprobs(self, begin: int, logits_TV: Tensor) -> None:
        """Collects the log-probability of each prompt token after those before it, and the likeliest alternatives, from
        the logits of the tokens from position `begin` on."""
        tokens, first = self.request.tokens, begin - self.adapter.virtual
        if first == 0:
            self._prompt_logprobs, self._prompt_top_logprobs = [None], [NO_ALTERNATIVES]
        logits_TV = logits_TV[: len(tokens) - 1 - first]
        logprobs_TV = logits_TV.log_softmax(dim=-1)
        target = torch.tensor(tokens[first + 1 : first + 1 + len(logits_TV)], dtype=torch.long, device=logits_TV.device)
        logprobs = logprobs_TV.gather(1, target[:, None])[:, 0].tolist()
        if any(map(math.isnan, logprobs)):
            raise not_finite(self.resources.base, self.adapter.key)
        self._prompt_logprobs += logprobs
        values, ids = logprobs_TV.topk(self.request.sampling.prompt_logprobs or 0)
        self._prompt_top_logprobs += map(Alternatives, ids.cpu().numpy(), values.double().cpu().numpy())

    def _begin(self) -> None:
        """Starts the generation, once the prompt is computed for the first time."""
        self.begun = True
        if self._matcher is not None:
            self.state.matcher = self._matcher()
        elif self.resources.speculates:
            self._drafter = Drafter(self.tokens)
        if self.limit == 0:
            self._end("length")

    def accept(self, token: int, logprob: float, alternatives: Alternatives) -> bool:
        """Appends a token to the text, or ends the generation; returns whether it continues."""
        state, text = self.state, self.text
        self.first = self.first or time.monotonic()
        # The token computed in this pass is cached now, whether or not the generation continues.
        self.computed_tokens = len(self.tokens)
        if state.failure is not None:
            grammar = self.request.grammar
            name = "grammar" if grammar is None else grammar.named
            self.failed = RequestError(state.failure, param=name, code=INVALID)
            return False
        if state.ends(token):
            self._end("stop")
            return False
        state.append(token)
        self.tokens.append(token)
        self._logprobs.append(logprob)
        self._top_logprobs.append(alternatives)
        self.stream.push(Step(token, text.push(token), logprob, alternatives))
        if self._drafter is not None:
            self._drafter.push(token)
        if text.stopped or state.complete:
            self._end("stop")
        elif len(state.output) >= self.limit:
            self._end("length")
        return self.ended is None

    def learn(self, chosen_count: int, draft: Sequence[int]) -> int:
        accepted = max(min(chosen_count - (self.ended is None), len(draft)), 0)
        if self._drafter is not None and draft:
            self._drafter.learn(len(draft), accepted)
        return accepted

    def _end(self, reason: FinishReason) -> None:
        """Ends the generation and releases the rest of its text; the result is delivered at the end of the step."""
        tail = self.text.finish()
        self.ended = "stop" if self.text.stopped else reason
        self.stream.push(Step(None, tail, finish_reason=self.ended))

    def cancel(self) -> None:
        """Ends the request; a generation that has begun returns its text so far."""
        if self.begun:
            self._end("cancelled")
        else:
            super().cancel()

    def result(self) -> Generation:
        assert self.ended is not None
        settings, output = self.request.sampling, self.state.output
        include_prompt = settings.prompt_logprobs is not None
        return Generation(
            text=self.text.text,
            token_ids=tuple(output),
            logprobs=tuple(self._logprobs),
            finish_reason=self.ended,
            top_logprobs=tuple(self._top_logprobs) if settings.logprobs is not None else (),
            prompt_logprobs=tuple(self._prompt_logprobs) if include_prompt else None,
            prompt_top_logprobs=tuple(self._prompt_top_logprobs) if include_prompt else (),
            **self.account(len(output)),
        )


def is_plain(settings: Sampling) -> bool:
    """Whether the settings always choose the likeliest token (of those that a grammar allows) and report no
    alternatives."""
    greedy = settings.temperature == 0 and not settings.logprobs and settings.min_tokens == 0
    penalties = settings.repetition_penalty != 1.0 or bool(
        settings.presence_penalty or settings.frequency_penalty or settings.logit_bias
    )
    return greedy and not penalties


class TextStream:
    """Decodes the text of one row; characters that may become part of a stop string are buffered until that is
    decided."""

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str], marks: frozenset[int] = frozenset()) -> None:
        """marks: special tokens that appear in the text; all others are left out."""
        self._decoder = None if tokenizer is None else tokenizer.stream(marks=marks)
        self._stop = tuple(stop)
        self._pending = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text released by this token."""
        return "" if self._decoder is None else self._release(self._decoder.push(token))

    def finish(self) -> str:
        """The text still buffered when the row ends for a reason other than a stop string."""
        if self._decoder is None or self.stopped:
            return ""
        released = self._release(self._decoder.flush())
        if not self.stopped:
            tail, self._pending = self._pending, ""
            self.text += tail
            released += tail
        return released

    def _release(self, piece: str) -> str:
        self._pending += piece
        stop_places = [place for place in (self._pending.find(stop) for stop in self._stop) if place >= 0]
        if stop_places:
            released, self._pending = self._pending[: min(stop_places)], ""
            self.stopped = True
        else:
            overlap = max((_overlap(self._pending, stop) for stop in self._stop), default=0)
            cut = len(self._pending) - overlap
            released, self._pending = self._pending[:cut], self._pending[cut:]
        self.text += released
        return released


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


LONGEST, SHORTEST = 4, 2
MAX_DRAFT = 8
COOLDOWN = 16
"""Tokens without drafts after a draft failed entirely; doubled each time, up to 8 times as many."""


class Drafter:
    """Drafts tokens for one row by prompt lookup: those that followed the last occurrence of the latest n-gram.

    A draft is verified in the same forward pass that computes the next token anyway, and a row samples at each drafted
    position exactly as it would have without it, so that drafts never change the output
    (https://arxiv.org/abs/2211.17192 for verification; lookup as in https://arxiv.org/abs/2304.04487).

    An index holds the last position of each n-gram of the generated tokens, so that a step costs a few lookups. The
    prompt is searched instead of indexed: indexing a long one would delay other requests.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._prompt = np.fromiter(tokens, dtype=np.int64, count=len(tokens))
        self._ends_by_ngram: dict[tuple[int, ...], int] = {}
        self._size = 2
        self._cooldown = COOLDOWN
        self._wait = 0

    def push(self, token: int) -> None:
        """Adds a generated token, and indexes the n-grams before it, which now have a successor."""
        end = len(self._tokens)
        for n in range(SHORTEST, min(LONGEST, end) + 1):
            self._ends_by_ngram[tuple(self._tokens[end - n :])] = end
        self._tokens.append(token)
        self._wait -= self._wait > 0

    def draft(self, max_tokens: int) -> list[int]:
        """Drafts up to `max_tokens` tokens; often none."""
        if self._wait or max_tokens < 1:
            return []
        at = self._last_match()
        if at is None:
            return []
        period = len(self._tokens) - at
        # Indices wrap around, so that a text that repeats itself is drafted as a repetition.
        return [self._tokens[at + i % period] for i in range(min(max_tokens, self._size))]

    def _last_match(self) -> int | None:
        """The position after the last earlier occurrence of the longest n-gram that ends the text; None without one."""
        for n in range(min(LONGEST, len(self._tokens)), SHORTEST - 1, -1):
            at = self._ends_by_ngram.get(tuple(self._tokens[-n:]))
            match_end = self._match_in_prompt(n) if at is None else at
            if match_end is not None:
                return match_end
        return None

    def _match_in_prompt(self, n: int) -> int | None:
        """The position after the last occurrence, in the prompt, of the latest n tokens; None without one."""
        count = len(self._prompt) - n  # n-grams with a successor in the prompt
        if count < 1:
            return None
        matches = self._prompt[n - 1 : n - 1 + count] == self._tokens[-1]
        ends = matches.nonzero()[0] + n
        for back in range(2, n + 1):
            ends = ends[self._prompt[ends - back] == self._tokens[-back]]
        return int(ends[-1]) if len(ends) else None

    def learn(self, drafted: int, accepted: int) -> None:
        """Adapts the draft length: doubled when all drafted tokens were accepted, shortened when some were, and a pause
        when none was."""
        if accepted == drafted:
            self._size, self._cooldown = min(2 * self._size, MAX_DRAFT), COOLDOWN
        elif accepted:
            self._size = max(accepted, 1)
        else:
            self._size, self._wait = 2, self._cooldown
            self._cooldown = min(2 * self._cooldown, 8 * COOLDOWN)
