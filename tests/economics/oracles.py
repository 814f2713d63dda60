"""transformers models of a spec, without storage: what our counts are held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import nn

from bedplate.models.families import FAMILIES
from bedplate.models.specs import (
    AudioSpec,
    DiffusionSpec,
    EncoderDecoderSpec,
    MultimodalSpec,
    Spec,
    TransformerSpec,
    VisionSpec,
)

# Names of activations in transformers.
_ACT = {"gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "gelu": "gelu", "relu": "relu", "silu": "silu"}


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _sizes(spec: TransformerSpec, **extra_fields: Any) -> dict[str, Any]:
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.attention.heads,
        "num_key_value_heads": spec.attention.kv_heads,
        "head_dim": spec.attention.head_dim,
        "intermediate_size": spec.feedforward.size,
        "max_position_embeddings": spec.context_length,
        "rms_norm_eps": spec.norm.eps,
        "tie_word_embeddings": spec.tied_head,
        "pad_token_id": None,
        "attn_implementation": "eager",
        "experts_implementation": "eager",  # one product an expert, which torch's counter sees
        **extra_fields,
    }


def _layer_types(spec: TransformerSpec) -> dict[str, Any]:
    layer_types = ["full_attention" if spec.window(n) is None else "sliding_attention" for n in range(spec.layers)]
    window = next((w for w in spec.attention.windows if w is not None), None)
    return {"layer_types": layer_types, "sliding_window": window}


def llama(spec: TransformerSpec) -> nn.Module:
    fields = {"attention_bias": spec.attention.bias, "mlp_bias": spec.feedforward.bias}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_sizes(spec, **fields)))


def mistral(spec: TransformerSpec) -> nn.Module:
    return hf.MistralForCausalLM(hf.MistralConfig(**_sizes(spec, sliding_window=spec.window(0))))


def mixtral(spec: TransformerSpec) -> nn.Module:
    assert spec.experts is not None
    fields = {"num_local_experts": spec.experts.count, "num_experts_per_tok": spec.experts.per_token}
    sizes = _sizes(spec, **fields) | {"intermediate_size": spec.experts.feedforward_size}
    return hf.MixtralForCausalLM(hf.MixtralConfig(**sizes))


def qwen2(spec: TransformerSpec) -> nn.Module:
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**_sizes(spec)))


def qwen3(spec: TransformerSpec) -> nn.Module:
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**_sizes(spec)))


def qwen3_moe(spec: TransformerSpec) -> nn.Module:
    assert spec.experts is not None
    fields = {
        "num_experts": spec.experts.count,
        "num_experts_per_tok": spec.experts.per_token,
        "moe_intermediate_size": spec.experts.feedforward_size,
        "decoder_sparse_step": spec.experts.every,
    }
    return hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**_sizes(spec, **fields)))


def qwen2_moe(spec: TransformerSpec) -> nn.Module:
    assert spec.experts is not None
    fields = {
        "num_experts": spec.experts.count,
        "num_experts_per_tok": spec.experts.per_token,
        "moe_intermediate_size": spec.experts.feedforward_size,
        "shared_expert_intermediate_size": spec.experts.shared_size,
        "decoder_sparse_step": spec.experts.every,
    }
    return hf.Qwen2MoeForCausalLM(hf.Qwen2MoeConfig(**_sizes(spec, **fields)))


def gemma2(spec: TransformerSpec) -> nn.Module:
    return hf.Gemma2ForCausalLM(hf.Gemma2Config(**_sizes(spec, **_layer_types(spec))))


def gemma3(spec: TransformerSpec) -> nn.Module:
    return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**_sizes(spec, **_layer_types(spec))))


def deepseek(spec: TransformerSpec) -> nn.Module:
    """V3 where queries come from a latent, V2 (Lite) where they do not."""
    assert spec.attention.latent is not None
    assert spec.experts is not None
    latent, experts = spec.attention.latent, spec.experts
    fields = {
        "head_dim": latent.rope_dim,
        "q_lora_rank": latent.q_rank,
        "kv_lora_rank": latent.kv_rank,
        "qk_nope_head_dim": latent.nope_dim,
        "qk_rope_head_dim": latent.rope_dim,
        "v_head_dim": latent.value_dim,
        "n_routed_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.feedforward_size,
        "n_shared_experts": experts.shared_size // experts.feedforward_size,
        "first_k_dense_replace": experts.first_dense,
        "n_group": 1,
        "topk_group": 1,
    }
    sizes = _sizes(spec, **fields)
    if latent.q_rank is None:
        return hf.DeepseekV2ForCausalLM(hf.DeepseekV2Config(**sizes))
    return hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**sizes))


def olmo2(spec: TransformerSpec) -> nn.Module:
    return hf.Olmo2ForCausalLM(hf.Olmo2Config(**_sizes(spec)))


def olmo3(spec: TransformerSpec) -> nn.Module:
    return hf.Olmo3ForCausalLM(hf.Olmo3Config(**_sizes(spec, **_layer_types(spec))))


def phi3(spec: TransformerSpec) -> nn.Module:
    return hf.Phi3ForCausalLM(hf.Phi3Config(**_sizes(spec)))


def neox(spec: TransformerSpec) -> nn.Module:
    return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_sizes(spec)))


def gpt_oss(spec: TransformerSpec) -> nn.Module:
    assert spec.experts is not None
    fields = {"num_local_experts": spec.experts.count, "num_experts_per_tok": spec.experts.per_token}
    sizes = _sizes(spec, **fields, **_layer_types(spec)) | {"intermediate_size": spec.experts.feedforward_size}
    return hf.GptOssForCausalLM(hf.GptOssConfig(**sizes))


def gpt2(spec: TransformerSpec) -> nn.Module:
    config = hf.GPT2Config(
        vocab_size=spec.vocab_size,
        n_positions=spec.positions,
        n_embd=spec.hidden_size,
        n_layer=spec.layers,
        n_head=spec.attention.heads,
        n_inner=spec.feedforward.size,
        attn_implementation="eager",
    )
    return hf.GPT2LMHeadModel(config)


def bert(spec: TransformerSpec) -> nn.Module:
    config = hf.BertConfig(**_sizes(spec, type_vocab_size=spec.token_types))
    return hf.BertModel(config, add_pooling_layer=spec.pooler)


def modernbert(spec: TransformerSpec) -> nn.Module:
    return hf.ModernBertModel(hf.ModernBertConfig(**_sizes(spec, local_attention=spec.window(1))))


def t5(spec: EncoderDecoderSpec) -> nn.Module:
    stack, decoder = spec.stack, spec.decoder
    config = hf.T5Config(
        vocab_size=stack.vocab_size,
        d_model=stack.hidden_size,
        d_kv=stack.attention.head_dim,
        d_ff=stack.feedforward.size,
        num_layers=stack.layers,
        num_decoder_layers=decoder.layers,
        num_heads=stack.attention.heads,
        feed_forward_proj="gated-gelu" if stack.feedforward.gated else "relu",
        tie_word_embeddings=decoder.tied_head,
    )
    model = hf.T5ForConditionalGeneration(config)
    if not decoder.tied_head:  # transformers 5 ties T5's head whatever the config says; published v1.1 files have one
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


def whisper(spec: EncoderDecoderSpec) -> nn.Module:
    assert isinstance(spec.encoder, AudioSpec)
    stack, decoder = spec.stack, spec.decoder
    config = hf.WhisperConfig(
        vocab_size=decoder.vocab_size,
        num_mel_bins=spec.encoder.mel_bins,
        d_model=stack.hidden_size,
        encoder_layers=stack.layers,
        decoder_layers=decoder.layers,
        encoder_attention_heads=stack.attention.heads,
        decoder_attention_heads=decoder.attention.heads,
        encoder_ffn_dim=stack.feedforward.size,
        decoder_ffn_dim=decoder.feedforward.size,
        max_source_positions=stack.positions,
        max_target_positions=decoder.positions,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
        attn_implementation="eager",
    )
    return hf.WhisperForConditionalGeneration(config)


def _tower(spec: VisionSpec) -> dict[str, Any]:
    return {
        "hidden_size": spec.tower.hidden_size,
        "num_hidden_layers": spec.tower.layers,
        "num_attention_heads": spec.tower.attention.heads,
        "intermediate_size": spec.tower.feedforward.size,
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "hidden_act": _ACT[spec.tower.feedforward.activation],
        "attn_implementation": "eager",
    }


def vit(spec: VisionSpec) -> nn.Module:
    if spec.classes:
        return hf.ViTForImageClassification(hf.ViTConfig(**_tower(spec), num_labels=spec.classes))
    return hf.ViTModel(hf.ViTConfig(**_tower(spec)), add_pooling_layer=spec.pooling == "linear")


def clip(spec: VisionSpec) -> nn.Module:
    config = hf.CLIPVisionConfig(**_tower(spec), projection_dim=spec.projection_size or 1)
    return hf.CLIPVisionModelWithProjection(config) if spec.projection_size else hf.CLIPVisionModel(config)


def siglip(spec: VisionSpec) -> nn.Module:
    return hf.SiglipVisionModel(hf.SiglipVisionConfig(**_tower(spec), vision_use_head=spec.pooling == "map"))


def llava(spec: MultimodalSpec) -> nn.Module:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**_tower(spec.vision)),
        text_config=hf.LlamaConfig(**_sizes(spec.language)),
        tie_word_embeddings=spec.language.tied_head,
    )
    return hf.LlavaForConditionalGeneration(config)


def qwen2_vl(spec: MultimodalSpec) -> nn.Module:
    tower = spec.vision.tower
    config = hf.Qwen2VLConfig(
        text_config=_sizes(spec.language),
        vision_config={
            "depth": tower.layers,
            "embed_dim": tower.hidden_size,
            "num_heads": tower.attention.heads,
            "mlp_ratio": tower.feedforward.size // tower.hidden_size,
            "patch_size": spec.vision.patch_size,
            "temporal_patch_size": spec.vision.frames,
            "spatial_merge_size": spec.projector.merge,
            "hidden_size": spec.language.hidden_size,
        },
        attn_implementation="eager",
        tie_word_embeddings=spec.language.tied_head,
    )
    return hf.Qwen2VLForConditionalGeneration(config)


def gemma3_vision(spec: MultimodalSpec) -> nn.Module:
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**_sizes(spec.language, **_layer_types(spec.language))),
        vision_config=hf.SiglipVisionConfig(**_tower(spec.vision), vision_use_head=False),
        mm_tokens_per_image=spec.image_tokens,
    )
    return hf.Gemma3ForConditionalGeneration(config)


def nanochat(spec: TransformerSpec) -> nn.Module:
    return hf.NanoChatForCausalLM(hf.NanoChatConfig(**_sizes(spec)))


def sd3(spec: DiffusionSpec) -> nn.Module:
    """Of diffusers, which need not be installed."""
    import diffusers

    assert spec.text is not None
    return diffusers.SD3Transformer2DModel(
        sample_size=spec.latent_size,
        patch_size=spec.patch_size,
        in_channels=spec.latent_channels,
        num_layers=spec.layers,
        attention_head_dim=spec.head_dim,
        num_attention_heads=spec.heads,
        joint_attention_dim=spec.text.size,
        caption_projection_dim=spec.hidden_size,
        pooled_projection_dim=spec.text.pooled_size,
        out_channels=spec.out_channels,
    )


def of_family(name: str) -> Oracle:
    """Of families whose config is made from the spec as an export's is; what it then builds is transformers' own."""

    def build(spec: TransformerSpec) -> nn.Module:
        fields = FAMILIES["hf", name].to_config(spec)
        config = hf.AutoConfig.for_model(fields.pop("model_type"), **fields)
        return hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")

    return build


Oracle = Callable[[Any], nn.Module]

# Which class is the oracle of a preset, by the beginning of its name; the longest that fits counts.
BY_PREFIX: dict[str, Oracle] = {
    "gpt2": gpt2,
    "gpt3": gpt2,
    "tinyllama": llama,
    "llama": llama,
    "smollm2": llama,
    "mistral": mistral,
    "mixtral": mixtral,
    "qwen2.5": qwen2,
    "qwen2-vl": qwen2_vl,
    "qwen3": qwen3,
    "qwen3-30b": qwen3_moe,
    "qwen3-235b": qwen3_moe,
    "gemma-2": gemma2,
    "gemma-3-1b": gemma3,
    "gemma-3": gemma3_vision,
    "deepseek": deepseek,
    "olmo-2": olmo2,
    "olmo-3": olmo3,
    "phi": phi3,
    "pythia": neox,
    "gpt-oss": gpt_oss,
    "bert": bert,
    "minilm": bert,
    "modernbert": modernbert,
    "t5": t5,
    "flan-t5": t5,
    "whisper": whisper,
    "vit": vit,
    "clip": clip,
    "siglip": siglip,
    "llava": llava,
    "lfm2": of_family("lfm2"),
    "granite-4.0-h": of_family("granitemoehybrid"),
    "qwen3-next": of_family("qwen3_next"),
}


def oracle(name: str) -> Oracle | None:
    """The oracle of a preset, or None where transformers has no such class."""
    fitting = [prefix for prefix in BY_PREFIX if name.startswith(prefix)]
    return BY_PREFIX[max(fitting, key=len)] if fitting else None


def model_of(build: Oracle, spec: Spec) -> nn.Module:
    """The oracle's model on the meta device."""
    return on_meta(lambda: build(spec))
