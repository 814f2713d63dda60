"""What models can do is said by them, of every architecture, and is true."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from tests.references import converted, reference_bert, reference_llama

from bedplate.core.errors import UsageError
from bedplate.models.decoder import Decoder
from bedplate.models.encoder import Encoder
from bedplate.models.encoder_decoder import EncoderDecoder
from bedplate.models.inputs import Inputs
from bedplate.models.model import Ability, Model

TOKENS = torch.arange(5)[None]


def test_every_architecture_says_what_it_can() -> None:
    architectures: list[type[Model]] = [Decoder, Encoder, EncoderDecoder]
    assert set(architectures) == set(Model.__subclasses__())
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
