"""Admits requests, runs their tokens through the model and saves computed prefixes to the prefix cache.

1. `admit`: a job gets a cache row that begins with its longest cached prefix, or waits (full, capped, or its prefix is
   just being computed for another job).
2. `decoding`: every running generation is scheduled for its next token, with a draft where the engine speculates.
3. `execute`: room is made in the cache; where there is none, the youngest generations are preempted and recomputed
   later.
4. `_attempt`: compatible shares run as one batch; if that fails, each runs alone, so that one bad request fails alone.
5. `_distribute`: each job consumes its part of the output, then next tokens are chosen for all generating rows.
6. `leave`: jobs that have ended save their prefixes, free their rows and deliver their results.

Called by one thread at a time. An encoder reads each text in one pass, without a cache row.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bedplate.core.errors import NotFiniteError, UsageError, need_failure
from bedplate.inference.engine.prefix_store import CacheRows, PrefixStore, namespace, shares_prefix
from bedplate.inference.engine.requests.job import PassRequest, PassResult, RequestJob, give_error
from bedplate.inference.engine.sampler import sample
from bedplate.inference.engine.scheduled_tokens import ScheduledTokens, build_batch, compatible_shares
from bedplate.inference.engine.scheduler import Admission
from bedplate.inference.engine.stats import Counters
from bedplate.inference.engine.token_selection import WritingRow, choose
from bedplate.inference.forward.batch import FlatBatch, LoadedAdapter, PassOutput, VectorInput
from bedplate.inference.forward.kv_cache import KVCache
from bedplate.inference.forward.radix import RadixTree
from bedplate.inference.forward.spans import Span
from bedplate.inference.forward.torch import Forward, TorchForward, one_thread

# Rows in addition to those of generations, for requests that need a row for a step or two only.
ONE_PASS_ROWS = 48
# A step of up to this many tokens takes about as long as a step of few.
SPECULATED_TOKENS = 16
# A job is admitted only where every row can grow by this many tokens, so that it is not preempted at once.
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
        self.active: list[RequestJob] = []
        self.max_rows, self._max_adapters = max_rows, max_adapters
        self.shares: Mapping[str, int] | None = None
        """The number of rows that each tenant may use for generations, where there are too few for all."""
        self.tenants = 1
        """The number of tenants that have requests."""
        self.put_back: Callable[[RequestJob], None] = lambda job: None
        """Called with each preempted job."""
        self._speculates = speculates
        self._counters = counters
        self._rows = None if cache is None else CacheRows(cache)
        self._prefixes = None if cache is None else PrefixStore(tree, cache)

    # Admission

    @torch.inference_mode()
    def admit(self, job: RequestJob) -> Admission:
        """Admits a job to a row that begins with its cached prefix. An error fails this job alone, in this step."""
        try:
            return self._admit(job)
        except BaseException as error:
            need_failure(error)
            job.failed = error
            self._release_row(job)
            self._enter(job)
            return Admission.IN

    def _admit(self, job: RequestJob) -> Admission:
        if self._rows is None or self._prefixes is None or job.reads or not job.is_sequence:
            self._enter(job)
            return Admission.IN
        if self._is_full(job, self._rows):
            return Admission.FULL
        adapters = {id(active_job.adapter) for active_job in self.active if active_job.adapter.key is not None}
        if job.adapter.key is not None and id(job.adapter) not in adapters and len(adapters) >= self._max_adapters:
            return Admission.CAPPED
        cache_namespace, match = self._prefixes.match_prefix(job)
        if job.reusable is not None and any(shares_prefix(job, active_job, match.length) for active_job in self.active):
            return Admission.LATER
        try:
            self._rows.assign(job, cache_namespace, match)
        except BaseException as error:
            need_failure(error)
            if not self.active or not is_out_of_memory(error):
                raise
            return Admission.FULL  # it waits until running jobs free memory
        if job.cached is None:
            job.cached = min(max(match.length - job.adapter.virtual, 0), len(job.request.tokens))
            if job.reusable is not None:
                self._counters.prefix_queries += len(job.request.tokens)
                self._counters.prefix_hits += job.cached
        self._enter(job)
        return Admission.IN

    def _is_full(self, job: RequestJob, rows: CacheRows) -> bool:
        if len(rows) >= self.max_rows + ONE_PASS_ROWS:
            return True
        if job.holds_row:
            tenants = [active_job.request.tenant for active_job in self.active if active_job.holds_row]
            tenant = job.request.tenant
            if len(tenants) >= self.max_rows:
                return True
            if self.shares is not None and tenants.count(tenant) >= self.shares.get(tenant, self.max_rows):
                return True
        if job.request.tenant and self._tenant_is_full(job, rows):
            return True
        lengths = [len(candidate.tokens) + HEADROOM for candidate in (*self.active, job)]
        return bool(self.active) and not rows.cache.room(lengths)

    def _tenant_is_full(self, job: RequestJob, rows: CacheRows) -> bool:
        """Whether the job's tenant already uses its equal part of the cache or of the one-pass rows. One part stays
        free for a tenant that arrives next."""
        active = [active_job for active_job in self.active if active_job.request.tenant == job.request.tenant]
        parts = self.tenants + 1
        max_rows = max(1, ONE_PASS_ROWS // parts)
        if not job.holds_row and sum(not active_job.holds_row for active_job in active) >= max_rows:
            return True
        lengths = [len(candidate.tokens) + HEADROOM for candidate in (*active, job)]
        return bool(active) and not rows.cache.room(lengths, parts)

    def _enter(self, job: RequestJob) -> None:
        if job.started is None:
            job.started = time.monotonic()
        self.active.append(job)

    # Computation

    def decoding(self) -> list[ScheduledTokens]:
        """The next token of every running generation, each with its draft."""
        running = [job for job in self.active if job.decoding]
        draft_limit = SPECULATED_TOKENS // len(running) - 1 if self._speculates and running else 0
        # A single drafted token in each of many rows doubles the tokens of a step, and costs more than it gains.
        return [ScheduledTokens(job, 1, _drafted(job, draft_limit) if draft_limit > 1 else ()) for job in running]

    @torch.inference_mode()
    def execute(self, work: Sequence[ScheduledTokens]) -> list[RequestJob]:
        """Computes the step; returns the jobs that ended or failed, to pass to `leave`."""
        began = time.perf_counter()
        computed: list[tuple[RequestJob, int]] = []
        runnable = [share for share in work if share.job.failed is None]
        for part in compatible_shares(runnable, self.forward is not self.torch_forward):
            try:
                fitting = self._make_room(part)
            except BaseException as error:
                need_failure(error)
                _fail(part, error)
            else:
                with one_thread() if self._is_small(fitting) else contextlib.nullcontext():
                    self._attempt(fitting, computed)
        seconds, total = time.perf_counter() - began, sum(count for _, count in computed)
        for job, count in computed:
            job.compute += seconds * count / total
            if self._prefixes is not None:
                self._prefixes.save_before_eviction(job)
        return [job for job in self.active if job.ended is not None or job.failed is not None]

    def _is_small(self, work: Sequence[ScheduledTokens]) -> bool:
        """Whether torch computes a part of a step, and chooses its tokens, faster on one thread."""
        if self.forward is not self.torch_forward or any(share.job.source and not share.job.reads for share in work):
            return False
        spans = [(share.tokens, share.end) for share in work if share.job.is_sequence]
        return len(spans) == len(work) and self.torch_forward.is_small(spans)

    def _attempt(self, work: list[ScheduledTokens], computed: list[tuple[RequestJob, int]]) -> None:
        """Runs jobs as one batch; if that fails, each alone, so that a bad request fails without its neighbours."""
        if not work:
            return
        try:
            pass_requests, out = self._pass(work)
        except BaseException as error:
            need_failure(error)
            if len(work) == 1 or is_out_of_memory(error):
                _fail(work, error)
                return
            for share in work:
                self._attempt([ScheduledTokens(share.job, share.count)], computed)
            return
        computed += [(share.job, share.count + len(share.draft)) for share in work]
        self._distribute(work, pass_requests, out)

    def _pass(self, work: list[ScheduledTokens]) -> tuple[list[tuple[PassRequest, int]], PassOutput]:
        """Each job's pass request with the index of its first logits, and the pass's output."""
        batch, pass_requests = build_batch(work)
        out = PassOutput(None)
        if batch.vectors or batch.latents:
            out = self.torch_forward(batch)  # the native kernel embeds tokens alone
        elif batch.spans or batch.sources:
            out = self.forward(batch)
        self._counters.computed_tokens += len(batch.tokens) + sum(len(source.tokens) for source in batch.sources)
        return pass_requests, out

    def _distribute(
        self, work: list[ScheduledTokens], pass_requests: list[tuple[PassRequest, int]], out: PassOutput
    ) -> None:
        """Passes each job its part of the output, then chooses the next tokens of the rows that generate."""
        rows: list[tuple[RequestJob, WritingRow]] = []
        token_index = latents_index = 0
        for share, (pass_request, logits_index) in zip(work, pass_requests, strict=True):
            pass_result = PassResult(
                share.begin, share.end, pass_request.logits, share.draft, out, logits_index, token_index
            )
            token_index += share.tokens
            if pass_request.latents is not None:
                pass_result.latents_index = latents_index
                latents_index += 1
            job = share.job
            try:
                row = self._progress(job, pass_result)
            except BaseException as error:
                need_failure(error)
                job.failed = error
            else:
                rows += [] if row is None else [(job, row)]
        self._choose(rows, out)
        for job, row in rows:
            self._counters.generated_tokens += row.chosen_count
            self._counters.speculated += len(row.draft)
            self._counters.accepted += row.writer.learn(row.chosen_count, row.draft)
            job.stream.notify()

    def _progress(self, job: RequestJob, pass_result: PassResult) -> WritingRow | None:
        """Passes a job its output and saves its prefix; returns its row where its next token is to be chosen."""
        whole, before, job.computed_tokens = pass_result.end == len(job.tokens), job.computed_tokens, pass_result.end
        self._counters.prompt_tokens += 0 if job.begun else pass_result.end - before
        empty = pass_result.end == pass_result.begin and pass_result.latents_index is None
        row = None if empty else job.consume(pass_result)
        if self._prefixes is not None:
            if pass_result.end in job.marks:
                self._prefixes.store(job, pass_result.end, snapshot=True)
            if whole:
                self._prefixes.store(job, job.cacheable_length(before, pass_result.end))
        if job.computed_tokens < pass_result.end:
            self._rewind(job)
        return row

    def _rewind(self, job: RequestJob) -> None:
        """Moves a job back to an earlier position; where its row cannot go back that far, it is reloaded from the
        prefix cache."""
        if self._rows is None or self._prefixes is None or job.row is None:
            return
        if not self._rows.cache.rewinds(job.row, job.computed_tokens):
            _, match = self._prefixes.match(job, job.computed_tokens)
            self._rows.cache.free(job.row)
            self._rows.load(job.row, match)
            job.computed_tokens = match.length

    def _choose(self, rows: list[tuple[RequestJob, WritingRow]], out: PassOutput) -> None:
        try:
            choose([row for _, row in rows], out.logits_WV, out.greedy, sample)
        except BaseException as error:
            need_failure(error)
            # One row's settings must not fail its neighbours: rows without a token are tried alone.
            for job, row in rows:
                if job.ended is None and job.failed is None and not row.chosen_count:
                    if len(rows) == 1:
                        job.failed = error
                    else:
                        self._choose([(job, row)], out)

    # Preemption and departure

    def _make_room(self, work: list[ScheduledTokens]) -> list[ScheduledTokens]:
        """Reserves cache for the step's tokens; while there is too little, the youngest generations of the tenant with
        the most tokens are preempted."""
        rows = self._rows
        if rows is None:
            return work
        while True:
            lengths = {job.row: job.computed_tokens for job in self.active if job.row is not None}
            for share in work:
                if share.job.row is not None:
                    lengths[share.job.row] = share.job.computed_tokens + share.count + len(share.draft)
            alone = len(lengths) <= 1
            if alone or rows.cache.room(list(lengths.values())):
                try:
                    rows.cache.reserve(lengths)
                    return work
                except Exception:
                    if alone:
                        raise
            tokens = Counter[str]()
            for job in self.active:
                tokens[job.request.tenant] += len(job.tokens)
            victim = max(self.active, key=lambda job: (job.holds_row, tokens[job.request.tenant], job.number))
            self._preempt(victim)
            work = [share for share in work if share.job is not victim]

    def _preempt(self, job: RequestJob) -> None:
        """Takes a job's row away, after saving its tokens, and queues it again."""
        self._counters.preemptions += 1
        self._save_all(job)
        self._release_row(job)
        self.active.remove(job)
        job.restart()
        self.put_back(job)

    def recompute_running(self) -> None:
        """Restarts all running jobs, because the base's weights change; their generated tokens stay."""
        for job in reversed(list(self.active)):  # each is put at the head of its queue, so the oldest goes last
            self._release_row(job)
            self.active.remove(job)
            job.restart()
            self.put_back(job)
        if self._rows is not None:
            self._rows.forget()

    def preempt_youngest(self, tenant: str, count: int) -> None:
        """Preempts a tenant's `count` youngest generations."""
        generations = [job for job in self.active if job.holds_row and job.request.tenant == tenant and not job.over]
        for job in sorted(generations, key=lambda job: -job.number)[: max(count, 0)]:
            self._preempt(job)

    def _save_all(self, job: RequestJob) -> None:
        """Saves a job's tokens, generated ones included, to the prefix cache."""
        if self._prefixes is not None and job.begun and job.failed is None:
            self._prefixes.store(job, job.computed_tokens, snapshot=True)

    def leave(self, jobs: Sequence[RequestJob]) -> None:
        """Ends jobs, running or waiting: frees their rows and delivers their results or errors."""
        for job in jobs:
            if job in self.active:
                self.active.remove(job)
            self._save_all(job)
            self._release_row(job)
            try:
                if job.failed is None:
                    job.stream.finish(job.result())
            except BaseException as error:
                need_failure(error)
                job.failed = error
            if isinstance(job.failed, NotFiniteError) and self._prefixes is not None:
                self._prefixes.forget(job)
            if job.failed is not None:
                give_error(job)

    def _release_row(self, job: RequestJob) -> None:
        if self._rows is not None:
            self._rows.give_up(job, namespace(job))

    def abandon(self, error: BaseException) -> None:
        """Fails all running jobs after an interrupt in the middle of a step, which leaves their state undefined."""
        for job in self.active:
            job.failed = job.failed or error
        self.leave(list(self.active))
        if self._rows is not None:
            self._rows.forget()

    @torch.inference_mode()
    def trim(self) -> None:
        """Returns the memory of all rows to the system; no row may be in use."""
        if self._rows is not None:
            self._rows.forget()
            self._rows.cache.trim()

    # Pinned prefixes

    @torch.inference_mode()
    def compute_prefix(
        self, adapter: LoadedAdapter, tokens: Sequence[int], vectors_PD: Tensor | None = None, *, public: bool = True
    ) -> None:
        """Computes and pins a prefix in an adapter's namespace: of tokens, or of a soft prompt's vectors [P, D] (with
        placeholder ids). public: available to every tenant."""
        assert self._rows is not None
        cache, key = self._rows.cache, tuple(tokens)
        match = self.tree.match(adapter, key, len(key))
        row = self._rows.borrow(match, len(key))
        at = match.length
        try:
            for end in (*range(at + cache.step, len(key), cache.step), len(key)):
                span = Span(row, at, end - at)
                if vectors_PD is not None:
                    self._compute_vectors(vectors_PD[at:end], adapter, span)
                elif span.length:
                    self.forward(FlatBatch(key[at:end], [span], [adapter], ()))
                # Each piece is pinned once computed, then replaced by the longer prefix that contains it.
                self.tree.pin(
                    adapter, key[:end], lambda begin, end: cache.save(row, begin, end), cache.token_bytes, public=public
                )
                if at > match.length:
                    self.tree.unpin(adapter, key[:at], public=public)
                at = end
        except BaseException:
            if at > match.length:
                self.tree.unpin(adapter, key[:at], public=public)
            raise
        finally:
            cache.free(row)

    def _compute_vectors(self, vectors_PD: Tensor, adapter: LoadedAdapter, span: Span) -> None:
        placeholders, vectors = [0] * span.length, [VectorInput(0, vectors_PD)]
        out = self.torch_forward(FlatBatch(placeholders, [span], [adapter], (), states=True, vectors=vectors))
        if out.hidden_ND is None or not bool(out.hidden_ND.isfinite().all()):
            raise UsageError("the soft prompt makes infinities or NaN of this base's numbers; train it again")

    def close(self) -> None:
        """Frees the caches. No job may be running."""
        self.put_back = lambda job: None
        self.tree.close()
        if self.cache is not None:
            self.cache.close()


def _drafted(job: RequestJob, max_tokens: int) -> Sequence[int]:
    try:
        return job.draft(max_tokens)
    except BaseException as error:
        need_failure(error)
        job.failed = error
        return ()


def _fail(work: Sequence[ScheduledTokens], error: BaseException) -> None:
    for share in work:
        share.job.failed = error


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
