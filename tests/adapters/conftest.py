"""A tiny decoder, random in every weight, for the adapter tests."""

from collections.abc import Callable

import pytest
import torch
from tests.tiny import tiny_spec

from bedplate.models.decoder import Decoder

TINY = tiny_spec(vocab_size=64, hidden_size=32, layers=2, heads=4, feedforward_size=48, context_length=64)


@pytest.fixture(scope="session")
def make_decoder() -> Callable[..., Decoder]:
    def new_decoder(dtype: torch.dtype = torch.float32) -> Decoder:
        torch.manual_seed(0)
        return Decoder(TINY, dtype=dtype).requires_grad_(False).eval()

    return new_decoder


@pytest.fixture
def decoder(make_decoder) -> Decoder:
    return make_decoder()
