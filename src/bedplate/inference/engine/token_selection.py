"""Chooses the next tokens of all generating rows: from the pass's greedy results where they suffice, else by sampling;
then accepts drafted tokens up to the first that differs.

Shapes: B rows, W logits of a pass, V vocabulary, K alternatives.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bedplate.inference.engine.row_state import RowState
from bedplate.inference.forward.batch import Greedy
from bedplate.inference.forward.torch import one_thread


class Alternatives(Sequence[tuple[int, float]]):
    """The likeliest tokens with their log-probabilities, the likeliest first. They lie in arrays: one reply may have
    millions, and each pair would be an object that every garbage collection visits."""

    __slots__ = ("_ids_K", "_logprobs_K")

    def __init__(self, ids_K: ArrayLike = (), logprobs_K: ArrayLike = ()) -> None:
        self._ids_K, self._logprobs_K = np.asarray(ids_K, np.int64), np.asarray(logprobs_K, np.float64)

    def __len__(self) -> int:
        return len(self._ids_K)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self._ids_K.tolist(), self._logprobs_K.tolist(), strict=True)

    def __getitem__(self, index: Any) -> Any:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


NO_ALTERNATIVES = Alternatives()
Sample = Callable[[Tensor, Sequence[RowState]], Tensor]


class Writer(Protocol):
    """A job that generates tokens.

    plain: its settings always choose the likeliest (allowed) token. accept: takes the chosen token; returns whether the
    job continues. fail: ends the job; error None: its logits are not finite. learn: records how many tokens a pass
    chose; returns how many drafted tokens were accepted.
    """

    state: RowState
    plain: bool

    def accept(self, token: int, logprob: float, alternatives: Alternatives) -> bool: ...
    def fail(self, error: Exception | None) -> None: ...
    def learn(self, chosen_count: int, draft: Sequence[int]) -> int: ...


@dataclass(eq=False, slots=True)
class WritingRow:
    """A generating row in one pass. at: index of the logits for its next token; those of its `draft` follow.
    chosen_count: tokens chosen for it in this pass."""

    writer: Writer
    at: int
    draft: Sequence[int] = ()
    chosen_count: int = 0

    def accept(
        self, token: int, logprob: float, logsumexp: float, alternatives: Alternatives = NO_ALTERNATIVES
    ) -> bool:
        """Passes a token to the job; returns whether the following one can be chosen in this pass too, because this one
        was drafted. logsumexp: over the vocabulary; finite only where the logits are."""
        if not math.isfinite(logsumexp):
            self.writer.fail(None)
            return False
        drafted = self.chosen_count < len(self.draft) and self.draft[self.chosen_count] == token
        output = self.writer.state.output
        before = len(output)
        try:
            continues = self.writer.accept(token, logprob, alternatives)
        except Exception as error:  # fails this row alone
            self.writer.fail(error)
            return False
        self.chosen_count += len(output) - before
        return continues and drafted


def choose(rows: Sequence[WritingRow], logits_WV: Tensor | None, greedy: Greedy | None, sample: Sample) -> None:
    """Chooses each row's next token, and the following ones for as long as the choices equal its draft."""
    active, step = list(rows), 0
    while active:
        drawn: list[WritingRow] = []
        continuing: list[WritingRow] = []
        for row in active:
            at = row.at + step
            # Under a grammar the likeliest token is usually allowed, or only one is: then no mask is needed.
            likeliest = None if greedy is None or not row.writer.plain else greedy.tokens[at]
            token = None if likeliest is None else row.writer.state.without_mask(likeliest)
            if greedy is None or token is None:
                drawn.append(row)
                continue
            logprob = greedy.logprobs[at]
            if token != likeliest:
                assert logits_WV is not None
                logprob = float(logits_WV[at, token]) - greedy.logsumexp[at]
            if row.accept(token, logprob, greedy.logsumexp[at]):
                continuing.append(row)
        if drawn:
            assert logits_WV is not None
            at = [row.at + step for row in drawn]
            with contextlib.nullcontext() if greedy is None else one_thread():
                # Usually the rows are contiguous, and need no copy.
                together = at == list(range(at[0], at[0] + len(at)))
                logits_BV = logits_WV[at[0] : at[0] + len(at)] if together else logits_WV[at]
                sums = None if greedy is None else [greedy.logsumexp[i] for i in at]
                chosen = chosen_tokens(logits_BV, [row.writer.state for row in drawn], sums, sample)
                continuing += [row for row, choice in zip(drawn, chosen, strict=True) if row.accept(*choice)]
        active, step = continuing, step + 1


def chosen_tokens(
    logits_BV: Tensor, states: Sequence[RowState], sums: Sequence[float] | None, sample: Sample
) -> list[tuple[int, float, float, Alternatives]]:
    """Each row's next token, its log-probability, the logsumexp of its logits and its likeliest alternatives, in one
    read from the device. sums: the logsumexps, where they are known."""
    chosen = sample(logits_BV, states)
    max_logprobs = max(state.sampling.logprobs or 0 for state in states)
    if sums is not None and logits_BV.is_cpu:  # numpy alone, as in `sampler`
        logits, tokens = logits_BV.numpy(), chosen.tolist()
        rows = zip(logits, tokens, sums, states, strict=True)
        return [
            (token, float(logits_V[token]) - total, total, _likeliest(logits_V, state.sampling.logprobs or 0, total))
            for logits_V, token, total, state in rows
        ]
    sums_B = logits_BV.logsumexp(dim=-1) if sums is None else torch.tensor(sums, device=logits_BV.device)
    sums_B1 = sums_B[:, None].double()
    columns = [chosen[:, None].double(), logits_BV.gather(1, chosen[:, None]) - sums_B1, sums_B1]
    if max_logprobs:
        values, ids = logits_BV.topk(max_logprobs)
        columns += [values - sums_B1, ids.double()]
    choices: list[tuple[int, float, float, Alternatives]] = []
    for state, (token, logprob, total, *alternatives) in zip(states, torch.cat(columns, 1).tolist(), strict=True):
        count = state.sampling.logprobs or 0
        ids_K = alternatives[max_logprobs : max_logprobs + count]
        choices.append((int(token), logprob, total, Alternatives(ids_K, alternatives[:count])))
    return choices


def _likeliest(logits_V: NDArray[np.float32], count: int, total: float) -> Alternatives:
    """So many of the likeliest tokens with their log-probabilities, of equal ones the first. total: the logsumexp."""
    if not count:
        return NO_ALTERNATIVES
    ids = np.sort(logits_V.argpartition(len(logits_V) - count)[len(logits_V) - count :])
    ids = ids[np.argsort(-logits_V[ids], kind="stable")]
    return Alternatives(ids, logits_V[ids].astype(np.float64) - total)
