"""Suites that measure a base apart from its tasks: multiple choice, loss on general text, refusals, single skills.

suite.py          what every suite is, how its items are asked, and its scores with intervals
question_sets.py  multiple-choice questions by log-likelihood, as lm-eval counts it: published sets, or a team's own
general_text.py   loss per token on documents that no task trains on
skills.py         grammar, facts, arithmetic, code: small enough for every checkpoint of a run
refusals.py       requests to refuse and requests to answer, the detector of refusals and its error rates
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from bedplate.core.errors import UsageError
from bedplate.core.suggestions import did_you_mean, nearest

Suite = Callable[[int | None], Any]
"""A `SampleSet` of at most so many items (None: all), the same every time. HubError where they cannot be pulled."""


def _later(place: str, /, *arguments: str, **named: Any) -> Suite:
    """The function `module:name` in this folder, imported when called: a typo in a suite's name loads no torch."""
    module, _, name = place.partition(":")

    def load_samples(limit: int | None) -> Any:
        return getattr(import_module(f"{__name__}.{module}"), name)(*arguments, limit, **named)

    return load_samples


CORE_NAMES = ("piqa", "openbookqa", "commonsenseqa", "boolq")
"""Multiple choice: what `core` stands for on the command line."""

SUITES: Mapping[str, Suite] = {
    **{name: _later("question_sets:core_items", sets=(name,)) for name in CORE_NAMES},
    "vader-news": _later("general_text:text_items", "vader-news"),
    "vader-movies": _later("general_text:text_items", "vader-movies"),
    "refusals": _later("refusals:refusal_items"),
    **{name: _later("skills:skill_items", name) for name in ("grammar", "facts", "arithmetic", "code")},
}


def need_suite(name: str) -> None:
    """UsageError where there is no suite of this name."""
    if name not in SUITES:
        hint = did_you_mean(nearest(name, SUITES)) or f"there are {', '.join(SUITES)}"
        raise UsageError(f"there is no suite {name!r}; {hint}")


def suites_of(names: Sequence[str]) -> list[str]:
    """The suites that are asked for, each once; `core` is four. UsageError where there is no such suite."""
    suites = list(dict.fromkeys(suite for name in names for suite in (CORE_NAMES if name == "core" else (name,))))
    for name in suites:
        need_suite(name)
    return suites
