"""Tuning one adapter on one base: the bank, the source, the loop and the loss on held-out examples, put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.peft import hf_module_name
from bedplate.core.errors import UsageError
from bedplate.core.files import sha256_json
from bedplate.models.checkpoints.base import Base
from bedplate.models.decoder import Decoder
from bedplate.training.batch import Batch, Example
from bedplate.training.config import TrainConfig
from bedplate.training.loop import OnCheckpoint, TrainResult, evaluate_loss, train
from bedplate.training.objectives import OBJECTIVES
from bedplate.training.sources import ExampleSource, Order


@dataclass(frozen=True)
class TunedAdapter:
    """An adapter (`Bank.state`: float32, on the CPU), how its run went, and its loss per token on held-out examples."""

    config: LoraConfig
    tensors: dict[str, Tensor]
    result: TrainResult
    valid_loss: float | None


def tune_adapter(
    base: Base,
    lora: LoraConfig,
    examples: Sequence[Example],
    valid_examples: Sequence[Example],
    config: TrainConfig,
    out: Path,
    *,
    batch_size: int = 16,
    epochs: int = 1,
    order: Order = "shuffled",
    share_prefix: bool = True,
    tensors: Mapping[str, Tensor] | None = None,
    on_checkpoint: OnCheckpoint | None = None,
    description: str = "LoRA",
) -> TunedAdapter:
    """Trains a LoRA adapter on `examples` with the `sft` objective; the base is left as it was.

    `config.seed` decides the initial adapter (unless `tensors` gives one), the order and dropout. The same call after
    a crash resumes what `out` holds, to the same weights. Raises UsageError for an encoder, and what `train` raises.
    """
    if not isinstance(base.model, Decoder):
        raise UsageError(f"{base.name} is an encoder: an adapter is tuned on a decoder's next token")
    source = ExampleSource(
        examples,
        batch_size,
        seed=config.seed,
        epochs=epochs,
        order=order,
        share_prefix=share_prefix,
        context_length=base.spec.context_length,
    )
    bank = Bank(base.model, 1, hf_name=lambda path: hf_module_name(base.family.weights, path))
    try:
        slot = bank.add(lora, tensors, config.seed, trainable=True)
        bank.select(slot)
        identity = {
            "base": base.identity.weights_id,
            "dtype": str(base.dtype),
            "lora": lora.model_dump(mode="json"),
            "initial": "seed" if tensors is None else sha256_json({n: t.tolist() for n, t in sorted(tensors.items())}),
        }
        result = train(
            base.model,
            source,
            OBJECTIVES["sft"](),
            config,
            out,
            bank.parameters(slot),
            on_checkpoint,
            identity=identity,
            description=description,
        )
        valid = _loss(base, valid_examples, batch_size) if valid_examples else None
        return TunedAdapter(lora, bank.state(slot), result, valid)
    finally:
        bank.close()


def _loss(base: Base, examples: Sequence[Example], batch_size: int) -> float:
    assert isinstance(base.model, Decoder)
    source = ExampleSource(examples, batch_size, context_length=base.spec.context_length)
    return evaluate_loss(base.model, _batches(source, base), OBJECTIVES["sft"]())["sft"]


def _batches(source: ExampleSource, base: Base) -> Iterator[Batch]:
    for step in source:
        yield from (batch.to(base.device) for batch in step)
