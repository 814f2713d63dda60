"""Training low-rank weights, plain and with magnitudes: losses, gradients, AdamW steps and outputs equal peft's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.near import assert_near
from tests.references import LLAMA_VARIANTS, reference_llama
from tests.training.against_peft import LLAMA, examples, loss_of, ours

from bedplate.adapters.bank import Bank
from bedplate.adapters.linear_adapter import MAGNITUDE
from bedplate.adapters.lora import LoraConfig
from bedplate.models.inputs import Inputs
from bedplate.training.batch import pack_examples
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import Sft
from bedplate.training.sources import ExampleSource

STEPS, RATE = 5, 0.01
# transformers' own deprecation, reached from inside peft
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def peft_names(bank: Bank, slot: int, named: dict[str, Any]) -> dict[str, Any]:
    """Our name → peft's parameter."""
    peft_parameters: dict[str, Any] = {}
    for name, _ in bank.parameters(slot):
        path, factor = name.rsplit(".", 1)
        module = (LLAMA.weights.to_external(f"{path}.weight") or "").removesuffix(".weight")
        peft_parameters[name] = named[f"base_model.model.{module}.{factor}.default.weight"]
    return peft_parameters


@pytest.mark.parametrize(
    ("seed", "variant", "dora"),
    [
        (0, "tied", False),
        (1, "untied", True),
        (2, "biases", True),
        (3, "multi_query", False),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in ((0, "tied", True), (1, "untied", False), (2, "biases", False), (3, "multi_query", True))
        ),
    ],
)
def test_training_equals_pefts(tmp_path: Path, seed: int, variant: str, dora: bool):
    reference = reference_llama(seed, **LLAMA_VARIANTS[variant])
    model = ours(reference)
    bank = Bank(model)
    config = LoraConfig(r=4, alpha=6.0, dora=dora, rslora=bool(seed % 2))
    fresh = bank.add(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    # B of a fresh adapter is 0, and most of the mathematics would not be seen in the first step
    start = {
        name: torch.randn(value.shape, generator=generator) * 0.1 if name.endswith("lora_B") else value
        for name, value in bank.state(fresh).items()
    }
    bank.remove(fresh)
    slot = bank.add(config, start, trainable=True)
    bank.select(slot)
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        use_dora=dora,
        use_rslora=bool(seed % 2),
    )
    theirs = peft.get_peft_model(reference, settings)
    in_peft = peft_names(bank, slot, dict(theirs.named_parameters()))
    for name, parameter in in_peft.items():
        if name.endswith(MAGNITUDE):  # peft starts them from the weights, as we do
            assert_near(start[name], parameter.detach())
        parameter.data.copy_(start[name])
    assert dora == any(name.endswith(MAGNITUDE) for name in in_peft)
    batches = [examples(10 * seed + step) for step in range(STEPS)]

    # one batch: loss and gradients
    loss = loss_of(theirs, batches[0])
    loss.backward()
    term = Sft()({"policy": model}, pack_examples(batches[0]))["sft"]
    mean = term.total / term.weight
    mean.backward()
    assert_near(mean, loss)
    for name, parameter in bank.parameters(slot):
        assert parameter.grad is not None
        assert_near(parameter.grad, in_peft[name].grad, rel=1e-4, label=name)
        parameter.grad = None
    assert sum(float(p.grad.abs().sum()) for p in in_peft.values()) > 1.0

    # several AdamW steps, through the training loop
    optimizer = torch.optim.AdamW(in_peft.values(), lr=RATE, weight_decay=0.0, eps=1e-3)
    losses: list[float] = []
    for batch in batches:
        optimizer.zero_grad()
        value = loss_of(theirs, batch)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    plain = TrainConfig(learning_rate=RATE, schedule="constant", warmup=0.0, clip=None, eps=1e-3)
    source = ExampleSource([e for b in batches for e in b], len(batches[0]))
    result = train(model, source, Sft(), plain, tmp_path, bank.parameters(slot))
    our_losses = [json.loads(line)["loss"] for line in result.metrics_path.read_text().splitlines()]
    assert_near(our_losses, losses)
    assert max(losses) - min(losses) > 1e-3
    for name, parameter in bank.parameters(slot):
        assert_near(parameter.detach(), in_peft[name].detach(), rel=1e-4, label=name)
        assert not torch.equal(parameter.detach(), start[name])

    # and what the trained adapters say: being trained, frozen in the bank, and merged
    tokens = torch.tensor([batches[0][0].ids])
    with torch.no_grad():
        expected = theirs.eval()(input_ids=tokens).logits[0]

        def our_logits() -> torch.Tensor:
            return model.head(model(Inputs(tokens)).hidden[0])

        assert_near(our_logits(), expected)
        trained = bank.state(slot)
        bank.select(None)
        bank.remove(slot)
        slot = bank.add(config, trained)
        bank.select(slot)
        assert_near(our_logits(), expected)
        bank.merge(slot)
        assert_near(our_logits(), expected)
