"""What running requests leave in the prefix cache, and what they find there.

What is kept is for others: where it cannot be kept, the request itself goes on. Belongs to the thread that computes.
"""

from __future__ import annotations

import logging

from bedplate.inference.engine.checks import check_room
from bedplate.inference.engine.job import Job
from bedplate.inference.forward.kv_cache import KVCache
from bedplate.inference.forward.prefix_keys import Key, read_whole, salted
from bedplate.inference.forward.radix import Match, RadixTree, Segment

log = logging.getLogger("bedplate.inference")

# Shorter common beginnings are not worth waiting for.
MIN_SHARED = 16
# A prompt that comes again finds its states at a multiple of so many tokens.
SNAPSHOT = 64


class Prefixes:
    """Beginnings of sequences, between rows of `cache` and the prefix cache."""

    def __init__(self, tree: RadixTree, cache: KVCache) -> None:
        self.tree, self._cache = tree, cache

    def find(self, job: Job) -> tuple[object, Match]:
        """Makes the job's key; the namespace with the longest match for it, of which its `marks` follow.
        ContextLengthExceeded where what is pinned leaves no room for it, however long it waits."""
        virtual = job.adapter.virtual
        own = virtual + job.request.shared_tokens
        known = self.tree.pinned_length(job.adapter, job.tokens[: job.prompt_end], own)
        job.shared = 0 if job.source else min(max(own, known), job.prompt_end)
        if job.cached is None and self._cache.longest is not None:
            pinned = self.tree.pinned // self._cache.token_bytes
            check_room(self._cache.longest, job.prompt_end, job.more, pinned, known)
        job.key = _key(job, len(job.tokens))
        namespace, match = self.match(job, virtual if job.reusable is None else job.reusable)
        job.marks = self._marks(job, match)
        return namespace, match

    def match(self, job: Job, limit: int) -> tuple[object, Match]:
        """The namespace with the longest match: states of fewer layers are in one of their own."""
        match = self.tree.match(job.adapter, job.key, limit)
        if match.length < job.source:  # part of what an encoder reads is of no use
            match = Match()
        if job.depth is None:
            return job.adapter, match
        shallow = self.tree.match((job.adapter, job.depth), job.key, limit)
        better = (shallow.length, shallow.known) > (match.length, match.known)
        return ((job.adapter, job.depth), shallow) if better else (job.adapter, match)

    def _marks(self, job: Job, match: Match) -> tuple[int, ...]:
        """Where a job's states are to be saved: where what others may share ends (as said, or as another's prompt
        showed by parting from it), at the prompt's last whole block, and where the job itself comes back to."""
        if not self._cache.states:
            return ()
        block = self.tree.block
        wanted = [job.shared, match.known, job.returns_to or 0]
        if job.reusable is not None:
            wanted.append(job.reusable // SNAPSHOT * SNAPSHOT)
        rounded = {at // block * block for at in wanted}
        return tuple(sorted(at for at in rounded if match.length < at < len(job.tokens) or at == job.returns_to))

    def keep(self, job: Job, length: int, snapshot: bool = False) -> None:
        """Saves a job's first tokens, with its states there if so asked."""
        cache, row = self._cache, job.row
        if row is None or job.adapter.retired:
            return
        snapshot = snapshot and bool(cache.states) and cache.states.is_at(row, length)
        if job.kept > length or (job.kept == length and not snapshot):
            return
        key = job.key[:length]
        if length > len(key):
            key = _key(job, length)
        depth = job.depth

        def save(begin: int, end: int) -> Segment | None:
            return cache.save(row, begin, end, depth, snapshot)

        try:
            self.tree.insert(namespace(job), key, save, cache.saved_bytes(depth), (job.shared,), snapshot)
        except Exception:
            log.exception("the beginning of a request could not be kept; others will compute it again")
        job.kept = length

    def keep_in_time(self, job: Job) -> None:
        """Saves what the job's row would have forgotten after one more step."""
        if self._cache.forgets and job.failed is None:
            length = job.done if job.begun else min(job.done, job.prompt_end)
            if length - job.kept >= self._cache.step:
                self.keep(job, length)

    def forget(self, job: Job) -> None:
        """Takes out what a job found and left, whose numbers are not to be trusted."""
        for where in {job.adapter, namespace(job)}:
            self.tree.forget(where, job.key)


def alike(job: Job, other: Job, known: int) -> bool:
    """Whether another is just computing, for all to use, what this job would compute again."""
    if other.adapter is not job.adapter or other.depth != job.depth or other.done >= other.prompt_end:
        return False
    end = known + MIN_SHARED
    return end < len(job.key) and other.key[:end] == job.key[:end]


def namespace(job: Job) -> object:
    """Of the prefix cache, in which what the job computes is kept."""
    return job.adapter if job.depth is None else (job.adapter, job.depth)


def _key(job: Job, length: int) -> Key:
    """The key of a job's first tokens in the prefix cache."""
    tokens = job.tokens[:length]
    if job.source:
        return read_whole(tokens, job.source, job.request.tenant)
    return salted(tokens, job.shared, job.request.tenant)
