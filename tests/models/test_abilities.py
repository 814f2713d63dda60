"""What models can do is said by them, of every architecture, and is true."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from tests.references import converted, reference_bert, reference_llama
from tests.tiny import tiny_spec

from bedplate.core.errors import UsageError
from bedplate.models.decoder import Decoder
from bedplate.models.encoder import Encoder
from bedplate.models.encoder_decoder import EncoderDecoder
from bedplate.models.inputs import Inputs, Outputs
from bedplate.models.model import Ability, Model

TOKENS = torch.arange(5)[None]


def test_every_architecture_says_what_it_can() -> None:
    architectures: list[type[Model]] = [Decoder, Encoder, EncoderDecoder]
    ours = {architecture for architecture in Model.__subclasses__() if architecture.__module__.startswith("bedplate.")}
    assert set(architectures) == ours
    for architecture in architectures:
        assert architecture.can
        assert architecture.can <= set(get_args(Ability))


def test_what_generates_has_logits_and_what_does_not_says_what_it_can() -> None:
    decoder, _ = converted(reference_llama(0), torch.float32)
    assert {"generate", "score"} <= decoder.can
    assert decoder.head(decoder(Inputs(TOKENS)).hidden[0]).shape == (5, 97)
    encoder, _ = converted(reference_bert(0), torch.float32)
    assert not encoder.can & {"generate", "score"}
    with pytest.raises(UsageError, match="this encoder has no next-token logits; it can classify, embed"):
        encoder.head(encoder(Inputs(TOKENS)).hidden[0])


def test_a_pooler_is_a_part_that_may_be_missing() -> None:
    with_one, _ = converted(reference_bert(0), torch.float32)
    assert isinstance(with_one, Encoder)
    assert with_one.pooler is not None
    assert {"pooler.weight", "pooler.bias"} <= with_one.state_dict().keys()
    without, _ = converted(reference_bert(0, pooler=False), torch.float32)
    assert isinstance(without, Encoder)
    assert without.pooler is None


def test_a_model_without_a_table_of_tokens_says_so() -> None:
    class Filter(Model):
        can = frozenset(("denoise",))
        reads = frozenset(("hidden_size",))

        def __init__(self) -> None:
            super().__init__()
            self.spec = tiny_spec(kind="tower", vocab_size=0, rope=None)
            self.map = torch.nn.Linear(4, 4, dtype=torch.bfloat16)

        def forward(self, inputs: Inputs, *_: Any, **__: Any) -> Outputs:
            return Outputs(self.map(inputs.vectors))

    model = Filter()
    assert (model.dtype, model.device) == (torch.bfloat16, torch.device("cpu"))
    with pytest.raises(UsageError, match="this tower has no table of tokens"):
        model.token_table()
