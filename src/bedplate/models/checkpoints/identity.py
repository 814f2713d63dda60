"""The identity of a base: content hashes of its weights, tokenizer and chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

import torch
from torch import Tensor

from bedplate.models.layers.sentence_layers import SentenceLayers

T = TypeVar("T")
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

    def add(self, name: str, tensor: Tensor) -> None:
        """Takes a tensor. A part at a time is widened, so that a large one is never there twice."""
        # Half precisions widen exactly, so a bfloat16 copy of bfloat16 values has their id in any storage type.
        dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        byte_format = "<f8" if dtype == torch.float64 else "<f4"
        digest = hashlib.sha256(f"{name}|{'x'.join(map(str, tensor.shape))}|{byte_format}|".encode())
        for part in tensor.detach().reshape(-1).split(_PART):
            digest.update(part.to("cpu", dtype).numpy().view("uint8").data)
        self._digests[name] = digest.hexdigest()

    def hexdigest(self) -> str:
        lines = "\n".join(f"{name} {digest}" for name, digest in sorted(self._digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def dense_id(sentence: SentenceLayers | None) -> str | None:
    """The id of the weights that a sentence encoder has behind its model; None where it has none."""
    if sentence is None or not sentence.spec.denses:
        return None
    digest = WeightsHash()
    for name, tensor in sentence.named_parameters():
        digest.add(name, tensor)
    return digest.hexdigest()


def with_dense(weights_id: str, dense: str | None) -> str:
    """The id of weights together with those behind them."""
    return weights_id if dense is None else hashlib.sha256(f"{weights_id} {dense}".encode()).hexdigest()


class Lazy(Generic[T]):
    """A value that is computed on first use, by whichever thread needs it first."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute: Callable[[], T] | None = compute
        self._lock = Lock()

    def get(self) -> T:
        with self._lock:
            if self._compute is not None:
                self._value, self._compute = self._compute(), None
            return self._value
