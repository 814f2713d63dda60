"""Every row of the table, and a row that is added to it: trained, kept, served beside others, merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.adapters.toy_adapter import ScaleConfig
from tests.near import assert_near

from bedplate.adapters.bank import Bank
from bedplate.adapters.head import Head
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.peft import peft_files
from bedplate.adapters.soft_prompt import SoftPrompt, prompt_peft_files
from bedplate.adapters.table import ADAPTERS, Adapter
from bedplate.adapters.tensor_files import read_tensors, tensor_bytes
from bedplate.core.errors import UsageError
from bedplate.models.decoder import Decoder
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs
from bedplate.training.batch import TrainingExample
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import Sft
from bedplate.training.sources import ExampleSource

TOY = "scale"
TOKENS = torch.arange(24).reshape(4, 6) % 64
CONFIG = TrainConfig(learning_rate=0.05, schedule="constant", warmup=0.0, save_steps=1, save_seconds=None)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Adapter]:
    monkeypatch.setitem(ADAPTERS, TOY, Adapter("linears", ("adapter.safetensors",), ScaleConfig()))
    return ADAPTERS


@pytest.fixture
def examples() -> list[TrainingExample]:
    ids = [tuple((7 * i + 3 * n) % 64 for i in range(6 + n)) for n in range(4)]
    return [
        TrainingExample(sequence, (False,) * (len(sequence) - 2) + (True, True), str(n))
        for n, sequence in enumerate(ids)
    ]


def hidden(model: Decoder, bank: Bank, rows: int | torch.Tensor | None) -> torch.Tensor:
    bank.select(rows)
    with torch.no_grad():
        return model(Inputs(TOKENS)).hidden


@pytest.mark.parametrize("name", [*(name for name, row in ADAPTERS.items() if row.config is not None), TOY])
def test_a_kind_on_linears_is_trained_kept_served_and_merged(name, table, decoder, examples, tmp_path: Path) -> None:
    config = table[name].config
    assert config is not None
    bank = Bank(decoder, slots=3)
    slot = bank.add(config)
    base = hidden(decoder, bank, None)
    assert_near(hidden(decoder, bank, slot), base)  # a fresh one changes nothing

    # two steps, in one run and in one that is broken off after the first
    def stop(step: int, _: object) -> None:
        if step == 1:
            raise InterruptedError

    source, parts = ExampleSource(examples, 2), bank.add(config)
    train(decoder, source, Sft(), CONFIG, tmp_path / "whole", bank.parameters(slot))
    bank.select(parts)
    with pytest.raises(InterruptedError):
        train(decoder, ExampleSource(examples, 2), Sft(), CONFIG, tmp_path / "parts", bank.parameters(parts), stop)
    bank.select(None)
    bank.remove(parts)
    parts = bank.add(config)
    bank.select(parts)
    result = train(decoder, ExampleSource(examples, 2), Sft(), CONFIG, tmp_path / "parts", bank.parameters(parts))
    assert result.resumed_at == 1
    trained = bank.state(slot)
    assert all(torch.equal(value, trained[name]) for name, value in bank.state(parts).items())
    bank.select(None)
    bank.remove(parts)

    # kept in a file, and frozen in the bank
    content = tensor_bytes(trained)
    frozen = bank.add(config, read_tensors(tmp_path / "adapter.safetensors", content))
    assert all(torch.equal(value, trained[name]) for name, value in bank.state(frozen).items())
    learned = hidden(decoder, bank, slot)
    assert not torch.allclose(learned, base, atol=1e-3)
    assert_near(hidden(decoder, bank, frozen), learned)

    # beside another one, and the base
    second_slot = bank.add(LoraConfig(r=2), seed=1)
    mixed = hidden(decoder, bank, torch.tensor([frozen, -1, second_slot, frozen]))
    assert_near(mixed, torch.stack([learned[0], base[1], base[2], learned[3]]))

    bank.merge(frozen)
    assert_near(hidden(decoder, bank, None), learned)


def test_what_is_not_low_rank_is_refused_where_that_is_needed(decoder) -> None:
    bank = Bank(decoder, slots=2)
    assert set(bank.low_rank(bank.add(LoraConfig(targets=("q",))))) == {f"layers.{i}.attention.q" for i in (0, 1)}
    with pytest.raises(UsageError, match="no low-rank weights"):
        bank.low_rank(bank.add(ScaleConfig()))


def test_the_files_are_those_that_are_written(decoder) -> None:
    llama, bank = FAMILIES[("hf", "llama")].weights, Bank(decoder, slots=2)
    for name in ("lora", "dora"):
        config = ADAPTERS[name].config
        assert isinstance(config, LoraConfig)
        written = peft_files(config, bank.state(bank.add(config)), llama, base_name="tiny")
        assert set(written) == set(ADAPTERS[name].files)
    prompt, head = SoftPrompt(torch.ones(2, 32)), Head(torch.zeros(2, 32), torch.zeros(2), ("a", "b"))
    assert ADAPTERS["soft_prompt"].files == ("soft_prompt.safetensors",)
    assert ADAPTERS["head"].files == ("head.safetensors",)
    assert prompt.to_bytes()
    assert head.to_bytes()
    assert prompt_peft_files(prompt, decoder.spec, base_name="tiny")
