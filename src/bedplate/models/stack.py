"""Running a stack of blocks, with hidden states captured by name and an early stop. Shared by decoder and encoder."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bedplate.core.errors import UsageError
from bedplate.models.layers.activation_checkpointing import recomputes_blocks
from bedplate.models.layers.attention import Attend
from bedplate.models.layers.block import Block
from bedplate.models.layers.positions import Rotation


def run_blocks(
    blocks: nn.ModuleList,
    x_BTD: Tensor,
    rotations: Sequence[Rotation | None],
    attend: Attend,
    capture: Collection[str],
    depth: int | None,
    given_BTLE: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The hidden state after `depth` blocks (all by default), and the captured ones: "layers.i" is the state after
    i blocks, so "layers.0" is the embedding. A name that does not exist (or lies beyond `depth`) is an UsageError.
    given: the per-layer inputs of each of L layers (`LayerInputs`)."""
    depth = len(blocks) if depth is None else depth
    if not 0 <= depth <= len(blocks):
        raise UsageError(f"depth {depth} is not between 0 and the model's {len(blocks)} blocks")
    unknown = set(capture) - {f"layers.{i}" for i in range(depth + 1)}
    if unknown:
        raise UsageError(f"cannot capture {', '.join(sorted(unknown))}: the names are layers.0 to layers.{depth}")
    captured: dict[str, Tensor] = {}
    late: Tensor | None = None
    """The second term of x: a block's last residual sum is fused with the next block's first norm."""
    for i in range(depth + 1):
        if late is not None and (i == depth or f"layers.{i}" in capture):
            x_BTD, late = x_BTD + late, None
        if f"layers.{i}" in capture:
            captured[f"layers.{i}"] = x_BTD
        if i == depth:
            break
        block, extra_inputs = blocks[i], () if given_BTLE is None else (given_BTLE[:, :, i],)
        if isinstance(block, Block) and not torch.is_grad_enabled():
            x_BTD, late = block.forward_unsummed(x_BTD, late, rotations[i], attend, *extra_inputs)
        else:
            x_BTD = _run(block, x_BTD, rotations[i], attend, *extra_inputs)
    return x_BTD, captured


def _run(block: nn.Module, x_BTD: Tensor, rotation: Rotation | None, attend: Attend, *extra_inputs: Tensor) -> Tensor:
    if not recomputes_blocks():
        return block(x_BTD, rotation, attend, *extra_inputs)
    # Dropout masks are drawn again from the saved random state.
    return checkpoint(block, x_BTD, rotation, attend, *extra_inputs, use_reentrant=False, preserve_rng_state=True)
