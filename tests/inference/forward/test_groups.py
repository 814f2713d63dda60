"""Spans are grouped so that what is read, padding and copies included, is little more than what they have."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.inference.forward.spans import COPY_QUERIES, GROUP_BYTES, Span, grouped

KEY_BYTES = 1024
ONE_GROUP = GROUP_BYTES / KEY_BYTES


def read(group: list[tuple[int, Span]]) -> int:
    """Keys that the group's queries read, with what copies of them cost."""
    spans = [span for _, span in group]
    queries, keys = max(span.length for span in spans), max(span.end for span in spans)
    rows = [span.row for span in spans]
    in_place = rows == list(range(rows[0], rows[0] + len(rows)))
    return len(spans) * keys * (queries + COPY_QUERIES * (not in_place))


@pytest.mark.parametrize("rows", [range(8), [0, 2, 3, 5, 7, 9, 10, 12]])
@pytest.mark.parametrize("longest", [1200, 6000])
def test_short_rows_are_not_padded_to_a_long_one(rows: list[int], longest: int) -> None:
    """A step of seven short generations beside one behind 1,200 tokens took 37 ms in place of 3: the keys of all eight
    were copied, 1,200 of each, in every layer."""
    for at in range(8):
        spans = [Span(row, longest if number == at else 20 + number, 1) for number, row in enumerate(rows)]
        groups = grouped(spans, KEY_BYTES)
        assert sum(map(read, groups)) <= 2 * (sum(span.end for span in spans) + ONE_GROUP)


def test_neighbours_of_like_lengths_are_read_together_and_in_place() -> None:
    assert len(grouped([Span(row, 800 + row, 1) for row in range(8)], KEY_BYTES)) == 1
    assert len(grouped([Span(row, 20, 1) for row in (0, 2, 5, 7)], KEY_BYTES)) == 1  # copies of so few cost little


def test_a_device_reads_more_before_it_begins_another_operation() -> None:
    spans = [Span(row, 20 if row else 2000, 1) for row in (0, 2, 5, 7)]
    assert len(grouped(spans, KEY_BYTES)) > 1
    assert len(grouped(spans, KEY_BYTES, device="cuda")) == 1


spans_drawn = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(spans_drawn, st.permutations(range(12)), st.sampled_from([16, KEY_BYTES, 64 * KEY_BYTES]), st.booleans())
def test_every_span_is_in_one_group_at_its_first_token(
    sizes: list[tuple[int, int]], rows: list[int], key_bytes: int, copies: bool
) -> None:
    spans = [Span(row, start, length) for row, (start, length) in zip(rows, sizes, strict=False)]
    begins = [0, *itertools.accumulate(span.length for span in spans)]
    groups = grouped(spans, key_bytes, copies=copies)
    assert sorted(itertools.chain(*groups), key=lambda numbered: numbered[0]) == list(zip(begins, spans, strict=False))
    apart = sum(span.end * (span.length + COPY_QUERIES * copies) for span in spans)
    if not copies:
        assert sum(map(read, groups)) <= apart + GROUP_BYTES / key_bytes * len(spans)
