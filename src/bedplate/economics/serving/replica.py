"""One replica as a user names it: a measured machine, or devices of the table; how long its steps take, what it holds,
and whether it fits.

Steps take what was measured of them, or by the roofline (Williams et al. 2009) the slower of products and reads:

    seconds = overhead + max(operations / (peak · share), bytes / (bandwidth · share)) + communication

A data sheet says nothing of the shares that an engine reaches, so they are a range: `REACHED`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from bedplate.core.arguments import need_fields
from bedplate.core.errors import UsageError
from bedplate.economics.hardware.devices import Device
from bedplate.economics.hardware.machine import (
    EngineSpeed,
    Load,
    MeasuredMachine,
    StepShape,
    read_machine,
    served_seconds,
    step_seconds,
)
from bedplate.economics.model import footprint
from bedplate.economics.model.named_model import resolve
from bedplate.economics.model.parameters import parameters
from bedplate.economics.numbers.formula import at_least, whole
from bedplate.economics.serving.simulation import ServiceModel, StepModel, Traffic
from bedplate.economics.training.training_cost import price_of
from bedplate.models.specs import Spec, TransformerSpec

ALLREDUCE_SECONDS = 10e-6  # latency of one small all-reduce between the devices of a node, whatever its size
MARGIN = 0.1  # share of a device's memory that is left to buffers, fragmentation and the runtime
_FORMATS: tuple[footprint.WeightFormat, ...] = ("bfloat16", "fp8", "int8", "int4")


@dataclass(frozen=True)
class Reached:
    """How much of a data sheet an engine reaches: shares of peak and bandwidth, and seconds of a step beside both."""

    compute: float
    bandwidth: float
    overhead_seconds: float


CENTRAL = Reached(0.55, 0.75, 1.5e-3)
REACHED: dict[str, Reached] = {
    "low": Reached(0.40, 0.60, 3e-3),
    "central": CENTRAL,
    "high": Reached(0.70, 0.88, 0.7e-3),
}
"""Between what serving engines report of themselves on A100 and H100: prefill at 0.4 to 0.7 of the dense peak, decode
at 0.6 to 0.9 of the bandwidth (Pope et al. 2211.05102, table 2: 0.76 and 0.43 of peak at large batches; Databricks,
"LLM inference performance engineering", 2023: model bandwidth utilisation 0.5 to 0.6)."""


# --- how long a step takes


@dataclass(frozen=True)
class MeasuredSteps:
    """An engine that was measured, or with `shape` another model on the same kernel: an extrapolation. served: within
    its server, where that was measured."""

    speed: EngineSpeed
    shape: StepShape | None = None
    served: bool = True

    def seconds(self, load: Load) -> float:
        alone, server = step_seconds(self.speed, load, self.shape), self.speed.server
        return served_seconds(server, load, alone) if self.served and server else alone

    @property
    def basis(self) -> str:
        speed = self.speed
        description = f"measured {speed.measured_at}: {speed.base}, {speed.weights}, {speed.kernel} kernel"
        return description if self.shape is None else f"extrapolated by size from what was {description}"


@dataclass(frozen=True)
class RooflineSteps:
    """A decoder on `devices` devices that share each product (tensor parallel)."""

    spec: TransformerSpec
    device: Device
    devices: int = 1
    weights: footprint.WeightFormat = "bfloat16"
    reached: Reached = CENTRAL
    adapter_bytes: float = 0.0

    def seconds(self, load: Load) -> float:
        """Seconds of one step; with two all-reduces a layer, for which each device sends 2·(n−1)/n of a layer's states
        (2104.04473, section 2.3)."""
        if self.devices == 1:
            return self.products(load)
        sent = 2 * (self.devices - 1) / self.devices * load.tokens * self.spec.hidden_size * 2.0
        reduced = ALLREDUCE_SECONDS + sent / self.device.link_bytes_per_second
        return self.products(load) + 2 * self.spec.layers * reduced

    def products(self, load: Load) -> float:
        """Seconds of the products and reads, and the step's overhead."""
        if load.tokens < 1:
            return 0.0
        blocks, head, pair, key = self._counts
        operations = 2.0 * (blocks * load.tokens + head * load.rows) + pair * (load.pairs or load.keys)
        read = self._weight_bytes(load.tokens) + self.adapter_bytes * load.adapters
        context = max(1, round(load.keys / max(load.rows, 1)))
        if load.keys and any(self.spec.attention.windows):  # layers with a window read no more than it
            key = footprint.kv_bytes(self.spec, context) / context
        read += load.keys * key
        reached, peaks = self.reached, self.device.peak_flops_per_second
        # Products are made in 8 bits where weights and device have them, else in 16.
        formats = ("fp8", "int8") if self.weights in {"fp8", "int8"} else ()
        peak = next(peaks[name] for name in (*formats, "bf16", "fp16", "fp32") if name in peaks)
        compute = operations / (peak * self.devices * reached.compute)
        memory = read / (self.device.memory_bytes_per_second * self.devices * reached.bandwidth)
        return reached.overhead_seconds + max(compute, memory)

    @cached_property
    def _counts(self) -> tuple[int, int, int, float]:
        """Weights of blocks and head in products, operations of a pair, bytes of a key, over all layers."""
        counts = parameters(self.spec)
        pair = sum(footprint.pair_flops(self.spec, layer) for layer in range(self.spec.layers))
        return counts.products - counts.head, counts.head, pair, footprint.kv_bytes_per_token(self.spec)

    @cached_property
    def _weight_bytes(self) -> Callable[[int], float]:
        return footprint.step_reads(self.spec, self.weights)

    @property
    def basis(self) -> str:
        shares = f"{self.reached.compute:.0%} of peak, {self.reached.bandwidth:.0%} of bandwidth"
        return f"data sheet of {self.device.title}, {shares}"


def shape_of(spec: TransformerSpec) -> StepShape:
    """The sizes of a decoder that decide a step's time."""
    counts = parameters(spec)
    return StepShape(
        blocks=counts.products - counts.head,
        head=counts.head,
        key_features=round(footprint.kv_bytes_per_token(spec, 1.0)),
        query_features=spec.attention.heads * sum(map(spec.head_dim_of, range(spec.layers))),
    )


# --- replicas


@dataclass(frozen=True)
class ReplicaEngine:
    """How an engine is run. fitted: with fewer rows than max_rows where those do not fit. adapter_rank: of each skin's
    LoRA, 0 where skins have none. drafted, accepted: tokens guessed after each token, and the share of them that is
    right."""

    max_rows: int = 16
    fitted: bool = field(default=False, kw_only=True)
    max_step_tokens: int = 512
    adapter_rank: int = 0
    drafted: int = 0
    accepted: float = 0.0

    def __post_init__(self) -> None:
        need_fields(self)
        whole(max_rows=self.max_rows, max_step_tokens=self.max_step_tokens)
        at_least(0, adapter_rank=self.adapter_rank, drafted=self.drafted)

    def with_rows(self, rows: int | None) -> ReplicaEngine:
        """With exactly so many rows; None: as it is."""
        return self if rows is None else replace(self, max_rows=rows, fitted=False)

    def service(self, steps: StepModel, call_seconds: float) -> ServiceModel:
        """The engine behind its queue, as it is simulated."""
        sizes = (self.max_rows, self.max_step_tokens, call_seconds, self.drafted, self.accepted)
        return ServiceModel(steps, *sizes, adapters=self.adapter_rank > 0)


LOCAL_ENGINE = ReplicaEngine(fitted=True)
ON_DEVICES = ReplicaEngine(max_rows=128, max_step_tokens=4096, fitted=True)
"""How an engine is run on this machine, and on devices of the table, where nothing else is said."""


def decoder_of(spec: Spec, name: str) -> TransformerSpec:
    """The stack that generates. UsageError for a model without one."""
    if isinstance(spec, TransformerSpec) and spec.kind == "decoder":
        return spec
    raise UsageError(f"{name} is not a decoder; `plan serve` is for models that generate text")


@dataclass(frozen=True)
class Replica:
    """A service that can be planned: how fast, at what price, and what of its memory is taken.

    basis: where the speeds are from. usd_per_hour: None where no price is known; memory: bytes by what they hold.
    """

    service: ServiceModel
    basis: str
    usd_per_hour: float | None
    price_source: str
    memory: Mapping[str, float]


def replicas_of(
    model: str,
    traffic: Traffic,
    on: Device | None = None,
    devices: int = 1,
    *,
    weights: footprint.WeightFormat | None = None,
    engine: ReplicaEngine | None = None,
    usd_per_hour: float | None = None,
    like: str | None = None,
    machine: Path | None = None,
) -> dict[str, Replica]:
    """ "central", and on devices of the table "low" and "high". Arguments as of `plan.serve`. UsageError for what does
    not go together, and where it does not fit."""
    if on is not None:
        if like is not None or machine is not None:
            raise UsageError("measurements (like, machine) are of this machine; leave the device out")
        run = engine or ON_DEVICES
        return on_devices(model, on, devices, weights or "bfloat16", traffic, run, usd_per_hour=usd_per_hour)
    if devices != 1:
        raise UsageError("several devices make a replica of devices of the table; name the device, such as h100")
    measured, run = read_machine(machine), engine or LOCAL_ENGINE
    return {"central": measured_replica(measured, model, weights, traffic, run, like=like, usd_per_hour=usd_per_hour)}


def measured_replica(
    machine: MeasuredMachine,
    model: str,
    weights: str | None,
    traffic: Traffic,
    engine: ReplicaEngine,
    *,
    like: str | None = None,
    usd_per_hour: float | None = None,
) -> Replica:
    """A replica on a measured machine. A base that was not measured is extrapolated by its size from the measured base
    `like`, if its architecture is known. UsageError where neither is there, and where it does not fit."""
    speed, rank = machine.engine(like or model, weights), engine.adapter_rank
    spec = None if like is None else decoder_of(resolve(model)[1], model)
    if rank and not speed.adapter_rank:
        raise UsageError(f"{speed.base} was measured without adapters; measure it again: bedplate plan calibrate")
    if rank:  # adapters of another rank than was measured read and multiply in proportion
        share = rank / speed.adapter_rank
        changed = {name: getattr(speed, name) * share for name in ("adapter_seconds", "adapter_token_seconds")}
        speed = speed.model_copy(update=changed)
    steps = MeasuredSteps(speed, None if spec is None else shape_of(spec))
    memory: Mapping[str, float] = {}
    basis = steps.basis
    if spec is not None and speed.weights in footprint.BYTES_PER_PARAMETER:
        engine, note = _fitted(spec, speed.weights, traffic, engine, machine.memory_bytes)
        basis += note
        memory = check_fits(spec, speed.weights, traffic, engine, machine.memory_bytes, "this machine")
    service = engine.service(steps, speed.server.call_seconds if speed.server else 0.0)
    return Replica(service, basis, usd_per_hour, "given" if usd_per_hour else "none given", memory)


def on_devices(
    model: str,
    device: Device,
    devices: int,
    weights: footprint.WeightFormat,
    traffic: Traffic,
    engine: ReplicaEngine,
    *,
    usd_per_hour: float | None = None,
) -> dict[str, Replica]:
    """A replica on devices of the table by the roofline: what is expected ("central"), and the best and the worst of
    what engines reach ("high", "low"). UsageError where it does not fit. `usd_per_hour`: of one device."""
    whole(devices=devices)
    name, architecture = resolve(model)
    spec = decoder_of(architecture, name)
    engine, note = _fitted(spec, weights, traffic, engine, device.memory_bytes * devices)
    memory = check_fits(spec, weights, traffic, engine, device.memory_bytes, device.title, devices)
    price = price_of(device, usd_per_hour)
    usd = None if price is None else price.usd_per_hour.central * devices
    source = "no price known; give --usd-per-hour" if price is None else price.source
    adapter = 2.0 * footprint.lora_parameters(spec, engine.adapter_rank) if engine.adapter_rank else 0.0
    replicas: dict[str, Replica] = {}
    for case, reached in REACHED.items():
        steps = RooflineSteps(spec, device, devices, weights, reached, adapter)
        replicas[case] = Replica(engine.service(steps, 0.0), steps.basis + note, usd, source, memory)
    return replicas


def held_bytes(
    spec: TransformerSpec, weights: footprint.WeightFormat, traffic: Traffic, engine: ReplicaEngine
) -> dict[str, float]:
    """Bytes that a replica holds: weights, the keys and values of running sequences of mean length, skins' prompts,
    adapters."""
    context = math.ceil(traffic.tokens_per_call)
    return {
        "weights": footprint.weight_bytes(spec, weights),
        "sequences": engine.max_rows * footprint.kv_bytes(spec, context),
        "skin_prompts": traffic.skins * footprint.kv_bytes(spec, traffic.skin_tokens),
        "adapters": 2.0 * footprint.lora_parameters(spec, engine.adapter_rank) * traffic.skins
        if engine.adapter_rank
        else 0.0,
    }


def _rows_that_fit(sizes: Mapping[str, float], engine: ReplicaEngine, room: float) -> int:
    """How many sequences `room` bytes hold at once, beside what else a replica of these sizes holds."""
    free = room - sum(sizes.values()) + sizes["sequences"]
    return int(free / sizes["sequences"] * engine.max_rows) if sizes["sequences"] else engine.max_rows


def _fitted(
    spec: TransformerSpec, weights: footprint.WeightFormat, traffic: Traffic, engine: ReplicaEngine, memory_bytes: float
) -> tuple[ReplicaEngine, str]:
    """The engine with as many rows as fit, where it may have fewer than it has, and what is said of that."""
    rows = _rows_that_fit(held_bytes(spec, weights, traffic, engine), engine, memory_bytes * (1 - MARGIN))
    if not engine.fitted or not 1 <= rows < engine.max_rows:
        return engine, ""
    return replace(engine, max_rows=rows), f"; {rows} rows at once, as many as fit (of {engine.max_rows})"


def check_fits(
    spec: TransformerSpec,
    weights: footprint.WeightFormat,
    traffic: Traffic,
    engine: ReplicaEngine,
    memory_bytes: float,
    machine_name: str,
    devices: int = 1,
) -> Mapping[str, float]:
    """What a replica holds. UsageError where it does not fit: by how much, and what would."""
    longest = traffic.skin_tokens + traffic.prompt.high + traffic.output.high
    if longest > spec.context_length:
        raise UsageError(
            f"a call of up to {longest:,} tokens is longer than the model's context of {spec.context_length:,}; "
            "shorten prompts or answers"
        )
    sizes = held_bytes(spec, weights, traffic, engine)
    room, total = memory_bytes * devices * (1 - MARGIN), sum(sizes.values())
    if total <= room:
        return sizes
    needed = math.ceil(total / (memory_bytes * (1 - MARGIN)))
    would = [f"{1 << (needed - 1).bit_length():,} devices"]  # products are shared evenly among powers of two
    smaller = (form for form in _FORMATS if sum(held_bytes(spec, form, traffic, engine).values()) <= room)
    would += [f"{form} weights" for form in list(smaller)[:1]]
    rows = _rows_that_fit(sizes, engine, room)
    if rows >= 1:
        would.append(f"{rows} rows at once")
    parts = ", ".join(f"{name.replace('_', ' ')} {size / 1e9:,.1f} GB" for name, size in sizes.items() if size)
    raise UsageError(
        f"it does not fit: {parts} are {total / 1e9:,.1f} GB, {(total - room) / 1e9:,.1f} GB more than the "
        f"{room / 1e9:,.1f} GB of {machine_name} ({MARGIN:.0%} kept free); it would fit with {', or '.join(would)}"
    )
