"""Where a benchmark runs: the processor, what our kernel makes of it, its roofs, the versions of the peers.

Everything is measured in the process that measures the rest, so that a mask or a neighbour's load weighs on both.
"""

from __future__ import annotations

import importlib.util
import os
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import masks

PEERS = ("torch", "transformers", "peft", "llama-cpp-python", "llguidance")
_TOKENS, _SECONDS = 256, 0.5


@dataclass(frozen=True)
class Machine:
    """cores: that this process may use. load: how many processes wanted to run, over the last minute.
    bandwidth: bytes a second that are read from memory; products: operations a second by format, of torch's own and
    (`kernel int4`, `kernel bfloat16`) of our kernel on weights that a cache holds. masks: what libraries were told not
    to use."""

    cpu: str
    level: str
    cores: int
    threads: int
    load: float
    bandwidth: float
    products: dict[str, float]
    versions: dict[str, str]
    masks: dict[str, str]
    mask: str | None

    @property
    def description(self) -> str:
        """What stands over its column in a table."""
        masked = f", masked to {self.mask}" if self.mask else ""
        return f"{self.cpu}, {self.cores} cores, {self.level}{masked}"

    def summary(self) -> str:
        """For people, a few lines."""
        products = ", ".join(f"{name} {value / 1e9:,.0f}" for name, value in self.products.items())
        packages = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        masked = ", ".join(f"{name}={value}" for name, value in self.masks.items()) or "none"
        return (
            f"machine: {self.cpu}, {self.cores} cores, {self.threads} threads, load {self.load:.1f}; kernel level "
            f"{self.level}\n"
            f"roofs: memory {self.bandwidth / 1e9:.1f} GB/s read; products, GFLOP/s: {products}\n"
            f"masks: {masked}; {packages}"
        )

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.description, **asdict(self)}


def this_machine() -> Machine:
    """Measured now, in about three seconds."""
    from bedplate.inference.measure.speeds import measure_machine

    speeds = measure_machine()
    products = {f"torch {name}": value for name, value in speeds.flops_per_second.items()}
    return Machine(
        cpu=speeds.cpu,
        level=kernel_level(),
        cores=len(os.sched_getaffinity(0)),
        threads=speeds.threads,
        load=os.getloadavg()[0],
        bandwidth=speeds.bandwidth_bytes_per_second,
        products=products | kernel_peaks(),
        versions={name: version(name) for name in PEERS if _installed(name)},
        masks=masks.in_force(),
        mask=masks.chosen(),
    )


def kernel_level() -> str:
    """What our kernel runs as here, or why there is none."""
    from bedplate.inference.native.library import load

    library = load()
    if isinstance(library, str):
        return f"no native kernel ({library})"
    return library.level


def kernel_peaks() -> dict[str, float]:
    """Operations a second of our kernel in one wide block whose weights stay in the cache, 256 tokens at once, each at
    the first position of a sequence of its own, so that attention costs next to nothing. Empty where there is none."""
    import torch

    from bedplate.inference.native.packed_weights import NativeDecoder, unsupported
    from bedplate.models.decoder import Decoder
    from bedplate.models.specs.presets import PRESETS

    spec = PRESETS["smollm2-135m"].with_(layers=1, vocab_size=64)
    torch.manual_seed(0)
    model = Decoder(spec, "cpu").to(torch.bfloat16).eval()
    if unsupported(spec, torch.bfloat16, torch.device("cpu")) is not None:
        return {}
    weights = sum(p.numel() for p in model.layers.parameters() if p.ndim == 2)
    shape = (_TOKENS, spec.attention.kv_heads, 1, spec.attention.head_dim)
    keys, values = ([torch.zeros(shape, dtype=torch.bfloat16)] for _ in range(2))
    peaks: dict[str, float] = {}
    for form in ("bfloat16", "int8", "int4"):
        native = NativeDecoder(model, form)
        tokens, rows, first = [i % 64 for i in range(_TOKENS)], range(_TOKENS), [0] * _TOKENS
        best, until = float("inf"), time.perf_counter() + _SECONDS
        while time.perf_counter() < until:
            start = time.perf_counter()
            native.forward(tokens, rows, first, keys, values, [], depth=1)
            best = min(best, time.perf_counter() - start)
        native.close()
        peaks[f"kernel {form}"] = 2 * weights * _TOKENS / best
    return peaks


def _installed(distribution: str) -> bool:
    return importlib.util.find_spec(distribution.replace("llama-cpp-python", "llama_cpp").replace("-", "_")) is not None
