"""How long a base's passes take in each of some ways here: measured in a few hundred milliseconds, kept on disk.

The ways take turns, and the best time of each counts, so that other work on the machine disturbs less; a way that is
far behind after its first turn is measured no further. What is kept is bound to the processor, the kernel's level and
build, the threads, torch and the base's architecture: a home directory may be shared by machines of different kinds.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bedplate.core.measurements import measured_once
from bedplate.core.processor import processor_kind
from bedplate.inference.execution.plan import ExecutionPlan
from bedplate.inference.execution.threads import engine_threads
from bedplate.inference.execution.trial import (
    PROMPT,
    ROWS,
    Pass,
    PlanTrial,
    TimedPart,
    made_up,
    read_bytes,
    shortened,
    sweep_bytes,
    timed_as,
)
from bedplate.inference.native.library import load
from bedplate.models.model import Model
from bedplate.models.precision import DTYPES
from bedplate.models.specs import TextSpec, TransformerSpec

Use = Literal["generate", "score"]
"""What a base is opened for: it writes, or it reads (labels, embeddings, scores)."""

ANSWER = 64
"""Tokens that the reference mix writes after a prompt of PROMPT."""
SHORT = 0.25
"""How long a short prompt is, of PROMPT: a sentence to be labelled behind some instructions."""

VERSION = 3
_MASKS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""What keeps torch's products from instructions that the processor has."""

_TURNS, _LONGEST, _AGREE, _HOPELESS, _CLEAR = 40, 3.0, 1.15, 2.5, 1.25
"""Turns and seconds at most; how near each time's two best must be to be believed; how far behind the best a way is
given up; how far ahead of all others one is taken without more turns."""
_GLANCES, _FASTER = 3, 1.2
"""Runs of a part before a way is given up that is not hopeless, and turns before one is clearly ahead; how much faster
than a sum memory is read."""


@dataclass(frozen=True)
class PlanTimings:
    """Seconds of passes of a whole base, by way. dropped: ways that were given up, after their first turn or (brief)
    before there were times of all their passes. brief: the use for which it ended as soon as its fastest way was clear;
    the times themselves need not have agreed."""

    seconds: Mapping[ExecutionPlan, Mapping[Pass, float]]
    dropped: tuple[ExecutionPlan, ...] = ()
    brief: Use | None = None

    def cost(self, backend: ExecutionPlan, use: Use = "generate") -> float:
        """Seconds of the reference mix: `PROMPT` tokens in and `ANSWER` out, once alone and once as one of sixteen
        sequences that are decoded together. For "score" such a prompt and a short one of a quarter of its tokens, in
        which what a pass costs by itself counts: its time lies between one token's and the long one's. For encoders,
        of which prompts alone are timed, the long one."""
        pass_seconds = self.seconds[backend]
        if "decode_1" not in pass_seconds:
            return pass_seconds["prefill"]
        if use == "score":
            return (
                pass_seconds["prefill"]
                + pass_seconds["decode_1"]
                + SHORT * (pass_seconds["prefill"] - pass_seconds["decode_1"])
            )
        return 2 * pass_seconds["prefill"] + ANSWER * (
            pass_seconds["decode_1"] + pass_seconds["decode_16"] / ROWS["decode_16"]
        )

    def rate(self, backend: ExecutionPlan, of: Pass) -> float | None:
        """Tokens a second of a pass, over all its rows; None where the base has no such pass."""
        tokens = ROWS.get(of, PROMPT)
        return tokens / self.seconds[backend][of] if of in self.seconds[backend] else None

    def fastest(self, backends: Sequence[ExecutionPlan], use: Use = "generate") -> ExecutionPlan:
        """The way whose mix takes least time; of equal ones the first. Torch's own ways are candidates like the others,
        so that what is chosen is never slower than the best of them in this measurement."""
        return min(
            (backend for backend in backends if backend in self.seconds), key=lambda backend: self.cost(backend, use)
        )


def measured(
    spec: TextSpec, backends: Sequence[ExecutionPlan], *, brief: Use | None = None, remeasure: bool = False
) -> PlanTimings:
    """The measurement of these ways for a base of this architecture on this machine's CPU: read, or made now.

    Every way must be possible here. brief: only the fastest way for this use is asked for; somebody waits for it. Who
    asks for the times themselves later has them measured anew. remeasure: whatever was kept.
    """
    spec = timed_as(spec)
    return measured_once(
        "ways",
        _key(spec, backends),
        lambda: measure(spec, backends, brief),
        _to_json,
        lambda record: _from_json(record, backends, brief),
        remeasure=remeasure,
    )


def _key(spec: TransformerSpec, backends: Sequence[ExecutionPlan]) -> dict[str, Any]:
    library = load() if any(backend.kernel == "native" for backend in backends) else ""
    return {
        "version": VERSION,
        "cpu": processor_kind(),
        "level": None if isinstance(library, str) else library.level,
        "library": None if isinstance(library, str) else library.digest,
        "threads": [engine_threads(), torch.get_num_threads()],
        "torch": [str(torch.__version__), torch.backends.cpu.get_cpu_capability(), *map(os.environ.get, _MASKS)],
        "spec": spec.key(),
        "ways": [list(backend) for backend in backends],
    }


def _to_json(measurement: PlanTimings) -> dict[str, Any]:
    seconds = [[list(backend), dict(times)] for backend, times in measurement.seconds.items()]
    return {
        "seconds": seconds,
        "dropped": [list(backend) for backend in measurement.dropped],
        "brief": measurement.brief,
    }


def _from_json(record: Mapping[str, Any], backends: Sequence[ExecutionPlan], brief: Use | None) -> PlanTimings:
    """The inverse of `_to_json`. ValueError and the like for what is not a measurement of these ways, or is too brief
    for what is asked."""
    if record["brief"] not in (None, brief):
        raise ValueError("a measurement for another use")
    seconds = {ExecutionPlan(*backend): _times(times) for backend, times in record["seconds"]}
    dropped = tuple(ExecutionPlan(*backend) for backend in record["dropped"])
    covered = set(seconds) if record["brief"] is None else {*seconds, *dropped}
    if covered != set(backends) or len({frozenset(times) for times in seconds.values()}) != 1:
        raise ValueError("another measurement")
    return PlanTimings(seconds, dropped, record["brief"])


def _times(times: Mapping[str, Any]) -> dict[Pass, float]:
    """Of all passes, or, for a base that only reads, of prompts alone."""
    passes: tuple[Pass, ...] = (*ROWS, "prefill")
    seconds: dict[Pass, float] = {
        pass_name: float(times[pass_name]) for pass_name in (passes if len(times) > 1 else ("prefill",))
    }
    if not all(math.isfinite(value) and value > 0 for value in seconds.values()):
        raise ValueError("a time that cannot be")
    return seconds


def measure(spec: TransformerSpec, backends: Sequence[ExecutionPlan], brief: Use | None = None) -> PlanTimings:
    """Measures these ways now, by turns: in some tenths of a second for bases of a few hundred million weights, in some
    seconds where other work keeps the times from agreeing. brief: see `measured`."""
    short, models = shortened(spec), dict[str, Model]()
    with ExitStack() as stack:

        def opened(backend: ExecutionPlan) -> PlanTrial:
            if backend.dtype not in models:
                models[backend.dtype] = made_up(short, DTYPES[backend.dtype])
            return stack.enter_context(closing(PlanTrial(spec, backend, engine_threads(), models[backend.dtype])))

        if brief is None:
            return by_turns({backend: opened(backend) for backend in backends}, time.perf_counter)
        return quickest(spec, backends, opened, time.perf_counter, brief)


def quickest(
    spec: TransformerSpec,
    backends: Sequence[ExecutionPlan],
    opened: Callable[[ExecutionPlan], PlanTrial],
    clock: Callable[[], float],
    use: Use,
) -> PlanTimings:
    """The fastest way for one use, by as little measuring as tells it: what reads least comes first, and each other is
    given up as soon as what is known of its passes takes longer. Those that are left take turns."""
    trials: dict[ExecutionPlan, PlanTrial] = {}
    times: dict[ExecutionPlan, dict[tuple[Pass, str], float]] = {}
    swept, best = _Swept(clock), math.inf
    for backend in sorted(backends, key=lambda candidate: (candidate.kernel == "torch", read_bytes(spec, candidate))):
        step = swept.min_seconds(read_bytes(spec, backend))
        if step and best < PlanTimings({backend: dict.fromkeys((*ROWS, "prefill"), step)}).cost(backend, use):
            continue
        trial = opened(backend)
        part_times = _glance(backend, trial, best, swept, use)
        if part_times is not None:
            trials[backend], times[backend] = trial, part_times
            best = min(best, _lower_bound(backend, trial, part_times, use))
    if len(trials) == 1:
        [(backend, trial)] = trials.items()
        seconds, late, measured_use = {backend: trial.seconds(times[backend])}, (), use
    else:
        seconds, late, measured_use = (turns := by_turns(trials, clock, use)).seconds, turns.dropped, turns.brief
    dropped = tuple(backend for backend in backends if backend not in seconds or backend in late)
    return PlanTimings(seconds, dropped, use if len(seconds) < len(backends) else measured_use)


class _Swept:
    """Memory that is read between passes, and the fastest that it was read."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self._memory, self._speed = clock, torch.zeros(sweep_bytes() // 4), 0.0

    def sweep(self, size: int) -> None:
        if size:
            start = self.clock()
            self._memory[: size // 4].sum()
            self._speed = max(self._speed, size / max(self.clock() - start, 1e-9))

    def min_seconds(self, size: int) -> float:
        """Seconds that reading so much takes at least, as far as it is known: 0 before anything was read. The last
        cache may hold a part of it, and a kernel may read somewhat faster than a sum."""
        return max(size - self._memory.nbytes, 0) / (_FASTER * self._speed) if self._speed else 0.0


def _glance(
    backend: ExecutionPlan, trial: PlanTrial, best: float, swept: _Swept, use: Use
) -> dict[tuple[Pass, str], float] | None:
    """Times of a trial's parts, a few runs of each while they are longer than they may be; None where they stay so."""
    times: dict[tuple[Pass, str], float] = {}
    for part in trial.parts:
        if part.whole:
            part.run()  # whatever is set up at the first call
        for _ in range(_GLANCES):
            swept.sweep(part.sweep)
            start = swept.clock()
            part.run()
            at = part.of, part.name
            times[at] = min(times.get(at, math.inf), max(swept.clock() - start, 1e-9))
            lower_bound = _lower_bound(backend, trial, times, use)
            if lower_bound > _HOPELESS * best:
                return None
            if lower_bound <= _CLEAR * best:
                break
        else:
            return None
    return times


def _lower_bound(backend: ExecutionPlan, trial: PlanTrial, times: Mapping[tuple[Pass, str], float], use: Use) -> float:
    """What the mix takes at least by these times of parts: no pass takes less than one of a single token."""
    pass_seconds = trial.seconds(times)
    if not pass_seconds:
        return 0.0
    if "decode_1" in pass_seconds:
        pass_seconds = dict.fromkeys((*ROWS, "prefill"), pass_seconds["decode_1"]) | pass_seconds
    return PlanTimings({backend: pass_seconds}).cost(backend, use)


def by_turns(
    trials: Mapping[ExecutionPlan, PlanTrial], clock: Callable[[], float], brief: Use | None = None
) -> PlanTimings:
    """Times every part of every trial, by turns, until the two best times of each agree or patience ends; brief: or,
    for this use, one way is clearly the fastest."""
    swept = torch.zeros(max(part.sweep for trial in trials.values() for part in trial.parts) // 4)
    times: dict[ExecutionPlan, dict[tuple[Pass, str], list[float]]] = {backend: {} for backend in trials}
    running, until = list(trials), clock() + _LONGEST

    def collect(brief: Use | None = None) -> PlanTimings:
        seconds = {
            backend: trials[backend].seconds({at: best[0] for at, best in times[backend].items()}) for backend in trials
        }
        return PlanTimings(seconds, tuple(backend for backend in trials if backend not in running), brief)

    for turn in range(_TURNS):
        for backend in running:
            _take_turn(trials[backend].parts, times[backend], swept, clock, first=not turn)
        if not turn:
            running = _hopeful(collect(), running)
        elif clock() >= until or all(
            best[1] <= _AGREE * best[0] for backend in running for best in times[backend].values()
        ):
            break
        elif brief is not None and turn + 1 >= _GLANCES and _clear(collect(), brief):
            return collect(brief)
    return collect()


def _take_turn(
    parts: Sequence[TimedPart],
    times: dict[tuple[Pass, str], list[float]],
    swept: Tensor,
    clock: Callable[[], float],
    *,
    first: bool,
) -> None:
    """Runs each part once, and notes it where it is one of its two best times."""
    for part in parts:
        if first and part.whole:
            part.run()  # whatever is set up at the first call
        if part.sweep:
            swept[: part.sweep // 4].sum()
        start = clock()
        part.run()
        best = times.setdefault((part.of, part.name), [])
        best[:] = sorted((*best, max(clock() - start, 1e-9)))[:2]


def _clear(measurement: PlanTimings, use: Use) -> bool:
    """Whether one way is so far ahead that a few more turns would not put another before it."""
    best, *slower = sorted(measurement.cost(backend, use) for backend in measurement.seconds)
    return not slower or best * _CLEAR <= slower[0]


def _hopeful(measurement: PlanTimings, backends: Sequence[ExecutionPlan]) -> list[ExecutionPlan]:
    """The ways that are not far behind the best in both uses. The best of torch's stays: what is chosen is said against
    it."""
    hopeful: list[ExecutionPlan] = []
    torch_ways = [backend for backend in backends if backend.kernel == "torch"]
    uses: tuple[Use, ...] = ("generate", "score")
    for use in uses:
        limit = _HOPELESS * measurement.cost(measurement.fastest(backends, use), use)
        hopeful += [backend for backend in backends if measurement.cost(backend, use) <= limit]
        hopeful += [measurement.fastest(torch_ways, use)] if torch_ways else []
    return [backend for backend in backends if backend in hopeful]
