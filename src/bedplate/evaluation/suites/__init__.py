"""Suites that measure a base apart from its tasks: multiple choice, loss on general text, refusals, single skills.

suite.py            what every suite is, and how its items are asked
question_sets.py    sets of multiple-choice questions, from what can be pulled or a team's own file
multiple_choice.py  their score by log-likelihood, as lm-eval counts it
general_text.py     loss per token on documents that no task trains on
skills.py           grammar, facts, arithmetic, code: small enough for every checkpoint of a run
suite_scores.py     what a base scores on one of SUITES, with intervals
refusals.py         requests to refuse and requests to answer, the detector of refusals and its error rates
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bedplate.core.errors import UsageError
from bedplate.core.suggestions import did_you_mean, nearest

if TYPE_CHECKING:
    from bedplate.evaluation.suites.suite import SampleSet

Suite = Callable[[int | None], "SampleSet[Any]"]
"""At most so many items (None: all), the same every time. HubError where they cannot be pulled."""


def _later(place: str, /, *arguments: str, **named: Any) -> Suite:
    """The function `module:name` in this folder, imported when called: a typo in a suite's name loads no torch."""
    module, _, name = place.partition(":")

    def load_samples(limit: int | None) -> SampleSet[Any]:
        return getattr(import_module(f"{__name__}.{module}"), name)(*arguments, limit, **named)

    return load_samples


CORE_NAMES = ("piqa", "openbookqa", "commonsenseqa", "boolq")
"""Multiple choice: what `core` stands for on the command line."""

SUITES: Mapping[str, Suite] = {
    **{name: _later("question_sets:core_items", sets=(name,)) for name in CORE_NAMES},
    "vader-news": _later("general_text:text_items", "vader-news"),
    "vader-movies": _later("general_text:text_items", "vader-movies"),
    "refusals": _later("refusals:refusal_items"),
    "grammar": _later("skills:grammar_items"),
    "facts": _later("skills:fact_items"),
    "arithmetic": _later("skills:arithmetic_items"),
    "code": _later("skills:code_items"),
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
