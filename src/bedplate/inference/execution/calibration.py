"""Times a base's passes under each of some execution plans on this machine, in about a second, and keeps the result.

1. `plan_timings` reads the record for this machine and architecture, or has one made.
2. `measure` opens a `PlanTrial` for each plan.
3. `by_turns` times them: the plans take turns, and the best time of each part counts, so that other work on the machine
   disturbs less. A plan that is far behind after its first turn is timed no further.
4. `PlanTimings.cost` weighs the passes up to what a base is used for.

A record is bound to the processor, the kernel's level and build, the threads, torch and the base's architecture: a home
directory may be shared by machines of different kinds.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from bedplate.core.measurements import measured_once, patience
from bedplate.core.processor import processor_kind
from bedplate.inference.execution.plan import ExecutionPlan
from bedplate.inference.execution.threads import engine_threads
from bedplate.inference.execution.trial import ROWS, Pass, PlanTrial, Step, made_up, shortened, timed_as
from bedplate.inference.native.library import load
from bedplate.models.model import Model
from bedplate.models.precision import DTYPES
from bedplate.models.specs import TextSpec, TransformerSpec

Use = Literal["generate", "score"]
"""What a base is opened for: it writes, or it reads (labels, embeddings, scores)."""

ANSWER = 64
"""Tokens that the reference mix writes after a prompt of PROMPT."""
SHORT = 0.25
"""Length of a short prompt, as a share of PROMPT: a sentence to be labelled behind some instructions."""
VERSION = 4
_MASKS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables that keep torch's products from instructions that the processor has."""

MAX_TURNS, MAX_SECONDS = 40, 3.0
MIN_TURNS = 3  # before one plan counts as clearly ahead
AGREEMENT_RATIO = 1.15  # the two best times of a part, within 15%, are believed
HOPELESS_RATIO = 2.5  # this far behind the best after one turn a plan is given up
CLEAR_RATIO = 1.25  # this far ahead of all others one is taken without more turns


@dataclass(frozen=True)
class PlanTimings:
    """Seconds of passes of a whole base, by plan. dropped: plans that were given up after their first turn. brief: the
    use for which timing ended as soon as its fastest plan was clear; the times themselves need not have agreed.
    spread: how many times longer the second best time of a part was than its best, the most of all plans that were
    timed to the end: plans that differ by less are not told apart."""

    seconds: Mapping[ExecutionPlan, Mapping[Pass, float]]
    dropped: tuple[ExecutionPlan, ...] = ()
    brief: Use | None = None
    spread: float = 1.0

    def cost(self, plan: ExecutionPlan, use: Use = "generate") -> float:
        """Seconds of the reference mix: `PROMPT` tokens in and `ANSWER` out, once alone and once as one of sixteen
        sequences. For "score" such a prompt and one of a quarter of its tokens, whose time lies between one token's and
        the long one's. For encoders, of which prompts alone are timed, the long one."""
        times = self.seconds[plan]
        if "decode_1" not in times:
            return times["prefill"]
        if use == "score":
            return times["prefill"] + times["decode_1"] + SHORT * (times["prefill"] - times["decode_1"])
        return 2 * times["prefill"] + ANSWER * (times["decode_1"] + times["decode_16"] / ROWS["decode_16"])

    def fastest(self, plans: Sequence[ExecutionPlan], use: Use = "generate") -> ExecutionPlan:
        """The plan whose mix takes least time, the first of equal ones. Torch's plans are candidates like the others,
        so that what is chosen is never slower than the best of them in this measurement."""
        return min(plans, key=lambda plan: self.cost(plan, use))


def plan_timings(
    spec: TextSpec, plans: Sequence[ExecutionPlan], *, brief: Use | None = None, remeasure: bool = False
) -> PlanTimings:
    """The timings of these plans, which must be possible here, for a base of this architecture: read, or made now.
    brief: only the fastest plan for this use is asked for; somebody waits for it. Another use, or a caller who asks for
    the times, has them measured thoroughly, which serves every use. remeasure: whatever was kept."""
    spec, brief_uses = timed_as(spec), list[Use]()

    def read(record: Mapping[str, Any]) -> PlanTimings:
        timings = _from_json(record, plans)
        if timings.brief not in (None, brief):
            brief_uses.append(timings.brief)
            raise ValueError("a brief measurement for another use")
        return timings

    def make() -> PlanTimings:
        return measure(spec, plans, None if brief_uses else brief)

    return measured_once("ways", _key(spec, plans), make, _to_json, read, remeasure=remeasure)


def _key(spec: TransformerSpec, plans: Sequence[ExecutionPlan]) -> dict[str, Any]:
    library = load() if any(plan.kernel == "native" for plan in plans) else ""
    return {
        "version": VERSION,
        "cpu": processor_kind(),
        "level": None if isinstance(library, str) else library.level,
        "library": None if isinstance(library, str) else library.digest,
        "threads": [engine_threads(), torch.get_num_threads()],
        "torch": [str(torch.__version__), torch.backends.cpu.get_cpu_capability(), *map(os.environ.get, _MASKS)],
        "spec": spec.key(),
        "ways": [list(plan) for plan in plans],
    }


def _to_json(timings: PlanTimings) -> dict[str, Any]:
    seconds = [[list(plan), dict(times)] for plan, times in timings.seconds.items()]
    dropped = [list(plan) for plan in timings.dropped]
    return {"seconds": seconds, "dropped": dropped, "brief": timings.brief, "spread": timings.spread}


def _from_json(record: Mapping[str, Any], plans: Sequence[ExecutionPlan]) -> PlanTimings:
    """The inverse of `_to_json`. Raises ValueError and the like for what are no timings of these plans."""
    seconds = {ExecutionPlan(*plan): _times(times) for plan, times in record["seconds"]}
    dropped = tuple(ExecutionPlan(*plan) for plan in record["dropped"])
    if set(seconds) != set(plans) or len({frozenset(times) for times in seconds.values()}) != 1:
        raise ValueError("another measurement")
    return PlanTimings(seconds, dropped, record["brief"], max(1.0, float(record["spread"])))


def _times(times: Mapping[str, Any]) -> dict[Pass, float]:
    """Times of all passes, or, for a base that only reads, of prompts alone."""
    passes: tuple[Pass, ...] = (*ROWS, "prefill") if len(times) > 1 else ("prefill",)
    if not all(0 < float(times[name]) < math.inf for name in passes):
        raise ValueError("a time that cannot be")
    return {name: float(times[name]) for name in passes}


def measure(spec: TransformerSpec, plans: Sequence[ExecutionPlan], brief: Use | None = None) -> PlanTimings:
    """Times these plans now; brief: see `plan_timings`. Plans of one dtype share a model of made-up weights."""
    short, models = shortened(spec), dict[str, Model]()
    with ExitStack() as stack:
        trials: dict[ExecutionPlan, PlanTrial] = {}
        for plan in plans:
            if plan.dtype not in models:
                models[plan.dtype] = made_up(short, DTYPES[plan.dtype])
            trials[plan] = stack.enter_context(closing(PlanTrial(spec, plan, engine_threads(), models[plan.dtype])))
        return by_turns(trials, time.perf_counter, brief)


def by_turns(
    trials: Mapping[ExecutionPlan, PlanTrial], clock: Callable[[], float], brief: Use | None = None
) -> PlanTimings:
    """Times every part of every trial, by turns, until the two best times of each agree or patience ends; brief: or,
    for this use, one plan is clearly the fastest."""
    memory = torch.zeros(max(part.sweep for trial in trials.values() for part in trial.parts) // 4)
    best: dict[ExecutionPlan, dict[Step, list[float]]] = {plan: {} for plan in trials}
    running, deadline = list(trials), clock() + patience(MAX_SECONDS)

    def timings(brief: Use | None = None) -> PlanTimings:
        seconds = {plan: trials[plan].seconds({step: two[0] for step, two in best[plan].items()}) for plan in trials}
        spread = max((two[-1] / two[0] for plan in running for two in best[plan].values()), default=1.0)
        return PlanTimings(seconds, tuple(plan for plan in trials if plan not in running), brief, spread)

    for turn in range(MAX_TURNS):
        for plan in running:
            for part in trials[plan].parts:
                if not turn:
                    part.run()  # whatever is set up at the first call
                memory[: part.sweep // 4].sum()
                start = clock()
                part.run()
                seconds = max(clock() - start, 1e-9)
                best[plan][part.step] = sorted((*best[plan].get(part.step, ()), seconds))[:2]
        if not turn:
            running = _hopeful(timings(), running)
            continue
        pairs = [two for plan in running for two in best[plan].values()]
        if clock() >= deadline or all(second <= AGREEMENT_RATIO * first for first, second in pairs):
            break
        if brief is not None and turn + 1 >= MIN_TURNS and _is_clear(timings(), brief):
            return timings(brief)
    return timings()


def _is_clear(timings: PlanTimings, use: Use) -> bool:
    """Whether one plan is so far ahead that a few more turns would not put another before it."""
    best, *others = sorted(timings.cost(plan, use) for plan in timings.seconds)
    return not others or best * CLEAR_RATIO <= others[0]


def _hopeful(timings: PlanTimings, plans: Sequence[ExecutionPlan]) -> list[ExecutionPlan]:
    """The plans not far behind the best in both uses, and torch's best, against which the chosen one is reported."""
    hopeful: list[ExecutionPlan] = []
    torch_plans = [plan for plan in plans if plan.kernel == "torch"]
    for use in get_args(Use):
        limit = HOPELESS_RATIO * timings.cost(timings.fastest(plans, use), use)
        hopeful += [plan for plan in plans if timings.cost(plan, use) <= limit]
        hopeful += [timings.fastest(torch_plans, use)] if torch_plans else []
    return [plan for plan in plans if plan in hopeful]
