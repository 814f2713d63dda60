"""What requests of every kind say of themselves, and what results of every kind come with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bedplate.skins.prompt import Passage

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class LookedUp:
    """What was looked up before a request could be made. passages: what its prompt holds, by their numbers. compute:
    seconds that this took an engine."""

    passages: tuple[Passage, ...] = ()
    compute: float = 0.0


@dataclass(frozen=True)
class LookupContext:
    """In whose name, and until when, something is looked up before a request can be made: as `Request` has them."""

    tenant: str = ""
    deadline: float | None = None


NO_TERMS = LookupContext()


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked, and what every request says of itself.

    tokens: the prompt. adapter: a key given to Engine.load_adapter or load_soft_prompt, None the base itself. skin: in
    whose name it runs, for fairness and counts. Cached tokens are shared by all requests of one adapter within the
    first `shared_tokens` (the skin's own prompt), and after them within one `tenant` only. deadline: in
    `time.monotonic()` seconds; a request that has not ended by then fails with DeadlineError. looked_up: is given back
    with the result.
    """

    tokens: tuple[int, ...] = field(kw_only=False)
    adapter: str | None = None
    skin: str = ""
    tenant: str = ""
    shared_tokens: int = 0
    deadline: float | None = None
    looked_up: LookedUp | None = None


@dataclass(frozen=True)
class Step:
    """One piece of a stream. `token_id` is None where held-back text is released without a new token."""

    token_id: int | None
    text: str
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Usage:
    """Token counts of one request; `cached_tokens` of the prompt were not computed again."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class RequestUsage:
    """What was computed for a request, however it ended. usage: the tokens of the prompt that were read.
    compute: as in `Timing`."""

    usage: Usage = Usage(0)
    compute: float = 0.0


@dataclass(frozen=True)
class RequestTiming:
    """Seconds of one request since it was queued: until its first forward pass, its first output, and its end.

    compute: its share of the seconds of the steps it was in, by its cost in each: what it costs.
    """

    queued: float = 0.0
    first: float = 0.0
    total: float = 0.0
    compute: float = 0.0


NO_TIMING = RequestTiming()


class Result:
    """What every result comes with; each kind's adds what it found."""

    usage: Usage
    timing: RequestTiming
    looked_up: LookedUp | None
