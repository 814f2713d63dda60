"""Mixtures: any row asked for alone, shares held, caps kept, names checked; and the shuffle that is computed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import ConfigError, DataError
from bedplate.data.loader import Permutation
from bedplate.data.mixture import BLOCK, Mixture, MixtureConfig, MixtureStage

ROWS = {"web": 1000, "code": 300, "books": 50}


def sources(mixture: Mixture, count: int) -> np.ndarray:
    return np.array([mixture.row(i).source for i in range(count)])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 100))
def test_a_permutation_is_one(n: int, seed: int) -> None:
    order = Permutation(n, seed)(np.arange(n))
    assert np.array_equal(np.sort(order), np.arange(n))
    assert int(Permutation(n, seed)(n - 1)) == order[-1]


def test_permutations_are_shuffled_and_differ_by_name() -> None:
    n = 4000
    orders = np.array([Permutation(n, name)(np.arange(n)) for name in range(40)])
    correlations = np.corrcoef(np.vstack([np.arange(n), orders]))
    assert np.abs(correlations[np.triu_indices(41, 1)]).max() < 5 / np.sqrt(n)
    assert np.abs((orders[:, 1:] > orders[:, :-1]).mean(axis=1) - 0.5).max() < 5 * np.sqrt(1 / 12 / n)
    with pytest.raises(IndexError):
        Permutation(5, 0)(5)
    large = Permutation(10**12, 0)(np.arange(1000))
    assert len(np.unique(large)) == 1000
    assert large.max() > 10**11


def test_each_row_is_answered_alone() -> None:
    config = MixtureConfig(weights={"web": 5, "code": 3, "books": 2})
    forward, backward = Mixture(config, ROWS, 5000, 7), Mixture(config, ROWS, 5000, 7)
    rows = [forward.row(i) for i in range(5000)]
    assert rows == [backward.row(i) for i in reversed(range(5000))][::-1]
    for number in range(3):
        assert [row.ordinal for row in rows if row.source == number] == list(
            range(sum(r.source == number for r in rows))
        )
    for index in (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 4999, 5000):
        counted = np.bincount([row.source for row in rows[:index]], minlength=3)
        assert list(forward.drawn(index).values()) == counted.tolist()
    assert rows != [Mixture(config, ROWS, 5000, 8).row(i) for i in range(5000)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0.0, 10), min_size=2, max_size=6).filter(lambda w: sum(w) > 0.1),
    st.integers(1, 12_000),
    st.one_of(st.none(), st.floats(1, 20)),
)
def test_shares_are_held_within_a_row_of_each_block(weights: list[float], total: int, epochs: float | None) -> None:
    rows = {f"s{i}": 400 + 100 * i for i in range(len(weights))}
    config = MixtureConfig(weights={f"s{i}": w for i, w in enumerate(weights)}, epochs=epochs)
    possible = sum(int((epochs or 1e9) * n) for n, w in zip(rows.values(), weights, strict=True) if w > 0)
    if possible < total:
        with pytest.raises(DataError, match="the epochs allowed give"):
            Mixture(config, rows, total, 0)
        return
    drawn = Mixture(config, rows, total, 0).drawn(total)
    assert sum(drawn.values()) == total
    for (name, count), weight in zip(drawn.items(), weights, strict=True):
        if weight == 0:
            assert count == 0
        if epochs is None:
            assert abs(count - total * weight / sum(weights)) <= 1 + 1e-6
        else:
            assert count <= int(epochs * rows[name])


def test_temperature_and_default_weights() -> None:
    tokens = {"web": 1_000_000.0, "code": 10_000.0, "books": 100.0}
    plain = Mixture(MixtureConfig(), ROWS, 10, 0, tokens).weights_at(0)
    warm = Mixture(MixtureConfig(temperature=2), ROWS, 10, 0, tokens).weights_at(0)
    assert plain["web"] == pytest.approx(1_000_000 / 1_010_100)
    assert warm["web"] / warm["books"] == pytest.approx(100)


def test_a_capped_source_leaves_its_share_to_the_others() -> None:
    config = MixtureConfig(weights={"web": 1, "code": 1, "books": 2}, epochs={"books": 4})
    mixture = Mixture(config, ROWS, 4000, 0)
    drawn = mixture.drawn(4000)
    assert drawn["books"] == 200
    assert abs(drawn["web"] - drawn["code"]) <= 2
    assert 2 not in sources(mixture, 4000)[BLOCK:]


@pytest.mark.parametrize("blend", ["steps", "linear"])
def test_a_schedule(blend: str) -> None:
    first, last = {"web": 1.0, "code": 0.0, "books": 0.0}, {"web": 0.0, "code": 1.0, "books": 0.0}
    config = MixtureConfig(weights=first, stages=(MixtureStage(at=0.5, weights=last),), blend=blend)  # type: ignore[arg-type]
    mixture = Mixture(config, ROWS, 20 * BLOCK, 0)
    half = mixture.drawn(10 * BLOCK)
    assert half["web"] / (10 * BLOCK) == pytest.approx(1.0 if blend == "steps" else 0.5, abs=0.001)
    assert mixture.drawn(20 * BLOCK)["code"] - half["code"] == 10 * BLOCK
    assert mixture.weights_at(0.25)["code"] == (0.5 if blend == "linear" else 0)


def test_mistakes_are_named() -> None:
    def build_mixture(rows: dict[str, int] = ROWS, total: int = 10, **settings: object) -> Mixture:
        return Mixture(MixtureConfig(**settings), rows, total, 0)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="no source 'wab'; did you mean 'web'"):
        build_mixture(weights={"wab": 1})
    with pytest.raises(ConfigError, match="no weight for code, books; 0 leaves a source out"):
        build_mixture(weights={"web": 1})
    with pytest.raises(ConfigError, match="no source has a weight above 0"):
        build_mixture(weights=dict.fromkeys(ROWS, 0.0))
    with pytest.raises(ConfigError, match="epochs: there is no source 'x'"):
        build_mixture(epochs={"x": 1})
    with pytest.raises(DataError, match="'books' has a weight, but no rows"):
        build_mixture({**ROWS, "books": 0}, weights=dict.fromkeys(ROWS, 1.0))
    with pytest.raises(ValueError, match="each must begin after the one before"):
        build_mixture(stages=(MixtureStage(at=0.5, weights=ROWS), MixtureStage(at=0.2, weights=ROWS)))
    with pytest.raises(IndexError):
        build_mixture().row(10)
