"""Lets requests in, runs their tokens through the base, and keeps what was computed for those that come after.

Called by one thread at a time. Every sequence of a decoder has a row of the cache; what it computed is saved into the
prefix cache when its prompt is done and when it ends. An encoder's texts are whole documents without rows.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bedplate.core.errors import RequestError
from bedplate.inference.engine import answers
from bedplate.inference.engine.cache_rows import Seats
from bedplate.inference.engine.generation import Generating, Row, result_of
from bedplate.inference.engine.job import Job, fail_all
from bedplate.inference.engine.requests import Classify, Embed, Generate, Score
from bedplate.inference.engine.sampler import sample
from bedplate.inference.engine.scheduler import Admission
from bedplate.inference.engine.speculate import Drafter
from bedplate.inference.engine.stats import Counters
from bedplate.inference.forward.adapters import Loaded
from bedplate.inference.forward.kv_cache import KVCache, Span
from bedplate.inference.forward.radix import Match, RadixTree, Segment, salted
from bedplate.inference.forward.torch import Batch, Forward, Forwarded, TorchForward
from bedplate.models.checkpoints.base import Base

# Shorter common beginnings are not worth waiting for.
MIN_SHARED = 16
# Rows beside those for generations: requests of one pass hold theirs for a step or two.
ONE_PASS_ROWS = 48
# A step of so many tokens still takes about as long as one of few.
SPECULATED_TOKENS = 16
# Rows are let in only where all may grow by so much, lest they be put out again at once.
HEADROOM = 32


@dataclass(frozen=True)
class Work:
    """`count` next tokens of a job, and what is guessed to follow them."""

    job: Job
    count: int
    draft: Sequence[int] = ()


class Runner:
    """Owns the cache and the running jobs. `cache` is None for an encoder."""

    def __init__(
        self,
        base: Base,
        cache: KVCache | None,
        forward: Forward,
        torch_forward: TorchForward,
        tree: RadixTree,
        generating: Generating,
        *,
        max_rows: int,
        max_adapters: int,
        put_back: Callable[[Job], None],
        speculates: bool,
        counters: Counters,
    ) -> None:
        self.base, self.cache, self.tree = base, cache, tree
        self.forward = forward
        self.torch_forward = torch_forward
        self.active: list[Job] = []
        self._max_rows, self._max_adapters = max_rows, max_adapters
        self._put_back = put_back
        self._speculates = speculates
        self._counters = counters
        self._seats = None if cache is None else Seats(cache)
        self._generating = generating

    # Letting in

    @torch.inference_mode()
    def admit(self, job: Job) -> Admission:
        """Gives a job a row that begins with what is cached of it."""
        if self._seats is None:
            self._enter(job)
            return Admission.IN
        if self._is_full(job, self._seats):
            return Admission.FULL
        adapters = {id(one.adapter) for one in self.active if one.adapter.key is not None}
        if job.adapter.key is not None and id(job.adapter) not in adapters and len(adapters) >= self._max_adapters:
            return Admission.CAPPED
        virtual = job.adapter.virtual
        public = self.tree.public_length(job.adapter, job.tokens[: job.prompt_end])
        job.shared = min(max(virtual + job.request.shared_tokens, public), job.prompt_end)
        job.key = salted(job.tokens, job.shared, job.request.tenant)
        limit = (len(job.tokens) if job.generates else job.prompt_end) - 1 if job.shares else virtual
        namespace, match = self._match(job, limit)
        if job.shares and any(self._begins_alike(job, other, match.length) for other in self.active):
            return Admission.LATER
        try:
            self._seats.seat(job, namespace, match)
        except Exception as error:  # no memory for it: it fails in this step, and takes no other along
            job.failed = error
            self._seats.give_up(job, namespace)
        if job.cached is None:
            job.cached = max(match.length - virtual, 0)
            if job.shares:
                self._counters.prefix_queries += len(job.request.tokens)
                self._counters.prefix_hits += job.cached
        self._enter(job)
        return Admission.IN

    def _is_full(self, job: Job, seats: Seats) -> bool:
        if len(seats) >= self._max_rows + ONE_PASS_ROWS:
            return True
        if job.generates and sum(one.generates for one in self.active) >= self._max_rows:
            return True
        lengths = [len(one.tokens) + HEADROOM for one in (*self.active, job)]
        return bool(self.active) and not seats.cache.room(lengths)

    def _enter(self, job: Job) -> None:
        if job.started is None:
            job.started = time.monotonic()
        self.active.append(job)

    def _match(self, job: Job, limit: int) -> tuple[object, Match]:
        """The namespace with the longest match: states of fewer layers are in one of their own."""
        match = self.tree.match(job.adapter, job.key, limit)
        if job.depth is None:
            return job.adapter, match
        shallow = self.tree.match((job.adapter, job.depth), job.key, limit)
        return ((job.adapter, job.depth), shallow) if shallow.length > match.length else (job.adapter, match)

    @staticmethod
    def _begins_alike(job: Job, other: Job, known: int) -> bool:
        """Whether another is just computing, for all to use, what this job would compute again."""
        if other.adapter is not job.adapter or other.depth != job.depth or other.done >= other.prompt_end:
            return False
        end = known + MIN_SHARED
        return end < len(job.key) and other.key[:end] == job.key[:end]

    # Running

    def decoding(self) -> list[Work]:
        """The next token of every running generation, with what is guessed after it."""
        running = [job for job in self.active if job.decoding]
        most = self._most_drafted(len(running))
        work: list[Work] = []
        for job in running:
            draft: list[int] = []
            if most > 0 and job.state is not None:
                left = min(most, job.limit - len(job.state.output) - 1)
                if job.drafter is not None:
                    draft = job.drafter.draft(left)
                elif job.state.matcher is not None:
                    # Where a grammar leaves no choice, the next tokens need not be waited for.
                    draft = job.state.matcher.forced()[:left]
            work.append(Work(job, 1, draft))
        return work

    def _most_drafted(self, rows: int) -> int:
        return SPECULATED_TOKENS // rows - 1 if self._speculates and rows else 0

    @torch.inference_mode()
    def execute(self, work: Sequence[Work]) -> list[Job]:
        """Computes the step; returns the jobs that it ended or failed, which are to `leave`."""
        began = time.perf_counter()
        computed: list[tuple[Job, int]] = []
        for depth, part in _by_depth([one for one in work if one.job.failed is None]).items():
            fitting = self._make_room(part)
            if fitting:
                self._attempt(fitting, depth, computed)
        seconds, total = time.perf_counter() - began, sum(count for _, count in computed)
        for job, count in computed:
            job.compute += seconds * count / total
        return [job for job in self.active if job.ended is not None or job.failed is not None]

    def _attempt(self, work: list[Work], depth: int | None, computed: list[tuple[Job, int]]) -> None:
        """Runs jobs together; when that fails, each alone, so that one bad request takes no neighbour along."""
        try:
            self._pass(work, depth, computed)
        except Exception as error:
            if len(work) == 1 or is_out_of_memory(error):
                for one in work:
                    one.job.failed = error
                return
            for one in work:
                self._attempt([Work(one.job, one.count)], depth, computed)

    def _pass(self, work: list[Work], depth: int | None, computed: list[tuple[Job, int]]) -> None:
        tokens: list[int] = []
        spans: list[Span] = []
        wanted: list[int] = []
        first_wanted: list[int] = []
        states = False
        for one in work:
            job, begin = one.job, one.job.done
            end = begin + one.count
            offset = len(tokens) - begin
            tokens += job.tokens[begin:end]
            first_wanted.append(len(wanted))
            wanted += [offset + at for at in answers.wanted_positions(job, begin, end)]
            if one.draft:
                wanted += range(len(tokens), len(tokens) + len(one.draft))
                tokens += one.draft
            spans.append(Span(0 if job.row is None else job.row, begin, one.count + len(one.draft)))
            states = states or isinstance(job.request, Classify | Embed)
        batch = Batch(tokens, spans, [one.job.adapter for one in work], wanted, depth, states)
        out = self.forward(batch)
        computed += [(one.job, span.length) for one, span in zip(work, spans, strict=True)]
        self._counters.computed_tokens += len(tokens)
        self._take(work, spans, first_wanted, out)

    def _take(self, work: list[Work], spans: list[Span], first_wanted: list[int], out: Forwarded) -> None:
        rows: list[Row] = []
        begin = 0
        for one, span, at in zip(work, spans, first_wanted, strict=True):
            job = one.job
            states = None if out.hidden_ND is None else out.hidden_ND[begin : begin + one.count]
            begin += span.length
            last = at + one.count - 1 if job.asks_prompt else at
            try:
                if self._progress(job, span.start, span.start + one.count, states, out.logits_WV, at):
                    rows.append(Row(job, last, one.draft))
            except Exception as error:
                job.failed = error
        self._advance(rows, out)

    def _advance(self, rows: list[Row], out: Forwarded) -> None:
        before = {id(row): len(row.job.tokens) for row in rows}
        try:
            self._generating.advance(rows, out.logits_WV, out.greedy, sample)
        except Exception as error:
            # One row's settings must not end its neighbours: those that got nothing are tried alone.
            for row in [row for row in rows if row.job.ended is None and len(row.job.tokens) == before[id(row)]]:
                if len(rows) == 1:
                    row.job.failed = error
                else:
                    self._advance([row], out)
            return
        now = time.monotonic()
        for row in rows:
            self._count_said(row, len(row.job.tokens) - before[id(row)])
            row.job.first = row.job.first or now
            row.job.stream.notify()

    def _count_said(self, row: Row, said: int) -> None:
        self._counters.generated_tokens += said
        if row.draft:
            accepted = max(min(said - (row.job.ended is None), len(row.draft)), 0)
            self._counters.speculated += len(row.draft)
            self._counters.accepted += accepted
            if row.job.drafter is not None:
                row.job.drafter.learn(len(row.draft), accepted)

    def _progress(
        self, job: Job, begin: int, end: int, states: Tensor | None, logits_WV: Tensor | None, at: int
    ) -> bool:
        """Takes in what the tokens begin … end of a job gave; whether it is now to choose a next token."""
        request, whole = job.request, end == len(job.tokens)
        job.done = end
        self._counters.prompt_tokens += end - begin if job.state is None else 0
        if isinstance(request, Generate):
            if job.asks_prompt:
                assert logits_WV is not None
                count = request.sampling.prompt_logprobs or 0
                answers.prompt_logprobs(job, count, begin, logits_WV[at : at + end - begin])
            if whole and end - begin > 1:
                self._keep(job, end)
            return whole and self._begin(job, request)
        if isinstance(request, Score):
            wanted = answers.wanted_positions(job, begin, end)
            if wanted:
                assert logits_WV is not None
                answers.score(job, request, wanted[0], logits_WV[at : at + len(wanted)])
            if whole:
                self._keep(job, job.prompt_end)
                if not answers.next_branch(job, request):
                    job.ended = "stop"
            return False
        assert states is not None
        answers.pool(job, answers.pooling_of(self.base, request), begin, states)
        if whole:
            self._keep(job, len(job.tokens))
            job.ended = "stop"
        return False

    def _begin(self, job: Job, request: Generate) -> bool:
        """The tokens so far are computed: whether another is to be chosen."""
        if job.state is None:
            self._generating.begin(job, request)
            if self._speculates and request.grammar is None:
                job.drafter = Drafter(job.tokens)
            if job.limit == 0:
                self._generating.end(job, "length")
        return job.ended is None

    # Room, and leaving

    def _make_room(self, work: list[Work]) -> list[Work]:
        """Room for the step's tokens; the youngest generations give up their rows where there is none."""
        seats = self._seats
        if seats is None:
            return work
        while True:
            lengths = {job.row: job.done for job in self.active if job.row is not None}
            for one in work:
                if one.job.row is not None:
                    lengths[one.job.row] = one.job.done + one.count + len(one.draft)
            if len(lengths) <= 1 or seats.cache.room(list(lengths.values())):
                break
            victim = max(self.active, key=lambda job: (job.generates, job.number))
            self._preempt(victim)
            work = [one for one in work if one.job is not victim]
        seats.reserve(lengths)
        return work

    def _preempt(self, job: Job) -> None:
        self._counters.preemptions += 1
        if job.state is not None:
            self._keep(job, job.done)
        self._leave_row(job)
        self.active.remove(job)
        job.restart()
        self._put_back(job)

    def _keep(self, job: Job, length: int) -> None:
        """Saves a job's first tokens into the prefix cache."""
        cache, row = self.cache, job.row
        if cache is None or row is None or job.adapter.retired or job.kept >= length:
            return
        key = job.key[:length]
        if length > len(key):
            key = salted(job.tokens[:length], job.shared, job.request.tenant)
        depth = job.depth

        def save(begin: int, end: int) -> Segment:
            return cache.save(row, begin, end, depth)

        self.tree.insert(_namespace(job), key, save, cache.saved_bytes(depth), cuts=(job.shared,))
        job.kept = length

    def leave(self, jobs: Sequence[Job]) -> None:
        """Jobs that have ended, running or waiting, give up their rows and get their results."""
        for job in jobs:
            if job in self.active:
                self.active.remove(job)
            if job.failed is None and job.generates and job.state is not None:
                self._keep(job, job.done)
            self._leave_row(job)
            if job.failed is not None:
                fail_all([job], job.failed)
                continue
            try:
                job.stream.finish(replace(result_of(self.base, job), looked_up=job.request.looked_up))
            except Exception as error:
                fail_all([job], error)

    def _leave_row(self, job: Job) -> None:
        if self._seats is not None:
            self._seats.give_up(job, _namespace(job))

    def cancel(self, job: Job) -> None:
        """Ends a running job whose caller has gone: a generation that has begun keeps what it has."""
        if job.state is not None:
            self._generating.end(job, "cancelled")
        else:
            job.failed = cancelled()

    def abandon(self, error: BaseException) -> None:
        """After an interrupt in the middle of a step nothing of what was running can go on."""
        for job in self.active:
            job.failed = job.failed or error
        self.leave(list(self.active))
        if self._seats is not None:
            self._seats.forget()

    # Beginnings for everybody

    @torch.inference_mode()
    def compute_prefix(self, adapter: Loaded, tokens: Sequence[int], vectors_PD: Tensor | None = None) -> None:
        """Pins a beginning of an adapter's namespace: tokens, or the vectors of a soft prompt (with stand-in ids)."""
        assert self._seats is not None
        cache, key = self._seats.cache, tuple(tokens)
        match = self.tree.match(adapter, key, len(key))
        row = self._seats.borrow(match, len(key))
        at = match.length
        if vectors_PD is not None:
            self.torch_forward.embedded(vectors_PD, adapter, row)
        elif at < len(key):
            self.forward(Batch(key[at:], [Span(row, at, len(key) - at)], [adapter], ()))
        self.tree.pin(adapter, key, lambda begin, end: cache.save(row, begin, end), cache.token_bytes)
        cache.free(row)


def _namespace(job: Job) -> object:
    return job.adapter if job.depth is None else (job.adapter, job.depth)


def _by_depth(work: Sequence[Work]) -> dict[int | None, list[Work]]:
    parts: dict[int | None, list[Work]] = defaultdict(list)
    for one in work:
        parts[one.job.depth].append(one)
    return parts


def cancelled() -> RequestError:
    return RequestError("the request was cancelled before it started", code="cancelled")


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
