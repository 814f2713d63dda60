"""Keeps control tokens of the template apart from look-alikes in what users wrote.

A chat template mixes its own `<|im_end|>` with message contents, and may trim, join or quote the contents on the way.
So before rendering, each look-alike in the messages, and each part of one at the edge of a string (two fields could be
joined), is broken by a mark: one private-use character that occurs nowhere in the input. In the rendered text, an
unbroken control token is the template's, a broken one is text. The template's are then renamed to names that nobody
can write (a fresh random number per process), the marks are removed, and one pass of a tokenizer that knows the
control tokens by those names only gives the ids, merges across boundaries included.

What this program writes into a message itself (calls, for a template that shows none) is an `OwnText`: its control
tokens have names that are drawn for this one conversation, for a template's error may tell them to the caller.
What is trusted: a template that itself spells a control token around a field, such as `'<|' + role + '|>'`.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import tokenizers

from bedplate.core.errors import DataError

_NONCE = secrets.token_hex(16)
# Wherever four such digits stand: they may follow `\\u`, and another four begin at the next character.
_ESCAPED = re.compile(r"(?=([eEfF][0-9a-fA-F]{3}))")


def secret_name(index: int, nonce: str = _NONCE) -> str:
    """What the control token of this id is called in the tokenizer for user text."""
    return f"bp{nonce}x{index}z"


def without_control_tokens(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer with every control token renamed: no text that a user can write yields one. Renamed in the
    model's own vocabulary too, which could otherwise produce `<s>` from its characters. (Text that the vocabulary
    cannot express still gives the unknown token, by its id.)"""
    content = json.loads(backend.to_str())
    names = {token["content"]: secret_name(token["id"]) for token in content["added_tokens"] if token["special"]}
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): index for token, index in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not {pair[0], pair[1], pair[0] + pair[1]} & names.keys()]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


class ControlTokens:
    """The added tokens of a tokenizer, to be found in text. `special`: control tokens by text; `others`: further added
    tokens, which are matched in user text as everywhere."""

    def __init__(self, special: Mapping[str, int], ordinary_tokens: Iterable[str]) -> None:
        self._special = dict(special)
        self._all = sorted({*special, *ordinary_tokens}, key=len, reverse=True)
        self._starts = {token[:end] for token in special for end in range(1, len(token))}
        self._ends = {token[start:] for token in special for start in range(1, len(token))}
        self._longest = max(map(len, special), default=1)
        alternatives = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        self._anywhere = re.compile(f"(?=({alternatives}))") if special else None

    def choose_mark(self, *inputs: Any) -> str:
        """A private-use character that neither the inputs nor the tokens hold, also not as a `\\u` escape."""
        text = json.dumps([inputs, self._all], ensure_ascii=False)
        characters, escaped = set(text), {match[1].lower() for match in _ESCAPED.finditer(text)}
        for code in range(0xE000, 0xF900):
            if chr(code) not in characters and f"{code:04x}" not in escaped:
                return chr(code)
        # 6,400 characters all in use: the planes beyond have 131,068 more
        free = (chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in characters)
        if (mark := next(free, None)) is None:
            raise DataError("the text holds every private-use character, which is more than any needs; remove some")
        return mark

    def mark(self, value: Any, mark: str) -> Any:
        """The value with every look-alike in its strings broken by the mark."""
        if isinstance(value, str):
            return self._mark_text(value, mark)
        if isinstance(value, Mapping):
            return {self.mark(key, mark): self.mark(child, mark) for key, child in value.items()}
        if isinstance(value, Sequence):
            return [self.mark(child, mark) for child in value]
        return value

    def _mark_text(self, text: str, mark: str) -> str:
        if self._anywhere is None or not text:
            return text
        places: set[int] = set()
        for match in self._anywhere.finditer(text):
            # inside the look-alike; a token of one character is broken by a mark before it
            places.add(match.start() + (1 if len(match.group(1)) > 1 else 0))
        for length in range(1, min(self._longest, len(text)) + 1):
            end, start = text[-length:], text[:length]
            if end in self._starts and not end.isspace():
                places.add(len(text) - length + 1)
            if start in self._ends and not start.isspace():
                places.add(length - 1)
        edges = [0, *sorted(places), len(text)]
        return mark.join(text[a:b] for a, b in pairwise(edges)) if places else text

    def rename(self, rendered: str, mark: str, nonce: str = _NONCE) -> str:
        """The rendered text with the template's control tokens under their secret names, and without marks."""
        special = self._special

        def name(match: re.Match[str]) -> str:
            token = match.group()
            return secret_name(special[token], nonce) if token in special else token

        return _unbroken(tuple(self._all), mark).sub(name, rendered).replace(mark, "")


class TemplateText:
    """Spells the texts that this program writes into one conversation: their control tokens are read as such. For what
    a caller has written it is never used."""

    def __init__(self, tokens: ControlTokens) -> None:
        self._tokens, self._nonce = tokens, secrets.token_hex(16)
        self._spelled: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        if text not in self._spelled:
            self._spelled[text] = self._tokens.rename(text, "\0", self._nonce)
        return self._spelled[text]

    @property
    def used(self) -> bool:
        """Whether it has spelled any control token."""
        return any(self._nonce in spelled for spelled in self._spelled.values())

    def named(self, rendered: str) -> str:
        """The text with these control tokens under the names that the tokenizer for user text has for them."""
        return rendered.replace(self._nonce, _NONCE)


@lru_cache(maxsize=16)
def _unbroken(longest_first: tuple[str, ...], mark: str) -> re.Pattern[str]:
    parts = [re.escape(token) if len(token) > 1 else f"(?<!{mark}){re.escape(token)}" for token in longest_first]
    return re.compile("|".join(parts) if parts else "(?!)")
