"""Logits, hidden states, loss and gradients against transformers, on random tiny configurations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.near import assert_near
from tests.references import BERT_VARIANTS, LLAMA_VARIANTS, converted, reference_bert, reference_llama

from bedplate.models.decoder import Decoder
from bedplate.models.inputs import Inputs

# transformers computes its norms' statistics in float32 even in a float64 model, so float64 agrees to float32 noise.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 2e-6}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", LLAMA_VARIANTS)
def test_llama_logits_loss_and_gradients(variant: str, dtype: torch.dtype, seed: int) -> None:
    reference = reference_llama(seed, **LLAMA_VARIANTS[variant]).to(dtype)
    ours, family = converted(reference, dtype)
    tokens = torch.randint(0, 97, (3, 40), generator=torch.Generator().manual_seed(seed))
    labels = tokens.clone()
    labels[:, :5] = -100
    theirs = reference(tokens, labels=labels, output_hidden_states=True)
    theirs.loss.backward()

    out = ours(Inputs(tokens), capture=("layers.0", "layers.2"))
    logits = ours.head(out.hidden.flatten(0, 1)).view(3, 40, -1)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()

    assert_near(logits, theirs.logits, rel=TOLERANCE[dtype])
    assert_near(loss, theirs.loss.to(dtype), rel=TOLERANCE[dtype])
    for name in ("layers.0", "layers.2"):
        expected = theirs.hidden_states[int(name[-1])]
        assert_near(out.captured[name], expected, rel=TOLERANCE[dtype])
    gradients = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = gradients[family.weights.to_external(name)].grad
        assert parameter.grad is not None
        assert_near(parameter.grad, expected, rel=1e-4, label=name)


@pytest.mark.parametrize("variant", BERT_VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bert_hidden_states_pooler_and_gradients(variant: str, dtype: torch.dtype, seed: int) -> None:
    reference = reference_bert(seed, **BERT_VARIANTS[variant]).to(dtype)
    ours, family = converted(reference, dtype)
    # Row 0 is the reference's padding token, whose embedding it never trains.
    tokens = torch.randint(1, 97, (3, 40), generator=torch.Generator().manual_seed(seed))
    theirs = reference(tokens, output_hidden_states=True)
    (theirs.last_hidden_state.square().sum() + theirs.pooler_output.sum()).backward()

    out = ours(Inputs(tokens), capture=("layers.1",))
    pooled = ours.pooler(out.hidden[:, 0])
    (out.hidden.square().sum() + pooled.sum()).backward()

    assert_near(out.hidden, theirs.last_hidden_state)
    assert_near(out.captured["layers.1"], theirs.hidden_states[1])
    assert_near(pooled, theirs.pooler_output)
    gradients = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        expected = gradients[family.weights.to_external(name)].grad
        torch.testing.assert_close(parameter.grad, expected, atol=2e-3, rtol=2e-4)


def test_padded_bert_rows_equal_transformers_with_a_mask(seed: int) -> None:
    reference = reference_bert(seed)
    ours, _ = converted(reference, torch.float32)
    tokens = torch.randint(0, 97, (3, 12))
    lengths = torch.tensor([12, 7, 1])
    mask = torch.arange(12) < lengths[:, None]
    theirs = reference(tokens, attention_mask=mask.long()).last_hidden_state
    out = ours(Inputs(tokens, segments=torch.where(mask, 1, -1))).hidden
    assert_near(out[mask], theirs[mask])


def test_bfloat16_logits_stay_near_float32(seed: int) -> None:
    reference = reference_llama(seed)
    exact, _ = converted(reference, torch.float32)
    rough, _ = converted(reference, torch.bfloat16)
    assert isinstance(exact, Decoder)
    assert isinstance(rough, Decoder)
    tokens = torch.randint(0, 97, (2, 30))
    a = exact.head(exact(Inputs(tokens)).hidden)
    b = rough.head(rough(Inputs(tokens)).hidden).float()
    theirs = reference.bfloat16()(tokens).logits.float()
    # Our bfloat16 must not be further from float32 than the reference's own.
    assert (a - b).norm() <= 1.2 * (a - theirs).norm()


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_depth_stops_early_with_the_reference_hidden_state(depth: int) -> None:
    reference = reference_llama(0)
    ours, _ = converted(reference, torch.float32)
    tokens = torch.randint(0, 97, (2, 9))
    states: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda *a: states.append(a[-1])) for layer in reference.model.layers]
    embedded = reference.model.embed_tokens(tokens)
    reference(tokens)
    for hook in hooks:
        hook.remove()
    expected = [embedded, *(s[0] if isinstance(s, tuple) else s for s in states)][depth]
    out = ours(Inputs(tokens), capture=(f"layers.{depth}",), depth=depth)
    assert_near(out.hidden, expected)
    assert_near(out.captured[f"layers.{depth}"], expected)
