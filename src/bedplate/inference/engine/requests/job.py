"""`RequestJob`: the state of one request in the engine, and the interface that the job of each type implements."""

from __future__ import annotations

import math
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from bedplate.core.errors import BedplateError, RequestError
from bedplate.economics.model.footprint import forward_flops
from bedplate.inference.engine.checks import check_prompt, check_prompt_vectors, check_room, not_finite
from bedplate.inference.engine.grammar import Grammars
from bedplate.inference.engine.requests.base import (
    FinishReason,
    Request,
    RequestTiming,
    RequestUsage,
    Result,
    Stream,
    Usage,
)
from bedplate.inference.engine.token_selection import WritingRow
from bedplate.inference.forward.batch import LatentInput, LoadedAdapter, PassOutput
from bedplate.inference.forward.radix import Key, media_tokens
from bedplate.models.checkpoints.base import Base

R = TypeVar("R", bound=Request)


@dataclass(frozen=True)
class EngineResources:
    """The objects and settings that all jobs of an engine use. ends: ids of end tokens. speculates: whether next tokens
    are drafted. never: ids that are never generated. longest: tokens of the longest sequence that fits the cache; None:
    unbounded."""

    base: Base
    grammars: Grammars
    ends: frozenset[int]
    speculates: bool
    never: frozenset[int] = frozenset()
    longest: int | None = None

    @cached_property
    def doubling_tokens(self) -> float:
        """The number of attended tokens at which a token takes twice the compute of one that attends to none: a mean
        over the context; a layer with a window attends to the window only."""
        spec, tokens = self.base.spec.main, self.base.spec.context_length
        surplus = forward_flops(spec, tokens, 0) / (tokens * forward_flops(spec, 1, 0)) - 1
        return (tokens / 2 if self.base.causal else tokens) / surplus if surplus > 0 else math.inf


@dataclass(slots=True)
class PassRequest:
    """A job's inputs to a forward pass in addition to its tokens, and the outputs that it needs.

    logits: the positions whose logits are needed. likeliest: only the likeliest successor of each of these, and of the
    drafted tokens, is needed. states: the hidden states of all its tokens are needed, after `RequestJob.depth` blocks.
    vectors: (position, features [P, D]) that replace its tokens' embeddings. latents: a denoising call. A job that sets
    one of the last two has `has_features`.
    """

    logits: Sequence[int] = ()
    states: bool = False
    likeliest: bool = False
    vectors: Sequence[tuple[int, Tensor]] = ()
    latents: LatentInput | None = None


@dataclass(slots=True)
class PassResult:
    """The output of a forward pass for a job's tokens from position `begin` to before `end`.

    positions: those whose logits the job requested. draft: drafted tokens after them. out: the output of the whole
    batch. logits_index: index of the job's first logits in it; those of the draft come last. token_index: index of the
    job's first token in the batch. latents_index: index of its denoising call; None without one.
    """

    begin: int
    end: int
    positions: Sequence[int]
    draft: Sequence[int]
    out: PassOutput
    logits_index: int
    token_index: int
    latents_index: int | None = None

    @property
    def logits_WV(self) -> Tensor:
        """The logits of `positions`, in their order."""
        assert self.out.logits_WV is not None
        return self.out.logits_WV[self.logits_index : self.logits_index + len(self.positions)]

    @property
    def states_TD(self) -> Tensor:
        """The hidden states of all the job's tokens, after `RequestJob.depth` blocks or the last norm."""
        assert self.out.hidden_ND is not None
        return self.out.hidden_ND[self.token_index : self.token_index + self.end - self.begin]

    @property
    def denoised_TC(self) -> Tensor:
        """The prediction of the job's denoising call."""
        assert self.latents_index is not None
        return self.out.denoised[self.latents_index]


class RequestJob(ABC, Generic[R]):
    """One request while it waits and runs. Each request type has one file, with its request, its result and a subclass
    of this class, and one entry in `table.JOB_TYPES`.

    tokens: the sequence to compute: the adapter's virtual tokens, the prompt, then what the job appends. source: the
    number of first tokens that an encoder reads: the whole prompt, behind which the decoder starts, or 0.
    computed_tokens: how many have keys and values in cache row `row`. cached: prompt tokens found in the prefix cache.
    saved_tokens: how many of `tokens` are saved there. marks: positions at which recurrent states are saved on the way.
    begun: the prompt is computed, and generated tokens are kept even if the row is lost. ended, failed: the finish
    reason, or the error, with which the job leaves at the end of the step.

    A job whose work is not a sequence of tokens has `is_sequence` false and no row. It counts its `cost` in units of
    one token, is scheduled in shares of that, and returns each share's inputs from `pass_request`: a denoising job
    counts the patches of its next step and makes one call when all are scheduled. Vectors are `reusable` by other jobs
    only where `prefix_tokens` identifies them.
    """

    writes: ClassVar[bool] = False
    """Whether it needs logits after the prompt, not the prompt's own states."""
    holds_row: ClassVar[bool] = False
    """Whether it keeps its row for many steps: such rows are limited, and preempted where memory is scarce."""
    is_sequence: ClassVar[bool] = True
    """Whether its shares are tokens of one sequence, which needs a row of the cache."""
    has_features: bool = False
    """Whether its passes have vectors or latents as inputs."""

    def __init__(self, request: R, adapter: LoadedAdapter, resources: EngineResources) -> None:
        """Raises RequestError for a request that cannot run."""
        self.request, self.adapter, self.resources = request, adapter, resources
        self.stream = Stream(request)
        self.source = len(request.tokens) if resources.base.has_encoder else 0
        self.starts = resources.base.decoder_start if self.source and self.writes else ()
        self.tokens = [*adapter.virtual_tokens, *request.tokens, *self.starts]
        self.number = 0
        self.depth: int | None = None
        """The number of blocks to run; None: all."""
        self.types: Sequence[int] = ()
        """The tokens' types, for encoders with token type embeddings."""
        self.row: int | None = None
        self.computed_tokens = self.saved_tokens = self.shared = 0
        self.marks: tuple[int, ...] = ()
        self.cached: int | None = None
        self.key: Key = ()
        self.begun = False
        self.ended: FinishReason | None = None
        self.failed: BaseException | None = None
        self.released = False
        """Whether the engine has released it."""
        self.started: float | None = None
        self.first: float | None = None
        self.compute = 0.0
        self._read = 0
        self.check()
        if request.vectors:
            check_prompt_vectors(resources.base, request.vectors, len(request.tokens))
            self.has_features = True
        if request.deadline is not None and math.isnan(request.deadline):
            raise RequestError("the deadline is not a number; give seconds of time.monotonic()")
        if not self.reads:
            check_room(resources.longest, self.prompt_end, self.max_new_tokens)
        self.queued = time.monotonic()

    def check(self) -> None:
        """Raises RequestError for a request that this base cannot run."""
        check_prompt(self.resources.base, self.request.tokens, self.adapter.virtual)

    @abstractmethod
    def pass_request(self, begin: int, end: int) -> PassRequest:
        """The job's inputs to a pass over its tokens from position `begin` to before `end`, and the outputs it
        needs."""

    @abstractmethod
    def consume(self, pass_result: PassResult) -> WritingRow | None:
        """Consumes the output of a pass, and sets `ended` when the job is complete. Returns its row where its next
        token is to be chosen."""

    @abstractmethod
    def result(self) -> Result:
        """The result of a job that has ended."""

    @property
    def cost(self) -> int:
        """The work still to be computed, in tokens, the unit of the engine's budget; only up to the next mark, so that
        no pass goes beyond it."""
        end = next((mark for mark in self.marks if mark > self.computed_tokens), len(self.tokens))
        return end - self.computed_tokens

    @property
    def weight(self) -> float:
        """The compute of its next token, relative to that of a sequence's first token: it attends to the tokens before
        it, or, in an encoder, to the whole text."""
        if not self.is_sequence:
            return 1.0
        causal = self.resources.base.causal
        return 1.0 + (self.computed_tokens if causal else len(self.tokens)) / self.resources.doubling_tokens

    def prefix_tokens(self, length: int) -> list[int]:
        """The key elements of the first `length` tokens in the prefix cache: token ids, or hashes of media."""
        names = self.tokens[:length]
        for part in self.request.vectors:
            start = self.adapter.virtual + part.start
            end = min(start + len(part.vectors_PD), length)
            if start < end:
                names[start:end] = media_tokens(part.sha256, end - start)
        return names

    def prompt_vectors(self, begin: int, end: int) -> list[tuple[int, Tensor]]:
        """The request's vectors at the positions from `begin` to before `end`, for `PassRequest.vectors`."""
        parts: list[tuple[int, Tensor]] = []
        for part in self.request.vectors:
            start = self.adapter.virtual + part.start
            first, last = max(begin, start), min(end, start + len(part.vectors_PD))
            if first < last:
                parts.append((first, part.vectors_PD[first - start : last - start]))
        return parts

    @property
    def prompt_end(self) -> int:
        """The position after the prompt's last token, or after the decoder's start token where an encoder reads the
        prompt."""
        return self.adapter.virtual + len(self.request.tokens) + len(self.starts)

    @property
    def reads(self) -> bool:
        """Whether an encoder reads its tokens and nothing is generated."""
        return self.source > 0 and not self.writes

    @property
    def reusable(self) -> int | None:
        """The number of leading tokens that may come from the prefix cache; None: each token's output is needed."""
        return len(self.tokens) - 1

    @property
    def returns_to(self) -> int | None:
        """A position to which the job may return later; None where it never does."""
        return None

    @property
    def max_new_tokens(self) -> int:
        """The largest number of tokens that its row may hold after the prompt."""
        return 0

    @property
    def decoding(self) -> bool:
        """Whether it computes one token per step, outside of the queues' shares."""
        return False

    def draft(self, max_tokens: int) -> Sequence[int]:
        """Drafts up to `max_tokens` tokens that may follow its next one."""
        return ()

    def cacheable_length(self, begin: int, end: int) -> int:
        """The number of leading tokens to save in the prefix cache after a pass over those from `begin` to `end`."""
        return self.prompt_end

    def cancel(self) -> None:
        """Fails the request, because its caller has cancelled it."""
        self.failed = RequestError("the request was cancelled before it started", code="cancelled")

    def fail(self, error: Exception | None) -> None:
        """Marks the job to leave at the end of the step with this error; None: its numbers are not finite."""
        self.failed = error or not_finite(self.resources.base, self.adapter.key)

    def restart(self) -> None:
        """Discards computed states, but not generated tokens."""
        self._read = self._prompt_read
        self.row, self.computed_tokens = None, 0

    @property
    def generated_tokens(self) -> int:
        return 0

    @property
    def _prompt_read(self) -> int:
        return max(self._read, min(max(self.computed_tokens - self.adapter.virtual, 0), len(self.request.tokens)))

    @property
    def spent(self) -> RequestUsage:
        """The compute spent on the request so far."""
        read = self._prompt_read
        return RequestUsage(Usage(read, self.generated_tokens, min(self.cached or 0, read)), self.compute)

    def account(self, completion_tokens: int = 0) -> dict[str, Any]:
        """The fields that every result has. completion_tokens: tokens of the answer."""
        finished = time.monotonic()
        started = finished if self.started is None else self.started
        first = finished if self.first is None else self.first
        timing = RequestTiming(started - self.queued, first - self.queued, finished - self.queued, self.compute)
        usage = Usage(len(self.request.tokens), completion_tokens, self.cached or 0)
        return {"usage": usage, "timing": timing, "retrieval": self.request.retrieval}

    @property
    def over(self) -> bool:
        """Whether it has ended, or is to leave at the end of the step."""
        return self.ended is not None or self.failed is not None or self.stream.finished


def give_error(job: RequestJob) -> None:
    """Ends a job's stream with the job's error, wrapped in RuntimeError unless it is a BedplateError."""
    error, job.failed = job.failed, None
    assert error is not None
    # Clears the frames' locals: a caller that keeps the error must not keep jobs, caches and the engine alive.
    chained: BaseException | None = error
    while chained is not None:
        traceback.clear_frames(chained.__traceback__)
        chained = chained.__cause__ or chained.__context__
    if not isinstance(error, BedplateError):
        cause, error = error, RuntimeError(f"the engine failed on a step: {error!r}")
        error.__cause__ = cause
    job.stream.fail(error, job.spent)
