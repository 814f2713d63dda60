"""A decision file and its prices, resolved: every number in one sheet, every option knowing its places there."""

from __future__ import annotations

from bedplate.core.config import key_path
from bedplate.core.errors import ConfigError
from bedplate.economics.costs.decisions.assumed_speeds import Speeds, hours_per_token, measured_speeds, planned_speeds
from bedplate.economics.costs.decisions.calls import HostedCalls, MachineCalls, TokenCounts
from bedplate.economics.costs.decisions.case import (
    Case,
    MachineUse,
    Option,
    Pretraining,
    Refresh,
    RetrievalSpec,
    TuningSpec,
)
from bedplate.economics.costs.decisions.evidence import MeasuredRung, read_evidence
from bedplate.economics.costs.decisions.resolved_option import (
    CasePlaces,
    Ranged,
    Resolved,
    taken_for_granted,
    what_is_done,
)
from bedplate.economics.costs.decisions.sheet import Sheet
from bedplate.economics.costs.decisions.work import (
    PretrainingWork,
    RetrievalWork,
    RunPrice,
    SetupWork,
    TuningCompute,
    TuningWork,
)
from bedplate.economics.numbers.prices import Prices
from bedplate.economics.numbers.quantities import Amount, NonNegative, Quantity


class Resolver:
    """Puts a case's numbers and the prices they need into one sheet."""

    def __init__(self, case: Case, prices: Prices) -> None:
        self.sheet = Sheet()
        self.used_prices: list[tuple[str, str]] = []
        self._case, self._prices = case, prices
        self._source = case.path.name if case.path is not None else case.case
        self.shared = self._shared()
        self._everywhere = frozenset(self.sheet.touched)

    def options(self) -> tuple[Resolved, ...]:
        """ConfigError for what is missing: a price, a rung, a tokenizer's ratio, a speed."""
        return tuple(self._resolve(name, option) for name, option in self._case.options.items())

    # --- rows of the sheet

    def _add_input(self, name: str, quantity: Quantity, source: str | None = None) -> int:
        return self.sheet.add(name, quantity, source or self._source)

    def _maybe(self, name: str, quantity: Quantity | None, source: str | None = None) -> int | None:
        return None if quantity is None else self._add_input(name, quantity, source)

    def _ranged(self, name: str, quantity: Quantity, source: str | None) -> Ranged:
        place = self._add_input(name, quantity, source)
        return Ranged(place, quantity.value - quantity.low, quantity.high - quantity.value)

    def _cached_share(self) -> int:
        return self._add_input("traffic.cached_share", self._case.traffic.cached_share)

    def _price(self, section: str, price_name: str, field: str, quantity: Quantity, as_of: object) -> int:
        self.used_prices.append((section, price_name))
        file_name = self._prices.path.name if self._prices.path is not None else "prices"
        return self._add_input(
            key_path(["prices", section, price_name, *field.split(".")]), quantity, f"{file_name}, {as_of}"
        )

    def _shared(self) -> CasePlaces:
        traffic, value, bar = self._case.traffic, self._case.value, self._case.bar
        return CasePlaces(
            calls=self._add_input("traffic.calls_per_day", traffic.calls_per_day),
            days=self._add_input("traffic.horizon_days", traffic.horizon_days),
            growth=self._add_input("traffic.growth_per_year", traffic.growth_per_year),
            wrong=self._maybe("value.usd_per_wrong_answer", value.usd_per_wrong_answer),
            revenue=self._maybe("value.usd_per_call", value.usd_per_call),
            margin=None if value.usd_per_call is None else self._add_input("value.margin", value.margin),
            by_right_answer=value.earned_by == "right_answer",
            bar_quality=self._maybe("bar.quality", bar.quality),
            bar_p95_ms=self._maybe("bar.p95_ms", bar.p95_ms),
        )

    # --- one option

    def _resolve(self, name: str, option: Option) -> Resolved:
        self.sheet.touched = set()
        place = f"{self._case.place}: options.{name}"
        evidence = option.report
        measured = None if evidence is None else read_evidence(evidence, self._case.resolve_path(evidence.file), place)
        how, retrieves = what_is_done(option, measured)
        tokens = self._tokens(name, option, place)
        calls = (
            self._hosted(name, option, place)
            if option.machine is None
            else self._machine(name, option, place, tokens, measured)
        )
        p95 = option.p95_ms or (None if measured is None else measured.p95_ms)
        source = None if option.p95_ms is not None or measured is None else measured.source
        return Resolved(
            name=name,
            option=option,
            tokens=tokens,
            calls=calls,
            setup=self._setup(name, option, place),
            tuning=None if option.tuning is None else self._tuning(name, option, option.tuning, place, measured),
            retrieval=None
            if option.retrieval is None
            else self._retrieval(name, option, option.retrieval, tokens, place),
            pretraining=None if option.pretraining is None else self._pretraining(name, option.pretraining, place),
            quality=self._quality(name, option, measured, place),
            p95_ms=None if p95 is None else self._ranged(f"{_at(name)}.p95_ms", p95, source),
            case=self.shared,
            uses=frozenset(self.sheet.touched) | self._everywhere,
            notes=taken_for_granted(option, measured),
            doubts=() if measured is None else measured.doubts,
            how=how,
            retrieves=retrieves,
        )

    def _tokens(self, name: str, option: Option, place: str) -> TokenCounts:
        option_text, text = option.text, self._case.text
        unit = option_text.unit or text.unit
        if unit != "tokens" and option.tokens_per_unit is None:
            raise ConfigError(
                f"{place}: tokens_per_unit is missing: how many tokens its own tokenizer makes of one of the {unit}"
            )

        def row(field: str) -> int:
            quantity: Quantity | None = getattr(option_text, field)
            if quantity is not None:
                return self._add_input(f"{_at(name)}.text.{field}", quantity)
            return self._add_input(f"text.{field}", getattr(text, field))

        passages = None if option.retrieval is None else option.retrieval.passages
        ratio = None if unit == "tokens" else option.tokens_per_unit
        return TokenCounts(
            instructions=row("instructions"),
            examples=row("examples"),
            input=row("input"),
            output=row("output"),
            passages=self._maybe(f"{_at(name)}.retrieval.passages", passages),
            ratio=self._maybe(f"{_at(name)}.tokens_per_unit", ratio),
        )

    def _hosted(self, name: str, option: Option, place: str) -> HostedCalls:
        assert option.model is not None
        price = self._prices.hosted_model(option.model, place)
        if option.tuning is not None and price.tuning is None:
            raise ConfigError(f"{place}: {option.model!r} has no `tuning` in the price file: it cannot be tuned there")

        def row(field: str, quantity: Quantity) -> int:
            return self._price("hosted", option.model or "", field, quantity, price.as_of)

        cached, write = price.usd_per_million_cached_input, price.usd_per_million_cache_write
        tuned = price.tuning if option.tuning is not None else None
        return HostedCalls(
            input=row("usd_per_million_input", price.usd_per_million_input),
            output=row("usd_per_million_output", price.usd_per_million_output),
            cached=None if cached is None else row("usd_per_million_cached_input", cached),
            write=None if write is None else row("usd_per_million_cache_write", write),
            smallest_prefix=row("smallest_cached_prefix_tokens", price.smallest_cached_prefix_tokens),
            batch_discount=row("batch_discount", price.batch_discount),
            multiplier=None if tuned is None else row("tuning.price_multiplier", tuned.price_multiplier),
            cached_share=self._cached_share(),
            waiting_share=self._add_input("traffic.waiting_share", self._case.traffic.waiting_share),
        )

    def _machine(
        self, name: str, option: Option, place: str, tokens: TokenCounts, measured: MeasuredRung | None
    ) -> MachineCalls:
        use = option.machine
        assert use is not None
        at = f"{_at(name)}.machine"
        seconds, prefill, decode = self._speed(at, use, place, tokens, measured)
        embed = None
        if option.retrieval is not None and option.retrieval.embedder is None:
            if option.retrieval.embed_tokens_per_second is None:
                raise ConfigError(
                    f"{place}.retrieval: say who embeds: `embedder` (an entry of the price file's embeddings), or "
                    "embed_tokens_per_second of the option's machine"
                )
            embed = self._add_input(
                f"{_at(name)}.retrieval.embed_tokens_per_second", option.retrieval.embed_tokens_per_second
            )
        return MachineCalls(
            usd_per_hour=self._hour_of_machine(use.name, place),
            seconds=seconds,
            prefill=prefill,
            decode=decode,
            embed=embed,
            utilisation=self._add_input(f"{at}.utilisation", use.utilisation),
            at_least=self._add_input(f"{at}.at_least", use.at_least),
            peak=self._add_input("traffic.peak_to_mean", self._case.traffic.peak_to_mean),
            cached_share=self._cached_share(),
            reserved=use.paid == "reserved",
        )

    def _speed(
        self, at: str, use: MachineUse, place: str, tokens: TokenCounts, measured: MeasuredRung | None
    ) -> tuple[int | None, int | None, int | None]:
        """seconds, or prefill and decode."""
        if use.seconds_per_call is not None:
            return self._add_input(f"{at}.seconds_per_call", use.seconds_per_call), None, None
        if use.prefill_tokens_per_second is not None and use.decode_tokens_per_second is not None:
            prefill = self._add_input(f"{at}.prefill_tokens_per_second", use.prefill_tokens_per_second)
            return None, prefill, self._add_input(f"{at}.decode_tokens_per_second", use.decode_tokens_per_second)
        speeds = self._found_speeds(use, place, tokens)
        if speeds is not None:
            prefill = self._add_input(f"{at}.prefill_tokens_per_second", speeds[0], speeds[2])
            return None, prefill, self._add_input(f"{at}.decode_tokens_per_second", speeds[1], speeds[2])
        if measured is not None and measured.seconds_per_call is not None:
            row = self._add_input(f"{at}.seconds_per_call", Amount.exactly(measured.seconds_per_call), measured.source)
            return row, None, None
        why = "" if measured is None else " (the report was made at a machine price of 0, so its seconds are not known)"
        raise ConfigError(
            f"{place}.machine: how long does a call take? Give seconds_per_call, prefill_tokens_per_second and "
            f"decode_tokens_per_second, measured or planned{why}"
        )

    def _found_speeds(self, use: MachineUse, place: str, tokens: TokenCounts) -> Speeds | None:
        """Not stated, but measured or planned, at the text's tokens as stated."""
        if use.measured is not None:
            return measured_speeds(use.measured, self._prices, use.name, tokens.of(self.sheet.values), place)
        if use.planned is not None:
            return planned_speeds(use.planned, self._prices, use.name, tokens.of(self.sheet.values), place)
        return None

    def _quality(self, name: str, option: Option, measured: MeasuredRung | None, place: str) -> Ranged | None:
        quality = option.quality or (None if measured is None else measured.quality)
        value = self._case.value
        why = (
            "bar.quality"
            if self._case.bar.quality is not None
            else "value.usd_per_wrong_answer"
            if value.usd_per_wrong_answer is not None
            else "value.earned_by: right_answer"
            if value.usd_per_call is not None and value.earned_by == "right_answer"
            else None
        )
        if quality is None:
            if why is not None:
                raise ConfigError(f"{place}: {why} wants its `quality`: state it with a range, or name a `report`")
            return None
        source = None if option.quality is not None or measured is None else measured.source
        return self._ranged(f"{_at(name)}.quality", quality, source)

    def _hour_of_machine(self, name: str, place: str) -> int:
        price = self._prices.machine(name, place)
        return self._price("machines", name, "usd_per_hour", price.usd_per_hour, price.as_of)

    def _hour(self, *needed: Quantity) -> int:
        """What an hour of work costs; without a price where no hour is worked."""
        if not any(quantity.high for quantity in needed) and self._case.staff not in self._prices.staff:
            return self._add_input("no work", NonNegative.exactly(0))
        rate = self._prices.staff_rate(self._case.staff, f"{self._case.place}: staff")
        return self._price("staff", self._case.staff, "usd_per_hour", rate.usd_per_hour, rate.as_of)

    def _label(self, *needed: Quantity) -> int:
        if not any(quantity.high for quantity in needed) and self._case.labelling not in self._prices.labelling:
            return self._add_input("no labels", NonNegative.exactly(0))
        price = self._prices.label(self._case.labelling, f"{self._case.place}: labelling")
        return self._price("labelling", self._case.labelling, "usd_per_label", price.usd_per_label, price.as_of)

    def _setup(self, name: str, option: Option, place: str) -> SetupWork:
        work, upkeep, at = option.setup, option.upkeep, _at(name)
        return SetupWork(
            hours=self._add_input(f"{at}.setup.hours", work.hours),
            evaluation_labels=self._add_input(f"{at}.setup.evaluation_labels", work.evaluation_labels),
            usd=self._add_input(f"{at}.setup.usd", work.usd),
            hours_per_month=self._add_input(f"{at}.upkeep.hours_per_month", upkeep.hours_per_month),
            usd_per_month=self._add_input(f"{at}.upkeep.usd_per_month", upkeep.usd_per_month),
            hour=self._hour(work.hours, upkeep.hours_per_month),
            label=self._label(work.evaluation_labels),
        )

    def _tuning(
        self, name: str, option: Option, tuning: TuningSpec, place: str, measured: MeasuredRung | None
    ) -> TuningWork:
        at = f"{_at(name)}.tuning"
        refresh, refresh_days = self._refresh(at, option, tuning, place)
        price = None if option.model is None else self._prices.hosted_model(option.model, place)
        deployed = None if price is None or price.tuning is None else price.tuning.usd_per_hour
        refresh_inputs = (refresh.labels, refresh.evaluation_labels, refresh.hours)
        return TuningWork(
            compute=self._compute(at, option, tuning, place, measured),
            hours=self._add_input(f"{at}.hours", tuning.hours),
            hour=self._hour(tuning.hours, refresh.hours),
            label=self._label(tuning.labels, refresh.labels, refresh.evaluation_labels),
            every_days=refresh_days,
            refresh_labels=None if refresh_days is None else self._add_input(f"{at}.refresh.labels", refresh_inputs[0]),
            refresh_evaluation=None
            if refresh_days is None
            else self._add_input(f"{at}.refresh.evaluation_labels", refresh_inputs[1]),
            refresh_hours=None if refresh_days is None else self._add_input(f"{at}.refresh.hours", refresh_inputs[2]),
            hosting=None
            if price is None or deployed is None or not deployed.high
            else self._price("hosted", option.model or "", "tuning.usd_per_hour", deployed, price.as_of),
        )

    def _refresh(self, at: str, option: Option, tuning: TuningSpec, place: str) -> tuple[Refresh, int | None]:
        """What tuning again takes, and the place of how often; None where it is tuned once."""
        refresh, knowledge = tuning.refresh, self._case.knowledge
        if refresh is not None and refresh.every_days is not None:
            return refresh, self._add_input(f"{at}.refresh.every_days", refresh.every_days)
        if knowledge is not None and option.retrieval is None:
            if refresh is None:
                raise ConfigError(
                    f"{place}.tuning: what it knows changes every {knowledge.changes_every_days.value:g} days; say "
                    "with `refresh: {labels, hours}` what tuning again takes"
                )
            return refresh, self._add_input("knowledge.changes_every_days", knowledge.changes_every_days)
        if refresh is not None and knowledge is None:
            raise ConfigError(f"{place}.tuning.refresh: how often? Add every_days, or `knowledge` to the case")
        return refresh or Refresh(), None

    def _compute(
        self, at: str, option: Option, tuning: TuningSpec, place: str, measured: MeasuredRung | None
    ) -> TuningCompute:
        labels, epochs = self._add_input(f"{at}.labels", tuning.labels), self._add_input(f"{at}.epochs", tuning.epochs)
        if option.model is not None:
            price = self._prices.hosted_model(option.model, place)
            assert price.tuning is not None
            per_million = self._price(
                "hosted",
                option.model,
                "tuning.usd_per_million_training",
                price.tuning.usd_per_million_training,
                price.as_of,
            )
            return TuningCompute(labels, epochs, per_million, None, None, None)
        assert option.machine is not None
        hour = self._hour_of_machine(tuning.machine or option.machine.name, f"{place}.tuning")
        if tuning.machine_hours is not None:
            hours, speed = self._add_input(f"{at}.machine_hours", tuning.machine_hours), None
        elif tuning.tokens_per_second is not None:
            hours, speed = None, self._add_input(f"{at}.tokens_per_second", tuning.tokens_per_second)
        elif measured is not None and measured.train_seconds is not None:
            machine_hours = NonNegative.exactly(measured.train_seconds / 3600)
            hours, speed = self._add_input(f"{at}.machine_hours", machine_hours, measured.source), None
        else:
            raise ConfigError(f"{place}.tuning: how long does it take? Give machine_hours or tokens_per_second")
        return TuningCompute(labels, epochs, None, hour, hours, speed)

    def _retrieval(
        self, name: str, option: Option, retrieval: RetrievalSpec, tokens: TokenCounts, place: str
    ) -> RetrievalWork:
        at = f"{_at(name)}.retrieval"
        price = hour = embed = None
        if retrieval.embedder is not None:
            embedder = self._prices.embedder(retrieval.embedder, f"{place}.retrieval")
            price = self._price(
                "embeddings",
                retrieval.embedder,
                "usd_per_million_input",
                embedder.usd_per_million_input,
                embedder.as_of,
            )
        elif option.machine is None:
            raise ConfigError(f"{place}.retrieval: name an `embedder` of the price file's embeddings")
        else:
            assert retrieval.embed_tokens_per_second is not None
            hour = self._hour_of_machine(option.machine.name, place)
            embed = self._add_input(f"{at}.embed_tokens_per_second", retrieval.embed_tokens_per_second)
        return RetrievalWork(
            corpus=self._add_input(f"{at}.corpus", retrieval.corpus),
            changed_per_month=self._add_input(f"{at}.changed_per_month", retrieval.changed_per_month),
            usd_per_month=self._add_input(f"{at}.usd_per_month", retrieval.usd_per_month),
            ratio=tokens.ratio,
            price=price,
            usd_per_hour=hour,
            embed=embed,
        )

    def _pretraining(self, name: str, pretraining: Pretraining, place: str) -> PretrainingWork:
        at = f"{_at(name)}.pretraining"
        return PretrainingWork(
            run=self._run(at, pretraining, f"{place}.pretraining.run"),
            runs=self._add_input(f"{at}.runs", pretraining.runs),
            data_usd=self._add_input(f"{at}.data_usd", pretraining.data_usd),
            hours=self._add_input(f"{at}.hours", pretraining.hours),
            hour=self._hour(pretraining.hours),
            features=self._add_input(f"{at}.features", pretraining.features),
        )

    def _run(self, at: str, pretraining: Pretraining, place: str) -> int | RunPrice:
        if pretraining.usd is not None:
            return self._add_input(f"{at}.usd", pretraining.usd)
        run = pretraining.run
        assert run is not None
        hours, source = hours_per_token(run, self._prices, place)
        return RunPrice(
            tokens=self._add_input(f"{at}.run.tokens", run.tokens),
            hours_per_token=self._add_input(f"{at}.run.device_hours_per_token", hours, source),
            usd_per_machine_hour=self._hour_of_machine(run.machine, place),
            devices_per_machine=self._prices.machine(run.machine, place).devices,
        )


def _at(name: str) -> str:
    """Where an option stands, as an override spells it."""
    return key_path(["options", name])
