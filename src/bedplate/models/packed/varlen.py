"""Attention of packed rows by kernels for sequences of unequal lengths: torch's own (`torch.nn.attention.varlen`, which
is FlashAttention-2, https://arxiv.org/abs/2307.08691) does scaled scores and windows, keys and values of one size, half
precision, on CUDA devices.

Shapes: N tokens of the flattened rows, H query heads, G key-value heads, D features of one head, V of its value, S
documents.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.device_memory import sent
from bedplate.models.layers.attention_options import PLAIN, AttentionOptions
from bedplate.models.layers.recurrence_inputs import Recurrence
from bedplate.models.packed.placement import Placement
from bedplate.models.packed.recurrences import PackedDocuments

HEAD = 256
"""The most features of a head that the kernel takes."""


class UnequalLengths(ABC):
    """As `BlockAttention`, for documents that share nothing, by a kernel that is told where each begins among the
    tokens that are no padding. UnsupportedModelError for a shared prefix, and by name for what a layer wants and the
    kernel cannot do. name, able: the kernel's, and what it can of `How`."""

    is_cached = False
    name: str
    able: tuple[str, ...]

    def __init__(self, placement: Placement, causal: bool = True) -> None:
        if any(document.shared for document in placement.documents):
            raise UnsupportedModelError(f"attention behind a shared prefix is not supported by {self.name}")
        self.placement, self.causal = placement, causal
        self._documents = PackedDocuments(placement)
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def run(self, q_NHD: Tensor, k_NGD: Tensor, v_NGV: Tensor, edges_S: Tensor, how: AttentionOptions) -> Tensor:
        """The kernel's output [N, H, V]. edges: where documents begin, and where the last one ends, int32 [S + 1]."""

    @abstractmethod
    def missing(self) -> str | None:
        """Why there is no such kernel here, if there is none."""

    def window(self, how: AttentionOptions) -> tuple[int, int]:
        """How many tokens before and after its own a query sees, as such kernels take it; −1: all."""
        left = -1 if how.window is None else how.window - 1 if self.causal else how.window // 2
        return left, 0 if self.causal else left

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, how: AttentionOptions = PLAIN
    ) -> Tensor:
        how.only(self.name, *self.able)
        missing = self.missing()
        if missing is not None:
            raise UnsupportedModelError(missing)
        edges_S, tokens = self._places(q_BTHD.device)
        q, k, v = (x.flatten(0, 1) for x in (q_BTHD, k_BTGD, v_BTGV))
        if self.placement.padded:
            q, k, v = (x.index_select(0, tokens) for x in (q, k, v))
        out = self.run(q, k, v, edges_S, how)
        if self.placement.padded:
            out = out.new_zeros(q_BTHD.shape[0] * q_BTHD.shape[1], *out.shape[1:]).index_copy(0, tokens, out)
        return out.view(*q_BTHD.shape[:3], v_BTGV.shape[3])

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return self._documents.recur(run, x_BTC)

    def _places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where each document begins among the tokens that are no padding, int32 [S + 1], and where those stand."""
        if device not in self._on:
            lengths = torch.tensor([0, *(document.token_count for document in self.placement.documents)])
            tokens = (self.placement.numbers_N >= 0).nonzero().squeeze(1)
            self._on[device] = sent(lengths.cumsum(0).to(torch.int32), device), sent(tokens, device)
        return self._on[device]


class VarlenAttention(UnequalLengths):
    """torch's own. kernel: with the signature of its `varlen_attn`."""

    name = "varlen_attn"
    able = ("scale", "window")

    def __init__(self, placement: Placement, causal: bool = True, kernel: Callable[..., Any] | None = None) -> None:
        super().__init__(placement, causal)
        self._kernel = kernel or varlen_kernel()

    def missing(self) -> str | None:
        return "this build of torch has no varlen_attn; it came with torch 2.10" if self._kernel is None else None

    def run(self, q_NHD: Tensor, k_NGD: Tensor, v_NGV: Tensor, edges_S: Tensor, how: AttentionOptions) -> Tensor:
        assert self._kernel is not None
        return self._kernel(
            q_NHD,
            k_NGD,
            v_NGV,
            edges_S,
            edges_S,
            self.placement.longest,
            self.placement.longest,
            scale=how.scale,
            window_size=self.window(how),
            enable_gqa=q_NHD.shape[1] != k_NGD.shape[1],
        )


@cache
def varlen_kernel() -> Callable[..., Any] | None:
    """torch's `varlen_attn`, or None where this build has none."""
    try:
        return importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
