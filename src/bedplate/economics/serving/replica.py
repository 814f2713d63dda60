"""One replica as a user names it: a measured machine, or devices of the table; what it holds, and whether it fits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bedplate.core.arguments import need_fields
from bedplate.core.errors import UsageError
from bedplate.economics.hardware.device import Device
from bedplate.economics.hardware.machine import EngineSpeed, MeasuredMachine, read_machine
from bedplate.economics.model.adapter_size import lora_parameters
from bedplate.economics.model.footprint import BYTES_PER_PARAMETER, WeightFormat, kv_bytes, weight_bytes
from bedplate.economics.model.named_model import resolve
from bedplate.economics.numbers.bounds import at_least, whole
from bedplate.economics.serving.simulation import ServiceModel, StepModel
from bedplate.economics.serving.step_times import REACHED, MeasuredSteps, RooflineSteps, shape_of
from bedplate.economics.serving.traffic_model import Traffic
from bedplate.economics.training.training_cost import price_of
from bedplate.models.specs import Spec, TransformerSpec

MARGIN = 0.1
"""Share of a device's memory that is left to buffers, fragmentation and the runtime."""
_FORMATS: tuple[WeightFormat, ...] = ("bfloat16", "fp8", "int8", "int4")


@dataclass(frozen=True)
class ReplicaEngine:
    """How an engine is run. adapter_rank: of each skin's LoRA, 0 where skins have none. drafted, accepted: tokens
    guessed after each token, and the share of them that is right."""

    max_rows: int = 16
    max_step_tokens: int = 512
    adapter_rank: int = 0
    drafted: int = 0
    accepted: float = 0.0

    def __post_init__(self) -> None:
        need_fields(self)
        whole(max_rows=self.max_rows, max_step_tokens=self.max_step_tokens)
        at_least(0, adapter_rank=self.adapter_rank, drafted=self.drafted)

    def service(self, steps: StepModel, call_seconds: float) -> ServiceModel:
        """The engine behind its queue, as it is simulated."""
        return ServiceModel(
            steps,
            max_rows=self.max_rows,
            max_step_tokens=self.max_step_tokens,
            call_seconds=call_seconds,
            drafted=self.drafted,
            accepted=self.accepted,
            adapters=self.adapter_rank > 0,
        )


LOCAL_ENGINE = ReplicaEngine()
ON_DEVICES = ReplicaEngine(max_rows=128, max_step_tokens=4096)
"""How an engine is run on this machine, and on devices of the table, where nothing else is said."""


def engine_on(
    device: Device | None,
    *,
    max_rows: int | None = None,
    max_step_tokens: int | None = None,
    adapter_rank: int = 0,
    drafted: int = 0,
    accepted: float = 0.0,
) -> ReplicaEngine:
    """The engine of a device of the table, or of this machine (None), with what is said about it."""
    usual = LOCAL_ENGINE if device is None else ON_DEVICES
    return ReplicaEngine(
        usual.max_rows if max_rows is None else max_rows,
        usual.max_step_tokens if max_step_tokens is None else max_step_tokens,
        adapter_rank,
        drafted,
        accepted,
    )


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
    weights: WeightFormat | None = None,
    engine: ReplicaEngine | None = None,
    usd_per_hour: float | None = None,
    like: str | None = None,
    machine: Path | None = None,
) -> dict[str, Replica]:
    """ "central", and on devices of the table "low" and "high". Arguments as of `plan.serve`. UsageError for what does
    not go together, and where it does not fit."""
    run = engine or engine_on(on)
    if on is not None:
        if like is not None or machine is not None:
            raise UsageError("measurements (like, machine) are of this machine; leave the device out")
        return on_devices(model, on, devices, weights or "bfloat16", traffic, run, usd_per_hour=usd_per_hour)
    if devices != 1:
        raise UsageError("several devices make a replica of devices of the table; name the device, such as h100")
    replica = measured_replica(
        read_machine(machine), model, weights, traffic, run, like=like, usd_per_hour=usd_per_hour
    )
    return {"central": replica}


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
    """A replica on a measured machine.

    A base that was not measured is extrapolated by its size from the measured base `like`, if its architecture is
    known. UsageError where neither is there, and where it does not fit the machine's memory.
    """
    speed = machine.engine(like or model, weights)
    spec = None if like is None else decoder_of(resolve(model)[1], model)
    if engine.adapter_rank and not speed.adapter_rank:
        raise UsageError(f"{speed.base} was measured without adapters; measure it again: bedplate plan calibrate")
    steps = MeasuredSteps(_for_rank(speed, engine.adapter_rank), None if spec is None else shape_of(spec))
    memory: Mapping[str, float] = {}
    if spec is not None and speed.weights in BYTES_PER_PARAMETER:
        memory = check_fits(spec, speed.weights, traffic, engine, machine.memory_bytes, "this machine")
    service = engine.service(steps, speed.server.call_seconds if speed.server else 0.0)
    return Replica(service, steps.basis, usd_per_hour, "given" if usd_per_hour else "none given", memory)


def _for_rank(speed: EngineSpeed, rank: int) -> EngineSpeed:
    """Adapters of another rank than was measured read and multiply in proportion."""
    if not rank or not speed.adapter_rank or rank == speed.adapter_rank:
        return speed
    share = rank / speed.adapter_rank
    changed = {name: getattr(speed, name) * share for name in ("adapter_seconds", "adapter_token_seconds")}
    return speed.model_copy(update=changed)


def on_devices(
    model: str,
    device: Device,
    devices: int,
    weights: WeightFormat,
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
    memory = check_fits(spec, weights, traffic, engine, device.memory_bytes, device.title, devices)
    price = price_of(device, usd_per_hour)
    adapter = 2.0 * lora_parameters(spec, engine.adapter_rank) if engine.adapter_rank else 0.0
    replicas: dict[str, Replica] = {}
    for case, reached in REACHED.items():
        steps = RooflineSteps(spec, device, devices, weights, reached=reached, adapter_bytes=adapter)
        replicas[case] = Replica(
            engine.service(steps, 0.0),
            steps.basis,
            None if price is None else price.usd_per_hour.central * devices,
            "no price known; give --usd-per-hour" if price is None else price.source,
            memory,
        )
    return replicas


def held_bytes(
    spec: TransformerSpec, weights: WeightFormat, traffic: Traffic, engine: ReplicaEngine
) -> dict[str, float]:
    """Bytes that a replica holds: weights, the keys and values of running sequences of mean length, skins' prompts,
    adapters."""
    context = math.ceil(traffic.skin_tokens + traffic.prompt.mean + traffic.output.mean)
    adapters = 2.0 * lora_parameters(spec, engine.adapter_rank) * traffic.skins if engine.adapter_rank else 0.0
    return {
        "weights": weight_bytes(spec, weights),
        "sequences": engine.max_rows * kv_bytes(spec, context),
        "skin_prompts": traffic.skins * kv_bytes(spec, traffic.skin_tokens),
        "adapters": adapters,
    }


def check_fits(
    spec: TransformerSpec,
    weights: WeightFormat,
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
    room = memory_bytes * devices * (1 - MARGIN)
    total = sum(sizes.values())
    if total <= room:
        return sizes
    needed = math.ceil(total / (memory_bytes * (1 - MARGIN)))
    would = [f"{1 << (needed - 1).bit_length():,} devices"]  # products are shared evenly among powers of two
    for form in _FORMATS:
        if form != weights and sum(held_bytes(spec, form, traffic, engine).values()) <= room:
            would.append(f"{form} weights")
            break
    rows = int((room - total + sizes["sequences"]) / sizes["sequences"] * engine.max_rows)
    if rows >= 1:
        would.append(f"{rows} rows at once")
    parts = ", ".join(f"{name.replace('_', ' ')} {size / 1e9:,.1f} GB" for name, size in sizes.items() if size)
    raise UsageError(
        f"it does not fit: {parts} are {total / 1e9:,.1f} GB, {(total - room) / 1e9:,.1f} GB more than the "
        f"{room / 1e9:,.1f} GB of {machine_name} ({MARGIN:.0%} kept free); it would fit with {', or '.join(would)}"
    )
