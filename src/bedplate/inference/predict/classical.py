"""A skin that is a bag-of-words model, ready to be asked: no base, and no engine. What it reads is what its prompt's
template makes of the inputs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

from bedplate.core.errors import ContextLengthExceeded, SkinError
from bedplate.core.values import TaskInput, Values
from bedplate.inference.predict.callable_skin import (
    Prediction,
    Predictions,
    RowsLike,
    SkinPredictor,
    for_each,
    inputs_of,
    inputs_of_rows,
    rows_for,
)
from bedplate.skins.classical import words_of
from bedplate.skins.skin import Skin


class ClassicalPredictor(SkinPredictor):
    """A classical skin. Call it with a text (one input) or a mapping of inputs. It may be asked from any thread. The
    tokens that it counts are words and marks. SkinError for a skin that is not one; asking raises RequestError for
    missing or unknown inputs, and ContextLengthExceeded where the skin allows fewer words."""

    def __init__(self, skin: Skin) -> None:
        if skin.classical is None:
            raise SkinError(f"skin {skin.name!r} of kind {skin.kind!r} is not a bag-of-words model")
        self.skin, self._model = skin, skin.classical
        self.warnings: list[str] = []

    def predict(self, rows: RowsLike, *, one_by_one: bool = False, tenant: str = "") -> Predictions:
        """Predictions for rows, in order. They are computed one after the other, whatever is asked for."""
        return Predictions(for_each(inputs_of_rows(self.skin, rows_for(self.skin, rows)), self._timed))

    def _timed(self, inputs: Values) -> Prediction:
        start = time.perf_counter()
        scores, words = self.scored(inputs)
        return self.prediction(scores, words, time.perf_counter() - start)

    def scored(self, row: TaskInput) -> tuple[tuple[float, ...], int]:
        """The model's number for each label, and how many words and marks the input has."""
        words = words_of(cast(str, self.skin.prompt.text(inputs_of(self.skin, row))))
        limit = self.skin.limits.max_prompt_tokens
        if limit is not None and len(words) > limit:
            raise ContextLengthExceeded(
                f"the text has {len(words):,} words and marks, more than the {limit:,} that the skin takes; shorten it",
                param="input",
            )
        return tuple(self._model.logits_of(words).tolist()), len(words)

    def prediction(self, scores: Sequence[float], words: int, seconds: float = 0.0) -> Prediction:
        """The answer that these numbers of a text of so many words and marks give."""
        label, label_scores = self.skin.output.read_scores(scores)
        return Prediction(label, label, label_scores, words, seconds=seconds)

    def close(self) -> None:
        """Does nothing; no engine is open."""
