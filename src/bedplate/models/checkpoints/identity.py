"""Who a base is: content hashes of its weights, tokenizer and chat template."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bedplate.models.layers.sentence import Sentence

NO_TOKENIZER = NO_TEMPLATE = "none"
_PART = 1 << 20
"""Values that are widened at a time: few enough for a processor's cache."""


@dataclass(frozen=True)
class Identity:
    """Content hashes (sha256, hex).

    weights_id: of the values (as float32), by Bedplate's parameter names, so that lossless conversions of one base (a
        GGUF file and its export) share it. tokenizer_id, template_id: or "none" where there is none.
    equivalent_of: sha256 of the file this base was converted from, after its values were verified equal.
    """

    weights_id: str
    tokenizer_id: str = NO_TOKENIZER
    template_id: str = NO_TEMPLATE
    equivalent_of: str | None = None


class WeightsHash:
    """Accumulates `weights_id` tensor by tensor, in any order."""

    def __init__(self) -> None:
        self._digests: dict[str, str] = {}

    def add(self, name: str, tensor: Tensor) -> bool:
        """Takes a tensor; whether all its values are finite. A part at a time is widened, so that a large one is never
        there twice."""
        # Half precisions widen exactly, so a bfloat16 copy of bfloat16 values has their id in any storage type.
        wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        kind = "<f8" if wide == torch.float64 else "<f4"
        digest = hashlib.sha256(f"{name}|{'x'.join(map(str, tensor.shape))}|{kind}|".encode())
        finite = True
        for part in tensor.detach().reshape(-1).split(_PART):
            values = part.to("cpu", wide)
            digest.update(values.numpy().view("uint8").data)
            # A sum shows them; one that merely grew too large is looked at again.
            finite = finite and (math.isfinite(float(values.sum())) or bool(values.isfinite().all()))
        self._digests[name] = digest.hexdigest()
        return finite

    def hexdigest(self) -> str:
        lines = "\n".join(f"{name} {digest}" for name, digest in sorted(self._digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def with_dense(weights_id: str, sentence: Sentence | None) -> str:
    """The id of weights together with those that a sentence encoder has behind its model."""
    if sentence is None or not sentence.spec.denses:
        return weights_id
    digest = WeightsHash()
    for name, tensor in sentence.named_parameters():
        digest.add(name, tensor)
    return hashlib.sha256(f"{weights_id} {digest.hexdigest()}".encode()).hexdigest()
