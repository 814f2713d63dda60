"""No tenant's requests to an engine change by much what the others wait, whatever their order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping

import pytest
from tests.inference.engine.simulated_tenants import Behavior, Simulation, tokens
from tests.tiny import write_tiny_base

from bedplate.inference.engine.requests import Embed, Generate, Sampling
from bedplate.models.checkpoints.base import Base, load_base

TENANTS, CLIENTS, WORKERS, PAUSE, SECONDS = 7, 8, 8, 1.0, 5.0
MAX_SLOWDOWN = 1.6


def generate(tenant: str, draw: random.Random, prompt: int, answer: int, skin: str = "tiny") -> Generate:
    sampling = Sampling(max_tokens=answer, ignore_eos=True)
    return Generate(tokens(draw, prompt), sampling=sampling, tenant=tenant, skin=skin)


def embed(draw: random.Random, count: int) -> Embed:
    return Embed(tokens(draw, count), tenant="them", skin="tiny")


def honest(tenant: str, number: int) -> Behavior:
    draw = random.Random(f"{tenant}/{number}")
    yield draw.random() * PAUSE
    while True:
        yield [generate(tenant, draw, 30, 4)]
        yield PAUSE * (0.5 + draw.random())


def long_then_short(draw: random.Random) -> Behavior:
    while True:
        yield [embed(draw, 4000)]
        yield [embed(draw, 1) for _ in range(64)]


def many_inputs(draw: random.Random) -> Behavior:
    while True:
        yield [embed(draw, draw.choice((1, 10, 100))) for _ in range(200)]


def long_beside_short(draw: random.Random) -> Behavior:
    while True:
        lengths = [draw.choice((10, 20, 200, 2000)) for _ in range(24)]
        yield [generate("them", draw, length, length // 2) for length in lengths]


def streams(draw: random.Random) -> Behavior:
    while True:
        yield [generate("them", draw, 10, 1000) for _ in range(8)]


def skins_in_turn(draw: random.Random) -> Behavior:
    while True:
        yield [generate("them", draw, 50, 4, f"skin-{i % 8}") for i in range(16)]


HOSTILE: Mapping[str, Callable[[random.Random], Behavior]] = {
    hostile.__name__: hostile for hostile in (long_then_short, many_inputs, long_beside_short, streams, skins_in_turn)
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(write_tiny_base(tmp_path_factory.mktemp("tiny") / "tiny", context_length=8192))


def slowest_hundredth(base: Base, hostile: list[Behavior]) -> float:
    """Seconds that the honest tenants' slowest hundredth of requests took, all tenants together."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        simulation = Simulation(base, monkeypatch, max_rows=8, cache_bytes=32 << 20, slot_bytes=128 << 20)
        names = [f"tenant-{number}" for number in range(TENANTS)]
        clients = [honest(name, number) for name in names for number in range(CLIENTS)]
        simulation.run([*clients, *hostile], SECONDS)
    ordered = sorted(itertools.chain.from_iterable(simulation.waits[name] for name in names))
    assert len(ordered) > SECONDS * TENANTS * CLIENTS / 2
    return ordered[int(0.99 * len(ordered))]


@pytest.fixture(scope="module")
def quiet(base: Base) -> float:
    return slowest_hundredth(base, [])


MOST_HARMFUL = ("long_then_short", "many_inputs")
"""Whose slowest hundredth was 97 and 8 times the quiet one."""
CASES = [pytest.param([name], marks=() if name in MOST_HARMFUL else pytest.mark.slow, id=name) for name in HOSTILE]


@pytest.mark.parametrize("names", [*CASES, pytest.param(list(HOSTILE), id="all")])
def test_the_others_wait_little_longer(base: Base, quiet: float, names: list[str]) -> None:
    hostile = [HOSTILE[names[worker % len(names)]](random.Random(worker)) for worker in range(WORKERS)]
    besieged = slowest_hundredth(base, hostile)
    print(f"{besieged / quiet:.2f}")
    assert besieged <= MAX_SLOWDOWN * quiet
