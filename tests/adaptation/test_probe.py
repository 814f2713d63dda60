"""What a probe's features are computed in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.near import assert_near
from tests.tiny import tiny_spec

from bedplate.adaptation.rungs.probe import _fastest
from bedplate.models.build import build
from bedplate.models.decoder import Decoder
from bedplate.models.inputs import Inputs
from bedplate.training import precision

TOKENS = Inputs(torch.tensor([[5, 3, 7, 2, 9]]))


def base(dtype: torch.dtype) -> Decoder:
    torch.manual_seed(0)
    model = build(tiny_spec(), dtype)
    assert isinstance(model, Decoder)
    return model.eval().requires_grad_(False)


def context(train_dtype: str) -> Any:
    return SimpleNamespace(spec=SimpleNamespace(train_dtype=train_dtype))


def features(model: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return model(TOKENS, capture=("layers.1",)).captured["layers.1"]


def test_weights_are_widened_and_are_as_before_afterwards() -> None:
    model, widened = base(torch.bfloat16), base(torch.float32)
    widened.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rounded = features(model)
    with _fastest(context("float32"), model):
        assert_near(features(model), features(widened))
    assert model.embedding.weight.dtype == torch.bfloat16
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(features(model), rounded)


def test_weights_are_never_rounded() -> None:
    model = base(torch.float32)
    expected = features(model)
    with _fastest(context("bfloat16"), model):
        assert torch.equal(features(model), expected)


def test_without_room_the_base_computes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "free_bytes", lambda: 0)
    model = base(torch.bfloat16)
    expected = features(model)
    with _fastest(context("float32"), model):
        assert torch.equal(features(model), expected)
