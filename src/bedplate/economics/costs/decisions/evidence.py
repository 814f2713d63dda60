"""What a decision file does not state itself: a ladder's report.json (docs/report-json.md), measured engines, and what
is planned from a data sheet."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, cast

from bedplate.core.errors import BedplateError, ConfigError, DataError, UsageError
from bedplate.core.files import read_text
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.economics.costs.decisions import decision_file
from bedplate.economics.numbers.formula import Number
from bedplate.economics.numbers.prices import Amount, MachinePrice, Prices, Share

if TYPE_CHECKING:
    from bedplate.economics.hardware.devices import Device
    from bedplate.economics.serving.simulation import ServiceModel, Traffic

Part = Mapping[str, Any]  # a JSON object of a report


@dataclass(frozen=True)
class MeasuredRung:
    """One rung on one split. quality: of a nominee on test what is expected of it, down to the verdict's own bound
    where that bounds quality; else the estimate with its interval. seconds_per_call: of single calls on the machine of
    the report (`machine`), None where its price was 0 (the report has dollars only). notes: what the verdict says of
    it; doubts: why that is no PASS. method: as its skin was made, None where the report does not say; retrieves:
    whether that looks passages up."""

    source: str
    quality: Share
    p95_ms: Amount | None
    machine: str
    seconds_per_call: float | None
    train_seconds: float | None
    notes: tuple[str, ...]
    doubts: tuple[str, ...]
    method: decision_file.Method | None
    retrieves: bool


def read_evidence(evidence: decision_file.LadderEvidence, path: Path, needed_by: str) -> MeasuredRung:
    """The rung's row, with the verdict. ConfigError for a file that is no report, a rung that is not there, skipped or
    failed, and for a verdict that is not PASS, is exploratory, or whose guards or requirements of the rung do not hold,
    unless the option says why it is used `despite` that."""
    report = _LadderReport(_read(path, needed_by), evidence.rung, f"{needed_by}: {path}")
    row = report.row(evidence.split)
    source = f"{path.name}, {evidence.rung} on {row['split']}"
    doubts = report.doubts()
    if doubts and evidence.despite is None:
        raise ConfigError(
            f"{report.place}: {'; '.join(doubts)}. Take a rung that passed, state the option's own quality and p95_ms "
            "without `report`, or say under report.despite why it is used nonetheless"
        )
    confirmation = report.confirmation() if row["split"] == "test" else None
    machine = _part(report.values, "machine")
    usd_per_hour = machine.get("usd_per_hour")
    usd_per_1k_calls = report.number(row, "usd_per_1k_calls")
    return MeasuredRung(
        source=source,
        quality=report.quality(row, confirmation),
        p95_ms=report.p95(row),
        machine=f"{machine.get('cores', 'unknown')} cores of {machine.get('processor', 'an unknown processor')}",
        seconds_per_call=usd_per_1k_calls * 3.6 / usd_per_hour if usd_per_1k_calls and usd_per_hour else None,
        train_seconds=report.number(row, "train_seconds"),
        notes=(f"{report.verdict_on_quality(row, confirmation)} ({source})",),
        doubts=(*doubts, f"used nonetheless: {evidence.despite}") if doubts else (),
        method=report.method(evidence.rung),
        retrieves="retrieval" in report.skin_parts(evidence.rung),
    )


def _read(path: Path, needed_by: str) -> Part:
    try:
        values = json.loads(read_text(path))
    except DataError as error:
        raise ConfigError(f"{needed_by}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{needed_by}: {path} is not JSON ({error}); give a ladder's report.json") from None
    if not isinstance(values, dict) or "rungs" not in values:
        raise ConfigError(f"{needed_by}: {path} is not a ladder's report: it has no `rungs`")
    return cast("dict[str, Any]", values)


def _part(values: Part, key: str) -> Part:
    """An object of the report; empty where it is not there or is none."""
    part = values.get(key)
    return cast("Part", part) if isinstance(part, Mapping) else {}


def _items(value: Any) -> Sequence[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


class _LadderReport:
    """A report, as far as it concerns one rung. place: what errors name it by."""

    def __init__(self, values: Part, rung: str, place: str) -> None:
        self.values, self.rung, self.place = values, rung, place
        self.target, self.skins = _part(values, "target"), _part(_part(values, "lineage"), "skins")
        # Where the bar is another system's score, the verdict's bounds are those of a difference.
        self.compares = self.target.get("value_given") is False
        self.verdict = _part(values, "verdict")
        if self.target.get("lower_is_better"):
            raise self.error(
                "the report's estimates are US dollars of a call, not shares of right answers; state the option's own "
                "quality and p95_ms without `report`"
            )

    def error(self, message: str) -> ConfigError:
        return ConfigError(f"{self.place}: {message}")

    def row(self, split: str | None) -> Part:
        """The rung's row on a split; test where it was confirmed there, else valid."""
        rows = [row for row in _items(self.values.get("rungs")) if isinstance(row, Mapping)]
        of_rung = {row.get("split"): cast("Part", row) for row in rows if row.get("rung") == self.rung}
        if not of_rung:
            names = list(dict.fromkeys(str(row.get("rung")) for row in rows))
            hint = did_you_mean(nearest(self.rung, names)) or f"it has {', '.join(names) or 'none'}"
            raise self.error(f"there is no rung {self.rung!r}; {hint}")
        for row in of_rung.values():
            if row.get("status") != "done":
                reason = row.get("reason") or "no reason given"
                raise self.error(f"the rung {self.rung!r} was {row.get('status')} ({reason}); choose another")
        split = split or ("test" if "test" in of_rung else "valid")
        if split not in of_rung:
            splits = ", ".join(map(str, of_rung))
            raise self.error(f"the rung {self.rung!r} was estimated on {splits} only, not on {split}")
        if "status" not in self.verdict:
            raise self.error("the report has no `verdict`; give a report.json that a finished ladder wrote")
        return of_rung[split]

    def skin_parts(self, rung: str) -> list[str]:
        """The parts of the rung's skin, as its kind names them; none in an old report."""
        return str(_part(self.skins, rung).get("kind", "")).split("+")

    def method(self, rung: str) -> decision_file.Method | None:
        """Tuned is what has weights of its own, or stands on a base that was made for the task, or is made of such."""
        skin, parts = _part(self.skins, rung), self.skin_parts(rung)
        if not skin:
            return None
        if "classical" in parts:
            return "classical"
        if "cascade" in parts:
            parents = [name for name in self.skins if _part(self.skins, name).get("skin_id") in skin["parents"]]
            return "tuned" if "tuned" in map(self.method, parents) else "prompted"
        known_bases = {base.get("weights_id") for base in _items(self.values["lineage"].get("bases"))}
        is_child = "hosted" not in parts and skin.get("bases", {}).get("main") not in known_bases
        return "tuned" if is_child or {"lora", "soft_prompt", "probe"} & set(parts) else "prompted"

    def doubts(self) -> tuple[str, ...]:
        """Why the report's verdict is no PASS that this rung can be used by."""
        verdict, doubts = self.verdict, list[str]()
        if verdict["status"] != "PASS":
            doubts.append(f"the report's verdict is {verdict['status']}: {verdict.get('reason')}")
        elif verdict.get("exploratory"):
            doubts.append("the report's PASS is exploratory: its test rows had served an earlier verdict")
        guards, requirements = (_items(_part(self.values, key).get(self.rung)) for key in ("guards", "requirements"))
        checks = [(f"the {guard.get('guard')} guard of {self.rung}", guard) for guard in guards]
        checks += [(f"a requirement of {self.rung}", requirement) for requirement in requirements]
        for name, check in checks:
            if check.get("holds") is not True:
                state = "is broken" if check.get("holds") is False else "is undecided"
                doubts.append(f"{name} {state}: {check.get('reason')}")
        return tuple(doubts)

    def confirmation(self) -> Part | None:
        """What was confirmed of a nominee on test."""
        confirmations = _items(_part(self.values, "nominees").get("confirmations"))
        return next((part for part in confirmations if part.get("rung") == self.rung), None)

    def verdict_on_quality(self, row: Part, confirmation: Part | None) -> str:
        """A sentence without its full stop."""
        if row["split"] == "valid":
            return "its quality is an estimate on rows that choices were made on"
        if confirmation is None:
            return "its quality is an estimate with its interval: it was no nominee, so that no verdict bounds it"
        lower = self.number(confirmation, "lower")
        if lower is None:
            return f"its quality could not be bounded: {confirmation.get('reason')}"
        status, winner = self.verdict["status"], self.verdict.get("rung")
        passed = status == "PASS" and (winner == self.rung or confirmation.get("passed") is True)
        if not passed:
            status = f"{status}{'' if winner in (None, self.rung) else f' of {winner}'}, not of {self.rung}"
        if self.compares:
            return (
                f"the verdict of its report is {status}, by a comparison with {self.target.get('against')}, which "
                "bounds the difference alone: its quality is an estimate with its interval"
            )
        confidence = self.number(confirmation, "lower_confidence") or 0.0
        return f"the verdict of its report is {status}: quality at least {lower:.3f} with {confidence:.1%} confidence"

    def number(self, row: Part, key: str) -> float | None:
        value = row.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self.error(f"{key} is {value!r}; it must be a number, at least 0")
        return float(value)

    def p95(self, row: Part) -> Amount | None:
        """With the verdict's bounds of it, where there are any."""
        value = self.number(row, "p95_ms")
        if not value:
            return None
        bounds = [end for end in _items(row.get("p95_bounds_ms")) if isinstance(end, int | float) and end > 0]
        return Amount(value=value, low=min(value, *bounds, value), high=max(value, *bounds, value))

    def quality(self, row: Part, confirmation: Part | None) -> Share:
        estimate, interval = self.number(row, "estimate"), _items(row.get("interval"))
        if estimate is None or len(interval) != 2:
            raise self.error("the rung has no estimate with an interval")
        try:
            low, high = float(interval[0]), float(interval[1])
            lower = None if confirmation is None else self.number(confirmation, "lower")
            if confirmation is not None and lower is not None:
                # Among many candidates the best one's estimate is too high; `expected` is corrected for that.
                expected = self.number(confirmation, "expected")
                estimate = estimate if expected is None else expected
                low, high = min(low if self.compares else lower, estimate), max(high, estimate)
            return Share(value=estimate, low=low, high=high)
        except (TypeError, ValueError):
            raise self.error(f"estimate {estimate!r} with interval {interval!r} is not a share of 1") from None


# --- speeds that the file does not state


class CallTokens(NamedTuple, Generic[Number]):
    """Tokens of one call: repeated in every prompt, different each time, retrieved, and answered."""

    prefix: Number
    fresh: Number
    passages: Number
    output: Number

    @property
    def prompt(self) -> Number:
        return self.prefix + self.fresh + self.passages


class Speeds(NamedTuple):
    """Prompt tokens per second, output tokens per second of all sequences together, where they are from (None: the
    decision file), and the 95th percentile of a call's milliseconds by the share of the machine's capacity that calls
    take (None: not known)."""

    prefill: Amount
    decode: Amount
    source: str | None
    p95_ms: Callable[[float], Amount] | None = None


def machine_speeds(use: decision_file.MachineUse, prices: Prices, tokens: CallTokens[float], needed_by: str) -> Speeds:
    """Of a machine that is `measured`, or `planned` by its data sheet over the range that engines reach. ConfigError
    where it was not measured, or does not fit."""
    from bedplate.economics.hardware.machine import read_machine
    from bedplate.economics.serving.replica import LOCAL_ENGINE, ON_DEVICES, measured_replica, on_devices
    from bedplate.economics.serving.serving_cost import latency_at

    traffic, planned, measured = _traffic(tokens), use.planned, use.measured
    place, entry = f"{needed_by}.machine.{'planned' if planned else 'measured'}", prices.machine(use.name, needed_by)
    try:
        if planned is not None:
            engine, device = ON_DEVICES.with_rows(planned.batch), _device_of(entry, use.name)
            replicas = on_devices(planned.model, device, entry.devices, planned.weights, traffic, engine)
            source = f"planned: {planned.model} in {planned.weights}, "
        else:
            assert measured is not None
            machine = read_machine(None if entry.measured is None else prices.resolve_path(entry.measured))
            engine, source = LOCAL_ENGINE.with_rows(measured.batch), ""
            replicas = {"central": measured_replica(machine, measured.base, measured.weights, traffic, engine)}
        speeds = [_speeds_of(replica.service, tokens, traffic) for replica in replicas.values()]
    except BedplateError as error:
        raise ConfigError(f"{place}: {error}") from error
    central = list(replicas).index("central")

    def ranged(values: Sequence[float]) -> Amount:
        return Amount(value=values[central], low=min(values), high=max(values))

    def p95_ms(load: float) -> Amount:
        pairs = zip(replicas.values(), saturated, strict=True)
        return ranged([1000 * latency_at(replica.service, traffic, load * rate).total_p95 for replica, rate in pairs])

    prefills, decodes, saturated = zip(*speeds, strict=True)
    return Speeds(ranged(prefills), ranged(decodes), source + replicas["central"].basis, p95_ms)


def _traffic(tokens: CallTokens[float]) -> Traffic:
    """Calls of these tokens, the repeated ones cached."""
    from bedplate.economics.serving.simulation import TokenLengths, Traffic

    counts = (max(1, round(count)) for count in (tokens.fresh + tokens.passages, tokens.output))
    prompt, output = (TokenLengths("fixed", count, count) for count in counts)
    return Traffic(prompt, output, round(tokens.prefix))


def _device_of(entry: MachinePrice, name: str) -> Device:
    from bedplate.economics.hardware.devices import find_device

    if entry.device is None:
        raise UsageError(f"the price file does not say which `device` {name!r} has")
    return find_device(entry.device)


def _speeds_of(service: ServiceModel, tokens: CallTokens[float], traffic: Traffic) -> tuple[float, float, float]:
    """Prompt tokens, output tokens and calls a second of a replica that is always full. Together a call takes what
    `plan serve` simulates; prompt and output share that as a prompt alone does, and `max_rows` sequences half-way
    through their answers."""
    from bedplate.economics.serving.serving_cost import decode_tokens_per_second, prefill_seconds, saturated_rates

    cached, fresh, output = traffic.skin_tokens, traffic.prompt.low, traffic.output.low
    prefill = fresh / prefill_seconds(service, cached + fresh, cached)
    decode = decode_tokens_per_second(service, service.max_rows, cached + fresh + output // 2)
    calls_per_second, _ = saturated_rates(service, traffic)
    scale = calls_per_second * ((tokens.fresh + tokens.passages) / prefill + tokens.output / decode)
    return prefill * scale, decode * scale, calls_per_second


def hours_per_token(run: decision_file.TrainingRun, prices: Prices, needed_by: str) -> tuple[Amount, str]:
    """Device hours per token of a training run, over the range of its utilisation, and where they are from."""
    from bedplate.economics.training.training_cost import plan_training

    entry, tokens = prices.machine(run.machine, needed_by), run.tokens.value
    try:
        device = _device_of(entry, run.machine)
        plan = plan_training(run.model, tokens, device, run.devices)
    except BedplateError as error:
        raise ConfigError(f"{needed_by}: {error}") from error
    hours = plan.gpu_hours
    per_token = Amount(value=hours.central / tokens, low=hours.low / tokens, high=hours.high / tokens)
    return per_token, f"planned: {plan.model} on {run.devices} × {device.name}"
