"""Attention within whole texts that lie one after the other in one row, for passes without a cache.

Texts of one length side by side are a block without padding or copies, so nothing is masked, and short ones are two
batched products. Measured on an EPYC core in bfloat16, 1,024 tokens of 12 heads of 32: torch's flash kernel takes 1.8,
2.8 and 4.3 ms at lengths 32, 64 and 128, the products 0.9, 1.5 and 2.5 ms; in float32 1.4, 2.1 and 3.6 against 1.2, 2.1
and 4.5 ms.

Shapes: T tokens of all texts, S texts of L tokens, H heads, G key-value heads, D features of a head's query and key, V
of its value.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.layers.attention import distances, whole_attention
from bedplate.models.layers.attention_options import PLAIN, AttentionOptions, Recurrence

_LONGEST = {torch.bfloat16: 256, torch.float16: 256, torch.float32: 32}
"""Up to how many tokens a text's attention is two products, by dtype; longer ones, and others, go to torch's kernel."""


class WholeTexts:
    """Each token of the row sees its own text. lengths: of the texts, in their order; equal ones side by side are
    computed together."""

    is_cached = False

    def __init__(self, lengths: Sequence[int]) -> None:
        self._runs = [(length, len(list(group))) for length, group in groupby(lengths)]
        self._distances: dict[int, Tensor] = {}

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, options: AttentionOptions = PLAIN
    ) -> Tensor:
        outputs: list[Tensor] = []
        begin = 0
        for length, count in self._runs:
            end = begin + length * count
            q, k, v = (x[0, begin:end].view(count, length, *x.shape[2:]) for x in (q_BTHD, k_BTGD, v_BTGV))
            outputs.append(
                self._attend_texts(q, k, v, options).reshape(end - begin, *q_BTHD.shape[2:3], v_BTGV.shape[3])
            )
            begin = end
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None]

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        raise UnsupportedModelError("layers that keep a state do not read whole texts at once")

    def _attend_texts(self, q_SLHD: Tensor, k_SLGD: Tensor, v_SLGV: Tensor, options: AttentionOptions) -> Tensor:
        (S, L, H, D), V = q_SLHD.shape, v_SLGV.shape[3]
        if options.is_plain and q_SLHD.is_cpu and k_SLGD.shape[2] == H and _LONGEST.get(q_SLHD.dtype, 0) >= L:
            q, k, v = (x.transpose(1, 2).reshape(S * H, L, x.shape[3]) for x in (q_SLHD, k_SLGD, v_SLGV))
            scores = torch.bmm(q * (D**-0.5 if options.scale is None else options.scale), k.transpose(1, 2))
            return torch.bmm(scores.softmax(-1), v).view(S, H, L, V).transpose(1, 2)
        if not options.is_plain and L not in self._distances:
            # One for all layers: what a layer makes of it, all of them may use.
            self._distances[L] = distances(L, q_SLHD.device)
        return whole_attention(q_SLHD, k_SLGD, v_SLGV, options, causal=False, distance=self._distances.get(L))
