"""How well documents are ranked for a query. Targets are JSON lists of the relevant ids, predictions of ranked ones.

nDCG: Järvelin & Kekäläinen (2002), ACM TOIS 20:422, with binary gains and log2 discounts, as in BEIR (2104.08663).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

RowScore = Callable[[str, str | None], float]


def ndcg_at(k: int) -> RowScore:
    """Discounted gain of the first k over that of the best order. A query without relevant documents scores 0."""

    def row(target: str, prediction: str | None) -> float:
        relevant, ranked = _read(target, prediction)
        gain = sum(1 / math.log2(place + 2) for place, document in enumerate(ranked[:k]) if document in relevant)
        best = sum(1 / math.log2(place + 2) for place in range(min(k, len(relevant))))
        return gain / best if best else 0.0

    return row


def recall_at(k: int) -> RowScore:
    """Share of the relevant documents that are among the first k."""

    def row(target: str, prediction: str | None) -> float:
        relevant, ranked = _read(target, prediction)
        return len(relevant.intersection(ranked[:k])) / len(relevant) if relevant else 0.0

    return row


def reciprocal_rank_at(k: int) -> RowScore:
    """1 over the place of the first relevant document, 0 where it is not among the first k."""

    def row(target: str, prediction: str | None) -> float:
        relevant, ranked = _read(target, prediction)
        return next((1 / (place + 1) for place, document in enumerate(ranked[:k]) if document in relevant), 0.0)

    return row


def _read(target: str, prediction: str | None) -> tuple[set[str], list[str]]:
    return set(json.loads(target)), [] if prediction is None else json.loads(prediction)
