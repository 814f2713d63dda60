"""Training a soft prompt: losses, gradients, AdamW steps and outputs equal peft's PromptTuning."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.references import reference_llama
from tests.tiny import write_tiny_base
from torch import nn

from bedplate.adapters.soft_prompt import initial_vectors, stand_ins, standing_in
from bedplate.core.errors import UsageError
from bedplate.models.build import build
from bedplate.models.checkpoints.base import load_base
from bedplate.models.decoder import Decoder
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs
from bedplate.training.batch import Example
from bedplate.training.config import TrainConfig
from bedplate.training.loop import evaluate_loss, train
from bedplate.training.objectives import Sft
from bedplate.training.packing import pack_examples
from bedplate.training.sources import ExampleSource

P, STEPS, RATE = 5, 4, 0.05
LLAMA = FAMILIES[("hf", "llama")]
# transformers' own deprecation, reached from inside peft
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def ours(reference: Any) -> Decoder:
    model = build(LLAMA.to_spec(reference.config.to_dict()))
    model.load_state_dict({LLAMA.weights.from_external(k): v for k, v in reference.state_dict().items()}, strict=False)
    assert isinstance(model, Decoder)
    return model.to(reference.dtype).requires_grad_(False).eval()


def examples(seed: int, count: int = 4, shared: int = 5) -> list[Example]:
    """Of several lengths, with a beginning that all share, and one to three tokens to learn."""
    draw = random.Random(seed)
    begin = [draw.randrange(97) for _ in range(shared)]
    made: list[Example] = []
    for i in range(count):
        ids = (*begin, *(draw.randrange(97) for _ in range(draw.randint(4, 12))))
        learned = draw.randint(1, 3)
        made.append(Example(ids, (False,) * (len(ids) - learned) + (True,) * learned, f"{seed}/{i}"))
    return made


def behind(virtual: int, some: list[Example]) -> list[Example]:
    return [Example((*stand_ins(virtual), *e.ids), ((False,) * virtual) + e.loss, e.id) for e in some]


def padded(some: list[Example]) -> dict[str, torch.Tensor]:
    """The same examples as peft takes them."""
    width = max(len(e.ids) for e in some)
    rows = [(width - len(e.ids), e) for e in some]
    ids = torch.tensor([[*e.ids, *[0] * room] for room, e in rows])
    mask = torch.tensor([[*[1] * len(e.ids), *[0] * room] for room, e in rows])
    labels = [[i if on else -100 for i, on in zip(e.ids, e.loss, strict=True)] + [-100] * room for room, e in rows]
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(labels)}


def loss_of(theirs: Any, some: list[Example]) -> torch.Tensor:
    """Mean over the tokens to learn; transformers' own loss is rounded to float32."""
    batch = padded(some)
    labels = batch.pop("labels")
    logits = theirs(**batch).logits[:, P:]
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 5e-6)])
@pytest.mark.parametrize("seed", [0, 1])
def test_training_equals_pefts(tmp_path: Path, seed: int, dtype: torch.dtype, tolerance: float, share: bool):
    reference = reference_llama(seed, **({"attention_bias": True} if seed else {})).to(dtype)
    model = ours(reference)
    start = torch.randn(P, 48, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    theirs = peft.get_peft_model(reference, config).to(dtype)
    weight = theirs.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(start)
    batches = [examples(10 * seed + step) for step in range(STEPS)]
    near = {"atol": tolerance, "rtol": tolerance}

    # one batch: loss and gradient
    vectors = nn.Parameter(start.clone())
    first = pack_examples(behind(P, batches[0]), share_prefix=share)
    loss = loss_of(theirs, batches[0])
    loss.backward()
    with standing_in(model, vectors):
        term = Sft()({"policy": model}, first)["sft"]
    mean = term.total / term.weight
    mean.backward()
    torch.testing.assert_close(mean, loss, **near)
    assert vectors.grad is not None
    assert float(vectors.grad.abs().max()) > 1e-3
    torch.testing.assert_close(vectors.grad, weight.grad, **near)

    # several AdamW steps, through the training loop
    vectors = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([weight], lr=RATE, weight_decay=0.0)
    losses: list[float] = []
    for batch in batches:
        optimizer.zero_grad()
        value = loss_of(theirs, batch)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    source = ExampleSource(behind(P, [e for b in batches for e in b]), 4, share_prefix=share)
    settings = TrainConfig(learning_rate=RATE, schedule="constant", warmup=0.0, clip=None)
    with standing_in(model, vectors):
        result = train(model, source, Sft(), settings, tmp_path / "run", [("soft_prompt", vectors)])
    assert result.losses["sft"] == pytest.approx(losses[-1], abs=tolerance)
    assert not torch.allclose(vectors, start, atol=RATE)
    torch.testing.assert_close(vectors.detach(), weight.detach(), **near)

    # and what the trained prompts say
    tokens = torch.tensor([batches[0][0].ids])
    with torch.no_grad():
        expected = theirs.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0]
        with standing_in(model, vectors):
            found = model.head(model(Inputs(torch.cat([torch.tensor([stand_ins(P)]), tokens], dim=1))).hidden[0])
    torch.testing.assert_close(found, expected, **near)


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
        found = initial_vectors(base.model, base.need_tokenizer().encode(text), count)
        assert torch.equal(found, theirs)
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
    assert torch.equal(model(Inputs(tokens)).hidden, before)


def test_losses_of_a_mixed_company_are_those_of_each_alone():
    """A batch with the vectors in its shared prefix has the losses of single examples with the vectors before each."""
    model = ours(reference_llama(2))
    some = behind(P, examples(3))
    with standing_in(model, torch.randn(P, 48)):
        together = evaluate_loss(model, [pack_examples(some)], Sft())
        apart = evaluate_loss(model, [pack_examples([one]) for one in some], Sft())
    assert together["sft"] == pytest.approx(apart["sft"], abs=1e-5)
