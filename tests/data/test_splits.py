"""No leak, no row lost, whole groups, labels in proportion, the same on every run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bedplate.core.errors import DataError, UsageError
from bedplate.data.splits import (
    Assigned,
    SplitRecord,
    check_leaks,
    deduplicate,
    normalise,
    row_hash,
    split,
    split_hash,
    subsample,
)

FRACTIONS = {"train": 0.6, "valid": 0.2, "test": 0.2}


def record(text: str, target: str, group: str, name: str = "r") -> SplitRecord:
    return SplitRecord(name, row_hash({"text": text}), target, group, target)


rows = st.lists(
    st.builds(
        record,
        st.text("abAB \u00e9\u00c9\ufb01\u0130ß", min_size=1, max_size=4),
        st.sampled_from(["yes", "no", "maybe"]),
        st.sampled_from([f"g{i}" for i in range(12)]),
        st.uuids().map(str),
    ),
    max_size=60,
)


@given(st.text())
@settings(max_examples=80, deadline=None)
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_what_counts_as_the_same_text() -> None:
    assert normalise("  Ｆｉｎｅ\tDAY\n") == normalise("fine day") == "fine day"
    assert normalise("Straße") == normalise("STRASSE")
    assert row_hash({"a": "x", "b": "y"}) == row_hash({"b": " Y", "a": "X"})
    assert row_hash({"a": "x", "b": "y"}) != row_hash({"a": "y", "b": "x"})
    assert row_hash({"a": "good"}) != row_hash({"a": "goo d"})


@given(rows)
@settings(max_examples=40, deadline=None)
def test_every_row_is_accounted_for(records: list[SplitRecord]) -> None:
    result = deduplicate(records)
    assert len(result.records) + result.duplicates + result.contradictory == len(records)
    assert len({r.row_hash for r in result.records}) == len(result.records)
    targets: dict[str, set[str]] = {}
    for r in records:
        targets.setdefault(r.row_hash, set()).add(r.target)
    assert {r.row_hash for r in result.records} == {h for h, t in targets.items() if len(t) == 1}
    assert len(result.contradictions) == sum(len(t) > 1 for t in targets.values())
    parts = split(result.records, FRACTIONS, 0)
    assert Counter(r for part in parts.values() for r in part) == Counter(result.records)


@given(rows, st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_no_leak_ever(records: list[SplitRecord], seed: int) -> None:
    parts = split(deduplicate(records).records, FRACTIONS, seed)
    groups = {name: {r.group for r in part} for name, part in parts.items()}
    texts = {name: {r.row_hash for r in part} for name, part in parts.items()}
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not groups[a] & groups[b]
        assert not texts[a] & texts[b]
    check_leaks(parts)


@given(rows, st.randoms(use_true_random=False), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_rows_does_not_matter(records: list[SplitRecord], random, seed: int) -> None:
    shuffled = list(records)
    random.shuffle(shuffled)
    first, second = (split(deduplicate(r).records, FRACTIONS, seed) for r in (records, shuffled))
    assert first == second
    assert {k: split_hash(v) for k, v in first.items()} == {k: split_hash(v[::-1]) for k, v in second.items()}
    assert subsample(records, 20, seed) == subsample(shuffled, 20, seed)


@given(st.lists(st.tuples(st.integers(1, 8), st.floats(0, 1)), min_size=40, max_size=120), st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_sizes_and_labels_come_out_in_proportion(groups: list[tuple[int, float]], seed: int) -> None:
    records = [
        record(f"{g} {i}", "yes" if i < round(share * size) else "no", f"g{g}")
        for g, (size, share) in enumerate(groups)
        for i in range(size)
    ]
    yes = sum(r.target == "yes" for r in records)
    for name, part in split(records, FRACTIONS, seed).items():
        # within one largest group of the wanted count, of all rows and of each label
        assert abs(len(part) - FRACTIONS[name] * len(records)) <= 8
        assert abs(sum(r.target == "yes" for r in part) - FRACTIONS[name] * yes) <= 8


SPLIT_ELSEWHERE = """
from bedplate.data.splits import SplitRecord, row_hash, split, split_hash
def record(i):
    return SplitRecord(str(i), row_hash({"text": f"text {i}"}), "yn"[i % 2], f"g{i // 3}", "yn"[i % 2])
records = [record(i) for i in range(60)]
print({name: split_hash(part) for name, part in split(records, {"train": 0.6, "valid": 0.2, "test": 0.2}, 0).items()})
"""


def test_the_split_does_not_depend_on_the_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SPLIT_ELSEWHERE],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(outputs) == 1


def test_the_seed_changes_the_split() -> None:
    records = [record(f"text {i}", "yn"[i % 2], f"g{i // 3}", str(i)) for i in range(60)]
    hashes = {split_hash(split(records, FRACTIONS, seed)["test"]) for seed in range(10)}
    assert len(hashes) > 5


def test_take_keeps_whole_groups_within_the_limit() -> None:
    records = [record(f"{g} {i}", "y", f"g{g}") for g in range(20) for i in range(3)]
    subset = subsample(records, 20, 0)
    assert 18 <= len(subset) <= 20
    assert set(Counter(r.group for r in subset).values()) == {3}


def test_leaks_are_named() -> None:
    a, b = record("Same  text", "y", "g1", "row 1"), record("same text", "n", "g2", "row 9")
    with pytest.raises(DataError, match=r"the same text stands in train \(row row 1\) and in test \(row row 9\)"):
        check_leaks({"train": [a], "test": [b]})
    c = record("other", "n", "g1", "row 3")
    with pytest.raises(DataError, match="the group 'g1' stands in train"):
        check_leaks({"train": [a], "test": [c]})
    check_leaks({"train": [a], "test": [c]}, groups=False)
    check_leaks({"train": [a, c], "test": []})


@pytest.mark.parametrize("fractions", [{"a": 0.5, "b": 0.6}, {"a": 1.0, "b": 0.0}, {"a": 1.5, "b": -0.5}])
def test_fractions_must_sum_to_one(fractions: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="sum to 1"):
        split([], fractions, 0)


@given(rows, st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_what_is_in_a_split_already_stays_there(given_rows: list[SplitRecord], seed: int) -> None:
    records = deduplicate(given_rows).records
    first = records[::2]
    before = split(first, FRACTIONS, 0)
    assigned = Assigned(
        {r.row_hash: name for name, rows in before.items() for r in rows},
        {r.group: name for name, rows in before.items() for r in rows},
    )
    after = split(records, FRACTIONS, seed, assigned)
    assert sorted(r.row_hash for rows in after.values() for r in rows) == [r.row_hash for r in records]
    check_leaks(after)
    for name, rows in before.items():
        assert {r.row_hash for r in rows} <= {r.row_hash for r in after[name]}
    assert split(records, FRACTIONS, seed, Assigned({}, {})) == split(records, FRACTIONS, seed)


def test_a_group_cannot_be_in_two_splits_already() -> None:
    train_record, two = record("a", "yes", "g"), record("b", "no", "g")
    assigned = Assigned({train_record.row_hash: "train", two.row_hash: "test"}, {})
    with pytest.raises(DataError, match="'g' holds rows that are in test already and rows that are in train"):
        split([train_record, two], FRACTIONS, 0, assigned)


def test_every_group_has_the_same_chance_of_a_split() -> None:
    """Sizes as c, c/2, c/3, …: the largest are drawn, with the chance of the split's share, and not sent to train."""
    sizes = [max(1, round(140 / rank)) for rank in range(1, 41)]
    records = [record(f"{g} {i}", "yn"[i % 2], f"g{g}") for g, size in enumerate(sizes) for i in range(size)]
    runs, largest = 240, [Counter[str]() for _ in range(4)]
    for seed in range(runs):
        for name, part in split(records, FRACTIONS, seed).items():
            assert abs(len(part) - FRACTIONS[name] * len(records)) <= sizes[0] / 2
            for group in {r.group for r in part} & {f"g{g}" for g in range(4)}:
                largest[int(group[1:])][name] += 1
    for counts in largest:
        for name, fraction in FRACTIONS.items():
            assert stats.binomtest(counts[name], runs, fraction).pvalue > 1e-4


@given(rows, st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_train_has_a_row_of_every_label(records: list[SplitRecord], seed: int) -> None:
    records = list(deduplicate(records).records)
    labels = sorted({record.stratum for record in records})
    fractions = {"train": 0.3, "valid": 0.2, "test": 0.5}  # what a few rows get, so that test can show something
    parts = split(records, fractions, seed, labels=labels)
    assert {record.stratum for record in parts["train"]} == {*labels}
    assert sorted(r.row_hash for part in parts.values() for r in part) == sorted(r.row_hash for r in records)
    check_leaks(parts)
    drawn = split(records, fractions, seed)
    if {record.stratum for record in drawn["train"]} == {*labels}:  # what had them before is as it was
        assert parts == drawn


def test_a_group_that_is_in_a_split_already_stays_there() -> None:
    records = [record("a", "yes", "g1"), record("b", "no", "g2"), record("c", "yes", "g3")]
    assigned = Assigned({}, {"g2": "test"})
    assert [r.group for r in split(records, FRACTIONS, 0, assigned, ["yes", "no"])["test"]].count("g2") == 1
