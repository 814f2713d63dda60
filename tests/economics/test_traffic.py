"""Traffic: lengths as they were written, distributions as textbooks have them, and refusals."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import UsageError
from bedplate.economics.serving.simulation import TokenLengths, Traffic, parse_lengths, percentile

SINGLE_TOKEN = parse_lengths("1", "it")


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_lengths_are_read_as_they_are_written(low: int, increment: int) -> None:
    assert parse_lengths(f"{low}", "it") == TokenLengths("fixed", low, low)
    assert parse_lengths(f" {low} - {low + increment} ", "it") == TokenLengths("uniform", low, low + increment)
    assert parse_lengths(f"{low}~{low + increment + 1}", "it") == TokenLengths("lognormal", low, low + increment + 1)
    assert parse_lengths(f"{low}k-{low}M", "it") == TokenLengths("uniform", low * 1000, low * 1_000_000)
    for text in (f"{low}", f"{low}-{low + increment}", f"{low}~{low + increment + 1}"):
        assert parse_lengths(str(parse_lengths(text, "it")), "it") == parse_lengths(text, "it")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "write 300"),
        ("-5", "write 300"),
        ("1.5", "write 300"),
        ("nan", "write 300"),
        ("1e400", "write 300"),
        ("1-2-3", "write 300"),
        ("0", "at least 1 token"),
        ("9-3", "must not be below the first"),
        ("9~9", "for one length write 9"),
        ("@/no/such/file", "/no/such/file cannot be read"),
    ],
)
def test_what_is_no_length_is_refused_by_its_option(text: str, part: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_lengths(text, "--prompt-tokens")
    assert part in str(error.value)
    assert "--prompt-tokens" in str(error.value)


def test_listed_lengths_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "lengths.txt"
    file.write_text("10\n\n30\n30\n")
    lengths = parse_lengths(f"@{file}", "it")
    assert (lengths.distribution, lengths.low, lengths.high, lengths.values) == ("listed", 10, 30, (10, 30, 30))
    assert lengths.mean == pytest.approx(70 / 3)
    drawn = [lengths.draw(random.Random(seed)) for seed in range(300)]
    assert set(drawn) == {10, 30}
    for wrong in ("10\nx\n", "10\n0\n", ""):
        file.write_text(wrong)
        with pytest.raises(UsageError):
            parse_lengths(f"@{file}", "it")


@pytest.mark.parametrize("text", ["120", "100-500", "250~900"])
def test_drawn_lengths_have_the_mean_and_the_percentiles_that_were_asked(text: str) -> None:
    lengths, generator = parse_lengths(text, "it"), random.Random(1)
    drawn = [lengths.draw(generator) for _ in range(20_000)]
    assert statistics.fmean(drawn) == pytest.approx(lengths.mean, rel=0.02)
    if lengths.distribution == "lognormal":
        assert np.percentile(drawn, 50) == pytest.approx(250, rel=0.03)
        assert np.percentile(drawn, 95) == pytest.approx(900, rel=0.04)


def test_calls_are_a_poisson_process() -> None:
    calls = Traffic(SINGLE_TOKEN, SINGLE_TOKEN, skins=4).calls(5.0, 20_000, seed=3)
    gaps = np.diff([0.0, *(call.at for call in calls)])
    assert gaps.mean() == pytest.approx(1 / 5, rel=0.02)
    assert gaps.std() == pytest.approx(1 / 5, rel=0.03)  # exponential: as large as the mean
    assert np.bincount([call.skin for call in calls]) / len(calls) == pytest.approx(np.full(4, 0.25), abs=0.02)


def test_one_seed_gives_the_same_calls_at_every_rate() -> None:
    traffic = Traffic(parse_lengths("10-500", "it"), parse_lengths("5~50", "it"), skin_tokens=7)
    slow, fast = traffic.calls(1.0, 50, seed=2), traffic.calls(4.0, 50, seed=2)
    for slow_call, fast_call in zip(slow, fast, strict=True):
        assert slow_call.at == pytest.approx(4 * fast_call.at)
        assert (slow_call.prompt_tokens, slow_call.cached_tokens, slow_call.output_tokens) == (
            fast_call.prompt_tokens,
            7,
            fast_call.output_tokens,
        )
    assert traffic.calls(1.0, 50, seed=4) != slow


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_cannot_be_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match="calls a second"):
        Traffic(SINGLE_TOKEN, SINGLE_TOKEN).calls(rate, 1)


def test_traffic_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 0"):
        Traffic(SINGLE_TOKEN, SINGLE_TOKEN, skin_tokens=-1)
    with pytest.raises(UsageError, match="at least 1"):
        Traffic(SINGLE_TOKEN, SINGLE_TOKEN, skins=0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 1))
def test_percentiles_are_numpys(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(float(np.percentile(values, 100 * share)), rel=1e-9, abs=1e-6)


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError):
        percentile([], 0.5)
