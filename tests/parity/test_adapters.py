"""LoRA on every family: attached by patterns, trained, merged, exported, and read by peft there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from tests.near import assert_near
from tests.peft_directory import write_peft
from tests.rows import slow_unless
from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import hf_module_name
from bedplate.adapters.peft import read_peft, task_type_of
from bedplate.inference.measure.parity import reference_of
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.export import export_base
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs
from bedplate.training.batch import PackedBatch, TrainingExample, pack_examples
from bedplate.training.objectives import OBJECTIVES

TOKENS = torch.randint(3, 90, (2, 20), generator=torch.Generator().manual_seed(0))
WRITTEN = TOKENS.flip(1)[:, :13]
"""By a decoder that reads what an encoder made of TOKENS."""
EXTRA_CASES = [("gemma4_text", 1)]
"""Examples beside the first whose parts have other names."""


def documents() -> PackedBatch:
    """Packed ones, longer and shorter than windows."""
    parts = [TOKENS[0].tolist(), TOKENS[1, :5].tolist(), TOKENS[1, 5:].tolist()]
    return pack_examples(
        [TrainingExample(tuple(ids), (False, *(True,) * (len(ids) - 1)), str(i)) for i, ids in enumerate(parts)]
    )


def logits(base: Base) -> Tensor:
    return base.model.head(base.model(Inputs(TOKENS)).hidden.flatten(0, 1)).unflatten(0, TOKENS.shape)


def written(base: Base) -> Tensor:
    hidden = base.model(Inputs(WRITTEN, encoder=Inputs(TOKENS))).hidden
    return base.model.head(hidden.flatten(0, 1)).unflatten(0, WRITTEN.shape)


def next_token(base: Base) -> Tensor:
    [term] = OBJECTIVES["next_token"]()({"policy": base.model}, documents()).values()
    return term.total / term.weight


@dataclass(frozen=True)
class Architecture:
    """What is compared of a kind of model, what it is trained on, and how transformers and peft call it."""

    ours: Callable[[Base], Tensor]
    theirs: Callable[[Any], Tensor]
    loss: Callable[[Base], Tensor]
    auto: Any
    task: str


ARCHITECTURES = {
    "decoder": Architecture(
        logits, lambda model: model(TOKENS).logits, next_token, transformers.AutoModelForCausalLM, "CAUSAL_LM"
    ),
    "encoder": Architecture(
        lambda base: base.model(Inputs(TOKENS)).hidden,
        lambda model: model(TOKENS).last_hidden_state,
        lambda base: base.model(Inputs(TOKENS)).hidden[:, 0].square().mean(),
        transformers.AutoModel,
        "FEATURE_EXTRACTION",
    ),
    "encoder–decoder": Architecture(
        written,
        lambda model: model(input_ids=TOKENS, decoder_input_ids=WRITTEN).logits,
        lambda base: torch.nn.functional.cross_entropy(written(base)[:, :-1].flatten(0, 1), WRITTEN[:, 1:].flatten()),
        transformers.AutoModelForSeq2SeqLM,
        "SEQ_2_SEQ_LM",
    ),
}


def kind_of(name: str) -> str:
    family = FAMILIES["hf", name]
    return str(family.to_spec(family.examples[0]).kind)


CASES = [(name, 0) for format_, name in FAMILIES if format_ == "hf"] + EXTRA_CASES
UNLIKE = (
    *("llama", "gemma4_text", "gpt2", "phi3", "mixtral", "gpt_oss", "deepseek_v3", "qwen3_next", "bert", "t5"),
    "granitemoehybrid",
)
QUICK_CASES = {(name, 0) for name in UNLIKE}
"""Of each way in which modules are named, packed, shared and read: the other families have parts of these."""


def trained(base: Base, bank: Bank, slot: int, loss: Callable[[Base], Tensor]) -> None:
    """Two steps."""
    parameters = [parameter for _, parameter in bank.parameters(slot)]
    optimizer = torch.optim.AdamW(parameters, lr=0.03)
    losses: list[float] = []
    for _ in range(2):
        step_loss = loss(base)
        step_loss.backward()
        assert all(parameter.grad is not None for parameter in parameters)
        losses.append(float(step_loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings(
    "ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"
)  # peft's own, of experts
@pytest.mark.parametrize(("name", "example"), slow_unless(QUICK_CASES.__contains__, CASES))
def test_lora_trains_merges_and_loads_in_peft(name: str, example: int, tmp_path: Path) -> None:
    family, architecture = FAMILIES["hf", name], ARCHITECTURES[kind_of(name)]
    reference_of(family, family.examples[example], 0).save_pretrained(tmp_path / "theirs")
    base = load_base(tmp_path / "theirs")
    export_base(base, tmp_path / "base")
    bank = Bank(base.model, hf_name=partial(hf_module_name, base.family.weights))
    config = LoraConfig(r=2, alpha=6)
    slot = bank.add(config)
    before = architecture.ours(base).detach()
    bank.select(slot)
    trained(base, bank, slot, architecture.loss)
    expected = architecture.ours(base).detach()
    assert not torch.allclose(before, expected, atol=1e-3)

    state = {key: tensor.detach().clone() for key, tensor in bank.state(slot).items()}
    weights = family.weights_with(state)  # as a skin's files are written
    task = task_type_of(weights)
    write_peft(
        tmp_path / "adapter",
        config,
        state,
        weights,
        base_name=str(tmp_path / "base"),
        task_type=task,
        spec=base.spec,
    )
    assert peft.PeftConfig.from_pretrained(tmp_path / "adapter").task_type == architecture.task
    model = architecture.auto.from_pretrained(tmp_path / "base", attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert_near(architecture.theirs(theirs), expected)
    reread, read = read_peft(tmp_path / "adapter", family.weights)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)
    assert all(reread.scaling(path) == config.scaling(path) for path in reread.targets)

    bank.merge(slot)
    assert_near(architecture.ours(base), expected)
    export_base(base, tmp_path / "merged")
    merged = architecture.auto.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
    with torch.no_grad():
        assert_near(architecture.theirs(merged), expected)
