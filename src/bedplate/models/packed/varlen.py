"""Attention of packed rows by torch's kernel for sequences of unequal lengths (`torch.nn.attention.varlen`, which is
FlashAttention-2, https://arxiv.org/abs/2307.08691): scaled scores and windows, keys and values of one size, half
precision, on CUDA devices.

Shapes: N tokens of the flattened rows, H query heads, G key-value heads, D features of one head, S documents.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.layers.documents import Recurrence
from bedplate.models.layers.how import PLAIN, How
from bedplate.models.packed.placement import Placement
from bedplate.models.packed.recurrences import Documents

HEAD = 256
"""The most features of a head that the kernel takes."""


class VarlenAttention:
    """As `BlockAttention`, for documents that share nothing. kernel: with the signature of torch's `varlen_attn`.
    UnsupportedModelError for a shared prefix, and by name for what a layer wants and the kernel cannot do."""

    keeps = False

    def __init__(self, placement: Placement, causal: bool = True, kernel: Callable[..., Any] | None = None) -> None:
        if any(document.shared for document in placement.documents):
            raise UnsupportedModelError("attention behind a shared prefix is not supported by varlen_attn")
        self._placement, self._causal, self._kernel = placement, causal, kernel or varlen_kernel()
        self._documents = Documents(placement)
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, how: How = PLAIN) -> Tensor:
        how.only("varlen_attn", "scale", "window")
        if self._kernel is None:
            raise UnsupportedModelError("this build of torch has no varlen_attn; it came with torch 2.10")
        edges_S, tokens = self._places(q_BTHD.device)
        q, k, v = (x.flatten(0, 1) for x in (q_BTHD, k_BTGD, v_BTGV))
        if self._placement.padded:
            q, k, v = (x.index_select(0, tokens) for x in (q, k, v))
        longest, window = self._placement.longest, how.window
        left = -1 if window is None else window - 1 if self._causal else window // 2
        out = self._kernel(
            q,
            k,
            v,
            edges_S,
            edges_S,
            longest,
            longest,
            scale=how.scale,
            window_size=(left, 0 if self._causal else left),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        if self._placement.padded:
            out = out.new_zeros(q_BTHD.shape[0] * q_BTHD.shape[1], *out.shape[1:]).index_copy(0, tokens, out)
        return out.view(*q_BTHD.shape[:3], v_BTGV.shape[3])

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return self._documents.recur(run, x_BTC)

    def _places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where each document begins among the tokens that are no padding, int32 [S + 1], and where those stand."""
        if device not in self._on:
            own = torch.tensor([0, *(document.own for document in self._placement.documents)])
            tokens = (self._placement.numbers_N >= 0).nonzero().squeeze(1)
            self._on[device] = own.cumsum(0).to(device, torch.int32), tokens.to(device)
        return self._on[device]


@cache
def varlen_kernel() -> Callable[..., Any] | None:
    """torch's `varlen_attn`, or None where this build has none."""
    try:
        return importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
