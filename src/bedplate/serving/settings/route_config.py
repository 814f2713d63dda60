"""The `routes` section: a public name that stands for several versions of a skin, by weight."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bedplate.core.config import Strict

JUDGED_WRONG = "\0"
"""What stands for the right answer of a call that a user called bad without saying what would have been right."""

Weight = Annotated[float, Field(ge=0)]


class RouteVerdict(Strict):
    """What a version, or the shadow, is to be shown to do: be right in `at_least` of its calls, or lose no more than
    `margin` of them `against` another version. wait_minutes: how long after an answer its outcome is waited for."""

    of: str
    at_least: Annotated[float, Field(gt=0, lt=1)] | None = None
    against: str | None = None
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    wait_minutes: Annotated[float, Field(ge=0)] = 1440.0

    @model_validator(mode="after")
    def _one_question(self) -> RouteVerdict:
        if (self.at_least is None) == (self.against is None):
            raise ValueError("give either `at_least`, a share of right answers, or `against`, another version")
        if self.against == self.of:
            raise ValueError(f"{self.of!r} cannot be held against itself")
        if self.margin and self.against is None:
            raise ValueError("`margin` goes with `against`")
        return self


class RouteConfig(Strict):
    """One name of the `routes` section.

    versions: model name → weight; weights are shares of their sum, and 0 parks a version. sticky: what keeps a caller
    on one version: its tenant, the `user` (or `safety_identifier`) that its request names, or nothing ("request": every
    call is drawn anew, and so is one that names no user). shadow: a model that gets a copy of `shadow_share` of the
    calls; its answers are compared and thrown away. verdict: what is to be shown of one of them.
    """

    versions: Annotated[dict[str, Weight], Field(min_length=1)]
    sticky: Literal["request", "user", "tenant"] = "request"
    shadow: str | None = None
    shadow_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    verdict: RouteVerdict | None = None

    @model_validator(mode="after")
    def _check_versions(self) -> RouteConfig:
        verdict = self.verdict
        if verdict is not None:
            if verdict.of not in (*self.versions, self.shadow):
                raise ValueError(f"verdict.of: {verdict.of!r} is neither a version of the route nor its shadow")
            if verdict.against is not None and verdict.against not in self.versions:
                raise ValueError(f"verdict.against: {verdict.against!r} is no version of the route")
        return self

    @field_validator("versions")
    @classmethod
    def _some_weight(cls, versions: dict[str, float]) -> dict[str, float]:
        if sum(versions.values()) <= 0:
            raise ValueError("every weight is 0; give at least one version a weight above 0")
        return versions


@dataclass(frozen=True)
class Routed:
    """A call that came by a route: the request as it was sent, and the version that answers it."""

    route: str
    version: str
    path: str
    body: Mapping[str, Any]


def unit_of(*keys: str) -> float:
    """A number from 0 (inclusive) to 1 (exclusive) that is the same for the same keys: sha256, its first 53 bits."""
    digest = hashlib.sha256("\0".join(keys).encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8]) >> 11) / 2**53


def pick(versions: dict[str, float], unit: float) -> str:
    """The version in whose share of 0 to 1 the number lies; shares lie in the order of the file.

    So a weight that grows by a tenth moves a tenth of the keys, and nobody else's.
    """
    whole, upto = sum(versions.values()), 0.0
    for name, weight in versions.items():
        upto += weight
        if unit * whole < upto:
            return name
    return [name for name, weight in versions.items() if weight > 0][-1]  # the sum's last bit was rounded away
