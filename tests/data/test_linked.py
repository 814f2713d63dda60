"""Groups by several columns, against the components that scipy finds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from bedplate.core.errors import DataError
from bedplate.data.splits import linked, links_of

rows = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda pair: [f"user={pair[0]}", f"item={pair[1]}"]),
    min_size=1,
    max_size=30,
)


@given(rows)
@settings(max_examples=100, deadline=None)
def test_groups_are_the_connected_components(values: list[list[str]]) -> None:
    names = sorted({value for row in values for value in row})
    place = {name: number for number, name in enumerate(names)}
    edges = [(place[a], place[b]) for a, b in values]
    graph = coo_matrix(([1] * len(edges), tuple(zip(*edges, strict=True))), shape=(len(names), len(names)))
    _, component = connected_components(graph, directed=False)
    expected = [component[place[a]] for a, _ in values]
    groups = linked(values)
    assert len({*zip(groups, expected, strict=True)}) == len(set(expected)) == len(set(groups))
    assert linked(values[::-1]) == groups[::-1]


def test_a_row_with_one_value_is_linked_by_that() -> None:
    assert linked([["user=1"], ["user=1", "item=2"], ["item=2"], ["item=3"]]) == ["item=2"] * 3 + ["item=3"]


def test_a_blank_value_links_a_row_to_no_other() -> None:
    row = {"user": 17, "item": " ", "shop": None, "day": 1.5}
    assert links_of(row, ["user", "item", "shop"], "here") == ("user=17",)
    for columns, wrong in (
        (["item"], "here: the group .item. is ' '; every row needs one"),
        (["item", "shop"], "none of the groups .item, shop. has a value"),
        (["user", "day"], "here: the group .day. is 1.5; it must be a text or a whole number"),
    ):
        with pytest.raises(DataError, match=wrong):
            links_of(row, columns, "here")
