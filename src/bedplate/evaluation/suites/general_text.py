"""Suite of loss per token on general text: shows what a base that was trained further has forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from bedplate.data.documents import read_whole_documents
from bedplate.evaluation.suites.suite import SampleSet, SingleTurnItem
from bedplate.inference.engine.answers import Answers
from bedplate.inference.engine.requests import Result, Score, Scores
from bedplate.text.tokenizer import Tokenizer

WINDOW = 256


@dataclass(frozen=True)
class GeneralText(SingleTurnItem["Loss"]):
    """A text that stands for itself: what is alike inside it is not alike outside."""

    id: str
    text: str

    def requests(self, model: Answers, /) -> list[Score]:
        """The text, or what is longer than a window in windows that do not overlap; where the base has no BOS, the
        first token of a window is only looked at. An encoder–decoder reads the first half of a window and is asked
        for the second."""
        facts = model.describe()
        tokenizer = facts.need_tokenizer()
        if tokenizer.answers_apart:
            return self._halves(tokenizer, facts.context_length)
        start = tokenizer.prompt_start
        window, context_size = min(WINDOW, facts.context_length) - len(start), max(1, len(start))
        ids = tuple(tokenizer.encode(self.text, parse_special=False))
        parts = [(*start, *ids[place : place + window]) for place in range(0, len(ids), window)]
        return [Score(part[:context_size], (part[context_size:],)) for part in parts if len(part) > context_size]

    def _halves(self, tokenizer: Tokenizer, context_length: int) -> list[Score]:
        start, end = tokenizer.prompt_start, tokenizer.prompt_end
        window = min(WINDOW, context_length - len(start) - len(end))
        reading = tokenizer.reading
        ids = tuple(reading.encode(self.text, parse_special=False))
        parts = [ids[place : place + window] for place in range(0, len(ids), window)]
        cut = [(part[: len(part) // 2], part[len(part) // 2 :]) for part in parts if len(part) > 1]
        if reading is not tokenizer:  # what it writes has ids of its own
            cut = [(read, tuple(tokenizer.encode(reading.decode(ids), parse_special=False))) for read, ids in cut]
        return [Score((*start, *read, *end), (target_ids,)) for read, target_ids in cut if target_ids]

    def grade(self, results: Sequence[Result], /) -> Loss:
        """The windows' losses together."""
        window_scores = cast(Sequence[Scores], results)
        total = sum((-score.totals[0] for score in window_scores), 0.0)
        return Loss(self.id, total, sum(score.token_counts[0] for score in window_scores))


@dataclass(frozen=True)
class Loss:
    """One document: the sum of the negative log-likelihoods (natural log) of its tokens, and how many were scored."""

    document: str
    total: float
    tokens: int


def text_items(source: str, limit: int | None = None, directory: Path = Path()) -> SampleSet[GeneralText]:
    """The documents of a data set or a file, at most so many. HubError, DataError."""
    read = read_whole_documents(source, directory, limit)
    items = tuple(GeneralText(document.id, document.text) for document in read.documents)
    return SampleSet(items, source, read.sha256, read.empty, _rate)


def _rate(_: GeneralText, grade: Loss) -> Mapping[str, tuple[float, float]]:
    return {"nats_per_token": (grade.total, float(grade.tokens))}
