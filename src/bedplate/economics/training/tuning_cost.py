"""What tuning a base on a task's examples costs, with all weights or with LoRA.

Operations a token, N the weights in products:

    all weights   6·N            forward 2·N, gradients of inputs 2·N, of weights 2·N
    LoRA          4·N + 6·A      the frozen base has no gradients of weights; A, the adapter's, has all three

Attention's own products have no weights: three forward passes in both. The head may be computed on the tokens that are
learned only (`learned_tokens`), which is what `training` does here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bedplate.core.display import Brief
from bedplate.core.errors import UsageError
from bedplate.economics.hardware.devices import Device, Execution, Precision, peak_of
from bedplate.economics.model.footprint import lora_parameters, stacks_of, training_flops_per_token
from bedplate.economics.model.named_model import resolve
from bedplate.economics.model.parameters import Optimizer, parameters
from bedplate.economics.numbers.formula import Range, at_least, formulas_of, positive, share, whole
from bedplate.economics.training.device_layout import DeviceBytes, DeviceLayout, shape_of
from bedplate.economics.training.layout_search import TrainingJob, find_layout
from bedplate.economics.training.training_cost import DevicePrice, device_hours, mfu_of, plan_values, price_of
from bedplate.models.specs import Spec

Method = Literal["lora", "full"]

TUNING_FORMULAS = formulas_of("tuning")


@dataclass(frozen=True, repr=False)
class TuningPlan(Brief):
    """One run of tuning. seconds: of the wall clock, over all epochs. usd: None where no price is known."""

    model: str
    method: Method
    trained_parameters: int
    tokens: float
    flops_per_token: float
    flops: float
    saved_flops: float
    mfu: Range | None
    gpu_hours: Range
    seconds: Range
    price: DevicePrice | None
    usd: Range | None
    layout: DeviceLayout
    bytes: DeviceBytes

    def as_json(self) -> dict[str, Any]:
        """Central figures by name, each range beside it as `…_range`."""
        return plan_values(self, TUNING_FORMULAS)


def tuning_flops_per_token(
    spec: Spec, sequence_tokens: int, method: Method = "lora", *, rank: int = 16, learned_share: float = 1.0
) -> float:
    """Operations for each token of the examples. learned_share: of them, whose next token is learned."""
    if method not in {"lora", "full"}:
        raise UsageError(f"there is no method {method!r}; there are lora, full")
    share(learned_share=learned_share)
    whole_step = training_flops_per_token(spec, sequence_tokens)
    attention = whole_step * shape_of(spec, sequence_tokens).attention_share
    # A token of an encoder–decoder passes one side of two: the head and half of the adapter are its target's.
    stack_share = 1 / len(stacks_of(spec))
    products = whole_step - attention - 6 * stack_share * parameters(spec).head * (1 - learned_share)
    if method == "full":
        return products + attention
    return products * 4 / 6 + 6 * stack_share * lora_parameters(spec, rank) + attention


def plan_tuning(
    model: str | Spec,
    examples: float,
    tokens_per_example: float,
    device: Device,
    devices: int = 1,
    *,
    method: Method = "lora",
    epochs: float = 1.0,
    rank: int = 16,
    learned_tokens: float | None = None,
    batch_examples: int = 16,
    precision: Precision = "bf16",
    execution: Execution = "eager",
    optimizer: Optimizer = "adamw",
    mfu_share: float | None = None,
    tokens_per_second: float | None = None,
    overhead: float = 1.0,
    usd_per_hour: float | None = None,
) -> TuningPlan:
    """The plan of tuning `model` on `examples` examples, `epochs` times.

    learned_tokens: of an example, that the loss is on (None: all). tokens_per_second: of the whole machine, where it
    was measured; then MFU does not matter. overhead: several seeds, failed runs, evaluation: 3 for three runs. Raises
    UsageError for numbers that cannot be, DoesNotFit where it does not fit.
    """
    name, spec = resolve(model) if isinstance(model, str) else ("the model", model)
    positive(examples=examples, tokens_per_example=tokens_per_example, epochs=epochs)
    whole(devices=devices, batch_examples=batch_examples, rank=rank)
    learned = tokens_per_example if learned_tokens is None else learned_tokens
    positive(learned_tokens=learned)
    if learned > tokens_per_example:
        raise UsageError(f"{learned:g} learned tokens in an example of {tokens_per_example:g}: there cannot be more")
    sequence = max(1, round(tokens_per_example))
    tokens = examples * tokens_per_example * epochs
    learned_share = learned / tokens_per_example
    flops_per_token = tuning_flops_per_token(spec, sequence, method, rank=rank, learned_share=learned_share)
    trained = lora_parameters(spec, rank) if method == "lora" else parameters(spec).total
    reached = None
    if tokens_per_second is None:
        at_least(1, overhead=overhead)
        reached = mfu_of(device, devices, precision, execution, mfu_share)
        hours = device_hours(flops_per_token * tokens, peak_of(device, precision), reached, overhead)
    else:
        positive(tokens_per_second=tokens_per_second, overhead=overhead)
        hours = Range.exactly(tokens / tokens_per_second / 3600 * devices * overhead)
    price, adapter = price_of(device, usd_per_hour), trained if method == "lora" else 0
    sequences = max(batch_examples, devices)
    job = TrainingJob(spec, device, devices, sequence, sequences, precision, optimizer, method, adapter)
    fitted = find_layout(job, name)
    saved_per_token = tuning_flops_per_token(spec, sequence, "full", learned_share=learned_share) - flops_per_token
    return TuningPlan(
        model=name,
        method=method,
        trained_parameters=trained,
        tokens=tokens,
        flops_per_token=flops_per_token,
        flops=flops_per_token * tokens,
        saved_flops=saved_per_token * tokens,
        mfu=reached,
        gpu_hours=hours,
        seconds=hours.times(Range.exactly(3600 / devices)),
        price=price,
        usd=None if price is None else hours.times(price.usd_per_hour),
        layout=fitted.layout,
        bytes=fitted.bytes,
    )
