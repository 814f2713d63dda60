"""Penalties and truncation against transformers' logits processors; draws against the distribution they come from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tests.inference.engine.row_sampler import acceptable, draw, filtered, softmax
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bedplate.inference.engine import sampler
from bedplate.inference.engine.grammar import Grammars, unpack
from bedplate.inference.engine.requests import Grammar, Sampling
from bedplate.inference.engine.row_state import Occurrences, RowState
from bedplate.inference.engine.sampler import drawn, drawn_at_once, penalise, sample, truncate, unpack_on
from bedplate.inference.engine.token_selection import chosen_tokens
from bedplate.text.tokenizer import Tokenizer

SAMPLINGS = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.3, 2.0),
        "top_k": st.sampled_from([0, 1, 3, 40, 256, 300, 1000]),
        "top_p": st.sampled_from([0.1, 0.5, 0.9, 0.99, 0.99999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.001, 0.05, 0.5]),
    }
)


def _warped(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What transformers leaves of one row's logits [1, V], as probabilities [V]."""
    warped: Any = TemperatureLogitsWarper(sampling.temperature)(None, logits.clone())  # type: ignore[arg-type]
    if sampling.top_k:
        warped = TopKLogitsWarper(sampling.top_k)(None, warped)  # type: ignore[arg-type]
    if sampling.top_p < 1:
        warped = TopPLogitsWarper(sampling.top_p)(None, warped)  # type: ignore[arg-type]
    if sampling.min_p:
        warped = MinPLogitsWarper(sampling.min_p)(None, warped)  # type: ignore[arg-type]
    return warped.softmax(-1)[0]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    row_options=st.lists(SAMPLINGS, min_size=1, max_size=4),
    vocabulary=st.sampled_from([17, 700]),
)
def test_truncation_equals_transformers(seed: int, row_options: list[dict[str, Any]], vocabulary: int) -> None:
    rows = [Sampling(**options) for options in row_options]
    logits = torch.randn(len(rows), vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
    scaled = logits / torch.tensor([row.temperature for row in rows])[:, None]
    values, order = scaled.softmax(-1).sort(descending=True, stable=True)
    truncated = truncate(values, rows)
    for i, sampling in enumerate(rows):
        theirs = _warped(logits[i : i + 1], sampling)
        ours = torch.zeros(vocabulary).index_copy(0, order[i], truncated[i] / truncated[i].sum())
        differing = ((ours > 0) != (theirs > 0)).sum()
        # A token exactly at a threshold may fall on either side by rounding; no more than that one.
        assert int(differing) <= 1
        if differing == 0:
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.5, 2.0, 6.0]),
    vocabulary=st.sampled_from([17, 260, 700, 5003]),
    row_options=st.lists(
        st.builds(
            dict,
            greedy=st.booleans(),
            filters=SAMPLINGS,
            penalties=st.fixed_dictionaries(
                {
                    "repetition_penalty": st.sampled_from([1.0, 1.3, 0.8]),
                    "presence_penalty": st.sampled_from([0.0, 0.7, -0.4]),
                    "frequency_penalty": st.sampled_from([0.0, 0.3]),
                    "logit_bias": st.sampled_from([(), ((3, 2.0), (5, -4.0)), ((0, 100.0),)]),
                    "min_tokens": st.sampled_from([0, 50]),
                }
            ),
            output=st.lists(st.integers(0, 16), max_size=6),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_all_rows_at_once_follow_the_definitions_in_float64(
    seed: int, spread: float, vocabulary: int, row_options: list[dict[str, Any]]
) -> None:
    logits = torch.randn(len(row_options), vocabulary, generator=torch.Generator().manual_seed(seed)) * spread
    before = logits.clone()

    def states() -> list[RowState]:
        return [
            RowState(
                Sampling(seed=seed + i, **options["penalties"], **({} if options["greedy"] else options["filters"])),
                (1, 4, 4),
                list(options["output"]),
                end_ids=frozenset({2, 7}),
            )
            for i, options in enumerate(row_options)
        ]

    together = states()
    for _ in range(3):
        fitting = [acceptable(logits_V, row) for logits_V, row in zip(logits, together, strict=True)]
        chosen = sample(logits, together).tolist()
        assert torch.equal(logits, before)
        for token, row, allowed in zip(chosen, together, fitting, strict=True):
            assert token in allowed
            row.append(token)
    # Whoever else is in the batch, a row's tokens are its own.
    alone = states()[-1]
    for token in together[-1].output[-3:]:
        assert sample(logits[-1:], [alone]).tolist() == [token]
        alone.append(token)


def test_rows_under_a_grammar_draw_beside_free_ones(tiny_dir: Path) -> None:
    tokenizer = Tokenizer.from_directory(tiny_dir)
    grammars = Grammars(tokenizer, tokenizer.vocab_size, [0])
    logits = torch.randn(5, tokenizer.vocab_size, generator=torch.Generator().manual_seed(2)) * 2

    def states() -> list[RowState]:
        draws = [Sampling(temperature=1.0, seed=i, top_p=p) for i, p in enumerate((1.0, 0.9, 1.0))]
        rows = [RowState(sampling, (1,), end_ids=frozenset({0})) for sampling in (*draws, Sampling(), Sampling())]
        for i, source in ((1, "[0-9]+"), (2, "[a-c]x"), (4, "[a-z]{3}")):
            rows[i].matcher = grammars.matcher(Grammar("regex", source))
        return rows

    together = states()
    for _ in range(2):
        fitting = [acceptable(logits_V, row) for logits_V, row in zip(logits, together, strict=True)]
        for token, row, allowed in zip(sample(logits, together).tolist(), together, fitting, strict=True):
            assert token in allowed
            row.append(token)


class _Operations(TorchDispatchMode):
    """Counts what is asked of a device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return self.names.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_back_from_a_device_and_more_rows_need_no_more_operations() -> None:
    """Tensors of the meta device have no numbers that could be read."""
    greedy = {"min_tokens": 3, "logit_bias": ((3, 1.0),)}
    drawing = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "presence_penalty": 0.5}
    rows = [RowState(Sampling(**options), (1, 2), [3], end_ids=frozenset({0})) for options in (greedy, drawing, greedy)]
    counts: dict[int, int] = {}
    for batch in (rows, rows[:1], rows[1:2], rows * 8):
        with _Operations() as operations:
            chosen = sample(torch.empty(len(batch), 700, device="meta"), batch)
        assert (chosen.is_meta, tuple(chosen.shape), chosen.dtype) == (True, (len(batch),), torch.int64)
        counts[len(batch)] = operations.count
    assert counts[24] <= counts[3] <= 150
    free = [RowState(Sampling(temperature=0.7), ()) for _ in range(16)]
    with _Operations() as operations:
        sample(torch.empty(16, 512, device="meta"), free)
    assert operations.count <= 40
    assert not {"sort", "topk"} & operations.names.keys()  # who cuts nothing needs no order
    with _Operations() as operations:
        sample(torch.empty(16, 512, device="meta"), [RowState(Sampling(), ())] * 16)
    assert operations.count <= 2


def test_drawing_on_a_cpu_computes_nothing_with_torch() -> None:
    """Each of its operations releases the GIL, and has to wait for it beside a thread that computes in Python."""
    options = [
        {"temperature": 1.0},
        {"temperature": 1.0, "logprobs": 5},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1},
        {"temperature": 1.0, "top_p": 0.999999, "repetition_penalty": 1.2, "logit_bias": ((3, 1.0),)},
        {"frequency_penalty": 0.5, "min_tokens": 2},
    ]
    states = [RowState(Sampling(seed=1, **each), (1, 2), [3], end_ids=frozenset({0})) for each in options]
    logits = torch.randn(len(states), 1000, generator=torch.Generator().manual_seed(0))
    sums = logits.logsumexp(-1).tolist()
    for batch in (slice(None), *(slice(i, i + 1) for i in range(len(states)))):
        with _Operations() as operations:
            choices = chosen_tokens(logits[batch], states[batch], sums[batch], sample)
        assert len(choices) == len(states[batch])
        assert operations.names.keys() <= {
            "slice",
            "detach",
            "resolve_conj",
            "resolve_neg",
            "lift_fresh",
        }


@pytest.mark.parametrize("penalty", [1e-40, 1e-45, 100.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_a_penalty_makes_infinite_warn_nobody(penalty: float, temperature: float) -> None:
    logits = torch.randn(1, 600, generator=torch.Generator().manual_seed(0)) * 50
    row = RowState(Sampling(temperature=temperature, repetition_penalty=penalty), (1, 2, 3))
    assert 0 <= int(sample(logits, [row])) < 600


def test_the_likeliest_are_reported_as_torch_orders_them() -> None:
    logits = torch.randn(3, 700, generator=torch.Generator().manual_seed(0))
    logits[2, [3, 500]] = 9.0  # of equal ones the first
    states = [RowState(Sampling(logprobs=count), ()) for count in (0, 1, 20)]
    choices = chosen_tokens(logits, states, logits.logsumexp(-1).tolist(), sample)
    logprobs = logits.double().log_softmax(-1)
    for (token, logprob, _, alternatives), expected, state in zip(choices, logprobs, states, strict=True):
        values, ids = expected.sort(descending=True, stable=True)
        count = state.sampling.logprobs or 0
        assert [index for index, _ in alternatives] == ids[:count].tolist()
        assert [value for _, value in alternatives] == pytest.approx(values[:count].tolist(), abs=1e-5)
        assert logprob == pytest.approx(float(expected[token]), abs=1e-5)


@pytest.mark.parametrize("vocabulary", [60, 256, 3001])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_every_number_draws_the_token_of_its_share(vocabulary: int, spread: float) -> None:
    """Over the whole row at once; flat rows, whose kept mass lies far beyond the likeliest few, above all."""
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(3)) * spread
    probabilities = logits.softmax(-1)
    count = 500
    uniform = (torch.arange(count, dtype=torch.float64) + 0.4321) / count  # none at the very end of an equal share
    for extra in ({}, {"top_k": 7}, {"top_p": 0.9}, {"min_p": 0.2}, {"top_k": 300, "top_p": 0.8, "min_p": 0.01}):
        sampling = Sampling(temperature=1.0, **extra)
        truncated = filtered(softmax(logits.double().numpy()), sampling)
        expected = np.array([draw(truncated, float(number)) for number in uniform])
        shares = probabilities.expand(count, -1)
        tokens = drawn(shares, [sampling] * count, uniform)
        assert torch.equal(drawn_at_once(shares, [sampling] * count, uniform), tokens)  # as on an accelerator
        # A number at the very end of a share may be the next token's by rounding.
        assert int((tokens.numpy() != expected).sum()) <= 1
        assert set(tokens.tolist()) <= set(truncated.nonzero()[0].tolist())


def test_of_equal_tokens_the_first_stay() -> None:
    sampling = Sampling(temperature=1.0, top_k=300)
    tokens = drawn(torch.full((1000, 1000), 1e-3), [sampling] * 1000, torch.arange(1000, dtype=torch.float64) / 1000)
    assert set(tokens.tolist()) == set(range(300))


def test_masks_are_unpacked_where_they_are_as_on_the_host() -> None:
    words = np.random.default_rng(0).integers(-(2**31), 2**31, (3, 5), dtype=np.int64).astype(np.int32)
    for vocabulary in (160, 147):
        assert torch.equal(unpack_on(torch.from_numpy(words), vocabulary), torch.from_numpy(unpack(words, vocabulary)))


@given(st.lists(st.integers(0, 30), max_size=30), st.lists(st.integers(0, 60), max_size=60))
def test_occurrences_are_counted_as_they_come(before: list[int], after: list[int]) -> None:
    row = RowState(Sampling(repetition_penalty=1.2), before)
    for token in after:
        row.append(token)
        occurrences = row.occurrences()
    occurrences = row.occurrences()
    counted = dict(zip(occurrences.ids.tolist(), occurrences.times.tolist(), strict=True))
    assert len(occurrences.ids) == len(counted) == len({*before, *after})
    assert counted == {token: Counter(after)[token] for token in {*before, *after}}
    assert Occurrences(()).ids.size == 0


def test_a_flat_nucleus_is_a_share_of_all_that_there_is() -> None:
    """Where the likeliest few hold hardly more than top_p, it is still a share of the whole, not of theirs."""
    values = torch.softmax(torch.arange(5000, 0, -1) / 1000.0, -1)[None]
    head = values[:, :2400]
    sampling = Sampling(temperature=1.0, top_p=0.8)
    assert 0.8 < float(head.sum()) < 0.95
    whole = truncate(values, [sampling])[:, :2400]
    assert torch.equal(truncate(head, [sampling], values.sum(-1, dtype=torch.float64)), whole)


@pytest.mark.parametrize("vocabulary", [50, 2000])
@pytest.mark.parametrize(
    "extra", [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 400, "top_p": 0.9}, {"top_p": 0.9999}]
)
def test_draws_follow_the_distribution(vocabulary: int, extra: dict[str, Any]) -> None:
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(1)) * 2
    rows = [RowState(Sampling(temperature=0.8, seed=seed, **extra), ()) for seed in range(64)]
    drawn_ = torch.cat([sample(logits.expand(len(rows), -1), rows) for _ in range(100)])
    truncated = filtered(softmax(logits[0].double().numpy() / 0.8), rows[0].sampling)
    expected = len(drawn_) * truncated / truncated.sum()
    frequency = torch.bincount(drawn_, minlength=vocabulary).numpy()
    assert (frequency[truncated == 0] == 0).all()
    # Rare tokens are counted together. The seeds are fixed: a right distribution passes for ever.
    often = expected >= 8
    bins = [(*np.append(counts[often], counts[~often].sum()),) for counts in (frequency, expected)]
    bins = [bin_counts[:-1] if bins[1][-1] == 0 else bin_counts for bin_counts in bins]
    assert chisquare(*bins).pvalue > 1e-3


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), rate=st.floats(0.5, 2.0))
def test_repetition_penalty_equals_transformers(seed: int, rate: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 30, generator=generator)
    tokens = torch.randint(0, 30, (1, 12), generator=generator)
    theirs = RepetitionPenaltyLogitsProcessor(rate)(tokens, logits.clone())
    row = RowState(Sampling(repetition_penalty=rate), tokens[0, :7].tolist(), tokens[0, 7:].tolist())
    torch.testing.assert_close(penalise(logits, [row]), theirs)
    free = RowState(Sampling(), tokens[0].tolist())
    assert torch.equal(penalise(logits.expand(2, -1), [free, row]), torch.cat([logits, penalise(logits, [row])]))


def test_presence_and_frequency_penalties_follow_their_definition() -> None:
    logits = torch.zeros(2, 5)
    rows = [
        RowState(Sampling(presence_penalty=0.5, frequency_penalty=0.25), (4,), [1, 1, 2]),
        RowState(Sampling(), (1,), [1]),
    ]
    expected = torch.tensor([[0.0, -1.0, -0.75, 0.0, 0.0], [0.0] * 5])
    assert torch.equal(penalise(logits, rows), expected)
    assert torch.equal(logits, torch.zeros(2, 5))


def test_greedy_and_sampling_rows_mix() -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    rows = [RowState(Sampling(), ()), RowState(Sampling(temperature=1.0, seed=5), ()), RowState(Sampling(), ())]
    chosen = sample(logits, rows)
    assert chosen[0] == logits[0].argmax()
    assert chosen[2] == logits[2].argmax()
    assert chosen[1] == sample(logits[1:2], [RowState(Sampling(temperature=1.0, seed=5), ())])[0]


def test_temperature_near_zero_is_greedy_and_one_candidate_is_certain() -> None:
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    for settings_ in ({"temperature": 1e-4}, {"temperature": 1.5, "top_k": 1}, {"temperature": 1.5, "top_p": 1e-6}):
        for seed in range(20):
            assert sample(logits, [RowState(Sampling(seed=seed, **settings_), ())])[0] == logits.argmax()


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-40, 5e-324])
def test_no_temperature_is_too_small(temperature: float) -> None:
    logits = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)) * 50
    rows = [RowState(Sampling(temperature=temperature, seed=i), ()) for i in range(2)]
    assert sample(logits, rows).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("vocabulary", [40, 1000])
def test_a_row_of_nan_spares_its_neighbours(vocabulary: int) -> None:
    logits = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(0))
    logits[1] = torch.nan
    rows = [RowState(Sampling(temperature=1.0, seed=i, top_p=0.9), ()) for i in range(3)]
    chosen = sample(logits, rows)
    assert 0 <= int(chosen[1]) < vocabulary
    alone = [sample(logits[i : i + 1], [RowState(Sampling(temperature=1.0, seed=i, top_p=0.9), ())]) for i in (0, 2)]
    assert [int(chosen[i]) for i in (0, 2)] == [int(token[0]) for token in alone]


def test_a_step_that_fails_draws_no_number_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    undisturbed, row = (RowState(Sampling(temperature=1.0, seed=3), ()) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "placed", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sample(logits, [row])
    assert [int(sample(logits, [row])[0]) for _ in range(5)] == [
        int(sample(logits, [undisturbed])[0]) for _ in range(5)
    ]


def test_bias_is_added_before_the_penalties() -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0, 0.5]])
    row = RowState(Sampling(logit_bias=((0, 3.0), (2, -2.0)), repetition_penalty=2.0), prompt=[0, 2])
    penalized = penalise(logits, [row])
    assert penalized.tolist() == [[(1 + 3) / 2, 2.0, (-1 - 2) * 2, 0.5]]
    assert logits.tolist() == [[1.0, 2.0, -1.0, 0.5]]


def test_ends_wait_for_min_tokens_as_in_transformers() -> None:
    logits = torch.randn(2, 20, generator=torch.Generator().manual_seed(4))
    ends, stops = [3, 7], (11,)
    logits[:, [3, 7, 11]] += 10
    theirs: Any = MinNewTokensLengthLogitsProcessor(0, 2, [*ends, *stops])
    row = RowState(Sampling(min_tokens=2, stop_token_ids=stops), prompt=[1], end_ids=frozenset(ends))
    free = RowState(Sampling(stop_token_ids=stops), prompt=[1], end_ids=frozenset(ends))
    for _ in range(3):
        prefix = torch.tensor([row.output])
        expected = theirs(prefix, logits[:1].clone()).argmax(-1)
        chosen = sample(logits, [row, free])
        assert chosen.tolist() == [int(expected), int(logits[1].argmax())]
        assert row.ends(int(chosen[0])) == (len(row.output) >= 2)
        row.append(int(chosen[0]))


def test_ignored_end_tokens_are_tokens_but_stop_tokens_stop() -> None:
    row = RowState(Sampling(ignore_eos=True, stop_token_ids=(5,)), prompt=[1], end_ids=frozenset({2}))
    assert not row.ends(2)
    assert row.ends(5)
