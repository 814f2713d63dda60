"""A decision file and its price file as formulas: what each option costs over the horizon, line by line.

1. `case_inputs.py` holds every number of both files as an input, and what all options share: calls, days, prices.
2. `_OptionBuilder` reads one option: tokens of a call, then the cost of calls (hosted, or on machines), of people and
   labels, tuning, retrieval and pretraining, each as a formula over the inputs.
3. `OptionCosts` is the result; evaluated at the stated values, at draws, and at whatever a page's sliders say.

Calls grow continuously: calls_per_day × (1 + growth)^(day / 365). Reserved machines are whole machines, paid day and
night; where calls grow, their number is set anew in each quarter of the horizon, for its busiest day. A machine's
utilisation divides what it can do, so that idle time makes calls dearer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from bedplate.core.config import key_path
from bedplate.core.errors import ConfigError
from bedplate.economics.costs.decisions.call_speeds import (
    CallTokens,
    Speeds,
    hours_per_token,
    measured_speeds,
    planned_speeds,
)
from bedplate.economics.costs.decisions.case_inputs import CaseInputs
from bedplate.economics.costs.decisions.decision_file import (
    MachineUse,
    Method,
    Option,
    Pretraining,
    Refresh,
    RetrievalSpec,
    TuningSpec,
)
from bedplate.economics.costs.decisions.decision_inputs import Ranged
from bedplate.economics.costs.decisions.ladder_evidence import read_evidence
from bedplate.economics.numbers.formula import ZERO, Formula, Values, as_formula, call, total
from bedplate.economics.numbers.ranged_quantities import Amount, NonNegative, Quantity

SECONDS_PER_DAY = 86_400.0
_MILLION = 1e6
_SLACK = 1e-9  # a demand that fills its machines exactly needs no further one for a rounding error

Period = Literal["once", "over time", "calls", "machines"]
_PERIODS = get_args(Period)


@dataclass(frozen=True)
class CostLine:
    """Period something is paid, what it is, and US dollars over the horizon."""

    period: Period
    part: str
    usd: Formula


@dataclass(frozen=True)
class TokenFormulas:
    """Tokens of one call: repeated in every prompt, different each time, retrieved, and answered. ratio: tokens of one
    unit of the text."""

    prefix: Formula
    fresh: Formula
    passages: Formula
    output: Formula
    ratio: Formula

    @property
    def prompt(self) -> Formula:
        return total((self.prefix, self.fresh, self.passages))

    def at(self, v: Values) -> CallTokens:
        return CallTokens(*(part.compile()(v) for part in (self.prefix, self.fresh, self.passages, self.output)))


@dataclass(frozen=True)
class OptionCosts:
    """One option.

    per_call: USD that one more call costs at great volume, where machines are as full as they may be, by part, with
    wrong answers and less revenue. machines: the reserved ones, at their most; busy: the share of their time in which
    they compute; capacities: calls of the first day that one of them can do, in each part of the horizon for which
    their number is set. quality, p95_ms: None where nothing is known. notes: what was assumed; doubts: why the verdict
    of its report is no PASS, and why the report is used nonetheless.
    """

    name: str
    option: Option
    method: str
    method_in_short: str
    tokens: TokenFormulas
    lines: tuple[CostLine, ...]
    per_call: dict[str, Formula]
    machines: Formula | None
    busy: Formula | None
    capacities: tuple[Formula, ...]
    quality: Ranged | None
    p95_ms: Ranged | None
    wrong_answers: Formula
    revenue: Formula
    notes: tuple[str, ...]
    doubts: tuple[str, ...]

    @property
    def total(self) -> Formula:
        """US dollars that are spent over the horizon."""
        return total(line.usd for line in self.lines)

    @property
    def net(self) -> Formula:
        """What options are ranked by: the total with what wrong answers cost, less what calls bring in."""
        return self.total + self.wrong_answers - self.revenue

    @cached_property
    def total_usd(self) -> Callable[[Values], float]:
        return self.total.compile()

    @cached_property
    def net_usd(self) -> Callable[[Values], float]:
        return self.net.compile()


def option_costs(shared: CaseInputs) -> tuple[OptionCosts, ...]:
    """The costs of all options. ConfigError for what is missing: a price, a rung, a tokenizer's ratio, a speed."""
    return tuple(_OptionBuilder(shared, name, option).build() for name, option in shared.case.options.items())


class _OptionBuilder:
    """Reads one option, and composes its costs."""

    def __init__(self, shared: CaseInputs, name: str, option: Option) -> None:
        self.shared, self.name, self.option = shared, name, option
        self.prices = shared.prices
        self.key = key_path(["options", name])
        self.place = f"{shared.case.place}: options.{name}"
        self.report = None
        if option.report is not None:
            self.report = read_evidence(option.report, shared.case.resolve_path(option.report.file), self.place)
        self.lines: list[CostLine] = []
        self.per_call: dict[str, Formula] = {}
        self.machines: Formula | None = None
        self.busy: Formula | None = None
        self.capacities: tuple[Formula, ...] = ()
        self.tokens = self._tokens()

    def build(self) -> OptionCosts:
        option, case, report = self.option, self.shared.case, self.report
        if option.machine is None:
            self._hosted_calls()
        else:
            self._machine_calls(option.machine)
        self._people()
        if option.tuning is not None:
            self._tuning(option.tuning)
        if option.retrieval is not None:
            self._retrieval(option.retrieval)
        if option.pretraining is not None:
            self._pretraining(option.pretraining)
        quality = self._ranged("quality", option.quality, None if report is None else report.quality)
        if quality is None:
            self._check_that_quality_is_not_needed()
        right, wrong = as_formula(1.0), ZERO
        if quality is not None:
            share = Formula(f"v[{quality.place}]", frozenset((quality.place,)))
            wrong = self.shared.wrong_answer * (1.0 - share)
            right = share if case.value.earned_by == "right_answer" else right
        for part, usd in (("wrong answers", wrong), ("revenue", self.shared.revenue * right * -1.0)):
            if usd != ZERO:
                self.per_call[part] = usd
        method, retrieves = self._method()
        return OptionCosts(
            name=self.name,
            option=option,
            method=option.describe(method, retrieves),
            method_in_short=option.label(method, retrieves),
            tokens=self.tokens,
            lines=tuple(sorted(self.lines, key=lambda line: _PERIODS.index(line.period))),
            per_call=self.per_call,
            machines=self.machines,
            busy=self.busy,
            capacities=self.capacities,
            quality=quality,
            p95_ms=self._ranged("p95_ms", option.p95_ms, None if report is None else report.p95_ms),
            wrong_answers=wrong * self.shared.calls,
            revenue=self.shared.revenue * right * self.shared.calls,
            notes=self._notes(),
            doubts=() if report is None else report.doubts,
        )

    # --- numbers of the files

    def _add(self, name: str, quantity: Quantity | None, source: str | None = None) -> Formula:
        return ZERO if quantity is None else self.shared.add(f"{self.key}.{name}", quantity, source)

    def _ranged(self, name: str, stated: Quantity | None, measured: Quantity | None) -> Ranged | None:
        quantity = stated or measured
        if quantity is None:
            return None
        source = self.shared.source if stated is not None or self.report is None else self.report.source
        place = self.shared.inputs.place(f"{self.key}.{name}", quantity, source)
        return Ranged(place, quantity.value - quantity.low, quantity.high - quantity.value)

    def _tokens(self) -> TokenFormulas:
        option, text = self.option, self.shared.case.text
        unit = option.text.unit or text.unit
        if unit != "tokens" and option.tokens_per_unit is None:
            raise ConfigError(
                f"{self.place}: tokens_per_unit is missing: how many tokens the option's tokenizer makes of one of "
                f"the {unit}"
            )
        ratio = as_formula(1.0) if unit == "tokens" else self._add("tokens_per_unit", option.tokens_per_unit)

        def count(field: str) -> Formula:
            stated: Quantity | None = getattr(option.text, field)
            if stated is not None:
                return self._add(f"text.{field}", stated)
            return self.shared.add(f"text.{field}", getattr(text, field))

        passages = None if option.retrieval is None else option.retrieval.passages
        return TokenFormulas(
            prefix=(count("instructions") + count("examples")) * ratio,
            fresh=count("input") * ratio,
            passages=self._add("retrieval.passages", passages) * ratio,
            output=count("output") * ratio,
            ratio=ratio,
        )

    def _machine_hour(self, name: str, place: str = "") -> Formula:
        entry = self.prices.machine(name, f"{self.place}{place}")
        return self.shared.price("machines", name, "usd_per_hour", entry)

    def _hour(self, *worked: Quantity) -> Formula:
        """What an hour of work costs; no price is needed where no hour is worked."""
        case = self.shared.case
        if not any(hours.high for hours in worked):
            return ZERO
        entry = self.prices.staff_rate(case.staff, f"{case.place}: staff")
        return self.shared.price("staff", case.staff, "usd_per_hour", entry)

    def _label(self, *labelled: Quantity) -> Formula:
        case = self.shared.case
        if not any(labels.high for labels in labelled):
            return ZERO
        entry = self.prices.label(case.labelling, f"{case.place}: labelling")
        return self.shared.price("labelling", case.labelling, "usd_per_label", entry)

    def _line(self, period: Period, part: str, usd: Formula) -> None:
        if usd != ZERO:
            self.lines.append(CostLine(period, part, usd))

    def _call_line(self, part: str, usd: Formula) -> None:
        """What every call costs."""
        if usd != ZERO:
            self.per_call[part] = usd
        self._line("calls", part, usd * self.shared.calls)

    # --- calls

    def _hosted_calls(self) -> None:
        """A repeated prefix is looked up in the cache, and written there where it is missing; calls that may wait take
        the batch price where it is cheaper."""
        name, shared, tokens = self.option.model or "", self.shared, self.tokens
        entry = self.prices.hosted_model(name, self.place)
        tuned = self.option.tuning is not None
        if tuned and entry.tuning is None:
            raise ConfigError(f"{self.place}: {name!r} has no `tuning` in the price file: it cannot be tuned there")
        scale = self._hosted("tuning.price_multiplier") / _MILLION if tuned else as_formula(1 / _MILLION)
        price = self._hosted("usd_per_million_input") * scale
        plain = {
            "repeated prompt": tokens.prefix * price,
            "input": tokens.fresh * price,
            "passages": tokens.passages * price,
            "output": tokens.output * (self._hosted("usd_per_million_output") * scale),
        }
        live = dict(plain)
        if entry.usd_per_million_cached_input is not None:
            hit = self._hosted("usd_per_million_cached_input") * scale
            missed = price
            if entry.usd_per_million_cache_write is not None:
                missed = self._hosted("usd_per_million_cache_write") * scale
            padded = call("max", tokens.prefix, self._hosted("smallest_cached_prefix_tokens"))
            hits = shared.cached_share
            cached = padded * (hits * hit + (1.0 - hits) * missed)
            live["repeated prompt"] = ZERO if tokens.prefix == ZERO else call("min", plain["repeated prompt"], cached)
        batch = {part: usd * (1.0 - self._hosted("batch_discount")) for part, usd in plain.items()}
        batched = shared.waiting_share * total(batch.values()).is_less(total(live.values()))
        for part, usd in live.items():
            self._call_line(part, usd if batched == ZERO else usd * (1.0 - batched) + batch[part] * batched)

    def _hosted(self, field: str) -> Formula:
        name = self.option.model or ""
        return self.shared.price("hosted", name, field, self.prices.hosted_model(name, self.place))

    def _machine_calls(self, use: MachineUse) -> None:
        shared = self.shared
        seconds = self._seconds(use)
        hour, utilisation = self._machine_hour(use.name), self._add("machine.utilisation", use.utilisation)
        if use.paid == "by_use":
            self._call_line("machine", seconds * (hour / 3600.0) / utilisation)
            return
        fewest = self._add("machine.at_least", use.at_least)
        share_of_machine = shared.peak * seconds / (utilisation * SECONDS_PER_DAY)
        needs = [calls * share_of_machine for calls in shared.busiest_days]
        fleets = [call("ceil", call("max", fewest, need) - _SLACK) for need in needs]
        mean_fleet = total(fleets) / len(fleets)
        usd_per_machine = hour * 24.0 * shared.days
        self.machines = call("max", *fleets)
        self.capacities = tuple(shared.calls_per_day / need for need in needs)
        self._line("machines", "reserved machines", mean_fleet * usd_per_machine)
        self.per_call["machines at their fullest"] = usd_per_machine * (total(needs) / len(needs)) / shared.calls
        self.busy = shared.calls * seconds / (mean_fleet * shared.days * SECONDS_PER_DAY)

    def _seconds(self, use: MachineUse) -> Formula:
        """Seconds of the whole machine that one call takes; cached tokens take none."""
        tokens, retrieval, report = self.tokens, self.option.retrieval, self.report
        embedding = ZERO
        if retrieval is not None and retrieval.embedder is None:
            if retrieval.embed_tokens_per_second is None:
                raise ConfigError(
                    f"{self.place}.retrieval: say who embeds: `embedder` (an entry of the price file's embeddings), or "
                    "embed_tokens_per_second of the option's machine"
                )
            speed = self._add("retrieval.embed_tokens_per_second", retrieval.embed_tokens_per_second)
            embedding = tokens.fresh / speed
        if use.seconds_per_call is not None:
            return self._add("machine.seconds_per_call", use.seconds_per_call) + embedding
        speeds = self._speeds(use)
        if speeds is not None:
            prompt = (1.0 - self.shared.cached_share) * tokens.prefix + tokens.fresh + tokens.passages
            prefill = self._add("machine.prefill_tokens_per_second", speeds.prefill, speeds.source)
            decode = self._add("machine.decode_tokens_per_second", speeds.decode, speeds.source)
            return prompt / prefill + tokens.output / decode + embedding
        if report is not None and report.seconds_per_call is not None:
            seconds = Amount.exactly(report.seconds_per_call)
            return self._add("machine.seconds_per_call", seconds, report.source) + embedding
        reason = (
            "" if report is None else " (the report was made at a machine price of 0, so its seconds are not known)"
        )
        raise ConfigError(
            f"{self.place}.machine: how long does a call take? Give seconds_per_call, prefill_tokens_per_second and "
            f"decode_tokens_per_second, measured or planned{reason}"
        )

    def _speeds(self, use: MachineUse) -> Speeds | None:
        """Stated, measured, or planned from a data sheet at the tokens that the files state."""
        if use.prefill_tokens_per_second is not None and use.decode_tokens_per_second is not None:
            return Speeds(use.prefill_tokens_per_second, use.decode_tokens_per_second, None)
        tokens = self.tokens.at(self.shared.inputs.values)
        if use.measured is not None:
            return measured_speeds(use.measured, self.prices, use.name, tokens, self.place)
        if use.planned is not None:
            return planned_speeds(use.planned, self.prices, use.name, tokens, self.place)
        return None

    # --- people, labels, tuning, retrieval, pretraining

    def _people(self) -> None:
        work, upkeep, months = self.option.setup, self.option.upkeep, self.shared.months
        hour = self._hour(work.hours, upkeep.hours_per_month)
        label = self._label(work.evaluation_labels)
        self._line("once", "engineering", self._add("setup.hours", work.hours) * hour)
        self._line("once", "evaluation labels", self._add("setup.evaluation_labels", work.evaluation_labels) * label)
        self._line("once", "other", self._add("setup.usd", work.usd))
        hours = self._add("upkeep.hours_per_month", upkeep.hours_per_month)
        self._line("over time", "upkeep", hours * hour * months)
        self._line("over time", "other, monthly", self._add("upkeep.usd_per_month", upkeep.usd_per_month) * months)

    def _tuning(self, tuning: TuningSpec) -> None:
        """Labels, hours and compute once, and again before the horizon ends: ⌈horizon / every_days⌉ − 1 times."""
        refresh, every_days = self._refresh(tuning)
        compute = self._tuning_compute(tuning)
        hour = self._hour(tuning.hours, refresh.hours)
        label = self._label(tuning.labels, refresh.labels, refresh.evaluation_labels)
        self._line("once", "training labels", self._add("tuning.labels", tuning.labels) * label)
        self._line("once", "tuning work", self._add("tuning.hours", tuning.hours) * hour)
        self._line("once", "tuning compute", compute)
        if self.option.model is not None:
            entry = self.prices.hosted_model(self.option.model, self.place)
            if entry.tuning is not None and entry.tuning.usd_per_hour.high:
                self._line(
                    "over time", "tuned model's hosting", self._hosted("tuning.usd_per_hour") * 24.0 * self.shared.days
                )
        if every_days is not None:
            labels = self._add("tuning.refresh.labels", refresh.labels)
            labels += self._add("tuning.refresh.evaluation_labels", refresh.evaluation_labels)
            again = labels * label + self._add("tuning.refresh.hours", refresh.hours) * hour + compute
            times = call("max", 0.0, call("ceil", self.shared.days / every_days - _SLACK) - 1.0)
            self._line("over time", "tuning again", again * times)

    def _refresh(self, tuning: TuningSpec) -> tuple[Refresh, Formula | None]:
        """What tuning again takes, and every how many days; None where it is tuned once."""
        refresh, knowledge = tuning.refresh, self.shared.case.knowledge
        if refresh is not None and refresh.every_days is not None:
            return refresh, self._add("tuning.refresh.every_days", refresh.every_days)
        if knowledge is not None and self.option.retrieval is None:
            if refresh is None:
                raise ConfigError(
                    f"{self.place}.tuning: what it knows changes every {knowledge.changes_every_days.value:g} days; "
                    "say with `refresh: {labels, hours}` what tuning again takes"
                )
            return refresh, self.shared.add("knowledge.changes_every_days", knowledge.changes_every_days)
        if refresh is not None and knowledge is None:
            raise ConfigError(f"{self.place}.tuning.refresh: how often? Add every_days, or `knowledge` to the case")
        return refresh or Refresh(), None

    def _tuning_compute(self, tuning: TuningSpec) -> Formula:
        """One tuning run: at a price per token seen, or hours of a machine (stated, or tokens over its speed)."""
        option, report = self.option, self.report
        tokens = self._add("tuning.labels", tuning.labels) * self._add("tuning.epochs", tuning.epochs)
        tokens *= total((self.tokens.prompt, self.tokens.output))
        if option.machine is None:
            return tokens * self._hosted("tuning.usd_per_million_training") / _MILLION
        hour = self._machine_hour(tuning.machine or option.machine.name, ".tuning")
        if tuning.machine_hours is not None:
            return self._add("tuning.machine_hours", tuning.machine_hours) * hour
        if tuning.tokens_per_second is not None:
            return tokens / self._add("tuning.tokens_per_second", tuning.tokens_per_second) / 3600.0 * hour
        if report is not None and report.train_seconds is not None:
            hours = NonNegative.exactly(report.train_seconds / 3600)
            return self._add("tuning.machine_hours", hours, report.source) * hour
        raise ConfigError(f"{self.place}.tuning: how long does it take? Give machine_hours or tokens_per_second")

    def _retrieval(self, retrieval: RetrievalSpec) -> None:
        """The corpus's vectors, made once and again as it changes, those of the calls' inputs, and the index."""
        if retrieval.embedder is not None:
            entry = self.prices.embedder(retrieval.embedder, f"{self.place}.retrieval")
            price = self.shared.price("embeddings", retrieval.embedder, "usd_per_million_input", entry) / _MILLION
            self._call_line("query embedding", self.tokens.fresh * price)
        elif self.option.machine is None:
            raise ConfigError(f"{self.place}.retrieval: name an `embedder` of the price file's embeddings")
        else:  # a machine's own embedder costs seconds of the machine in each call
            speed = self._add("retrieval.embed_tokens_per_second", retrieval.embed_tokens_per_second)
            price = self._machine_hour(self.option.machine.name) / 3600.0 / speed
        corpus = self._add("retrieval.corpus", retrieval.corpus) * self.tokens.ratio * price
        months = self.shared.months
        changed = self._add("retrieval.changed_per_month", retrieval.changed_per_month)
        self._line("once", "embedding the corpus", corpus)
        self._line("over time", "embedding what changes", corpus * changed * months)
        self._line("over time", "index", self._add("retrieval.usd_per_month", retrieval.usd_per_month) * months)

    def _pretraining(self, pretraining: Pretraining) -> None:
        """The final run, at a stated price or a planned one, all runs, data and people; shared by the features that
        use the base."""
        features = self._add("pretraining.features", pretraining.features)
        hour = self._hour(pretraining.hours)
        run = self._add("pretraining.usd", pretraining.usd)
        if pretraining.run is not None:
            stated, place = pretraining.run, f"{self.place}.pretraining.run"
            hours, source = hours_per_token(stated, self.prices, place)
            tokens = self._add("pretraining.run.tokens", stated.tokens)
            devices = float(self.prices.machine(stated.machine, place).devices)
            run = tokens * self._add("pretraining.run.device_hours_per_token", hours, source)
            run = run * self._machine_hour(stated.machine, ".pretraining.run") / devices
        runs = self._add("pretraining.runs", pretraining.runs)
        self._line("once", "pretraining compute", run * runs / features)
        self._line("once", "pretraining data", self._add("pretraining.data_usd", pretraining.data_usd) / features)
        self._line("once", "pretraining work", self._add("pretraining.hours", pretraining.hours) * hour / features)

    # --- quality, and what is assumed

    def _check_that_quality_is_not_needed(self) -> None:
        case = self.shared.case
        needed_by = {
            "bar.quality": case.bar.quality is not None,
            "value.usd_per_wrong_answer": case.value.usd_per_wrong_answer is not None,
            "value.earned_by: right_answer": (
                case.value.usd_per_call is not None and case.value.earned_by == "right_answer"
            ),
        }
        for key, is_needed in needed_by.items():
            if is_needed:
                raise ConfigError(
                    f"{self.place}: {key} needs this option's `quality`: state it with a range, or name a `report`"
                )

    def _method(self) -> tuple[Method, bool]:
        """How the model is made to do the task, and whether it looks passages up."""
        option, report = self.option, self.report
        retrieves = option.retrieval is not None or (report is not None and report.retrieves)
        if option.tuning is not None:
            return "tuned", retrieves
        return (report and report.method) or "prompted", retrieves

    def _notes(self) -> tuple[str, ...]:
        """What the option leaves unsaid, and what its report's verdict says of its quality."""
        option, report, notes = self.option, self.report, list[str]()
        if report is not None and option.quality is None:
            notes += report.notes
        if option.tuning is not None and option.tuning.refresh is None:
            notes.append("it is tuned once and never again")
        if option.tuning is None and report is not None and report.method in ("tuned", "classical"):
            made = "tuned" if report.method == "tuned" else "a model trained on labels"
            notes.append(
                f"it is {made} ({report.source}), and the option has no `tuning`: labels, time and hours of that are "
                "not in its costs"
            )
        return tuple(notes)
