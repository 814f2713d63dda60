"""A cascade as it is served: its first skin is asked, and where that is not sure the second, within the same call."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bedplate.core.errors import RequestError, SkinError
from bedplate.core.values import Given
from bedplate.inference.engine.requests import Classify, LookedUp, Request, Result, Score, Terms, Timing, Usage
from bedplate.inference.predict.composed import is_unsure
from bedplate.serving.models.served import Answer
from bedplate.serving.models.served_skin import ServedSkin
from bedplate.serving.wire.fields import ChatRequest, CompletionRequest
from bedplate.skins.card import Card
from bedplate.skins.files import read_identified
from bedplate.skins.skin import Skin


@dataclass(frozen=True)
class FirstScore(Score):
    """A first skin's request that knows its inputs, which the second skin may have to be asked with."""

    inputs: Given = dataclasses.field(kw_only=True)


@dataclass(frozen=True)
class FirstClassify(Classify):
    """The same for a probe."""

    inputs: Given = dataclasses.field(kw_only=True)


@dataclass(frozen=True)
class PassedOn:
    """The results of both skins; tokens and time are those of the two together."""

    first: Result
    second: Result

    @property
    def looked_up(self) -> LookedUp | None:
        """For the answer that counts."""
        return self.second.looked_up

    @property
    def usage(self) -> Usage:
        a, b = self.first.usage, self.second.usage
        return Usage(
            a.prompt_tokens + b.prompt_tokens,
            a.completion_tokens + b.completion_tokens,
            a.cached_tokens + b.cached_tokens,
        )

    @property
    def timing(self) -> Timing:
        a, b = self.first.timing, self.second.timing
        return Timing(a.queued + b.queued, a.total + b.first, a.total + b.total, a.compute + b.compute)


class ServedCascade(ServedSkin):
    """Two served skins under one name. In memory means both are; either can be on any of the server's engines."""

    def __init__(self, card: Card, first: ServedSkin, second: ServedSkin, *, name: str | None = None) -> None:
        """SkinError for a card that is no cascade's."""
        if "cascade" not in card.parts:
            raise SkinError(f"skin {card.name!r} of kind {card.kind!r} is no cascade")
        self.card, self.name = card, card.name if name is None else name
        self.engine, self.first, self.second = first.engine, first, second
        self.warnings = [*first.warnings, *second.warnings]
        self._threshold: float | None = None

    def check(self) -> None:
        self._read_whole()
        self.first.check()
        self.second.check()

    def _read_whole(self) -> Skin:
        assert self.card.directory is not None
        found, skin = read_identified(self.card.directory)
        if found != self.card.id:
            raise SkinError(
                f"{self.card.directory} holds another skin than when {self.name!r} was registered; register it again, "
                "with replace"
            )
        return skin

    def load(self) -> None:
        # Its two skins read their own weights, and give them to their engines: nothing else of it is kept.
        cascade = self._read_whole().cascade
        assert cascade is not None
        self._threshold = cascade.threshold
        del cascade
        self.first.load()
        try:
            self.second.load()
        except BaseException:
            self.first.unload()
            raise

    def unload(self) -> None:
        self.first.unload()
        self.second.unload()

    @property
    def is_warm(self) -> bool:
        first = self.first.is_warm
        return self.second.is_warm and first

    def warm(self) -> None:
        self.first.warm()
        self.second.warm()

    def classify(self, inputs: Sequence[Given], terms: Terms) -> list[Request]:
        given = [self._input(one) if isinstance(one, str) else one for one in inputs]
        return [_with(request, one) for request, one in zip(self.first.classify(given, terms), given, strict=True)]

    def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> list[Request]:
        raise RequestError(f"{self.name!r} is a skin and has no embeddings; ask its base", param="model")

    def _requests(self, texts: Sequence[str], asked: ChatRequest | CompletionRequest, terms: Terms) -> list[Request]:
        self.first.refuse_settings(asked)
        return self.classify(texts, terms)

    def is_unsure(self, result: Result) -> bool:
        """Whether the second skin is to be asked after this result of the first."""
        assert self._threshold is not None
        return is_unsure(self._threshold, self.first.read(result))

    def again(self, requests: Sequence[Request], terms: Terms) -> list[Request]:
        """The second skin's requests for those of the first."""
        given = [request.inputs for request in requests if isinstance(request, FirstScore | FirstClassify)]
        return self.second.classify(given, terms)

    def answer(self, result: Result | PassedOn) -> Answer:
        if isinstance(result, PassedOn):
            found = self.second.answer(result.second)
            return replace(found, usage=result.usage, extension={**(found.extension or {}), "passed_on": True})
        found = self.first.answer(result)
        return replace(found, extension={**(found.extension or {}), "passed_on": False})


def _with(request: Request, inputs: Given) -> Request:
    values = {one.name: getattr(request, one.name) for one in dataclasses.fields(request)}
    if isinstance(request, Score):
        return FirstScore(**values, inputs=inputs)
    assert isinstance(request, Classify)
    return FirstClassify(**values, inputs=inputs)
