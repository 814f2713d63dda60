"""Assigns cache rows to jobs, and remembers what free rows still hold. Belongs to the thread that computes. A cache may
renumber its rows when it grows; jobs learn their new numbers here."""

from __future__ import annotations

from collections.abc import Mapping

from bedplate.inference.engine.requests.job import RequestJob
from bedplate.inference.forward.kv_cache import KVCache
from bedplate.inference.forward.radix import Key, Match


class CacheRows:
    """The rows of one cache."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self._jobs: dict[int, RequestJob] = {}
        # A job that begins with what a free row still holds need not copy it again.
        self._row_contents: dict[int, tuple[object, Key]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def assign(self, job: RequestJob, namespace: object, match: Match) -> None:
        """Gives a job a row with the match in it; where that fails, for want of memory, it has none."""
        key = job.key[: match.length]
        row = self._free(namespace, key)
        self._jobs[row] = job
        job.row, job.computed_tokens, job.saved_tokens = row, match.length, 0
        lengths = {active_row: max(active_job.computed_tokens, 1) for active_row, active_job in self._jobs.items()} | {
            row: len(job.tokens) + min(job.max_new_tokens, 1)
        }
        try:
            if self.cache.copies:
                self.reserve(lengths)
            if self._row_contents.pop(job.row, None) != (namespace, key):
                self.load(job.row, match)
            if not self.cache.copies:
                self.reserve(lengths)
        except BaseException:
            self._jobs.pop(job.row)
            self.cache.free(job.row)
            job.row, job.computed_tokens = None, 0
            raise

    def borrow(self, match: Match, length: int) -> int:
        """A row of `length` tokens with the match in it, for a moment and for nobody; `cache.free` gives it back."""
        row = self._free(None, ())
        lengths = {active_row: len(job.tokens) for active_row, job in self._jobs.items()} | {row: length}
        try:
            if self.cache.copies:
                row = self.reserve(lengths).get(row, row)
            self.load(row, match)
            if not self.cache.copies:
                self.reserve(lengths)
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

    def reserve(self, lengths: Mapping[int, int]) -> dict[int, int]:
        """Room for rows of these lengths. Returns the new numbers of rows that moved for it."""
        moved = self.cache.reserve(dict(lengths))
        if moved:
            self._row_contents.clear()
            self._jobs = {moved[row]: job for row, job in self._jobs.items()}
            for row, job in self._jobs.items():
                job.row = row
        return moved

    def forget(self) -> None:
        """Forgets what free rows hold, because it is no longer valid."""
        self._row_contents.clear()

    def _free(self, namespace: object, key: Key) -> int:
        """A row that holds this beginning already, or else the lowest free one."""
        if key:
            for row, (row_namespace, row_key) in self._row_contents.items():
                if row_namespace == namespace and row_key[: len(key)] == key and self.cache.rewinds(row, len(key)):
                    self._row_contents[row] = (namespace, key)
                    return row
        row = next(row for row in range(len(self._jobs) + 1) if row not in self._jobs)
        self._row_contents.pop(row, None)
        return row

    def load(self, row: int, match: Match) -> None:
        """The match as the first tokens of a row."""
        at = 0
        for segment, count in match.parts:
            self.cache.load(row, at, segment, count)
            at += count
