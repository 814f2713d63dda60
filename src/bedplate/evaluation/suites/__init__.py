"""What a base can do besides its tasks: multiple-choice sets, loss on general text, refusals. One file per idea.

suite.py            what every suite is, and how its items are asked
items.py            sets of multiple-choice questions, from what can be pulled or a team's own file
multiple_choice.py  their score by log-likelihood, as lm-eval counts it
text.py             loss per token on documents that no task trains on
skills.py           grammar, facts, arithmetic, code: small enough for every checkpoint of a run
suite_scores.py     what a base scores on one of SUITES, with intervals
refusals.py         requests to refuse and requests to answer, the detector of refusals and its error rates
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bedplate.evaluation.suites.items import CORE, core_items
from bedplate.evaluation.suites.refusals import refusal_items
from bedplate.evaluation.suites.skills import arithmetic_items, code_items, fact_items, grammar_items
from bedplate.evaluation.suites.suite import Items
from bedplate.evaluation.suites.text import text_items

Suite = Callable[[int | None], Items[Any]]
"""At most so many items (None: all), the same every time. HubError where they cannot be pulled."""

SUITES: Mapping[str, Suite] = {
    **{name: partial(core_items, sets=(name,)) for name in CORE},
    "vader-news": partial(text_items, "vader-news"),
    "vader-movies": partial(text_items, "vader-movies"),
    "refusals": refusal_items,
    "grammar": grammar_items,
    "facts": fact_items,
    "arithmetic": arithmetic_items,
    "code": code_items,
}
