"""What may be kept of requests and replies, skin by skin. Nothing is, where the server's file does not say so."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from bedplate.core.config import Strict
from bedplate.serving.settings.redaction import NAMED, Expression

ALL_MODELS = "*"


class KeepRule(Strict):
    """For one model name. requests, replies: whether their texts are kept. sample: the share of calls whose texts are.
    redact: names of patterns, and expressions of one's own. days: after so many, whole days are deleted.

    With neither requests nor replies only ids are kept, so that feedback can be given.
    """

    requests: bool = False
    replies: bool = False
    sample: Annotated[float, Field(gt=0, le=1)] = 1.0
    redact: tuple[str | Expression, ...] = ()
    days: Annotated[int, Field(ge=1)] = 30

    @field_validator("redact")
    @classmethod
    def _check_patterns(cls, rules: tuple[str | Expression, ...]) -> tuple[str | Expression, ...]:
        for rule in rules:
            if isinstance(rule, str) and rule not in NAMED:
                raise ValueError(
                    f"no pattern is called {rule!r}; there are {', '.join(NAMED)}, and {{name: …, pattern: …}}"
                )
        return rules


class FeedbackConfig(Strict):
    """The `feedback` section: a rule by model name; the one called "*" is for every model without one of its own."""

    keep: dict[str, KeepRule] = Field(default_factory=dict[str, KeepRule])

    def rule(self, model: str) -> KeepRule | None:
        """None: nothing of this model's calls may be kept."""
        return self.keep.get(model, self.keep.get(ALL_MODELS))
