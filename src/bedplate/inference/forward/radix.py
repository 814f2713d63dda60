"""The prefix cache: a radix tree of keys and values by their tokens (SGLang's RadixAttention,
https://arxiv.org/abs/2312.07104).

One tree per namespace. An edge holds a run of key elements and their segment: whatever the KV cache saves for them (a
copy, or counted references to blocks). Unpinned leaves are evicted, least recently used first, to stay under `capacity`
bytes. Key elements are token ids, salted by tenant in the first that is not shared, or hashes of media.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

Key = tuple[int, ...]
Save = Callable[[int, int], "Segment | None"]
"""Saves the key elements from begin to before end as a segment; None where they are no longer cached."""
_SALT_SHIFT = 64


def media_tokens(sha256: str, count: int) -> list[int]:
    """The key elements of the first `count` vectors of a media file: negative, so that they equal no token id, with the
    hash above the bits of tenants' salts (of 128 bits, `_SALT_SHIFT` up)."""
    media_hash = (int(sha256, 16) | 1) << 3 * _SALT_SHIFT
    return [-media_hash - offset for offset in range(count)]


@lru_cache(maxsize=4096)
def _salt(tenant: str) -> int:
    digest = hashlib.blake2b(tenant.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return (int.from_bytes(digest, "big") | 1) << _SALT_SHIFT


def salted(tokens: Sequence[int], shared: int, tenant: str) -> Key:
    """The key of tokens of which the first `shared` are common to all tenants and the rest are this tenant's alone. The
    salt changes one element, at which the paths of different tenants diverge."""
    if shared >= len(tokens):
        return tuple(tokens)
    return (*tokens[:shared], tokens[shared] + _salt(tenant), *tokens[shared + 1 :])


def read_whole(tokens: Sequence[int], source: int, tenant: str) -> Key:
    """The key of tokens of which an encoder reads the first `source` as one text: each state depends on all of them, so
    that only the same text of the same tenant shares a prefix."""
    digest = hashlib.blake2b(repr((tenant, list(tokens[:source]))).encode("utf-8", "surrogatepass"), digest_size=16)
    return (tokens[0] + (int.from_bytes(digest.digest(), "big") << _SALT_SHIFT), *tokens[1:])


class Segment(Protocol):
    """Keys and values of a run of tokens. resumes: whether a sequence can continue from its end (trees with snapshots).
    split: the first `at` tokens and the rest; this segment is not used afterwards. release: called once, when the tree
    drops it."""

    @property
    def nbytes(self) -> int: ...
    @property
    def resumes(self) -> bool: ...
    def split(self, at: int) -> tuple[Segment, Segment]: ...
    def release(self) -> None: ...


@dataclass(eq=False)
class RadixNode:
    """An edge and its end; children by their first block. pins: pinned keys that pass through it. ends: pinned keys
    that end here; public: those of them that every tenant may use."""

    key: Key
    segment: Segment | None
    parent: RadixNode | None
    children: dict[Key, RadixNode] = field(default_factory=dict[Key, "RadixNode"])
    pins: int = 0
    ends: int = 0
    public: int = 0
    used: int = 0
    attached: bool = True


@dataclass(frozen=True)
class Match:
    """The cached prefix of a key: segments from the start, each with how many of its tokens match. matched_length:
    tokens that are in the tree; a sequence may be able to continue only from an earlier one."""

    parts: tuple[tuple[Segment, int], ...] = ()
    matched_length: int = 0

    @property
    def length(self) -> int:
        return sum(count for _, count in self.parts)


class RadixTree:
    """Segments by key. block: matches and edges are multiples of so many elements. snapshots: a sequence can continue
    only from the end of a segment that `resumes`. Used by the computing thread only."""

    def __init__(self, capacity: int, block: int = 1, *, snapshots: bool = False) -> None:
        self.capacity, self.block, self.snapshots = capacity, block, snapshots
        self.used = 0
        """Bytes in all; the `pinned` part does not count against the capacity."""
        self.pinned = 0
        self.evictions = 0
        self._roots: dict[Hashable, RadixNode] = {}
        self._clock = 0
        self._count = 0
        self._leaves: list[tuple[int, int, RadixNode]] = []

    def match(self, namespace: Hashable, key: Key, limit: int) -> Match:
        """The longest cached prefix of `key`, of at most `limit` elements."""
        node = self._roots.get(namespace)
        self._clock += 1
        parts: list[tuple[Segment, int]] = []
        good = 0  # how many of the parts a sequence can go on from
        at, end = 0, min(limit, len(key)) // self.block * self.block
        while node is not None and at < end:
            child = node.children.get(key[at : at + self.block])
            if child is None:
                break
            common_length = _common(child.key, key, at, end) // self.block * self.block
            assert child.segment is not None
            parts.append((child.segment, common_length))
            self._touch(child)
            at += common_length
            if not self.snapshots or (common_length == len(child.key) and child.segment.resumes):
                good = len(parts)
            if common_length < len(child.key):
                break
            node = child
        return Match(tuple(parts[:good]), at)

    def pinned_length(self, namespace: Hashable, tokens: Sequence[int], shared_length: int = 0) -> int:
        """The length of the longest pinned prefix that a request may know of: a public one, or one within its first
        `shared_length` tokens. Other tenants' pins must be indistinguishable from what is not cached."""
        node, at, longest = self._roots.get(namespace), 0, 0
        while node is not None and at < len(tokens):
            child = node.children.get(tuple(tokens[at : at + self.block]))
            if child is None or child.pins == 0 or child.key != tuple(tokens[at : at + len(child.key)]):
                break
            at += len(child.key)
            if child.public or (child.ends and at <= shared_length):
                longest = at
            node = child
        return longest

    def insert(
        self, namespace: Hashable, key: Key, save: Save, size: int, cuts: Sequence[int] = (), renew: bool = False
    ) -> int:
        """Adds the part of a key that is not cached yet, of `size` bytes per element; an edge ends at each of `cuts`.
        Returns the number of elements added. renew: where all of it is cached, its last segment is saved anew if it has
        no snapshot."""
        return self._insert(namespace, key, save, size, cuts, pin=False, renew=renew)[1]

    def pin(self, namespace: Hashable, key: Key, save: Save, size: int, *, public: bool = True) -> None:
        """Adds a key that is never evicted; pins are counted. public: every tenant may use it."""
        node, _ = self._insert(namespace, key, save, size, (), pin=True, renew=True)
        node.ends += 1
        node.public += public
        walk: RadixNode | None = node
        while walk is not None and walk.segment is not None:
            if walk.pins == 0:
                self.pinned += walk.segment.nbytes
            walk.pins += 1
            walk = walk.parent

    def unpin(self, namespace: Hashable, key: Key, *, public: bool = True) -> bool:
        """Unpins a key, which stays cached until it is evicted; returns whether it was pinned."""
        node = self._end_of(namespace, key[: len(key) // self.block * self.block])
        if node is None or not _pinned_so(node, public):
            return False
        node.ends -= 1
        node.public -= public
        walk: RadixNode | None = node
        while walk is not None and walk.segment is not None:
            walk.pins -= 1
            if walk.pins == 0:
                self.pinned -= walk.segment.nbytes
                self._offer(walk)
            walk = walk.parent
        self._evict(0, None)
        return True

    def is_pinned(self, namespace: Hashable, key: Key, *, public: bool = True) -> bool:
        node = self._end_of(namespace, key[: len(key) // self.block * self.block])
        return node is not None and _pinned_so(node, public)

    def pinned_keys(self, namespace: Hashable) -> list[tuple[Key, bool]]:
        """Every pinned key of a namespace with whether it is public; a key pinned both ways appears twice."""
        pinned: list[tuple[Key, bool]] = []
        root = self._roots.get(namespace)
        stack: list[tuple[RadixNode, Key]] = [] if root is None else [(root, ())]
        while stack:
            node, key = stack.pop()
            pinned += [(key, public) for public in (True, False) if _pinned_so(node, public)]
            stack += [(child, key + child.key) for child in node.children.values() if child.pins]
        return pinned

    def drop(self, namespace: Hashable) -> None:
        """Removes a namespace, pinned keys included."""
        root = self._roots.pop(namespace, None)
        for node in () if root is None else list(root.children.values()):
            self._cut(node)

    def forget(self, namespace: Hashable, key: Key) -> None:
        """Removes what is cached on the path of `key` and beyond it, except pinned keys, because it cannot be
        trusted."""
        node, at = self._roots.get(namespace), 0
        while node is not None and at < len(key):
            child = node.children.get(key[at : at + self.block])
            if child is not None and child.pins == 0:
                self._cut(child)
                if node.segment is not None:
                    self._offer(node)
            if child is None or child.pins == 0 or child.key != key[at : at + len(child.key)]:
                return
            node, at = child, at + len(child.key)

    def _cut(self, top: RadixNode) -> None:
        """Removes a node and its subtree."""
        assert top.parent is not None
        del top.parent.children[top.key[: self.block]]
        stack = [top]
        while stack:
            node = stack.pop()
            stack += node.children.values()
            self._release(node)
            # Unlinked, so that they are freed at once and not by the cycle collector.
            node.children, node.parent = {}, None

    def close(self) -> None:
        for namespace in list(self._roots):
            self.drop(namespace)
        self._leaves.clear()

    def reclaim(self, size: int) -> bool:
        """Evicts leaves until `size` bytes are free, as far as possible; returns whether any was evicted."""
        before = self.evictions
        self._evict(self.capacity - max(self.used - self.pinned - size, 0), None)
        return self.evictions > before

    def clear(self) -> None:
        """Removes everything that is not pinned."""
        self._evict(self.capacity, None)

    def _insert(
        self, namespace: Hashable, key: Key, save: Save, size: int, cuts: Sequence[int], *, pin: bool, renew: bool
    ) -> tuple[RadixNode, int]:
        self._clock += 1
        node = self._roots.setdefault(namespace, RadixNode((), None, None))
        at, end = 0, len(key) // self.block * self.block
        while at < end:
            child = node.children.get(key[at : at + self.block])
            if child is None:
                break
            common_length = _common(child.key, key, at, end) // self.block * self.block
            self._touch(child)
            if common_length < len(child.key):
                child = self._split(child, common_length)
            at += common_length
            node = child
        if at == end and self.snapshots and renew:
            self._renew(node, save)
        stops = sorted({stop // self.block * self.block for stop in cuts if at < stop < end} | {end})
        added = 0
        for stop in stops:
            if stop <= at:
                continue
            if not pin and not self._evict((stop - at) * size, node):
                break
            segment = save(at, stop)
            if segment is None:
                break
            node = self._attach(node, key[at:stop], segment)
            added += stop - at
            at = stop
        if self.snapshots and not pin:
            self._evict(0, None)  # snapshots were not counted before they were made
        return node, added

    def _renew(self, node: RadixNode, save: Save) -> None:
        """Adds the missing snapshot to a node's segment."""
        if node.segment is None or node.segment.resumes:
            return
        end = 0
        walk: RadixNode | None = node
        while walk is not None:
            end, walk = end + len(walk.key), walk.parent
        segment = save(end - len(node.key), end)
        if segment is None:
            return
        if not segment.resumes:
            segment.release()
            return
        change = segment.nbytes - node.segment.nbytes
        self.used += change
        self.pinned += change if node.pins else 0
        node.segment.release()
        node.segment = segment

    def _attach(self, parent: RadixNode, key: Key, segment: Segment) -> RadixNode:
        node = RadixNode(key, segment, parent, used=self._clock)
        parent.children[key[: self.block]] = node
        self.used += segment.nbytes
        self._offer(node)
        return node

    def _split(self, node: RadixNode, at: int) -> RadixNode:
        """Splits an edge in two and returns its first part."""
        assert node.segment is not None
        assert node.parent is not None
        before = node.segment.nbytes
        first, second = node.segment.split(at)
        change = first.nbytes + second.nbytes - before
        self.used += change
        self.pinned += change if node.pins else 0
        lower = {node.key[at : at + self.block]: node}
        upper = RadixNode(node.key[:at], first, node.parent, lower, node.pins, used=node.used)
        node.parent.children[node.key[: self.block]] = upper
        node.key, node.segment, node.parent = node.key[at:], second, upper
        return upper

    def _end_of(self, namespace: Hashable, key: Key) -> RadixNode | None:
        node, at = self._roots.get(namespace), 0
        while node is not None and at < len(key):
            node = node.children.get(key[at : at + self.block])
            if node is None or node.key != key[at : at + len(node.key)]:
                return None
            at += len(node.key)
        return node

    def _touch(self, node: RadixNode) -> None:
        node.used = self._clock
        self._offer(node)

    def _offer(self, node: RadixNode) -> None:
        """Adds a leaf to the eviction heap; outdated entries are dropped when met."""
        if not node.children and node.pins == 0:
            self._count += 1
            heapq.heappush(self._leaves, (node.used, self._count, node))
            if len(self._leaves) > 10_000:
                self._leaves = [leaf for leaf in self._leaves if self._evictable(leaf)]
                heapq.heapify(self._leaves)

    @staticmethod
    def _evictable(leaf: tuple[int, int, RadixNode]) -> bool:
        used, _, node = leaf
        return node.attached and not node.children and node.pins == 0 and node.used == used

    def _evict(self, need: int, protected: RadixNode | None) -> bool:
        """Frees `need` bytes, sparing `protected`; returns whether there is room now."""
        spared: list[tuple[int, int, RadixNode]] = []
        while self.used - self.pinned + need > self.capacity and self._leaves:
            leaf = heapq.heappop(self._leaves)
            if not self._evictable(leaf):
                continue
            node = leaf[2]
            if node is protected:
                spared.append(leaf)
                continue
            parent = node.parent
            assert parent is not None
            del parent.children[node.key[: self.block]]
            self._release(node)
            self.evictions += 1
            if parent.segment is not None:
                self._offer(parent)
        for leaf in spared:
            heapq.heappush(self._leaves, leaf)
        return self.used - self.pinned + need <= self.capacity

    def _release(self, node: RadixNode) -> None:
        assert node.segment is not None
        self.used -= node.segment.nbytes
        if node.pins:
            self.pinned -= node.segment.nbytes
        node.attached = False
        node.segment.release()


def _pinned_so(node: RadixNode, public: bool) -> bool:
    return (node.public if public else node.ends - node.public) > 0


def _common(edge: Key, key: Key, at: int, end: int) -> int:
    """The number of first elements that `edge` and key[at:end] share."""
    n = min(len(edge), end - at)
    if edge[:n] == key[at : at + n]:
        return n
    low, high = 0, n - 1  # the first `low` agree, the first `high + 1` do not
    while low < high:
        middle = (low + high + 1) // 2
        if edge[:middle] == key[at : at + middle]:
            low = middle
        else:
            high = middle - 1
    return low
