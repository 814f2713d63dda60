"""C4's rules (https://arxiv.org/abs/1910.10683, section 2.2), which drop lines and, for what is left, documents. The
outcomes are those of datatrove's filter, which follows tensorflow_datasets' code.
"""

from __future__ import annotations

import re

from bedplate.core.config import Strict
from bedplate.data.corpus.curate.draft import DraftDocument, Rule, Tools

_CITATIONS = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_ENDS = (".", "?", "!", '"', "'")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_PARTS = ("cookie", "terms of use", "privacy policy")
"""Each policy has one of these."""


class C4Settings(Strict):
    """C4's thresholds. FineWeb keeps lines that end in no punctuation (`punctuated` false)."""

    punctuated: bool = True
    min_sentences: int = 5
    min_words_per_line: int = 3
    max_word: int = 1000
    citations: bool = True
    lorem_ipsum: bool = True
    javascript: bool = True
    curly_bracket: bool = True
    policies: bool = True


def c4(settings: C4Settings, tools: Tools) -> Rule:
    """Lines that end like no sentence, that speak of cookies or JavaScript; then documents with few sentences."""

    def rule(draft: DraftDocument) -> str | None:
        lines: list[str] = []
        everywhere = draft.text.lower()  # what is nowhere is looked for in no line
        lorem = settings.lorem_ipsum and "lorem ipsum" in everywhere
        javascript = settings.javascript and "javascript" in everywhere
        speaks = settings.policies and any(part in everywhere for part in _PARTS)
        policies = [policy for policy in _POLICIES if speaks and policy in everywhere]
        watched = lorem or javascript or bool(policies)
        bracket = settings.curly_bracket and "{" in draft.text
        for whole in draft.text.splitlines():
            line = whole.strip()
            if len(line) > settings.max_word and any(len(word) > settings.max_word for word in whole.split()):
                continue
            if settings.citations and "[" in line:
                line = _CITATIONS.sub("", line)
            if settings.punctuated and (not line.endswith(_ENDS) or line.endswith("...")):
                continue
            if len(whole.split(None, settings.min_words_per_line)) < settings.min_words_per_line:
                continue
            lower = line.lower() if watched else ""
            if lorem and "lorem ipsum" in lower:
                return "lorem_ipsum"
            if javascript and "javascript" in lower:
                continue
            if bracket and "{" in line:
                return "curly_bracket"
            if policies and any(policy in lower for policy in policies):
                continue
            lines.append(line)
        count = _sentences(lines, settings.min_sentences, tools)
        if count < settings.min_sentences:
            return f"few_sentences: {count} in {len(lines)} lines that were kept"
        draft.text = "\n".join(lines).strip()
        return None

    return rule


def _sentences(lines: list[str], minimum: int, tools: Tools) -> int:
    """How many there are, counted no further than must be: every line that says something has one."""
    plain = sum(1 for line in lines if line.strip())
    return plain if plain >= minimum else sum(map(tools.vocabulary.sentences, lines))
