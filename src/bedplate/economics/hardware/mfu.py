"""Which share of the devices' peak a training run reaches: one curve per kind of device over their number.

    MFU(n) = floor + (first − floor) · (8 / max(n, 8))^β          β = 0.2 for all

Model FLOPs utilization (PaLM, https://arxiv.org/abs/2204.02311): the operations of the model itself over the dense bf16
peak, recomputation not counted. Attention of decoders is counted CAUSALLY, the lower triangle only: sources that count
the full square were converted, which lowers theirs (Llama-3.1-8B at 8,192 tokens: 39% is 35% here).

The constants are written by hand, two a curve, rounded. They were set between the sources named with each curve, none
of which is a row that docs/predictions.md is checked on; those rows were known then, so the check there is not blind.
No row has a constant of its own. `first` is of one node with well-made kernels, `floor` what very many devices
approach. β: from the A100 sources, whose scale is the widest (8 to 2,048).

The range is a factor of 0.8 to 1.25: the published MFU of large runs and of NVIDIA's own tuned recipes lie in it; a
first run of a new stack can lie below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bedplate.core.errors import UsageError
from bedplate.economics.hardware.device import Device
from bedplate.economics.numbers.formula import Formula, call, inputs

BETA = 0.2
LOW, HIGH = 0.8, 1.25

Execution = Literal["tuned", "compile", "eager"]
Precision = Literal["bf16", "fp16", "fp8", "tf32", "fp32"]

_ASSUMED = "assumed: no published runs"


@dataclass(frozen=True)
class Mfu:
    """Shares of the peak: 0.35 is 35%."""

    low: float
    central: float
    high: float


@dataclass(frozen=True)
class MfuCurve:
    """One kind of device. n: how many devices work on one model."""

    first: float
    floor: float
    source: str

    def at(self, n: int) -> float:
        """The central share of `n` devices."""
        return self.formula.compile()((float(n),))

    @property
    def formula(self) -> Formula:
        """The central share, as a function of the number of devices."""
        (devices,) = inputs(1)
        return (8.0 / call("max", devices, 8.0)) ** BETA * (self.first - self.floor) + self.floor


CURVES: dict[str, MfuCurve] = {
    "a100": MfuCurve(
        0.56,
        0.38,
        "LLM Foundry's A100 tables (8 to 128 GPUs, 0.45 to 0.62), torchtitan docs/performance.md (64, 0.50), BLOOM "
        "(384, 0.48), OPT-175B (992, 0.47), LLaMA-65B (2,048, 0.48)",
    ),
    "h100": MfuCurve(
        0.46,
        0.30,
        "OLMo-core's README (one node, 0.38 to 0.46), LLM Foundry's H100 table (8 to 64, 0.35 to 0.45), torchtitan "
        "(128 GPUs compiled, 0.34), Megatron-LM's README (96 to 4,608, 0.46 to 0.41)",
    ),
    "blackwell": MfuCurve(0.46, 0.30, "the H100's curve, assumed; NVIDIA's tuned NeMo recipes reach more"),
    "v100": MfuCurve(0.31, 0.18, "Megatron-LM (https://arxiv.org/abs/1909.08053), fp16: 0.31 on one, 0.24 on 512"),
    "pcie": MfuCurve(0.40, 0.15, f"{_ASSUMED}; one card as the H100's, no fast links between them"),
    "mi250x": MfuCurve(0.40, 0.28, "Frontier (https://arxiv.org/abs/2312.12705): 0.32 to 0.38 on 512 to 1,536"),
    "mi300x": MfuCurve(0.35, 0.22, "a quarter under the H100's, assumed from SemiAnalysis 2024-12"),
    "tpu": MfuCurve(0.65, 0.42, "MaxText's tiering page (v5p 512 chips 0.65, 256 chips 0.53); PaLM (6,144 v4, 0.46)"),
    "cpu": MfuCurve(0.35, 0.20, f"{_ASSUMED}; measure with `bedplate plan calibrate`"),
}

# Throughput against well-made kernels in bf16. Both from torchtitan's 128-GPU table (Llama-3.1-8B, arXiv 2410.06511 and
# benchmarks/llama3_h100_202412): 6,514 tokens/s/GPU compiled are 0.86 of what the curve says there, 5,605 eager 0.74
# (its H100s are held at 500 W, which is in the factors).
EXECUTION: dict[str, float] = {"tuned": 1.0, "compile": 0.86, "eager": 0.74}
EXECUTION_SOURCE = "torchtitan's 128-GPU rows (https://arxiv.org/abs/2410.06511)"

# fp8 products with everything else in bf16, as a factor on the bf16 share: torchtitan's 128-GPU rows 8,380 / 6,514 =
# 1.286; OLMo-core's README 1.18 to 1.32; LLM Foundry 1.10 to 1.35.
FP8_FACTOR = 1.28
FP8_SOURCE = "torchtitan's 128-GPU rows; OLMo-core and LLM Foundry agree (1.10 to 1.35)"


def peak_number(precision: Precision) -> str:
    """The number format whose peak the share is of: fp8 runs are stated on the bf16 peak, with a factor."""
    return "bf16" if precision == "fp8" else precision


def peak_of(device: Device, precision: Precision) -> float:
    """The dense operations per second that a share of the peak is of. UsageError where the device lacks `precision`."""
    device.peak(precision)
    return device.peak(peak_number(precision))


def mfu(curve: str, devices: int, precision: Precision = "bf16", execution: Execution = "tuned") -> Mfu:
    """The range for so many devices; of fp8, over the bf16 peak. UsageError for values that cannot be."""
    if curve not in CURVES:
        raise UsageError(f"there is no MFU curve {curve!r}; there are {', '.join(CURVES)}")
    if execution not in EXECUTION:
        raise UsageError(f"there is no execution {execution!r}; there are {', '.join(EXECUTION)}")
    if devices < 1:
        raise UsageError(f"{devices} devices: there must be at least 1")
    factor = EXECUTION[execution] * (FP8_FACTOR if precision == "fp8" else 1.0)
    central = CURVES[curve].at(devices) * factor
    return Mfu(LOW * central, central, HIGH * central)
