"""Groups by several columns, against the components that scipy finds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from bedplate.data.linked import linked

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
    wanted = [component[place[a]] for a, _ in values]
    found = linked(values)
    assert len({*zip(found, wanted, strict=True)}) == len(set(wanted)) == len(set(found))
    assert linked(values[::-1]) == found[::-1]


def test_a_row_with_one_value_is_linked_by_that() -> None:
    assert linked([["user=1"], ["user=1", "item=2"], ["item=2"], ["item=3"]]) == ["item=2"] * 3 + ["item=3"]
