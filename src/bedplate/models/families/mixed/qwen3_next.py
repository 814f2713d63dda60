"""The qwen3_next family: Hugging Face's `Qwen3NextForCausalLM`.

Qwen3.5's layers with experts, one of them shared behind a gate; the linear layers' projections stand together in two
tensors, key head by key head.
"""

from __future__ import annotations

from typing import Any

from bedplate.models.families.decoders import ATTENTION, GATED, LLAMA_NORMS, QK_NORMS, convolution, decoder_rules
from bedplate.models.families.experts import parts as moe
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import constant, ignored, only, part, whole
from bedplate.models.families.mixed import qwen3_5_text
from bedplate.models.families.mixed.qwen3_5_text import NOISE, QWEN_FIELDS
from bedplate.models.families.weights import Rule, Tensors, WeightMap, join, renamed
from bedplate.models.specs.parts import DeltaRule
from bedplate.models.specs.transformer import Experts, TransformerSpec

_LINEAR, _MLP = "model.layers.{i}.linear_attn", "model.layers.{i}.mlp"


def _delta(spec: TransformerSpec) -> DeltaRule:
    assert isinstance(spec.state.mixer, DeltaRule)
    return spec.state.mixer


def _queries_to_gates(spec: TransformerSpec) -> list[int]:
    """Rows of one key head's query, key, values and gates."""
    part = _delta(spec)
    shared = part.heads // part.key_heads * part.value_dim
    return [part.key_dim, part.key_dim, shared, shared]


def _rates_and_steps(spec: TransformerSpec) -> list[int]:
    part = _delta(spec)
    return [part.heads // part.key_heads] * 2


def _by_key_heads(parts: Tensors, spec: TransformerSpec) -> Any:
    """Tensors of all heads as one, each key head's rows of all of them together."""
    heads, trailing = _delta(spec).key_heads, parts[0].shape[1:]
    cut = [tensor.reshape(heads, -1, *trailing) for tensor in parts]
    whole = parts[0].new_empty((heads, sum(piece.shape[1] for piece in cut), *trailing))
    begin = 0
    for block in cut:
        whole[:, begin : begin + block.shape[1]] = block
        begin += block.shape[1]
    return whole.reshape(-1, *trailing)


def _of_all_heads(whole: Any, sizes: list[int], spec: TransformerSpec) -> list[Any]:
    """The inverse."""
    parts = whole.reshape(_delta(spec).key_heads, -1, *whole.shape[1:]).split(sizes, dim=1)
    return [part.reshape(-1, *whole.shape[1:]).clone() for part in parts]


def _fuse(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    qkv, gate = tensors
    part = _delta(spec)
    keys = part.key_heads * part.key_dim
    return [_by_key_heads([*qkv.split((keys, keys, part.heads * part.value_dim)), gate], spec)]


def _split(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    *qkv, gate = _of_all_heads(tensors[0], _queries_to_gates(spec), spec)
    return [*join(qkv, spec), gate]


WEIGHTS = WeightMap(
    (
        *decoder_rules(
            *ATTENTION,
            *QK_NORMS,
            *GATED,
            *LLAMA_NORMS,
            ("attention.norm", "linear_attn.norm"),
            ("attention.output", "linear_attn.out_proj"),
            *((f"feedforward.shared.{name}", f"mlp.shared_expert.{name}_proj") for name in ("gate", "up", "down")),
            ("feedforward.shared_gate", "mlp.shared_expert_gate"),
        ),
        Rule(
            ("layers.{i}.attention.qkv.weight", "layers.{i}.attention.gate.weight"),
            (f"{_LINEAR}.in_proj_qkvz.weight",),
            _fuse,
            _split,
        ),
        Rule(
            ("layers.{i}.attention.rate.weight", "layers.{i}.attention.step.weight"),
            (f"{_LINEAR}.in_proj_ba.weight",),
            lambda tensors, spec: [_by_key_heads(tensors, spec)],
            lambda tensors, spec: _of_all_heads(tensors[0], _rates_and_steps(spec), spec),
        ),
        convolution("layers.{i}.attention.convolution.weight", f"{_LINEAR}.conv1d.weight"),
        renamed("layers.{i}.attention.step_bias", f"{_LINEAR}.dt_bias"),
        renamed("layers.{i}.attention.log_decay", f"{_LINEAR}.A_log"),
        renamed("layers.{i}.feedforward.router.weight", f"{_MLP}.gate.weight"),
        *moe.expert_rules(_MLP),
    ),
    ignorable=(r"mtp\..*",),
)
_EXPERTS: dict[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 20,
}
EXAMPLES = (
    {**qwen3_5_text.EXAMPLES[0], **_EXPERTS},
    {**qwen3_5_text.EXAMPLES[1], **_EXPERTS, "mlp_only_layers": [0], "norm_topk_prob": False},
)

_PART = part(
    "experts",
    Experts,
    moe.count("num_experts", "num_local_experts"),
    moe.chosen(10),
    moe.expert_size(512),
    whole("shared_expert_intermediate_size", "shared_size", 512),
    constant(shared_gate=True),
    moe.renormalised(True),
    moe.SPARSE,
)


FIELDS = (*QWEN_FIELDS, _PART, only("use_sliding_window", False), ignored(*moe.TRAINING))

HF = hf_family("qwen3_next", "Qwen3NextForCausalLM", FIELDS, weights=WEIGHTS, examples=EXAMPLES, noise=NOISE)
