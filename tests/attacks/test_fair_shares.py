"""A tenant that asks for everything gets what the others leave, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import write_tiny_base

from bedplate.core.errors import BusyError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Sampling
from bedplate.inference.engine.scheduler import fair_shares, may_queue
from bedplate.models.checkpoints.base import load_base

LONG = 100


def asking(tenant: str, first: int, tokens: int) -> Generate:
    return Generate((first, 7, 9, 11), sampling=Sampling(max_tokens=tokens, ignore_eos=True), tenant=tenant)


@given(st.integers(1, 40), st.dictionaries(st.text(max_size=3), st.integers(1, 60), min_size=1))
def test_shares_are_max_min_fair(total, demand):
    shares = fair_shares(total, demand)
    assert all(1 <= shares[tenant] <= demand[tenant] for tenant in demand)
    if len(demand) <= total:
        assert sum(shares.values()) == min(total, sum(demand.values()))
    # Nobody who wants more has less, but for what cannot be divided, than anybody else.
    short = [shares[tenant] for tenant in demand if shares[tenant] < demand[tenant]]
    assert not short or max(shares.values()) - min(short) <= 1


@given(st.integers(1, 64), st.lists(st.integers(0, 7), max_size=400))
def test_the_queue_stays_within_its_bound_whoever_asks(capacity, order):
    queued: dict[str, int] = {}
    for tenant in map(str, order):
        if sum(queued.values()) < capacity or may_queue(capacity, queued, tenant, 1):
            queued[tenant] = queued.get(tenant, 0) + 1
    tenants = len(queued)
    assert sum(queued.values()) <= capacity * sum(1 / n for n in range(1, tenants + 1)) + tenants


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def alone(tiny_dir: Path) -> list[tuple[int, ...]]:
    with Engine(load_base(tiny_dir), kernel="torch") as engine:
        return [engine.run([asking("them", first, LONG)])[0].token_ids for first in range(20, 26)]


def test_a_short_call_does_not_wait_for_anothers_long_ones(tiny_dir, alone):
    """Six long generations of one tenant have both rows and the queue; those that give up their row lose no word."""
    with Engine(load_base(tiny_dir), kernel="torch", max_rows=2) as engine:
        long = [engine.submit(asking("them", first, LONG)) for first in range(20, 26)]
        next(iter(long[0]))  # they have begun
        short = engine.submit(asking("us", 30, 3))
        assert len(short.result(20).token_ids) == 3
        assert not any(stream.finished for stream in long)
        assert [stream.result(60).token_ids for stream in long] == alone


def test_a_full_queue_takes_the_tenants_that_have_less_than_their_part(tiny_dir):
    with Engine(load_base(tiny_dir), kernel="torch", max_rows=1, max_waiting=4) as engine:
        running = engine.submit(asking("them", 20, 400))
        next(iter(running))
        for first in range(21, 25):
            engine.submit(asking("them", first, 400))
        with pytest.raises(BusyError):
            engine.submit(asking("them", 25, 400))
        ours = engine.submit(asking("us", 30, 2))
        with pytest.raises(BusyError):
            engine.submit(asking("them", 25, 400))
        assert len(ours.result(20).token_ids) == 2
