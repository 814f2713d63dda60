"""Rules for the weights of experts, which checkpoints hold one by one, or of all experts in one tensor.

Ours are `gate_up` [experts, 2 · features, hidden], the gates before the others, and `down` [experts, hidden, features].
Without torch, as all rules are.
"""

from __future__ import annotations

from typing import Any

from bedplate.core.errors import CheckpointError
from bedplate.models.families.weights import Rule, Tensors, need_alike, renamed, stack, transpose, transposed, unstack
from bedplate.models.specs.transformer import TransformerSpec

GATE_UP, DOWN = "layers.{i}.feedforward.experts.gate_up", "layers.{i}.feedforward.experts.down"

# The sixteen values of MXFP4's four bits: two of exponent, one of mantissa, the highest the sign (OCP Microscaling
# Formats 1.0, section 5.3.3), and the 256 powers of two that one byte scales 32 of them by (section 5.4.1).
_HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = (*_HALF, *(-value for value in _HALF))
_POWERS = (*(2.0 ** (number - 127) for number in range(255)), float("nan"))


def expert_rules(mlp: str, parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> tuple[Rule, ...]:
    """Experts under `mlp` (with {i}): one tensor for each part of each (what transformers writes), or all experts in
    one (how it holds them)."""
    gate, up, down = (f"{mlp}.experts.{{e}}.{part}.weight" for part in parts)
    return (
        Rule((f"{GATE_UP}.weight",), (gate, up), gate_and_up, gate_up),
        Rule((f"{DOWN}.weight",), (down,), unstack, stack),
        *stacked_rules(),
    )


def stacked_rules(
    prefix: str = "model.layers.{i}.mlp.experts", ours: str = "layers.{i}.feedforward.experts"
) -> tuple[Rule, ...]:
    """Rules for all experts in one tensor, laid out as ours."""
    pairs = (("gate_up", "gate_up_proj"), ("down", "down_proj"))
    return tuple(renamed(f"{ours}.{projection}.weight", f"{prefix}.{theirs}") for projection, theirs in pairs)


def gate_up(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    """Every expert's gate, and then every expert's other product, as one tensor with each expert's gate on top."""
    need_alike(tensors)
    count = len(tensors) // 2
    rows = len(tensors[0])
    whole = tensors[0].new_empty((count, 2 * rows, *tensors[0].shape[1:]))
    for number, (gate, up) in enumerate(zip(tensors[:count], tensors[count:], strict=True)):
        whole[number, :rows] = gate
        whole[number, rows:] = up
    return [whole]


def gate_and_up(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    """The inverse of `gate_up`."""
    (whole,) = tensors
    rows = whole.shape[1] // 2
    return [part.clone() for half in (whole[:, :rows], whole[:, rows:]) for part in half]


def interleaved_rules(mlp: str) -> tuple[Rule, ...]:
    """gpt-oss: all experts in one tensor, inputs before outputs, gates and others by turns; or its matrices in MXFP4
    blocks, outputs before inputs."""
    gate_up_proj, down_proj = f"{mlp}.experts.gate_up_proj", f"{mlp}.experts.down_proj"
    return (
        Rule((f"{GATE_UP}.weight",), (gate_up_proj,), _to_turns_transposed, _from_turns_transposed),
        transposed(f"{DOWN}.weight", down_proj),
        Rule((f"{GATE_UP}.bias",), (f"{gate_up_proj}_bias",), _to_turns, _from_turns),
        renamed(f"{DOWN}.bias", f"{down_proj}_bias"),
        Rule(
            (f"{GATE_UP}.weight",), (f"{gate_up_proj}_blocks", f"{gate_up_proj}_scales"), _unwritten, _turns_of_blocks
        ),
        Rule((f"{DOWN}.weight",), (f"{down_proj}_blocks", f"{down_proj}_scales"), _unwritten, _of_blocks),
    )


def mxfp4(blocks: Any, scales: Any) -> Any:
    """The numbers [..., 32 · groups], bfloat16, none of them rounded: bytes [..., groups, 16], the lower half of each
    before the upper, and a byte for each group [..., groups]."""
    if blocks.shape[:-1] != scales.shape or blocks.shape[-1] != 16:
        raise CheckpointError(
            f"MXFP4 blocks of shape {list(blocks.shape)} do not fit scales of shape {list(scales.shape)}: "
            "they must be [..., groups, 16] and [..., groups]"
        )
    reference = scales.bfloat16()
    values, powers = reference.new_tensor(_VALUES), reference.new_tensor(_POWERS)
    whole = reference.new_empty((*blocks.shape, 2))
    whole[..., 0] = values[(blocks & 15).int()]
    whole[..., 1] = values[(blocks >> 4).int()]
    whole *= powers[scales.int()][..., None, None]
    return whole.flatten(-3)


def _of_blocks(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    blocks, scales = tensors
    return [mxfp4(blocks, scales)]


def _turns_of_blocks(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    return _from_turns(_of_blocks(tensors, spec), spec)


def _unwritten(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    raise CheckpointError("experts are not written in MXFP4")


def _from_turns(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    """Rows of gates and others by turns → the gates' before the others'."""
    return [_turned(tensor, (-1, 2)) for tensor in tensors]


def _to_turns(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    return [_turned(tensor, (2, -1)) for tensor in tensors]


def _turned(tensor: Any, pairs: tuple[int, int]) -> Any:
    return tensor.unflatten(1, pairs).transpose(1, 2).flatten(1, 2).contiguous()


def _from_turns_transposed(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    return _from_turns(transpose(tensors, spec), spec)


def _to_turns_transposed(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    return transpose(_to_turns(tensors, spec), spec)
