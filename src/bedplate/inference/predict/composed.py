"""Cascades: two skins, of which the second is asked where the first is not sure. Chen et al., FrugalGPT (arXiv
2305.05176), with the first skin's own probability as the score."""

from __future__ import annotations

import dataclasses
import math
from contextlib import ExitStack

from bedplate.core.errors import SkinError
from bedplate.inference.predict.callable_skin import Prediction, RowsLike, SkinPredictor, inputs_of, rows_for
from bedplate.skins.skin import Skin


class CascadePredictor(SkinPredictor):
    """A cascade on the predictors of its two skins. Closing it closes what was `opened` for it; without, these stay
    open."""

    def __init__(
        self, skin: Skin, first: SkinPredictor, second: SkinPredictor, opened: ExitStack | None = None
    ) -> None:
        if skin.cascade is None:
            raise SkinError(f"skin {skin.name!r} of kind {skin.kind!r} is not a cascade")
        self.skin, self.parts = skin, skin.cascade
        self.first, self.second, self._opened = first, second, opened
        self.warnings = [*first.warnings, *second.warnings]

    def predict(self, rows: RowsLike, *, one_by_one: bool = False, tenant: str = "") -> list[Prediction]:
        """Predictions for rows, in order. What both skins were asked counts the tokens, seconds and dollars of both."""
        inputs = [inputs_of(self.skin, row) for row in rows_for(self.skin, rows)]
        predictions = self.first.predict(inputs, one_by_one=one_by_one, tenant=tenant)
        unsure = [i for i, prediction in enumerate(predictions) if is_unsure(self.parts.threshold, prediction)]
        if unsure:
            second_predictions = self.second.predict([inputs[i] for i in unsure], one_by_one=one_by_one, tenant=tenant)
            for i, prediction in zip(unsure, second_predictions, strict=True):
                predictions[i] = merge_predictions(predictions[i], prediction)
        return predictions

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()


def confidence(prediction: Prediction) -> float:
    """The probability that an answer gives its own label, 0 where it says nothing of it."""
    scores = prediction.scores
    return math.exp(scores[prediction.output]) if prediction.output in scores else 0.0


def is_unsure(threshold: float, prediction: Prediction) -> bool:
    """Whether a cascade with this threshold asks the second skin after this answer of the first."""
    return confidence(prediction) < threshold


def merge_predictions(first: Prediction, second: Prediction) -> Prediction:
    """The second skin's answer, with what the two took together."""
    charged = [prediction.usd for prediction in (first, second) if prediction.usd is not None]
    return dataclasses.replace(
        second,
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        completion_tokens=first.completion_tokens + second.completion_tokens,
        cached_tokens=first.cached_tokens + second.cached_tokens,
        seconds=first.seconds + second.seconds,
        usd=sum(charged) if charged else None,
        passed_on=True,
    )
