"""Multiple choice by log-likelihood: which continuation of a context the model finds likeliest.

As EleutherAI's lm-evaluation-harness counts it (Gao et al. 2021, https://github.com/EleutherAI/lm-evaluation-harness):
context and " " + choice are tokenised together and cut where the context alone ends; `acc` compares totals, `acc_norm`
totals divided by the characters of the choice, `acc_bytes` by its UTF-8 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from bedplate.core.errors import ContextLengthExceeded, DataError
from bedplate.core.progress import Progress
from bedplate.inference.engine.requests import Score, Scores
from bedplate.inference.predict.local import LocalModel
from bedplate.text.tokenizer import Tokenizer

BATCH = 64
DELIMITER = " "


@dataclass(frozen=True)
class Item:
    """One question. `gold`: number of the right choice. `group`: items that share it are alike (one passage)."""

    id: str
    suite: str
    context: str
    choices: tuple[str, ...]
    gold: int
    group: str


@dataclass(frozen=True)
class Scored:
    """An item with the log-likelihood of each choice (natural log), and whether the right one is ahead: by total
    (`acc`), by total per character (`acc_norm`), by total per byte (`acc_bytes`)."""

    item: Item
    log_likelihoods: tuple[float, ...]
    acc: float
    acc_norm: float
    acc_bytes: float


def tokens_of(tokenizer: Tokenizer, context: str, choice: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of the context and of the choice after it. Spaces at the end of the context belong to the choice."""
    text = context.rstrip()
    spaces = context[len(text) :]
    start = tokenizer.prompt_start
    whole = (*start, *tokenizer.encode(text + spaces + DELIMITER + choice))
    alone = len(start) + len(tokenizer.encode(text))
    return whole[:alone], whole[alone:]


def score_items(model: LocalModel, items: Sequence[Item], description: str = "multiple choice") -> list[Scored]:
    """Each item's scores, in order. ContextLengthExceeded names an item that does not fit (nothing is cut off);
    DataError one whose choice adds no token."""
    limit = model.base.spec.context_length
    requests: list[Score] = []
    owners: list[tuple[int, tuple[int, ...]]] = []
    for number, item in enumerate(items):
        by_context: dict[tuple[int, ...], list[int]] = {}
        pairs = [tokens_of(model.tokenizer, item.context, choice) for choice in item.choices]
        for place, (context, choice) in enumerate(pairs):
            if not context or not choice:
                what = "context" if not context else f"choice {item.choices[place]!r}"
                raise DataError(f"item {item.id} of {item.suite}: the {what} adds no token to score; leave it out")
            if len(context) + len(choice) > limit:
                raise ContextLengthExceeded(
                    f"item {item.id} of {item.suite} has {len(context) + len(choice):,} tokens, more than the context "
                    f"of {model.base.name} holds ({limit:,}); leave it out"
                )
            by_context.setdefault(context, []).append(place)
        for context, places in by_context.items():  # one, unless a choice changes how the context's end is cut
            requests.append(Score(context, tuple(pairs[place][1] for place in places)))
            owners.append((number, tuple(places)))
    totals = [[0.0] * len(item.choices) for item in items]
    with Progress(description, len(requests)) as bar:
        for start in range(0, len(requests), BATCH):
            batch = requests[start : start + BATCH]
            for (number, places), result in zip(owners[start:], model.engine.run(batch), strict=False):
                for place, total in zip(places, cast(Scores, result).totals, strict=True):
                    totals[number][place] = total
            bar.advance(len(batch))
    return [judge(item, tuple(found)) for item, found in zip(items, totals, strict=True)]


def judge(item: Item, log_likelihoods: tuple[float, ...]) -> Scored:
    """What the log-likelihoods say; of equal ones the first counts, as numpy's argmax has it."""
    totals = np.array(log_likelihoods)
    characters = np.array([max(1, len(choice)) for choice in item.choices])
    encoded = np.array([max(1, len(choice.encode())) for choice in item.choices])
    acc, norm, by_bytes = (
        float(int(np.argmax(values)) == item.gold) for values in (totals, totals / characters, totals / encoded)
    )
    return Scored(item, log_likelihoods, acc, norm, by_bytes)
