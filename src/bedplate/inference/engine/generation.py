"""From logits to the next tokens of running generations, their texts and their ends.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bedplate.core.errors import RequestError
from bedplate.inference.engine import answers
from bedplate.inference.engine.grammar import Grammars
from bedplate.inference.engine.job import Job
from bedplate.inference.engine.requests import (
    Classify,
    FinishReason,
    Generate,
    Generation,
    Result,
    Score,
    Scores,
    Step,
    Timing,
    Usage,
)
from bedplate.inference.engine.sampler import RowState
from bedplate.inference.engine.stopping import TextStream
from bedplate.inference.forward.torch import Greedy
from bedplate.models.checkpoints.base import Base
from bedplate.text.json_schema import INVALID

Sample = Callable[[Tensor, Sequence[RowState]], Tensor]


@contextlib.contextmanager
def _one_thread() -> Generator[None]:
    """Torch on one thread: woken for a moment, its second one would go on spinning on a core that the native kernel's
    own threads need (a step under a grammar then takes half as long again)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Row:
    """A generation in a pass: the number of its first row among the wanted logits, and the tokens guessed after it."""

    job: Job
    at: int
    draft: Sequence[int] = ()


class Generating:
    """Begins, advances and ends generations of one base."""

    def __init__(self, base: Base) -> None:
        self._tokenizer = base.tokenizer
        eos = base.generation_defaults.get("eos_token_id")
        listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
        self._ends = frozenset(listed) | frozenset(base.tokenizer.eos_ids if base.tokenizer is not None else ())
        self.grammars = Grammars(base.tokenizer, base.spec.vocab_size, self._ends)

    def begin(self, job: Job, request: Generate) -> None:
        """The prompt is computed for the first time."""
        matcher = None if request.grammar is None else self.grammars.matcher(request.grammar)
        job.state = RowState(request.sampling, request.tokens, matcher=matcher, end_ids=self._ends)
        job.text = TextStream(self._tokenizer, request.sampling.stop)
        job.plain = is_plain(request)

    def advance(self, rows: Sequence[Row], logits_WV: Tensor | None, greedy: Greedy | None, sample: Sample) -> None:
        """Chooses each row's next token, and goes on along its draft for as long as the choices agree with it."""
        going, step = list(rows), 0
        while going:
            drawn: list[Row] = []
            on: list[Row] = []
            for row in going:
                if greedy is None or not row.job.plain:
                    drawn.append(row)
                    continue
                token, logprob = greedy.tokens[row.at + step], greedy.logprobs[row.at + step]
                # A row under a grammar mostly may have its likeliest token: then no mask is made.
                if row.job.state is not None and row.job.state.permits(token):
                    if self._take(row.job, token, logprob, None) and row.draft[step : step + 1] == [token]:
                        on.append(row)
                else:
                    drawn.append(row)
            if drawn:
                assert logits_WV is not None
                at = [row.at + step for row in drawn]
                with contextlib.nullcontext() if greedy is None else _one_thread():
                    # Mostly the rows stand together, and need not be copied.
                    together = at == list(range(at[0], at[0] + len(at)))
                    logits_BV = logits_WV[at[0] : at[0] + len(at)] if together else logits_WV[at]
                    chosen = sample(logits_BV, [row.job.state for row in drawn if row.job.state is not None])
                    sums = logits_BV.logsumexp(dim=-1).tolist() if greedy is None else [greedy.logsumexp[i] for i in at]
                    picked = logits_BV.gather(1, chosen[:, None])[:, 0].tolist()
                    for row, token, logit, total, logits_V in zip(
                        drawn, chosen.tolist(), picked, sums, logits_BV, strict=True
                    ):
                        goes = self._take(row.job, token, logit - total, logits_V)
                        if goes and row.draft[step : step + 1] == [token]:
                            on.append(row)
            going, step = on, step + 1

    def _take(self, job: Job, token: int, logprob: float, logits_V: Tensor | None) -> bool:
        """Adds a token to a row, or ends it; whether it goes on."""
        state, text = job.state, job.text
        assert state is not None
        assert text is not None
        # The token that was computed in this pass is in the cache now, whatever comes next.
        job.done = len(job.tokens)
        if state.failure is not None:
            job.failed = RequestError(state.failure, param="grammar", code=INVALID)
            return False
        if state.ends(token):
            self.end(job, "stop")
            return False
        state.take(token)
        job.tokens.append(token)
        job.logprobs.append(logprob)
        alternatives = () if logits_V is None else answers.top(logits_V, state.sampling.logprobs)
        job.top_logprobs.append(alternatives)
        job.stream.push(Step(token, text.push(token), logprob, alternatives))
        if job.drafter is not None:
            job.drafter.push(token)
        if text.stopped or state.complete:
            self.end(job, "stop")
        elif len(state.output) >= job.limit:
            self.end(job, "length")
        return job.ended is None

    def end(self, job: Job, reason: FinishReason) -> None:
        """Releases what is left of the text. The result is delivered when the step is over."""
        text = job.text
        assert text is not None
        tail = text.finish()
        job.ended = "stop" if text.stopped else reason
        job.stream.push(Step(None, tail, finish_reason=job.ended))


def result_of(base: Base, job: Job) -> Result:
    """What an ended job has come to, whatever was asked."""
    request, usage, timing = job.request, _usage(job), _timing(job)
    if isinstance(request, Generate):
        return _generation(job, request, usage, timing)
    if isinstance(request, Score):
        return Scores(tuple(job.totals), tuple(len(c) for c in request.continuations), usage, timing)
    if isinstance(request, Classify):
        return answers.classification(base, job, request, usage, timing)
    return answers.embedding(base, job, request, usage, timing)


def _generation(job: Job, request: Generate, usage: Usage, timing: Timing) -> Generation:
    assert job.state is not None
    assert job.text is not None
    assert job.ended is not None
    settings = request.sampling
    asked = settings.prompt_logprobs is not None
    return Generation(
        text=job.text.text,
        token_ids=tuple(job.state.output),
        logprobs=tuple(job.logprobs),
        finish_reason=job.ended,
        usage=usage,
        top_logprobs=tuple(job.top_logprobs) if settings.logprobs is not None else (),
        prompt_logprobs=tuple(job.prompt_logprobs) if asked else None,
        prompt_top_logprobs=tuple(job.prompt_top_logprobs) if asked else (),
        timing=timing,
    )


def _usage(job: Job) -> Usage:
    output = 0 if job.state is None else len(job.state.output)
    return Usage(len(job.request.tokens), output, job.cached or 0)


def _timing(job: Job) -> Timing:
    now = time.monotonic()
    started = now if job.started is None else job.started
    first = now if job.first is None else job.first
    return Timing(started - job.queued, first - job.queued, now - job.queued, job.compute)


def is_plain(request: Generate) -> bool:
    """Whether the likeliest token is all that is asked for, of those that its grammar allows if it has one."""
    s = request.sampling
    greedy = s.temperature == 0 and not s.logprobs and s.min_tokens == 0
    penalties = s.repetition_penalty != 1.0 or bool(s.presence_penalty or s.frequency_penalty or s.logit_bias)
    return greedy and not penalties
