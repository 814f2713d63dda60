"""Lets requests in, runs their tokens through the base, and keeps what was computed for those that come after.

Called by one thread at a time. Every sequence of a decoder has a row of the cache; what it computed is saved into the
prefix cache when its prompt is done and when it ends. An encoder's texts are whole documents without rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bedplate.inference.engine.cache_rows import CacheRows
from bedplate.inference.engine.choosing import WritingRow, choose
from bedplate.inference.engine.job import Job, Seen, Wants, fail_all
from bedplate.inference.engine.sampler import sample
from bedplate.inference.engine.scheduler import Admission
from bedplate.inference.engine.share import Share, alike
from bedplate.inference.engine.stats import Counters
from bedplate.inference.forward.adapters import Loaded
from bedplate.inference.forward.kv_cache import KVCache
from bedplate.inference.forward.radix import Key, Match, RadixTree, Segment, read_whole, salted
from bedplate.inference.forward.spans import Span
from bedplate.inference.forward.torch import FlatBatch, Forward, PassOutput, Source, TorchForward

# Shorter common beginnings are not worth waiting for.
MIN_SHARED = 16
# Rows beside those for generations: requests of one pass hold theirs for a step or two.
ONE_PASS_ROWS = 48
# A prompt that comes again finds its states at a multiple of so many tokens.
SNAPSHOT = 64
# A step of so many tokens still takes about as long as one of few.
SPECULATED_TOKENS = 16
# Rows are let in only where all may grow by so much, lest they be put out again at once.
HEADROOM = 32


class Runner:
    """Owns the cache and the running jobs. `cache` is None for an encoder."""

    def __init__(
        self,
        cache: KVCache | None,
        forward: Forward,
        torch_forward: TorchForward,
        tree: RadixTree,
        *,
        max_rows: int,
        max_adapters: int,
        speculates: bool,
        counters: Counters,
    ) -> None:
        self.cache, self.tree = cache, tree
        self.forward, self.torch_forward = forward, torch_forward
        self.active: list[Job] = []
        self._max_rows, self._max_adapters = max_rows, max_adapters
        self.put_back: Callable[[Job], None] = lambda job: None
        """Told of a job that had to give up its row."""
        self._speculates = speculates
        self._counters = counters
        self._rows = None if cache is None else CacheRows(cache)

    # Letting in

    @torch.inference_mode()
    def admit(self, job: Job) -> Admission:
        """Gives a job a row that begins with what is cached of it."""
        if self._rows is None or job.reads:
            self._enter(job)
            return Admission.IN
        if self._is_full(job, self._rows):
            return Admission.FULL
        adapters = {id(one.adapter) for one in self.active if one.adapter.key is not None}
        if job.adapter.key is not None and id(job.adapter) not in adapters and len(adapters) >= self._max_adapters:
            return Admission.CAPPED
        virtual = job.adapter.virtual
        public = self.tree.public_length(job.adapter, job.tokens[: job.prompt_end])
        job.shared = 0 if job.source else min(max(virtual + job.request.shared_tokens, public), job.prompt_end)
        job.key = _key(job, job.tokens)
        reusable = job.reusable
        namespace, match = self._match(job, virtual if reusable is None else reusable)
        job.marks = self._marks(job, match, self._rows.cache)
        if reusable is not None and any(self._beginsalike(job, other, match.length) for other in self.active):
            return Admission.LATER
        try:
            self._rows.give(job, namespace, match)
        except Exception as error:  # no memory for it: it fails in this step, and takes no other along
            job.failed = error
            self._rows.give_up(job, namespace)
        if job.cached is None:
            job.cached = min(max(match.length - virtual, 0), len(job.request.tokens))
            if reusable is not None:
                self._counters.prefix_queries += len(job.request.tokens)
                self._counters.prefix_hits += job.cached
        self._enter(job)
        return Admission.IN

    def _is_full(self, job: Job, rows: CacheRows) -> bool:
        if len(rows) >= self._max_rows + ONE_PASS_ROWS:
            return True
        if job.lasting and sum(one.lasting for one in self.active) >= self._max_rows:
            return True
        lengths = [len(one.tokens) + HEADROOM for one in (*self.active, job)]
        return bool(self.active) and not rows.cache.room(lengths)

    def _enter(self, job: Job) -> None:
        if job.started is None:
            job.started = time.monotonic()
        self.active.append(job)

    def _match(self, job: Job, limit: int) -> tuple[object, Match]:
        """The namespace with the longest match: states of fewer layers are in one of their own."""
        match = self.tree.match(job.adapter, job.key, limit)
        if match.length < job.source:  # part of what an encoder reads is of no use
            match = Match()
        if job.depth is None:
            return job.adapter, match
        shallow = self.tree.match((job.adapter, job.depth), job.key, limit)
        better = (shallow.length, shallow.known) > (match.length, match.known)
        return ((job.adapter, job.depth), shallow) if better else (job.adapter, match)

    def _marks(self, job: Job, match: Match, cache: KVCache) -> tuple[int, ...]:
        """Where a job's states are to be saved: where what others may share ends (as said, or as another's prompt
        showed by parting from it), at the prompt's last whole block, and where the job itself comes back to."""
        if not cache.states:
            return ()
        block = self.tree.block
        wanted = [job.shared, match.known, job.returns_to or 0]
        if job.reusable is not None:
            wanted.append(job.reusable // SNAPSHOT * SNAPSHOT)
        rounded = {at // block * block for at in wanted}
        return tuple(sorted(at for at in rounded if match.length < at < len(job.tokens) or at == job.returns_to))

    @staticmethod
    def _beginsalike(job: Job, other: Job, known: int) -> bool:
        """Whether another is just computing, for all to use, what this job would compute again."""
        if other.adapter is not job.adapter or other.depth != job.depth or other.done >= other.prompt_end:
            return False
        end = known + MIN_SHARED
        return end < len(job.key) and other.key[:end] == job.key[:end]

    # Running

    def decoding(self) -> list[Share]:
        """The next token of every running generation, with what is guessed after it."""
        running = [job for job in self.active if job.decoding]
        most = SPECULATED_TOKENS // len(running) - 1 if self._speculates and running else 0
        # One guess for each of many rows doubles the tokens of a step, and gains less than that costs.
        return [Share(job, 1, job.draft(most) if most > 1 else ()) for job in running]

    @torch.inference_mode()
    def execute(self, work: Sequence[Share]) -> list[Job]:
        """Computes the step; returns the jobs that it ended or failed, which are to `leave`."""
        began = time.perf_counter()
        computed: list[tuple[Job, int]] = []
        for (depth, _), part in alike([one for one in work if one.job.failed is None]).items():
            fitting = self._make_room(part)
            if fitting:
                self._attempt(fitting, depth, computed)
        seconds, total = time.perf_counter() - began, sum(count for _, count in computed)
        for job, count in computed:
            job.compute += seconds * count / total
            self._keep_in_time(job)
        return [job for job in self.active if job.ended is not None or job.failed is not None]

    def _attempt(self, work: list[Share], depth: int | None, computed: list[tuple[Job, int]]) -> None:
        """Runs jobs together; when that fails, each alone, so that one bad request takes no neighbour along."""
        try:
            self._pass(work, depth, computed)
        except Exception as error:
            if len(work) == 1 or is_out_of_memory(error):
                for one in work:
                    one.job.failed = error
                return
            for one in work:
                self._attempt([Share(one.job, one.count)], depth, computed)

    def _pass(self, work: list[Share], depth: int | None, computed: list[tuple[Job, int]]) -> None:
        tokens: list[int] = []
        spans: list[Span] = []
        adapters: list[Loaded] = []
        sources: list[Source] = []
        types: list[int] = []
        wanted: list[int] = []
        asked: list[tuple[Wants, int]] = []
        for one in work:
            job, begin, row = one.job, one.begin, 0 if one.job.row is None else one.job.row
            asked.append((job.wanted(job.done, one.end), len(wanted)))
            wanted += [len(tokens) - begin + at for at in asked[-1][0].logits]
            if one.tokens:
                spans.append(Span(row, begin, one.tokens, 0 if job.reads else job.source))
                adapters.append(job.adapter)
            if job.types:
                types += [0] * (len(tokens) - len(types)) + list(job.types[begin : one.end])
            tokens += job.tokens[begin : one.end]
            wanted += range(len(tokens), len(tokens) + len(one.draft))
            tokens += one.draft
            if job.done < job.source <= one.end and not job.reads:
                sources.append(Source(row, job.tokens[: job.source], job.adapter))
        states, reads = any(one.states for one, _ in asked), work[0].job.reads
        types += [0] * (len(tokens) - len(types)) if types else []
        out = PassOutput(None)
        if spans or sources:
            out = self.forward(FlatBatch(tokens, spans, adapters, wanted, depth, states, types, sources, reads))
        computed += [(one.job, one.count + len(one.draft)) for one in work]
        self._counters.computed_tokens += len(tokens) + sum(len(one.tokens) for one in sources)
        self._take(work, asked, out)

    def _take(self, work: list[Share], asked: list[tuple[Wants, int]], out: PassOutput) -> None:
        rows: list[tuple[Job, WritingRow]] = []
        at = 0
        for one, (wanted, first) in zip(work, asked, strict=True):
            seen = Seen(one.begin, one.end, wanted.logits, one.draft, out, first, at)
            at += one.tokens
            job = one.job
            try:
                row = self._progress(job, seen)
            except Exception as error:
                job.failed = error
            else:
                rows += [] if row is None else [(job, row)]
        self._choose(rows, out)
        for job, row in rows:
            self._counters.generated_tokens += row.said
            self._counters.speculated += len(row.draft)
            self._counters.accepted += row.writer.learn(row.said, row.draft)
            job.stream.notify()

    def _progress(self, job: Job, seen: Seen) -> WritingRow | None:
        """Hands a job what its tokens gave; its row, if it is now to choose a next token."""
        whole, before, job.done = seen.end == len(job.tokens), job.done, seen.end
        self._counters.prompt_tokens += 0 if job.begun else seen.end - before
        row = job.take(seen) if seen.end > seen.begin else None
        if seen.end in job.marks:
            self._keep(job, seen.end, snapshot=True)
        if whole:
            self._keep(job, job.keeps(before, seen.end))
        if job.done < seen.end:
            self._rewind(job)
        return row

    def _rewind(self, job: Job) -> None:
        """A job goes on from an earlier position: from what is kept of it, where its row cannot go back so far."""
        if self._rows is not None and job.row is not None and not self._rows.cache.rewinds(job.row, job.done):
            _, match = self._match(job, job.done)
            self._rows.cache.free(job.row)
            self._rows.load(job.row, match)
            job.done = match.length

    def _choose(self, rows: list[tuple[Job, WritingRow]], out: PassOutput) -> None:
        try:
            choose([row for _, row in rows], out.logits_WV, out.greedy, sample)
        except Exception as error:
            # One row's settings must not end its neighbours: those that got nothing are tried alone.
            for job, row in rows:
                if job.ended is None and job.failed is None and not row.said:
                    if len(rows) == 1:
                        job.failed = error
                    else:
                        self._choose([(job, row)], out)

    # Room, and leaving

    def _make_room(self, work: list[Share]) -> list[Share]:
        """Room for the step's tokens; the youngest generations give up their rows where there is none."""
        rows = self._rows
        if rows is None:
            return work
        while True:
            lengths = {job.row: job.done for job in self.active if job.row is not None}
            for one in work:
                if one.job.row is not None:
                    lengths[one.job.row] = one.job.done + one.count + len(one.draft)
            if len(lengths) <= 1 or rows.cache.room(list(lengths.values())):
                break
            victim = max(self.active, key=lambda job: (job.lasting, job.number))
            self._preempt(victim)
            work = [one for one in work if one.job is not victim]
        rows.reserve(lengths)
        return work

    def _preempt(self, job: Job) -> None:
        self._counters.preemptions += 1
        if job.begun:
            self._keep(job, job.done, snapshot=True)
        self._leave_row(job)
        self.active.remove(job)
        job.restart()
        self.put_back(job)

    def _keep(self, job: Job, length: int, snapshot: bool = False) -> None:
        """Saves a job's first tokens into the prefix cache, with its states there if so asked."""
        cache, row = self.cache, job.row
        if cache is None or row is None or job.adapter.retired:
            return
        snapshot = snapshot and bool(cache.states) and cache.states.is_at(row, length)
        if job.kept > length or (job.kept == length and not snapshot):
            return
        key = job.key[:length]
        if length > len(key):
            key = _key(job, job.tokens[:length])
        depth = job.depth

        def save(begin: int, end: int) -> Segment | None:
            return cache.save(row, begin, end, depth, snapshot)

        self.tree.insert(_namespace(job), key, save, cache.saved_bytes(depth), (job.shared,), snapshot)
        job.kept = length

    def _keep_in_time(self, job: Job) -> None:
        """Saves what the job's row would have forgotten after one more step."""
        if self.cache is not None and self.cache.forgets and job.failed is None:
            length = job.done if job.begun else min(job.done, job.prompt_end)
            if length - job.kept >= self.cache.step:
                self._keep(job, length)

    def leave(self, jobs: Sequence[Job]) -> None:
        """Jobs that have ended, running or waiting, give up their rows and get their results."""
        for job in jobs:
            if job in self.active:
                self.active.remove(job)
            if job.failed is None and job.begun:
                self._keep(job, job.done, snapshot=True)
            self._leave_row(job)
            if job.failed is not None:
                fail_all([job], job.failed)
                continue
            try:
                job.stream.finish(job.result())
            except Exception as error:
                fail_all([job], error)

    def _leave_row(self, job: Job) -> None:
        if self._rows is not None:
            self._rows.give_up(job, _namespace(job))

    def abandon(self, error: BaseException) -> None:
        """After an interrupt in the middle of a step nothing of what was running can go on."""
        for job in self.active:
            job.failed = job.failed or error
        self.leave(list(self.active))
        if self._rows is not None:
            self._rows.forget()

    # Beginnings for everybody

    @torch.inference_mode()
    def compute_prefix(self, adapter: Loaded, tokens: Sequence[int], vectors_PD: Tensor | None = None) -> None:
        """Pins a beginning of an adapter's namespace: tokens, or the vectors of a soft prompt (with stand-in ids)."""
        assert self._rows is not None
        cache, key = self._rows.cache, tuple(tokens)
        match = self.tree.match(adapter, key, len(key))
        row = self._rows.borrow(match, len(key))
        at = match.length
        for end in (*range(at + cache.step, len(key), cache.step), len(key)):
            span = Span(row, at, end - at)
            if vectors_PD is not None:
                self.torch_forward.embedded(vectors_PD[at:end], adapter, span)
            elif span.length:
                self.forward(FlatBatch(key[at:end], [span], [adapter], ()))
            # Each piece is kept as soon as it is there; the next one holds it.
            self.tree.pin(adapter, key[:end], lambda begin, end: cache.save(row, begin, end), cache.token_bytes)
            if at > match.length:
                self.tree.unpin(adapter, key[:at])
            at = end
        cache.free(row)


def _key(job: Job, tokens: Sequence[int]) -> Key:
    """The key of a job's first tokens in the prefix cache."""
    if job.source:
        return read_whole(tokens, job.source, job.request.tenant)
    return salted(tokens, job.shared, job.request.tenant)


def _namespace(job: Job) -> object:
    return job.adapter if job.depth is None else (job.adapter, job.depth)


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
