"""Request settings of text generation: `Sampling` and `Grammar`, validated before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from bedplate.core.errors import RequestError

MAX_SEED = 2**63 - 1
MAX_ALTERNATIVES = 20
GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "ebnf", "tool_calls"]


@dataclass(frozen=True)
class Sampling:
    """The settings by which next tokens are chosen.

    temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 are off. repetition_penalty divides positive and multiplies
    negative logits of tokens already in prompt or output (https://arxiv.org/abs/1909.05858); presence_penalty and
    frequency_penalty are subtracted for tokens of the output, once and per occurrence (OpenAI's definition).
    logit_bias: (token id, number added to its logit before anything else), each in −100 … 100 (OpenAI's definition).
    logprobs, prompt_logprobs: None, or how many alternatives to report with each token's log-probability. A `stop`
    string ends the output before itself, and a token of `stop_token_ids` does as the end token does; neither these nor
    the end token are chosen before `min_tokens`. `max_tokens` None: up to the end of the context.
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
        _check_range("max_tokens", self.max_tokens, 0, 2**31)
        _check_range("temperature", self.temperature, 0.0, 100.0)
        _check_range("top_k", self.top_k, 0, 2**31)
        _check_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("seed", self.seed, -(2**63), MAX_SEED)
        _check_range("logprobs", self.logprobs, 0, MAX_ALTERNATIVES)
        _check_range("prompt_logprobs", self.prompt_logprobs, 0, MAX_ALTERNATIVES)
        _check_range("min_tokens", self.min_tokens, 0, 2**31)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens {self.min_tokens} is more than max_tokens", param="min_tokens")
        for _, bias in self.logit_bias:
            _check_range("logit_bias", bias, -100.0, 100.0)
        if any(not text for text in self.stop):
            raise RequestError("a stop string is empty; it would stop before the first token", param="stop")


def _check_range(name: str, value: float | int | None, low: float, high: float, open_low: bool = False) -> None:
    if value is None:
        return
    too_low = value <= low if open_low else value < low
    if not math.isfinite(value) or too_low or value > high:
        sign = ">" if open_low else "≥"
        raise RequestError(f"{name} is {value}; it must be {sign} {low:g} and ≤ {high:g}", param=name)


@dataclass(frozen=True)
class Grammar:
    """A constraint on generated text.

    json_schema: `source` is the schema as JSON text; json_object: any JSON object, `source` is empty; regex: matches
    the whole text; choice: a JSON list of texts; ebnf: a grammar in Lark's notation that begins at `start`; tool_calls:
    see `text.calls.call_grammar`. named: its name in error messages. compiled: its compiled form (`Engine.compile`),
    kept as long as this object lives.
    """

    syntax: GrammarKind
    source: str = ""
    named: str = field(default="grammar", compare=False)
    compiled: object = field(default=None, compare=False, repr=False)
