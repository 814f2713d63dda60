"""The engine: one thread that owns a base, answers requests in batches, and streams their results."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial

from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.peft import hf_module_name
from bedplate.core.errors import BusyError, ContextLengthExceeded, RequestError, UsageError
from bedplate.inference.requests import Classify, Generate, Request, Result, Score
from bedplate.inference.runner import Runner
from bedplate.inference.scheduler import Job, Scheduler, Stream, depth_of, fail_all
from bedplate.models.checkpoints.base import Base
from bedplate.models.decoder import Decoder
from bedplate.models.families import FAMILIES


class Engine:
    """Runs requests on one base.

    max_batch_tokens: new tokens of one prefill step. max_rows: generations that run at once. max_waiting: queue bound
    (BusyError beyond it, for `submit` only). adapters: LoRA slots. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        base: Base,
        *,
        max_batch_tokens: int = 2048,
        max_rows: int = 16,
        max_waiting: int = 4096,
        adapters: int = 16,
    ) -> None:
        self.base = base
        self.bank = Bank(base.model, adapters, hf_name=_hf_names(base)) if isinstance(base.model, Decoder) else None
        self._runner = Runner(base, self.bank)
        self._scheduler = Scheduler(max_batch_tokens, self._runner.build_prefix, shares=self._runner.causal)
        self._max_rows, self._max_waiting = max_rows, max_waiting
        self._waiting: list[Job] = []
        self._lock = threading.Condition()
        self._compute = threading.RLock()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="bedplate-engine", daemon=True)
        self._thread.start()

    # Asking

    def submit(self, request: Request) -> Stream:
        """Queues one request. Raises RequestError for one that cannot run, BusyError when the queue is full."""
        return self._enqueue([request], wake=True)[0]

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
        fail_all(self._runner.active, UsageError(f"the engine was interrupted ({type(error).__name__})"))
        self._runner.active.clear()

    def _enqueue(self, requests: Sequence[Request], wake: bool) -> list[Stream]:
        """Queues requests; `wake` the engine's thread for them, which also bounds the queue."""
        jobs = [Job(request, Stream(request), self._check(request)) for request in requests]
        with self._lock:
            if self._closed:
                raise UsageError("this engine is closed; load the base again")
            if wake and len(self._waiting) + len(jobs) > self._max_waiting:
                raise BusyError(f"{len(self._waiting)} requests are waiting already; try again later")
            self._waiting += jobs
            if wake:
                self._lock.notify_all()
        return [job.stream for job in jobs]

    def _check(self, request: Request) -> int:
        """Raises RequestError for what cannot run; returns the number of tokens to generate at most."""
        vocabulary, context = self.base.spec.vocab_size, self.base.spec.context_length
        sequences: list[tuple[int, ...]] = [request.tokens]
        if not request.tokens:
            raise RequestError("the prompt has no tokens; it needs at least one", param="prompt")
        if isinstance(request, Generate | Score | Classify) and not self._runner.causal:
            raise RequestError(f"{self.base.name} is an encoder: it embeds texts, and cannot {_verb(request)}")
        if isinstance(request, Score):
            if not request.continuations or not all(request.continuations):
                raise RequestError("scoring needs continuations of at least one token each", param="continuations")
            sequences += request.continuations
        bad = next((t for tokens in sequences for t in tokens if not 0 <= t < vocabulary), None)
        if bad is not None:
            raise RequestError(f"token id {bad} is outside the vocabulary of {vocabulary}", param="prompt")
        if request.adapter is not None and request.adapter not in self._runner.slots:
            raise RequestError(f"no adapter {request.adapter!r} is loaded; load it first", param="model")
        depth = depth_of(request)
        if depth is not None and not 0 <= depth <= self.base.spec.layers:
            raise RequestError(f"depth {depth} is not between 0 and {self.base.spec.layers}", param="depth")
        wanted = max((len(c) for c in request.continuations), default=0) if isinstance(request, Score) else 0
        if isinstance(request, Generate):
            room = context - len(request.tokens)
            # "To the context's end" asks for at least one token: a prompt that fills the context has no answer.
            wanted = max(room, 1) if request.sampling.max_tokens is None else request.sampling.max_tokens
        if len(request.tokens) + wanted > context:
            raise ContextLengthExceeded(
                f"the prompt has {len(request.tokens)} tokens and {wanted} more are asked for, but the context of "
                f"{self.base.name} is {context} tokens; shorten the prompt or ask for fewer",
                param="max_tokens" if wanted else "prompt",
            )
        return wanted

    @property
    def alive(self) -> bool:
        """Whether the thread runs and takes requests."""
        return self._thread.is_alive() and not self._closed

    @property
    def running(self) -> int:
        """How many generations hold a row of the cache."""
        return len(self._runner.active)

    @property
    def waiting(self) -> int:
        """How many requests are queued."""
        return len(self._waiting)

    # Adapters and prefixes

    def load_adapter(self, key: str, config: LoraConfig, tensors: Mapping[str, Tensor]) -> None:
        """Makes an adapter available to requests under `key`. A key is never reused for other weights while loaded."""
        if self.bank is None:
            raise UsageError(f"{self.base.name} is an encoder; adapters are for decoders")
        with self._compute:
            if key in self._runner.slots:
                raise UsageError(f"an adapter {key!r} is loaded already; unload it first, or use another key")
            self._runner.slots[key] = self.bank.add(config, tensors)

    def unload_adapter(self, key: str) -> None:
        """Removes an adapter and its cached prefixes. UsageError while requests are using it."""
        with self._compute, self._lock:
            if any(job.request.adapter == key for job in (*self._waiting, *self._runner.active)):
                raise UsageError(f"adapter {key!r} is in use; wait for its requests to end")
            slot = self._runner.slots.pop(key, None)
            if slot is None:
                raise UsageError(f"no adapter {key!r} is loaded")
            self._scheduler.pinned.pop(key, None)
            assert self.bank is not None
            self.bank.remove(slot)

    def pin(self, tokens: Sequence[int], adapter: str | None = None) -> None:
        """Computes a beginning that many requests will share, and keeps it until the engine or adapter goes."""
        if not tokens or not self._runner.causal:
            return
        kept = tuple(tokens)
        with self._compute:
            pinned = self._scheduler.pinned.setdefault(adapter, [])
            if all(prefix.tokens != kept for prefix in pinned):
                pinned.append(self._runner.build_prefix(kept, adapter, None))

    def unpin(self, tokens: Sequence[int], adapter: str | None = None) -> None:
        """Forgets a pinned beginning; nothing happens where there is none."""
        with self._compute:
            pinned = self._scheduler.pinned.get(adapter, [])
            pinned[:] = [prefix for prefix in pinned if prefix.tokens != tuple(tokens)]

    @contextlib.contextmanager
    def exclusive(self) -> Generator[Base]:
        """The base to oneself, between steps: requests wait meanwhile (training, raw logits)."""
        with self._compute:
            yield self.base

    # The thread

    def _serve(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._runner.active and not self._closed:
                    self._lock.wait()
                if self._closed:
                    break
            with self._compute:
                self._step()
        fail_all([*self._waiting, *self._runner.active], UsageError("the engine was closed before this request ended"))

    def _step(self) -> None:
        runner = self._runner
        try:
            runner.drop_cancelled()
            batch = self._next_batch()
            if batch:
                self._prefill(batch)
            elif runner.active:
                runner.decode()
        except Exception as error:
            # Whatever a decode step ran into, the rows in it cannot go on; later requests can.
            fail_all(runner.active, error)
            runner.active.clear()

    def _next_batch(self) -> list[Job]:
        with self._lock:
            for job in self._waiting:
                if job.stream.cancelled:
                    job.stream.fail(RequestError("the request was cancelled before it started", code="cancelled"))
            waiting = [job for job in self._waiting if not job.stream.done]
            self._waiting[:] = waiting
        # Planning may run the model (shared prefixes), so it happens outside the lock: callers must not wait for it.
        free = self._max_rows - len(self._runner.active)
        try:
            batch = self._scheduler.take(waiting, free)
        except Exception as error:
            fail_all(waiting[:1], error)
            batch = []
        taken = {id(job) for job in batch}
        with self._lock:
            self._waiting[:] = [job for job in self._waiting if id(job) not in taken and not job.stream.done]
        return batch

    def _prefill(self, batch: list[Job]) -> None:
        before = list(self._runner.active)
        try:
            self._runner.prefill(batch)
        except Exception as error:
            self._runner.active[:] = before
            if len(batch) == 1:
                fail_all(batch, error)
                return
            # One bad request must not take its neighbours along: each is tried alone.
            for job in batch:
                if not job.stream.done:
                    self._prefill([job])

    def close(self) -> None:
        """Stops the thread and frees the adapters. Requests that have not ended fail."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._lock.notify_all()
        self._thread.join()
        if self.bank is not None:
            self.bank.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _hf_names(base: Base) -> Callable[[str], str] | None:
    family = FAMILIES.get(("hf", base.family.key[1]))
    return None if family is None else partial(hf_module_name, family.weights)


def _verb(request: Request) -> str:
    return {Generate: "generate", Score: "score", Classify: "classify"}[type(request)]  # type: ignore[index]
