"""Traffic as data: how many calls, how long their prompts and answers are, and the same as a list of arrivals.

Calls come as a Poisson process: independent callers. Lengths are drawn one by one, from a distribution or from a list
of measured ones.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from bedplate.core.arguments import need_fields
from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import read_text
from bedplate.core.quantities import count_of

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
        """One length."""
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
        """The expected length."""
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
        """Of a prompt with its skin's, and its answer, on average."""
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
