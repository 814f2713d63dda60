"""A table of vectors by token or position."""

from __future__ import annotations

from torch import nn


class Embedding(nn.Embedding):
    """torch's own, which on device "meta" has no values to draw: drawing them there loads torch's compiler first, which
    takes about as long as torch itself."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()
