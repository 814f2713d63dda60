"""A discrete-event simulation of one engine behind its queue: the scheduler's rules, with a clock instead of a model.

Per step, as the engine does: every running generation takes one token; what is left of the step's budget goes to
prompts, in chunks, in the order they came; no more generations run at once than there are rows. A step takes what
`StepModel` says. Stretches in which nothing but the running generations happens are stepped over at once, their time
being linear in the keys they read.

Traffic comes as a Poisson process: independent callers. Lengths are drawn one by one, from a distribution or from a
list of measured ones.
"""

from __future__ import annotations

import heapq
import math
import random
import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol

from bedplate.core.arguments import need_fields
from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import read_text
from bedplate.core.quantities import count_of
from bedplate.economics.hardware.machine import Load

SECONDS_PER_DAY = 86_400.0
_Z95 = 1.6448536269514722  # the standard normal's 95th percentile


@dataclass(frozen=True)
class TokenLengths:
    """A distribution of token counts, at least 1 each.

    fixed: `low`. uniform: `low` … `high`. lognormal: median `low`, 95th percentile `high`. listed: `values`, each as
    likely as it is frequent.
    """

    MADE_BY: ClassVar[str] = "bedplate.plan.lengths(TEXT)"

    distribution: Literal["fixed", "uniform", "lognormal", "listed"]
    low: int
    high: int
    values: tuple[int, ...] = ()

    def draw(self, generator: random.Random) -> int:
        if self.distribution == "listed":
            return generator.choice(self.values)
        if self.distribution == "lognormal":
            return max(1, round(self.low * math.exp(self._sigma * generator.gauss(0.0, 1.0))))
        return generator.randint(self.low, self.high)

    @property
    def _sigma(self) -> float:
        return math.log(self.high / self.low) / _Z95

    @property
    def mean(self) -> float:
        if self.distribution == "listed":
            return sum(self.values) / len(self.values)
        if self.distribution == "lognormal":
            return self.low * math.exp(self._sigma**2 / 2)
        return (self.low + self.high) / 2

    def __str__(self) -> str:
        if self.distribution == "listed":
            return f"{len(self.values)} listed lengths of {self.mean:.4g} on average"
        sign = {"fixed": "", "uniform": "-", "lognormal": "~"}[self.distribution]
        return f"{self.low}{sign}{self.high if sign else ''}"


def parse_lengths(text: str, label: str) -> TokenLengths:
    """`300` or `1.5k` (each), `100-500` (evenly between), `250~900` (log-normal: median and 95th percentile), or
    `@FILE`, a file of one length a line. UsageError for anything else."""
    if text.startswith("@"):
        return _listed(Path(text[1:]), label)
    separator = re.search(r"[-~]", text)
    parts = [count_of(part) for part in re.split(r"[-~]", text)]
    if len(parts) > 2 or not all(part is not None and part.is_integer() for part in parts):
        raise UsageError(
            f"{label} is {text!r}; write 300 or 1.5k (each call), 100-500 (evenly between), 250~900 (log-normal: "
            "median and 95th percentile) or @FILE (one length a line)"
        )
    low, high = (int(part or 0) for part in (parts[0], parts[-1]))
    sign = "" if separator is None else separator[0]
    refusals = {
        "a call has at least 1 token": low < 1,
        "the second number must not be below the first": high < low,
        f"the 95th percentile must be above the median; for one length write {low}": sign == "~" and high == low,
    }
    for reason, refused in refusals.items():
        if refused:
            raise UsageError(f"{label} is {text!r}: {reason}")
    if sign == "~":
        return TokenLengths("lognormal", low, high)
    return TokenLengths("uniform" if sign else "fixed", low, high)


def _listed(path: Path, label: str) -> TokenLengths:
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except (OSError, DataError) as error:
        raise UsageError(f"{label}: {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line and (not line.isdecimal() or int(line) < 1):
            raise UsageError(f"{label}: {path}, line {number}: {line[:40]!r} is not a length of at least 1 token")
    values = tuple(int(line) for line in lines if line)
    if not values:
        raise UsageError(f"{label}: {path} holds no length; write one a line")
    return TokenLengths("listed", min(values), max(values), values)


class ArrivingCall(NamedTuple):
    """One call: when it comes (seconds from the start), its prompt's tokens, of them those that are surely cached (its
    skin's own prompt), the tokens of its answer, and the skin that it asks (0 … skins−1)."""

    at: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    skin: int = 0


@dataclass(frozen=True)
class Traffic:
    """What is asked of a service.

    prompt: tokens of a call's prompt without the skin's own. output: tokens of an answer. skin_tokens: of the skin's
    own prompt, the same for every call, cached once computed. skins: how many different ones, asked evenly.
    """

    prompt: TokenLengths
    output: TokenLengths
    skin_tokens: int = 0
    skins: int = 1

    def __post_init__(self) -> None:
        need_fields(self)
        if self.skin_tokens < 0:
            raise UsageError(f"a skin's prompt of {self.skin_tokens} tokens: it must be at least 0")
        if self.skins < 1:
            raise UsageError(f"{self.skins} skins: there must be at least 1")

    @property
    def tokens_per_call(self) -> float:
        """The mean tokens of a prompt with its skin's and its answer together."""
        return self.skin_tokens + self.prompt.mean + self.output.mean

    def calls(self, per_second: float, count: int, seed: int = 0) -> list[ArrivingCall]:
        """`count` calls at this rate. The same seed gives the same calls at every rate, only nearer together."""
        if not per_second > 0 or not math.isfinite(per_second):
            raise UsageError(f"{per_second} calls a second: it must be over 0")
        return [call._replace(at=call.at / per_second) for call in _drawn(self, count, seed)]


@lru_cache(maxsize=16)
def _drawn(traffic: Traffic, count: int, seed: int) -> tuple[ArrivingCall, ...]:
    """Calls that come one a second: a plan asks for the same ones at many rates."""
    generator = random.Random(seed)
    at = 0.0
    arrivals: list[ArrivingCall] = []
    for _ in range(count):
        at += generator.expovariate(1.0)
        prompt = traffic.prompt.draw(generator) + traffic.skin_tokens
        output = traffic.output.draw(generator)
        arrivals.append(ArrivingCall(at, prompt, traffic.skin_tokens, output, generator.randrange(traffic.skins)))
    return tuple(arrivals)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share (0 … 1) lies, straight between the two nearest ranks (numpy's default); beyond the
    last finite one it is infinite."""
    ordered = sorted(values)
    if not ordered:
        raise UsageError("a percentile of nothing: there was no call")
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    return low if at == below or low == high else low + (at - below) * (high - low)


class StepModel(Protocol):
    """How long a step takes. `load.keys` enters linearly."""

    def seconds(self, load: Load) -> float: ...


@dataclass(frozen=True)
class ServiceModel:
    """An engine and the server around it.

    max_rows: generations at once. max_step_tokens: budget of one step. call_seconds: of a call beside the engine, half
    before and half after it: steps go on meanwhile, and what the server's work takes from them is part of their cost.
    drafted, accepted: tokens guessed after each token by speculation, and the share of them that is right.
    """

    steps: StepModel
    max_rows: int = 16
    max_step_tokens: int = 512
    call_seconds: float = 0.0
    drafted: int = 0
    accepted: float = 0.0
    adapters: bool = False

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.max_step_tokens < 1:
            raise UsageError("an engine needs at least one row and one token a step")
        if not 0 <= self.accepted <= 1 or self.drafted < 0:
            raise UsageError("the accepted share of drafted tokens must be in 0 … 1, and their number at least 0")

    @cached_property
    def tokens_per_decode(self) -> float:
        """Expected tokens of a row in a step: the sampled one, and drafted ones up to the first wrong one
        (https://arxiv.org/abs/2211.17192, equation 1)."""
        a = self.accepted
        return self.drafted + 1.0 if a == 1 else (1 - a ** (self.drafted + 1)) / (1 - a)


@dataclass(frozen=True)
class Simulated:
    """What became of the calls, in their order: seconds until the first token and until the end; and of the engine.

    busy_seconds: spent in steps, of seconds from the first call to the last answer. mean_batch: running generations of
    an average decoding step.
    """

    first_token_seconds: tuple[float, ...]
    total_seconds: tuple[float, ...]
    output_tokens: int
    busy_seconds: float
    seconds: float
    steps: int
    mean_batch: float
    decode_steps: int

    @property
    def utilisation(self) -> float:
        """Share of the time in which a step ran."""
        return self.busy_seconds / self.seconds

    def total(self, share: float) -> float:
        """A percentile of the seconds from a call to its answer's end."""
        return percentile(self.total_seconds, share)

    def first_token(self, share: float) -> float:
        """A percentile of the seconds from a call to its first token."""
        return percentile(self.first_token_seconds, share)


def simulate(service: ServiceModel, calls: Sequence[ArrivingCall]) -> Simulated:
    """Every call from its arrival to its answer. UsageError without calls."""
    if not calls:
        raise UsageError("nothing to simulate: there are no calls")
    half = service.call_seconds / 2
    coming = deque(sorted(((call.at + half, number, call) for number, call in enumerate(calls)), key=lambda c: c[0]))
    began = min(call.at for call in calls)
    engine = _Engine(service, began)
    while coming or engine.waiting or engine.prompts or engine.ends:
        while coming and coming[0][0] <= engine.clock:
            _, number, call = coming.popleft()
            engine.waiting.append((number, call))
        if engine.waiting or engine.prompts or engine.ends:
            engine.step(coming[0][0] if coming else math.inf)
        else:
            engine.clock = max(engine.clock, coming[0][0])
    return Simulated(
        first_token_seconds=tuple(engine.first[i] + half - call.at for i, call in enumerate(calls)),
        total_seconds=tuple(engine.end[i] + half - call.at for i, call in enumerate(calls)),
        output_tokens=sum(call.output_tokens for call in calls),
        busy_seconds=engine.busy,
        seconds=max(engine.end.values()) + half - began,
        steps=engine.steps,
        mean_batch=engine.decoded_rows / engine.decode_steps if engine.decode_steps else 0.0,
        decode_steps=engine.decode_steps,
    )


@dataclass(eq=False)
class _Prompt:
    """A call whose prompt is computed; `prefilled`: its tokens so far, cached ones included."""

    call: ArrivingCall
    number: int
    prefilled: int


class _Engine:
    """The clock, the queue, and the generations that run. Each of these gets as many tokens in a step as any other, so
    that sums over them suffice.

    emitted: tokens that one which had run from the beginning would have. ends: a heap of (`emitted` at which it ends,
    call number, skin). offset: keys that they read, less `emitted` of each. skins: how many of them use which. first,
    end: by the call's number, when its first token and its last were there.
    """

    def __init__(self, service: ServiceModel, clock: float) -> None:
        self.service, self.clock = service, clock
        self.busy, self.steps, self.decode_steps, self.decoded_rows = 0.0, 0, 0, 0.0
        self.waiting: deque[tuple[int, ArrivingCall]] = deque()
        self.prompts: list[_Prompt] = []
        self.emitted, self.offsets = 0.0, 0.0
        self.ends: list[tuple[float, int, int]] = []
        self.offset: dict[int, float] = {}
        self.skins: Counter[int] = Counter()
        self.first: dict[int, float] = {}
        self.end: dict[int, float] = {}

    @property
    def rows(self) -> int:
        """What one step of the running generations computes."""
        return (1 + self.service.drafted) * len(self.ends)

    @property
    def keys(self) -> float:
        """What the next step of the running generations reads."""
        return self.offsets + self.emitted * len(self.ends)

    def step(self, next_arrival: float) -> None:
        """One step; or, while nothing but the running generations happens, as many as surely happen before one of them
        ends or another call comes."""
        chunks, copied = self._chunks() if self.prompts or self.waiting else ([], 0)
        if not chunks:
            self._decode(next_arrival)
            return
        finished = [prompt for prompt, _, end in chunks if end == prompt.call.prompt_tokens]
        tokens = self.rows + sum(end - begin for _, begin, end in chunks)
        load = Load(
            tokens=tokens,
            rows=self.rows + len(finished),
            keys=self.keys + sum(end for _, _, end in chunks),
            pairs=sum((end - begin) * (begin + end + 1) / 2 for _, begin, end in chunks),
            copied=copied,
            started=len(finished),
            ended=self._ending() + sum(prompt.call.output_tokens == 1 for prompt in finished),
        )
        self._pass_time(self._adapted(load, [prompt.call.skin for prompt, _, _ in chunks]), 1)
        for prompt in finished:
            self.prompts.remove(prompt)
            self._begin(prompt.call, prompt.number)

    def _chunks(self) -> tuple[list[tuple[_Prompt, int, int]], int]:
        """(prompt, begin, end) of the prompts' tokens that this step computes, and the cached tokens that new ones
        begin with."""
        budget = self.service.max_step_tokens - self.rows
        chunks: list[tuple[_Prompt, int, int]] = []
        copied = 0

        def cut(prompt: _Prompt) -> int:
            begin = prompt.prefilled
            prompt.prefilled = min(begin + budget, prompt.call.prompt_tokens)
            chunks.append((prompt, begin, prompt.prefilled))
            return budget - (prompt.prefilled - begin)

        for prompt in self.prompts:
            if budget > 0:
                budget = cut(prompt)
        while budget > 0 and self.waiting and len(self.ends) + len(self.prompts) < self.service.max_rows:
            number, call = self.waiting.popleft()
            # The last token of a prompt is always computed: its state chooses the first token of the answer.
            prompt = _Prompt(call, number, min(call.cached_tokens, call.prompt_tokens - 1))
            copied += prompt.prefilled
            self.prompts.append(prompt)
            budget = cut(prompt)
        return chunks, copied

    def _begin(self, call: ArrivingCall, number: int) -> None:
        """A call has its first token."""
        self.first[number] = self.clock
        if call.output_tokens == 1:
            self.end[number] = self.clock
            return
        heapq.heappush(self.ends, (self.emitted + call.output_tokens - 1, number, call.skin))
        # Its next token reads the prompt, the first token and itself.
        self.offset[number] = call.prompt_tokens + 2 - self.emitted
        self.offsets += self.offset[number]
        self.skins[call.skin] += 1

    def _decode(self, next_arrival: float) -> None:
        per_step = self.service.tokens_per_decode
        said = per_step * len(self.ends)
        min_steps = max(1, math.ceil((self.ends[0][0] - self.emitted) / per_step - 1e-9))  # until the first one ends
        load = self._adapted(Load(tokens=self.rows, rows=self.rows, keys=self.keys))
        count = 1
        if min_steps > 1:
            # All but the last step, in which one ends. Later steps read more keys, so their time bounds how many fit.
            slowest = self.service.steps.seconds(load._replace(keys=load.keys + min_steps * said))
            fitting = (next_arrival - self.clock) / slowest if slowest > 0 else min_steps - 1
            count = max(1, int(min(fitting, min_steps - 1)))
        middle = load.keys + (count - 1) / 2 * said
        self._pass_time(load._replace(keys=middle, ended=self._ending() if count == 1 else 0), count)

    def _pass_time(self, load: Load, count: int) -> None:
        """So many steps: each generation says its tokens, and some end."""
        seconds = self.service.steps.seconds(load) * count
        self.clock += seconds
        self.busy += seconds
        self.steps += count
        if not self.ends:
            return
        self.decode_steps += count
        self.decoded_rows += count * len(self.ends)
        self.emitted += count * self.service.tokens_per_decode
        while self.ends and self.ends[0][0] <= self.emitted + 1e-9:
            _, number, skin = heapq.heappop(self.ends)
            self.end[number] = self.clock
            self.offsets -= self.offset.pop(number)
            self.skins[skin] -= 1
            if not self.skins[skin]:
                del self.skins[skin]

    def _ending(self, at: int = 0) -> int:
        """How many end in the next step. The heap's first entries are looked at, as far as they do."""
        if at >= len(self.ends) or self.ends[at][0] > self.emitted + self.service.tokens_per_decode + 1e-9:
            return 0
        return 1 + self._ending(2 * at + 1) + self._ending(2 * at + 2)

    def _adapted(self, load: Load, beginning: Sequence[int] = ()) -> Load:
        if not self.service.adapters:
            return load
        return load._replace(adapters=len({*self.skins, *beginning}), adapted_tokens=load.tokens)
