"""What every suite is: items, each with requests for the engine and a grade of their results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from bedplate.core.progress import progress
from bedplate.evaluation.grading import Gradable, graded
from bedplate.inference.engine.requests import Request, Result
from bedplate.inference.predict.local import LocalModel

AT_ONCE = 64
"""Requests that the engine is given together."""

G = TypeVar("G")
SuiteItem: TypeAlias = Gradable[LocalModel, Request, Result, G]
I_co = TypeVar("I_co", bound=SuiteItem[Any], covariant=True)


@dataclass(frozen=True)
class Items(Generic[I_co]):
    """Items to ask, where they come from, and how many rows of the source could not be used."""

    items: tuple[I_co, ...]
    source: str
    sha256: str
    unusable: int = 0


def grades(model: LocalModel, items: Sequence[SuiteItem[G]], description: str) -> Iterator[G]:
    """Each item's grade by what the base answers, in order. What cannot be asked is refused before anything is."""
    for item in items:
        item.requests(model)
    found = graded(items, model, lambda requests: enumerate(model.engine.run(requests)), AT_ONCE)
    yield from progress(found, description, len(items), "items")
