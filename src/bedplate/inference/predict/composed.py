"""Skins that are more than one base on one engine: cascades, whose second skin is asked where the first is not sure,
and skins that a remote model answers for, opened from what they were written as.

Cascades: Chen et al., FrugalGPT (arXiv 2305.05176), with the first skin's own probability as the score.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol, Self

from bedplate.core.errors import SkinError
from bedplate.core.values import Given
from bedplate.inference.forward.compute_lock import ComputeLock
from bedplate.inference.predict.held_as import Held, check_here, held_as
from bedplate.inference.predict.hosted import HostedPredictor
from bedplate.inference.predict.inputs import inputs_of
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.opening import Opened, open_as
from bedplate.inference.predict.predictor import Prediction
from bedplate.skins.skin import BaseReference, EvaluatedWith, Skin


class Answers(Protocol):
    """What a skin's predictor can be asked, whatever is behind it."""

    @property
    def skin(self) -> Skin: ...
    @property
    def warnings(self) -> list[str]: ...
    def predict(self, rows: Sequence[Given], *, one_by_one: bool = False, tenant: str = "") -> list[Prediction]: ...
    def close(self) -> None: ...


class CascadePredictor:
    """A cascade on the predictors of its two skins. Closing it leaves these open."""

    def __init__(self, skin: Skin, first: Answers, second: Answers) -> None:
        if skin.cascade is None:
            raise SkinError(f"skin {skin.name!r} of kind {skin.kind!r} is no cascade")
        self.skin, self.parts = skin, skin.cascade
        self.first, self.second = first, second
        self.warnings = [*first.warnings, *second.warnings]

    def __call__(self, inputs: Given) -> str:
        """The label for one input."""
        return self.predict([inputs])[0].output

    def predict(self, rows: Sequence[Given], *, one_by_one: bool = False, tenant: str = "") -> list[Prediction]:
        """Predictions for rows, in order. What both skins were asked counts the tokens, seconds and dollars of both."""
        inputs = [inputs_of(self.skin, row) for row in rows]
        found = self.first.predict(inputs, one_by_one=one_by_one, tenant=tenant)
        unsure = [i for i, one in enumerate(found) if is_unsure(self.parts.threshold, one)]
        if unsure:
            again = self.second.predict([inputs[i] for i in unsure], one_by_one=one_by_one, tenant=tenant)
            for i, one in zip(unsure, again, strict=True):
                found[i] = both(found[i], one)
        return found

    def close(self) -> None:
        """Nothing is its own."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class LoadedCascade(CascadePredictor):
    """A cascade with its bases: what `bedplate.load` returns for one."""

    def __init__(self, skin: Skin, first: Answers, second: Answers, opened: ExitStack) -> None:
        super().__init__(skin, first, second)
        self._opened = opened

    def close(self) -> None:
        """Stops the engines and closes the connections."""
        self._opened.close()


def confidence(prediction: Prediction) -> float:
    """The probability that an answer gives its own label, 0 where it says nothing of it."""
    scores = prediction.scores
    return math.exp(scores[prediction.output]) if prediction.output in scores else 0.0


def is_unsure(threshold: float, prediction: Prediction) -> bool:
    """Whether a cascade with this threshold asks the second skin after this answer of the first."""
    return confidence(prediction) < threshold


def both(first: Prediction, second: Prediction) -> Prediction:
    """The second skin's answer, with what the two took together."""
    charged = [one.usd for one in (first, second) if one.usd is not None]
    return dataclasses.replace(
        second,
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        completion_tokens=first.completion_tokens + second.completion_tokens,
        cached_tokens=first.cached_tokens + second.cached_tokens,
        seconds=first.seconds + second.seconds,
        usd=sum(charged) if charged else None,
        passed_on=True,
    )


class _Opener:
    """Bases by what they are and how they are held, each loaded once, on one compute lock."""

    def __init__(self, device: str, allow_other_weights: bool, stack: ExitStack) -> None:
        self._device, self._allowed, self._stack = device, allow_other_weights, stack
        self._compute = ComputeLock()
        self._models: dict[tuple[str, Held], LocalModel] = {}

    def open(self, skin: Skin) -> Answers:
        if skin.is_remote:
            return self._stack.enter_context(HostedPredictor(skin))
        main = self._model(skin.base, skin.evaluated_with, skin)
        second = None if skin.embedder is None else self._model(skin.embedder, skin.embedded_with, skin)
        return self._stack.enter_context(main.predictor(skin, embedder=second, allow_other_weights=self._allowed))

    def _model(self, base: BaseReference, judged: EvaluatedWith | None, skin: Skin) -> LocalModel:
        held = held_as(judged)
        key = (base.weights_id, held)
        if key not in self._models:
            opened = open_as(base.name, held, self._device)
            held = check_here(skin, opened.base, opened.held, None, self._allowed)
            self._models[key] = self._stack.enter_context(Opened(opened.base, held).model(self._compute))
        return self._models[key]


def open_skin(
    skin: Skin, *, device: str = "auto", allow_other_weights: bool = False
) -> HostedPredictor | LoadedCascade:
    """A hosted skin, or a cascade with everything that it needs. UsageError without the key, HubError,
    CheckpointError, SkinError."""
    if skin.cascade is None:
        return HostedPredictor(skin)
    with ExitStack() as stack:
        opener = _Opener(device, allow_other_weights, stack)
        first, second = opener.open(skin.cascade.first), opener.open(skin.cascade.second)
        return LoadedCascade(skin, first, second, stack.pop_all())
