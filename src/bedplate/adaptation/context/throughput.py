"""How fast this machine answers this task, measured once on the plain prompt, and how much faster it would be in
quantised weights: every rung plans its time with it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median_high as median

import torch

from bedplate.adaptation.task.adapt_parts import FORMATS, Format, FormatsSpec
from bedplate.adaptation.task.task_prompt import AnswerLengths
from bedplate.core.processor import is_busy, load_average, processor
from bedplate.core.values import Values
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Request, Score
from bedplate.inference.execution.calibration import plan_timings
from bedplate.inference.execution.choice import impossible
from bedplate.inference.execution.plan import ExecutionPlan
from bedplate.inference.execution.threads import engine_threads
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.predictor import Prediction, Predictor
from bedplate.models.precision import dtype_name

BATCH, CALLS = 64, 12
LEAST_BATCH, LEAST_CALLS, FIRST_CALLS = 4, 3, 3
FEWEST_CALLS = 6
"""About how many calls the least measurement takes as long as."""
PACE_SHARE = 0.05
"""The share of the remaining time that measuring a base's speed may take."""
REPEATS, REPEAT_SECONDS = 3, 6.0
"""So often are calls timed before they exclude a rung, and about so long each time."""

WRITTEN_BATCH, WRITTEN_CALLS = 16, 4
"""Where answers are written, a row takes many times as long."""


@dataclass(frozen=True)
class Throughput:
    """Measured on this machine, base and task. token: seconds per token that is read in batches; call: seconds of one
    call alone; tokens: mean prompt tokens of a row (without demonstrations). Where answers are scored: `scored` tokens
    of all of them behind a prompt. Where they are written: `decode` seconds per written token in batches, `written`
    tokens that the base writes for a row as it is asked, `target` tokens of a right answer, which is what a tuned skin
    writes. first_calls: seconds of the first FIRST_CALLS of the calls, the median. at: when it was measured, on the
    machine's own clock."""

    token: float
    call: float
    tokens: float
    decode: float = 0.0
    written: float = 0.0
    target: float = 0.0
    first_calls: float = 0.0
    scored: float = 0.0
    at: float = field(default_factory=lambda: time.monotonic(), compare=False)  # noqa: PLW0108

    def rows(self, n: float, *, tuned: bool = False) -> float:
        """Expected seconds for `n` rows in batches; tuned: answered by a skin that has learned where answers end."""
        decoded = self.target if tuned else self.written
        return n * ((self.tokens + self.scored) * self.token + decoded * self.decode)

    def passes(self, n: float) -> float:
        """Expected seconds for a forward pass over `n` rows with their right answers, as training sees them."""
        return n * (self.tokens + self.target) * self.token


@dataclass(frozen=True)
class CallTimings:
    """Calls with one prompt. call: seconds, the least of `times` medians. load: processes that wanted a processor,
    averaged over a minute; None where the system does not say. cpu_seconds: seconds that this process's processors
    worked for such a call, spread over the threads that it may have; None where that is not known."""

    call: float
    times: int
    load: float | None
    cpu_seconds: float | None = None

    @property
    def quiet(self) -> float:
        """Seconds that a call takes as far as this process itself is the reason. Where more wants to compute than there
        are processors, the time that a call waits for one says nothing of the call."""
        if self.cpu_seconds is None or self.load is None or not is_busy(self.load):
            return self.call
        return min(self.call, self.cpu_seconds)

    @property
    def description(self) -> str:
        times = "the median" if self.times == 1 else f"the least of {self.times} medians"
        load = "" if self.load is None else f"; load average {self.load:.1f}"
        waited = f", without {1000 * (self.call - self.quiet):.0f} ms of waiting for a processor"
        return times + load + (waited if self.quiet < self.call else "")


def read_calls(predictor: Predictor, rows: Sequence[Values], limit: float, tenant: str) -> CallTimings:
    """Times a skin's calls, each time as another tenant, for whom the rows are new; tenant: begins their names."""
    predictor.predict(rows[:1])

    def timed(count: int, time: int) -> float:
        return median(call_seconds(predictor, rows[:count], f"{tenant} {time}"))

    return _read(timed, len(rows), limit)


def read_texts(model: LocalModel, texts: Sequence[str], limit: float) -> CallTimings:
    """Times texts that are embedded alone."""
    return _read(lambda count, _: median([_seconds(model, [text]) for text in texts[:count]]), len(texts), limit)


def _read(timed: Callable[[int, int], float], max_calls: int, limit: float) -> CallTimings:
    """Time single calls until their median is within `limit` seconds, REPEATS times at most. timed: the median of so
    many calls, `max_calls` at most, and which time it is."""
    call, cpu_seconds, times = math.inf, math.inf, 0
    while times < REPEATS and call > limit:
        count = CALLS if times == 0 or call * CALLS <= REPEAT_SECONDS else max(3, int(REPEAT_SECONDS / call))
        worked = time.process_time()
        call = min(call, timed(count, times))
        cpu_seconds = min(cpu_seconds, (time.process_time() - worked) / min(count, max_calls) / processor().threads)
        times += 1
    return CallTimings(call, times, load_average(), cpu_seconds)


def measure_throughput(
    predictor: Predictor, rows: Sequence[Values], written: AnswerLengths, room: float = math.inf
) -> Throughput:
    """Time a batch or two, and a few single calls: fewer rows where that would take more than about `room` seconds, and
    where the fewest would, none: the roofline tells then, for a machine as busy as is believed."""
    request, slowest, start = predictor.request(rows[0]), _slowest_passes(predictor.engine), time.perf_counter()
    scored = sum(len(tokens) - 1 for tokens in request.continuations) if isinstance(request, Score) else 0
    steps = 1 + (len(request.continuations) if isinstance(request, Score) else written.mean)
    predictor.engine.run([_prompt_alone(request)])
    if slowest is not None and FEWEST_CALLS * steps * (time.perf_counter() - start) > room:
        tokens = max(1.0, len(request.tokens) - request.shared_tokens)
        speed = Throughput(math.inf, math.inf, tokens, math.inf, scored=scored)
        if not isinstance(request, Score):
            speed = replace(speed, written=written.max_tokens, target=written.mean)
        return believed(speed, slowest, steps)
    predictor.predict(rows[:1])
    first = predictor.predict(rows[1:3] or rows)[0].seconds
    if isinstance(request, Score):
        size = _fitting_count(room / 2, first, LEAST_BATCH, BATCH)
        count = _fitting_count(room / 4, first, LEAST_CALLS, CALLS)
        starts = (0, size) if room / 2 >= 2 * size * first else (0,)
        batches = [predictor.predict(rows[i : i + size]) for i in starts if rows[i:]]
        tokens = _new_tokens([p for batch in batches for p in batch])
        calls = call_seconds(predictor, rows[:count])
        token = min(batch[0].seconds for batch in batches) / (tokens + scored)
        speed = Throughput(token, median(calls), tokens, first_calls=median(calls[:FIRST_CALLS]), scored=scored)
        return believed(speed, slowest, steps)
    batch = rows[: _fitting_count(room / 2, first, WRITTEN_CALLS, WRITTEN_BATCH)]
    # one token each is the prompts' time; the whole answers after that find the prompts cached, for the most part
    first = predictor.run_requests(predictor.requests(batch, predictor.sampling(max_tokens=1)))
    tokens = _new_tokens(first)
    token = first[0].seconds / tokens
    whole = predictor.predict(batch)
    count = sum(p.completion_tokens for p in whole)
    prompts = sum(p.prompt_tokens - p.cached_tokens for p in whole) * token
    decode = max(sum(p.seconds for p in whole) - prompts, 0.0) / max(count, 1)
    calls = call_seconds(predictor, rows[:WRITTEN_CALLS])
    first_calls = median(calls[:FIRST_CALLS])
    speed = Throughput(token, median(calls), tokens, decode, count / len(whole), written.mean, first_calls)
    return believed(speed, slowest, 1 + speed.written)


def _fitting_count(room: float, unit_seconds: float, minimum: int, maximum: int) -> int:
    """How many fit into these seconds, within bounds."""
    return maximum if math.isinf(room) or unit_seconds <= 0 else min(maximum, max(minimum, int(room / unit_seconds)))


def embedding_throughput(model: LocalModel, texts: Sequence[str], room: float = math.inf) -> Throughput:
    """The same for a base that reads only: a batch or two, and a few texts alone."""
    model.embed(texts[:2])
    tokens, seconds = 0, float("inf")
    size = _fitting_count(room / 2, _seconds(model, texts[:1]), LEAST_BATCH, BATCH)
    for batch in (texts[:size], texts[size : 2 * size]):
        count = sum(len(model.text_tokens(text)) for text in batch)
        if count:
            seconds, tokens = min(seconds, _seconds(model, batch) / count), tokens + count
    calls = [_seconds(model, [text]) for text in texts[:CALLS]]
    mean_tokens = tokens / len(texts[: 2 * size])
    speed = Throughput(seconds, median(calls), mean_tokens, first_calls=median(calls[:FIRST_CALLS]))
    return believed(speed, _slowest_passes(model.engine), 1)


BELIEVED = 4.0
"""Times longer than the roofline that a moment's reading may be: other work rarely takes more of a machine."""
VECTOR_LANES = {"AVX512": 16, "AVX2": 8}
LANES, OPERATIONS, CLOCK, EFFICIENCY, BANDWIDTH = 4, 4, 2.5e9, 0.5, 10e9
"""A core without wide vectors: numbers of 32 bits in one; operations on each in a cycle (two products that add);
cycles a second; the share of these that products reach; and bytes a second that a plain server reads from memory."""
ENGINE_TOKEN, ENGINE_STEP = 2e-5, 2e-3
"""About what an engine adds to a token and to a step of a pass, in seconds."""


def believed(speed: Throughput, slowest: tuple[float, float] | None, steps: float) -> Throughput:
    """The speed, no lower than a busy machine explains. slowest: of `_slowest_passes`; steps: passes that a call
    takes."""
    if slowest is None:
        return speed
    token, step = slowest
    call = token * (speed.tokens + speed.scored) + step * steps
    return replace(speed, token=min(speed.token, token), call=min(speed.call, call), decode=min(speed.decode, step))


def _slowest_passes(engine: Engine) -> tuple[float, float] | None:
    """Seconds of a token in a long prompt, and of a pass of few tokens, that are believed at most: BELIEVED times the
    roofline of a modest processor (Williams et al. 2009), which no moment's work on this one changes. None for
    devices."""
    if engine.base.device.type != "cpu":
        return None
    parameters = list(engine.base.model.parameters())
    lanes = VECTOR_LANES.get(torch.backends.cpu.get_cpu_capability(), LANES)
    operations = EFFICIENCY * CLOCK * OPERATIONS * lanes * engine_threads()
    weights, size = sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)
    token, step = 2 * weights / operations, size / BANDWIDTH
    return BELIEVED * (ENGINE_TOKEN + token), BELIEVED * (ENGINE_STEP + step)


def _prompt_alone(request: Request) -> Request:
    """The request with one short answer: a pass over its prompt."""
    if isinstance(request, Score):
        return replace(request, continuations=request.continuations[:1])
    assert isinstance(request, Generate)
    return replace(request, sampling=replace(request.sampling, max_tokens=1))


def _seconds(model: LocalModel, texts: Sequence[str]) -> float:
    start = time.perf_counter()
    model.embed(texts)
    return time.perf_counter() - start


def _new_tokens(predictions: Sequence[Prediction]) -> float:
    """Mean prompt tokens of a row that were not cached."""
    return max(1.0, sum(p.prompt_tokens - p.cached_tokens for p in predictions) / len(predictions))


def call_seconds(predictor: Predictor, rows: Sequence[Values], tenant: str = "timing") -> list[float]:
    # as another tenant, for whom these rows are new, as those of calls are
    return [p.seconds for p in predictor.predict(rows, one_by_one=True, tenant=tenant)]


CLEARLY = 1.05
"""Times as fast; speeds that differ by less are not told apart."""


def worth_trying(model: LocalModel, spec: FormatsSpec, *, writes: bool) -> Mapping[Format, float] | str:
    """Format → times as fast as now, the fastest first, at calls whose answers are written, or else scored: of "auto"
    those that were measured to be clearly faster, of a list all that it names. Or why there is none."""
    if not spec.allowed:
        return "adapt.formats is none"
    base, engine = model.base, model.engine
    dtype = dtype_name(base.dtype)
    baseline = ExecutionPlan(dtype, "torch" if engine.kernel == "torch" else "native", engine.weights)
    formats = {fmt: ExecutionPlan(dtype, "native", fmt) for fmt in FORMATS if fmt != engine.weights}
    reasons = filter(None, (impossible(base.spec, candidate, base.device) for candidate in formats.values()))
    reason = next(reasons, None)
    if reason is not None:
        return reason
    timings, use = plan_timings(base.spec, [baseline, *formats.values()]), "generate" if writes else "score"
    now = timings.cost(baseline, use)
    speeds = {fmt: now / timings.cost(candidate, use) for fmt, candidate in formats.items()}
    allowed: dict[Format, float] = {fmt: times for fmt, times in speeds.items() if fmt in spec.allowed}
    worthwhile: list[Format] = [fmt for fmt, times in allowed.items() if spec.weights != "auto" or times >= CLEARLY]
    if not worthwhile:
        listing = ", ".join(f"{fmt} {times:.2f}" for fmt, times in allowed.items())
        workload = "writing answers" if writes else "scoring answers"
        if not listing:
            return f"its own weights are {model.engine.weights} already"
        return f"measured here, no format is clearly faster at {workload} (times as fast as now: {listing})"
    return {fmt: allowed[fmt] for fmt in sorted(worthwhile, key=lambda fmt: -allowed[fmt])}
