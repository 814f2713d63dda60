"""Training a soft prompt: losses, gradients, AdamW steps and outputs equal peft's PromptTuning."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import peft
import pytest
import torch
from tests.near import assert_near
from tests.references import reference_llama
from tests.rows import slow_unless
from tests.tiny import write_tiny_base
from tests.training.against_peft import examples, loss_of, ours
from torch import nn

from bedplate.adapters.soft_prompt import initial_vectors, stand_ins, standing_in
from bedplate.core.errors import UsageError
from bedplate.models.checkpoints.base import load_base
from bedplate.models.decoder import Decoder
from bedplate.models.inputs import Inputs
from bedplate.training.batch import TrainingExample, pack_examples
from bedplate.training.config import TrainConfig
from bedplate.training.loop import evaluate_loss, train
from bedplate.training.objectives.language import Sft
from bedplate.training.sources import ExampleSource

P, STEPS, RATE = 5, 4, 0.05
# transformers' own deprecation, reached from inside peft
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def behind(virtual: int, training_examples: list[TrainingExample]) -> list[TrainingExample]:
    return [
        TrainingExample((*stand_ins(virtual), *e.ids), ((False,) * virtual) + e.loss, e.id) for e in training_examples
    ]


@pytest.mark.parametrize(
    ("seed", "dtype", "share"),
    slow_unless(
        {(0, torch.float32, True), (1, torch.float64, False), (1, torch.float32, True)}.__contains__,
        itertools.product((0, 1), (torch.float32, torch.float64), (True, False)),
    ),
)
def test_training_equals_pefts(tmp_path: Path, seed: int, dtype: torch.dtype, share: bool):
    reference = reference_llama(seed, **({"attention_bias": True} if seed else {})).to(dtype)
    model = ours(reference)
    start = torch.randn(P, 48, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    theirs = peft.get_peft_model(reference, config).to(dtype)
    weight = theirs.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(start)
    batches = [examples(10 * seed + step) for step in range(STEPS)]

    # one batch: loss and gradient
    vectors = nn.Parameter(start.clone())
    first = pack_examples(behind(P, batches[0]), share_prefix=share)
    loss = loss_of(theirs, batches[0], P)
    loss.backward()
    with standing_in(model, vectors):
        term = Sft()({"policy": model}, first)["sft"]
    mean = term.total / term.weight
    mean.backward()
    assert_near(mean, loss)
    assert vectors.grad is not None
    assert float(vectors.grad.abs().max()) > 1e-3
    assert_near(vectors.grad, weight.grad)

    # several AdamW steps, through the training loop
    vectors = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([weight], lr=RATE, weight_decay=0.0)
    losses: list[float] = []
    for batch in batches:
        optimizer.zero_grad()
        value = loss_of(theirs, batch, P)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    source = ExampleSource(behind(P, [e for b in batches for e in b]), 4, share_prefix=share)
    settings = TrainConfig(learning_rate=RATE, schedule="constant", warmup=0.0, clip=None)
    with standing_in(model, vectors):
        result = train(model, source, Sft(), settings, tmp_path / "run", [("soft_prompt", vectors)])
    our_losses = [json.loads(line)["loss"] for line in result.metrics_path.read_text().splitlines()]
    assert_near(our_losses, losses)
    assert not torch.allclose(vectors, start, atol=RATE)
    assert_near(vectors.detach(), weight.detach())

    # and what the trained prompts say
    tokens = torch.tensor([batches[0][0].ids])
    with torch.no_grad():
        expected = theirs.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0]
        with standing_in(model, vectors):
            logits = model.head(model(Inputs(torch.cat([torch.tensor([stand_ins(P)]), tokens], dim=1))).hidden[0])
    assert_near(logits, expected)


def test_the_start_is_pefts_from_a_text(tmp_path: Path):
    base = load_base(write_tiny_base(tmp_path / "base"), dtype="float32", device="cpu")
    assert isinstance(base.model, Decoder)
    for text, count in (("the answer is yes or no", 40), ("the answer is yes or no and the question was asked", 3)):
        config = peft.PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=count,
            prompt_tuning_init="TEXT",
            prompt_tuning_init_text=text,
            tokenizer_name_or_path=str(base.path),
        )
        reference = reference_llama(0, vocab_size=base.spec.vocab_size)
        with torch.no_grad():
            reference.get_input_embeddings().weight.copy_(base.model.embedding.weight)
        theirs = peft.get_peft_model(reference, config).prompt_encoder["default"].embedding.weight
        vectors = initial_vectors(base.model, base.need_tokenizer().encode(text), count)
        assert torch.equal(vectors, theirs)
    with pytest.raises(UsageError, match="start"):
        initial_vectors(base.model, [], 3)


def test_the_model_is_left_as_it_was():
    model = ours(reference_llama(0))
    tokens = torch.arange(12)[None]
    before = model(Inputs(tokens)).hidden

    def fail() -> None:
        with standing_in(model, torch.randn(3, 48)):
            assert torch.equal(model(Inputs(tokens)).hidden, before)  # without stand-ins nothing changes
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert not model.embedding._forward_hooks
    assert not model.embedding._forward_pre_hooks
    assert not model._forward_pre_hooks
    assert torch.equal(model(Inputs(tokens)).hidden, before)


def test_losses_of_a_mixed_company_are_those_of_each_alone():
    """A batch with the vectors in its shared prefix has the losses of single examples with the vectors before each."""
    model = ours(reference_llama(2))
    prompted = behind(P, examples(3))
    with standing_in(model, torch.randn(P, 48)):
        together = evaluate_loss(model, [pack_examples(prompted)], Sft())
        separate = evaluate_loss(model, [pack_examples([example]) for example in prompted], Sft())
    assert together["sft"] == pytest.approx(separate["sft"], abs=1e-5)
