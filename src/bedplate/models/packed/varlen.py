"""Attention of packed rows by torch's kernel for sequences of unequal lengths (`torch.nn.attention.varlen`, which is
FlashAttention-2, https://arxiv.org/abs/2307.08691): scaled scores and windows, keys and values of one size, half
precision, on CUDA devices.

Shapes: N tokens of the flattened rows, H query heads, G key-value heads, D features of one head, V of its value, S
documents.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.device_memory import sent
from bedplate.models.layers.attention_options import PLAIN, AttentionOptions, Recurrence
from bedplate.models.packed.placement import Placement
from bedplate.models.packed.recurrences import PackedDocuments

MAX_HEAD_DIM = 256
"""The most features of a head that the kernel takes."""


class VarlenAttention:
    """As `BlockAttention`, for documents that share no prefix, by a kernel that is told where each document begins
    among the tokens that are no padding. UnsupportedModelError, by name, for what the kernel cannot do.
    kernel: with the signature of torch's `varlen_attn`."""

    is_cached = False

    def __init__(self, placement: Placement, causal: bool = True, kernel: Callable[..., Any] | None = None) -> None:
        if any(document.shared for document in placement.documents):
            raise UnsupportedModelError("attention behind a shared prefix is not supported by varlen_attn")
        self._placement, self._causal, self._kernel = placement, causal, kernel or varlen_kernel()
        self._documents = PackedDocuments(placement)
        self._device_places: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, options: AttentionOptions = PLAIN
    ) -> Tensor:
        options.check_supported("varlen_attn", "scale", "window")
        if self._kernel is None:
            raise UnsupportedModelError("this build of torch has no varlen_attn; it came with torch 2.10")
        edges_S, tokens = self._places(q_BTHD.device)
        q, k, v = (x.flatten(0, 1) for x in (q_BTHD, k_BTGD, v_BTGV))
        if self._placement.padded:
            q, k, v = (x.index_select(0, tokens) for x in (q, k, v))
        out_NHV = self._kernel(
            *(q, k, v, edges_S, edges_S, self._placement.longest, self._placement.longest),
            scale=options.scale,
            window_size=self._window(options),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        if self._placement.padded:
            padded = out_NHV.new_zeros(q_BTHD.shape[0] * q_BTHD.shape[1], *out_NHV.shape[1:])
            out_NHV = padded.index_copy(0, tokens, out_NHV)
        return out_NHV.view(*q_BTHD.shape[:3], v_BTGV.shape[3])

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return self._documents.recur(run, x_BTC)

    def _window(self, options: AttentionOptions) -> tuple[int, int]:
        """How many tokens before and after its own a query sees, as the kernel takes it; −1: all."""
        left = -1 if options.window is None else options.window - 1 if self._causal else options.window // 2
        return left, 0 if self._causal else left

    def _places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where each document begins among the tokens that are no padding, and where the last one ends, int32 [S + 1];
        and where those tokens stand in the rows."""
        if device not in self._device_places:
            lengths = torch.tensor([0, *(document.token_count for document in self._placement.documents)])
            tokens = (self._placement.numbers_N >= 0).nonzero().squeeze(1)
            edges_S = lengths.cumsum(0).to(torch.int32)
            self._device_places[device] = sent(edges_S, device), sent(tokens, device)
        return self._device_places[device]


@cache
def varlen_kernel() -> Callable[..., Any] | None:
    """torch's `varlen_attn`, or None where this build has none."""
    try:
        return importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
