"""The engine: one thread that owns a base, answers requests in batches and streams their results.

1. `submit` (or `run`) makes each request a job (`requests/table.py`) and queues it (`steps.py`).
2. The engine's thread, or the thread that called `run`, computes step after step while there is work (`_serve`).
3. A step takes in arrivals, ends cancelled and expired requests, and divides one token budget (`scheduler.py`).
4. Admitted jobs get a cache row that begins with their longest cached prefix (`runner.py`, `prefix_store.py`).
5. The tokens of all jobs go through the model as one batch (`scheduled_tokens.py`, `forward/`).
6. Each job consumes its part of the output; next tokens are chosen for all rows at once (`token_selection.py`,
   `sampler.py`).
7. Finished jobs leave their rows, save their prefixes and deliver their results through a `Stream`.

Adapters, soft prompts, pinned prefixes and weight updates are applied between two steps, under the compute lock
(`runtime_weights.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.adapters.modules import hf_module_name
from bedplate.core.closing import Closing
from bedplate.core.errors import BusyError, UnsupportedModelError, UsageError
from bedplate.core.progress import Progress
from bedplate.inference.engine.answers import ModelDescription
from bedplate.inference.engine.grammar import Grammars
from bedplate.inference.engine.requests.base import Request, Result, Stream
from bedplate.inference.engine.requests.job import EngineResources, RequestJob
from bedplate.inference.engine.requests.table import JOB_TYPES
from bedplate.inference.engine.runner import SPECULATED_TOKENS, Runner
from bedplate.inference.engine.runtime_weights import RuntimeWeights
from bedplate.inference.engine.sampling import Grammar
from bedplate.inference.engine.scheduler import Scheduler, may_queue
from bedplate.inference.engine.sizes import engine_sizes, open_caches
from bedplate.inference.engine.stats import Counters, OnStep, Stats
from bedplate.inference.engine.steps import Steps
from bedplate.inference.execution.choice import choose_forward, torch_base
from bedplate.inference.execution.plan import Kernel, Weights
from bedplate.inference.forward.batch import LoadedAdapter
from bedplate.inference.forward.compute_lock import ComputeLock
from bedplate.inference.forward.cuda_graphs import recorder
from bedplate.inference.forward.torch import TorchForward
from bedplate.models.checkpoints.base import Base
from bedplate.models.device_memory import free_on
from bedplate.models.families import in_format
from bedplate.models.model import Model

if TYPE_CHECKING:
    from bedplate.adapters.lora import LoraConfig

log = logging.getLogger("bedplate.inference")
IDLE_SECONDS = 5.0
"""Seconds without a request after which the memory of cache rows is released."""
Compute = contextlib.AbstractContextManager[object]


class Engine(Closing):
    """Runs requests on one base. Close it, or use it as a context manager; it cannot be used from a forked process. An
    error in one request, infinities and NaN included, fails that request alone.

    max_step_tokens: token budget of one step: running generations take one each, prompts the rest in chunks. max_rows:
    maximum number of concurrent generations. max_waiting: bound of the queue (BusyError beyond it, for `submit` only).
    adapters: LoRA slots. step_adapters: maximum number of different adapters in one step. cache_bytes: bound of the
    prefix cache. slot_bytes: bound of the running sequences' own cache; when it is full, the youngest generation is
    preempted and recomputed later. Sizes that are None are derived from free memory (`engine_sizes`). weights: number
    format in which matrix products read the weights; "auto" is the base's own dtype. kernel: "auto" uses the native
    kernel where it supports this base on this machine. speculate: draft tokens by prompt lookup, which changes no
    answer; by default where the native kernel makes it cheap. paged: keep keys and values in shared blocks, and fuse
    linears that read the same input; by default on GPUs. compute: a lock to share with other engines of this machine.
    on_step: called after every step, in the thread that ran it.
    """

    def __init__(
        self,
        base: Base,
        *,
        max_step_tokens: int | None = None,
        max_rows: int | None = None,
        max_waiting: int = 4096,
        adapters: int = 16,
        step_adapters: int = 16,
        cache_bytes: int | None = None,
        slot_bytes: int | None = None,
        weights: Weights = "auto",
        kernel: Kernel = "auto",
        speculate: bool | None = None,
        paged: bool | None = None,
        compute: Compute | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        limits = {"max_step_tokens": max_step_tokens, "max_rows": max_rows, "step_adapters": step_adapters}
        for name, size in limits.items():
            if size is not None and size < 1:
                raise UsageError(f"{name} is {size}, with which no request would ever run; give 1 or more")
        _check_unconverted(base.raw_model)
        self.base, run, causal = base, torch_base(base, weights, kernel), base.causal
        family = in_format(base.family, "hf")
        names = None if family is None else partial(hf_module_name, family.weights)
        self.bank = Bank(run.raw_model, 2 * adapters, hf_name=names)  # as many again for versions that still run
        self._counters = Counters()
        paged = base.device.type != "cpu" if paged is None else paged
        sizes = engine_sizes(
            base.spec,
            base.dtype,
            base.device,
            free_on(base.device),
            max_step_tokens=max_step_tokens,
            max_rows=max_rows,
            cache_bytes=cache_bytes,
            slot_bytes=slot_bytes,
        )
        step = max(sizes.max_step_tokens, SPECULATED_TOKENS)
        self._tree, cache = open_caches(base, sizes.cache_bytes, sizes.slot_bytes, paged, step)
        torch_weights = "auto" if run is base else weights
        self._torch = TorchForward(run, self.bank, cache, None, recorder(base.device), torch_weights)
        self._forward = choose_forward(run, self.bank, cache, self._torch, weights, kernel)
        speculates = self.kernel == "native" if speculate is None else speculate
        if speculates and cache is not None and cache.states:
            raise UnsupportedModelError(f"{base.name} has recurrent states, which cannot be rewound; omit `speculate`")
        self.grammars = Grammars(base.tokenizer, base.spec.vocab_size, base.text_ends)
        longest = None if cache is None else cache.longest
        self._resources = EngineResources(base, self.grammars, base.text_ends, speculates, base.never_written, longest)
        self._runner = Runner(
            cache,
            self._forward,
            self._torch,
            self._tree,
            max_rows=sizes.max_rows,
            max_adapters=step_adapters,
            speculates=speculates,
            counters=self._counters,
        )
        self._runtime_weights = RuntimeWeights(
            base, self.bank, self._forward, self._torch, self._tree, self._runner, adapters
        )
        self._adapters = self._runtime_weights.adapters
        # An encoder's documents are not cut, so the longest must fit a step; nothing waits for its next token, and
        # products of more tokens use more cores.
        budget = sizes.max_step_tokens if causal else max(2 * sizes.max_step_tokens, base.spec.context_length)
        scheduler: Scheduler[RequestJob] = Scheduler(budget, whole=not causal, tenant_of=itemgetter(1))
        self._steps = Steps(scheduler, self._runner, self._adapters, self._counters, on_step)
        self._max_waiting = max_waiting
        self._lock = threading.Condition()
        self._compute: Compute = ComputeLock() if compute is None else compute
        self._closed = self._freed = False
        self._process = os.getpid()
        self._weights = base.raw_model  # copies in other formats share what is not quantised
        self._is_reader = False
        self._count_as_reader(True)
        self._thread = threading.Thread(target=self._serve, name="bedplate-engine", daemon=True)
        self._thread.start()

    @property
    def kernel(self) -> str:
        return self._forward.name

    @property
    def weights(self) -> str:
        """The format in which matrix products read the weights: the base's dtype, or integers."""
        return self._forward.weights

    @property
    def weights_version(self) -> int:
        """The version of the base's weights: 1 as loaded, one more after each `update(None, …)`."""
        return self._adapters.base.version

    # Requests

    def submit(self, request: Request) -> Stream:
        """Queues one request. Raises RequestError for one that cannot run, BusyError when the queue is full, UsageError
        where the engine is closed, or is another process's."""
        return self._enqueue([request], wake=True)[0]

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text as a prompt. CheckpointError for a base without a tokenizer."""
        return self.base.need_tokenizer().encode_prompt(text)

    def describe(self) -> ModelDescription:
        base = self.base
        return ModelDescription(base.name, frozenset(base.can), base.spec.context_length, base.tokenizer)

    def compile(self, grammar: Grammar, tenant: str = "") -> Grammar:
        """Compiles a grammar ahead of its request, for any thread; it stays compiled while the returned object lives.

        Submitting a request with it then compiles nothing. RequestError for a grammar that cannot be used. tenant: one
        tenant's compilations run one at a time.
        """
        return self.grammars.precompile(grammar, tenant)

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Runs requests together and returns their results in order; the first error is raised after all have ended.

        They are queued by length, so that the requests of a batch are alike; shared prefixes are computed once.
        """
        self._check_open()
        order = sorted(range(len(requests)), key=lambda i: (requests[i].adapter or "", len(requests[i].tokens)))
        # The caller's thread computes, and the engine's is not woken. Each thread has an OpenMP pool of its own, and
        # with more pooled threads than cores libgomp lets idle workers sleep between operations: a short call then
        # takes half as long again, for the rest of the process.
        with self._compute:
            if self._forward is self._torch:
                _check_unconverted(self._weights)
            if self._steps.began is not None:
                raise UsageError("the engine is in the middle of a step, which cannot wait for another; submit instead")
            streams = dict(zip(order, self._enqueue([requests[i] for i in order], wake=False), strict=True))
            try:
                with Progress("answers", len(requests), "", quiet=len(requests) < 2) as bar:
                    pending = list(streams.values())
                    while pending:
                        self._steps.step()
                        waiting = [stream for stream in pending if not stream.finished]
                        bar.advance(len(pending) - len(waiting))
                        pending = waiting
            except BaseException as error:
                for stream in streams.values():
                    stream.cancel()
                self._steps.abandon(error)
                self._wake()  # includes requests of other callers
                raise
        return [streams[i].result() for i in range(len(requests))]

    def _enqueue(self, requests: Sequence[Request], wake: bool) -> list[Stream]:
        """Queues requests. wake: notify the engine's thread, and refuse requests beyond the queue's bound."""
        self._check_open()
        adapters: list[LoadedAdapter] = []
        jobs: list[RequestJob] = []
        try:
            for request in requests:
                adapters.append(self._adapters.acquire(request.adapter))
                jobs.append(JOB_TYPES[type(request)](request, adapters[-1], self._resources))
            with self._lock:
                self._check_open()
                opened, tenant = self._steps.open(), requests[0].tenant if requests else ""
                crowded = self.waiting + len(jobs) > self._max_waiting
                if wake and crowded and not may_queue(self._max_waiting, opened, tenant, len(jobs)):
                    raise BusyError(f"{self.waiting} requests are waiting already; try again later")
                self._steps.add(jobs)
                if wake:
                    self._lock.notify_all()
        except BaseException:
            for adapter in adapters:
                self._adapters.release(adapter)
            self._wake()  # a caller may be waiting for the last user of an adapter
            raise
        for job in jobs:
            job.stream.weights_version = job.adapter.version
        return [job.stream for job in jobs]

    def _wake(self) -> None:
        with self._lock:
            self._lock.notify_all()

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            raise UsageError(
                "this engine's thread is in the process that this one was forked from; load the base again here, or "
                "start processes that are not forked (multiprocessing's 'spawn')"
            )
        if self._closed:
            raise UsageError("this engine is closed; load the base again")

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs and accepts requests."""
        return self._thread.is_alive() and not self._closed

    def stalled(self, seconds: float) -> bool:
        """Whether the current step has been running for more than `seconds`."""
        began = self._steps.began
        return began is not None and time.monotonic() - began > seconds

    @property
    def running(self) -> int:
        return len(self._runner.active)

    @property
    def waiting(self) -> int:
        return self._steps.waiting

    def stats(self) -> Stats:
        """Current counters and gauges; cheap, and callable from any thread."""
        tree = self._tree
        return Stats(
            **asdict(self._counters),
            running=self.running,
            waiting=self.waiting,
            adapters=len(self._adapters),
            cache_bytes=tree.used,
            cache_pinned_bytes=tree.pinned,
            cache_capacity_bytes=tree.capacity,
            evictions=tree.evictions,
        )

    # Adapters and prefixes

    def load_adapter(self, key: str, config: LoraConfig, tensors: Mapping[str, Tensor]) -> None:
        """Makes an adapter available to requests under `key`. A key is never reused for other weights while loaded."""
        self._check_open()
        with self._compute:
            self._check_open()
            self._runtime_weights.load_adapter(key, config, tensors)

    def load_soft_prompt(self, key: str, vectors: Tensor, adapter: str | None = None) -> None:
        """Makes a soft prompt (https://arxiv.org/abs/2104.08691) available under `key`: vectors [P, D] that precede
        every prompt, on the base or on a loaded adapter. They take P positions of the context."""
        self._runtime_weights.check_soft_prompts()
        self._check_open()
        with self._compute:
            self._check_open()
            _check_unconverted(self._weights)
            self._runtime_weights.load_soft_prompt(key, vectors, adapter)

    def update(self, adapter: str | None, tensors: Mapping[str, Tensor]) -> int:
        """Replaces the weights of a loaded adapter, or of the base for None, and returns the new version number.

        New requests use the new weights, and no longer reach prefixes cached under the older version. Requests that run
        on an adapter finish on the version they began with (`Stream.weights_version`). Requests that run on the base
        are recomputed on the new weights from their tokens, because there is one copy of a base. `base.identity` still
        names the weights of the base's file; `fingerprint` names the updated ones. UsageError where the tensors do not
        fit, the engine cannot take them, or another engine computes with the base's weights.
        """
        self._check_open()
        with self._compute:
            self._check_open()
            _check_unconverted(self._weights)
            if adapter is None:
                if self._weights.readers > self._is_reader:
                    raise UsageError("another engine computes with this base's weights; close it first")
                return self._runtime_weights.update_base(tensors)
            return self._runtime_weights.update(adapter, tensors)

    def fingerprint(self, adapter: str | None = None) -> str:
        """SHA-256 of the weights that new requests with this adapter run on: of the adapter's own, or of the base's for
        None."""
        self._check_open()
        with self._compute:
            return self._runtime_weights.fingerprint(adapter)

    def unload_adapter(self, key: str, wait: bool = False) -> None:
        """Removes an adapter: new requests for it are refused at once, running ones finish on it.

        Its slot and its cached prefixes are freed when the last of them has ended; with `wait`, returns only then.
        UsageError where no such adapter is loaded. Does nothing on a closed engine.
        """
        if self._closed:
            return
        self._check_open()
        leaving = self._adapters.retire(key)
        if wait and leaving.users:
            self._wake()
            leaving.freed.wait()
            return
        with self._compute:
            self._adapters.sweep()

    def pin(self, tokens: Sequence[int], adapter: str | None = None, *, public: bool = True) -> None:
        """Computes a prefix that many requests will share, and keeps it cached until the engine closes or the adapter
        is unloaded.

        public: requests of every tenant may use it. Otherwise only requests whose `shared_tokens` cover all of it may,
        because the latency and the cached-token counts of other requests would reveal that they had guessed it.
        """
        if not tokens or not self.base.continues:
            return
        self._check_open()
        with self._compute:
            self._check_open()
            if self._forward is self._torch:
                _check_unconverted(self._weights)
            self._runtime_weights.pin(tokens, adapter, public=public)

    def unpin(self, tokens: Sequence[int], adapter: str | None = None, *, public: bool = True) -> None:
        """Unpins a prefix that was pinned with the same arguments; does nothing where there is none."""
        if self._closed:
            return
        self._check_open()
        with self._compute:
            self._runtime_weights.unpin(tokens, adapter, public=public)

    @contextlib.contextmanager
    def exclusive(self) -> Generator[Base]:
        """Gives the caller exclusive use of the base (for training, raw logits); requests wait meanwhile."""
        if not self._closed:
            self._check_open()
        with self._compute:
            was_reader = self._is_reader
            self._count_as_reader(False)
            try:
                yield self.base
            finally:
                self._count_as_reader(was_reader and not self._freed)

    def _count_as_reader(self, is_reader: bool) -> None:
        """Adds this engine to the base's count of engines that may compute with its weights, or removes it."""
        self._weights.readers += is_reader - self._is_reader
        self._is_reader = is_reader

    # The thread

    def _serve(self) -> None:
        error: BaseException = UsageError("the engine was closed before this request ended")
        trimmed = True  # until this thread computes: callers of `run` use their own, and this one stays asleep
        try:
            while True:
                with self._lock:
                    seconds = None if trimmed else IDLE_SECONDS
                    idle = not self._lock.wait_for(lambda: self._steps.busy or self._closed, seconds)
                    if self._closed:
                        break
                with self._compute:
                    if self._steps.busy:
                        self._steps.step()
                        trimmed = False
                    elif idle:
                        trimmed = True
                        try:
                            self._runner.trim()
                        except Exception:
                            log.exception("the memory of an idle engine could not be released")
        except BaseException as broken:  # callers must not wait for a thread that has ended
            log.exception("the engine's thread has failed; it takes no requests any more")
            error = broken
        with self._lock:  # a concurrent `submit` has finished, and its request fails
            self._closed = True
        with self._compute:
            self._steps.close(error)

    def close(self) -> None:
        """Stops the thread and frees adapters and caches. Requests that have not ended fail."""
        if os.getpid() != self._process:
            return  # in a forked process the thread does not exist, and a lock may never be released
        if threading.current_thread() is self._thread:
            raise UsageError("an engine cannot wait in its own thread for this to end; close it from another")
        self._closed = True
        self._wake()
        self._thread.join()
        with self._compute, contextlib.ExitStack() as cleanup:
            if not self._freed:
                self._freed = True
                self._count_as_reader(False)
                for free in (self._runner.close, self.bank.close, self._forward.close, self._adapters.close):
                    cleanup.callback(free)


def _check_unconverted(model: Model) -> None:
    """UsageError while a training run has converted the weights to another dtype: results would be inexact, and weights
    updated now would be restored when the run ends."""
    if model.converted:
        raise UsageError("a training run has converted this engine's weights temporarily; wait until it has ended")
