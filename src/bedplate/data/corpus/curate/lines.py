"""C4's rules (https://arxiv.org/abs/1910.10683, section 2.2), which drop lines and, for what is left, documents. The
outcomes are those of datatrove's filter, which follows tensorflow_datasets' code.
"""

from __future__ import annotations

import re
from typing import Any

from bedplate.core.config import Strict
from bedplate.data.corpus.curate.draft import Draft, Rule, Tools

_CITATIONS = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_ENDS = (".", "?", "!", '"', "'")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


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
    sentences = _Sentences(tools.language)

    def rule(draft: Draft) -> str | None:
        kept: list[str] = []
        everywhere = draft.text.lower()  # what is nowhere is looked for in no line
        lorem = settings.lorem_ipsum and "lorem ipsum" in everywhere
        javascript = settings.javascript and "javascript" in everywhere
        policies = [policy for policy in _POLICIES if settings.policies and policy in everywhere]
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
            kept.append(line)
        count = sentences.at_least(kept, settings.min_sentences)
        if count < settings.min_sentences:
            return f"few_sentences: {count} in {len(kept)} lines that were kept"
        draft.text = "\n".join(kept).strip()
        return None

    return rule


class _Sentences:
    """Counts sentences, no further than it must: every line that says something has one."""

    def __init__(self, language: str) -> None:
        self._language, self._tokenizer = language, None

    def at_least(self, lines: list[str], wanted: int) -> int:
        plain = sum(1 for line in lines if line.strip())
        if plain >= wanted:
            return plain
        if self._tokenizer is None:
            from datatrove.utils.word_tokenizers import load_word_tokenizer

            self._tokenizer: Any = load_word_tokenizer(self._language)
        return sum(len(self._tokenizer.span_tokenize(line)) for line in lines)
