"""The engine: one thread that owns a base, answers requests in batches, and streams their results."""

from __future__ import annotations

import contextlib
import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial

from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.peft import hf_module_name
from bedplate.core.errors import BusyError, DeadlineError, UsageError
from bedplate.inference.engine.checks import check_request, check_vectors
from bedplate.inference.engine.generation import Generating
from bedplate.inference.engine.job import Job, fail_all
from bedplate.inference.engine.requests import Generate, Grammar, Request, Result
from bedplate.inference.engine.runner import Runner, Work
from bedplate.inference.engine.scheduler import Scheduler
from bedplate.inference.engine.stats import Counters, OnStep, Stats, StepRecord
from bedplate.inference.engine.stream import Stream
from bedplate.inference.forward.adapters import Adapters, Loaded
from bedplate.inference.forward.compute_lock import ComputeLock
from bedplate.inference.forward.kv_cache import KVCache, SlotCache
from bedplate.inference.forward.native import NativeForward
from bedplate.inference.forward.paged import BLOCK, PagedCache
from bedplate.inference.forward.radix import RadixTree
from bedplate.inference.forward.torch import TorchForward
from bedplate.inference.ways.choice import choose_forward
from bedplate.inference.ways.way import Kernel, Weights
from bedplate.models.checkpoints.base import Base

Compute = contextlib.AbstractContextManager[object]


class Engine:
    """Runs requests on one base.

    max_step_tokens: tokens of one step: running generations take one each, prompts the rest in chunks. max_rows:
    generations that run at once. max_waiting: queue bound (BusyError beyond it, for `submit` only). adapters: LoRA
    slots. step_adapters: how many different ones a step may mix. cache_bytes: bound of the prefix cache. slot_bytes:
    bound of the running sequences' own cache; where it is reached the youngest generation waits and is computed again.
    weights: what products read: "auto" the base's own dtype. kernel: "auto" is native where the machine has it for this
    base. speculate: guess tokens by prompt look-up; by default where the native kernel makes it cheap. What is said
    does not depend on it. paged: keep keys and values in shared blocks; by default on GPUs. compute: a lock to share
    with other engines of this machine. on_step: told of every step, in the thread that ran it. Close it, or use it as a
    context manager.
    """

    def __init__(
        self,
        base: Base,
        *,
        max_step_tokens: int = 512,
        max_rows: int = 16,
        max_waiting: int = 4096,
        adapters: int = 16,
        step_adapters: int = 16,
        cache_bytes: int = 1 << 30,
        slot_bytes: int = 4 << 30,
        weights: Weights = "auto",
        kernel: Kernel = "auto",
        speculate: bool | None = None,
        paged: bool | None = None,
        compute: Compute | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        self.base = base
        causal = "generate" in base.model.can
        self.bank = Bank(base.model, adapters, hf_name=_hf_names(base)) if causal else None
        self._adapters = Adapters(self._free)
        self._counters = Counters()
        self._tree, cache = _caches(
            base, cache_bytes, slot_bytes, base.device.type != "cpu" if paged is None else paged
        )
        self._torch = TorchForward(base, self.bank, cache)
        self._forward = choose_forward(base, self.bank, cache, self._torch, weights, kernel)
        # An encoder's documents are not cut, so the longest must fit a step.
        budget = max_step_tokens if causal else max(max_step_tokens, base.spec.context_length)
        self._scheduler: Scheduler[Job] = Scheduler(budget, whole=not causal)
        generating = Generating(base)
        self._grammars = generating.grammars
        self._runner = Runner(
            base,
            cache,
            self._forward,
            self._torch,
            self._tree,
            generating,
            max_rows=max_rows,
            max_adapters=step_adapters,
            put_back=self._put_back,
            speculates=self.kernel == "native" if speculate is None else speculate,
            counters=self._counters,
        )
        self._max_waiting = max_waiting
        self._on_step = on_step
        self._arrivals: deque[Job] = deque()
        self._cancelled: deque[Job] = deque()
        self._deadlines: list[tuple[float, int, Job]] = []
        self._number = 0
        self._lock = threading.Condition()
        self._compute: Compute = ComputeLock() if compute is None else compute
        self._step_began: float | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="bedplate-engine", daemon=True)
        self._thread.start()

    @property
    def kernel(self) -> str:
        """What computes forward passes: "torch" or "native"."""
        return self._forward.name

    @property
    def weights(self) -> str:
        """What the products read: the base's dtype, or the integers its weights were quantised to."""
        return self._forward.weights

    # Asking

    def submit(self, request: Request) -> Stream:
        """Queues one request. Raises RequestError for one that cannot run, BusyError when the queue is full."""
        return self._enqueue([request], wake=True)[0]

    def compile(self, grammar: Grammar) -> None:
        """Makes a grammar ready, so that submitting a request with it takes no time. RequestError for one that cannot
        be used. Callable from any thread."""
        self._grammars.compile(grammar)

    def accepts(self, grammar: Grammar, text: str) -> bool:
        """Whether the whole text is one that the grammar lets a model write. RequestError as `compile`."""
        return self._grammars.accepts(grammar, text)

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Runs requests together and returns their results in order. The first error is raised after all have ended.

        Requests are queued by length, so that a batch holds alike ones; beginnings that they share are computed once.
        """
        order = sorted(range(len(requests)), key=lambda i: (requests[i].adapter or "", len(requests[i].tokens)))
        # The caller's thread computes, and the engine's is not woken. Each thread has an OpenMP pool of its own, and
        # with more pooled threads than cores libgomp lets idle workers sleep between operations: a short call then
        # takes half as long again, for the rest of the process.
        with self._compute:
            streams = dict(zip(order, self._enqueue([requests[i] for i in order], wake=False), strict=True))
            try:
                while not all(stream.done for stream in streams.values()):
                    self._step()
            except BaseException as error:
                self._abandon(streams.values(), error)
                raise
        return [streams[i].result() for i in range(len(requests))]

    def _abandon(self, streams: Iterable[Stream], error: BaseException) -> None:
        """After an interrupt in the middle of a step nothing of what was running can go on."""
        for stream in streams:
            stream.cancel()
        self._step_began = None
        running = list(self._runner.active)
        self._runner.abandon(UsageError(f"the engine was interrupted ({type(error).__name__})"))
        self._left(running)

    def _enqueue(self, requests: Sequence[Request], wake: bool) -> list[Stream]:
        """Queues requests; `wake` the engine's thread for them, which also bounds the queue."""
        held: list[Loaded] = []
        jobs: list[Job] = []
        try:
            for request in requests:
                held.append(self._adapters.hold(request.adapter))
                limit = check_request(self.base, request, held[-1].virtual)
                if isinstance(request, Generate) and request.grammar is not None:
                    self.compile(request.grammar)
                jobs.append(Job(request, Stream(request), held[-1], limit))
            with self._lock:
                if self._closed:
                    raise UsageError("this engine is closed; load the base again")
                if wake and self.waiting + len(jobs) > self._max_waiting:
                    raise BusyError(f"{self.waiting} requests are waiting already; try again later")
                for job in jobs:
                    self._number += 1
                    job.number = self._number
                    job.stream.on_cancel = partial(self._cancelled.append, job)
                self._arrivals += jobs
                if wake:
                    self._lock.notify_all()
        except BaseException:
            for adapter in held:
                self._adapters.release(adapter)
            raise
        return [job.stream for job in jobs]

    @property
    def alive(self) -> bool:
        """Whether the thread runs and takes requests."""
        return self._thread.is_alive() and not self._closed

    def stalled(self, seconds: float) -> bool:
        """Whether a step has been running for longer than so many seconds."""
        began = self._step_began
        return began is not None and time.monotonic() - began > seconds

    @property
    def running(self) -> int:
        """How many requests are being computed."""
        return len(self._runner.active)

    @property
    def waiting(self) -> int:
        """How many requests are queued."""
        return len(self._arrivals) + self._scheduler.waiting

    def stats(self) -> Stats:
        """Counts and gauges of this moment; cheap, and callable from any thread."""
        counted, tree = self._counters, self._tree
        return Stats(
            running=self.running,
            waiting=self.waiting,
            preemptions=counted.preemptions,
            prompt_tokens=counted.prompt_tokens,
            generated_tokens=counted.generated_tokens,
            computed_tokens=counted.computed_tokens,
            prefix_queries=counted.prefix_queries,
            prefix_hits=counted.prefix_hits,
            speculated=counted.speculated,
            accepted=counted.accepted,
            cache_bytes=tree.used,
            cache_pinned_bytes=tree.pinned,
            cache_capacity_bytes=tree.capacity,
            evictions=tree.evictions,
            adapters=len(self._adapters),
            steps=counted.steps,
            step_seconds=counted.step_seconds,
        )

    # Adapters and prefixes

    def load_adapter(self, key: str, config: LoraConfig, tensors: Mapping[str, Tensor]) -> None:
        """Makes an adapter available to requests under `key`. A key is never reused for other weights while loaded."""
        if self.bank is None:
            raise UsageError(f"{self.base.name} is an encoder; adapters are for decoders")
        with self._compute:
            self._adapters.check_new(key)
            self._adapters.sweep()
            self._adapters.add(Loaded(key, self.bank.add(config, tensors)))

    def load_soft_prompt(self, key: str, vectors: Tensor, adapter: str | None = None) -> None:
        """Makes a soft prompt (https://arxiv.org/abs/2104.08691) available under `key`: vectors [P, D] that stand
        before every prompt in the place of token embeddings, on the base or on a loaded adapter. They take P positions
        of the context."""
        if self.bank is None:
            raise UsageError(f"{self.base.name} is an encoder; soft prompts are for decoders")
        with self._compute:
            self._adapters.check_new(key)
            vectors = check_vectors(self.base, vectors)
            if len(vectors) % self._tree.block:
                raise UsageError(f"on this device a soft prompt must have a multiple of {self._tree.block} vectors")
            parent = self._adapters.get(adapter)
            if parent.virtual:
                raise UsageError(f"{adapter!r} is a soft prompt itself; give the LoRA adapter that this one goes with")
            parent = self._adapters.hold(adapter)
            loaded = Loaded(key, parent.slot, len(vectors), parent)
            try:
                self._runner.compute_prefix(loaded, loaded.virtual_tokens, vectors)
                self._adapters.add(loaded)
            except BaseException:
                self._tree.drop(loaded)
                self._adapters.release(parent)
                raise

    def unload_adapter(self, key: str, wait: bool = False) -> None:
        """Takes the key away: new requests are refused at once, those that hold the adapter end with it.

        Its slot and its cached prefixes are freed when the last of them has ended; `wait` returns only then.
        UsageError where no such adapter is loaded.
        """
        leaving = self._adapters.retire(key)
        if wait and leaving.users:
            with self._lock:
                self._lock.notify_all()
            leaving.gone.wait()
            return
        with self._compute:
            self._adapters.sweep()

    def _free(self, loaded: Loaded) -> None:
        """Nobody uses it any more: its prefixes go, and its slot if it is its own."""
        self._tree.drop(loaded)
        for layers in range(self.base.spec.layers + 1):
            self._tree.drop((loaded, layers))
        if loaded.parent is None:
            assert self.bank is not None
            if isinstance(self._forward, NativeForward):
                self._forward.forget(loaded.slot)
            self.bank.remove(loaded.slot)

    def pin(self, tokens: Sequence[int], adapter: str | None = None) -> None:
        """Computes a beginning that many requests will share, and keeps it until the engine or adapter goes.

        What is pinned is everybody's: requests of any tenant that begin so use it.
        """
        if not tokens or self.bank is None:
            return
        with self._compute:
            loaded = self._adapters.get(adapter)
            key = (*loaded.virtual_tokens, *tokens)
            if not self._tree.is_pinned(loaded, key):
                self._runner.compute_prefix(loaded, key)

    def unpin(self, tokens: Sequence[int], adapter: str | None = None) -> None:
        """Forgets a pinned beginning; nothing happens where there is none."""
        with self._compute:
            if tokens and (adapter is None or adapter in self._adapters):
                loaded = self._adapters.get(adapter)
                self._tree.unpin(loaded, (*loaded.virtual_tokens, *tokens))

    @contextlib.contextmanager
    def exclusive(self) -> Generator[Base]:
        """The base to oneself, between steps: requests wait meanwhile (training, raw logits)."""
        with self._compute:
            yield self.base

    # The thread

    def _serve(self) -> None:
        while True:
            with self._lock:
                while not (self._busy or self._closed):
                    self._lock.wait()
                if self._closed:
                    break
            with self._compute:
                if self._busy:
                    self._step()
        with self._compute:
            self._arrive()
            jobs = [*self._scheduler.items(), *self._runner.active]
            fail_all(jobs, UsageError("the engine was closed before this request ended"))

    @property
    def _busy(self) -> bool:
        return bool(self._arrivals or self._runner.active or self._scheduler.waiting or self._adapters.leaving)

    def _step(self) -> None:
        began = self._step_began = time.monotonic()
        try:
            self._arrive()
            self._expire()
            decodes = self._runner.decoding()
            taken = sum(work.count + len(work.draft) for work in decodes)
            for work in decodes:
                self._scheduler.charge(_queue(work.job), 1)
            chunks = self._scheduler.plan(taken, self._runner.admit)
            work = [*decodes, *(Work(job, count) for job, count in chunks)]
            before = [one.job.done for one in work]
            ended = self._runner.execute(work)
            for job, _ in chunks:
                if job.decoding:
                    self._scheduler.started(_queue(job), job)
            self._end(ended)
            if self._on_step is not None:
                self._on_step(_record(work, before, len(decodes), len(ended), time.monotonic() - began))
        except Exception as error:
            # Whatever a step ran into outside of its requests, those that run cannot go on; later ones can.
            for job in self._runner.active:
                job.failed = error
            self._end(list(self._runner.active))
        self._adapters.sweep()
        self._counters.steps += 1
        self._counters.step_seconds += time.monotonic() - began
        self._step_began = None

    def _arrive(self) -> None:
        while self._arrivals:
            job = self._arrivals.popleft()
            if job.request.deadline is not None:
                heapq.heappush(self._deadlines, (job.request.deadline, job.number, job))
            self._scheduler.add(_queue(job), job)

    def _expire(self) -> None:
        """Ends what was cancelled and what ran out of time, running or waiting."""
        ending: list[Job] = []
        while self._cancelled:
            job = self._cancelled.popleft()
            if not job.stream.done:
                self._runner.cancel(job)
                ending.append(job)
        now = time.monotonic()
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][2].stream.done):
            job = heapq.heappop(self._deadlines)[2]
            if not job.stream.done and job.failed is None and job.ended is None:
                job.failed = DeadlineError(
                    "the request did not end before its deadline; allow more time or ask for less"
                )
                ending.append(job)
        if ending:
            self._end(ending)

    def _put_back(self, job: Job) -> None:
        self._scheduler.put_back(_queue(job), job)

    def _end(self, jobs: list[Job]) -> None:
        self._runner.leave(jobs)
        self._left(jobs)

    def _left(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._scheduler.remove(_queue(job), [job])
            self._adapters.release(job.adapter)

    def close(self) -> None:
        """Stops the thread and frees the adapters. Requests that have not ended fail."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._lock.notify_all()
        self._thread.join()
        if isinstance(self._forward, NativeForward):
            self._forward.close()
        if self.bank is not None:
            self.bank.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _caches(base: Base, cache_bytes: int, slot_bytes: int, paged: bool) -> tuple[RadixTree, KVCache | None]:
    """The prefix cache, and the running sequences' own; none of the latter for an encoder."""
    if "generate" not in base.model.can:
        return RadixTree(cache_bytes), None
    if not paged:
        return RadixTree(cache_bytes), SlotCache(base.spec, base.dtype, base.device, slot_bytes)
    tree = RadixTree(cache_bytes, BLOCK)
    pool = cache_bytes + slot_bytes
    return tree, PagedCache(
        base.spec, base.dtype, base.device, pool, reclaim=tree.give_back, pinned=lambda: tree.pinned
    )


def _record(work: Sequence[Work], before: Sequence[int], decodes: int, ended: int, seconds: float) -> StepRecord:
    spans = tuple(
        (begin, one.count + len(one.draft), one.job.state is not None) for one, begin in zip(work, before, strict=True)
    )
    adapters = {id(one.job.adapter) for one in work if one.job.adapter.key is not None}
    copied = sum(begin for one, begin in zip(work, before, strict=True) if begin == one.job.cached)
    return StepRecord(spans, decodes, len(adapters), copied, ended, seconds)


def _queue(job: Job) -> tuple[str, str]:
    return (job.request.skin, job.request.tenant)


def _hf_names(base: Base) -> Callable[[str], str] | None:
    family = base.family.in_format("hf")
    return None if family is None else partial(hf_module_name, family.weights)
