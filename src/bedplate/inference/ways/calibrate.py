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

from bedplate.core.measured import measured_once
from bedplate.core.processor import processor_kind
from bedplate.inference.native.library import load
from bedplate.inference.ways.threads import engine_threads
from bedplate.inference.ways.trial import (
    PROMPT,
    ROWS,
    Part,
    Pass,
    Trial,
    made_up,
    read_bytes,
    shortened,
    sweep_bytes,
    timed_as,
)
from bedplate.inference.ways.way import Way
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
class Measured:
    """Seconds of passes of a whole base, by way. dropped: ways that were given up, after their first turn or (brief)
    before there were times of all their passes. brief: the use for which it ended as soon as its fastest way was clear;
    the times themselves need not have agreed."""

    seconds: Mapping[Way, Mapping[Pass, float]]
    dropped: tuple[Way, ...] = ()
    brief: Use | None = None

    def cost(self, way: Way, use: Use = "generate") -> float:
        """Seconds of the reference mix: `PROMPT` tokens in and `ANSWER` out, once alone and once as one of sixteen
        sequences that are decoded together. For "score" such a prompt and a short one of a quarter of its tokens, in
        which what a pass costs by itself counts: its time lies between one token's and the long one's. For encoders,
        of which prompts alone are timed, the long one."""
        one = self.seconds[way]
        if "decode_1" not in one:
            return one["prefill"]
        if use == "score":
            return one["prefill"] + one["decode_1"] + SHORT * (one["prefill"] - one["decode_1"])
        return 2 * one["prefill"] + ANSWER * (one["decode_1"] + one["decode_16"] / ROWS["decode_16"])

    def rate(self, way: Way, of: Pass) -> float | None:
        """Tokens a second of a pass, over all its rows; None where the base has no such pass."""
        tokens = ROWS.get(of, PROMPT)
        return tokens / self.seconds[way][of] if of in self.seconds[way] else None

    def fastest(self, ways: Sequence[Way], use: Use = "generate") -> Way:
        """The way whose mix takes least time; of equal ones the first. Torch's own ways are candidates like the others,
        so that what is chosen is never slower than the best of them in this measurement."""
        return min((way for way in ways if way in self.seconds), key=lambda way: self.cost(way, use))


def measured(spec: TextSpec, ways: Sequence[Way], *, brief: Use | None = None, again: bool = False) -> Measured:
    """The measurement of these ways for a base of this architecture on this machine's CPU: read, or made now.

    Every way must be possible here. brief: only the fastest way for this use is asked for; somebody waits for it. Who
    asks for the times themselves later has them measured anew. again: whatever was kept.
    """
    spec = timed_as(spec)
    return measured_once(
        "ways",
        _key(spec, ways),
        lambda: measure(spec, ways, brief),
        _to_json,
        lambda found: _from_json(found, ways, brief),
        again=again,
    )


def _key(spec: TransformerSpec, ways: Sequence[Way]) -> dict[str, Any]:
    library = load() if any(way.kernel == "native" for way in ways) else ""
    return {
        "version": VERSION,
        "cpu": processor_kind(),
        "level": None if isinstance(library, str) else library.level,
        "library": None if isinstance(library, str) else library.digest,
        "threads": [engine_threads(), torch.get_num_threads()],
        "torch": [str(torch.__version__), torch.backends.cpu.get_cpu_capability(), *map(os.environ.get, _MASKS)],
        "spec": spec.key(),
        "ways": [list(way) for way in ways],
    }


def _to_json(found: Measured) -> dict[str, Any]:
    seconds = [[list(way), dict(times)] for way, times in found.seconds.items()]
    return {"seconds": seconds, "dropped": [list(way) for way in found.dropped], "brief": found.brief}


def _from_json(record: Mapping[str, Any], ways: Sequence[Way], brief: Use | None) -> Measured:
    """The inverse of `_to_json`. ValueError and the like for what is not a measurement of these ways, or is too brief
    for what is asked."""
    if record["brief"] not in (None, brief):
        raise ValueError("a measurement for another use")
    seconds = {Way(*way): _times(times) for way, times in record["seconds"]}
    dropped = tuple(Way(*way) for way in record["dropped"])
    told = set(seconds) if record["brief"] is None else {*seconds, *dropped}
    if told != set(ways) or len({frozenset(times) for times in seconds.values()}) != 1:
        raise ValueError("another measurement")
    return Measured(seconds, dropped, record["brief"])


def _times(times: Mapping[str, Any]) -> dict[Pass, float]:
    """Of all passes, or, for a base that only reads, of prompts alone."""
    passes: tuple[Pass, ...] = (*ROWS, "prefill")
    found: dict[Pass, float] = {one: float(times[one]) for one in (passes if len(times) > 1 else ("prefill",))}
    if not all(math.isfinite(value) and value > 0 for value in found.values()):
        raise ValueError("a time that cannot be")
    return found


def measure(spec: TransformerSpec, ways: Sequence[Way], brief: Use | None = None) -> Measured:
    """Measures these ways now, by turns: in some tenths of a second for bases of a few hundred million weights, in some
    seconds where other work keeps the times from agreeing. brief: see `measured`."""
    short, models = shortened(spec), dict[str, Model]()
    with ExitStack() as stack:

        def opened(way: Way) -> Trial:
            if way.dtype not in models:
                models[way.dtype] = made_up(short, DTYPES[way.dtype])
            return stack.enter_context(closing(Trial(spec, way, engine_threads(), models[way.dtype])))

        if brief is None:
            return by_turns({way: opened(way) for way in ways}, time.perf_counter)
        return quickest(spec, ways, opened, time.perf_counter, brief)


def quickest(
    spec: TransformerSpec, ways: Sequence[Way], opened: Callable[[Way], Trial], clock: Callable[[], float], use: Use
) -> Measured:
    """The fastest way for one use, by as little measuring as tells it: what reads least comes first, and each other is
    given up as soon as what is known of its passes takes longer. Those that are left take turns."""
    trials: dict[Way, Trial] = {}
    times: dict[Way, dict[tuple[Pass, str], float]] = {}
    swept, best = _Swept(clock), math.inf
    for way in sorted(ways, key=lambda way: (way.kernel == "torch", read_bytes(spec, way))):
        step = swept.least(read_bytes(spec, way))
        if step and best < Measured({way: dict.fromkeys((*ROWS, "prefill"), step)}).cost(way, use):
            continue
        trial = opened(way)
        found = _glance(way, trial, best, swept, use)
        if found is not None:
            trials[way], times[way] = trial, found
            best = min(best, _known(way, trial, found, use))
    if len(trials) == 1:
        [(way, trial)] = trials.items()
        seconds, late, said = {way: trial.seconds(times[way])}, (), use
    else:
        seconds, late, said = (turns := by_turns(trials, clock, use)).seconds, turns.dropped, turns.brief
    dropped = tuple(way for way in ways if way not in seconds or way in late)
    return Measured(seconds, dropped, use if len(seconds) < len(ways) else said)


class _Swept:
    """Memory that is read between passes, and the fastest that it was read."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self._memory, self._speed = clock, torch.zeros(sweep_bytes() // 4), 0.0

    def sweep(self, size: int) -> None:
        if size:
            start = self.clock()
            self._memory[: size // 4].sum()
            self._speed = max(self._speed, size / max(self.clock() - start, 1e-9))

    def least(self, size: int) -> float:
        """Seconds that reading so much takes at least, as far as it is known: 0 before anything was read. The last
        cache may hold a part of it, and a kernel may read somewhat faster than a sum."""
        return max(size - self._memory.nbytes, 0) / (_FASTER * self._speed) if self._speed else 0.0


def _glance(way: Way, trial: Trial, best: float, swept: _Swept, use: Use) -> dict[tuple[Pass, str], float] | None:
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
            known = _known(way, trial, times, use)
            if known > _HOPELESS * best:
                return None
            if known <= _CLEAR * best:
                break
        else:
            return None
    return times


def _known(way: Way, trial: Trial, times: Mapping[tuple[Pass, str], float], use: Use) -> float:
    """What the mix takes at least by these times of parts: no pass takes less than one of a single token."""
    found = trial.seconds(times)
    if not found:
        return 0.0
    if "decode_1" in found:
        found = dict.fromkeys((*ROWS, "prefill"), found["decode_1"]) | found
    return Measured({way: found}).cost(way, use)


def by_turns(trials: Mapping[Way, Trial], clock: Callable[[], float], brief: Use | None = None) -> Measured:
    """Times every part of every trial, by turns, until the two best times of each agree or patience ends; brief: or,
    for this use, one way is clearly the fastest."""
    swept = torch.zeros(max(part.sweep for trial in trials.values() for part in trial.parts) // 4)
    times: dict[Way, dict[tuple[Pass, str], list[float]]] = {way: {} for way in trials}
    running, until = list(trials), clock() + _LONGEST

    def found(brief: Use | None = None) -> Measured:
        seconds = {way: trials[way].seconds({at: best[0] for at, best in times[way].items()}) for way in trials}
        return Measured(seconds, tuple(way for way in trials if way not in running), brief)

    for turn in range(_TURNS):
        for way in running:
            _take_turn(trials[way].parts, times[way], swept, clock, first=not turn)
        if not turn:
            running = _hopeful(found(), running)
        elif clock() >= until or all(best[1] <= _AGREE * best[0] for way in running for best in times[way].values()):
            break
        elif brief is not None and turn + 1 >= _GLANCES and _clear(found(), brief):
            return found(brief)
    return found()


def _take_turn(
    parts: Sequence[Part],
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


def _clear(found: Measured, use: Use) -> bool:
    """Whether one way is so far ahead that a few more turns would not put another before it."""
    best, *others = sorted(found.cost(way, use) for way in found.seconds)
    return not others or best * _CLEAR <= others[0]


def _hopeful(found: Measured, ways: Sequence[Way]) -> list[Way]:
    """The ways that are not far behind the best in both uses. The best of torch's stays: what is chosen is said against
    it."""
    kept: list[Way] = []
    torch_ways = [way for way in ways if way.kernel == "torch"]
    uses: tuple[Use, ...] = ("generate", "score")
    for use in uses:
        limit = _HOPELESS * found.cost(found.fastest(ways, use), use)
        kept += [way for way in ways if found.cost(way, use) <= limit]
        kept += [found.fastest(torch_ways, use)] if torch_ways else []
    return [way for way in ways if way in kept]
