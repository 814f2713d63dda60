"""A skin that is a bag-of-words model, ready to be asked: no base, and no engine. What it reads is what its prompt's
template makes of the inputs."""

from __future__ import annotations

import time
from typing import cast

from bedplate.core.errors import ContextLengthExceeded, SkinError
from bedplate.core.values import TaskInput
from bedplate.inference.engine.requests import Classification, RequestTiming, Usage
from bedplate.inference.predict.callable_skin import (
    Prediction,
    Predictions,
    RowsLike,
    SkinPredictor,
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
        results = map(self.classified, inputs_of_rows(self.skin, rows_for(self.skin, rows)))
        return Predictions(self.read(result, result.timing.total) for result in results)

    def classified(self, row: TaskInput) -> Classification:
        """The scores of one input, in the form that an engine returns."""
        start = time.perf_counter()
        text = cast(str, self.skin.prompt.text(inputs_of(self.skin, row)))
        words, limit = words_of(text), self.skin.limits.max_prompt_tokens
        if limit is not None and len(words) > limit:
            raise ContextLengthExceeded(
                f"the text has {len(words):,} words and marks, more than the {limit:,} that the skin takes; shorten it",
                param="input",
            )
        scores = tuple(self._model.logits_of(words).tolist())
        seconds = time.perf_counter() - start
        timing = RequestTiming(0.0, seconds, seconds, seconds)
        return Classification(scores, usage=Usage(len(words)), timing=timing)

    def read(self, result: Classification, seconds: float = 0.0) -> Prediction:
        """A result, parsed."""
        label, scores = self.skin.output.read_scores(result.scores)
        return Prediction(label, label, scores, result.usage.prompt_tokens, seconds=seconds)

    def close(self) -> None:
        """Does nothing; no engine is open."""
