"""What one call costs: at a hosted model's prices per token, or as seconds of a machine.

Hosted: a repeated prefix is looked up in the cache, what is not found there is written; calls that may wait take the
batch price where it is cheaper. On a machine: USD per hour / (calls per hour · utilisation); utilisation divides what
the machine can do, so that an idle machine makes calls dearer, never cheaper.

The small classes hold places in the sheet (`int`), and compute from its values.
"""

from __future__ import annotations

from dataclasses import dataclass

from bedplate.economics.costs.decisions.bill import Fleet, Line
from bedplate.economics.costs.decisions.sheet import Values

SECONDS_PER_DAY = 86_400.0
_MILLION = 1e6


@dataclass(frozen=True)
class Tokens:
    """Of one call: repeated in every prompt, different each time (input and retrieved passages), and answered."""

    prefix: float
    fresh: float
    passages: float
    output: float


@dataclass(frozen=True)
class TokenCounts:
    """instructions, examples, input, output, passages (None: no retrieval) in the text's unit; ratio: tokens of a unit,
    None where the text is counted in tokens."""

    instructions: int
    examples: int
    input: int
    output: int
    passages: int | None
    ratio: int | None

    def of(self, v: Values) -> Tokens:
        ratio = 1.0 if self.ratio is None else v[self.ratio]
        passages = 0.0 if self.passages is None else v[self.passages]
        prefix = v[self.instructions] + v[self.examples]
        return Tokens(prefix * ratio, v[self.input] * ratio, passages * ratio, v[self.output] * ratio)


@dataclass(frozen=True)
class HostedCalls:
    """A hosted model's prices. cached, write: None where the price file has none. multiplier: of a tuned model."""

    input: int
    output: int
    cached: int | None
    write: int | None
    smallest_prefix: int
    batch_discount: int
    multiplier: int | None
    cached_share: int
    waiting_share: int

    def lines(self, v: Values, tokens: Tokens) -> list[Line]:
        """USD of one call, on average over those that wait and those that do not."""
        scale = (1.0 if self.multiplier is None else v[self.multiplier]) / _MILLION
        price, out = v[self.input] * scale, v[self.output] * scale
        plain = (tokens.prefix * price, tokens.fresh * price, tokens.passages * price, tokens.output * out)
        live = (self._prefix(v, tokens.prefix, price, scale), *plain[1:])
        waiting = v[self.waiting_share]
        if waiting:
            batch = tuple(usd * (1 - v[self.batch_discount]) for usd in plain)
            if sum(batch) < sum(live):
                live = tuple((1 - waiting) * a + waiting * b for a, b in zip(live, batch, strict=True))
        names = ("repeated prompt", "input", "passages", "output")
        return list(zip(names, live, strict=True))

    def _prefix(self, v: Values, tokens: float, price: float, scale: float) -> float:
        if self.cached is None or not tokens:
            return tokens * price
        hits = v[self.cached_share]
        missed = price if self.write is None else v[self.write] * scale
        padded = max(tokens, v[self.smallest_prefix])
        return min(tokens * price, padded * (hits * v[self.cached] * scale + (1 - hits) * missed))


@dataclass(frozen=True)
class MachineCalls:
    """A machine's hour, and how long a call keeps it: `seconds`, or prefill and decode in tokens per second."""

    usd_per_hour: int
    seconds: int | None
    prefill: int | None
    decode: int | None
    embed: int | None
    utilisation: int
    at_least: int
    peak: int
    cached_share: int
    reserved: bool

    def busy_seconds(self, v: Values, tokens: Tokens) -> float:
        """Seconds of the whole machine that one call takes; cached tokens take none."""
        if self.seconds is not None:
            busy = v[self.seconds]
        else:
            assert self.prefill is not None
            assert self.decode is not None
            prompt = (1 - v[self.cached_share]) * tokens.prefix + tokens.fresh + tokens.passages
            busy = prompt / v[self.prefill] + tokens.output / v[self.decode]
        return busy if self.embed is None else busy + tokens.fresh / v[self.embed]

    def lines(self, v: Values, tokens: Tokens) -> list[Line]:
        """USD of one call, where machines are paid by use."""
        if self.reserved:
            return []
        usd_per_second = v[self.usd_per_hour] / 3600
        return [("machine", self.busy_seconds(v, tokens) * usd_per_second / v[self.utilisation])]

    def fleet(self, v: Values, tokens: Tokens) -> Fleet | None:
        """The reserved machines."""
        if not self.reserved:
            return None
        busy = self.busy_seconds(v, tokens) * v[self.peak]
        return Fleet(v[self.usd_per_hour] * 24, SECONDS_PER_DAY * v[self.utilisation] / busy, v[self.at_least])
