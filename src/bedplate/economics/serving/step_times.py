"""How long an engine's step takes: from what was measured of it, or from a device's data sheet.

The roofline (Williams et al. 2009): a step takes as long as the slower of its products and its reads,

    seconds = overhead + max(operations / (peak · share), bytes / (bandwidth · share)) + communication

A data sheet says nothing of the shares that an engine reaches, so they are a range: `REACHED`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from bedplate.core.errors import UsageError
from bedplate.economics.hardware.device import Device
from bedplate.economics.hardware.machine import EngineSpeed, Load, StepShape, served_seconds, step_seconds
from bedplate.economics.model.attention_pairs import pair_flops
from bedplate.economics.model.footprint import WeightFormat, kv_bytes, kv_bytes_per_token, step_reads
from bedplate.economics.model.parameters import parameters
from bedplate.models.specs.transformer import TransformerSpec

ALLREDUCE_SECONDS = 10e-6
"""Latency of one small all-reduce between the devices of a node, whatever its size."""


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


@dataclass(frozen=True)
class MeasuredSteps:
    """An engine that was measured, or with `shape` another model on the same kernel: an extrapolation. served: within
    its server, where that was measured."""

    speed: EngineSpeed
    shape: StepShape | None = None
    served: bool = True

    def seconds(self, load: Load) -> float:
        """Seconds of one step."""
        engine_seconds = step_seconds(self.speed, load, self.shape)
        return (
            served_seconds(self.speed.server, load, engine_seconds)
            if self.served and self.speed.server
            else engine_seconds
        )

    @property
    def basis(self) -> str:
        """Where the numbers are from."""
        speed = self.speed
        description = f"measured {speed.measured_at}: {speed.base}, {speed.weights}, {speed.kernel} kernel"
        return description if self.shape is None else f"extrapolated by size from what was {description}"


@dataclass(frozen=True)
class RooflineSteps:
    """A decoder on `devices` devices that share each product (tensor parallel)."""

    spec: TransformerSpec
    device: Device
    devices: int = 1
    weights: WeightFormat = "bfloat16"
    kv_value_bytes: float = 2.0
    reached: Reached = CENTRAL
    adapter_bytes: float = 0.0

    def __post_init__(self) -> None:
        if self.spec.kind != "decoder":
            raise UsageError("steps are those of a decoder; this model is an encoder")

    def seconds(self, load: Load) -> float:
        """Seconds of one step."""
        return self.products(load) + self._communication(load.tokens)

    def products(self, load: Load) -> float:
        """Seconds of the products and reads, and the step's overhead."""
        if load.tokens < 1:
            return 0.0
        blocks, head, pair, key = self._counts
        operations = 2.0 * (blocks * load.tokens + head * load.rows) + pair * (load.pairs or load.keys)
        read = self._weight_bytes(load.tokens) + self.adapter_bytes * load.adapters
        if load.keys:
            # Layers with a window read no more than it.
            read += load.keys * key * self._share_in_windows(max(1, round(load.keys / max(load.rows, 1))))
        reached = self.reached
        compute = operations / (self._peak * self.devices * reached.compute)
        memory = read / (self.device.memory_bytes_per_second * self.devices * reached.bandwidth)
        return reached.overhead_seconds + max(compute, memory)

    @cached_property
    def _counts(self) -> tuple[int, int, int, float]:
        """Weights of blocks and head in products, operations of a pair, bytes of a key, over all layers."""
        parameter_counts = parameters(self.spec)
        pair = sum(pair_flops(self.spec, layer) for layer in range(self.spec.layers))
        return (
            parameter_counts.products - parameter_counts.head,
            parameter_counts.head,
            pair,
            kv_bytes_per_token(self.spec, self.kv_value_bytes),
        )

    @cached_property
    def _weight_bytes(self) -> Callable[[int], float]:
        return step_reads(self.spec, self.weights)

    def _share_in_windows(self, context: int) -> float:
        if not any(self.spec.attention.windows):
            return 1.0
        return kv_bytes(self.spec, context, 1.0) / (context * kv_bytes_per_token(self.spec, 1.0))

    @cached_property
    def _peak(self) -> float:
        """Products are made in 8 bits where weights and device have them, else in 16."""
        peaks = self.device.peak_flops_per_second
        formats = ("fp8", "int8") if self.weights in {"fp8", "int8"} else ()
        for name in (*formats, "bf16", "fp16", "fp32"):
            if name in peaks:
                return peaks[name]
        raise UsageError(f"{self.device.name} has no products that a model could be served with")

    def _communication(self, tokens: int) -> float:
        """Two all-reduces a layer: each device sends 2·(n−1)/n of a layer's states (2104.04473, section 2.3)."""
        if self.devices == 1:
            return 0.0
        sent = 2 * (self.devices - 1) / self.devices * tokens * self.spec.hidden_size * 2.0
        return 2 * self.spec.layers * (ALLREDUCE_SECONDS + sent / self.device.link_bytes_per_second)

    @property
    def basis(self) -> str:
        """Where the numbers are from."""
        reached = self.reached
        shares = f"{reached.compute:.0%} of peak, {reached.bandwidth:.0%} of bandwidth"
        return f"data sheet of {self.device.title}, {shares}"


def shape_of(spec: TransformerSpec) -> StepShape:
    """The sizes of a decoder that decide a step's time."""
    counts = parameters(spec)
    return StepShape(
        blocks=counts.products - counts.head,
        head=counts.head,
        key_features=round(kv_bytes_per_token(spec, 1.0)),
        query_features=spec.attention.heads * sum(map(spec.head_dim_of, range(spec.layers))),
    )
