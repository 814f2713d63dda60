"""What an engine can be asked, and what it answers. Requests are checked here, before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from bedplate.adapters.head import Head
from bedplate.core.errors import RequestError
from bedplate.skins.prompt import Passage

Pooling = Literal["mean", "first", "last"]
FinishReason = Literal["stop", "length", "cancelled"]
MAX_SEED = 2**63 - 1
MAX_ALTERNATIVES = 20
GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "ebnf", "tool_calls"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 are off. repetition_penalty divides positive and multiplies
    negative logits of tokens already in prompt or output (https://arxiv.org/abs/1909.05858); presence_penalty and
    frequency_penalty are subtracted for tokens of the output, once and per occurrence (OpenAI's definition).
    logit_bias: (token id, number added to its logit before anything else), each in −100 … 100 (OpenAI's definition).
    logprobs, prompt_logprobs: None, or how many alternatives to report with each token's log-probability. `stop`
    strings end the output before themselves, `stop_token_ids` as the end token does; neither end token nor these come
    before `min_tokens`. `max_tokens` None means up to the context's end.
    """

    max_tokens: int | None = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _between("max_tokens", self.max_tokens, 0, 2**31)
        _between("temperature", self.temperature, 0.0, 100.0)
        _between("top_k", self.top_k, 0, 2**31)
        _between("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _between("min_p", self.min_p, 0.0, 1.0)
        _between("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        _between("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _between("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _between("seed", self.seed, -(2**63), MAX_SEED)
        _between("logprobs", self.logprobs, 0, MAX_ALTERNATIVES)
        _between("prompt_logprobs", self.prompt_logprobs, 0, MAX_ALTERNATIVES)
        _between("min_tokens", self.min_tokens, 0, 2**31)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens {self.min_tokens} is more than max_tokens", param="min_tokens")
        for _, bias in self.logit_bias:
            _between("logit_bias", bias, -100.0, 100.0)
        if any(not text for text in self.stop):
            raise RequestError("a stop string is empty; it would stop before the first token", param="stop")


def _between(name: str, value: float | int | None, low: float, high: float, open_low: bool = False) -> None:
    if value is None:
        return
    too_low = value <= low if open_low else value < low
    if not math.isfinite(value) or too_low or value > high:
        sign = ">" if open_low else "≥"
        raise RequestError(f"{name} is {value}; it must be {sign} {low:g} and ≤ {high:g}", param=name)


@dataclass(frozen=True)
class Grammar:
    """What a generated text must look like, whatever the model would say.

    json_schema: `source` is the schema as JSON text; json_object: any JSON object, `source` is empty; regex: a regular
    expression that matches the whole text; choice: a JSON list of texts; ebnf: a grammar in Lark's notation whose start
    rule is `start`; tool_calls: what `text.tool_calls.call_grammar_source` gives.
    """

    kind: GrammarKind
    source: str = ""


@dataclass(frozen=True)
class LookedUp:
    """What was looked up before a request could be made. passages: what its prompt holds, by their numbers. compute:
    seconds that this took an engine."""

    passages: tuple[Passage, ...] = ()
    compute: float = 0.0


@dataclass(frozen=True)
class Terms:
    """In whose name, and until when, something is looked up before a request can be made: as `Common` has them."""

    tenant: str = ""
    deadline: float | None = None


NO_TERMS = Terms()


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every request says of itself.

    adapter: a key given to Engine.load_adapter or load_soft_prompt, None the base itself. skin: in whose name it runs,
    for fairness and counts. Cached tokens are shared by all requests of one adapter within the first `shared_tokens`
    (the skin's own prompt), and after them within one `tenant` only. deadline: in `time.monotonic()` seconds; a request
    that has not ended by then fails with DeadlineError. looked_up: is given back with the result.
    """

    adapter: str | None = None
    skin: str = ""
    tenant: str = ""
    shared_tokens: int = 0
    deadline: float | None = None
    looked_up: LookedUp | None = None


@dataclass(frozen=True)
class Generate(Common):
    """Continue `tokens`, within `grammar` where there is one."""

    tokens: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    grammar: Grammar | None = None


@dataclass(frozen=True)
class Score(Common):
    """The total log-probability of each continuation after `tokens`."""

    tokens: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Embed(Common):
    """One vector for `tokens`: hidden states pooled ("mean" over tokens, "first" or "last" token).

    depth: None pools the model's output (after the last norm), a number the state after that many blocks.
    """

    tokens: tuple[int, ...]
    pooling: Pooling | None = None
    depth: int | None = None
    normalise: bool = True


@dataclass(frozen=True)
class Classify(Common):
    """Class scores W h + b of a linear head on the pooled state after `depth` blocks. Later blocks are not run."""

    tokens: tuple[int, ...]
    head: Head
    depth: int
    pooling: Pooling = "last"


Request = Generate | Score | Embed | Classify


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
class Timing:
    """Seconds of one request since it was queued: until its first forward pass, its first output, and its end.

    compute: its share of the seconds of the steps it was in, by its tokens in each: what it costs.
    """

    queued: float = 0.0
    first: float = 0.0
    total: float = 0.0
    compute: float = 0.0


@dataclass(frozen=True)
class Generation:
    """Generated text. `logprobs` per output token (natural log, of the model's own distribution); `prompt_logprobs`
    and `prompt_top_logprobs` per prompt token, None and () for the first."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    usage: Usage
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    prompt_logprobs: tuple[float | None, ...] | None = None
    prompt_top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    timing: Timing = Timing()
    looked_up: LookedUp | None = None


@dataclass(frozen=True)
class Scores:
    """Per continuation: total log-probability (natural log), and number of tokens."""

    totals: tuple[float, ...]
    token_counts: tuple[int, ...]
    usage: Usage
    timing: Timing = Timing()
    looked_up: LookedUp | None = None


@dataclass(frozen=True)
class Embedding:
    vector: tuple[float, ...]
    usage: Usage
    timing: Timing = Timing()
    looked_up: LookedUp | None = None


@dataclass(frozen=True)
class Classification:
    """`scores` are the head's outputs before any softmax, in the head's label order."""

    scores: tuple[float, ...]
    usage: Usage
    timing: Timing = Timing()
    looked_up: LookedUp | None = None


Result = Generation | Scores | Embedding | Classification
