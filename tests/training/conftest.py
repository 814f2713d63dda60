"""A tiny decoder and tiny examples for the training tests."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from tests.tiny import tiny_spec

from bedplate.models.decoder import Decoder
from bedplate.training.batch import TrainingExample

TINY = tiny_spec(vocab_size=61, hidden_size=32, layers=2, heads=4, feedforward_size=48, context_length=64)


@pytest.fixture
def make_decoder() -> Callable[..., Decoder]:
    def build_decoder(dtype: torch.dtype = torch.float64, seed: int = 0) -> Decoder:
        torch.manual_seed(seed)
        return Decoder(TINY, dtype=dtype)

    return build_decoder


@pytest.fixture
def make_examples() -> Callable[..., list[TrainingExample]]:
    def build_examples(count: int, prefix: int = 6, seed: int = 0) -> list[TrainingExample]:
        """Examples that share `prefix` tokens, of unequal length, with one to three tokens to learn."""
        draw = random.Random(seed)
        shared = [draw.randrange(61) for _ in range(prefix)]
        examples: list[TrainingExample] = []
        for i in range(count):
            prompt = [*shared, *(draw.randrange(61) for _ in range(draw.randint(2, 9)))]
            answer = [draw.randrange(61) for _ in range(draw.randint(1, 3))]
            loss = (False,) * len(prompt) + (True,) * len(answer)
            examples.append(TrainingExample((*prompt, *answer), loss, f"e{i}"))
        return examples

    return build_examples
