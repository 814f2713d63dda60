"""What hidden states and logits of a forward pass say to the requests that do not generate, and of prompts.

Shapes: T tokens, V vocabulary, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.inference.engine.job import Alternatives, Job
from bedplate.inference.engine.requests import Classification, Classify, Embed, Embedding, Pooling, Score, Timing, Usage
from bedplate.models.checkpoints.base import Base


def top(logits_V: Tensor, count: int | None) -> Alternatives:
    """The `count` likeliest tokens with their log-probabilities."""
    if not count:
        return ()
    values, ids = F.log_softmax(logits_V, dim=-1).topk(count)
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))


def scored_range(job: Job, request: Score) -> tuple[int, int]:
    """First and last-plus-one position of `job.tokens` whose logits the continuation in turn needs."""
    first = job.prompt_end - (job.branch == 0)
    return first, job.prompt_end + len(request.continuations[job.branch]) - 1


def score(job: Job, request: Score, begin: int, logits_WV: Tensor) -> None:
    """Adds the log-probabilities that the logits at positions from `begin` on give to the continuation in turn, and,
    at the prompt's last token, to the first token of every continuation."""
    if begin == job.prompt_end - 1:
        first_V = F.log_softmax(logits_WV[0], dim=-1)
        job.totals = [float(first_V[c[0]]) for c in request.continuations]
        logits_WV, begin = logits_WV[1:], begin + 1
    if len(logits_WV):
        continuation = request.continuations[job.branch]
        at = begin - job.prompt_end + 1
        target = torch.tensor(continuation[at : at + len(logits_WV)], device=logits_WV.device)
        found = F.log_softmax(logits_WV, dim=-1).gather(1, target[:, None])
        job.totals[job.branch] += float(found.double().sum())


def next_branch(job: Job, request: Score) -> bool:
    """Turns to the next continuation that has more than one token; whether there is one."""
    for branch in range(job.branch + 1, len(request.continuations)):
        if len(request.continuations[branch]) > 1:
            job.branch = branch
            job.tokens = [*job.tokens[: job.prompt_end], *request.continuations[branch][:-1]]
            job.done = job.prompt_end
            return True
    return False


def prompt_logprobs(job: Job, count: int, begin: int, logits_TV: Tensor) -> None:
    """Each prompt token's log-probability after those before it, and the `count` likeliest in its place, from the
    logits of the tokens from position `begin` on."""
    tokens, first = job.request.tokens, begin - job.adapter.virtual
    if first == 0:
        job.prompt_logprobs, job.prompt_top_logprobs = [None], [()]
    logits_TV = logits_TV[: len(tokens) - 1 - first]
    if len(logits_TV):
        target = torch.tensor(tokens[first + 1 : first + 1 + len(logits_TV)], device=logits_TV.device)
        job.prompt_logprobs += F.log_softmax(logits_TV, dim=-1).gather(1, target[:, None])[:, 0].tolist()
        job.prompt_top_logprobs += [top(logits_V, count) for logits_V in logits_TV]


def pool(job: Job, pooling: Pooling, begin: int, states_TD: Tensor) -> None:
    """Takes the states of the tokens from position `begin` on into `job.pooled`, float32 [D]."""
    if pooling == "mean":
        total = states_TD.float().sum(0)
        job.pooled = total if job.pooled is None else job.pooled + total
    elif pooling == "last":
        job.pooled = states_TD[-1].float()
    elif begin == job.adapter.virtual:
        job.pooled = states_TD[0].float()


def vector(base: Base, job: Job, request: Embed | Classify) -> Tensor:
    """The pooled state of a whole prompt, float32 [D]."""
    assert job.pooled is not None
    return job.pooled / len(request.tokens) if pooling_of(base, request) == "mean" else job.pooled


def pooling_of(base: Base, request: Embed | Classify) -> Pooling:
    return request.pooling or base.spec.pooling


def embedding(base: Base, job: Job, request: Embed, usage: Usage, timing: Timing) -> Embedding:
    found = vector(base, job, request)
    return Embedding(tuple((F.normalize(found, dim=0) if request.normalise else found).tolist()), usage, timing)


def classification(base: Base, job: Job, request: Classify, usage: Usage, timing: Timing) -> Classification:
    scores = request.head(vector(base, job, request)[None])[0]
    return Classification(tuple(scores.tolist()), usage, timing)


def wanted_positions(job: Job, begin: int, end: int) -> Sequence[int]:
    """Positions in begin … end whose logits the job needs."""
    if isinstance(job.request, Score):
        first, last = scored_range(job, job.request)
        return range(max(first, begin), min(last, end))
    if job.asks_prompt:
        return range(begin, end)
    if job.generates and end == len(job.tokens):
        return range(end - 1, end)
    return ()
