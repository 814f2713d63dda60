"""Source code that is worth learning: The Stack's and StarCoder's rules (https://arxiv.org/abs/2305.06161, section 3;
https://arxiv.org/abs/2107.03374, section 3.1)."""

from __future__ import annotations

import re

from bedplate.core.config import Strict
from bedplate.data.corpus.curate.draft import DraftDocument, Rule, Tools

_GENERATED = re.compile(
    r"auto[- ]?generated|generated (?:automatically|by|from)|do not (?:edit|modify)|this file (?:is|was) generated",
    re.I,
)
_HEX = re.compile(r"(?:\\x[0-9a-fA-F]{2}|0x[0-9a-fA-F]{2}\s*,|[0-9a-fA-F]{64,}|[A-Za-z0-9+/]{200,}={0,2})")


class CodeSettings(Strict):
    """max_line, max_mean_line: characters; min_letters_digits: share of characters; generated_lines: how many lines are
    looked through for what programs say of their output; max_data: share of characters in encoded bytes."""

    min_characters: int = 100
    max_characters: int = 1_000_000
    max_line: int = 1000
    max_mean_line: float = 100
    min_letters_digits: float = 0.25
    generated_lines: int = 5
    max_data: float = 0.5


def code(settings: CodeSettings, tools: Tools) -> Rule:
    """Minified, generated, data that is written as code, or hardly any text."""

    def rule(draft: DraftDocument) -> str | None:
        text = draft.text
        if len(text) < settings.min_characters:
            return f"short: {len(text)} characters"
        if len(text) > settings.max_characters:
            return f"long: {len(text)} characters"
        lines = text.splitlines()
        longest = max(map(len, lines))
        if longest > settings.max_line:
            return f"long_line: {longest} characters"
        mean = sum(map(len, lines)) / len(lines)
        if mean > settings.max_mean_line:
            return f"long_lines: {mean:.0f} characters on average"
        share = sum(map(str.isalnum, text)) / len(text)
        if share < settings.min_letters_digits:
            return f"few_letters: {share:.2f} of characters are letters or digits"
        for number, line in enumerate(lines[: settings.generated_lines], start=1):
            if _GENERATED.search(line):
                return f"generated: line {number} says {line.strip()[:80]!r}"
        data = sum(match.end() - match.start() for match in _HEX.finditer(text)) / len(text)
        return f"data: {data:.2f} of characters are encoded bytes" if data > settings.max_data else None

    return rule
