"""Work on texts that strangers choose grows as the texts do, and not as their squares."""

from __future__ import annotations

import contextlib
import json
import time
import tracemalloc
from collections.abc import Callable

import pytest

from bedplate.core.errors import BedplateError
from bedplate.inference.engine.grammar_rules import _check_rules
from bedplate.text.control_tokens import ControlTokens
from bedplate.text.json_schema import check_pattern, parse_schema

SMALL, LARGE = 4_000, 32_000
MAX_RATIO = 3.0 * LARGE / SMALL
"""Linear growth would be eightfold, quadratic growth sixty-four times; the rest is for a busy machine."""

RULES = {
    "newlines": "\n",
    "names and newlines": "a\n",
    "spaces": " ",
    "a text that does not end": '\\"',
    "regular expressions that do not end": "/\\",
    "percent signs": "% ",
    "open brackets": "a[",
    "comments": "//\n",
}
PATTERNS = {
    "open classes": "[",
    "classes that do not end": "[\\",
    "open groups": "(",
    "flags": "(?",
    "counts": "{1",
    "escapes": "\\",
    "closed groups": ")",
}


def seconds(work: Callable[[], object]) -> float:
    """Processor time of this thread, the best of three."""
    best = float("inf")
    for _ in range(3):
        begin = time.thread_time()
        with contextlib.suppress(BedplateError):
            work()
        best = min(best, time.thread_time() - begin)
    return max(best, 1e-4)


def grows_linearly(work: Callable[[str], object], piece: str, before: str = "") -> bool:
    small, large = (before + piece * (size // len(piece)) for size in (SMALL, LARGE))
    return seconds(lambda: work(large)) < MAX_RATIO * seconds(lambda: work(small))


@pytest.mark.parametrize("name", RULES)
def test_grammars_are_looked_through_once(name):
    assert grows_linearly(_check_rules, RULES[name])
    assert grows_linearly(_check_rules, RULES[name], before='start: "a"\n"')


@pytest.mark.parametrize("name", PATTERNS)
def test_regular_expressions_are_looked_through_once(name):
    assert grows_linearly(lambda text: check_pattern(text, "pattern"), PATTERNS[name])


def test_marks_are_chosen_in_one_pass_over_the_text():
    """All that could be a mark, written as escapes behind a long text."""
    tokens = ControlTokens({"<|end|>": 1}, [])
    escapes = "".join(f"{code:04x}" for code in range(0xE000, 0xF900))
    assert grows_linearly(lambda text: tokens.choose_mark(text + escapes), "a")


def test_a_long_name_in_a_schema_is_not_copied_to_each_place_below_it():
    inner = {f"p{i}": {"type": "string"} for i in range(400)}
    source = json.dumps({"properties": {"a" * 200_000: {"type": "object", "properties": inner}}})
    tracemalloc.start()
    try:
        parse_schema(source)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(source)
    finally:
        tracemalloc.stop()
