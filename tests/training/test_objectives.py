"""Losses and gradients equal transformers' own with labels; all that is masked is without influence."""

from __future__ import annotations

import pytest
import torch
import transformers
from tests.references import converted, reference_llama

from bedplate.core.errors import DataError
from bedplate.data.packing import pack_documents
from bedplate.models.decoder import Decoder
from bedplate.models.families import FAMILIES
from bedplate.training.batch import NO_TARGET, completion_example, pack_examples, rows_batch
from bedplate.training.objectives import OBJECTIVES
from bedplate.training.objectives.language import NextToken, Sft
from bedplate.training.objectives.token_term import token_losses

FLOAT32_LOSS = {"rtol": 1e-5, "atol": 1e-6}
"""transformers computes its loss in float32 in a float64 model too."""


@pytest.fixture
def pair() -> tuple[transformers.LlamaForCausalLM, Decoder]:
    reference = reference_llama(0, vocab_size=61).double()
    model, _ = converted(reference, torch.float64)
    assert isinstance(model, Decoder)
    return reference, model


def _reference_loss(reference, examples) -> torch.Tensor:
    """The usual recipe: rows padded on the right, labels −100 off the completion, HF's own loss (a mean)."""
    width = max(len(e.ids) for e in examples)
    pad = lambda values, fill: torch.tensor([[*v, *[fill] * (width - len(v))] for v in values])  # noqa: E731
    return reference(
        input_ids=pad([e.ids for e in examples], 0),
        attention_mask=pad([[1] * len(e.ids) for e in examples], 0),
        labels=pad([[t if learn else -100 for t, learn in zip(e.ids, e.loss, strict=True)] for e in examples], -100),
    ).loss


@pytest.mark.parametrize("share", [False, True])
def test_sft_equals_transformers(share, pair, make_examples) -> None:
    reference, model = pair
    examples = make_examples(6)
    expected = _reference_loss(reference, examples)
    expected.backward()
    term = Sft()({"policy": model}, pack_examples(examples, share_prefix=share))["sft"]
    loss = term.total / term.weight
    loss.backward()
    torch.testing.assert_close(loss, expected.double(), **FLOAT32_LOSS)
    weights, theirs = FAMILIES[("hf", "llama")].weights, dict(reference.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, theirs[weights.to_external(name)].grad, **FLOAT32_LOSS, msg=name)


def test_next_token_equals_transformers(pair) -> None:
    reference, model = pair
    torch.manual_seed(1)
    documents = [torch.randint(0, 61, (n,)).tolist() for n in (5, 9, 3, 12)]
    packed = pack_documents([len(d) for d in documents], 12)
    assert packed.split_documents == 0
    term = NextToken()({"policy": model}, rows_batch(packed.rows, documents, list("abcd"), 12))["next_token"]
    losses = [(len(d) - 1) * reference(input_ids=(t := torch.tensor([d])), labels=t).loss for d in documents]
    torch.testing.assert_close(term.total, torch.stack(losses).sum().double(), **FLOAT32_LOSS)
    assert term.weight == sum(len(d) - 1 for d in documents)


def test_many_rows_are_done_in_pieces_with_equal_loss_and_gradients(make_decoder) -> None:
    model = make_decoder()
    hidden = torch.randn(23, 32, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 61, (23,))
    results = []
    for rows in (23, 5):
        loss = token_losses(model, hidden, targets, rows)
        results.append((loss, *torch.autograd.grad(loss, [hidden, model.embedding.weight])))
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(whole, pieces)


def test_half_precision_losses_are_summed_in_float32(make_decoder, make_examples) -> None:
    term = Sft()({"policy": make_decoder(torch.bfloat16)}, pack_examples(make_examples(3)))["sft"]
    assert term.total.dtype == torch.float32


def test_the_head_sees_only_positions_with_a_target(make_decoder, make_examples, monkeypatch) -> None:
    model, rows = make_decoder(), []
    head = Decoder.head
    monkeypatch.setattr(Decoder, "head", lambda self, hidden: rows.append(len(hidden)) or head(self, hidden))
    batch = pack_examples(make_examples(5))
    Sft()({"policy": model}, batch)
    assert rows == [batch.target_count]


@pytest.mark.parametrize("name", [*OBJECTIVES, "sft"])
def test_weights_before_the_forward_pass_are_those_after(name, make_decoder, make_examples) -> None:
    objective, batch = OBJECTIVES.get(name, Sft)(), pack_examples(make_examples(5))
    assert objective.name == name
    assert objective.roles == ("policy",)
    terms = objective({"policy": make_decoder()}, batch)
    assert {n: t.weight for n, t in terms.items()} == objective.weights(batch)


def test_sft_names_an_example_without_a_target() -> None:
    documents = [[1, 2, 3], [4], [5, 6]]
    batch = rows_batch(pack_documents([3, 1, 2], 8).rows, documents, ["e0", "e1", "e2"], 8)
    assert (batch.targets != NO_TARGET).sum() == 3
    with pytest.raises(DataError, match="'e1'"):
        Sft().weights(batch)
    assert NextToken().weights(batch) == {"next_token": 3.0}


def test_completion_examples() -> None:
    example = completion_example([5, 6], [7], "a")
    assert (example.ids, example.loss) == ((5, 6, 7), (False, False, True))
    for prompt, completion, part in (([], [1], "prompt"), ([1], [], "completion")):
        with pytest.raises(DataError, match=f"'a': its {part} is empty"):
            completion_example(prompt, completion, "a")
