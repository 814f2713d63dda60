"""Adapters on projections that stand in one matrix of their family: peft's are ours on the parts, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from tests.near import assert_near
from tests.peft_directory import write_peft

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.peft import read_peft, read_spec
from bedplate.adapters.peft_layouts import row_counts
from bedplate.core.errors import SkinError
from bedplate.inference.measure.parity import reference_of
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs

TOKENS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
WHOLE = {"gpt2": "c_attn", "gpt_neox": "query_key_value", "phi3": "qkv_proj"}


@pytest.fixture(params=WHOLE)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any, Base]:
    name = str(request.param)
    reference_of(FAMILIES["hf", name], FAMILIES["hf", name].examples[0], 1).save_pretrained(tmp_path / "base")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    return name, reference, load_base(tmp_path / "base")


def logits(base: Base) -> torch.Tensor:
    with torch.no_grad():
        return base.model.head(base.model(Inputs(TOKENS)).hidden.flatten(0, 1)).unflatten(0, TOKENS.shape)


def noisy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(2)
    return {name: tensor + 0.2 * torch.randn(tensor.shape, generator=noise) for name, tensor in tensors.items()}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("dora", [False, True])
def test_peft_on_the_whole_is_ours_on_the_parts(pair: tuple[str, Any, Base], tmp_path: Path, dora: bool) -> None:
    name, reference, base = pair
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=[WHOLE[name]], use_dora=dora, task_type="CAUSAL_LM")
    model = peft.get_peft_model(reference, config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.add_(0.2 * torch.randn_like(parameter))
        expected = model.eval()(TOKENS).logits
    model.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(SkinError, match="say of which model"):
        read_peft(tmp_path / "adapter", base.family.weights)
    ours, tensors = read_peft(tmp_path / "adapter", base.family.weights, spec=base.spec)
    assert {path.rpartition(".")[2] for path in ours.targets} == {"q", "k", "v"}
    bank = Bank(base.model)
    bank.select(bank.add(ours, tensors))
    assert_near(logits(base), expected)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("targets", [("q", "v"), ("k",), ("q", "k", "v", "o")])
def test_ours_on_some_parts_is_peft_on_the_whole(
    pair: tuple[str, Any, Base], tmp_path: Path, targets: tuple[str, ...]
) -> None:
    _, reference, base = pair
    bank, config = Bank(base.model), LoraConfig(r=2, alpha=3, targets=targets, rslora=True)
    slot = bank.add(config)
    tensors = noisy(bank.state(slot))
    bank.remove(slot)
    bank.select(bank.add(config, tensors))
    expected = logits(base)
    write_peft(tmp_path / "a", config, tensors, base.family.weights, base_name="tiny", spec=base.spec)
    with torch.no_grad():
        assert_near(peft.PeftModel.from_pretrained(reference, tmp_path / "a").eval()(TOKENS).logits, expected)
    assert read_spec(tmp_path / "a") == base.spec
    read_config, read = read_peft(tmp_path / "a", base.family.weights)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)
    assert all(read_config.scaling(path) == pytest.approx(config.scaling(path)) for path in read_config.targets)


def test_what_cannot_be_told_is_refused(pair: tuple[str, Any, Base], tmp_path: Path) -> None:
    _, _, base = pair
    bank, config = Bank(base.model), LoraConfig(r=2, targets=("q",), dora=True)
    state = bank.state(bank.add(config))
    with pytest.raises(SkinError, match=r"DoRA on .* alone cannot leave"):
        write_peft(tmp_path / "a", config, state, base.family.weights, base_name="tiny", spec=base.spec)
    with pytest.raises(SkinError, match="stands in a matrix with others"):
        write_peft(tmp_path / "a", config, state, base.family.weights, base_name="tiny")
    with pytest.raises(SkinError, match="at most 1000 are read"):
        row_counts(base.spec.main.with_(layers=10**9))
    with pytest.raises(SkinError, match="at most 1000 are read"):
        row_counts(base.spec.main.with_(prediction_modules=10**9))
    with pytest.raises(SkinError, match="cannot be built"):
        row_counts(base.spec.main.with_(vocab_size=10**14, hidden_size=base.spec.main.hidden_size * 10**12))
