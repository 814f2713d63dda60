"""A classical model for answers that are written: the answer of the most similar text of train (TF-IDF, cosine)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from bedplate.core.values import Values
from bedplate.inference.predict.predictor import Prediction
from bedplate.skins.neighbours import text_of

SIMILARITIES: Mapping[str, Mapping[str, Any]] = {
    "words": {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b|[^\w\s]"},
    "characters": {"analyzer": "char_wb", "ngram_range": (3, 5)},
}
"""What texts are compared by: words and word pairs, or pieces of words."""


class Nearest:
    """Answers with the answer of the most similar known text; the first of equally similar ones."""

    def __init__(self, texts: Sequence[str], answers: Sequence[str], similarity: str, names: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(sublinear_tf=True, **SIMILARITIES[similarity])
        self._train_matrix: Any = self._vectorizer.fit_transform(texts)  # sparse, whatever type stubs say of it
        self._answers, self._names = list(answers), list(names)

    def predict(self, rows: Sequence[Values], /) -> list[Prediction]:
        start = time.perf_counter()
        texts = [text_of(row, self._names) for row in rows]
        likeness = self._vectorizer.transform(texts) @ self._train_matrix.T  # rows have unit length
        chosen = [self._answers[int(likeness[i].toarray().argmax())] for i in range(len(rows))]
        seconds = (time.perf_counter() - start) / max(len(rows), 1)
        return [Prediction(answer, answer, seconds=seconds) for answer in chosen]
