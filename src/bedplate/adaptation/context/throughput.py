"""How fast this machine answers this task: measured once on the plain prompt; every rung plans its time with it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bedplate.adaptation.task.task_prompt import Written
from bedplate.core.values import Values
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.predictor import Prediction, Predictor
from bedplate.skins.output import LabelOutput

BATCH, CALLS = 64, 12
WRITTEN_BATCH, WRITTEN_CALLS = 16, 4
"""Where answers are written, a row takes many times as long."""


@dataclass(frozen=True)
class Throughput:
    """Measured on this machine, base and task. token: seconds per prompt token in batches; call: seconds of one call
    alone; tokens: mean prompt tokens of a row (without demonstrations). Where answers are written: `decode` seconds per
    written token in batches, `written` tokens that the base writes for a row as it is asked, `target` tokens of a right
    answer, which is what a tuned skin writes."""

    token: float
    call: float
    tokens: float
    decode: float = 0.0
    written: float = 0.0
    target: float = 0.0

    def rows(self, n: float, *, tuned: bool = False) -> float:
        """Expected seconds for `n` rows in batches; tuned: answered by a skin that has learned where answers end."""
        return n * (self.tokens * self.token + (self.target if tuned else self.written) * self.decode)

    def passes(self, n: float) -> float:
        """Expected seconds for a forward pass over `n` rows with their right answers, as training sees them."""
        return n * (self.tokens + self.target) * self.token


def measure_throughput(predictor: Predictor, rows: Sequence[Values], written: Written) -> Throughput:
    """Time a batch or two, and a few single calls."""
    predictor.predict(rows[:2])
    if isinstance(predictor.skin.output, LabelOutput):
        batches = [predictor.predict(rows[i : i + BATCH]) for i in (0, BATCH) if rows[i:]]
        tokens = _new_tokens([p for batch in batches for p in batch])
        call = _median_call(predictor, rows[:CALLS])
        return Throughput(min(batch[0].seconds for batch in batches) / tokens, call, tokens)
    batch = rows[:WRITTEN_BATCH]
    # one token each is the prompts' time; the whole answers after that find the prompts cached, for the most part
    first = predictor.ask(predictor.requests(batch, predictor.sampling(max_tokens=1)))
    tokens = _new_tokens(first)
    token = first[0].seconds / tokens
    whole = predictor.predict(batch)
    count = sum(p.completion_tokens for p in whole)
    prompts = sum(p.prompt_tokens - p.cached_tokens for p in whole) * token
    decode = max(sum(p.seconds for p in whole) - prompts, 0.0) / max(count, 1)
    call = _median_call(predictor, rows[:WRITTEN_CALLS])
    return Throughput(token, call, tokens, decode, count / len(whole), written.mean)


def embedding_throughput(model: LocalModel, texts: Sequence[str]) -> Throughput:
    """The same for a base that reads only: a batch or two, and a few texts alone."""
    model.embed(texts[:2])
    tokens, seconds = 0, float("inf")
    for batch in (texts[:BATCH], texts[BATCH : 2 * BATCH]):
        count = sum(len(model.text_tokens(text)) for text in batch)
        if count:
            seconds, tokens = min(seconds, _seconds(model, batch) / count), tokens + count
    calls = sorted(_seconds(model, [text]) for text in texts[:CALLS])
    return Throughput(seconds, calls[len(calls) // 2], tokens / len(texts[: 2 * BATCH]))


def _seconds(model: LocalModel, texts: Sequence[str]) -> float:
    start = time.perf_counter()
    model.embed(texts)
    return time.perf_counter() - start


def _new_tokens(predictions: Sequence[Prediction]) -> float:
    """Mean prompt tokens of a row that were not cached."""
    return max(1.0, sum(p.prompt_tokens - p.cached_tokens for p in predictions) / len(predictions))


def _median_call(predictor: Predictor, rows: Sequence[Values]) -> float:
    # as another tenant, for whom these rows are new, as those of calls are
    calls = sorted(p.seconds for p in predictor.predict(rows, one_by_one=True, tenant="timing"))
    return calls[len(calls) // 2]
