"""A decision file and its price file as formulas: what each option costs over the horizon, line by line.

1. `CaseInputs` holds every number of both files as an input, and what all options share: calls, days, prices.
2. `OptionCosts` reads one option: tokens of a call, then the cost of calls (hosted, or on machines), of people and
   labels, tuning, retrieval and pretraining, each as a formula over the inputs.
3. The formulas are evaluated at the stated values, at draws, and at whatever a page's sliders say.

Calls grow continuously: calls_per_day × (1 + growth)^(day / 365). Reserved machines are whole machines, paid day and
night; where calls grow, their number is set anew in each quarter of the horizon, for its busiest day. A machine's
utilisation divides what it can do, so that idle time makes calls dearer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from bedplate.core.config import key_path
from bedplate.core.errors import ConfigError
from bedplate.economics.costs.decisions import decision_file, evidence
from bedplate.economics.numbers.formula import ZERO, Formula, as_formula, call, total
from bedplate.economics.numbers.money import figures, number
from bedplate.economics.numbers.prices import LARGEST, Amount, NonNegative, Quantity
from bedplate.economics.serving.simulation import SECONDS_PER_DAY

_MILLION = 1e6
_SLACK = 1e-9  # a demand that fills its machines exactly needs no further one for a rounding error

Period = Literal["once", "over time", "calls", "machines"]


@dataclass(frozen=True)
class CostLine:
    """Period something is paid, what it is, and US dollars over the horizon."""

    period: Period
    part: str
    usd: Formula


class OptionCosts:
    """One option as formulas over the case's inputs, read from the files. ConfigError for what is missing there: a
    price, a rung, a tokenizer's ratio, a speed. Its public attributes are what the answer is computed from.

    broken: constraints that rule it out. doubts: why the verdict of its report is no PASS, and why the report is used
    nonetheless; notes: what was assumed. total: US dollars that are spent over the horizon; net: what options are
    ranked by, the total with what wrong answers cost, less what calls bring in. per_call: USD that one more call costs
    at great volume, where machines are as full as they may be, by part, with wrong answers and less revenue. padding:
    tokens that are added to the prompt of a call so that it is cached, and US dollars that this saves. machines:
    the reserved ones, at their most; busy: the share of what they can do that calls take; capacities: calls of the
    first day that one of them can do, in each part of the horizon for which their number is set. quality, p95_ms:
    places of inputs, None where nothing is known. places: of all inputs that cost or feasibility depend on.
    """

    def __init__(
        self, shared: decision_file.CaseInputs, name: str, option: decision_file.Option, broken: Sequence[str]
    ) -> None:
        self._shared, self.name, self._option, self.broken = shared, name, option, broken
        self._prices, case = shared.prices, shared.case
        self._key, self._place = key_path(["options", name]), f"{case.place}: options.{name}"
        self._report = report = None
        if option.report is not None:
            self._report = report = evidence.read_evidence(
                option.report, case.resolve_path(option.report.file), self._place
            )
        self.lines: list[CostLine] = []
        self.per_call: dict[str, Formula] = {}
        self.padding = self.padding_saves = ZERO
        self.machines: Formula | None = None
        self.busy: Formula | None = None
        self.capacities: tuple[Formula, ...] = ()
        self._load: Formula | None = None
        self._speeds: evidence.Speeds | None = None  # of a planned or measured machine
        self._runs_as_reported = False
        self._tokens = tokens = self._call_tokens()
        self.prefix_tokens, self.prompt_tokens, self.output_tokens = tokens.prefix, tokens.prompt, tokens.output
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
        self.lines.sort(key=lambda line: get_args(Period).index(line.period))
        self.quality = self._ranged("quality", option.quality, report and report.quality)
        self.p95_ms = self._p95_ms()
        self.total: Formula = total(line.usd for line in self.lines)
        self.net = self.total + self._value()
        looked_at = (self.quality, self.p95_ms, shared.bar_quality, shared.bar_p95_ms)
        self.places = sorted(self.net.places.union(place for place in looked_at if place is not None))
        retrieves = option.retrieval is not None or (report is not None and report.retrieves)
        method: decision_file.Method = (
            "tuned" if option.tuning is not None else (report and report.method) or "prompted"
        )
        self.method, self.method_in_short = option.describe(method, retrieves), option.label(method, retrieves)
        self.doubts, self.notes = () if report is None else report.doubts, self._notes()

    # --- numbers of the files

    def _add(self, name: str, quantity: Quantity | None, source: str | None = None) -> Formula:
        return self._shared.add(f"{self._key}.{name}", quantity, source or self._shared.source)

    def _stated(self, key: str) -> Formula:
        """A number of the option by its key; ZERO where it is not stated."""
        value: Any = self._option
        for part in key.split("."):
            value = value and getattr(value, part)
        return self._add(key, value)

    def _p95_ms(self) -> int | None:
        """As stated; of the machine that is planned or measured, in the busiest time of the stated volume; or as the
        report has it."""
        stated, report, speeds = self._option.p95_ms, self._report, self._speeds
        if stated is None and speeds is not None and speeds.p95_ms is not None:
            source = speeds.source or self._shared.source
            return self._shared.place(f"{self._key}.p95_ms", speeds.p95_ms(self._busiest_load), source)
        return self._ranged("p95_ms", stated, report and report.p95_ms)

    @property
    def _busiest_load(self) -> float:
        """The share of its capacity that calls take of a machine at the peak, at the stated values; of shared machines,
        their utilisation."""
        assert self._option.machine is not None
        most = self._option.machine.utilisation.value
        return most if self._load is None else min(most, self._load(self._shared.values))

    def _ranged(self, name: str, stated: Quantity | None, measured: Quantity | None) -> int | None:
        quantity = stated or measured
        if quantity is None:
            return None
        source = self._shared.source if stated is not None or self._report is None else self._report.source
        return self._shared.place(f"{self._key}.{name}", quantity, source)

    @property
    def _unit(self) -> decision_file.Unit:
        return self._option.text.unit or self._shared.case.text.unit

    @cached_property
    def _ratio(self) -> Formula:
        """Tokens of one unit of the text."""
        unit = self._unit
        if unit == "tokens":
            return as_formula(1.0)
        if self._option.tokens_per_unit is None:
            raise ConfigError(
                f"{self._place}: tokens_per_unit is missing: how many tokens the option's tokenizer makes of one of "
                f"the {unit}"
            )
        return self._stated("tokens_per_unit")

    def _call_tokens(self) -> evidence.CallTokens[Formula]:
        ratio = self._ratio

        def count(field: str) -> Formula:
            if getattr(self._option.text, field) is not None:
                return self._stated(f"text.{field}")
            return self._shared.add(f"text.{field}", getattr(self._shared.case.text, field), self._shared.source)

        return evidence.CallTokens(
            prefix=(count("instructions") + count("examples")) * ratio,
            fresh=count("input") * ratio,
            passages=self._stated("retrieval.passages") * ratio,
            output=count("output") * ratio,
        )

    def _machine_hour(self, name: str, place: str = "") -> Formula:
        return self._shared.price("machines", name, "usd_per_hour", f"{self._place}{place}")

    def _hosted(self, field: str) -> Formula:
        return self._shared.price("hosted", self._option.model or "", field, self._place)

    def _hour(self, *worked: Quantity) -> Formula:
        """What an hour of work costs; no price is needed where no hour is worked."""
        case = self._shared.case
        if not any(hours.high for hours in worked):
            return ZERO
        return self._shared.price("staff", case.staff, "usd_per_hour", f"{case.place}: staff")

    def _label(self, *labelled: Quantity) -> Formula:
        case = self._shared.case
        if not any(labels.high for labels in labelled):
            return ZERO
        return self._shared.price("labelling", case.labelling, "usd_per_label", f"{case.place}: labelling")

    def _line(self, period: Period, part: str, usd: Formula) -> None:
        if usd != ZERO:
            self.lines.append(CostLine(period, part, usd))

    def _call_line(self, part: str, usd: Formula) -> None:
        if usd != ZERO:
            self.per_call[part] = usd
        self._line("calls", part, usd * self._shared.calls)

    # --- calls

    def _hosted_calls(self) -> None:
        """A repeated prefix is looked up in the cache, and written there where it is missing; calls that may wait take
        the batch price where it is cheaper."""
        name, shared, tokens = self._option.model or "", self._shared, self._tokens
        entry = self._prices.hosted_model(name, self._place)
        tuned = self._option.tuning is not None
        if tuned and entry.tuning is None:
            raise ConfigError(f"{self._place}: {name!r} has no `tuning` in the price file: it cannot be tuned there")
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
            hit, missed = self._hosted("usd_per_million_cached_input") * scale, price
            if entry.usd_per_million_cache_write is not None:
                missed = self._hosted("usd_per_million_cache_write") * scale
            hits, whole = shared.cached_share, plain["repeated prompt"]
            least, usd = self._hosted("smallest_cached_prefix_tokens"), hits * hit + (1.0 - hits) * missed
            cached, is_short = tokens.prefix * usd, tokens.prefix.is_less(least)
            if least != ZERO and self._option.pad_prompt:
                cached = call("max", tokens.prefix, least) * usd
                self.padding = (least - tokens.prefix) * is_short * cached.is_less(whole)
            elif least != ZERO:
                cached = cached + is_short * LARGEST  # so that it is never the lesser
            live["repeated prompt"] = ZERO if tokens.prefix == ZERO else call("min", whole, cached)
        batch = {part: usd * (1.0 - self._hosted("batch_discount")) for part, usd in plain.items()}
        in_batch = total(batch.values())
        batched = shared.waiting_share * in_batch.is_less(total(live.values()))
        if self.padding != ZERO:
            self.padding = self.padding * (1.0 - batched)
            costs, waiting = [total(plain.values()), total(live.values())], shared.waiting_share
            without, padded = (usd - waiting * (usd - call("min", usd, in_batch)) for usd in costs)
            self.padding_saves = (without - padded) * shared.calls * as_formula(0.0).is_less(self.padding)
        for part, usd in live.items():
            self._call_line(part, usd if batched == ZERO else usd * (1.0 - batched) + batch[part] * batched)

    def _machine_calls(self, use: decision_file.MachineUse) -> None:
        shared = self._shared
        seconds = self._seconds(use)
        hour, utilisation = self._machine_hour(use.name), self._stated("machine.utilisation")
        if use.paid == "by_use":
            self._call_line("machine", seconds * (hour / 3600.0) / utilisation)
            return
        fewest = self._stated("machine.at_least")
        share_of_machine = shared.peak * seconds / (utilisation * SECONDS_PER_DAY)
        needs = [calls * share_of_machine for calls in shared.busiest_days]
        fleets = [call("ceil", call("max", fewest, need) - _SLACK) for need in needs]
        mean_fleet = total(fleets) / len(fleets)
        usd_per_machine = hour * 24.0 * shared.days
        self.machines = call("max", fleets[0], *fleets)
        loads = [utilisation * need / fleet for need, fleet in zip(needs, fleets, strict=True)]
        self._load = call("max", loads[0], *loads)
        self.capacities = tuple(shared.calls_per_day / need for need in needs)
        self._line("machines", "reserved machines", mean_fleet * usd_per_machine)
        self.per_call["machines at their fullest"] = usd_per_machine * (total(needs) / len(needs)) / shared.calls
        self.busy = shared.calls * seconds / (mean_fleet * shared.days * SECONDS_PER_DAY)

    def _seconds(self, use: decision_file.MachineUse) -> Formula:
        """Seconds of the whole machine that one call takes; cached tokens take none."""
        tokens, retrieval, report = self._tokens, self._option.retrieval, self._report
        embedding = ZERO
        if retrieval is not None and retrieval.embedder is None:
            if retrieval.embed_tokens_per_second is None:
                raise ConfigError(
                    f"{self._place}.retrieval: say who embeds: `embedder` (an entry of the price file's embeddings), "
                    "or embed_tokens_per_second of the option's machine"
                )
            embedding = tokens.fresh / self._stated("retrieval.embed_tokens_per_second")
        if use.seconds_per_call is not None:
            return self._stated("machine.seconds_per_call") + embedding
        speeds = self._machine_speeds(use)
        if speeds is not None:
            prompt = (1.0 - self._shared.cached_share) * tokens.prefix + tokens.fresh + tokens.passages
            prefill = self._add("machine.prefill_tokens_per_second", speeds.prefill, speeds.source)
            decode = self._add("machine.decode_tokens_per_second", speeds.decode, speeds.source)
            return prompt / prefill + tokens.output / decode + embedding
        if report is not None and report.seconds_per_call is not None:
            seconds, self._runs_as_reported = Amount.exactly(report.seconds_per_call), True
            return self._add("machine.seconds_per_call", seconds, report.source) + embedding
        reason = (
            "; the report has no price of its calls (a machine price of 0, or nothing computed) to take seconds from"
            if report
            else ""
        )
        raise ConfigError(
            f"{self._place}.machine: how long does a call take? Give seconds_per_call, prefill_tokens_per_second and "
            f"decode_tokens_per_second, `measured` or `planned`{reason}"
        )

    def _machine_speeds(self, use: decision_file.MachineUse) -> evidence.Speeds | None:
        """Stated, measured, or planned from a data sheet at the tokens that the files state."""
        if use.prefill_tokens_per_second is not None and use.decode_tokens_per_second is not None:
            return evidence.Speeds(use.prefill_tokens_per_second, use.decode_tokens_per_second, None)
        if use.measured is None and use.planned is None:
            return None
        if self._speeds is None:
            tokens = evidence.CallTokens(*(part(self._shared.values) for part in self._tokens))
            self._speeds = evidence.machine_speeds(use, self._prices, tokens, self._place)
        return self._speeds

    # --- people, labels, tuning, retrieval, pretraining

    def _people(self) -> None:
        work, upkeep, months = self._option.setup, self._option.upkeep, self._shared.months
        hour, label = self._hour(work.hours, upkeep.hours_per_month), self._label(work.evaluation_labels)
        self._line("once", "engineering", self._stated("setup.hours") * hour)
        self._line("once", "evaluation labels", self._stated("setup.evaluation_labels") * label)
        self._line("once", "other", self._stated("setup.usd"))
        self._line("over time", "upkeep", self._stated("upkeep.hours_per_month") * hour * months)
        self._line("over time", "other, monthly", self._stated("upkeep.usd_per_month") * months)

    def _tuning(self, tuning: decision_file.TuningSpec) -> None:
        """Labels, hours and compute once, and again before the horizon ends: ⌈horizon / every_days⌉ − 1 times."""
        refresh, every_days = self._refresh(tuning)
        compute = self._tuning_compute(tuning)
        hour = self._hour(tuning.hours, refresh.hours)
        label = self._label(tuning.labels, refresh.labels, refresh.evaluation_labels)
        self._line("once", "training labels", self._stated("tuning.labels") * label)
        self._line("once", "tuning work", self._stated("tuning.hours") * hour)
        self._line("once", "tuning compute", compute)
        if self._option.model is not None:
            hosting = self._hosted("tuning.usd_per_hour") * 24.0 * self._shared.days
            self._line("over time", "tuned model's hosting", hosting)
        if every_days is not None:
            labels = self._stated("tuning.refresh.labels") + self._stated("tuning.refresh.evaluation_labels")
            again = labels * label + self._stated("tuning.refresh.hours") * hour + compute
            times = call("max", 0.0, call("ceil", self._shared.days / every_days - _SLACK) - 1.0)
            self._line("over time", "tuning again", again * times)

    def _refresh(self, tuning: decision_file.TuningSpec) -> tuple[decision_file.Refresh, Formula | None]:
        """What tuning again takes, and every how many days; None where it is tuned once."""
        refresh, knowledge = tuning.refresh, self._shared.case.knowledge
        if refresh is not None and refresh.every_days is not None:
            return refresh, self._stated("tuning.refresh.every_days")
        if knowledge is not None and self._option.retrieval is None:
            if refresh is None:
                raise ConfigError(
                    f"{self._place}.tuning: what it knows changes every {knowledge.changes_every_days.value:g} days; "
                    "say with `refresh: {labels, hours}` what tuning again takes"
                )
            days = knowledge.changes_every_days
            return refresh, self._shared.add("knowledge.changes_every_days", days, self._shared.source)
        if refresh is not None and knowledge is None:
            raise ConfigError(f"{self._place}.tuning.refresh: how often? Add every_days, or `knowledge` to the case")
        return refresh or decision_file.Refresh(), None

    def _tuning_compute(self, tuning: decision_file.TuningSpec) -> Formula:
        """One tuning run: at a price per token seen, or hours of a machine (stated, or tokens over its speed)."""
        option, report = self._option, self._report
        tokens = self._stated("tuning.labels") * self._stated("tuning.epochs")
        tokens *= self._tokens.prompt + self._tokens.output
        if option.machine is None:
            return tokens * self._hosted("tuning.usd_per_million_training") / _MILLION
        hour = self._machine_hour(tuning.machine or option.machine.name, ".tuning")
        if tuning.machine_hours is not None:
            return self._stated("tuning.machine_hours") * hour
        if tuning.tokens_per_second is not None:
            return tokens / self._stated("tuning.tokens_per_second") / 3600.0 * hour
        if report is not None and report.train_seconds is not None:
            hours = NonNegative.exactly(report.train_seconds / 3600)
            return self._add("tuning.machine_hours", hours, report.source) * hour
        raise ConfigError(f"{self._place}.tuning: how long does it take? Give machine_hours or tokens_per_second")

    def _retrieval(self, retrieval: decision_file.RetrievalSpec) -> None:
        """The corpus's vectors, made once and again as it changes, those of the calls' inputs, and the index."""
        if retrieval.embedder is not None:
            place = f"{self._place}.retrieval"
            price = self._shared.price("embeddings", retrieval.embedder, "usd_per_million_input", place) / _MILLION
            self._call_line("query embedding", self._tokens.fresh * price)
        elif self._option.machine is None:
            raise ConfigError(f"{self._place}.retrieval: name an `embedder` of the price file's embeddings")
        else:  # a machine's own embedder costs seconds of the machine in each call
            speed = self._stated("retrieval.embed_tokens_per_second")
            price = self._machine_hour(self._option.machine.name) / 3600.0 / speed
        corpus, months = self._stated("retrieval.corpus") * self._ratio * price, self._shared.months
        self._line("once", "embedding the corpus", corpus)
        self._line("over time", "embedding what changes", corpus * self._stated("retrieval.changed_per_month") * months)
        self._line("over time", "index", self._stated("retrieval.usd_per_month") * months)

    def _pretraining(self, pretraining: decision_file.Pretraining) -> None:
        """The final run, at a stated price or a planned one, all runs, data and people; shared by the features that
        use the base."""
        features, hour = self._stated("pretraining.features"), self._hour(pretraining.hours)
        run = self._stated("pretraining.usd")
        if pretraining.run is not None:
            stated, place = pretraining.run, f"{self._place}.pretraining.run"
            hours, source = evidence.hours_per_token(stated, self._prices, place)
            devices = float(self._prices.machine(stated.machine, place).devices)
            run = self._stated("pretraining.run.tokens")
            run *= self._add("pretraining.run.device_hours_per_token", hours, source)
            run = run * self._machine_hour(stated.machine, ".pretraining.run") / devices
        self._line("once", "pretraining compute", run * self._stated("pretraining.runs") / features)
        self._line("once", "pretraining data", self._stated("pretraining.data_usd") / features)
        self._line("once", "pretraining work", self._stated("pretraining.hours") * hour / features)

    # --- quality, and what is assumed

    def _value(self) -> Formula:
        """What wrong answers cost less what calls bring in over the horizon; ConfigError where that, or a bar, needs a
        quality that is not known."""
        shared, value, quality = self._shared, self._shared.case.value, self.quality
        by_right_answer = value.usd_per_call is not None and value.earned_by == "right_answer"
        right, wrong = as_formula(1.0), ZERO
        if quality is not None:
            share = Formula.input(quality)
            wrong = shared.wrong_answer * (1.0 - share)
            right = share if by_right_answer else right
        else:
            needed_by = {
                "bar.quality": shared.bar_quality is not None,
                "value.usd_per_wrong_answer": value.usd_per_wrong_answer is not None,
                "value.earned_by: right_answer": by_right_answer,
            }
            for key in (key for key, is_needed in needed_by.items() if is_needed):
                raise ConfigError(
                    f"{self._place}: {key} needs this option's `quality`: state it with a range, or name a `report`"
                )
        for part, usd in (("wrong answers", wrong), ("revenue", shared.revenue * right * -1.0)):
            if usd != ZERO:
                self.per_call[part] = usd
        return wrong * shared.calls - shared.revenue * right * shared.calls

    def _without_effect(self) -> list[str]:
        """What is stated and changes nothing."""
        option, waiting = self._option, self._shared.case.traffic.waiting_share
        notes: list[str] = []
        if option.tokens_per_unit is not None and self._unit == "tokens":
            notes.append("tokens_per_unit has no effect: its text is counted in tokens")
        entry = None if option.model is None else self._prices.hosted_model(option.model, self._place)
        if entry is not None and waiting.high and not entry.batch_discount.high:
            notes.append(f"calls that may wait cost what others do: {option.model} has no batch_discount")
        return notes

    def _latency_notes(self, p95_ms: Callable[[float], Amount]) -> list[str]:
        """What the machine's latency is, at the stated volume and as full as it may be."""
        assert self._option.machine is not None
        load, most, stated = self._busiest_load, self._option.machine.utilisation.value, self._option.p95_ms
        planned = p95_ms(load)
        times = f"{number(planned.value)} ms ({number(planned.low)} to {number(planned.high)})"
        at_load = f"{times} at {figures(100 * load, 2)}% of its capacity"
        if stated is None:
            full = f", and {number(p95_ms(most).value)} at {figures(100 * most, 2)}%" if load < most else ""
            return [f"its p95_ms is its machine's, {at_load}, which is the peak of the stated volume{full}"]
        if stated.high < planned.low:
            return [
                f"WARNING: its p95_ms of {number(stated.value)} is stated, and its machine takes {at_load}; leave "
                "p95_ms out to take that"
            ]
        return []

    def _notes(self) -> tuple[str, ...]:
        """What the option leaves unsaid, and what its report's verdict says of its quality."""
        option, report, notes = self._option, self._report, self._without_effect()
        if self._speeds is not None and self._speeds.p95_ms is not None:
            notes += self._latency_notes(self._speeds.p95_ms)
        if option.pretraining is not None and (missing := option.pretraining.unpaid(option.upkeep)):
            notes.append(f"WARNING: a base of one's own whose {' and '.join(missing)} cost nothing here; state them")
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
        if self._runs_as_reported and report is not None:
            notes.append(
                f"a call takes the seconds that {report.source} measured on {report.machine}, whatever `text` says; "
                "for another machine give `planned`, `measured` or speeds"
            )
        return tuple(notes)
