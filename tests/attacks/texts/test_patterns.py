"""Every regular expression that requests may reach grows as its text does: it is fed its own characters."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import time
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from types import ModuleType
from typing import Any

import pytest

PACKAGES = ("bedplate.serving", "bedplate.text", "bedplate.inference.engine", "bedplate.core")
SMALL, LARGE = 500, 4_000
SUSPECT_SECONDS = 0.002
"""Less is not measured again: that many characters, looked through once, take a tenth of it."""
MAX_RATIO = 3.0 * LARGE / SMALL
METHODS = ("search", "match", "fullmatch", "finditer", "findall", "sub", "split")
STOPS = {"bedplate.inference.engine.grammar_rules._RULE_PARTS"}
"""Whoever goes through it ends at the first text without an end (`test_growth`)."""
OPERATORS = {"bedplate.serving.settings.redaction"}
"""What an operator's file says is looked for is held to a time of its own."""


@lru_cache(maxsize=1)
def modules() -> tuple[ModuleType, ...]:
    loaded: list[ModuleType] = []
    for package_name in PACKAGES:
        package = importlib.import_module(package_name)
        names = [module_info.name for module_info in pkgutil.walk_packages(package.__path__, f"{package_name}.")]
        loaded += [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    return tuple(loaded)


def patterns() -> Iterator[tuple[str, re.Pattern[Any], tuple[str, ...]]]:
    """Their names, and what is asked of them anywhere."""
    sources = "\n".join(inspect.getsource(module) for module in modules())
    for module in modules():
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern) and module.__name__ not in OPERATORS:
                methods = tuple(sorted(set(re.findall(rf"\b{name}\.(\w+)\(", sources)) & set(METHODS)))
                yield f"{module.__name__}.{name}", value, methods


def characters(pattern: re.Pattern[Any]) -> list[str]:
    """Those that the pattern names, and one of each kind that it asks for."""
    text = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    plain = re.sub(r"\\[dDwWsSbBAZ]|\(\?(?:P<\w+>|[a-z:=!<]+)|\{\d*,?\d*\}|[*+?|()\[\]^$]", "", text)
    return [*list(dict.fromkeys(["a", "0", " ", "\n", *plain.replace("\\", "")]))[:14], "\\", '"']


def seconds(pattern: re.Pattern[Any], method: str, text: str) -> float:
    subject: Any = text if isinstance(pattern.pattern, str) else text.encode()
    begin = time.thread_time()
    matches = getattr(pattern, method)(*([subject] if method != "sub" else ["", subject]))
    if method == "finditer":
        for _ in matches:
            pass
    return time.thread_time() - begin


def grows(pattern: re.Pattern[Any], method: str, piece: str, end: str) -> bool:
    """Whether the time grows faster than the text."""
    large = piece * (LARGE // len(piece)) + end
    if seconds(pattern, method, large) < SUSPECT_SECONDS:
        return False
    small = piece * (SMALL // len(piece)) + end
    fastest = [min(seconds(pattern, method, text) for _ in range(5)) for text in (small, large)]
    return fastest[1] > MAX_RATIO * max(fastest[0], SUSPECT_SECONDS / MAX_RATIO)


def test_no_regular_expression_of_a_request_grows_faster_than_its_text():
    looked, bad = 0, set[tuple[str, str, str]]()
    for name, pattern, methods in patterns():
        if name in STOPS:
            continue
        letters = characters(pattern)
        pairs = [*product(letters[:7], repeat=2), *product(letters[-4:], repeat=2)]
        for method in methods:
            looked += 1
            for piece, end in product((*letters, *map("".join, pairs)), ("", "\0")):
                if grows(pattern, method, piece, end):
                    bad.add((name, method, piece))
    assert not bad
    assert looked > 10


@pytest.mark.parametrize("source", [r"\s+$", r"a[^b]*b"])
def test_the_search_finds_those_that_do(source):
    pattern = re.compile(source)
    assert any(grows(pattern, "search", piece, "\0") for piece in characters(pattern))
