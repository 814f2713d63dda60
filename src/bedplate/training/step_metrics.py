"""Metrics of training steps (left on the device by each step, read back together, written as JSON lines), and the step
guard, which skips steps with a non-finite or spiking loss or gradient and stops a run that has too many.

The guard decides on the device without reading anything back, by the rule of `GuardConfig`.

`Utilisation` is the share of the device's peak that a run reaches (MFU; PaLM, https://arxiv.org/abs/2204.02311): the
model's own products, forward and backward, with the token pairs that causal attention sees in rows of one length
(`economics.model.footprint`); recomputation does not count. The peak is the dense one from the table of devices, or,
for a processor or an unlisted device, the measured rate of a large square product.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bedplate.core.closing import Closing
from bedplate.core.display import join_names
from bedplate.core.errors import TrainingError, UsageError
from bedplate.core.measurements import measured_once
from bedplate.core.processor import processor, processor_kind
from bedplate.economics.hardware.devices import find_device
from bedplate.economics.model.footprint import training_flops_per_token
from bedplate.models.precision import DTYPES
from bedplate.models.specs import Spec
from bedplate.training.config import GuardConfig
from bedplate.training.ranks import Ranks

LOSS = "loss/"
"""Prefix of the names of losses; names of metrics begin with their term's."""
Values = Mapping[str, Tensor]
"""Scalars of one micro-batch, divided by their term's weight in the whole step, so that the step's are their sums."""


@dataclass
class UnreadStep:
    """One step whose metrics are on the device. number: from 1. parts: ids and values of its micro-batches; norm: of
    its gradient, before clipping. skipped, stops: the guard's decisions, 0 or 1."""

    number: int
    learning_rate: float
    counts: Mapping[str, int]
    parts: Sequence[tuple[Sequence[str], Values]]
    norm: Tensor
    skipped: Tensor
    stops: Tensor

    @property
    def scalars(self) -> list[Tensor]:
        """All scalars to read back."""
        return [*(value for _, values in self.parts for value in values.values()), self.norm, self.skipped, self.stops]

    def loss(self) -> Tensor:
        """The step's loss on this rank, a scalar on the device."""
        losses = [value for _, values in self.parts for name, value in values.items() if name.startswith(LOSS)]
        return torch.stack(losses).sum() if losses else torch.zeros_like(self.norm)

    def unsound(self) -> Tensor:
        """1 where a value is not finite, a scalar on the device."""
        return torch.stack(self.scalars).isfinite().all().logical_not().to(self.norm.dtype)


@dataclass(frozen=True)
class ReadStep:
    """One step's metrics, read back. values: summed over the micro-batches of this rank. broken: ids and problem of
    each micro-batch that is not finite; ids: of all micro-batches."""

    values: Mapping[str, float]
    norm: float
    skipped: bool
    stops: bool
    ids: Sequence[str]
    broken: Sequence[tuple[Sequence[str], str]]


def read_steps(steps: Sequence[UnreadStep]) -> list[ReadStep]:
    """Reads the metrics of several steps in one transfer."""
    numbers = iter(torch.stack([scalar for step in steps for scalar in step.scalars]).tolist())
    return [_read(step, numbers) for step in steps]


def _read(step: UnreadStep, numbers: Iterator[float]) -> ReadStep:
    values: dict[str, float] = {}
    broken: list[tuple[Sequence[str], str]] = []
    for ids, part in step.parts:
        part_values = {name: next(numbers) for name in part}
        if not all(map(math.isfinite, part_values.values())):
            broken.append((ids, f"the loss is {part_values}"))
        for name, value in part_values.items():
            values[name] = values.get(name, 0.0) + value
    norm, skipped, stops = (next(numbers) for _ in range(3))
    example_ids = [id for ids, _ in step.parts for id in ids]
    return ReadStep(values, norm, bool(skipped), bool(stops), example_ids, broken)


class MetricsLog(Closing):
    """Appends JSON lines to `path`. `position()` is a byte count to save with a state; `resume_at` truncates the file
    to it. Only the `main` rank writes."""

    def __init__(self, path: Path, resume_at: int = 0, main: bool = True) -> None:
        self._path, self._main = path, main
        if not main:
            path = Path(os.devnull)
            resume_at = 0
        size = path.stat().st_size if path.exists() else 0
        if size < resume_at:
            raise TrainingError(
                f"{path} is shorter ({size} bytes) than when the state was saved ({resume_at}); put the file back, or "
                "delete the saved state to start anew"
            )
        self._file = path.open("ab")
        if main:
            self._file.truncate(resume_at)

    def close(self) -> None:
        self._file.close()

    def write(self, row: dict[str, Any]) -> None:
        self._file.write((json.dumps(row, allow_nan=False) + "\n").encode())
        self._file.flush()

    def position(self) -> int:
        """Bytes written so far, synced to disk."""
        if not self._main:
            return 0
        os.fsync(self._file.fileno())
        return self._file.tell()


_STATE = "guard/"


class StepGuard:
    """Decides which steps are skipped, in their order. Ring buffers hold the last `window` steps' values, indexed by
    step number."""

    def __init__(self, config: GuardConfig, device: torch.device) -> None:
        self._config = config
        empty = torch.full((config.window,), torch.nan, dtype=torch.float32, device=device)
        self._rings = {"loss": empty, "norm": empty.clone()}
        self._skipped = torch.zeros(config.window, device=device)
        self._stopped = torch.zeros((), device=device)

    def judge(self, number: int, loss: Tensor, norm: Tensor, unsound: Tensor) -> tuple[Tensor, Tensor]:
        """Judges step `number` (from 1). Returns 1 where it is to be skipped, and 1 where the run is to stop, from then
        on: scalars on the device. unsound: 1 where a value in the step is not finite."""
        at, values = number % self._config.window, {"loss": loss, "norm": norm}
        bad = unsound > 0
        for name, value in values.items():
            bad = bad | ~value.isfinite()
            if self._config.sigmas is not None:
                bad = bad | _is_far(self._rings[name], value, self._config.sigmas)
        for name, value in values.items() if self._config.sigmas is not None else ():
            ring = self._rings[name]
            ring[at] = torch.where(bad, torch.nan, value.to(ring.dtype))
        self._skipped[at] = bad.to(self._skipped.dtype)
        too_many = self._skipped.sum() > self._config.allowed
        self._stopped = torch.maximum(self._stopped, too_many.to(self._stopped.dtype))
        return torch.maximum(bad.to(self._stopped.dtype), self._stopped), self._stopped.clone()

    @property
    def _state_tensors(self) -> Mapping[str, Tensor]:
        return {**{f"{_STATE}{name}": ring for name, ring in self._rings.items()}, f"{_STATE}skipped": self._skipped}

    def tensors(self) -> dict[str, Tensor]:
        """The rings, for the saved state; none where the first bad step ends the run."""
        has_state = self._config != GuardConfig()
        return {name: ring.clone() for name, ring in self._state_tensors.items()} if has_state else {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores the result of `tensors`."""
        for name, ring in self._state_tensors.items():
            if name in tensors:
                ring.copy_(tensors[name])


def _is_far(ring: Tensor, value: Tensor, sigmas: float) -> Tensor:
    """Whether the value exceeds the ring's mean by `sigmas` standard deviations; NaN entries are empty."""
    finite = ring.isfinite()
    count = finite.sum()
    mean = torch.where(finite, ring, 0).sum() / count
    spread = (torch.where(finite, ring - mean, 0).square().sum() / (count - 1)).sqrt()
    return (count >= len(ring) // 2) & (value > mean + sigmas * spread)


_SHOWN_IDS, _SHOWN_STEPS = 8, 8


class Skipped:
    """The skipped steps of this process's part of the run, for log lines and the final error."""

    def __init__(self, guard: GuardConfig) -> None:
        self._guard = guard
        self._steps: list[tuple[int, str]] = []

    def add(self, number: int, reading: ReadStep, ranks: Ranks) -> dict[str, Any]:
        """Records a skipped step; returns the fields of its log line: the reason, and its examples on all ranks."""
        local_report = {"broken": [[list(ids), problem] for ids, problem in reading.broken], "ids": list(reading.ids)}
        everyone = ranks.gather(local_report)
        broken = [(ids, problem) for report in everyone for ids, problem in report["broken"]]
        ids = [id for report in everyone for id in report["ids"]]
        if broken:
            ids, why = broken[0]
        elif not math.isfinite(reading.norm):
            why = f"the gradient's norm is {reading.norm}"
        else:
            why = f"a spike of the loss or of the gradient, whose norm is {reading.norm:.4g}"
        self._steps.append((number, f"step {number}: {why}, on the examples {join_names(ids, _SHOWN_IDS)}"))
        return {"skipped": why, "skipped_examples": ids}

    def error(self) -> TrainingError:
        """The error that stops the run: names the last skipped step and those shortly before it."""
        guard, last = self._guard, self._steps[-1][0]
        recent = [message for number, message in self._steps if number > last - guard.window]
        allowed = f" {guard.allowed} such steps are allowed among {guard.window}." if guard.allowed else ""
        return TrainingError(
            f"{'; '.join(recent[-_SHOWN_STEPS:])}.{allowed} The state before this step is kept; "
            "lower the learning rate, or look at these examples"
        )


_NUMBERS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_AUTO = ("float32", "bfloat16")
_SIDE = {"cpu": 1024}
_LARGE, _MIN_ROUNDS, _SECONDS = 8192, 3, 0.3


@dataclass(frozen=True)
class Utilisation:
    """The FLOPs of a token and the peak of a device. peak: operations per second; source: where that number is from."""

    flops_per_token: float
    peak: float
    source: str

    def share(self, tokens: float, seconds: float, devices: int = 1) -> float:
        return tokens * self.flops_per_token / (seconds * self.peak * devices)


def utilisation_of(spec: Spec, row_tokens: int, device: torch.device, dtype: str) -> Utilisation:
    """Utilisation of a training run on rows of `row_tokens` in this dtype ("bfloat16"); "auto", where the dtype is not
    known yet, assumes the dtype with the higher peak among those that training may choose."""
    peak, source = max(peak_of(device, candidate) for candidate in (_AUTO if dtype == "auto" else (dtype,)))
    return Utilisation(training_flops_per_token(spec, row_tokens), peak, source)


def peak_of(device: torch.device, dtype: str) -> tuple[float, str]:
    """Operations per second of dense products, and where that number is from."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_kind()
    if device.type == "cuda":
        try:
            spec = find_device(name)
            return spec.peak(_NUMBERS.get(dtype, dtype)), f"{spec.title}'s peak in {dtype} ({spec.source})"
        except UsageError:
            pass  # a device that is not listed
    return _measured(device, dtype, name)


def _measured(device: torch.device, dtype: str, name: str) -> tuple[float, str]:
    key = {
        "version": 2,
        "device": name,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "cores": processor().threads,
        "torch": [str(torch.__version__), torch.backends.cpu.get_cpu_capability()],
    }
    peak = measured_once("peak", key, lambda: measure_peak(device, dtype), float, _rate)
    return peak, f"products in {dtype}, measured here"


def _rate(record: float) -> float:
    if not 0 < record < math.inf:
        raise ValueError("not a rate")
    return float(record)


def measure_peak(device: torch.device, dtype: str) -> float:
    """Measures operations per second of a large product; the fastest of a few counts, one where it takes long."""
    side = _SIDE.get(device.type, _LARGE)
    with torch.inference_mode():
        a, b = (torch.full((side, side), 0.5, device=device, dtype=DTYPES[dtype]) for _ in range(2))
        (a[:1] @ b)[0, 0].item()  # warm-up: a device's set-up with its first product is not counted
        best, turns, until = float("inf"), 0, time.perf_counter() + _SECONDS
        while turns == 0 or (turns < _MIN_ROUNDS and best < _SECONDS) or time.perf_counter() < until:
            start, turns = time.perf_counter(), turns + 1
            (a @ b)[0, 0].item()  # waits for the device
            best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
