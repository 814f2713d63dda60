"""The prefix tree against a plain set of prefixes; every byte accounted for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.inference.forward.radix import Key, RadixNode, RadixTree, media_tokens, salted

SIZE = 10


class Live:
    """Segments that are alive: made, and neither split nor released."""

    def __init__(self) -> None:
        self.bytes = 0


@dataclass(eq=False)
class Piece:
    """A segment that remembers which elements it stands for."""

    key: Key
    live: Live
    alive: bool = True

    def __post_init__(self) -> None:
        self.live.bytes += self.nbytes

    @property
    def nbytes(self) -> int:
        return SIZE * len(self.key)

    def split(self, at: int) -> tuple[Piece, Piece]:
        self.release()
        return Piece(self.key[:at], self.live), Piece(self.key[at:], self.live)

    def release(self) -> None:
        assert self.alive
        self.alive = False
        self.live.bytes -= self.nbytes


def cached_prefix(tree: RadixTree, namespace: str, key: Key, limit: int | None = None) -> Key:
    """The cached beginning, checked to be the key's own."""
    match = tree.match(namespace, key, len(key) if limit is None else limit)
    elements: Key = ()
    for segment, count in match.parts:
        assert isinstance(segment, Piece)
        assert segment.alive
        elements += segment.key[:count]
    assert len(elements) == match.length
    assert elements == key[: match.length]
    return elements


def insert_key(tree: RadixTree, namespace: str, key: Key, live: Live, cuts: tuple[int, ...] = ()) -> int:
    return tree.insert(namespace, key, lambda a, b: Piece(key[a:b], live), SIZE, cuts)


def pinned(tree: RadixTree, namespace: str, key: Key, live: Live) -> None:
    tree.pin(namespace, key, lambda a, b: Piece(key[a:b], live), SIZE)


keys = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple)
spaces = st.sampled_from(["base", "skin"])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(spaces, keys, st.lists(st.integers(0, 12), max_size=2)), max_size=20), keys, st.data())
def test_without_a_bound_it_equals_the_set_of_all_beginnings(
    inserted: list[tuple[str, Key, list[int]]], query: Key, data: st.DataObject
) -> None:
    tree, live = RadixTree(10**9), Live()
    beginnings: set[tuple[str, Key]] = set()
    for namespace, key, cuts in inserted:
        new = sum((namespace, key[: n + 1]) not in beginnings for n in range(len(key)))
        assert insert_key(tree, namespace, key, live, tuple(cuts)) == new
        beginnings |= {(namespace, key[: n + 1]) for n in range(len(key))}
        assert tree.used == live.bytes == SIZE * len(beginnings)
    limit = data.draw(st.integers(0, 12))
    for namespace in ("base", "skin"):
        expected = max((n for n in range(len(query) + 1) if (namespace, query[:n]) in beginnings), default=0)
        assert len(cached_prefix(tree, namespace, query)) == expected
        assert len(cached_prefix(tree, namespace, query, limit)) == min(expected, limit)
    tree.drop("skin")
    assert cached_prefix(tree, "skin", query) == ()
    assert tree.used == live.bytes == SIZE * sum(namespace == "base" for namespace, _ in beginnings)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 30),
    st.sampled_from([1, 2, 4]),
    st.lists(st.tuples(st.sampled_from(["put", "put", "put", "match", "pin", "unpin", "drop"]), spaces, keys)),
)
def test_under_a_bound_it_stays_below_it_and_keeps_what_is_pinned(
    room: int, block: int, acts: list[tuple[str, str, Key]]
) -> None:
    tree, live = RadixTree(room * SIZE, block), Live()
    pins: dict[tuple[str, Key], int] = {}
    for act, namespace, key in acts:
        whole = key[: len(key) // block * block]
        if act == "put":
            insert_key(tree, namespace, key, live)
        elif act == "pin" and whole:
            pinned(tree, namespace, whole, live)
            pins[namespace, whole] = pins.get((namespace, whole), 0) + 1
        elif act == "unpin":
            assert tree.unpin(namespace, whole) == (pins.get((namespace, whole), 0) > 0)
            if pins.get((namespace, whole)):
                pins[namespace, whole] -= 1
        elif act == "drop":
            tree.drop(namespace)
            pins = {pin: count for pin, count in pins.items() if pin[0] != namespace}
        else:
            cached_prefix(tree, namespace, key)
        ends = range(block, 13, block)
        pinned_prefixes = {
            (ns, pinned_key[:n])
            for (ns, pinned_key), count in pins.items()
            if count
            for n in ends
            if n <= len(pinned_key)
        }
        assert tree.used == live.bytes
        assert tree.pinned == total_pinned(tree)
        assert tree.pinned == SIZE * block * len(pinned_prefixes)
        assert tree.used - tree.pinned <= tree.capacity
        for ns, beginning in pinned_prefixes:
            assert cached_prefix(tree, ns, beginning) == beginning
            assert tree.pinned_length(ns, beginning) <= len(beginning)
    tree.clear()
    assert tree.used == tree.pinned


def total_pinned(tree: RadixTree) -> int:
    stack, total = list(tree._roots.values()), 0
    while stack:
        node: RadixNode = stack.pop()
        stack += node.children.values()
        total += node.segment.nbytes if node.segment is not None and node.pins else 0
    return total


def test_the_least_recently_used_leaf_goes_first() -> None:
    tree, live = RadixTree(6 * SIZE), Live()
    insert_key(tree, "base", (1, 1, 1), live)
    insert_key(tree, "base", (2, 2, 2), live)
    cached_prefix(tree, "base", (1, 1, 1))
    insert_key(tree, "base", (3, 3), live)
    assert cached_prefix(tree, "base", (2, 2, 2)) == ()
    assert cached_prefix(tree, "base", (1, 1, 1)) == (1, 1, 1)
    assert tree.evictions == 1


def test_a_parent_goes_only_after_its_children() -> None:
    tree, live = RadixTree(5 * SIZE), Live()
    insert_key(tree, "base", (1, 1, 5), live)
    insert_key(tree, "base", (1, 1, 6), live)
    insert_key(tree, "base", (2,), live)
    assert tree.used == 5 * SIZE
    insert_key(tree, "base", (3, 3), live)
    assert cached_prefix(tree, "base", (1, 1, 9)) == (1, 1)
    assert cached_prefix(tree, "base", (1, 1, 5)) == (1, 1)


def test_what_does_not_fit_is_not_kept() -> None:
    tree, live = RadixTree(3 * SIZE), Live()
    assert insert_key(tree, "base", (1, 2, 3, 4), live) == 0
    assert insert_key(tree, "base", (1, 2, 3, 4), live, (2,)) == 2
    assert (tree.used, live.bytes) == (2 * SIZE, 2 * SIZE)


@given(keys, st.integers(0, 14), st.integers(0, 14))
def test_salted_keys_meet_exactly_in_what_is_shared(tokens: Key, shared_length: int, two: int) -> None:
    a, b, repeated = salted(tokens, shared_length, "a"), salted(tokens, two, "b"), salted(tokens, shared_length, "a")
    assert a == repeated
    assert len(a) == len(tokens)
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(tokens))
    assert common == min(shared_length, two, len(tokens))


def test_pinned_length_knows_pinned_keys_only() -> None:
    tree, live = RadixTree(10**6), Live()
    insert_key(tree, "base", (1, 2, 3, 4, 5), live)
    assert tree.pinned_length("base", (1, 2, 3, 4, 5)) == 0
    pinned(tree, "base", (1, 2, 3), live)
    assert tree.pinned_length("base", (1, 2, 3, 4, 5)) == 3
    assert tree.pinned_length("base", (1, 2)) == 0
    assert tree.unpin("base", (1, 2, 3))
    assert tree.pinned_length("base", (1, 2, 3, 4, 5)) == 0
    assert not tree.unpin("base", (1, 2, 3))


def test_blocks_share_whole_blocks_only() -> None:
    tree, live = RadixTree(10**6, block=4), Live()
    assert insert_key(tree, "base", (1, 2, 3, 4, 5, 6), live) == 4
    assert insert_key(tree, "base", (1, 2, 3, 9, 5, 6, 7, 8), live) == 8
    assert cached_prefix(tree, "base", (1, 2, 3, 4, 5)) == (1, 2, 3, 4)
    assert cached_prefix(tree, "base", (1, 2, 3)) == ()


def test_a_key_cannot_be_unpinned_by_a_longer_one() -> None:
    tree, live = RadixTree(10**6), Live()
    pinned(tree, "base", (1, 2), live)
    assert not tree.unpin("base", (1, 2, 3))
    with pytest.raises(AssertionError):
        Piece((1,), live, alive=False).release()


def test_salts_of_tenants_reach_no_bit_of_a_media_hash() -> None:
    first = media_tokens("ab" * 32, 3)
    assert first == [first[0], first[0] - 1, first[0] - 2]
    for tenant in ("a", "b", "c"):
        (salted_element,) = salted(first[:1], 0, tenant)
        assert 0 < salted_element - first[0] < -first[0] & first[0]
