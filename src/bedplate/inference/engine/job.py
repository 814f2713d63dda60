"""A request on its way through the engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from bedplate.core.errors import BedplateError
from bedplate.inference.engine.requests import Classify, Embed, FinishReason, Generate, Request, Score
from bedplate.inference.engine.sampler import RowState
from bedplate.inference.engine.speculate import Drafter
from bedplate.inference.engine.stopping import TextStream
from bedplate.inference.engine.stream import Stream
from bedplate.inference.forward.adapters import Loaded
from bedplate.inference.forward.radix import Key

Alternatives = tuple[tuple[int, float], ...]


@dataclass(eq=False)
class Job:
    """What is known of one request while it waits and runs.

    tokens: the sequence to be computed: the adapter's virtual tokens, the prompt, then the output so far (generation)
    or the continuation in turn (scoring). done: how many of them have keys and values in `row`. cached: of the prompt's
    tokens, those that were found in the prefix cache; kept: those of `tokens` that are saved there. limit: tokens to
    generate at most. ended, failed: how it is to leave at the end of the step.
    """

    request: Request
    stream: Stream
    adapter: Loaded
    limit: int = 0
    number: int = 0
    tokens: list[int] = field(default_factory=list[int])
    row: int | None = None
    done: int = 0
    cached: int | None = None
    key: Key = ()
    shared: int = 0
    ended: FinishReason | None = None
    failed: BaseException | None = None
    kept: int = 0

    queued: float = field(default_factory=time.monotonic)
    started: float | None = None
    first: float | None = None
    compute: float = 0.0

    # Generation
    state: RowState | None = None
    text: TextStream | None = None
    drafter: Drafter | None = None
    logprobs: list[float] = field(default_factory=list[float])
    top_logprobs: list[Alternatives] = field(default_factory=list[Alternatives])
    prompt_logprobs: list[float | None] = field(default_factory=list[float | None])
    prompt_top_logprobs: list[Alternatives] = field(default_factory=list[Alternatives])
    plain: bool = False

    # Scoring: which continuation is in `tokens`, log-probabilities of their first tokens, and of each so far
    branch: int = 0
    totals: list[float] = field(default_factory=list[float])

    # Pooling
    pooled: Tensor | None = None

    def __post_init__(self) -> None:
        self.tokens = [*self.adapter.virtual_tokens, *self.request.tokens]
        if isinstance(self.request, Score):
            self.tokens += self.request.continuations[0][:-1]

    @property
    def prompt_end(self) -> int:
        """Position after the prompt's last token."""
        return self.adapter.virtual + len(self.request.tokens)

    @property
    def remaining(self) -> int:
        """Tokens that are still to be computed."""
        return len(self.tokens) - self.done

    @property
    def decoding(self) -> bool:
        """Whether a generation has begun and computes one token at a time."""
        return self.state is not None and self.row is not None and self.remaining == 1

    @property
    def depth(self) -> int | None:
        return self.request.depth if isinstance(self.request, Classify | Embed) else None

    @property
    def generates(self) -> bool:
        return isinstance(self.request, Generate)

    @property
    def asks_prompt(self) -> bool:
        """Whether the prompt's own log-probabilities are still to be found."""
        request = self.request
        return isinstance(request, Generate) and request.sampling.prompt_logprobs is not None and self.state is None

    @property
    def shares(self) -> bool:
        """Whether cached tokens can stand in for the first ones: not where each token's state is wanted."""
        request = self.request
        if isinstance(request, Generate):
            return not self.asks_prompt
        if isinstance(request, Classify | Embed):
            return request.pooling == "last"
        return True

    def restart(self) -> None:
        """Forgets what is computed, but not what has been said: the output so far is computed like a prompt."""
        self.row, self.done = None, 0
        if self.state is None:
            self.prompt_logprobs, self.prompt_top_logprobs, self.pooled = [], [], None
            self.branch, self.totals = 0, []
            self.tokens = self.tokens[: self.prompt_end]
            if isinstance(self.request, Score):
                self.tokens += self.request.continuations[0][:-1]


def fail_all(jobs: Sequence[Job], error: BaseException) -> None:
    """Ends jobs with an error of their own kind."""
    for job in jobs:
        wrapped = error if isinstance(error, BedplateError) else RuntimeError(f"the engine failed on a step: {error!r}")
        if wrapped is not error:
            wrapped.__cause__ = error
        job.stream.fail(wrapped)
