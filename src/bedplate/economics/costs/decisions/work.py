"""What is paid besides calls: people, labels, tuning and its repetitions, retrieval, pretraining.

A tuning that is repeated every r days within a horizon of H is repeated ⌈H / r⌉ − 1 times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bedplate.economics.costs.decisions.bill import DAYS_PER_MONTH, Line
from bedplate.economics.costs.decisions.calls import Tokens
from bedplate.economics.costs.decisions.sheet import Values

_MILLION = 1e6


@dataclass(frozen=True)
class SetupWork:
    """Engineering, examples to judge by, anything else; and what comes every month."""

    hours: int
    evaluation_labels: int
    usd: int
    hours_per_month: int
    usd_per_month: int
    hour: int
    label: int

    def fixed(self, v: Values) -> list[Line]:
        return [
            ("engineering", v[self.hours] * v[self.hour]),
            ("evaluation labels", v[self.evaluation_labels] * v[self.label]),
            ("other", v[self.usd]),
        ]

    def monthly(self, v: Values, days: float) -> list[Line]:
        months = days / DAYS_PER_MONTH
        return [
            ("upkeep", v[self.hours_per_month] * v[self.hour] * months),
            ("other, monthly", v[self.usd_per_month] * months),
        ]


@dataclass(frozen=True)
class TuningCompute:
    """One tuning run: hosted at a price per token seen, or hours of a machine (stated, or tokens over its speed)."""

    labels: int
    epochs: int
    usd_per_million: int | None
    usd_per_hour: int | None
    hours: int | None
    tokens_per_second: int | None

    def usd(self, v: Values, tokens: Tokens) -> float:
        example = tokens.prefix + tokens.fresh + tokens.passages + tokens.output
        trained_tokens = v[self.labels] * v[self.epochs] * example
        if self.usd_per_million is not None:
            return trained_tokens * v[self.usd_per_million] / _MILLION
        assert self.usd_per_hour is not None
        if self.hours is not None:
            return v[self.hours] * v[self.usd_per_hour]
        assert self.tokens_per_second is not None
        return trained_tokens / v[self.tokens_per_second] / 3600 * v[self.usd_per_hour]


@dataclass(frozen=True)
class TuningWork:
    """Labels, hours and compute, now and again. every_days: None where it is tuned once. hosting: USD per hour for
    keeping a hosted tuned model deployed."""

    compute: TuningCompute
    hours: int
    hour: int
    label: int
    every_days: int | None
    refresh_labels: int | None
    refresh_evaluation: int | None
    refresh_hours: int | None
    hosting: int | None

    def fixed(self, v: Values, tokens: Tokens) -> list[Line]:
        return [
            ("training labels", v[self.compute.labels] * v[self.label]),
            ("tuning work", v[self.hours] * v[self.hour]),
            ("tuning compute", self.compute.usd(v, tokens)),
        ]

    def recurring(self, v: Values, tokens: Tokens, days: float) -> list[Line]:
        lines: list[Line] = []
        if self.hosting is not None:
            lines.append(("tuned model's hosting", v[self.hosting] * 24 * days))
        if self.every_days is not None:
            assert self.refresh_labels is not None
            assert self.refresh_evaluation is not None
            assert self.refresh_hours is not None
            labels = (v[self.refresh_labels] + v[self.refresh_evaluation]) * v[self.label]
            refresh_usd = labels + v[self.refresh_hours] * v[self.hour] + self.compute.usd(v, tokens)
            lines.append(("tuning again", refresh_usd * repetitions(days, v[self.every_days])))
        return lines


def repetitions(days: float, every_days: float) -> int:
    """How often something done on day 0 is done again before the horizon ends."""
    return max(0, math.ceil(days / every_days - 1e-9) - 1)


@dataclass(frozen=True)
class RetrievalWork:
    """The corpus's vectors, made once and again as it changes, and the index. price: USD per million tokens of a hosted
    embedder; otherwise the machine's hour and its speed."""

    corpus: int
    changed_per_month: int
    usd_per_month: int
    ratio: int | None
    price: int | None
    usd_per_hour: int | None
    embed: int | None

    def corpus_usd(self, v: Values) -> float:
        return self._usd(v, v[self.corpus] * (1.0 if self.ratio is None else v[self.ratio]))

    def query_usd(self, v: Values, tokens: Tokens) -> float:
        """A machine's own embedder costs seconds of the machine instead."""
        return 0.0 if self.price is None else self._usd(v, tokens.fresh)

    def recurring(self, v: Values, days: float) -> list[Line]:
        months = days / DAYS_PER_MONTH
        return [
            ("embedding what changes", self.corpus_usd(v) * v[self.changed_per_month] * months),
            ("index", v[self.usd_per_month] * months),
        ]

    def _usd(self, v: Values, tokens: float) -> float:
        if self.price is not None:
            return tokens * v[self.price] / _MILLION
        if self.embed is None or self.usd_per_hour is None:
            return 0.0
        return tokens / v[self.embed] / 3600 * v[self.usd_per_hour]


@dataclass(frozen=True)
class RunPrice:
    """A planned run: tokens, device hours for each of them, and an hour of a machine of several devices."""

    tokens: int
    hours_per_token: int
    usd_per_machine_hour: int
    devices_per_machine: int

    def usd(self, v: Values) -> float:
        hours = v[self.tokens] * v[self.hours_per_token]
        return hours * v[self.usd_per_machine_hour] / self.devices_per_machine


@dataclass(frozen=True)
class PretrainingWork:
    """run: the final run, at a stated price or a planned one; all runs, the data and the people beside it; divided by
    the features that share the base."""

    run: int | RunPrice
    runs: int
    data_usd: int
    hours: int
    hour: int
    features: int

    def fixed(self, v: Values) -> list[Line]:
        share = 1 / v[self.features]
        run = self.run.usd(v) if isinstance(self.run, RunPrice) else v[self.run]
        return [
            ("pretraining compute", run * v[self.runs] * share),
            ("pretraining data", v[self.data_usd] * share),
            ("pretraining work", v[self.hours] * v[self.hour] * share),
        ]
