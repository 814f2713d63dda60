"""Published training runs beside what we predict for them.

A clean row states what the formula asks for: tokens, device-hours, and a run without hidden parts. The others are shown
with the overhead that they imply. No row has a constant of its own: operations are the spec's, MFU is the kind of
device's curve at the run's number of devices, and the overhead is the default for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bedplate.economics.hardware.devices import Execution, Precision, find_device, mfu, peak_of
from bedplate.economics.model.footprint import training_flops_per_token
from bedplate.economics.model.named_model import resolve
from bedplate.economics.numbers.formula import Range
from bedplate.economics.training.training_cost import DEFAULT_OVERHEAD, device_hours

FLOPS_TOLERANCE = 0.10
HOURS_TOLERANCE = 0.25
THROUGHPUT_TOLERANCE = 0.20


@dataclass(frozen=True)
class PublishedRun:
    """One published run. model: a preset, or None where its architecture is not told in full: then operations are as
    logged. devices_assumed: their number is not published. clean: which of its figures are held against us."""

    name: str
    model: str | None
    tokens: float | None
    sequence_tokens: int
    device: str | None
    devices: int | None
    gpu_hours: float | None
    flops: float | None
    clean: tuple[Literal["flops", "hours"], ...]
    source: str
    precision: Precision = "bf16"
    devices_assumed: bool = False
    note: str = ""


@dataclass(frozen=True)
class RunPrediction:
    """A run and what is predicted of it; errors are predicted over published, less 1. implied_overhead: of the
    published hours over clean steps at the curve's MFU; implied_mfu: of the published hours as they are."""

    run: PublishedRun
    flops: float
    flops_error: float | None
    gpu_hours: Range | None
    hours_error: float | None
    implied_overhead: float | None
    implied_mfu: float | None


@dataclass(frozen=True)
class PublishedThroughput:
    """A measured number of tokens per second and device. calibrated: the factors were taken from this row."""

    name: str
    model: str
    device: str
    devices: int
    sequence_tokens: int
    execution: Execution
    precision: Precision
    tokens_per_second: float
    is_checked: bool
    source: str
    note: str = ""


@dataclass(frozen=True)
class ThroughputPrediction:
    run: PublishedThroughput
    tokens_per_second: float
    error: float


_LLMC = "github.com/karpathy/llm.c discussions"
_LLAMA1 = "https://arxiv.org/abs/2302.13971, table 15"
_LLAMA2 = "https://arxiv.org/abs/2307.09288, table 2"
_LLAMA3 = "https://arxiv.org/abs/2407.21783, and the model card"
_OLMO3 = "https://arxiv.org/abs/2512.13961"
_TITAN = "torchtitan benchmarks/llama3_h100_202412, https://arxiv.org/abs/2410.06511"

RUNS: tuple[PublishedRun, ...] = (
    PublishedRun(
        "GPT-2 124M (llm.c)", "gpt2", 9.9e9, 1024, "a100-80gb", 8, 12.6, None, ("hours",), f"{_LLMC}/481; $20"
    ),
    PublishedRun(
        "GPT-2 1558M (llm.c)", "gpt2-xl", 33.6e9, 1024, "h100-sxm", 8, 192, None, ("hours",), f"{_LLMC}/677; $672"
    ),
    PublishedRun(
        "nanochat d24",
        None,
        None,
        2048,
        "h100-sxm",
        8,
        24.3,
        4.33e19,
        ("hours",),
        "github.com/karpathy/nanochat dev/LEADERBOARD.md, run 1; $73",
        note="operations as it logs them",
    ),
    PublishedRun(
        "TinyLlama 1.1B",
        "tinyllama-1.1b",
        3e12,
        2048,
        "a100-40gb",
        16,
        34_560,
        0.56 * 312e12 / 24_000 * 3e12,
        ("flops", "hours"),
        "https://arxiv.org/abs/2401.02385, and its README",
        note="operations: its 56% MFU at 24,000 tokens/s",
    ),
    PublishedRun(
        "Pythia 6.9B",
        "pythia-6.9b",
        299.9e9,
        2048,
        "a100-40gb",
        128,
        33_500,
        None,
        (),
        "https://arxiv.org/abs/2304.01373, appendix D",
        note="code of 2022",
    ),
    *(
        PublishedRun(
            f"LLaMA {size}",
            f"llama-1-{size.lower()}",
            tokens,
            2048,
            "a100-80gb",
            2048,
            hours,
            None,
            () if size == "65B" else ("hours",),
            _LLAMA1,
            devices_assumed=size != "65B",
            note="its tokens a second are among the curve's sources" if size == "65B" else "as 65B's",
        )
        for size, tokens, hours in (
            ("7B", 1e12, 82_432),
            ("13B", 1e12, 135_168),
            ("33B", 1.4e12, 530_432),
            ("65B", 1.4e12, 1_022_362),
        )
    ),
    *(
        PublishedRun(
            f"Llama-2 {size}",
            f"llama-2-{size.lower()}",
            2e12,
            4096,
            "a100-80gb",
            2048,
            hours,
            None,
            ("hours",),
            _LLAMA2,
            devices_assumed=True,
            note='"up to 2,000 GPUs"',
        )
        for size, hours in (("7B", 184_320), ("13B", 368_640), ("70B", 1_720_320))
    ),
    PublishedRun(
        "Llama-3.1 8B",
        "llama-3.1-8b",
        15e12,
        8192,
        "h100-sxm",
        1024,
        1.46e6,
        None,
        (),
        _LLAMA3,
        devices_assumed=True,
        note="all-in: far over 6·N·D",
    ),
    PublishedRun(
        "Llama-3.1 70B",
        "llama-3.1-70b",
        15e12,
        8192,
        "h100-sxm",
        8192,
        7.0e6,
        None,
        (),
        _LLAMA3,
        devices_assumed=True,
        note="all-in: over 6·N·D",
    ),
    PublishedRun(
        "Llama-3.1 405B",
        "llama-3.1-405b",
        15.6e12,
        8192,
        "h100-sxm",
        16_384,
        30.84e6,
        3.8e25,
        ("flops", "hours"),
        _LLAMA3,
        note="published MFU 38 to 43%",
    ),
    PublishedRun(
        "DeepSeek-V3",
        "deepseek-v3",
        14.8e12,
        4096,
        "h800",
        2048,
        2.664e6,
        None,
        ("hours",),
        "https://arxiv.org/abs/2412.19437; $5.576 M at $2 with all stages",
        precision="fp8",
    ),
    PublishedRun("OLMo-3 7B", "olmo-3-7b", 6.1e12, 8192, "h100-sxm", 512, 234e3, None, ("hours",), _OLMO3),
    PublishedRun("OLMo-3 32B", "olmo-3-32b", 5.8e12, 8192, "h100-sxm", 1024, 1.05e6, None, ("hours",), _OLMO3),
    PublishedRun(
        "GPT-3", "gpt3-175b", 300e9, 2048, None, None, None, 3.14e23, ("flops",), "https://arxiv.org/abs/2005.14165"
    ),
    PublishedRun(
        "Chinchilla",
        "chinchilla-70b",
        1.4e12,
        2048,
        None,
        None,
        None,
        5.9e23,
        ("flops",),
        "https://arxiv.org/abs/2203.15556",
    ),
)

_MODES: tuple[tuple[str, Execution, Precision], ...] = (
    ("eager", "eager", "bf16"),
    ("compiled", "compile", "bf16"),
    ("compiled, fp8", "compile", "fp8"),
)

THROUGHPUTS: tuple[PublishedThroughput, ...] = (
    *(
        PublishedThroughput(
            f"Llama-3.1 8B, FSDP, {mode[0]}", "llama-3.1-8b", "h100-sxm", 8, 8192, *mode[1:], rate, True, _TITAN
        )
        for mode, rate in zip(_MODES, (5762, 6667, 8532), strict=True)
    ),
    *(
        PublishedThroughput(
            f"Llama-3.1 8B, FSDP, {mode[0]}", "llama-3.1-8b", "h100-sxm", 128, 8192, *mode[1:], rate, False, _TITAN
        )
        for mode, rate in zip(_MODES, (5605, 6514, 8380), strict=True)
    ),
    PublishedThroughput(
        "Llama-3.1 70B, FSDP and tensor parallel, compiled, fp8",
        "llama-3.1-70b",
        "h100-sxm",
        256,
        8192,
        "compile",
        "fp8",
        876,
        True,
        _TITAN,
    ),
    PublishedThroughput(
        "Llama-3.1 405B, interleaved 1F1B, compiled, fp8",
        "llama-3.1-405b",
        "h100-sxm",
        512,
        8192,
        "compile",
        "fp8",
        128,
        False,
        _TITAN,
        note="its pipeline of eight stages recomputes everything",
    ),
)
"""torchtitan's. The 128-GPU rows gave the factors of execution and of fp8 (`mfu`), so they are no check of them."""


def predicted_against_published() -> tuple[RunPrediction, ...]:
    """Every run with what the default settings predict of it."""
    return tuple(_predict(run) for run in RUNS)


def predicted_throughputs() -> tuple[ThroughputPrediction, ...]:
    """Every measured throughput with the predicted one: peak · MFU / operations per token."""
    return tuple(_predict_throughput(run) for run in THROUGHPUTS)


def _predict(run: PublishedRun) -> RunPrediction:
    if run.model is None:
        assert run.flops is not None
        flops, error = run.flops, None
    else:
        assert run.tokens is not None
        flops = run.tokens * training_flops_per_token(resolve(run.model)[1], run.sequence_tokens)
        error = None if run.flops is None else flops / run.flops - 1
    if run.device is None or run.devices is None or run.gpu_hours is None:
        return RunPrediction(run, flops, error, None, None, None, None)
    device = find_device(run.device)
    peak = peak_of(device, run.precision)
    reached = mfu(device.mfu, run.devices, run.precision)
    hours = device_hours(flops, peak, reached, DEFAULT_OVERHEAD)
    return RunPrediction(
        run,
        flops,
        error,
        hours,
        hours.central / run.gpu_hours - 1,
        run.gpu_hours / device_hours(flops, peak, reached).central,
        flops / (run.gpu_hours * 3600 * peak),
    )


def _predict_throughput(run: PublishedThroughput) -> ThroughputPrediction:
    device = find_device(run.device)
    reached = mfu(device.mfu, run.devices, run.precision, run.execution)
    peak = peak_of(device, run.precision)
    flops = training_flops_per_token(resolve(run.model)[1], run.sequence_tokens)
    rate = peak * reached.central / flops
    return ThroughputPrediction(run, rate, rate / run.tokens_per_second - 1)


# --- for the docs


def markdown_runs() -> str:
    """The table of runs. A figure in brackets is not held against us."""
    head = (
        "| run | devices | operations, predicted | published | error | device-hours, predicted (range) | published "
        "| error | overhead implied | source |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    return "\n".join((head, *_run_rows()))


def markdown_throughputs() -> str:
    """The table of throughputs."""
    head = "| run | devices | tokens/s/device, predicted | measured | error | source |\n|---|---|---|---|---|---|"
    rows = (
        f"| {run.name} | {run.devices} | {prediction.tokens_per_second:,.0f} | {run.tokens_per_second:,.0f} "
        f"| {_error(prediction.error, run.is_checked)} | {_source(run.source, run.note)} |"
        for prediction in predicted_throughputs()
        for run in (prediction.run,)
    )
    return "\n".join((head, *rows))


def _run_rows() -> Iterator[str]:
    for prediction in predicted_against_published():
        run = prediction.run
        devices = "" if run.devices is None else f"{run.devices:,} × {run.device}"
        devices += " (number assumed)" if run.devices_assumed else ""
        flops = f"{prediction.flops:.3g}" if run.model is not None else "as logged"
        hours = ""
        if prediction.gpu_hours is not None:
            low, central, high = (_round(getattr(prediction.gpu_hours, end)) for end in ("low", "central", "high"))
            hours = f"{central} ({low} to {high})"
        cells = (
            run.name,
            devices,
            flops,
            "" if run.flops is None else f"{run.flops:.3g}",
            _error(prediction.flops_error, "flops" in run.clean),
            hours,
            "" if run.gpu_hours is None else _round(run.gpu_hours),
            _error(prediction.hours_error, "hours" in run.clean),
            "" if prediction.implied_overhead is None else f"{prediction.implied_overhead:.2f}",
            _source(run.source, run.note),
        )
        yield f"| {' | '.join(cells)} |"


def _round(hours: float) -> str:
    """Three digits."""
    return f"{float(f'{hours:.3g}'):,.0f}" if hours >= 100 else f"{hours:.3g}"


def _error(value: float | None, is_checked: bool) -> str:
    if value is None:
        return ""
    shown = f"{value:+.0%}".replace("-", "−")
    return shown if is_checked else f"({shown})"


def _source(source: str, note: str) -> str:
    return f"{source}; {note}" if note else source
