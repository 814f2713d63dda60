"""Memory of one device at the fullest moment of a step, in bytes by kind.

Weights, gradients and optimizer states follow the optimizer's own tensors (`training.optimizers`), shared as the layout
says (FSDP2, https://arxiv.org/abs/2304.11277; tensor parallel, https://arxiv.org/abs/1909.08053); activations come from
`economics`, operation by operation; and transient tensors: logits, gathered blocks, updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bedplate.economics.model.optimizer_states import is_block_matrix
from bedplate.economics.model.parameters import total, weights
from bedplate.economics.model.weight_list import Weight
from bedplate.economics.training.saved_activations import KeptBytes, kept_bytes
from bedplate.models.precision import DTYPES
from bedplate.models.specs import EncoderDecoderSpec, TextSpec, TransformerSpec
from bedplate.models.specs.split import cuts_of
from bedplate.pretraining.plan.sizes import RunSizes
from bedplate.pretraining.runfile.file import RunFile
from bedplate.training.objectives.objective import TokenCounts
from bedplate.training.objectives.token_term import HEAD_ROWS, PIECE
from bedplate.training.parallel.layout import Axis

MASTER = 4
"""Bytes of what is added up and updated: float32."""
_TURNED = 4
"""Copies of the largest group of matrices while Muon makes them orthogonal."""


@dataclass(frozen=True)
class _WeightCounts:
    """Parameters of one device: all, the matrices of blocks (Muon's), and of those that are gathered before they
    compute the largest block and what is outside of blocks. largest: the most values of matrices of one size."""

    all: float
    matrices: float
    block: float
    outside: float
    largest: float


def device_bytes(
    run: RunFile, spec: TextSpec, sizes: RunSizes, dtype: str, axes: Mapping[Axis, int], *, on_cpu: bool
) -> dict[str, float]:
    """dtype: what is computed in. axes: how many ranks share what. UnsupportedModelError for what they cannot share."""
    value, several = DTYPES[dtype].itemsize, math.prod(axes.values()) > 1
    cut = axes["shard"] * axes["expert"]
    all_weights = list(weights(spec))
    counts = _weight_counts(spec, all_weights, axes)
    # One process holds the weights in what it computes in, beside float32 masters and what it began with; several hold
    # float32, and gather in what is computed in.
    half = value < MASTER and not several
    own_rows = math.ceil(sizes.batch / (axes["data"] * cut))
    rows = min(sizes.micro, own_rows)
    objective = run.made_objective(spec.main.prediction_modules)
    tokens = TokenCounts(*(rows * count for count in objective.token_counts(sizes.length)))
    activations = _activation_bytes(run, spec, tokens, value, axes["tensor"])
    logits, waiting = _logits(spec, tokens.learned, value, 2 if on_cpu else 3)
    transient = max(tokens.read, tokens.written) * value * _backward_values(spec.main) / axes["tensor"]
    passing = {
        # Logits are gone when the last block goes back; what they gave is not. It may be made again, and has gradients.
        "activations": activations.stored + max(0.0, activations.recomputed + transient + waiting - logits),
        "logits": logits,
        "gathered blocks": _gathered(counts, value) if cut > 1 else 0.0,
    }
    gradients = counts.all * MASTER
    if own_rows <= rows:  # one pass makes them: they take the room that activations leave, piece by piece
        gradients = max(0.0, gradients - sum(passing.values()))
    elif half:  # each pass makes its own before they are added up
        passing["activations"] = max(passing["activations"], counts.all * value - passing["logits"])
    muon, ema = run.optimizer.name == "muon", run.optimizer.settings.get("ema") is not None
    states = 8.0 * counts.all - (4.0 * counts.matrices if muon else 0.0) + (2 * MASTER * counts.all if half else 0.0)
    bytes_by_use = {
        "weights": counts.all * (value if half else MASTER),
        "gradients": gradients,
        "optimizer": states,
        "average": counts.all * MASTER if ema else 0.0,
        **passing,
    }
    # Activations are gone by then.
    copies = 2 if cut == 1 and axes["data"] > 1 else 1  # whole gradients are added up in a copy
    update = counts.all * MASTER * copies
    update = max(update, counts.all * MASTER + _update(run, counts, value, cut))
    bytes_by_use["update"] = max(0.0, update - gradients - sum(passing.values()))
    if several and on_cpu:  # a copy is written while training goes on
        bytes_by_use["state being written"] = bytes_by_use["weights"] + states + bytes_by_use["average"]
    return {name: size for name, size in bytes_by_use.items() if size}


def _weight_counts(spec: TextSpec, all_weights: list[Weight], axes: Mapping[Axis, int]) -> _WeightCounts:
    tensor, experts, cut = axes["tensor"], axes["expert"], axes["shard"] * axes["expert"]
    cuts_of(spec, tensor, experts)  # refuses what cannot be

    def per_rank(group: Iterable[Weight]) -> float:
        """Values on one rank of those that share products, before they are sharded."""
        return sum(part.stored / (tensor if is_block_matrix(part) and part.copies == 1 else 1) for part in group)

    matrices = [candidate for candidate in all_weights if is_block_matrix(candidate)]
    blocks: dict[int, float] = {}
    for weight in all_weights:
        if weight.layer is not None:
            share = experts if weight.copies > 1 else 1  # of the experts, those that are this rank's
            blocks[weight.layer] = blocks.get(weight.layer, 0.0) + per_rank([weight]) / share
    by_size: dict[int, float] = {}
    for matrix in matrices:
        by_size[matrix.size] = by_size.get(matrix.size, 0.0) + matrix.stored
    return _WeightCounts(
        per_rank(all_weights) / cut,
        per_rank(matrices) / cut,
        max(blocks.values(), default=0.0),
        float(total(outer_weight for outer_weight in all_weights if outer_weight.layer is None)),
        max(by_size.values(), default=0.0),
    )


def _activation_bytes(run: RunFile, spec: TextSpec, tokens: TokenCounts, value: int, tensor: int) -> KeptBytes:
    if isinstance(spec, EncoderDecoderSpec):
        return kept_bytes(
            spec, tokens.written, bytes_per_value=value, recompute=run.recompute, source_tokens=tokens.read
        )
    if tensor > 1:  # each rank has some heads and features; experts are whole
        part = spec.experts
        spec = spec.with_(
            heads=spec.attention.heads // tensor,
            kv_heads=spec.attention.kv_heads // tensor,
            feedforward_size=spec.feedforward.size // tensor,
            experts=None if part is None else replace(part, shared_size=part.shared_size // tensor),
        )
    return kept_bytes(spec, tokens.written, bytes_per_value=value, recompute=run.recompute)


def _logits(spec: TextSpec, tokens: int, value: int, copies: int) -> tuple[float, float]:
    """Bytes of logits of as many tokens as the head computes at a time: a softmax in float32 and two gradients of it,
    or on a CPU the logits, one gradient, and the softmax of a piece (`copies`). With more tokens the gradients of the
    head and of its input are made at once and wait: how many bytes."""
    rows, size = min(HEAD_ROWS, tokens), spec.vocab_size
    softmax = rows * size * float(MASTER)
    logit_bytes = copies * softmax + (min(softmax, float(PIECE * MASTER)) if copies < 3 else 0.0)
    if tokens == rows:
        return logit_bytes, softmax
    hidden = spec.main.hidden_size
    head, states = float(size * hidden * value), float(tokens * hidden * value)
    return max(logit_bytes + head, softmax + 2 * head) + states, head + states


def _backward_values(spec: TransformerSpec) -> int:
    """Values a token that a feed-forward's backward pass makes at once: gradients of a product and of its factors."""
    width, part = spec.feedforward.size, spec.experts
    if part is not None:
        width = max(width if part.first_dense else 0, part.per_token * part.feedforward_size + part.shared_size)
    return (3 if spec.feedforward.gated else 2) * width


def _gathered(counts: _WeightCounts, value: int) -> float:
    """Whole: two blocks, one being computed and the next; the gradients of one, with what is sent of them in float32;
    and what is outside of blocks, which stays, with its gradients."""
    return counts.block * (3 * value + MASTER) + counts.outside * 2 * value


def _update(run: RunFile, counts: _WeightCounts, value: int, cut: int) -> float:
    """What an update needs beside gradients, once activations are gone."""
    if run.optimizer.name == "muon":
        whole = counts.matrices * cut
        return whole * value + _TURNED * counts.largest * value
    return counts.matrices * MASTER if run.optimizer.settings.get("cautious_decay") else 0.0
