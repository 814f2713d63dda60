"""The cuts of tokens are those of the plain definition, whatever their hashes are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bedplate.text import cuts as cuts_module
from bedplate.text.cuts import cuts

from .test_tokenizer_gguf import fields_of

ALPHABETS = ("ab", "▁aé\n", "a\U0001f600b\x00▁中")


def plain(known: Sequence[str], order: Sequence[int]) -> list[tuple[str, str]]:
    among = set(known)
    return [
        (known[index][:cut], known[index][cut:])
        for index in order
        for cut in range(len(known[index]) - 1, 0, -1)
        if known[index][:cut] in among and known[index][cut:] in among
    ]


def vocabulary(alphabet: str, seed: int, count: int) -> tuple[list[str], list[int]]:
    """Different texts (one of them empty) and the places of some of them, in any order."""
    chance = random.Random(seed)
    texts = {"".join(chance.choices(alphabet, k=int(chance.expovariate(0.3)))) for _ in range(count)} | {"", "a" * 70}
    known = sorted(texts)
    chance.shuffle(known)
    return known, chance.sample(range(len(known)), len(known) * 3 // 4)


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
    known, order = vocabulary(alphabet, seed, 3000)
    found = cuts(known, order)
    assert len(found) > 500
    assert found == plain(known, order)


@pytest.mark.parametrize("base", [1, (1 << 64) - 1, 1 + (1 << 63)])
def test_texts_that_share_a_hash_are_told_apart(base: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Powers of these are 1 or few, so that texts of the same letters have the same hash."""
    monkeypatch.setattr(cuts_module, "_BASE", base)
    for alphabet in ALPHABETS:
        known, order = vocabulary(alphabet, 0, 400)
        assert cuts(known, order) == plain(known, order)


@pytest.mark.parametrize("known", [[], [""], ["a"], ["a", "aa"], ["", "ab"]])
def test_vocabularies_of_next_to_nothing(known: list[str]) -> None:
    order = list(range(len(known)))
    assert cuts(known, order) == plain(known, order)
    assert cuts(known, []) == []


@pytest.mark.real
@pytest.mark.usefixtures("never_one_by_one")
def test_gemma3s_cuts_are_those_of_the_definition(gemma3_gguf: Path) -> None:
    tokens = [str(token) for token in fields_of(gemma3_gguf)["tokenizer.ggml.tokens"]]
    order = list(range(len(tokens)))
    found = cuts(tokens, order)
    assert len(found) > 500_000
    assert found == plain(tokens, order)
