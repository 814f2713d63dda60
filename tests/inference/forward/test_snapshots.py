"""What sequences go on from, where layers forget or keep states: snapshots in the tree, pins, soft prompts, bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference.mixtures import random_prompt
from tests.made import made_base
from tests.near import assert_near
from tests.tiny import tiny_spec

from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Generation, Sampling
from bedplate.inference.forward.radix import Key, RadixTree
from bedplate.models.checkpoints.base import Base
from bedplate.models.specs.parts import DeltaRule

SNAPSHOT, SIZE, CAPACITY = 70, 10, 500


@dataclass(eq=False)
class Piece:
    """A segment, and whether it ends in a snapshot."""

    key: Key
    resumes: bool
    live: list[Piece]

    def __post_init__(self) -> None:
        self.live.append(self)

    @property
    def nbytes(self) -> int:
        return SIZE * len(self.key) + SNAPSHOT * self.resumes

    def split(self, at: int) -> tuple[Piece, Piece]:
        self.release()
        return Piece(self.key[:at], False, self.live), Piece(self.key[at:], self.resumes, self.live)

    def release(self) -> None:
        self.live.remove(self)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=12), st.booleans(), st.booleans())))
def test_the_tree_goes_on_only_from_snapshots_and_counts_them(calls: list[tuple[list[int], bool, bool]]) -> None:
    """Against a set of beginnings with snapshots: what is matched is one of them, and bytes are those of what lives."""
    tree, live = RadixTree(CAPACITY, snapshots=True), list[Piece]()
    ends: set[Key] = set()
    for tokens, renew, insert in calls:
        key = tuple(tokens)
        if insert:

            def save(begin: int, end: int, key: Key = key, renew: bool = renew) -> Piece:
                return Piece(key[begin:end], renew and end == len(key), live)

            tree.insert("", key, save, SIZE, renew=renew)
            ends |= {key} if renew else set()
        else:
            match = tree.match("", key, len(key))
            assert match.length in {0} | {len(prefix) for prefix in ends if prefix == key[: len(prefix)]}
            assert match.matched_length >= match.length
            assert all(count == len(cast(Piece, piece).key) for piece, count in match.parts)
        assert tree.used == sum(piece.nbytes for piece in live) <= CAPACITY
    tree.clear()
    assert (tree.used, live) == (0, [])


def test_a_snapshot_comes_to_what_is_there_already() -> None:
    tree, live = RadixTree(CAPACITY, snapshots=True), list[Piece]()
    whole = tuple(range(8))
    tree.insert("", whole, lambda begin, end: Piece(whole[begin:end], False, live), SIZE)
    assert (tree.match("", whole, 5).length, tree.match("", whole, 5).matched_length) == (0, 5)
    tree.insert("", whole[:5], lambda begin, end: Piece(whole[begin:end], end == 5, live), SIZE, renew=True)
    assert tree.match("", whole, 8).length == 5
    tree.pin("", whole[:3], lambda begin, end: Piece(whole[begin:end], end == 3, live), SIZE)
    assert tree.pinned == 3 * SIZE + SNAPSHOT
    assert tree.match("", whole, 4).length == 3
    assert tree.used == sum(piece.nbytes for piece in live) == 8 * SIZE + 2 * SNAPSHOT


SPECS = {
    "windows": tiny_spec(windows=(6, None)),
    "states": tiny_spec(state=DeltaRule(4, 2, 6, 8), state_layers=(True, False, True)),
}


@pytest.fixture(scope="module", params=SPECS)
def base(request: pytest.FixtureRequest) -> Base:
    return made_base(SPECS[request.param])


def generate(engine: Engine, prompt: tuple[int, ...], adapter: str | None = None) -> Generation:
    request = Generate(prompt, Sampling(max_tokens=6, ignore_eos=True), adapter=adapter)
    return cast(Generation, engine.run([request])[0])


@pytest.mark.parametrize("paged", [False, True])
def test_pins_and_soft_prompts_longer_than_what_is_kept(base: Base, paged: bool) -> None:
    prompt, vectors = random_prompt(1, 96), torch.randn(80, 48, generator=torch.Generator().manual_seed(2)) * 0.5
    with Engine(base, kernel="torch", cache_bytes=0) as engine:
        engine.load_soft_prompt("soft", vectors)
        alone = [generate(engine, (*prompt, 5, 9)), generate(engine, prompt, "soft")]
    with Engine(base, kernel="torch", max_step_tokens=7, cache_bytes=0, paged=paged, slot_bytes=1 << 22) as engine:
        engine.pin(prompt)
        engine.load_soft_prompt("soft", vectors)
        answers = [generate(engine, (*prompt, 5, 9)), generate(engine, prompt, "soft")]
        assert answers[0].usage.cached_tokens == 96
        engine.unpin(prompt)
    for result, reference in zip(answers, alone, strict=True):
        assert result.token_ids == reference.token_ids
        assert_near(result.logprobs, reference.logprobs, 2e-4)


def test_a_conversation_goes_on_from_its_last_answer(base: Base) -> None:
    first = random_prompt(3, 40)
    with Engine(base, kernel="torch") as engine:
        answer = generate(engine, first)
        second = (*first, *answer.token_ids, *random_prompt(4, 12))
        follow_up = generate(engine, second)
        assert follow_up.usage.cached_tokens >= len(first) + len(answer.token_ids) - 1
        assert 0 < engine.stats().cache_bytes <= engine.stats().cache_capacity_bytes
    with Engine(base, kernel="torch", cache_bytes=0) as engine:
        assert generate(engine, second).token_ids == follow_up.token_ids
