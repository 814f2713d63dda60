"""One API call, from its request to the end of its reply.

1. `respond` identifies the caller and admits the call (keys, limits, quotas), whose turn it is (`AccessLog`).
2. `answers` reads the body as the handler's request model; large bodies are parsed off the event loop.
3. The handler leases a model (`choose`): it is loaded if need be, and stays the same version until the call ends.
4. `prepare` makes the `AnswerPlan`: templates, tokenizers and lookups run off the loop, tenants taking turns.
5. `submit` queues the plan's requests, all or none; `results` or `arrivals` wait for them and for follow-up steps.
6. `account` tells quotas, observers and the access log what was computed, before the reply is written.
7. `close` cancels what still runs and releases the model; what a client that left had used is charged afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from bedplate.core.errors import DeadlineError, RequestError
from bedplate.inference.engine.requests import LookupContext, Retrieval, Step
from bedplate.inference.engine.scheduler import Stream
from bedplate.serving.callers.caller_guard import AdmittedCall, Caller
from bedplate.serving.models.registry import Lease, ModelRequest
from bedplate.serving.models.served import Answer, AnswerPlan, PlanResult, Served, compute_of
from bedplate.serving.request.events import EventStream, arrivals, cancel_all, results, submit_all, until_disconnect
from bedplate.serving.request.server_state import VERSION_HEADER, FinishedCall, ServerState, UnansweredCall
from bedplate.serving.schemas import http_errors
from bedplate.serving.schemas.openai_fields import read_fields
from bedplate.serving.schemas.request_fields import RequestFields
from bedplate.serving.schemas.strict_json import parse_json

T = TypeVar("T")
M = TypeVar("M", bound=RequestFields)

READ_SECONDS = 60.0
# A client that is cut off while it still writes sees a broken pipe and no answer: a bit more is read and dropped.
_DRAINED_BYTES = 16 * 1024 * 1024

READ_AT_ONCE = 32 * 1024
"""Bytes of a body that is read on the loop; larger ones are read beside it."""

TIMEOUT_HEADER = "x-request-timeout-seconds"
BODY_MODEL = "body_model"
"""Attribute of a route's function: the request model of its JSON body, or None."""


@dataclass(frozen=True)
class CallInProgress:
    """A plan whose first step is queued: a stream for each choice."""

    plan: AnswerPlan
    streams: Sequence[Stream]


@dataclass(frozen=True)
class Arrival:
    """New text of one choice with the steps behind it; the last arrival also has the result and the answer."""

    index: int
    text: str
    steps: Sequence[Step] = ()
    result: PlanResult | None = None
    answer: Answer | None = None


class CleanupResponse(Response):
    """Wraps a response and calls `at_end` when it has been sent or the client has disconnected."""

    def __init__(self, reply: Response, at_end: Callable[[], None]) -> None:
        self._reply, self._at_end = reply, at_end
        self.status_code, self.background, self.raw_headers = reply.status_code, reply.background, reply.raw_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._reply(scope, receive, send)
        finally:
            self._at_end()


def allowed_seconds(headers: Mapping[str, str], limit: float) -> float:
    """The time limit of a call: its header's, or the server's. RequestError for one above the server's."""
    header = headers.get(TIMEOUT_HEADER, str(limit))
    with contextlib.suppress(ValueError):
        if 0 < float(header) <= limit:
            return float(header)
    message = f"the header {TIMEOUT_HEADER} is {header[:40]!r}; give a number above 0, at most {limit:g}"
    raise RequestError(message, param=TIMEOUT_HEADER)


class ApiCall:
    """One API call. `respond` makes it; handlers get the body, the model and the results from it."""

    def __init__(self, request: Request, endpoint: str, caller: Caller) -> None:
        self.request, self.endpoint, self.caller = request, endpoint, caller
        self.server: ServerState = request.app.state.server
        self.id = uuid.uuid4().hex
        self.start = time.perf_counter()
        self.cost_usd: float | None = None
        self.sent: dict[str, Any] = {}
        """The body, once it has been read."""
        self.admission: AdmittedCall | None = None
        self._accounted = False
        self.size = 0  # bytes: the body's, and what a route reads with it
        self._lease: Lease | None = None
        self._streams: list[Stream] = []
        self.reservation = self.server.preparation.reservation(caller.tenant)
        self._deadline = request.scope[http_errors.ARRIVED] + allowed_seconds(
            request.headers, self.server.config.limits.timeout_seconds
        )

    async def body(self) -> dict[str, Any]:
        """The request's JSON object. RequestError."""
        content = await read_bytes(self.request, self.server.config.limits.body_bytes, self.reservation.reserve)
        self.size = len(content)
        at_once = self.size <= READ_AT_ONCE
        self.sent = parse_object(content) if at_once else await self.off_loop(lambda _: parse_object(content))
        if self.server.config.logs.prompts:
            self.request.scope[http_errors.ACCESS_FACTS]["asked"] = self.sent
        return self.sent

    async def read(self, model: type[M]) -> M:
        """The body as a request. RequestError names the first field that is wrong, unknown or not served."""
        body = await self.body()
        if self.size <= READ_AT_ONCE:
            return read_fields(model, body)
        return await self.off_loop(lambda _: read_fields(model, body))

    async def choose(self, name: str) -> Served:
        """Leases the model of this name, which stays the same version until the call ends."""
        if self._lease is not None:
            raise RuntimeError("a call has one model")
        await self._within_its_time(self._lease_model(name), f"{name!r} could not be loaded")
        lease, scope = self.lease, self.request.scope
        if lease.routed is not None:
            scope[http_errors.REPLY_HEADERS][VERSION_HEADER] = lease.routed.version
        scope[http_errors.ACCESS_FACTS]["model"] = lease.served.name
        return lease.served

    async def _lease_model(self, name: str) -> None:
        # Set here: whoever gives up waiting for this must not lose a lease that has just come.
        model_request = ModelRequest(name, self.caller, self.id, self.request.url.path, self.sent, self._origin)
        self._lease = await self.server.leases.lease(model_request)

    async def _within_its_time(self, work: Coroutine[Any, Any, T], failure: str) -> T:
        """Runs `work` until the deadline or the client disconnects. failure: begins the message of DeadlineError."""
        return await self._until_deadline(until_disconnect(self.request.receive, work), failure)

    async def _until_deadline(self, work: Coroutine[Any, Any, T], failure: str) -> T:
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                return await work
        except TimeoutError:
            raise DeadlineError(f"{failure} before the deadline; allow more time") from None

    @property
    def _terms(self) -> LookupContext:
        return LookupContext(self.caller.tenant, self._deadline)

    @property
    def _origin(self) -> object:
        """The purpose of a call that the server makes to itself; None for a client's."""
        return self.request.scope.get(http_errors.ORIGIN)

    @property
    def lease(self) -> Lease:
        assert self._lease is not None
        return self._lease

    async def prepare(self, make_plan: Callable[[LookupContext], AnswerPlan], source: str) -> AnswerPlan:
        """Runs `make_plan` off the loop and puts the caller's tenant and deadline into the plan. source: the prompt's
        field, for error messages."""
        try:
            return (await self.off_loop(make_plan)).on(self._terms)
        except RequestError as error:
            http_errors.name_source(error, source)
            raise

    async def written(self, work: Callable[[], T], size: int) -> T:
        """Formats computed answers by `work`, as `off_loop`, but is never refused. size: approximate bytes."""
        turn = self.server.preparation.run(self.caller.tenant, size, work, refused=False)
        return await self._within_its_time(turn, "the reply could not be written")

    async def off_loop(self, work: Callable[[LookupContext], T]) -> T:
        """Runs `work` in a thread when it is the tenant's turn, because templates and tokenizers take time and lookups
        wait for an engine. The result is dropped if the client leaves. LimitError where too much waits already."""
        running = self._run_off_loop(lambda: work(self._terms))
        return await self._within_its_time(running, "the prompt could not be made")

    async def _run_off_loop(self, work: Callable[[], T], *, refused: bool = True) -> T:
        return await self.server.preparation.run(self.caller.tenant, self.size, work, refused=refused)

    def submit(self, plan: AnswerPlan, source: str, limit_field: str = "max_tokens") -> CallInProgress:
        """Queues the requests of a plan's first step, all or none; they are cancelled when the call ends."""
        max_waiting = self.server.config.limits.max_waiting
        # The choices of one prompt are the same request again, and count it once.
        prompts = [prompt for prompt, _ in groupby(request.tokens for request in plan.requests)]
        if len(plan.requests) > max_waiting:
            raise RequestError(
                f"the request asks for {len(plan.requests)} answers at once; the queue holds {max_waiting}: send fewer",
                param=source if len(prompts) > 1 else "n",
            )
        tokens = sum(map(len, prompts))
        if self.admission is not None:
            self.admission.ask_tokens(tokens)
        try:
            run = self._queue(plan)
        except RequestError as error:
            http_errors.name_source(error, source, limit_field)
            raise
        if self.admission is not None:
            self.admission.take_tokens(tokens)
        return run

    def _queue(self, plan: AnswerPlan) -> CallInProgress:
        run = CallInProgress(plan, submit_all(plan.answerer, plan.requests))
        self._streams += run.streams
        return run

    async def results(self, run: CallInProgress) -> list[PlanResult]:
        """Waits for the results of all choices. ClientGone where the client disconnects first."""
        return await until_disconnect(self.request.receive, self._steps(run))

    async def in_turns(self, plan: AnswerPlan, source: str) -> list[PlanResult]:
        """The results of a plan that may exceed the queue: a call takes at most half of the queue at once."""
        turn_results: list[PlanResult] = []
        for turn in plan.turns(max(1, self.server.config.limits.max_waiting // 2)):
            turn_results += await self.results(self.submit(turn, source))
        return turn_results

    async def _steps(self, run: CallInProgress) -> list[PlanResult]:
        """Waits for a step, and runs the steps that follow it."""
        next_step = run.plan.followup
        step_results = [PlanResult((result,)) for result in await results(run.plan.answerer, run.streams)]
        if next_step is None:
            return step_results
        unsure = [i for i, result in enumerate(step_results) if next_step.is_unsure(result.last)]
        if not unsure:
            return step_results
        make_plan = partial(next_step.next_plan, [run.plan.inputs[i] for i in unsure], self._terms)
        making = self._run_off_loop(make_plan, refused=False)  # the first skin has computed its part
        plan = await self._until_deadline(making, "the prompt of the second skin could not be made")
        for i, continued in zip(unsure, await self._steps(self._queue(plan.on(self._terms))), strict=True):
            step_results[i] = PlanResult((*step_results[i].steps, *continued.steps))
        return step_results

    async def arrivals(self, run: CallInProgress) -> AsyncGenerator[Arrival]:
        """Yields texts and answers as they arrive; for a plan with further steps, when the last of these has ended."""
        served, streams = self.lease.served, run.streams
        if run.plan.followup is not None:
            for index, result in enumerate(await self._steps(run)):
                answer = served.answer(result)
                yield Arrival(index, answer.text, (), result, answer)
            return
        pieces = [served.pieces() for _ in streams]
        async with aclosing(arrivals(run.plan.answerer, streams)) as arriving:
            async for index, steps, ended in arriving:
                text = pieces[index]("".join(step.text for step in steps))
                if not ended:
                    yield Arrival(index, text, steps)
                    continue
                result = PlanResult((streams[index].result(0),))
                answer = served.answer(result)
                yield Arrival(index, answer.text if answer.generation is None else text, steps, result, answer)

    def account(self, request: RequestFields, plan_results: Sequence[PlanResult], answers: Sequence[Answer]) -> None:
        """Reports usage and cost to quotas, observers and the access log, before the reply, which shows the cost."""
        price = self.server.config.price
        if price is not None:
            self.cost_usd = compute_of(plan_results) * price.usd_per_hour / 3600
        prompt, completion = tokens_of(request, plan_results)
        self._accounted = True
        if self.admission is not None:
            self.admission.settle(prompt + completion, self.cost_usd or 0.0)
        self.request.scope[http_errors.ACCESS_FACTS].update(
            prompt=prompt,
            completion=completion,
            cached=sum(result.usage.cached_tokens for result in plan_results),
            queued_ms=round(1000 * max((result.timing.queued for result in plan_results), default=0.0), 1),
            ttft_ms=round(1000 * max((result.timing.first for result in plan_results), default=0.0), 1),
            finish=",".join(sorted({answer.finish_reason for answer in answers})),
            **({} if self.cost_usd is None else {"cost_usd": self.cost_usd}),
        )
        finished = FinishedCall(
            id=self.id,
            endpoint=self.endpoint,
            caller=self.caller,
            served=self.lease.served,
            request=request,
            results=plan_results,
            answers=answers,
            seconds=time.perf_counter() - self.start,
            cost_usd=self.cost_usd,
            origin=self._origin,
            routed=self.lease.routed,
            size=self.size,
        )
        for observe in self.server.observers:
            observe(finished)

    def hold_reply(self, reply: Response) -> Response:
        """Wraps a whole reply so that the call ends, and stops counting as concurrent, when the reply has been sent."""
        self.reservation.add(0 if isinstance(reply, FileResponse) else len(reply.body))
        return CleanupResponse(reply, self.close)

    def release(self) -> None:
        """Cancels what still runs for the call and releases its model; the reply may still be in transit."""
        cancel_all(self._streams)
        if not self._accounted:
            self._accounted = True
            self._charge_the_rest()
        if self._lease is not None:
            self._lease.release()

    def close(self) -> None:
        self.release()
        if self.admission is not None:
            self.admission.end()
        self.reservation.close()

    def _charge_the_rest(self) -> None:
        """Charges what was computed for a client that left, once the engine has ended its requests."""
        lease, streams, price = self._lease, [*self._streams], self.server.config.price

        def charge() -> None:
            prompt, completion, seconds = spent_on(streams)
            usd = None if price is None else seconds * price.usd_per_hour / 3600
            if self.admission is not None:
                self.admission.settle(prompt + completion, usd or 0.0)
            if lease is None or not (prompt or completion):
                return
            for notify in self.server.unanswered:
                notify(UnansweredCall(lease.served.name, self.caller, prompt, completion, usd))

        when_over(streams, charge)


Work = Callable[[ApiCall], Awaitable[Response]]
"""A function that answers a call."""


async def respond(request: Request, endpoint: str, work: Work) -> Response:
    """Identifies and admits the caller, runs `work`, and closes the call when its reply has been sent."""
    server: ServerState = request.app.state.server
    if server.stopping:
        raise http_errors.StoppingError("the server is shutting down")
    await server.guard.refresh()
    caller = request.scope.get(http_errors.CALLER) or server.guard.identify(request.headers)
    facts, headers = request.scope[http_errors.ACCESS_FACTS], request.scope[http_errors.REPLY_HEADERS]
    facts.update(endpoint=endpoint, key=caller.key, tenant=caller.tenant)
    call = ApiCall(request, endpoint, caller)
    made_here = http_errors.CALLER in request.scope
    try:
        call.admission = server.guard.admit(caller, counted=not made_here)
        response = await work(call)
    except BaseException:
        server.pacing.refused(caller.tenant)
        call.close()
        headers.update(server.guard.headers(caller) if call.admission is None else call.admission.headers())
        raise
    headers.update(call.admission.headers())
    if isinstance(response, EventStream):
        response.at_end(call.close)
        return response
    call.release()
    return call.hold_reply(response)


def answers(
    endpoint: str, respond: Callable[[Request, str, Work], Awaitable[Response]] = respond
) -> Callable[[Callable[..., Awaitable[Response]]], Callable[[Request], Awaitable[Response]]]:
    """Turns a handler into a route. endpoint: its name for observers and the access log; "admin" needs an admin's key.

    @router.post("/embeddings")
    @answers("embeddings")
    async def embeddings(call: ApiCall, request: EmbeddingRequest) -> Response: ...

    A handler with a second parameter gets the body, read as the request model that the parameter is annotated with; the
    OpenAPI document finds the model there too.
    """

    def decorate(handler: Callable[..., Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        _, *body = inspect.signature(handler, eval_str=True).parameters.values()

        async def answer(call: ApiCall) -> Response:
            if endpoint == "admin":
                call.caller.need_admin()
            return await handler(call, *[await call.read(parameter.annotation) for parameter in body])

        async def route(request: Request) -> Response:
            return await respond(request, endpoint, answer)

        route.__name__, route.__doc__ = getattr(handler, "__name__", endpoint), handler.__doc__
        vars(route)[BODY_MODEL] = body[0].annotation if body else None
        return route

    return decorate


def parse_object(content: bytes) -> dict[str, Any]:
    """A body as a JSON object. RequestError 400 for anything else."""
    parsed = parse_json(content)
    if not isinstance(parsed, dict):
        raise RequestError("the body must be a JSON object", code="invalid_json")
    return parsed


async def read_bytes(request: Request, limit: int, on_bytes: Callable[[int], None] = lambda _: None) -> bytes:
    """Reads the body. StatusError 413 over `limit` bytes, 408 when it is too slow. on_bytes: called with the number of
    bytes of each kept chunk; an error that it raises ends the reading."""
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await _read(request, limit, on_bytes)
    except TimeoutError:
        raise http_errors.StatusError(
            408, f"the body did not arrive within {READ_SECONDS:g} s", "request_timeout"
        ) from None
    except ClientDisconnect:
        raise http_errors.ClientGone from None


async def _read(request: Request, limit: int, on_bytes: Callable[[int], None]) -> bytes:
    content, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            on_bytes(len(chunk))
            content += chunk
        elif size > limit + _DRAINED_BYTES:
            break
    if size > limit:
        raise http_errors.StatusError(413, f"the body is larger than {limit:,} bytes", "request_too_large")
    return bytes(content)


def tokens_of(request: RequestFields, plan_results: Sequence[PlanResult]) -> tuple[int, int]:
    """Prompt and completion tokens as the reply's usage has them: the choices of one prompt count it once."""
    prompt = sum(result.usage.prompt_tokens for result in plan_results[:: request.choices])
    return prompt, sum(result.usage.completion_tokens for result in plan_results)


def when_over(streams: Sequence[Stream], callback: Callable[[], None]) -> None:
    """Calls `callback` in the event loop once the engine has ended all of these streams."""
    loop, pending = asyncio.get_running_loop(), set(streams)

    def over(stream: Stream) -> None:
        if stream in pending:
            pending.discard(stream)
            if not pending:
                callback()

    def ended(stream: Stream) -> None:
        if stream.finished:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(over, stream)

    for stream in streams:
        stream.listen(partial(ended, stream))


def spent_on(streams: Sequence[Stream]) -> tuple[int, int, float]:
    """Prompt tokens, completion tokens and seconds of compute. The choices of one prompt count it once; requests that
    failed by the server's fault count nothing."""
    prompt = completion = 0
    seconds, lookups = 0.0, dict[int, Retrieval]()
    for _, group in groupby(streams, lambda stream: stream.request.tokens):
        choices = [c for c in group if c.failure is None or isinstance(c.failure, RequestError | DeadlineError)]
        prompt += max((choice.spent.usage.prompt_tokens for choice in choices), default=0)
        completion += sum(choice.spent.usage.completion_tokens for choice in choices)
        seconds += sum(choice.spent.compute for choice in choices)
        lookups |= {id(lookup): lookup for choice in choices if (lookup := choice.request.retrieval) is not None}
    return prompt, completion, seconds + sum(retrieval.compute for retrieval in lookups.values())
