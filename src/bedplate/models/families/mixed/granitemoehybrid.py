"""The granitemoehybrid family (Granite 4.0): Hugging Face's `GraniteMoeHybridForCausalLM`.

Most layers are Mamba-2 (https://arxiv.org/abs/2405.21060), some attention, mostly without positions; the feed-forward
is dense, or experts beside a shared one. Embeddings, scores, residuals and logits have factors of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.decoders import ATTENTION, LLAMA_NORMS, TINY, decoder_rules, size_fields, take_sizes
from bedplate.models.families.experts.expert_weights import DOWN, GATE_UP
from bedplate.models.families.experts.fields import TRAINING
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.mixed.layers import convolution, layer_types, state_layers
from bedplate.models.families.rope import FULL, rope_parameters, take_rope
from bedplate.models.families.weights import WeightMap, fused, renamed
from bedplate.models.specs.state_mixers import Mamba2
from bedplate.models.specs.transformer import Experts, Scales, TransformerSpec

_ORIGIN = "config.json (granitemoehybrid)"
_LINEAR = "linear_attention"
_STATEFUL = {_LINEAR: True, "mamba": True, FULL: False, "attention": False}
_MAMBA, _EXPERTS = "model.layers.{i}.mamba", "model.layers.{i}.block_sparse_moe"

HF_WEIGHTS = WeightMap(
    (
        *decoder_rules(
            *ATTENTION,
            *LLAMA_NORMS,
            ("attention.input", "mamba.in_proj"),
            ("attention.norm", "mamba.norm"),
            ("attention.output", "mamba.out_proj"),
            ("feedforward.down", "shared_mlp.output_linear"),
            ("feedforward.shared.down", "shared_mlp.output_linear"),
        ),
        # The shared expert, or all of the feed-forward where there are no others.
        *(
            fused(
                (f"layers.{{i}}.{ours}.gate.weight", f"layers.{{i}}.{ours}.up.weight"),
                "model.layers.{i}.shared_mlp.input_linear.weight",
                lambda spec: (spec.feedforward.size, spec.feedforward.size),
            )
            for ours in ("feedforward", "feedforward.shared")
        ),
        *(
            renamed(ours, f"{_EXPERTS}.{theirs}")
            for ours, *names in (
                (f"{GATE_UP}.weight", "input_linear.weight", "experts.gate_up_proj"),
                (f"{DOWN}.weight", "output_linear.weight", "experts.down_proj"),
                ("layers.{i}.feedforward.router.weight", "router.layer.weight", "router.weight"),
            )
            for theirs in names
        ),
        convolution("layers.{i}.attention.convolution.weight", f"{_MAMBA}.conv1d.weight"),
        renamed("layers.{i}.attention.convolution.bias", f"{_MAMBA}.conv1d.bias"),
        renamed("layers.{i}.attention.step_bias", f"{_MAMBA}.dt_bias"),
        renamed("layers.{i}.attention.log_decay", f"{_MAMBA}.A_log"),
        renamed("layers.{i}.attention.skip", f"{_MAMBA}.D"),
    )
)
_TINY: dict[str, Any] = {
    **TINY,
    "shared_intermediate_size": 80,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "mamba_n_heads": 12,
    "mamba_d_state": 10,
    "mamba_n_groups": 2,
}
EXAMPLES = (
    {
        **_TINY,
        "layer_types": [_LINEAR, FULL, _LINEAR],
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.0,
        "tie_word_embeddings": True,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "intermediate_size": 24,
    },
    {
        **_TINY,
        "num_hidden_layers": 2,
        "layer_types": [FULL, _LINEAR],
        "position_embedding_type": "rope",
        "attention_multiplier": 0.3,
        "attention_bias": True,
        "mamba_proj_bias": True,
        "mamba_conv_bias": False,
        "mamba_d_conv": 3,
        "mamba_n_groups": 1,
        "mamba_n_heads": 8,
        "mamba_chunk_size": 8,
    },
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a GraniteMoeHybridForCausalLM → spec."""
    fields = Fields(config, _ORIGIN)
    sizes = take_sizes(fields)
    types, older = fields.sequence("layer_types"), fields.sequence("layers_block_type")
    types = older if types is None else types
    types = [_LINEAR] * sizes["layers"] if types is None else types
    fields.only("hidden_act", "silu")
    fields.only("normalization_function", "rmsnorm")
    fields.ignore((*HF_BOOKKEEPING, "attention_dropout", *TRAINING, "mamba_chunk_size", "init_method"))
    shared = fields.whole("shared_intermediate_size", 1024)
    count, chosen = fields.whole("num_local_experts", 0, null=0), fields.whole("num_experts_per_tok", 0, null=0)
    expert_size, sizes["feedforward_size"] = sizes["feedforward_size"], shared
    rope = take_rope(fields, _ORIGIN, context=sizes["context_length"])
    rotates = fields.choice("position_embedding_type", None, "rope", "nope") == "rope"
    pattern = state_layers(types, sizes["layers"], _STATEFUL, _ORIGIN)
    part = _take_mamba(fields, sizes["hidden_size"])
    spec = TransformerSpec.from_fields(
        **sizes,
        norm_eps=fields.real("rms_norm_eps", 1e-6),
        rope=rope if rotates else None,
        attention_bias=fields.flag("attention_bias", False),
        scales=Scales(
            embedding=fields.real("embedding_multiplier", 1.0),
            attention=fields.real("attention_multiplier", 1.0),
            residual=fields.real("residual_multiplier", 1.0),
            head=1 / fields.real("logits_scaling", 1.0),
        ),
        experts=Experts(count, chosen, expert_size, shared_size=shared, scoring="softmax_chosen") if count else None,
        state=part if any(pattern) else None,
        state_layers=pattern if any(pattern) else (),
    )
    fields.finish()
    return spec


def _take_mamba(fields: Fields, hidden: int) -> Mamba2:
    heads, size = fields.whole("mamba_n_heads", 128), fields.pop("mamba_d_head", "auto")
    inner = int(fields.pop("mamba_expand", 2) * hidden)
    head_dim = inner // heads if size == "auto" else int(size)
    if heads * head_dim != inner:
        raise UnsupportedModelError(f"{_ORIGIN}: {heads} mamba heads of {head_dim} are not the {inner} of mamba_expand")
    low, high = (_number(limit) for limit in fields.pop("time_step_limit") or (0.0, float("inf")))
    return Mamba2(
        heads=heads,
        head_dim=head_dim,
        groups=fields.whole("mamba_n_groups", 1),
        state_dim=fields.whole("mamba_d_state", 256),
        width=fields.whole("mamba_d_conv", 4),
        convolution_bias=fields.flag("mamba_conv_bias", True),
        bias=fields.flag("mamba_proj_bias", False),
        step_limits=(low, high),
    )


def _number(value: Any) -> float:
    """A number, also where transformers wrote it as {"__float__": "Infinity"}."""
    return float(value["__float__"] if isinstance(value, Mapping) else value)


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    scales, experts = spec.scales or Scales(), spec.experts
    # Of a model without such layers transformers wants sizes that fit all the same.
    part = Mamba2(1, 2 * spec.hidden_size, groups=1, state_dim=1) if spec.state.mixer is None else spec.state.mixer
    if not isinstance(part, Mamba2) or part.inner % spec.hidden_size:
        raise UnsupportedModelError(f"{_ORIGIN}: only a model with Mamba-2 layers, a multiple of its features wide")
    config = size_fields(spec, "granitemoehybrid", "GraniteMoeHybridForCausalLM") | {
        "hidden_act": "silu",
        "rms_norm_eps": spec.norm.eps,
        "attention_bias": spec.attention.bias,
        "shared_intermediate_size": spec.feedforward.size,
        "num_local_experts": 0 if experts is None else experts.count,
        "num_experts_per_tok": 0 if experts is None else experts.per_token,
        "intermediate_size": spec.feedforward.size if experts is None else experts.feedforward_size,
        "layer_types": layer_types(spec, _LINEAR, FULL),
        "position_embedding_type": None if spec.position.rope is None else "rope",
        "embedding_multiplier": scales.embedding,
        "attention_multiplier": spec.attention.head_dim**-0.5 if scales.attention is None else scales.attention,
        "residual_multiplier": scales.residual,
        "logits_scaling": 1 / scales.head,
        "mamba_n_heads": part.heads,
        "mamba_d_head": part.head_dim,
        "mamba_n_groups": part.groups,
        "mamba_d_state": part.state_dim,
        "mamba_d_conv": part.width,
        "mamba_expand": part.inner // spec.hidden_size,
        "mamba_conv_bias": part.convolution_bias,
        "mamba_proj_bias": part.bias,
    }
    if part.step_limits != Mamba2.step_limits:
        config["time_step_limit"] = list(part.step_limits)
    if spec.position.rope is not None:
        config["rope_parameters"] = rope_parameters(spec.position.rope)
    return config


HF = Family(("hf", "granitemoehybrid"), from_hf, to_hf, HF_WEIGHTS, examples=EXAMPLES)
