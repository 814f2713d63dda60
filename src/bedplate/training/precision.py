"""The arithmetic of a run (dtype and product library): chosen by timing training steps on this machine, applied while
the run lasts, undone afterwards.

A base is loaded in the dtype that inference or its user chose, and another may train faster: the candidates run in
turns on the first blocks (with random weights) at typical shapes of fine-tuning, and the best time of each counts. A
bfloat16 weight is a float32 number, so widening changes no value; the original of a frozen weight is set aside and
restored bit by bit, a trained weight returns as its float32 master, rounded. A weight belongs to one run at a time.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.core.errors import TrainingError, UsageError
from bedplate.core.measurements import measured_once, patience
from bedplate.core.memory import free_bytes, keeping
from bedplate.core.processor import processor_kind
from bedplate.models.decoder import Decoder
from bedplate.models.encoder_decoder import EncoderStatesLayout
from bedplate.models.layers.block import Block
from bedplate.models.layers.linear import Linear, Products, has_onednn
from bedplate.models.model import Model
from bedplate.models.packed.block_attention import BlockAttention
from bedplate.models.precision import DTYPES, dtype_name
from bedplate.models.specs.transformer import TransformerSpec
from bedplate.training.batch import TrainingExample, pack_examples
from bedplate.training.config import DtypeChoice, TrainConfig
from bedplate.training.objectives.language import Sft
from bedplate.training.objectives.objective import AnyModel, Models
from bedplate.training.optimizers import Optimization
from bedplate.training.ranks import Ranks

TrainedPart = Literal["adapters", "weights"]
"""What a run trains: parameters added to a frozen base, or the base's own weights."""

MIN_WEIGHTS = 2_000_000
"""A base with fewer weights in its blocks keeps its own dtype unmeasured: call overhead dominates its steps."""
CLEAR_SPEEDUP = 1.05
"""The speed-up from which another arithmetic replaces the base's own."""
_MAX_BLOCK_WEIGHTS = 50_000_000
MAX_ROUNDS, MIN_ROUNDS, MAX_SECONDS, BUSY_SECONDS = 12, 3, 2.0, 6.0
HOPELESS_RATIO = 2.5  # an arithmetic slower than the fastest by this factor is not timed further
_DOCUMENTS, _PREFIX, _SUFFIX, _VOCABULARY = 12, 16, 32, 64  # of the batch that is timed


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic of a run. dtype: of weights and activations while training ("float32"). products: the library for
    linears' products on a CPU."""

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
    """The arithmetic of the model's own dtype, without any change."""
    return Arithmetic(dtype_name(next(model.parameters()).dtype))


def candidates(native: Arithmetic, device: torch.device, trained: TrainedPart) -> list[Arithmetic]:
    """The arithmetics in which a base may be trained, its own first."""
    if device.type != "cpu" or native.dtype not in ("bfloat16", "float32"):
        return [native]
    arithmetics = [native, Arithmetic("float32" if native.dtype == "bfloat16" else "bfloat16")]
    # in bfloat16 torch's usual call is oneDNN's already
    return [*arithmetics, Arithmetic("float32", "onednn")] if has_onednn() else arithmetics


def choose(model: AnyModel, trained: TrainedPart, dtype: DtypeChoice = "auto") -> Arithmetic:
    """Chooses the fastest arithmetic for training this base here, among those of the requested dtype.

    The base's own unless another is clearly faster. Only decoders in bfloat16 or float32 on CPUs, large enough that
    arithmetic dominates a step, are measured. UsageError for a dtype that is not available.
    """
    native = native_arithmetic(model)
    if dtype != "auto" and native.dtype not in ("bfloat16", "float32"):
        raise UsageError(f"training in {dtype} is for bases in bfloat16 or float32, and this one is {native.dtype}")
    arithmetics = candidates(native, next(model.parameters()).device, trained)
    of_these = [arithmetic for arithmetic in arithmetics if dtype in ("auto", arithmetic.dtype)] or [Arithmetic(dtype)]
    if len(of_these) == 1 or not _worth_measuring(model):
        return of_these[0]
    try:
        return _best(measured(model.spec.main, trained, arithmetics), of_these)
    except TimeoutError:  # without wide vectors products of bfloat16 are slow
        wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
        return next((a for a in of_these if wide or a.dtype == "float32"), of_these[0])


def _best(seconds: dict[Arithmetic, float], arithmetics: Sequence[Arithmetic]) -> Arithmetic:
    """The fastest arithmetic; the first of them unless another is clearly faster."""
    best, first = min(arithmetics, key=lambda arithmetic: seconds.get(arithmetic, float("inf"))), arithmetics[0]
    return best if first not in seconds or seconds[best] * CLEAR_SPEEDUP < seconds[first] else first


def _worth_measuring(model: AnyModel) -> TypeGuard[Decoder]:
    if not isinstance(model, Decoder):
        return False
    return sum(p.numel() for p in model.layers.parameters()) >= MIN_WEIGHTS


def token_seconds(model: Model, dtype: DtypeChoice = "auto") -> float | None:
    """Seconds of one training token of adapters through all blocks, in the arithmetic that `choose` gives, for a batch
    of a few hundred short tokens on an idle machine. None where nothing is measured."""
    arithmetics = candidates(native_arithmetic(model), model.device, "adapters")
    if len(arithmetics) == 1 or not _worth_measuring(model):
        return None
    spec = model.spec.main
    try:
        seconds, fastest = measured(spec, "adapters", arithmetics), choose(model, "adapters", dtype)
    except TimeoutError:
        return None
    if fastest not in seconds:
        return None
    length, prefix = _lengths(spec)
    tokens = prefix + _DOCUMENTS * (length - prefix)
    return seconds[fastest] / tokens * spec.layers / _blocks(spec)


def measured(spec: TransformerSpec, trained: TrainedPart, arithmetics: Sequence[Arithmetic]) -> dict[Arithmetic, float]:
    """Seconds of one training step of a few blocks by arithmetic, cached for this machine; arithmetics that cannot run
    here are left out. TimeoutError where none is cached and there is no time to measure."""
    key = {
        "version": 2,
        "cpu": processor_kind(),
        "threads": torch.get_num_threads(),
        "torch": [str(torch.__version__), torch.backends.cpu.get_cpu_capability()],
        "onednn": [os.environ.get(name) for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")],  # instruction sets
        "spec": spec.key(),
        "trained": trained,
        "ways": [arithmetic.to_json() for arithmetic in arithmetics],
    }

    def to_json(seconds_by_arithmetic: dict[Arithmetic, float]) -> Any:
        return [[arithmetic.to_json(), seconds] for arithmetic, seconds in seconds_by_arithmetic.items()]

    def from_json(record: Any) -> dict[Arithmetic, float]:
        seconds_by_arithmetic = {Arithmetic.of_json(fields): float(seconds) for fields, seconds in record}
        known = seconds_by_arithmetic.keys() <= set(arithmetics)
        if not seconds_by_arithmetic or not known or not all(0 < s < 1e6 for s in seconds_by_arithmetic.values()):
            raise ValueError("impossible times")
        return seconds_by_arithmetic

    return measured_once("training", key, lambda: measure(spec, trained, arithmetics), to_json, from_json)


def measure(spec: TransformerSpec, trained: TrainedPart, arithmetics: Sequence[Arithmetic]) -> dict[Arithmetic, float]:
    """Measures in a second or two, and restores the process's state. UsageError if no arithmetic can run; TimeoutError
    where there is too little time to measure on a busy machine."""
    if patience(BUSY_SECONDS) < BUSY_SECONDS:
        raise TimeoutError
    # Keeps freed memory, as in a run: otherwise timings would include the system's clearing of pages.
    with keeping(), torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(0)
        steps = {arithmetic: _step_of(spec, trained, arithmetic) for arithmetic in arithmetics}
        return by_turns(steps, time.perf_counter)


def by_turns(
    steps: dict[Arithmetic, Callable[[], None]], clock: Callable[[], float], seconds: float = MAX_SECONDS
) -> dict[Arithmetic, float]:
    """The best time of each step, run in turns until the time is up; a step that fails, or is far slower, drops out.
    Where time is short, the first round, which warms up, is the only one and counts."""
    best, began, room = dict[Arithmetic, float](), clock(), patience(math.inf)
    running, failures, until = dict(steps), list[str](), began + seconds
    for round_number in range(MAX_ROUNDS + 1):
        warm_up = dict[Arithmetic, float]()
        for arithmetic, step in list(running.items()):
            start = clock()
            try:
                step()
            except RuntimeError as error:  # torch's error for a product that this processor does not support
                failures.append(f"{arithmetic.name}: {error}")
                del running[arithmetic]
                best.pop(arithmetic, None)
                continue
            times = best if round_number else warm_up
            times[arithmetic] = min(times.get(arithmetic, float("inf")), clock() - start)
        fastest = min(best.values(), default=float("inf"))
        limit = HOPELESS_RATIO * fastest
        running = {arithmetic: step for arithmetic, step in running.items() if best.get(arithmetic, 0.0) <= limit}
        if clock() - began > room:
            best = best or warm_up
            break
        if round_number >= MIN_ROUNDS and clock() > until:
            break
    if not best:
        raise UsageError(f"no arithmetic can train this base here: {'; '.join(failures)}")
    return best


def _step_of(spec: TransformerSpec, trained: TrainedPart, arithmetic: Arithmetic) -> Callable[[], None]:
    """A forward and backward pass of the first blocks over one packed batch."""
    model = Decoder(spec.with_(layers=_blocks(spec), vocab_size=_VOCABULARY)).to(arithmetic.torch_dtype).train()
    for linear in _linears(model):
        linear.products = arithmetic.products
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
    large = sum(p.numel() for p in first_block.parameters()) > _MAX_BLOCK_WEIGHTS
    return 1 if large else min(2, spec.layers)


def _linears(model: AnyModel) -> list[Linear]:
    return [module for module in model.modules() if isinstance(module, Linear)]


logger = logging.getLogger("bedplate.training")
MEMORY_FACTOR = 1.1
"""Free memory that a conversion needs, relative to the converted weights."""
_claimed_weights: set[int] = set()
"""Ids of the parameters that runs of this process compute with now."""
_claims_lock = threading.Lock()


def policy_of(models: Models) -> AnyModel:
    return models.get("policy", next(iter(models.values())))


def run_arithmetic(
    roles: Models,
    config: TrainConfig,
    store: object,
    saved: Mapping[str, Any] | None,
    trained: Mapping[str, nn.Parameter],
    ranks: Ranks,
) -> Arithmetic:
    """The arithmetic of the run: a saved run's own, else the requested dtype, or the fastest that memory allows; for
    distributed models, the one they were distributed with."""
    policy = policy_of(roles)
    native = native_arithmetic(policy)
    try:
        before = None if saved is None else Arithmetic.of_json(saved["arithmetic"])
    except (KeyError, ValueError, TypeError) as error:
        raise TrainingError(f"{store}: the saved state names no arithmetic ({error}); delete it") from error
    if ranks.world > 1:
        native = Arithmetic(dtype_name(ranks.computes_in(next(iter(trained.values())))))
        if before is not None and before.dtype != native.dtype:
            raise TrainingError(f"{store}: this run computes in {before.dtype}, and the ranks in {native.dtype}")
        if config.dtype not in ("auto", native.dtype):
            raise UsageError(f"dtype is {config.dtype}, but the ranks were given models in {native.dtype}")
        return native
    if before is not None:
        return before
    if not of_one_dtype(roles):
        return native
    weights = {id(p) for model in roles.values() for p in model.parameters()}
    trained_part = "weights" if any(id(p) in weights for p in trained.values()) else "adapters"
    fastest = choose(policy, trained_part, config.dtype)
    reason = lacks_room(roles, fastest)
    if reason is None or config.dtype != "auto":
        return fastest
    logger.warning("training in %s is faster here, but %s; training in %s instead", fastest.dtype, reason, native.dtype)
    return native


def lacks_room(models: Models, arithmetic: Arithmetic) -> str | None:
    """Why the models cannot be converted to this arithmetic while the originals stay in memory; None where they can."""
    dtype, free = arithmetic.torch_dtype, free_bytes()
    needed = sum(p.numel() * dtype.itemsize for p in _changed(models, dtype))
    if needed and any(isinstance(model, Model) and model.readers > 0 for model in models.values()):
        return "an engine computes with these weights, so they cannot be converted (use `Engine.exclusive`)"
    device = next(next(iter(models.values())).parameters()).device
    if not needed or free is None or device.type != "cpu" or MEMORY_FACTOR * needed <= free:
        return None
    return (
        f"the weights in {arithmetic.dtype} take {needed / 1e9:.2f} GB in addition to the originals, and "
        f"{free / 1e9:.2f} GB of memory are free"
    )


@contextmanager
def computing(models: Models, arithmetic: Arithmetic) -> Generator[dict[int, Tensor]]:
    """A context in which the models are in this arithmetic; yields, by parameter id, the original tensor of each
    converted parameter, which is restored afterwards. Parameters stay the same objects; models of mixed dtypes are not
    converted.

    TrainingError where the memory does not suffice, or another run of this process computes with one of the weights.
    """
    weight_ids = {id(p) for model in models.values() for p in model.parameters()}
    with _claims_lock:
        if _claimed_weights & weight_ids:
            raise TrainingError(
                "another run of this process computes with these weights, and may change their dtype and "
                "values at any moment; wait until it has ended, or load the base a second time"
            )
        _claimed_weights.update(weight_ids)
    try:
        yield from _computing(models, arithmetic)
    finally:
        with _claims_lock:
            _claimed_weights.difference_update(weight_ids)


def _computing(models: Models, arithmetic: Arithmetic) -> Generator[dict[int, Tensor]]:
    reason = lacks_room(models, arithmetic)
    if reason is not None:
        raise TrainingError(f"this run computes in {arithmetic.dtype}, but {reason}; fix this, or use a smaller base")
    before = [(parameter, parameter.data) for parameter in _changed(models, arithmetic.torch_dtype)]
    linears = [linear for model in models.values() for linear in _linears(model)]
    products: list[Products] = [linear.products for linear in linears]
    converted = [model for model in models.values() if isinstance(model, Model) and not model.converted]
    try:
        for model in converted if before else ():
            model.converted = True
        for parameter, original in before:
            parameter.data = original.to(arithmetic.torch_dtype)
        for linear in linears:
            linear.products = arithmetic.products
        yield {id(parameter): original for parameter, original in before}
    finally:
        for parameter, original in before:
            parameter.grad = None  # a gradient of the converted dtype
            parameter.data = original
        for model in converted:
            model.converted = False
        for linear, product in zip(linears, products, strict=True):
            linear.products = product


def of_one_dtype(models: Models) -> bool:
    """Whether all models have one dtype, and so can be converted for a run."""
    return len({p.dtype for model in models.values() for p in model.parameters()}) == 1


def _changed(models: Models, dtype: torch.dtype) -> list[nn.Parameter]:
    parameters_by_id = {id(p): p for model in models.values() for p in model.parameters()}
    return [p for p in parameters_by_id.values() if p.dtype != dtype] if of_one_dtype(models) else []


@contextmanager
def only_trained(models: Models, optimization: Optimization) -> Generator[None]:
    """A context with gradients on exactly the trained parameters and the policy in training mode; restored
    afterwards."""
    parameters_by_id = {id(p): p for model in models.values() for p in model.parameters()}
    parameters_by_id |= {id(p): p for p in optimization.parameters.values()}
    before = [(p, p.requires_grad) for p in parameters_by_id.values()]
    modes = [(m, m.training) for model in models.values() for m in model.modules()]
    trained = {id(p) for p in optimization.parameters.values()}
    try:
        for p in parameters_by_id.values():
            p.requires_grad_(id(p) in trained)
        for role, model in models.items():
            model.train(role == "policy")
        yield
    finally:
        for p, required in before:
            p.requires_grad_(required)
            p.grad = None
        for module, mode in modes:
            module.training = mode


@contextmanager
def compiled(model: AnyModel, enabled: bool) -> Generator[None]:
    """A context in which each block of the model is compiled, if enabled, except its attention over packed rows (which
    has a kernel of its own on devices)."""
    if not enabled:
        yield
        return
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    with warnings.catch_warnings():
        # torch's compiler triggers these two warnings itself.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
        warnings.filterwarnings("ignore", ".*torch.autograd.function.Function.*should not be instantiated")
        # The documents' places differ in each batch, for which blocks would be recompiled.
        uncompiled = ((BlockAttention, "__call__"), (EncoderStatesLayout, "cross_attend"))
        calls = [getattr(owner, name) for owner, name in uncompiled]
        try:
            for (owner, name), call in zip(uncompiled, calls, strict=True):
                setattr(owner, name, torch.compiler.disable(call))
            for block in blocks:
                block.compile()
            yield
        finally:
            for (owner, name), call in zip(uncompiled, calls, strict=True):
                setattr(owner, name, call)
            for block in blocks:
                block._compiled_call_impl = None  # pyright: ignore[reportPrivateUsage]  # there is no public way back
