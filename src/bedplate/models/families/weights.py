"""Weight-name tables between Bedplate's module paths and another format's names. Plain data, invertible."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

Transform = Literal["none", "rope_interleaved_q", "rope_interleaved_k"]


@dataclass(frozen=True)
class Rule:
    """One row: `{i}` stands for the layer number on both sides.

    `transform` tells how the other format lays the tensor out: "rope_interleaved_q" and "_k" are rows permuted for
    interleaved rotary pairs (llama.cpp's convention), where Bedplate's are half-split.
    """

    ours: str
    theirs: str
    transform: Transform = "none"


@dataclass(frozen=True)
class WeightMap:
    """The rows, the names that may be ignored (regular expressions), and an optional prefix of the other side."""

    rules: tuple[Rule, ...]
    ignorable: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = field(default=())

    def to_external(self, name: str) -> str | None:
        """Bedplate's name → the other format's, or None."""
        rule, index = self._match(name, self._ours)
        return None if rule is None else rule.theirs.replace("{i}", index)

    def from_external(self, name: str) -> str | None:
        """The other format's name → Bedplate's, or None. A known prefix may be present or not."""
        for prefix in ("", *self.prefixes):
            if name.startswith(prefix):
                rule, index = self._match(name[len(prefix) :], self._theirs)
                if rule is not None:
                    return rule.ours.replace("{i}", index)
        return None

    def transform(self, name: str) -> Transform:
        """How the tensor with Bedplate's `name` is laid out on the other side."""
        rule, _ = self._match(name, self._ours)
        return "none" if rule is None else rule.transform

    def is_ignorable(self, name: str) -> bool:
        """Whether the other format's tensor holds nothing that the model uses (derived tables, unused parts)."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignorable)

    @cached_property
    def _ours(self) -> dict[str, Rule]:
        return {rule.ours: rule for rule in self.rules}

    @cached_property
    def _theirs(self) -> dict[str, Rule]:
        return {rule.theirs: rule for rule in self.rules}

    @staticmethod
    def _match(name: str, table: dict[str, Rule]) -> tuple[Rule | None, str]:
        if name in table:
            return table[name], ""
        found = re.search(r"(?<=\.)(\d+)(?=\.)", name)
        if found is None:
            return None, ""
        return table.get(name[: found.start()] + "{i}" + name[found.end() :]), found.group()
