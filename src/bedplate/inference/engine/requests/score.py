"""Scoring: log-probabilities of given continuations of a prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bedplate.core.errors import RequestError
from bedplate.inference.engine.checks import check_decoder, check_ids, check_prompt, not_finite
from bedplate.inference.engine.requests.base import Request, Result
from bedplate.inference.engine.requests.job import EngineResources, PassRequest, PassResult, RequestJob
from bedplate.inference.forward.batch import LoadedAdapter


@dataclass(frozen=True)
class Score(Request):
    """Asks for the total log-probability of each continuation after `tokens`."""

    continuations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Scores(Result):
    """Per continuation: total log-probability (natural log), and number of tokens."""

    totals: tuple[float, ...]
    token_counts: tuple[int, ...]


class ScoreJob(RequestJob[Score]):
    """Computes one continuation after the other behind the prompt; the first token of each is scored by the logits of
    the prompt's last token.

    branch: index of the current continuation. totals: log-probability sums so far.
    """

    writes: ClassVar[bool] = True

    def __init__(self, request: Score, adapter: LoadedAdapter, resources: EngineResources) -> None:
        super().__init__(request, adapter, resources)
        self.totals: list[float] = []
        self._set_branch(0)

    def check(self) -> None:
        base, continuations = self.resources.base, self.request.continuations
        check_decoder(base, "score")
        if not continuations or not all(continuations):
            raise RequestError("scoring needs continuations of at least one token each", param="continuations")
        for tokens in continuations:
            check_ids(base, tokens)
        check_prompt(base, self.request.tokens, self.adapter.virtual, max(len(c) for c in continuations))

    def _set_branch(self, branch: int) -> None:
        """Places continuation number `branch` behind the prompt."""
        self.branch = branch
        self.tokens[self.prompt_end :] = self.request.continuations[branch][:-1]

    @property
    def reusable(self) -> int:
        return self.prompt_end - 1

    @property
    def returns_to(self) -> int | None:
        return self.prompt_end if sum(len(tokens) > 1 for tokens in self.request.continuations) > 1 else None

    @property
    def max_new_tokens(self) -> int:
        return max(len(tokens) for tokens in self.request.continuations) - 1

    def pass_request(self, begin: int, end: int) -> PassRequest:
        first = self.prompt_end - (self.branch == 0)
        return PassRequest(range(max(first, begin), end))

    def consume(self, pass_result: PassResult) -> None:
        if pass_result.positions:
            self._add(pass_result.positions[0], pass_result.logits_WV.log_softmax(dim=-1))
        if pass_result.end < len(self.tokens):
            return
        continuations = self.request.continuations
        longer = (i for i in range(self.branch + 1, len(continuations)) if len(continuations[i]) > 1)
        following = next(longer, None)
        if following is None:
            self.ended = "stop"
        else:
            self._set_branch(following)
            self.computed_tokens = self.prompt_end

    def _add(self, begin: int, logprobs_WV: Tensor) -> None:
        """Adds the log-probabilities of the current continuation's tokens after position `begin`; from the prompt's
        last token, those of the first token of every continuation."""
        if begin == self.prompt_end - 1:
            self.totals = logprobs_WV[0, [c[0] for c in self.request.continuations]].tolist()
            logprobs_WV, begin = logprobs_WV[1:], begin + 1
        if len(logprobs_WV):
            at = begin - self.prompt_end + 1
            following = self.request.continuations[self.branch][at : at + len(logprobs_WV)]
            target = torch.tensor(following, device=logprobs_WV.device)
            self.totals[self.branch] += float(logprobs_WV.gather(1, target[:, None]).double().sum())

    def restart(self) -> None:
        super().restart()
        self.totals = []
        self._set_branch(0)

    def result(self) -> Scores:
        if any(map(math.isnan, self.totals)):
            raise not_finite(self.resources.base, self.adapter.key)
        return Scores(tuple(self.totals), tuple(len(c) for c in self.request.continuations), **self.account())
