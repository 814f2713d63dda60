"""Low-rank weights and a head learned together on an encoder: losses and gradients are peft's, on padded rows."""

from __future__ import annotations

import random
from pathlib import Path

import peft
import pytest
import torch
from tests.encoders import ENCODERS, converted
from tests.near import assert_near
from tests.peft_directory import write_peft
from torch import nn

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import hf_module_name
from bedplate.core.errors import DataError, UsageError
from bedplate.training.batch import LabelledText, pack_texts
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.classification import ClassificationObjective
from bedplate.training.sources import LabelledTextSource

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def texts(seed: int, several: bool, count: int = 5) -> list[LabelledText]:
    draw = random.Random(seed)
    generated: list[LabelledText] = []
    for number in range(count):
        ids = tuple(draw.randrange(5, 97) for _ in range(draw.randint(1, 30)))
        right = [float(draw.random() < 0.5) for _ in range(3)] if several else [0.0] * 3
        if not several:
            right[draw.randrange(3)] = 1.0
        generated.append(LabelledText(ids, tuple(right), f"{seed}/{number}"))
    return generated


def loss_of(
    theirs: nn.Module, head: nn.Linear, labelled_texts: list[LabelledText], pooling: str, several: bool
) -> torch.Tensor:
    """With transformers' own padding, and torch's own losses."""
    width = max(len(text.ids) for text in labelled_texts)
    ids = torch.tensor([[*text.ids, *[0] * (width - len(text.ids))] for text in labelled_texts])
    mask = torch.tensor([[*[1] * len(text.ids), *[0] * (width - len(text.ids))] for text in labelled_texts])
    states = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    logits = head(mean if pooling == "mean" else states[:, 0])
    targets = torch.tensor([text.targets for text in labelled_texts], dtype=logits.dtype)
    if several:
        return nn.BCEWithLogitsLoss(reduction="none")(logits, targets).sum(1).mean()
    return nn.functional.cross_entropy(logits, targets.argmax(1))


@pytest.mark.parametrize(
    ("name", "seed", "pooling", "several", "dora"),
    [
        ("bert", 0, "mean", False, False),
        ("bert", 1, "first", True, True),
        ("roberta", 2, "mean", True, False),
        ("roberta", 3, "first", False, True),
    ],
)
def test_losses_and_gradients_are_those_of_peft(
    tmp_path: Path, name: str, seed: int, pooling: str, several: bool, dora: bool
) -> None:
    dtype = torch.float64 if seed % 2 else torch.float32
    reference = ENCODERS[name].random_model(seed, dtype)
    model, family = converted(reference, dtype)
    model.requires_grad_(False).eval()
    config, bank = LoraConfig(r=3, alpha=5, dora=dora), Bank(model)
    fresh = bank.add(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    start = {
        key: torch.randn(value.shape, generator=generator) * 0.1 if key.endswith("lora_B") else value
        for key, value in bank.state(fresh).items()
    }
    bank.remove(fresh)
    slot = bank.add(config, start, trainable=True)
    bank.select(slot)
    write_peft(tmp_path / "a", config, start, family.weights, base_name="x", task_type="FEATURE_EXTRACTION")
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "a", is_trainable=True).eval()
    head = nn.Linear(48, 3, dtype=dtype)
    weight, bias = (nn.Parameter(tensor.detach().clone()) for tensor in (head.weight, head.bias))
    labelled_texts, objective = (
        texts(seed, several),
        ClassificationObjective(weight, bias, model.spec.layers, pooling, several),
    )
    [term] = objective({"policy": model}, pack_texts(labelled_texts)).values()
    loss, expected = term.total / term.weight, loss_of(theirs, head, labelled_texts, pooling, several)
    tolerance = 1e-9 if dtype == torch.float64 and not dora else 2e-5  # magnitudes and adapters are float32
    assert_near(loss, expected, tolerance)
    loss.backward()
    expected.backward()
    assert_near(weight.grad, head.weight.grad, tolerance)
    assert_near(bias.grad, head.bias.grad, tolerance)
    named = dict(theirs.named_parameters())
    for key, parameter in bank.parameters(slot):
        path, end = key.rsplit(".", 1)
        place = f"base_model.model.{hf_module_name(family.weights, path)}.{end}.default.weight"
        assert_near(parameter.grad, named[place].grad, 2e-5, label=key)


def test_a_step_is_the_same_in_pieces_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Micro-batches, an order by length, and a run that is cut in two."""
    all_texts = texts(7, False, 23)

    def run(directory: Path, micro_tokens: int, *steps: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        model, _ = converted(ENCODERS["bert"].random_model(0, torch.float32), torch.float32)
        for count in steps:
            bank = Bank(model.requires_grad_(False))
            slot = bank.add(LoraConfig(r=2, alpha=4), seed=1, trainable=True)
            bank.select(slot)
            weight, bias = nn.Parameter(torch.zeros(3, 48)), nn.Parameter(torch.zeros(3))
            objective = ClassificationObjective(weight, bias, 4, "mean", several=False)
            source = LabelledTextSource(all_texts, 6, seed=3, epochs=3, order="length", micro_tokens=micro_tokens)
            config = TrainConfig(learning_rate=1e-2, seed=0, steps=12, save_steps=5, dtype="float32")
            parameters = [*bank.parameters(slot), *objective.parameters()]
            stop = None if count == 12 else lambda step, _: (_ for _ in ()).throw(KeyboardInterrupt)
            try:
                result = train(model, source, objective, config, directory, parameters, stop)
                assert result.losses["classification"] < 1.0
            except KeyboardInterrupt:
                bank.close()
                continue
            state = bank.state(slot)
            bank.close()
            return state, weight.detach()
        raise AssertionError("the run was never finished")

    whole, head = run(tmp_path / "whole", 4096, 12)
    pieces, pieces_head = run(tmp_path / "pieces", 40, 12)
    assert_near(pieces_head, head, 2e-4)
    for key, value in whole.items():
        assert_near(pieces[key], value, 2e-3, label=key)
    resumed, resumed_head = run(tmp_path / "cut", 4096, 5, 12)
    assert torch.equal(resumed_head, head)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(DataError, match="'7' has no tokens"):
        LabelledText((), (1.0, 0.0), "7")
    with pytest.raises(DataError, match="at least one"):
        pack_texts([])
    with pytest.raises(DataError, match="30 tokens, but the context holds 20"):
        LabelledTextSource([LabelledText((5,) * 30, (1.0, 0.0), "a")], 2, context_length=20)
    objective = ClassificationObjective(nn.Parameter(torch.zeros(2, 4)), nn.Parameter(torch.zeros(2)), 1, "mean", False)
    with pytest.raises(UsageError, match="states after 1 blocks"):
        objective({"policy": nn.Linear(2, 2)}, pack_texts([LabelledText((5,), (1.0, 0.0), "a")]))
