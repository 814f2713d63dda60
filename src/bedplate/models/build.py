"""From a spec to a module."""

from __future__ import annotations

import torch

from bedplate.models.decoder import Decoder
from bedplate.models.encoder import Encoder
from bedplate.models.specs.transformer import TransformerSpec

Model = Decoder | Encoder


def build(spec: TransformerSpec, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Model:
    """A module with random weights (from torch's global generator), or without storage on device "meta"."""
    if spec.kind == "decoder":
        return Decoder(spec, device, dtype)
    return Encoder(spec, device, dtype)
