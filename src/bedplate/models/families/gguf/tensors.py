"""The names of tensors in GGUF files, and what is done to some of them on the way."""

from __future__ import annotations

import re
from collections.abc import Iterable
from operator import attrgetter

from bedplate.models.families.gguf.metadata import TABLES
from bedplate.models.families.weights import Rule, Tensors, WeightMap, interleaved, need_alike, renamed
from bedplate.models.specs.transformer import TransformerSpec

PARTS = ("weight", "bias")
ATTENTION = (
    ("attention.q", "attn_q"),
    ("attention.k", "attn_k"),
    ("attention.v", "attn_v"),
    ("attention.o", "attn_output"),
)
QK_NORMS = (("attention.q_norm", "attn_q_norm"), ("attention.k_norm", "attn_k_norm"))
GATED = tuple((f"feedforward.{name}", f"ffn_{name}") for name in ("gate", "up", "down"))
PRE_NORMS = (("attention_norm", "attn_norm"), ("feedforward_norm", "ffn_norm"))
AFTER_NORMS = (("attention_after_norm", "post_attention_norm"), ("feedforward_after_norm", "post_ffw_norm"))
ROUTER = (("feedforward.router", "ffn_gate_inp"),)
IGNORABLE = tuple(re.escape(name) for name in TABLES)
"""What the spec says already."""


def decoder_rules(*pairs: tuple[str, str], offset: float = 0.0, turned: bool = False) -> tuple[Rule, ...]:
    """The tables and the head, and of each layer these pairs of our names and theirs.

    offset: what norms are stored with beside ours (Gemma: 1). turned: rows of queries and keys are stored for
    interleaved pairs, as llama.cpp's first architectures have them.
    """
    layers = ((f"layers.{{i}}.{ours}", f"blk.{{i}}.{theirs}") for ours, theirs in pairs)
    named = (("norm", "output_norm"), *layers)
    return (
        renamed("embedding.weight", "token_embd.weight"),
        *(_rule(ours, theirs, part, offset, turned) for ours, theirs in named for part in PARTS),
        renamed("lm_head.weight", "output.weight"),
    )


def decoder_weights(
    *pairs: tuple[str, str], offset: float = 0.0, turned: bool = False, more: Iterable[Rule] = ()
) -> WeightMap:
    """The weights of a decoder: the rules of these pairs, and `more`."""
    return WeightMap((*decoder_rules(*pairs, offset=offset, turned=turned), *more), IGNORABLE)


def _rule(ours: str, theirs: str, part: str, offset: float, turned: bool) -> Rule:
    ours, theirs, parameter_name = f"{ours}.{part}", f"{theirs}.{part}", ours.rpartition(".")[2]
    if offset and part == "weight" and parameter_name.endswith("norm"):
        return shifted(ours, theirs, offset)
    if turned and parameter_name in ("q", "k"):
        return interleaved(
            ours, theirs, attrgetter("attention.heads" if parameter_name == "q" else "attention.kv_heads")
        )
    return renamed(ours, theirs)


def shifted(ours: str, theirs: str, by: float) -> Rule:
    """A vector that they store with a number added, in single precision."""

    def forward(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        return [tensor.float() + by for tensor in tensors]

    def inverse(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        return [tensor - by for tensor in tensors]

    return Rule((ours,), (theirs,), forward, inverse)


def expert_rules(prefix: str = "layers.{i}.feedforward.experts") -> tuple[Rule, ...]:
    """All experts' gates in one tensor, their other products in another; ours are one, the gates of each on top."""
    pair = ("blk.{i}.ffn_gate_exps", "blk.{i}.ffn_up_exps")
    return tuple(
        rule
        for part in PARTS
        for rule in (
            Rule((f"{prefix}.gate_up.{part}",), tuple(f"{name}.{part}" for name in pair), _halves, _on_top, rows=True),
            renamed(f"{prefix}.down.{part}", f"blk.{{i}}.ffn_down_exps.{part}"),
        )
    )


def _halves(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    (whole,) = tensors
    return [half.clone() for half in whole.chunk(2, dim=1)]


def _on_top(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    need_alike(tensors)
    gate, up = tensors
    rows = gate.shape[1]
    whole = gate.new_empty((gate.shape[0], 2 * rows, *gate.shape[2:]))
    whole[:, :rows], whole[:, rows:] = gate, up
    return [whole]
