"""A stack of blocks, from the embeddings of tokens to the states after its last norm: what architectures are made of.

Hidden states are captured by name on the way, and a pass may stop early.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bedplate.core.errors import ContextLengthExceeded, UsageError
from bedplate.models.inputs import Inputs, Outputs
from bedplate.models.layers.attention import Attend, Attention, SharingAttend
from bedplate.models.layers.block import Block
from bedplate.models.layers.experts import collect_routings
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.norms import make_norm
from bedplate.models.layers.positions import RelativePositions, Rotation, Rotations, sinusoids
from bedplate.models.layers.recomputation import recomputes_blocks
from bedplate.models.precision import Device
from bedplate.models.specs.transformer import Scales, TransformerSpec


class EmbeddingTable(nn.Embedding):
    """A table of vectors by token or position. On device "meta" there are no values to draw: drawing them there loads
    torch's compiler first, which takes about as long as torch itself."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Stack(nn.Module):
    """Blocks and what stands around them, as far as the spec has it. The table of tokens is its owner's, who adds the
    stack's parts behind it, so that parameters stand in the order of their use."""

    def add_stack(self, spec: TransformerSpec, device: Device, dtype: torch.dtype) -> None:
        """Builds the parts."""
        self.stack_spec, self.scales = spec, spec.scales or Scales()

        def table(rows: int) -> nn.Embedding | None:
            return EmbeddingTable(rows, spec.hidden_size, device=device, dtype=dtype) if rows else None

        self.position_embedding, self.token_type_embedding = table(spec.positions), table(spec.token_types)
        self.embedding_norm = make_norm(spec, device, dtype) if spec.norms_embedding else None
        self.layer_inputs = PerLayerEmbeddings(spec, device, dtype) if spec.layer_input_size else None
        self._shared = frozenset(source for n in range(spec.layers) if (source := spec.keys_of(n)) != n)
        self.layers = nn.ModuleList(Block(spec, layer, device, dtype) for layer in range(spec.layers))
        self.norm = make_norm(spec, device, dtype) if spec.norms_output else nn.Identity()
        self._rotations = Rotations(spec)
        bias, heads = spec.position.relative_bias, spec.attention.heads
        self.relative_positions = (
            None if bias is None else RelativePositions(bias, heads, spec.kind == "encoder", device, dtype)
        )
        for block in self.blocks():
            if self.relative_positions is not None and isinstance(block.attention, Attention):
                block.attention.add_bias(self.relative_positions.bias)

    def blocks(self) -> list[Block]:
        return [block for block in self.layers if isinstance(block, Block)]

    def states(
        self,
        inputs: Inputs,
        table: nn.Embedding,
        attend: Attend,
        capture: Collection[str] = (),
        depth: int | None = None,
        last: int | None = None,
    ) -> Outputs:
        """States [B, T, D]: after the last norm, or, with `depth`, after that many blocks and before it. table: of the
        tokens; last: the largest position, where that is known."""
        positions_BT = inputs.resolved_positions()
        x_BTD = self.embedded(inputs, table, positions_BT)
        rotations = self._rotations.at(positions_BT, x_BTD.dtype, inputs.known_last if last is None else last)
        attend = SharingAttend(attend, self._shared) if self._shared else attend
        given_BTLE = None if self.layer_inputs is None else self.layer_inputs(inputs, x_BTD)
        try:
            with collect_routings() as routings:
                x_BTD, captured = run_blocks(self.layers, x_BTD, rotations, attend, capture, depth, given_BTLE)
        finally:
            if self.relative_positions is not None:
                self.relative_positions.forget()
        return Outputs(x_BTD if depth is not None else self.norm(x_BTD), captured, tuple(routings))

    def embedded(self, inputs: Inputs, table: nn.Embedding, positions_BT: Tensor) -> Tensor:
        """What the first block gets."""
        spec, x_BTD = self.stack_spec, inputs.embedded(table, self.scales.embedding)
        if self.token_type_embedding is not None:
            types = self.token_type_embedding
            x_BTD = x_BTD + (types.weight[0] if inputs.types is None else types(inputs.types))
        if self.position_embedding is not None:
            offset = spec.position.offset
            last, rows = inputs.last_position(), self.position_embedding.num_embeddings - offset
            if last >= rows:
                raise ContextLengthExceeded(
                    f"a text of {last + 1} tokens is longer than the {spec.kind}'s {rows} learned positions"
                )
            x_BTD = x_BTD + self.position_embedding(positions_BT + offset)
        if spec.position.sinusoids:
            x_BTD = x_BTD + sinusoids(positions_BT, spec.hidden_size, x_BTD.dtype)
        return x_BTD if self.embedding_norm is None else self.embedding_norm(x_BTD)

    def next_token_logits(self, hidden_ND: Tensor, table_VD: Tensor, head: Linear | None) -> Tensor:
        """Logits [N, V] of states [N, D], by the head or else by the table of tokens."""
        if self.scales.head != 1:
            hidden_ND = hidden_ND * self.scales.head
        logits_NV = F.linear(hidden_ND, table_VD) if head is None else head(hidden_ND)
        cap = self.scales.logit_cap
        return logits_NV if cap is None else torch.tanh(logits_NV / cap) * cap


def draw_tables(*tables: nn.Embedding | None) -> None:
    """Random vectors of about unit length."""
    for table in tables:
        if table is not None and not table.weight.is_meta:
            nn.init.normal_(table.weight, std=table.embedding_dim**-0.5)


class PerLayerEmbeddings(nn.Module):
    """Per-layer embeddings (Gemma 3n, https://huggingface.co/docs/transformers/model_doc/gemma3n): an additional input
    of every layer for each token.

    (√E · row + norm(projection / √D)) / √2 for each of L layers, E features each: a row of a table of their own, and a
    projection of the token's embedding.
    """

    def __init__(self, spec: TransformerSpec, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        self.size, self.hidden = spec.layer_input_size, spec.hidden_size
        width = spec.layers * self.size
        self.embedding = EmbeddingTable(spec.vocab_size, width, device=device, dtype=dtype)
        self.projection = Linear(spec.hidden_size, width, False, device, dtype)
        self.norm = make_norm(spec, device, dtype, self.size)
        if not self.embedding.weight.is_meta:
            nn.init.normal_(self.embedding.weight, std=self.size**-0.5)

    def forward(self, inputs: Inputs, x_BTD: Tensor) -> Tensor:
        """[B, T, L, E], from the tokens and the first layer's input. Where vectors replace tokens, the row is that of
        token 0, as for padding."""
        tokens = inputs.tokens if inputs.vector_mask is None else inputs.tokens.masked_fill(inputs.vector_mask, 0)
        rows_BTLE = self.embedding(tokens).unflatten(-1, (-1, self.size))
        made_BTLE = (self.projection(x_BTD) * self.hidden**-0.5).unflatten(-1, (-1, self.size))
        scale = torch.tensor(self.size**0.5, dtype=rows_BTLE.dtype, device=rows_BTLE.device)
        # The sum of the two varies as much as each.
        return (self.norm(made_BTLE) + rows_BTLE * scale) * 2.0**-0.5


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
    given: the per-layer inputs of each of L layers (`PerLayerEmbeddings`)."""
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
        elif recomputes_blocks():  # dropout masks are drawn again from the saved random state
            inputs = x_BTD, rotations[i], attend, *extra_inputs
            x_BTD = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=True)
        else:
            x_BTD = block(x_BTD, rotations[i], attend, *extra_inputs)
    return x_BTD, captured
