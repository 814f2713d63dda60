"""Random small specs of every family that transformers can build."""

from __future__ import annotations

import random
from typing import Any

from tests.economics import oracles
from tests.economics.oracles import Oracle

from bedplate.models.specs import AudioSpec, EncoderDecoderSpec, MultimodalSpec, Projector, Spec, VisionSpec
from bedplate.models.specs.parts import LatentAttention
from bedplate.models.specs.position import RelativeBias
from bedplate.models.specs.transformer import Experts, Rope, TransformerSpec


def _sizes(r: random.Random) -> dict[str, Any]:
    kv_heads = r.choice([1, 2, 3])
    heads = kv_heads * r.choice([1, 2, 4])
    return {
        "kind": "decoder",
        "vocab_size": r.randrange(60, 140),
        "hidden_size": 2 * heads * r.randrange(3, 8),
        "layers": r.randrange(2, 6),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": 2 * r.randrange(3, 9),
        "feedforward_size": r.randrange(20, 90),
        "context_length": 128,
        "rope": Rope(),
        "tied_head": r.random() < 0.5,
    }


def _square(r: random.Random) -> dict[str, Any]:
    """Without a head size of its own, nor shared keys."""
    heads, head_dim = r.randrange(2, 5), 2 * r.randrange(3, 9)
    return _sizes(r) | {"heads": heads, "kv_heads": heads, "head_dim": head_dim, "hidden_size": heads * head_dim}


def _grouped(r: random.Random) -> dict[str, Any]:
    """Without a head size of its own: OLMo and Phi derive it."""
    kv_heads, head_dim = r.randrange(1, 3), 2 * r.randrange(3, 9)
    heads = kv_heads * r.choice([1, 2, 3])
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "hidden_size": heads * head_dim}
    return _sizes(r) | sizes


def _experts(r: random.Random, **fields: Any) -> Experts:
    count = r.randrange(3, 7)
    return Experts(count, r.randrange(1, count), r.randrange(10, 40), **fields)


def _latent(r: random.Random, q_rank: int | None) -> dict[str, Any]:
    heads = r.randrange(2, 5)
    latent = LatentAttention(r.randrange(8, 30), r.randrange(4, 12), 2 * r.randrange(2, 6), r.randrange(4, 12), q_rank)
    experts = _experts(r, first_dense=1)
    shared = experts.feedforward_size * (2 if q_rank is None else 1)
    return _sizes(r) | {
        "hidden_size": heads * r.randrange(6, 14),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": latent.key_dim,
        "latent": latent,
        "experts": Experts(experts.count, experts.per_token, experts.feedforward_size, shared, 1),
    }


def _classic(**fields: Any) -> dict[str, Any]:
    """Layer norms, no gate, biases everywhere."""
    return {
        "norm": "layer",
        "gated": False,
        "attention_bias": True,
        "feedforward_bias": True,
        "activation": "gelu",
        **fields,
    }


def _tower(r: random.Random, tokens: int, **fields: Any) -> TransformerSpec:
    defaults = _square(r) | _classic(final_norm=True) | {"rope": None, "tied_head": True}
    return TransformerSpec.from_fields(
        **defaults | {"kind": "tower", "vocab_size": 0, "position_rows": tokens} | fields
    )


def _text_to_text(r: random.Random, gated: bool) -> EncoderDecoderSpec:
    fields = _square(r) | {
        "rope": None,
        "position_rows": 0,
        "relative_bias": RelativeBias(32, 128),
        "gated": gated,
        "activation": "gelu_tanh" if gated else "relu",
        "tied_head": not gated,
        "embedding_norm": False,
        "final_norm": True,
    }
    decoder = TransformerSpec.from_fields(**fields, cross_size=fields["hidden_size"])
    encoder = TransformerSpec.from_fields(**fields | {"kind": "encoder", "layers": r.randrange(1, 5)})
    return EncoderDecoderSpec(encoder, decoder, shared_embedding=True)


def _sound_to_text(r: random.Random) -> EncoderDecoderSpec:
    fields = _square(r) | _classic(final_norm=True, key_bias=False) | {"rope": None, "tied_head": True}
    tower = TransformerSpec.from_fields(**fields | {"kind": "tower", "vocab_size": 0, "position_rows": 20})
    decoder = TransformerSpec.from_fields(**fields, position_rows=31, cross_size=fields["hidden_size"])
    return EncoderDecoderSpec(AudioSpec(tower, mel_bins=r.randrange(5, 20), window_seconds=0.4), decoder)


def _image(r: random.Random, **fields: Any) -> VisionSpec:
    class_token = fields.get("class_token", False)
    side, patch = 2 * r.randrange(1, 4), r.choice([4, 8])
    norms = {"embedding_norm": fields.pop("embedding_norm", False)}
    return VisionSpec(_tower(r, side * side + class_token, **norms), side * patch, patch, **fields)


def _llava(r: random.Random) -> MultimodalSpec:
    vision = _image(r, class_token=True, patch_bias=False, embedding_norm=True)
    language = TransformerSpec.from_fields(**_sizes(r))
    return MultimodalSpec(language, vision, Projector(hidden_size=language.hidden_size))


def _qwen2_vl(r: random.Random) -> MultimodalSpec:
    tower = _tower(r, 0, final_norm=False, rope=Rope(), activation="quick_gelu")
    tower = tower.with_(feedforward_size=2 * tower.hidden_size, head_dim=8, heads=3, kv_heads=3, hidden_size=24)
    tower = tower.with_(feedforward_size=2 * tower.hidden_size)
    vision = VisionSpec(tower, 24, 4, frames=2, patch_bias=False)
    language = _grouped(r) | {"attention_bias": True, "output_bias": False, "head_dim": 16}
    language["hidden_size"] = language["heads"] * 16
    projector = Projector(hidden_size=4 * tower.hidden_size, norm="layer", merge=2)
    return MultimodalSpec(TransformerSpec.from_fields(**language), vision, projector)


def random_specs(seed: int) -> dict[str, tuple[Oracle, Spec]]:
    """One spec of each family, with its oracle."""
    r = random.Random(seed)

    def decoder(sizes: dict[str, Any] | None = None, **fields: Any) -> TransformerSpec:
        return TransformerSpec.from_fields(**(sizes or _sizes(r)) | fields)

    qkv = {"attention_bias": True, "output_bias": False}
    window = {"windows": (16, None)}
    sandwich = {"norm_placement": "sandwich", "activation": "gelu_tanh"}
    branch = {"norm_placement": "branch", "qk_norm": "projection"}
    oss = {"attention_bias": True, "attention_sinks": True, **window}
    return {
        "llama": (oracles.llama, decoder(attention_bias=r.random() < 0.5, feedforward_bias=r.random() < 0.5)),
        "mistral": (oracles.mistral, decoder(windows=(16,))),
        "mixtral": (oracles.mixtral, decoder(experts=_experts(r))),
        "qwen2": (oracles.qwen2, decoder(_grouped(r), **qkv)),
        "qwen2-moe": (
            oracles.qwen2_moe,
            decoder(_grouped(r), **qkv, experts=_experts(r, shared_size=r.randrange(8, 50), shared_gate=True)),
        ),
        "qwen3": (oracles.qwen3, decoder(qk_norm="head")),
        "qwen3-moe": (oracles.qwen3_moe, decoder(qk_norm="head", experts=_experts(r, every=r.choice([1, 2])))),
        "gemma-2": (oracles.gemma2, decoder(**sandwich, **window)),
        "gemma-3": (oracles.gemma3, decoder(**sandwich, qk_norm="head", windows=(16,) * 5 + (None,))),
        "deepseek-v2": (oracles.deepseek, TransformerSpec.from_fields(**_latent(r, None))),
        "deepseek-v3": (oracles.deepseek, TransformerSpec.from_fields(**_latent(r, r.randrange(8, 30)))),
        "olmo-2": (oracles.olmo2, decoder(_grouped(r), **branch)),
        "olmo-3": (oracles.olmo3, decoder(_grouped(r), **branch, windows=(16, 16, 16, None))),
        "phi-3": (oracles.phi3, decoder(_grouped(r))),
        "neox": (oracles.neox, decoder(_square(r) | _classic(parallel=True))),
        "gpt-oss": (oracles.gpt_oss, decoder(**oss, experts=_experts(r, router_bias=True, bias=True))),
        "gpt-2": (oracles.gpt2, decoder(_square(r) | _classic(rope=None, position_rows=77, tied_head=True))),
        "nanochat": (oracles.nanochat, decoder(_grouped(r), gated=False, norm_weight=False, qk_norm="head")),
        "bert": (
            oracles.bert,
            decoder(
                _square(r) | _classic(kind="encoder", norm_placement="post", rope=None, token_types=3, pooler=True)
            ),
        ),
        "modernbert": (
            oracles.modernbert,
            decoder(
                _square(r),
                kind="encoder",
                norm="layer",
                norm_bias=False,
                first_norm=False,
                final_norm=True,
                activation="gelu",
                windows=(None, 16, 16),
            ),
        ),
        "t5": (oracles.t5, _text_to_text(r, gated=False)),
        "t5-v1.1": (oracles.t5, _text_to_text(r, gated=True)),
        "whisper": (oracles.whisper, _sound_to_text(r)),
        "vit": (oracles.vit, _image(r, class_token=True, pooling="linear")),
        "vit-classifier": (oracles.vit, _image(r, class_token=True, classes=7)),
        "clip": (
            oracles.clip,
            _image(r, class_token=True, patch_bias=False, embedding_norm=True, projection_size=13),
        ),
        "siglip": (oracles.siglip, _image(r, pooling="map")),
        "llava": (oracles.llava, _llava(r)),
        "qwen2-vl": (oracles.qwen2_vl, _qwen2_vl(r)),
    }


FAMILIES = tuple(random_specs(0))
