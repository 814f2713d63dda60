"""Multiple choice by log-likelihood: which continuation of a context the model finds likeliest.

As EleutherAI's lm-evaluation-harness counts it (Gao et al. 2021, https://github.com/EleutherAI/lm-evaluation-harness):
context and " " + choice are tokenised together and cut where the context alone ends; `acc` compares totals, `acc_norm`
totals divided by the characters of the choice, `acc_bytes` by its UTF-8 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import numpy as np

from bedplate.core.errors import ContextLengthExceeded, DataError
from bedplate.evaluation.suites.suite import SingleTurnItem
from bedplate.inference.engine.answers import Answers
from bedplate.inference.engine.requests import Result, Score, Scores
from bedplate.text.tokenizer import Tokenizer

DELIMITER = " "


@dataclass(frozen=True)
class Question(SingleTurnItem["Scored"]):
    """One question. `gold`: number of the right choice. `group`: items that share it are alike (one passage)."""

    id: str
    suite: str
    context: str
    choices: tuple[str, ...]
    gold: int
    group: str

    def requests(self, model: Answers, /) -> list[Score]:
        """One request, unless a choice changes how the context's end is cut. ContextLengthExceeded where the question
        does not fit (nothing is cut off); DataError where a choice adds no token."""
        facts = model.describe()
        tokenizer, limit = facts.need_tokenizer(), facts.context_length
        pairs = [tokens_of(tokenizer, self.context, choice) for choice in self.choices]
        for (context, choice), written in zip(pairs, self.choices, strict=True):
            if not context or not choice:
                part = "context" if not context else f"choice {written!r}"
                raise DataError(f"item {self.id} of {self.suite}: the {part} adds no token to score; leave it out")
            if len(context) + len(choice) > limit:
                raise ContextLengthExceeded(
                    f"item {self.id} of {self.suite} has {len(context) + len(choice):,} tokens, more than the context "
                    f"of {facts.name} holds ({limit:,}); leave it out"
                )
        groups = groupby(pairs, key=lambda pair: pair[0])
        return [Score(context, tuple(choice for _, choice in group)) for context, group in groups]

    def grade(self, results: Sequence[Result], /) -> Scored:
        """What the choices' log-likelihoods say."""
        return judge(self, tuple(total for result in results for total in cast(Scores, result).totals))


@dataclass(frozen=True)
class Scored:
    """A question with the log-likelihood of each choice (natural log), and whether the right one is ahead: by total
    (`acc`), by total per character (`acc_norm`), by total per byte (`acc_bytes`)."""

    question: Question
    log_likelihoods: tuple[float, ...]
    acc: float
    acc_norm: float
    acc_bytes: float


def accuracies(_: Question, grade: Scored) -> Mapping[str, tuple[float, float]]:
    """The measures of a suite of questions."""
    return {name: (getattr(grade, name), 1.0) for name in ("acc_norm", "acc", "acc_bytes")}


def tokens_of(tokenizer: Tokenizer, context: str, choice: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of the context and of the choice after it. Spaces at the end of the context belong to the choice."""
    if tokenizer.answers_apart:  # for an encoder–decoder both are texts of their own
        return tuple(tokenizer.encode_prompt(context)), tuple(tokenizer.encode(choice))
    text = context.rstrip()
    spaces = context[len(text) :]
    start = tokenizer.prompt_start
    whole = (*start, *tokenizer.encode(text + spaces + DELIMITER + choice))
    alone = len(start) + len(tokenizer.encode(text))
    return whole[:alone], whole[alone:]


def judge(question: Question, log_likelihoods: tuple[float, ...]) -> Scored:
    """What the log-likelihoods say; of equal ones the first counts, as numpy's argmax has it."""
    totals = np.array(log_likelihoods)
    characters = np.array([max(1, len(choice)) for choice in question.choices])
    encoded = np.array([max(1, len(choice.encode())) for choice in question.choices])
    acc, norm, by_bytes = (
        float(int(np.argmax(values)) == question.gold) for values in (totals, totals / characters, totals / encoded)
    )
    return Scored(question, log_likelihoods, acc, norm, by_bytes)
