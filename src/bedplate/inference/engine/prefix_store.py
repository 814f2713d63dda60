"""Assigns cache rows to jobs, and moves prefixes between rows and the prefix cache.

A prefix that cannot be saved does not fail its request. Used only by the computing thread.
"""

from __future__ import annotations

import logging

from bedplate.inference.engine.checks import check_room
from bedplate.inference.engine.requests.job import RequestJob
from bedplate.inference.forward.kv_cache import KVCache
from bedplate.inference.forward.radix import Key, Match, RadixTree, Segment, read_whole, salted

log = logging.getLogger("bedplate.inference")

# Shorter common prefixes are not worth waiting for.
MIN_SHARED = 16
# Recurrent states of prompts are saved at multiples of this many tokens.
SNAPSHOT = 64


class CacheRows:
    """Assigns the rows of one cache to jobs, and records which tokens free rows still contain."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self._jobs: dict[int, RequestJob] = {}
        # Tokens that free rows still contain: a job that begins with them need not copy them again.
        self._row_contents: dict[int, tuple[object, Key]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def assign(self, job: RequestJob, namespace: object, match: Match) -> None:
        """Gives a job a row that begins with the match; after an error (too little memory) it has no row."""
        key = job.key[: match.length]
        row = self._free(namespace, key)
        self._jobs[row] = job
        job.row, job.computed_tokens, job.saved_tokens = row, match.length, 0
        lengths = {active_row: max(active_job.computed_tokens, 1) for active_row, active_job in self._jobs.items()} | {
            row: len(job.tokens) + min(job.max_new_tokens, 1)
        }
        try:
            if self.cache.copies:
                self.cache.reserve(lengths)
            if self._row_contents.pop(job.row, None) != (namespace, key):
                self.load(job.row, match)
            if not self.cache.copies:
                self.cache.reserve(lengths)
        except BaseException:
            self._jobs.pop(job.row)
            self.cache.free(job.row)
            job.row, job.computed_tokens = None, 0
            raise

    def borrow(self, match: Match, length: int) -> int:
        """A temporary row of `length` tokens that begins with the match and belongs to no job; return it with
        `cache.free`."""
        row = self._free(None, ())
        lengths = {active_row: len(job.tokens) for active_row, job in self._jobs.items()} | {row: length}
        try:
            if self.cache.copies:
                self.cache.reserve(lengths)
            self.load(row, match)
            if not self.cache.copies:
                self.cache.reserve(lengths)
        except BaseException:
            self.cache.free(row)
            raise
        return row

    def give_up(self, job: RequestJob, namespace: object) -> None:
        """Frees a job's row, if it has one."""
        if job.row is None:
            return
        del self._jobs[job.row]
        if self.cache.copies and job.failed is None and job.key:
            self._row_contents[job.row] = (namespace, job.key[: min(job.computed_tokens, len(job.key))])
        self.cache.free(job.row)
        job.row = None

    def forget(self) -> None:
        """Forgets which tokens the free rows still contain, because they are no longer valid."""
        self._row_contents.clear()

    def _free(self, namespace: object, key: Key) -> int:
        """A free row that already begins with this prefix, or else the lowest free row."""
        if key:
            for row, (row_namespace, row_key) in self._row_contents.items():
                if row_namespace == namespace and row_key[: len(key)] == key and self.cache.rewinds(row, len(key)):
                    self._row_contents[row] = (namespace, key)
                    return row
        row = next(row for row in range(len(self._jobs) + 1) if row not in self._jobs)
        self._row_contents.pop(row, None)
        return row

    def load(self, row: int, match: Match) -> None:
        """Copies the match into a row as its first tokens."""
        at = 0
        for segment, count in match.parts:
            self.cache.load(row, at, segment, count)
            at += count


class PrefixStore:
    """Moves the first tokens of sequences between the rows of `cache` and the prefix cache."""

    def __init__(self, tree: RadixTree, cache: KVCache) -> None:
        self.tree, self._cache = tree, cache

    def match_prefix(self, job: RequestJob) -> tuple[object, Match]:
        """Sets the job's key and `marks`; returns the namespace with the longest match for it, and the match.
        ContextLengthExceeded where pinned prefixes leave too little room for the job, however long it waits."""
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
        """The namespace with the longest match of at most `limit` tokens, and the match. Prefixes computed through
        fewer layers have a namespace of their own."""
        match = self.tree.match(job.adapter, job.key, limit)
        if match.length < job.source:  # an encoder's text is reused as a whole or not at all
            match = Match()
        if job.depth is None:
            return job.adapter, match
        shallow = self.tree.match((job.adapter, job.depth), job.key, limit)
        better = (shallow.length, shallow.matched_length) > (match.length, match.matched_length)
        return ((job.adapter, job.depth), shallow) if better else (job.adapter, match)

    def _marks(self, job: RequestJob, match: Match) -> tuple[int, ...]:
        """The positions at which a job's recurrent states are saved: the end of its shared part (declared, or where
        another prompt diverges), the last whole block of the prompt, and the position to which the job will return."""
        if not self._cache.states:
            return ()
        block = self.tree.block
        positions = [job.shared, match.matched_length, job.returns_to or 0]
        if job.reusable is not None:
            positions.append(job.reusable // SNAPSHOT * SNAPSHOT)
        rounded = {at // block * block for at in positions}
        return tuple(sorted(at for at in rounded if match.length < at < len(job.tokens) or at == job.returns_to))

    def store(self, job: RequestJob, length: int, snapshot: bool = False) -> None:
        """Saves a job's first tokens; with `snapshot`, also the recurrent states after them."""
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
            log.exception("a prefix could not be saved; other requests will compute it again")
        job.saved_tokens = length

    def save_before_eviction(self, job: RequestJob) -> None:
        """Saves the tokens that would leave the row's window in the next step."""
        if self._cache.forgets and job.failed is None:
            length = job.computed_tokens if job.begun else min(job.computed_tokens, job.prompt_end)
            if length - job.saved_tokens >= self._cache.step:
                self.store(job, length)

    def forget(self, job: RequestJob) -> None:
        """Removes a job's prefix from the cache, both what it read and what it saved, because its numbers are not
        finite."""
        for scope in {job.adapter, namespace(job)}:
            self.tree.forget(scope, job.key)


def shares_prefix(job: RequestJob, running: RequestJob, match_length: int) -> bool:
    """Whether a running job is computing a prefix that this job would otherwise compute again."""
    if (
        running.adapter is not job.adapter
        or running.depth != job.depth
        or running.computed_tokens >= running.prompt_end
    ):
        return False
    end = match_length + MIN_SHARED
    return end < len(job.key) and running.key[:end] == job.key[:end]


def namespace(job: RequestJob) -> object:
    """The namespace of the prefix cache in which this job's prefix is saved."""
    return job.adapter if job.depth is None else (job.adapter, job.depth)


def _key(job: RequestJob, length: int) -> Key:
    """The key of a job's first tokens in the prefix cache."""
    tokens = job.prefix_tokens(length)
    if job.source:
        return read_whole(tokens, job.source, job.request.tenant)
    return salted(tokens, job.shared, job.request.tenant)
