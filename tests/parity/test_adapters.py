"""LoRA on every decoder and encoder: attached by patterns, trained, merged, exported, and read by peft there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import peft
import pytest
import torch
import transformers
from tests.near import assert_near

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import hf_module_name
from bedplate.adapters.peft import read_peft, task_type_of, write_peft
from bedplate.inference.measure.parity import reference_of
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.export import export_base
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs
from bedplate.training.batch import TrainingExample
from bedplate.training.objectives import OBJECTIVES
from bedplate.training.packing import pack_examples

TOKENS = torch.randint(3, 90, (2, 20), generator=torch.Generator().manual_seed(0))
FURTHER = [("gemma4_text", 1)]
"""Examples beside the first whose parts have other names."""
CASES = [
    (name, 0)
    for (format_, name), family in FAMILIES.items()
    if format_ == "hf" and getattr(family.to_spec(family.examples[0]), "kind", None) == "decoder"
] + FURTHER


ENCODERS = [
    name
    for (format_, name), family in FAMILIES.items()
    if format_ == "hf" and getattr(family.to_spec(family.examples[0]), "kind", None) == "encoder"
]


def logits(base: Base) -> torch.Tensor:
    with torch.no_grad():
        return base.model.head(base.model(Inputs(TOKENS)).hidden.flatten(0, 1)).unflatten(0, TOKENS.shape)


def states(base: Base) -> torch.Tensor:
    with torch.no_grad():
        return base.model(Inputs(TOKENS)).hidden


def trained(base: Base, bank: Bank, slot: int) -> None:
    """Two steps on packed documents, longer and shorter than windows."""
    documents = [TOKENS[0].tolist(), TOKENS[1, :5].tolist(), TOKENS[1, 5:].tolist()]
    examples = [
        TrainingExample(tuple(ids), (False, *(True,) * (len(ids) - 1)), str(i)) for i, ids in enumerate(documents)
    ]
    batch, objective = pack_examples(examples), OBJECTIVES["next_token"]()
    parameters = [parameter for _, parameter in bank.parameters(slot)]
    optimizer = torch.optim.AdamW(parameters, lr=0.03)
    losses: list[float] = []
    for _ in range(2):
        [term] = objective({"policy": base.model}, batch).values()
        (term.total / term.weight).backward()
        assert all(parameter.grad is not None for parameter in parameters)
        losses.append(float(term.total.detach()))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings(
    "ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"
)  # peft's own, of experts
@pytest.mark.parametrize(("name", "example"), CASES)
def test_lora_trains_merges_and_loads_in_peft(name: str, example: int, tmp_path: Path) -> None:
    family = FAMILIES["hf", name]
    reference_of(family, family.examples[example], 0).save_pretrained(tmp_path / "theirs")
    base = load_base(tmp_path / "theirs")
    export_base(base, tmp_path / "base")
    names = partial(hf_module_name, family.weights)
    bank = Bank(base.model, hf_name=names)
    config = LoraConfig(r=2, alpha=6)
    slot = bank.add(config)
    before = logits(base)
    bank.select(slot)
    trained(base, bank, slot)
    expected = logits(base)
    assert not torch.allclose(before, expected, atol=1e-3)

    state = {key: tensor.detach().clone() for key, tensor in bank.state(slot).items()}
    write_peft(tmp_path / "adapter", config, state, family.weights, base_name=str(tmp_path / "base"), spec=base.spec)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert_near(theirs(TOKENS).logits, expected)
    again, read = read_peft(tmp_path / "adapter", family.weights)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)
    assert all(again.scaling(path) == config.scaling(path) for path in again.targets)

    bank.merge(slot)
    assert_near(logits(base), expected)
    export_base(base, tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
    with torch.no_grad():
        assert_near(merged(TOKENS).logits, expected)


@pytest.mark.parametrize("name", ENCODERS)
def test_lora_on_an_encoder_trains_merges_and_loads_in_peft(name: str, tmp_path: Path) -> None:
    family = FAMILIES["hf", name]
    reference_of(family, family.examples[0], 0).save_pretrained(tmp_path / "theirs")
    base = load_base(tmp_path / "theirs")
    export_base(base, tmp_path / "base")
    bank = Bank(base.model, hf_name=partial(hf_module_name, family.weights))
    config = LoraConfig(r=2, alpha=6)
    slot = bank.add(config)
    before = states(base)
    bank.select(slot)
    parameters = [parameter for _, parameter in bank.parameters(slot)]
    optimizer = torch.optim.AdamW(parameters, lr=0.03)
    losses: list[float] = []
    for _ in range(2):
        loss = base.model(Inputs(TOKENS)).hidden[:, 0].square().mean()
        loss.backward()
        assert all(parameter.grad is not None for parameter in parameters)
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]
    expected = states(base)
    assert not torch.allclose(before, expected, atol=1e-3)

    state = {key: tensor.detach().clone() for key, tensor in bank.state(slot).items()}
    kind = task_type_of(family.weights)
    write_peft(
        *(tmp_path / "adapter", config, state, family.weights),
        base_name=str(tmp_path / "base"),
        task_type=kind,
        spec=base.spec,
    )
    assert peft.PeftConfig.from_pretrained(tmp_path / "adapter").task_type == kind == "FEATURE_EXTRACTION"
    model = transformers.AutoModel.from_pretrained(tmp_path / "base", attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert_near(theirs(TOKENS).last_hidden_state, expected)
    again, read = read_peft(tmp_path / "adapter", family.weights)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)
    assert all(again.scaling(path) == config.scaling(path) for path in again.targets)

    bank.merge(slot)
    assert_near(states(base), expected)
    export_base(base, tmp_path / "merged")
    merged = transformers.AutoModel.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
    with torch.no_grad():
        assert_near(merged(TOKENS).last_hidden_state, expected)
