"""In which arithmetic a run computes: the one that a training step of this base is measured to be fastest in here.

A base is held in the dtype that inference or its user chose; training may be faster in another one, since its products
are of other shapes and half of them are gradients. The ways take turns on the base's first blocks (of random weights),
at the shapes that tuning has, and the best time of each counts, so that other work on the machine disturbs less.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeGuard

import torch

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.core.errors import UsageError
from bedplate.core.measurements import measured_once
from bedplate.core.memory import keeping
from bedplate.core.processor import processor_kind
from bedplate.models.decoder import Decoder
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.products import Products, has_onednn
from bedplate.models.model import Model
from bedplate.models.precision import DTYPES, dtype_name
from bedplate.models.specs.transformer import TransformerSpec
from bedplate.training.batch import TrainingExample
from bedplate.training.config import DtypeChoice
from bedplate.training.objectives import AnyModel, Sft
from bedplate.training.packing import pack_examples

TrainedPart = Literal["adapters", "weights"]
"""What a run trains: something beside a frozen base, or the base's own weights."""

LEAST_WEIGHTS = 2_000_000
"""A base with fewer in its blocks is not measured: its steps are calls, not arithmetic, and it keeps its own dtype."""
CLEARLY = 1.05
"""Another arithmetic than the base's own must be faster by so much."""
_MOST_BLOCK_WEIGHTS = 50_000_000
_TURNS, _LEAST_TURNS, _SECONDS, _HOPELESS = 12, 3, 2.0, 2.5
_DOCUMENTS, _PREFIX, _SUFFIX, _VOCABULARY = 12, 16, 32, 64


@dataclass(frozen=True)
class Arithmetic:
    """dtype: what weights and activations are while training ("float32"); products: by which library those of linears
    run on a CPU."""

    dtype: str
    products: Products = "torch"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def name(self) -> str:
        return self.dtype if self.products == "torch" else f"{self.dtype}, {self.products}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, fields: dict[str, Any]) -> Arithmetic:
        """The inverse of `to_json`. KeyError or ValueError for anything else."""
        dtype, products = fields["dtype"], fields["products"]
        if dtype not in DTYPES or products not in ("torch", "onednn"):
            raise ValueError(f"no arithmetic: {fields}")
        return cls(dtype, products)


def native_arithmetic(model: AnyModel) -> Arithmetic:
    """The arithmetic that the model's own dtype gives, without any change."""
    return Arithmetic(dtype_name(next(model.parameters()).dtype))


def candidates(native: Arithmetic, device: torch.device, trained: TrainedPart) -> list[Arithmetic]:
    """All that a base of this arithmetic may be trained in, its own first."""
    if device.type != "cpu" or native.dtype not in ("bfloat16", "float32"):
        return [native]
    arithmetics = [native, Arithmetic("float32" if native.dtype == "bfloat16" else "bfloat16")]
    # in bfloat16 torch's usual call is oneDNN's already
    return [*arithmetics, Arithmetic("float32", "onednn")] if has_onednn() else arithmetics


def choose(model: AnyModel, trained: TrainedPart, dtype: DtypeChoice = "auto") -> Arithmetic:
    """The fastest arithmetic for training this base here, of the dtype that is `dtype` for.

    The base's own unless another is clearly faster; no measurement for models that are no decoders, other devices than
    CPUs, dtypes beside bfloat16 and float32, and bases so small that a step is no arithmetic. Raises UsageError where
    what is asked for cannot be.
    """
    native = native_arithmetic(model)
    if dtype != "auto" and native.dtype not in ("bfloat16", "float32"):
        raise UsageError(f"training in {dtype} is for bases in bfloat16 or float32, and this one is {native.dtype}")
    arithmetics = candidates(native, next(model.parameters()).device, trained)
    of_these = [arithmetic for arithmetic in arithmetics if dtype in ("auto", arithmetic.dtype)] or [Arithmetic(dtype)]
    if len(of_these) == 1 or not _worth_measuring(model):
        return of_these[0]
    return _best(measured(model.spec.main, trained, arithmetics), of_these)


def _best(seconds: dict[Arithmetic, float], arithmetics: Sequence[Arithmetic]) -> Arithmetic:
    """The fastest of these ways; the first of them unless another is clearly faster."""
    best, first = min(arithmetics, key=lambda arithmetic: seconds.get(arithmetic, float("inf"))), arithmetics[0]
    return best if first not in seconds or seconds[best] * CLEARLY < seconds[first] else first


def _worth_measuring(model: AnyModel) -> TypeGuard[Decoder]:
    if not isinstance(model, Decoder):
        return False
    return sum(p.numel() for p in model.layers.parameters()) >= LEAST_WEIGHTS


def token_seconds(model: Model, dtype: DtypeChoice = "auto") -> float | None:
    """Seconds of one training token of adapters through all blocks, in the arithmetic that `choose` gives: of a batch
    of a few hundred short tokens, on a quiet machine. None where nothing is measured."""
    arithmetics = candidates(native_arithmetic(model), model.embedding.weight.device, "adapters")
    if len(arithmetics) == 1 or not _worth_measuring(model):
        return None
    spec = model.spec.main
    seconds, fastest = measured(spec, "adapters", arithmetics), choose(model, "adapters", dtype)
    if fastest not in seconds:
        return None
    length, prefix = _lengths(spec)
    tokens = prefix + _DOCUMENTS * (length - prefix)
    return seconds[fastest] / tokens * spec.layers / _blocks(spec)


def measured(spec: TransformerSpec, trained: TrainedPart, arithmetics: Sequence[Arithmetic]) -> dict[Arithmetic, float]:
    """Seconds of one training step of a few blocks by arithmetic, kept for this machine; ways that cannot run here are
    left out."""
    key = {
        "version": 2,
        "cpu": processor_kind(),
        "threads": torch.get_num_threads(),
        "torch": [str(torch.__version__), torch.backends.cpu.get_cpu_capability()],
        "onednn": [os.environ.get(name) for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")],  # which mask it
        "spec": spec.key(),
        "trained": trained,
        "ways": [arithmetic.to_json() for arithmetic in arithmetics],
    }

    def to_json(seconds_by_arithmetic: dict[Arithmetic, float]) -> Any:
        return [[arithmetic.to_json(), seconds] for arithmetic, seconds in seconds_by_arithmetic.items()]

    def from_json(record: Any) -> dict[Arithmetic, float]:
        seconds_by_arithmetic = {Arithmetic.of_json(fields): float(seconds) for fields, seconds in record}
        if (
            not seconds_by_arithmetic
            or not set(seconds_by_arithmetic) <= set(arithmetics)
            or not all(0 < seconds < 1e6 for seconds in seconds_by_arithmetic.values())
        ):
            raise ValueError("times that cannot be")
        return seconds_by_arithmetic

    return measured_once("training", key, lambda: measure(spec, trained, arithmetics), to_json, from_json)


def measure(spec: TransformerSpec, trained: TrainedPart, arithmetics: Sequence[Arithmetic]) -> dict[Arithmetic, float]:
    """Measures now, in a second or two, and leaves no trace in the process. Raises UsageError if nothing can run."""
    # Memory as a run has it: without, each way is measured by what the system takes to clear pages.
    with keeping(), torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(0)
        steps = {arithmetic: _step_of(spec, trained, arithmetic) for arithmetic in arithmetics}
        return by_turns(steps, time.perf_counter)


def by_turns(
    steps: dict[Arithmetic, Callable[[], None]], clock: Callable[[], float], seconds: float = _SECONDS
) -> dict[Arithmetic, float]:
    """The best time of each step, taken in turns until the time is over; one that fails, or is far behind, drops
    out."""
    best: dict[Arithmetic, float] = {}
    running, failures, until = dict(steps), list[str](), clock() + seconds
    for turn in range(_TURNS + 1):
        for arithmetic, step in list(running.items()):
            start = clock()
            try:
                step()
            except RuntimeError as error:  # how torch says that this processor lacks a product
                failures.append(f"{arithmetic.name}: {error}")
                del running[arithmetic]
                best.pop(arithmetic, None)
                continue
            if turn:  # the first warms everything up
                best[arithmetic] = min(best.get(arithmetic, float("inf")), clock() - start)
        fastest = min(best.values(), default=float("inf"))
        running = {
            candidate: step for candidate, step in running.items() if best.get(candidate, 0.0) <= _HOPELESS * fastest
        }
        if turn >= _LEAST_TURNS and clock() > until:
            break
    if not best:
        raise UsageError(f"no arithmetic can train this base here: {'; '.join(failures)}")
    return best


def _step_of(spec: TransformerSpec, trained: TrainedPart, arithmetic: Arithmetic) -> Callable[[], None]:
    """A forward and backward pass of the first blocks over one packed batch."""
    model = Decoder(spec.with_(layers=_blocks(spec), vocab_size=_VOCABULARY)).to(arithmetic.torch_dtype).train()
    set_products(model, arithmetic.products)
    parameters = list(model.parameters())
    if trained == "adapters":
        model.requires_grad_(False)
        bank = Bank(model)
        slot = bank.add(LoraConfig(r=16, alpha=32.0))
        bank.select(slot)
        parameters = [p for _, p in bank.parameters(slot)]
    length, shared = _lengths(spec)
    prefix = tuple(i % _VOCABULARY for i in range(shared))
    loss = (False,) * (length - 1) + (True,)
    examples = [
        TrainingExample((*prefix, *((7 * n + i) % _VOCABULARY for i in range(length - len(prefix)))), loss, str(n))
        for n in range(_DOCUMENTS)
    ]
    batch, objective = pack_examples(examples), Sft()

    def step() -> None:
        objective({"policy": model}, batch)["sft"].total.backward()
        for parameter in parameters:
            parameter.grad = None

    return step


def _lengths(spec: TransformerSpec) -> tuple[int, int]:
    """Tokens of a document, and how many of them all documents share."""
    length = min(_PREFIX + _SUFFIX, spec.context_length)
    return length, min(_PREFIX, length // 2)


def _blocks(spec: TransformerSpec) -> int:
    first_block = Decoder(spec.with_(layers=1, vocab_size=_VOCABULARY), "meta").layers
    large = sum(p.numel() for p in first_block.parameters()) > _MOST_BLOCK_WEIGHTS
    return 1 if large else min(2, spec.layers)


def set_products(model: torch.nn.Module, products: Products) -> None:
    """By which library the linears of the model multiply while gradients are recorded."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.products = products
