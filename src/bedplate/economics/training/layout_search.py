"""The cheapest layout that fits, found by trying them all; and where none fits, by how much, and what would."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from bedplate.core.errors import UsageError
from bedplate.economics.hardware.devices import DEVICES, Device, Precision, peak_of
from bedplate.economics.model.footprint import Recompute
from bedplate.economics.model.parameters import OPTIMIZERS, Optimizer, optimizer_bytes, parameters
from bedplate.economics.training.device_layout import (
    BytesPerParameter,
    DeviceBytes,
    DeviceLayout,
    LayoutShape,
    StepTime,
    device_bytes,
    shape_of,
    step_time,
)
from bedplate.models.specs import Spec

MARGIN = 0.1  # share of a device's memory that is left for the runtime, the collectives' buffers and fragmentation

_RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
_MICRO_BATCHES = (1, 2, 4, 8, 16)
_LONG = 16_384  # tokens of a sequence from which on context parallelism is tried
_SHORT = 4096  # tokens of a sequence up to which keeping the matrices of attention weights is tried
_BUSY = 65_536  # tokens of one pass beyond which more of them are no quicker


@dataclass(frozen=True)
class TrainingJob:
    """What is trained on what. sequences: of one optimizer step."""

    spec: Spec
    device: Device
    devices: int
    sequence_tokens: int
    sequences: int
    precision: Precision = "bf16"
    optimizer: Optimizer = "adamw"
    method: Literal["full", "lora"] = "full"
    adapter_parameters: int = 0
    margin: float = MARGIN

    @property
    def value_bytes(self) -> float:
        return 4.0 if self.precision in {"fp32", "tf32"} else 2.0

    @property
    def usable_bytes(self) -> float:
        return self.device.memory_bytes * (1 - self.margin)

    @property
    def shape(self) -> LayoutShape:
        return shape_of(self.spec, self.sequence_tokens, self.value_bytes)

    @property
    def states(self) -> BytesPerParameter:
        master = 4.0 if self.value_bytes == 2.0 else 0.0
        moments = optimizer_bytes(self.spec, self.optimizer, master=False) / parameters(self.spec).total
        if self.method == "lora":  # adapters are matrices
            adapter_bytes = self.value_bytes + 4.0 + master + OPTIMIZERS[self.optimizer].matrices
            return BytesPerParameter(self.value_bytes, 0.0, 0.0, 0.0, adapter_bytes * self.adapter_parameters)
        return BytesPerParameter(self.value_bytes, 4.0, master, moments)


@dataclass(frozen=True)
class Fitted:
    """A layout with what it holds and takes."""

    layout: DeviceLayout
    bytes: DeviceBytes
    step: StepTime

    @property
    def order(self) -> tuple[float, float]:
        """What layouts are compared by: the step's time, then what they hold."""
        return self.step.total, self.bytes.total


class DoesNotFit(UsageError):
    """No layout fits. missing_bytes: over what one device can hold, in the layout that comes nearest. would_fit:
    changes that were tried and fit."""

    code = "does_not_fit"

    def __init__(self, message: str, nearest: Fitted, missing_bytes: float, would_fit: tuple[str, ...]) -> None:
        super().__init__(message)
        self.nearest = nearest
        self.missing_bytes = missing_bytes
        self.would_fit = would_fit


def find_layout(job: TrainingJob, name: str = "the model") -> Fitted:
    """The layout of the shortest step that fits. Raises DoesNotFit, or UsageError where devices would stay idle."""
    shape, states, peak = job.shape, job.states, peak_of(job.device, job.precision)
    batch, usable_bytes = job.sequences * job.sequence_tokens, job.usable_bytes
    best: Fitted | None = None
    nearest: Fitted | None = None

    def fitted(layout: DeviceLayout, memory: DeviceBytes) -> Fitted:
        return Fitted(layout, memory, step_time(shape, layout, job.device, peak, batch, job.sequence_tokens))

    for degrees in _degrees(job, shape):
        layout, memory = _smallest(job, shape, states, degrees)
        if nearest is None or memory.total < nearest.bytes.total:
            nearest = fitted(layout, memory)
        if memory.total > usable_bytes:
            continue
        fits = None
        for variant in _variants(job, shape, degrees):
            # A higher stage of ZeRO takes longer where a step has several micro-batches: not tried where a lower fits.
            choice = (variant.micro_batch, variant.interleave, variant.recompute)
            if choice == fits and variant.micro_batches > 1:
                continue
            memory = device_bytes(shape, variant, states, job.sequence_tokens)
            if memory.total <= usable_bytes:
                candidate, fits = fitted(variant, memory), choice
                if best is None or candidate.order < best.order:
                    best = candidate
    if best is not None:
        return best
    if nearest is None:
        raise UsageError(
            f"{job.devices:,} devices cannot be used for {name} with {job.sequences:,} sequences of "
            f"{job.sequence_tokens:,} tokens in a step; take fewer devices (a multiple of "
            f"{job.device.devices_per_node}), or a larger global batch"
        )
    missing, would = nearest.bytes.total - usable_bytes, tuple(_would_fit(job))
    remedy = f"it would fit with {', or '.join(would)}" if would else "no number of such devices that was tried fits"
    raise DoesNotFit(
        f"{name} does not fit {job.devices:,} × {job.device.name}: the smallest layout ({describe(nearest.layout)}) "
        f"needs {nearest.bytes.total / 1e9:,.1f} GB on a device, {missing / 1e9:,.1f} GB more than the "
        f"{usable_bytes / 1e9:,.1f} GB that {job.margin:.0%} of reserve leave; {remedy}",
        nearest,
        missing,
        would,
    )


def usable(job: TrainingJob) -> bool:
    """Whether any layout gives every device something to do."""
    return any(True for _ in _degrees(job, job.shape))


def _smallest(
    job: TrainingJob, shape: LayoutShape, states: BytesPerParameter, degrees: DeviceLayout
) -> tuple[DeviceLayout, DeviceBytes]:
    """Picks the layout of these degrees that holds least: one sequence at a time, and most of it sharded or made
    again. Gathered blocks and the block that is made again can outweigh what stage 3 and full recomputation save."""
    stages = (2, 3) if degrees.replicas > 1 else (0,)
    choices = itertools.product(stages, _RECOMPUTE[1:])
    tried = [replace(degrees, zero_stage=stage, recompute=recompute) for stage, recompute in choices]
    sized = [(layout, device_bytes(shape, layout, states, job.sequence_tokens)) for layout in tried]
    return min(sized, key=lambda pair: pair[1].total)


def _degrees(job: TrainingJob, shape: LayoutShape) -> Iterator[DeviceLayout]:
    """Every division of the devices, with one sequence at a time."""
    tensors = [
        n for n in _powers(min(job.devices, job.device.devices_per_node)) if not (shape.heads % n or shape.hidden % n)
    ]
    if job.device.link_bytes_per_second == 0:
        tensors = [1]
    stages = [n for n in _powers(min(job.devices, shape.layers)) if n == 1 or shape.divisible]
    contexts = _powers(job.sequence_tokens // 4096) if job.sequence_tokens >= _LONG else [1]
    for tensor, pipeline, context in itertools.product(tensors, stages, contexts):
        data, remainder = divmod(job.devices, tensor * pipeline * context)
        if remainder or data < 1 or data > job.sequences:
            continue
        replicas, count = data * context, math.ceil(job.sequences / data)
        for expert in _powers(min(replicas, shape.expert_count)):
            if not (shape.expert_count % expert or replicas % expert):
                yield DeviceLayout(
                    data, tensor, pipeline, context, expert, 1 if replicas > 1 else 0, "selective", 1, count, 1
                )


def _variants(job: TrainingJob, shape: LayoutShape, degrees: DeviceLayout) -> Iterator[DeviceLayout]:
    """What else is free once the devices are divided; ZeRO's stages one after the other, the rest alike."""
    interleaves = [v for v in (1, 2, 4) if v == 1 or (degrees.pipeline > 1 and shape.layers >= degrees.pipeline * v)]
    # No more than a replica's share of the batch; and kernels are busy with this many tokens at once.
    max_size = math.ceil(job.sequences / degrees.data)
    sizes = [n for n in _MICRO_BATCHES if n == 1 or (n <= max_size and n * job.sequence_tokens <= _BUSY)]
    recomputes = _RECOMPUTE if job.sequence_tokens <= _SHORT else _RECOMPUTE[1:]
    zero = (1, 2, 3) if degrees.replicas > 1 else (0,)
    for size, interleave, recompute, stage in itertools.product(sizes, interleaves, recomputes, zero):
        count = math.ceil(job.sequences / (degrees.data * size))
        shared = {"zero_stage": stage, "recompute": recompute, "interleave": interleave}
        yield replace(degrees, **shared, micro_batch=size, micro_batches=count)


def _powers(limit: int) -> list[int]:
    return [2**n for n in range(max(1, limit).bit_length())]


# --- when nothing fits


def _would_fit(job: TrainingJob) -> Iterator[str]:
    """Changes of one thing that make a layout fit, the smallest first."""
    if job.optimizer == "adamw" and job.method == "full" and _fits(replace(job, optimizer="adamw_8bit")):
        yield "AdamW with 8-bit moments on the same devices"
    for factor in (2**n for n in range(1, 15)):
        larger_job = replace(job, devices=job.devices * factor)
        if _fits(larger_job):
            yield f"{larger_job.devices:,} × {job.device.name}"
            break
    larger = [
        device
        for device in DEVICES.values()
        if device.device_type != "cpu" and device.memory_bytes > job.device.memory_bytes
    ]
    for device in sorted(larger, key=lambda device: device.memory_bytes):
        if job.precision in device.peak_flops_per_second and _fits(replace(job, device=device)):
            yield f"{job.devices:,} × {device.name}"
            break
    if job.method == "full" and _fits(replace(job, method="lora")):
        yield "LoRA instead of all weights on the same devices"


def _fits(job: TrainingJob) -> bool:
    padded_job = replace(job, sequences=max(job.sequences, job.devices))
    shape, states = padded_job.shape, padded_job.states
    return any(
        _smallest(padded_job, shape, states, degrees)[1].total <= padded_job.usable_bytes
        for degrees in _degrees(padded_job, shape)
    )


def describe(layout: DeviceLayout) -> str:
    """A layout in one line: `data 128 (ZeRO 1) × tensor 8 × pipeline 16, micro-batch 1, recompute selective`."""
    parts = [f"data {layout.data:,}" + (f" (ZeRO {layout.zero_stage})" if layout.zero_stage else "")]
    parts += [f"{name} {n}" for name in ("tensor", "pipeline", "context") if (n := getattr(layout, name)) > 1]
    extra = [f"experts over {layout.expert}"] if layout.expert > 1 else []
    extra += [f"{layout.interleave} parts a stage"] if layout.interleave > 1 else []
    extra += [f"micro-batch {layout.micro_batch}", f"recompute {layout.recompute}"]
    return " × ".join(parts) + ", " + ", ".join(extra)
