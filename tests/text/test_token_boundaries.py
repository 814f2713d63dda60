"""The cuts of tokens are those of the plain definition, whatever their hashes are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bedplate.text import token_boundaries as cuts_module
from bedplate.text.token_boundaries import cuts

from .test_tokenizer_gguf import fields_of

ALPHABETS = ("ab", "▁aé\n", "a\U0001f600b\x00▁中")


def plain(tokens: Sequence[str], order: Sequence[int]) -> list[tuple[str, str]]:
    distinct = set(tokens)
    return [
        (tokens[index][:cut], tokens[index][cut:])
        for index in order
        for cut in range(len(tokens[index]) - 1, 0, -1)
        if tokens[index][:cut] in distinct and tokens[index][cut:] in distinct
    ]


def vocabulary(alphabet: str, seed: int, count: int) -> tuple[list[str], list[int]]:
    """Different texts (one of them empty) and the places of some of them, in any order."""
    chance = random.Random(seed)
    texts = {"".join(chance.choices(alphabet, k=int(chance.expovariate(0.3)))) for _ in range(count)} | {"", "a" * 70}
    tokens = sorted(texts)
    chance.shuffle(tokens)
    return tokens, chance.sample(range(len(tokens)), len(tokens) * 3 // 4)


@pytest.fixture
def never_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("tokens were cut one by one")

    monkeypatch.setattr(cuts_module, "_one_by_one", refuse)


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("never_one_by_one")
def test_cuts_are_those_of_the_definition(alphabet: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts_module, "_WINDOW", 500)
    tokens, order = vocabulary(alphabet, seed, 3000)
    pairs = cuts(tokens, order)
    assert len(pairs) > 500
    assert pairs == plain(tokens, order)


@pytest.mark.parametrize("base", [1, (1 << 64) - 1, 1 + (1 << 63)])
def test_texts_that_share_a_hash_are_told_apart(base: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Powers of these are 1 or few, so that texts of the same letters have the same hash."""
    monkeypatch.setattr(cuts_module, "_BASE", base)
    for alphabet in ALPHABETS:
        tokens, order = vocabulary(alphabet, 0, 400)
        assert cuts(tokens, order) == plain(tokens, order)


@pytest.mark.parametrize("tokens", [[], [""], ["a"], ["a", "aa"], ["", "ab"]])
def test_vocabularies_of_next_to_nothing(tokens: list[str]) -> None:
    order = list(range(len(tokens)))
    assert cuts(tokens, order) == plain(tokens, order)
    assert cuts(tokens, []) == []


@pytest.mark.real
@pytest.mark.usefixtures("never_one_by_one")
def test_gemma3s_cuts_are_those_of_the_definition(gemma3_gguf: Path) -> None:
    tokens = [str(token) for token in fields_of(gemma3_gguf)["tokenizer.ggml.tokens"]]
    order = list(range(len(tokens)))
    pairs = cuts(tokens, order)
    assert len(pairs) > 500_000
    assert pairs == plain(tokens, order)
