"""Latent attention: over the latents and over every head's keys and values, the same."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_spec

from bedplate.models.decoder import Decoder
from bedplate.models.inputs import Inputs
from bedplate.models.layers.attention import RowAttention
from bedplate.models.specs.parts import LatentAttention
from bedplate.models.specs.position import YarnScaling
from bedplate.models.specs.transformer import Rope, TransformerSpec

ROPE = Rope(10_000.0, YarnScaling(4.0, 16, scale=1.0, scale_all=0.7), interleaved=True)


def spec(**changes: object) -> TransformerSpec:
    part = LatentAttention(16, 10, 8, 12, 20)
    return tiny_spec(heads=4, kv_heads=4, head_dim=18, rope=ROPE, latent=part).with_(**changes)


@pytest.mark.parametrize("changes", [{}, {"latent": LatentAttention(16, 10, 8, 20), "attention_bias": True}])
def test_absorbed_is_naive(changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = Decoder(spec(**changes), dtype=torch.float64)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)

    class Keeping(RowAttention):
        is_cached = True

        def __call__(self, layer, q_BTHD, k_BTGD, v_BTGV, how):  # type: ignore[no-untyped-def]
            assert (k_BTGD.shape[2:], v_BTGV.shape[2:]) == ((1, 24), (1, 16)), "one key, and its end as the value"
            return super().__call__(layer, q_BTHD, k_BTGD, v_BTGV, how)

    inputs = Inputs(torch.randint(0, model.spec.vocab_size, (2, 11)))
    naive, absorbed = model(inputs).hidden, model(inputs, cache=Keeping(causal=True)).hidden
    torch.testing.assert_close(naive, absorbed, rtol=1e-10, atol=1e-10)
