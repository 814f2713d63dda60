"""Vectors in the place of tokens: those of tokens say what the tokens say, and gradients reach them."""

from __future__ import annotations

import pytest
import torch
from tests.references import converted, reference_bert, reference_llama

from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.inference.forward.spans import Span
from bedplate.models.inputs import Inputs
from bedplate.models.model import Model

MODELS = {"decoder": reference_llama, "encoder": reference_bert}


def model_of(architecture: str, dtype: torch.dtype) -> Model:
    return converted(MODELS[architecture](0), dtype)[0]


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("packed", [False, True])
def test_vectors_of_tokens_are_those_tokens(architecture: str, dtype: torch.dtype, packed: bool, seed: int) -> None:
    model = model_of(architecture, dtype)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 97, (2, 12), generator=generator)
    vector_mask = torch.rand(2, 12, generator=generator) < 0.4
    segments = torch.tensor([[1] * 5 + [2] * 7, [1] * 9 + [-1] * 3]) if packed else None
    expected = model(Inputs(tokens, segments=segments)).hidden
    vectors = torch.where(vector_mask[..., None], model.embedding(tokens), torch.full((), 7.0, dtype=dtype))
    # What stands under a vector is no token: any number will do.
    elsewhere = torch.where(vector_mask, torch.full_like(tokens, -5), tokens)
    hidden = model(Inputs(elsewhere, segments=segments, vectors=vectors, vector_mask=vector_mask)).hidden
    assert torch.equal(hidden, expected)


@pytest.mark.parametrize("architecture", MODELS)
def test_gradients_reach_the_vectors_that_are_given_and_no_others(architecture: str) -> None:
    model = model_of(architecture, torch.float64)
    vectors = torch.randn(1, 6, 48, dtype=torch.float64, requires_grad=True)
    vector_mask = torch.tensor([[True, False, True, True, False, False]])
    model(Inputs(torch.arange(6)[None], vectors=vectors, vector_mask=vector_mask)).hidden.square().sum().backward()
    assert vectors.grad is not None
    assert (vectors.grad[0].abs().sum(1) > 0).tolist() == vector_mask[0].tolist()


def test_vectors_are_rounded_to_the_models_dtype() -> None:
    model = model_of("decoder", torch.float32).to(torch.bfloat16)
    vectors = torch.randn(1, 4, 48)
    vector_mask = torch.ones(1, 4, dtype=torch.bool)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    hidden = [model(Inputs(tokens, vectors=v, vector_mask=vector_mask)).hidden for v in (vectors, vectors.bfloat16())]
    assert hidden[0].dtype == torch.bfloat16
    assert torch.equal(*hidden)


def test_vectors_reach_a_cache() -> None:
    """Keys and values of vectors, then tokens behind them, are those of one pass."""
    model = model_of("decoder", torch.float64)
    tokens = torch.arange(3, 15)[None]
    vectors = torch.randn(1, 5, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = torch.cat((vectors, torch.zeros(1, 7, 48, dtype=torch.float64)), dim=1)
    vector_mask = torch.arange(12)[None] < 5
    expected = model(Inputs(tokens, vectors=whole, vector_mask=vector_mask)).hidden
    cache = SlotCache(model.spec, torch.float64, torch.device("cpu"))
    with torch.inference_mode():
        first = Inputs(tokens[:, :5], torch.arange(5)[None], vectors=vectors, vector_mask=vector_mask[:, :5])
        model(first, cache=cache.attend([Span(0, 0, 5)]))
        after = model(Inputs(tokens[:, 5:], torch.arange(5, 12)[None]), cache=cache.attend([Span(0, 5, 7)])).hidden
    torch.testing.assert_close(after, expected[:, 5:])
