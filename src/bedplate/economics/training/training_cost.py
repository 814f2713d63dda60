"""What training a model costs: operations, device-hours, days, energy and dollars, each with its formula's source.

    operations   = tokens × operations per token                                                     exact
    device-hours = operations × overhead / (peak × MFU) / 3600               MFU by kind and number of devices: a range
    dollars      = device-hours × price of a device-hour

Published device-hours are all-in. `overhead` is what a run takes beyond its clean steps: restarts, checkpoints,
evaluation, failed attempts. The default is Llama-3.1-405B's (https://arxiv.org/abs/2407.21783, section 3.3.4: over 90%
of the time was effective training). What exploration before the final run costs is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from bedplate.core.display import Brief
from bedplate.core.errors import UsageError
from bedplate.economics.hardware.devices import CURVES, EXECUTION, Device, Execution, Precision, mfu, peak_of
from bedplate.economics.model.footprint import stacks_of, training_flops_per_token
from bedplate.economics.model.named_model import resolve
from bedplate.economics.model.parameters import OPTIMIZERS, Optimizer, parameters
from bedplate.economics.numbers.formula import Range, at_least, formula_values, formulas_of, positive, share, whole
from bedplate.economics.training.device_layout import DeviceBytes, DeviceLayout
from bedplate.economics.training.layout_search import MARGIN, Fitted, TrainingJob, describe, find_layout, usable
from bedplate.economics.training.scaling_laws import EPOCH, Optimum, ScalingFit, compute_optimal, inference_aware
from bedplate.models.specs import Spec, TransformerSpec

DEFAULT_OVERHEAD = 1.1
DEFAULT_PUE = 1.2
DEFAULT_USD_PER_KWH = 0.10
DEFAULT_SEQUENCE_TOKENS = 8192
BATCH_SCALE, BATCH_EXPONENT = 0.292, 0.3271
USUAL_BUBBLE = 0.15
"""Share of a step in which the pipeline stages of published runs idle: what is beyond that, no curve has."""

TRAINING_FORMULAS = formulas_of("training")


@dataclass(frozen=True)
class DevicePrice:
    """USD of one device for an hour, and where it is from."""

    usd_per_hour: Range
    source: str


@dataclass(frozen=True, repr=False)
class TrainingPlan(Brief):
    """One run. mfu: of the clean steps, over the dense peak of `peak_number`; gpu_hours with the overhead in it.
    mfu_factor: what idle pipeline stages leave of the curve's. global_batch_tokens: as many as the layout holds.

    usd is None where no price is known. energy_usd is no part of usd: rent includes power. bytes: on the fullest one.
    """

    model: str
    parameters: int
    active_parameters: int
    tokens: float
    sequence_tokens: int
    global_batch_tokens: int
    device: Device
    devices: int
    precision: Precision
    execution: Execution
    optimizer: Optimizer
    flops_per_token: float
    flops: float
    peak_flops_per_second: float
    mfu: Range
    mfu_source: str
    mfu_factor: float
    overhead: float
    gpu_hours: Range
    days: Range
    price: DevicePrice | None
    usd: Range | None
    kwh: Range
    energy_usd: Range
    layout: DeviceLayout
    bytes: DeviceBytes
    bubble_share: float
    communication_share: float
    suggestions: tuple[str, ...]

    @property
    def tokens_per_second_per_device(self) -> float:
        """Throughput of the clean steps at the central MFU."""
        return tokens_per_second(self.peak_flops_per_second, self.mfu.central, self.flops_per_token)

    @property
    def bytes_per_device(self) -> float:
        return self.bytes.total

    def as_json(self) -> dict[str, Any]:
        """Central figures by name, each range beside it as `…_range` (low, high)."""
        extras = {
            "device": self.device.name,
            "tokens_per_second_per_device": self.tokens_per_second_per_device,
            "memory_bytes": self.device.memory_bytes,
            "usd_per_hour": None if self.price is None else self.price.usd_per_hour.central,
        }
        return plan_values(self, TRAINING_FORMULAS) | extras


def plan_values(plan: Any, formulas: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """A plan of training or of tuning for --json: those figures that have a range by their centre, the range beside."""
    values: dict[str, Any] = {
        "layout": {**asdict(plan.layout), "text": describe(plan.layout)},
        "bytes_per_device": plan.bytes.total,
        "bytes": asdict(plan.bytes),
        "price_source": None if plan.price is None else plan.price.source,
        "formulas": formula_values(formulas),
    }
    for name in (field.name for field in fields(plan)):
        value = getattr(plan, name)
        if name in ("mfu", "gpu_hours", "days", "seconds", "usd", "kwh", "energy_usd"):
            values[name] = None if value is None else value.central
            values[f"{name}_range"] = None if value is None else [value.low, value.high]
        elif name not in ("layout", "bytes", "price", "device"):
            values[name] = list(value) if isinstance(value, tuple) else value
    return values


def plan_training(
    model: str | Spec,
    tokens: float,
    device: Device,
    devices: int,
    *,
    sequence_tokens: int | None = None,
    global_batch_tokens: float | None = None,
    precision: Precision = "bf16",
    execution: Execution = "tuned",
    optimizer: Optimizer = "adamw",
    mfu_share: float | None = None,
    overhead: float = DEFAULT_OVERHEAD,
    usd_per_hour: float | None = None,
    usd_per_kwh: float = DEFAULT_USD_PER_KWH,
    pue: float = DEFAULT_PUE,
    margin: float = MARGIN,
) -> TrainingPlan:
    """The plan of training `model` (a preset, a path, or a spec) on `tokens` tokens.

    sequence_tokens: None: 8,192, or the model's context where it is shorter. global_batch_tokens: of one optimizer
    step; None: DeepSeek LLM's fit. mfu_share: measured or wanted, in place of the curve; of fp8 runs over the bf16
    peak. usd_per_hour: of one device; None: the example of the device's row. margin: share of a device's memory that
    layouts leave free. Raises UsageError for numbers that cannot be, and DoesNotFit where no layout fits.
    """
    name, spec = resolve(model) if isinstance(model, str) else ("the model", model)
    positive(tokens=tokens)
    whole(devices=devices)
    at_least(0, usd_per_kwh=usd_per_kwh, margin=margin)
    share(memory_left_by_margin=1 - margin)
    at_least(1, overhead=overhead, pue=pue)
    for label, value, table in (("execution", execution, EXECUTION), ("optimizer", optimizer, OPTIMIZERS)):
        if value not in table:
            raise UsageError(f"there is no {label} {value!r}; there are {', '.join(table)}")
    sequence = _sequence_tokens(spec, sequence_tokens)
    flops_per_token = training_flops_per_token(spec, sequence)
    flops = flops_per_token * tokens
    reached, peak = mfu_of(device, devices, precision, execution, mfu_share), peak_of(device, precision)
    price = price_of(device, usd_per_hour)
    hourly = Range.exactly(0.0) if price is None else price.usd_per_hour
    sequences = _sequences(global_batch_tokens, flops, sequence)
    job = TrainingJob(spec, device, devices, sequence, sequences, precision, optimizer, margin=margin)
    if global_batch_tokens is None and not usable(job):  # the default must not leave devices without a sequence
        job = replace(job, sequences=1 << (devices - 1).bit_length())
    fitted = find_layout(job, name)
    bubble = fitted.step.bubble / fitted.step.total
    factor = 1.0 if mfu_share is not None else min(1.0, (1 - bubble) / (1 - USUAL_BUBBLE))
    reached = reached.scaled(factor)
    figures = run_figures(flops, peak, device.watts * pue, devices, reached, overhead, hourly, usd_per_kwh)
    usd = figures.pop("usd")
    count = parameters(spec)
    return TrainingPlan(
        model=name,
        parameters=count.total,
        active_parameters=count.active,
        tokens=tokens,
        sequence_tokens=sequence,
        global_batch_tokens=fitted.layout.sequences * sequence,
        device=device,
        devices=devices,
        precision=precision,
        execution=execution,
        optimizer=optimizer,
        flops_per_token=flops_per_token,
        flops=flops,
        peak_flops_per_second=peak,
        mfu=reached,
        mfu_source=CURVES[device.mfu].source if mfu_share is None else "given",
        mfu_factor=factor,
        overhead=overhead,
        price=price,
        usd=None if price is None else usd,
        **figures,
        layout=fitted.layout,
        bytes=fitted.bytes,
        bubble_share=bubble,
        communication_share=fitted.step.communication / fitted.step.total,
        suggestions=tuple(_suggestions(job, fitted, count.total, tokens, flops)),
    )


def tokens_for_flops(model: str | Spec, flops: float, sequence_tokens: int | None = None) -> float:
    """Tokens that so many training operations are enough for. UsageError for numbers that cannot be."""
    positive(flops=flops)
    spec = resolve(model)[1] if isinstance(model, str) else model
    return flops / training_flops_per_token(spec, _sequence_tokens(spec, sequence_tokens))


def mfu_of(device: Device, devices: int, precision: Precision, execution: Execution, mfu_share: float | None) -> Range:
    """The device's curve, or the share that is given, without a range."""
    if mfu_share is None:
        return mfu(device.mfu, devices, precision, execution)
    share(mfu=mfu_share)
    return Range.exactly(mfu_share)


def device_hours(flops: float, peak_flops_per_second: float, reached: Range, overhead: float = 1.0) -> Range:
    """Hours of one device for so many operations; few are those of a high MFU."""
    at_full = flops * overhead / peak_flops_per_second / 3600.0
    return Range(at_full / reached.high, at_full / reached.central, at_full / reached.low)


def run_figures(
    flops: float,
    peak_flops_per_second: float,
    watts: float,
    devices: float,
    reached: Range,
    overhead: float,
    usd_per_hour: Range,
    usd_per_kwh: float,
) -> dict[str, Range]:
    """What a run takes; few dollars are those of few hours and a low price. watts: of one device, with the data
    centre's own share."""
    hours = device_hours(flops, peak_flops_per_second, reached, overhead)
    kwh = hours.scaled(watts / 1000)
    return {
        "gpu_hours": hours,
        "days": hours.scaled(1 / devices / 24),
        "usd": hours.times(usd_per_hour),
        "kwh": kwh,
        "energy_usd": kwh.scaled(usd_per_kwh),
    }


def tokens_per_second(peak_flops_per_second: float, share: float, flops_per_token: float) -> float:
    """Throughput of one device in clean steps."""
    return peak_flops_per_second * share / flops_per_token


def batch_doublings(flops: float, sequence_tokens: int) -> int:
    """How often one sequence is doubled for the tokens of an optimizer step by DeepSeek LLM's fit (2401.02954, equation
    4), rounded down: a power of two divides over replicas."""
    tokens = BATCH_SCALE * flops**BATCH_EXPONENT
    return math.floor(math.log2(max(1.0, tokens / sequence_tokens + 0.5)))


def price_of(device: Device, usd_per_hour: float | None) -> DevicePrice | None:
    """The price that is given, or the dated example of the row; None where there is neither."""
    if usd_per_hour is not None:
        positive(usd_per_hour=usd_per_hour)
        return DevicePrice(Range.exactly(usd_per_hour), "given")
    rental = device.rental
    if rental is None:
        return None
    source = f"an EXAMPLE, not a quotation: {rental.source}, {rental.as_of}; give --usd-per-hour"
    return DevicePrice(Range(rental.usd_per_hour_low, rental.usd_per_hour, rental.usd_per_hour_high), source)


def _sequence_tokens(spec: Spec, sequence_tokens: int | None) -> int:
    context = min(stack.context_length for stack in stacks_of(spec))
    if sequence_tokens is None:
        return min(DEFAULT_SEQUENCE_TOKENS, context)
    whole(sequence_tokens=sequence_tokens)
    if sequence_tokens > context:
        raise UsageError(f"sequences of {sequence_tokens:,} tokens are longer than the model's context of {context:,}")
    return sequence_tokens


def _sequences(stated_tokens: float | None, flops: float, sequence_tokens: int) -> int:
    """Sequences of a step."""
    if stated_tokens is None:
        return 1 << batch_doublings(flops, sequence_tokens)
    positive(global_batch_tokens=stated_tokens)
    if stated_tokens < sequence_tokens:
        raise UsageError(
            f"global_batch_tokens is {stated_tokens:g}: it must hold one sequence of {sequence_tokens:,} tokens"
        )
    return max(1, round(stated_tokens / sequence_tokens))


def _suggestions(job: TrainingJob, fitted: Fitted, total: int, tokens: float, flops: float) -> Iterator[str]:
    step, device = fitted.step, job.device
    if isinstance(job.spec, TransformerSpec) and job.spec.kind == "decoder" and job.spec.experts is None:
        best = compute_optimal(flops)  # dense decoders are what the scaling laws were fitted on
        ratio, optimal = tokens / total, best.tokens / best.parameters
        if ratio < optimal / 1.5:
            yield (
                f"{ratio:.1f} tokens a parameter: the same operations reach a lower loss with about "
                f"{best.parameters:.2g} parameters on {best.tokens:.2g} tokens ({best.fit.source})"
            )
        elif ratio > optimal * 1.5:
            yield (
                f"{ratio:.0f} tokens a parameter, against {optimal:.0f} of the least training compute: it pays where "
                "the model is used much (2401.00448)"
            )
    if (held := fitted.layout.sequences) != job.sequences:
        yield (
            f"the layout takes {held:,} sequences a step, full micro-batches of its {fitted.layout.data:,} replicas, "
            f"for the {job.sequences:,} of the batch"
        )
    if step.bubble > USUAL_BUBBLE * step.total:
        yield (
            f"pipeline stages idle for {step.bubble / step.total:.0%} of a step, and the MFU is lower by what of that "
            f"is over {USUAL_BUBBLE:.0%}: a larger global batch or fewer devices shorten it"
        )
    if step.communication > 0.15 * step.total:
        yield "communication is waited for over 15% of a step: fewer devices or a larger batch shorten it"
    if job.precision == "bf16" and "fp8" in device.peak_flops_per_second and device.mfu in {"h100", "blackwell"}:
        yield "fp8 products take about 1.28 times fewer hours, where their loss is as good (--precision fp8)"
    if "assumed" in CURVES[device.mfu].source:
        yield f"the MFU of {device.name} is assumed: measure some steps and give --mfu"


# --- what a sum of money trains

_DEMANDS = (1e11, 1e12, 1e13)  # tokens of use over a model's life that are shown where none are given

BUDGET_FORMULAS = formulas_of("budget")


@dataclass(frozen=True, repr=False)
class BudgetPlan(Brief):
    """flops: of training, that the money buys. optimal: the least loss for them. in_use: by tokens of use, the size and
    tokens that reach `optimal`'s loss with the least training and use together."""

    usd: float
    device: Device
    devices: int
    price: DevicePrice
    flops: Range
    optimal: Optimum
    in_use: dict[float, Optimum]

    def as_json(self) -> dict[str, Any]:
        """One object; sizes in parameters, losses in nats a token."""
        in_use = [{"inference_tokens": demand, **_optimum(optimum)} for demand, optimum in self.in_use.items()]
        return {
            "budget_usd": self.usd,
            "device": self.device.name,
            "devices": self.devices,
            "usd_per_hour": self.price.usd_per_hour.central,
            "price_source": self.price.source,
            "flops": self.flops.central,
            "flops_range": [self.flops.low, self.flops.high],
            "compute_optimal": _optimum(self.optimal),
            "inference_aware": in_use,
            "formulas": formula_values(BUDGET_FORMULAS),
        }


def _optimum(optimum: Optimum) -> dict[str, Any]:
    values = {**vars(optimum), "tokens_per_parameter": optimum.tokens / optimum.parameters}
    return values | {"fit": optimum.fit.source, "warnings": list(optimum.warnings)}


def plan_budget(
    usd: float,
    device: Device,
    devices: int,
    *,
    inference_tokens: float | None = None,
    precision: Precision = "bf16",
    execution: Execution = "tuned",
    mfu_share: float | None = None,
    overhead: float = DEFAULT_OVERHEAD,
    usd_per_hour: float | None = None,
    fit: ScalingFit = EPOCH,
) -> BudgetPlan:
    """What `usd` train on `devices` devices. UsageError for numbers that cannot be, and where no price is known."""
    positive(usd=usd)
    whole(devices=devices)
    at_least(1, overhead=overhead)
    price = price_of(device, usd_per_hour)
    if price is None:
        raise UsageError(f"there is no example price of {device.name}; give --usd-per-hour")
    reached, peak = mfu_of(device, devices, precision, execution, mfu_share), peak_of(device, precision)
    hourly = price.usd_per_hour
    cases = (hourly.high, reached.low), (hourly.central, reached.central), (hourly.low, reached.high)
    flops = Range(*(usd / hour * 3600 * peak * share / overhead for hour, share in cases))
    optimal = compute_optimal(flops.central, fit)
    demands = _DEMANDS if inference_tokens is None else (inference_tokens,)
    in_use = {demand: inference_aware(optimal.loss, demand, fit) for demand in demands}
    return BudgetPlan(usd, device, devices, price, flops, optimal, in_use)
