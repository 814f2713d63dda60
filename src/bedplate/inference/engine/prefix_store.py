"""Moves prefixes between cache rows and the prefix cache: finds what is cached of a request, saves what it computed.

A prefix is saved for later requests: where it cannot be saved, the request itself goes on. Belongs to the thread that
computes.
"""

from __future__ import annotations

import logging

from bedplate.inference.engine.checks import check_room
from bedplate.inference.engine.requests.job import RequestJob
from bedplate.inference.forward.kv_cache import KVCache
from bedplate.inference.forward.radix import Key, Match, RadixTree, Segment, read_whole, salted

log = logging.getLogger("bedplate.inference")

# Shorter common beginnings are not worth waiting for.
MIN_SHARED = 16
# A prompt that comes again finds its states at a multiple of so many tokens.
SNAPSHOT = 64


class PrefixStore:
    """Beginnings of sequences, between rows of `cache` and the prefix cache."""

    def __init__(self, tree: RadixTree, cache: KVCache) -> None:
        self.tree, self._cache = tree, cache

    def match_prefix(self, job: RequestJob) -> tuple[object, Match]:
        """Makes the job's key; the namespace with the longest match for it, of which its `marks` follow.
        ContextLengthExceeded where what is pinned leaves no room for it, however long it waits."""
        virtual = job.adapter.virtual
        shared_length = virtual + job.request.shared_tokens
        pinned_length = self.tree.pinned_length(job.adapter, job.prefix_tokens(job.prompt_end), shared_length)
        job.shared = 0 if job.source else min(max(shared_length, pinned_length), job.prompt_end)
        if job.cached is None and self._cache.longest is not None:
            pinned = self.tree.pinned // self._cache.token_bytes
            check_room(self._cache.longest, job.prompt_end, job.max_new_tokens, pinned, pinned_length)
        job.key = _key(job, len(job.tokens))
        namespace, match = self.match(job, virtual if job.reusable is None else job.reusable)
        job.marks = self._marks(job, match)
        return namespace, match

    def match(self, job: RequestJob, limit: int) -> tuple[object, Match]:
        """The namespace with the longest match: states of fewer layers are in one of their own."""
        match = self.tree.match(job.adapter, job.key, limit)
        if match.length < job.source:  # part of what an encoder reads is of no use
            match = Match()
        if job.depth is None:
            return job.adapter, match
        shallow = self.tree.match((job.adapter, job.depth), job.key, limit)
        better = (shallow.length, shallow.matched_length) > (match.length, match.matched_length)
        return ((job.adapter, job.depth), shallow) if better else (job.adapter, match)

    def _marks(self, job: RequestJob, match: Match) -> tuple[int, ...]:
        """The positions at which a job's recurrent states are saved: where the shared part ends (declared, or shown by
        another prompt that parts there), at the last whole block of the prompt, and where the job itself returns to."""
        if not self._cache.states:
            return ()
        block = self.tree.block
        positions = [job.shared, match.matched_length, job.returns_to or 0]
        if job.reusable is not None:
            positions.append(job.reusable // SNAPSHOT * SNAPSHOT)
        rounded = {at // block * block for at in positions}
        return tuple(sorted(at for at in rounded if match.length < at < len(job.tokens) or at == job.returns_to))

    def store(self, job: RequestJob, length: int, snapshot: bool = False) -> None:
        """Saves a job's first tokens, with its states there if so asked."""
        cache, row = self._cache, job.row
        if row is None or job.adapter.retired:
            return
        snapshot = snapshot and bool(cache.states) and cache.states.is_at(row, length)
        if job.saved_tokens > length or (job.saved_tokens == length and not snapshot):
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
        job.saved_tokens = length

    def keep_in_time(self, job: RequestJob) -> None:
        """Saves what the job's row would have forgotten after one more step."""
        if self._cache.forgets and job.failed is None:
            length = job.computed_tokens if job.begun else min(job.computed_tokens, job.prompt_end)
            if length - job.saved_tokens >= self._cache.step:
                self.store(job, length)

    def forget(self, job: RequestJob) -> None:
        """Takes out what a job found and left, whose numbers are not to be trusted."""
        for scope in {job.adapter, namespace(job)}:
            self.tree.forget(scope, job.key)


def shares_prefix(job: RequestJob, running: RequestJob, match_length: int) -> bool:
    """Whether another is just computing, for all to use, what this job would compute again."""
    if (
        running.adapter is not job.adapter
        or running.depth != job.depth
        or running.computed_tokens >= running.prompt_end
    ):
        return False
    end = match_length + MIN_SHARED
    return end < len(job.key) and running.key[:end] == job.key[:end]


def namespace(job: RequestJob) -> object:
    """The namespace of the prefix cache in which what the job computes is saved."""
    return job.adapter if job.depth is None else (job.adapter, job.depth)


def _key(job: RequestJob, length: int) -> Key:
    """The key of a job's first tokens in the prefix cache."""
    tokens = job.prefix_tokens(length)
    if job.source:
        return read_whole(tokens, job.source, job.request.tenant)
    return salted(tokens, job.shared, job.request.tenant)
