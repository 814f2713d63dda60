"""Guessing ahead changes how fast tokens come, never which: with and without it, every row says the same."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Generation, Grammar, Sampling
from bedplate.inference.engine.requests.generate import COOLDOWN, LONGEST, MAX_DRAFT, SHORTEST, Drafter
from bedplate.models.checkpoints.base import load_base


@pytest.fixture(scope="module")
def pair(tiny_dir: Path) -> Iterator[tuple[Engine, Engine]]:
    base = load_base(tiny_dir)
    with Engine(base, speculate=False) as plain, Engine(load_base(tiny_dir), speculate=True) as guessing:
        yield plain, guessing


def _requests(count: int, **changes: object) -> list[Generate]:
    """Prompts that repeat themselves, so that there is something to look up."""
    rng = random.Random(5)
    requests: list[Generate] = []
    for i in range(count):
        phrase = [rng.randrange(3, 300) for _ in range(rng.randint(3, 8))]
        tokens = tuple(phrase * rng.randint(2, 5) + phrase[: rng.randint(1, 3)])
        settings_ = {"max_tokens": 40, "ignore_eos": True, "seed": i, **changes}
        requests.append(Generate(tokens, Sampling(**settings_)))  # type: ignore[arg-type]
    return requests


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"temperature": 0.3}, marks=pytest.mark.slow),
        {"temperature": 0.9, "top_p": 0.9, "top_k": 40},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "temperature": 0.4},
        pytest.param(
            {"logit_bias": ((50, 100.0), (51, 99.0)), "temperature": 1.0, "max_tokens": 80}, marks=pytest.mark.slow
        ),
        {"logit_bias": ((50, 100.0), (51, 100.0)), "temperature": 1.0, "max_tokens": 60, "logprobs": 2},
        pytest.param({"logprobs": 3}, marks=pytest.mark.slow),
        {"max_tokens": 3},
        {"ignore_eos": False, "min_tokens": 5, "stop_token_ids": (7, 9, 11)},
        {"stop": ("a", "the")},
    ],
    ids=str,
)
def test_the_same_is_said_with_and_without(pair: tuple[Engine, Engine], changes: dict[str, object]) -> None:
    plain, guessing = pair
    requests = _requests(5, **changes)
    for batch in (requests[:1], requests):
        for ours, theirs in zip(guessing.run(batch), plain.run(batch), strict=True):
            ours, theirs = cast(Generation, ours), cast(Generation, theirs)  # noqa: PLW2901
            assert ours.token_ids == theirs.token_ids
            assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
            assert ours.usage.completion_tokens == theirs.usage.completion_tokens
    assert plain.stats().speculated == 0


def test_guesses_save_steps_where_text_repeats(pair: tuple[Engine, Engine]) -> None:
    plain, guessing = pair
    looping = Sampling(max_tokens=300, ignore_eos=True, logit_bias=((50, 100.0),))
    request = Generate(tuple(range(20, 40)), looping)
    before = plain.stats().steps, guessing.stats()
    plain.run([request])
    guessing.run([request])
    # It says one token for ever, which look-up foresees.
    after = guessing.stats()
    assert after.accepted > before[1].accepted
    assert after.steps - before[1].steps < 0.3 * (plain.stats().steps - before[0])
    assert after.generated_tokens - before[1].generated_tokens == 300


def test_rows_held_to_a_grammar_are_not_guessed(pair: tuple[Engine, Engine]) -> None:
    guessing = pair[1]
    before = guessing.stats().speculated
    request = Generate(tuple(range(20, 40)) * 3, Sampling(max_tokens=40), grammar=Grammar("regex", "(ab)*"))
    assert guessing.run([request])
    assert guessing.stats().speculated == before


@settings(max_examples=120, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), max_size=20), st.integers(1, MAX_DRAFT))
def test_a_draft_is_what_followed_the_longest_run_last_time(start: list[int], generated: list[int], limit: int) -> None:
    drafter = Drafter(start)
    for token in generated:
        drafter.push(token)
    tokens = start + generated
    expected: list[int] = []
    for n in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
        ends = [end for end in range(n, len(tokens)) if tokens[end - n : end] == tokens[-n:]]
        if ends:
            expected = (tokens[ends[-1] :] * 2)[: min(limit, 2)]
            break
    assert drafter.draft(limit) == expected


def test_a_long_prompt_is_not_indexed_while_others_wait() -> None:
    """A drafter is made in the engine's thread. Least processor time of some turns; an index of it takes far longer."""
    prompt, best = random.Random(0).choices(range(49_152), k=100_000), math.inf
    for _ in range(5):
        began = time.thread_time()
        drafter = Drafter(prompt)
        drafter.push(prompt[50])
        drafter.push(prompt[51])
        draft = drafter.draft(MAX_DRAFT)
        best = min(best, time.thread_time() - began)
    assert draft == prompt[52:54]
    assert best < 0.03


def test_guesses_grow_with_success_and_rest_after_failure() -> None:
    drafter = Drafter([1, 2, 3] * 10)
    sizes: list[int] = []
    for _ in range(4):
        draft = drafter.draft(99)
        sizes.append(len(draft))
        drafter.learn(len(draft), len(draft))
        for token in draft:
            drafter.push(token)
    assert sizes == [2, 4, MAX_DRAFT, MAX_DRAFT]
    drafter.learn(2, 0)
    assert drafter.draft(99) == []
    for _ in range(COOLDOWN):
        drafter.push(1)
    assert drafter.draft(99) != []
