"""Bytes that training keeps beside the weights: gradients and optimizer states, by optimizer and format.

AdamW: two float32 moments (1711.05101), and a float32 master copy where the weights themselves are shorter. 8-bit
AdamW: its moments in 8 bits with a float32 scale for 256 values (2110.02861). Muon
(https://kellerjordan.github.io/posts/muon): one float32 momentum for matrices inside the blocks, AdamW for tables,
head, routers and vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bedplate.economics.model.parameters import total, weights
from bedplate.economics.model.weight_list import Weight
from bedplate.models.specs import Spec

Optimizer = Literal["adamw", "adamw_8bit", "muon", "sgd"]


@dataclass(frozen=True)
class OptimizerStateBytes:
    """Bytes of states a parameter: of matrices inside the blocks, and of all other parameters."""

    matrices: float
    non_matrices: float


OPTIMIZERS: dict[Optimizer, OptimizerStateBytes] = {
    "adamw": OptimizerStateBytes(8.0, 8.0),
    "adamw_8bit": OptimizerStateBytes(2 * (1 + 4 / 256), 2 * (1 + 4 / 256)),
    "muon": OptimizerStateBytes(4.0, 8.0),
    "sgd": OptimizerStateBytes(0.0, 0.0),
}


_NO_MATRICES = ("router", "prediction.router", "prediction.join")


def is_block_matrix(weight: Weight) -> bool:
    """Whether it is a linear inside of a block, which is what Muon moves: a router, and what joins a state with the
    next token's embedding before a block that predicts further tokens, are not."""
    return weight.role == "product" and weight.layer is not None and weight.name not in _NO_MATRICES


def optimizer_bytes(spec: Spec, optimizer: Optimizer = "adamw", *, master: bool = True) -> float:
    """Bytes of the optimizer's states. master: with the float32 copy that weights of 16 bits need."""
    state_bytes, all_weights = OPTIMIZERS[optimizer], weights(spec)
    matrices = total(weight for weight in all_weights if is_block_matrix(weight))
    states = matrices * state_bytes.matrices + (total(all_weights) - matrices) * state_bytes.non_matrices
    return states + (4.0 * total(all_weights) if master else 0.0)
