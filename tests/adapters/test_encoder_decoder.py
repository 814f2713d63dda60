"""LoRA on encoder–decoders: trained on the decoder's loss, served beside others, and read by peft on the export."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import peft
import pytest
import torch
import transformers
from tests.near import assert_near
from tests.peft_directory import write_peft

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import hf_module_name
from bedplate.adapters.peft import read_peft, task_type_of
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Generation, Request, Sampling, Score, Scores
from bedplate.inference.measure.parity import reference_of
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.export import export_base
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs
from bedplate.training.batch import completion_example, pack_examples
from bedplate.training.objectives.language import Sft

SOURCES = ((5, 9, 11, 40, 7), (60, 8, 8), (3, 4, 5, 6, 7, 8, 9, 10, 11))
ANSWERS = ((20, 21, 1), (30, 1), (11, 10, 9, 8, 1))
CASES = [("t5", 0), ("bart", 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("t5", 1), ("marian", 0)))]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(("name", "example"), CASES)
def test_lora_trains_serves_and_loads_in_peft(name: str, example: int, tmp_path: Path) -> None:
    family = FAMILIES["hf", name]
    reference_of(family, family.examples[example], 0).save_pretrained(tmp_path / "theirs")
    base = load_base(tmp_path / "theirs")
    weights = base.family.weights
    export_base(base, tmp_path / "base")
    names = partial(hf_module_name, weights)
    bank = Bank(base.model, 2, hf_name=names)
    targets = ("q", "v", "wo") if name == "t5" else ("q_proj", "fc1")
    configs = LoraConfig(r=3, alpha=6), LoraConfig(r=2, alpha=4, targets=targets)
    rows = zip(SOURCES, ANSWERS, strict=True)
    batch = pack_examples([completion_example(*row, str(i), base.decoder_start) for i, row in enumerate(rows)])
    learned = sum(map(len, ANSWERS))
    assert batch.counts == {"tokens": sum(map(len, SOURCES)) + learned, "targets": learned}
    states: list[dict[str, torch.Tensor]] = []
    for number, config in enumerate(configs):
        slot = bank.add(config, seed=number)
        bank.select(slot)
        parameters = [parameter for _, parameter in bank.parameters(slot)]
        optimizer = torch.optim.AdamW(parameters, lr=0.03)
        losses: list[float] = []
        for _ in range(3):
            [term] = Sft()({"policy": base.model}, batch).values()
            (term.total / term.weight).backward()
            assert all(parameter.grad is not None for parameter in parameters)
            losses.append(float(term.total.detach()))
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0]
        states.append({key: tensor.detach().clone() for key, tensor in bank.state(slot).items()})
        assert any(key.startswith("encoder.") for key in states[-1])
        assert any(".cross." in key for key in states[-1])
        bank.select(None)
    bank.close()

    tokens = torch.tensor([[*base.decoder_start, *ANSWERS[2][:-1]]])
    for number, (config, state) in enumerate(zip(configs, states, strict=True)):
        alone = Bank(base.model, hf_name=names)
        alone.select(alone.add(config, state))
        with torch.no_grad():
            expected = base.model.head(base.model(Inputs(tokens, encoder=Inputs(torch.tensor([SOURCES[2]])))).hidden[0])
        alone.close()
        place, task_type = tmp_path / f"adapter-{number}", task_type_of(weights)
        write_peft(place, config, state, weights, base_name=str(tmp_path / "base"), task_type=task_type)
        assert peft.PeftConfig.from_pretrained(place).task_type == task_type == "SEQ_2_SEQ_LM"
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
        theirs = peft.PeftModel.from_pretrained(model, place).eval()
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([SOURCES[2]]), decoder_input_ids=tokens).logits[0]
        assert_near(logits, expected)
        _, read_state = read_peft(place, family.weights)
        assert read_state.keys() == state.keys()
        assert all(torch.equal(read_state[key], state[key]) for key in state)

    sampling = Sampling(max_tokens=8, ignore_eos=True)
    keys = (None, "0", "1", "0")
    requests: list[Request] = [Generate(source, sampling, adapter=key) for source in SOURCES for key in keys]
    requests += [Score(SOURCES[0], ANSWERS, adapter=key) for key in keys]
    with Engine(base) as engine:
        for number, (config, state) in enumerate(zip(configs, states, strict=True)):
            engine.load_adapter(str(number), config, state)
        together = engine.run(requests)
        single = [engine.run([request])[0] for request in requests]
    for batched, separate in zip(together, single, strict=True):
        if isinstance(batched, Generation):
            assert batched.token_ids == cast(Generation, separate).token_ids
        else:
            assert cast(Scores, batched).totals == pytest.approx(cast(Scores, separate).totals, abs=1e-4)
    totals = [cast(Scores, result).totals for result in together[-4:]]
    assert totals[1] == pytest.approx(totals[3], abs=1e-4)
    assert totals[0] != pytest.approx(totals[1], abs=1e-3)
