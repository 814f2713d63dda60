"""Redacts texts before they are kept: named patterns, checked beyond their shape where possible, and an operator's own
regular expressions, which can neither run long nor match the empty text.

The `regex` package is used for its time limit: an expression that backtracks without end is stopped, and the text it
was to clean is not kept.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import regex
from pydantic import Field, field_validator

from bedplate.core.config import Strict

SECONDS = 0.05
"""For one expression on one text."""
MAX_PATTERN = 500
_IBAN_LENGTHS = (15, 34)


class RedactionTimeout(Exception):
    """An expression ran longer than it may; the text is not to be kept."""


class Expression(Strict):
    """An operator's own: what `pattern` matches becomes [NAME]."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
    pattern: Annotated[str, Field(min_length=1, max_length=MAX_PATTERN)]

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            compiled = regex.compile(pattern)
            empty = compiled.search("", timeout=SECONDS) is not None
        except regex.error as error:
            raise ValueError(f"the pattern is not a regular expression: {error}") from None
        except TimeoutError:
            raise ValueError("the pattern takes too long on an empty text") from None
        if empty:
            raise ValueError("the pattern matches the empty text, which is everywhere")
        return pattern


@dataclass(frozen=True)
class Named:
    """A pattern known by name. remainder: what stays of a match, all of it where the content is not right."""

    pattern: str
    remainder: Callable[[str], str]


def _nothing(text: str) -> str:
    return ""


def _luhn(text: str) -> str:
    """Luhn's check digit (US patent 2,950,048): every second digit from the right is doubled, the sum ends in 0."""
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) if i % 2 else digit for i, digit in enumerate(reversed(digits))]
    return "" if sum(doubled) % 10 == 0 else text


def _iban(text: str) -> str:
    """ISO 13616: the first four characters moved to the end, letters as 10 to 35, the number is 1 modulo 97. Words that
    follow may look like groups of it, so the longest beginning that is right counts."""
    for end in range(len(text), 0, -1):
        plain = text[:end].replace(" ", "").upper()
        if len(plain) < _IBAN_LENGTHS[0]:
            break
        at_the_end = end == len(text) or not text[end].isalnum()
        if at_the_end and len(plain) <= _IBAN_LENGTHS[1]:
            number = int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4]))
            if number % 97 == 1:
                return text[end:]
    return text


def is_address(text: str) -> bool:
    """Whether the text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _address(text: str) -> str:
    return "" if is_address(text) else text


def _phone(text: str) -> str:
    """7 to 15 digits (ITU E.164), grouped or led by + or 0; a date is none."""
    digits = sum(c.isdigit() for c in text)
    date = regex.fullmatch(r"\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{4}", text)
    grouped = digits < len(text) or text.startswith("0")
    return "" if 7 <= digits <= 15 and grouped and date is None else text


# In this order: what an earlier one takes a later one does not see (a card's number is no phone's).
NAMED: dict[str, Named] = {
    "email": Named(r"[\w.%+\-]{1,64}@[\w\-]{1,63}(?:\.[\w\-]{1,63}){1,8}", _nothing),
    "iban": Named(r"(?i)(?<![A-Z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,40}(?![A-Z0-9])", _iban),
    "card": Named(r"(?<![0-9])[0-9](?:[ \-]?[0-9]){12,18}(?![0-9])", _luhn),
    "ip": Named(
        r"(?<![\w.:])(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})(?![\w:])", _address
    ),
    "phone": Named(r"(?<![\w.])(?:\+|\(\+?)?[0-9](?:[ ().\-/]{0,3}[0-9]){6,18}(?!\w)", _phone),
}


class Redactor:
    def __init__(self, rules: Sequence[str | Expression]) -> None:
        chosen = [(name, named.pattern, named.remainder) for name, named in NAMED.items() if name in rules]
        chosen += [(rule.name, rule.pattern, _nothing) for rule in rules if isinstance(rule, Expression)]
        self._rules = [(f"[{name.upper()}]", regex.compile(pattern), remainder) for name, pattern, remainder in chosen]

    def clean(self, text: str) -> str:
        """The text with [EMAIL], [PHONE] and so on for what was cut. RedactionTimeout."""
        for mark, pattern, remainder in self._rules:

            def replaced(match: regex.Match[str], mark: str = mark, remainder: Callable[[str], str] = remainder) -> str:
                remaining = remainder(match[0])
                return remaining if remaining == match[0] else mark + remaining

            try:
                text = pattern.sub(replaced, text, timeout=SECONDS, concurrent=True)
            except TimeoutError:
                raise RedactionTimeout(mark) from None
        return text
