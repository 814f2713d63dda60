"""Texts and pairs of texts as encoders read them: with the special tokens that the tokenizer sets, cut where that is
asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from bedplate.core.errors import UsageError

TextOrPair = str | tuple[str, str]


class EncoderInput(NamedTuple):
    """ids: tokens. types: of each, which of a pair's texts it is of; () for one text. cut: tokens left out."""

    ids: tuple[int, ...]
    types: tuple[int, ...] = ()
    cut: int = 0


def encoder_input(encoding: Any, is_pair: bool, limit: int | None) -> EncoderInput:
    """What the tokenizers library made of a text or a pair, of at most `limit` tokens: special tokens stay, and the
    longer of two texts is cut first, at its end (the library's "longest_first")."""
    ids, types = encoding.ids, encoding.type_ids if is_pair else ()
    if limit is None or len(ids) <= limit:
        return EncoderInput(tuple(ids), tuple(types))
    owners = encoding.sequence_ids
    counts = [owners.count(0), owners.count(1)]
    budget = limit - (len(ids) - sum(counts))
    if budget < 1:
        raise UsageError(f"a limit of {limit} tokens leaves no room beside {limit - budget} special ones")
    quotas = _quotas(counts, budget)
    positions: list[int] = []
    used = [0, 0]
    for number, owner in enumerate(owners):
        if owner is not None:
            used[owner] += 1
            if used[owner] > quotas[owner]:
                continue
        positions.append(number)
    return EncoderInput(
        tuple(ids[number] for number in positions),
        tuple(types[number] for number in positions) if is_pair else (),
        len(ids) - len(positions),
    )


def _quotas(counts: Sequence[int], budget: int) -> tuple[int, int]:
    """How many tokens of each text stay of `budget`: what the longer one has over the shorter goes first, then half
    each, the odd one to the longer (to the second of two equals)."""
    short, long = min(counts), max(counts)
    if short + long > budget:
        long = max(short, budget - short)
        if short + long > budget:
            short = budget // 2
            long = budget - short
    return (long, short) if counts[0] > counts[1] else (short, long)
