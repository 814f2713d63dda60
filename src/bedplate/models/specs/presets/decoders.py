"""Decoders as their publishers configure them: dense ones, mixtures of experts, and those of which some layers keep a
state in the place of attention."""

from __future__ import annotations

from typing import Any, Literal

from bedplate.models.specs import Spec
from bedplate.models.specs.parts import DeltaRule, LatentAttention, Mamba2, ShortConvolution
from bedplate.models.specs.position import LinearScaling, Llama3Scaling, YarnScaling
from bedplate.models.specs.transformer import Experts, Rope, Scales, TransformerSpec

Sizes = tuple[int, int, int, int, int]
"""Hidden size, layers, heads, key-value heads and feed-forward size."""

BIASED: dict[str, Any] = {"norm": "layer", "gated": False, "attention_bias": True, "feedforward_bias": True}
"""What the first transformers have: layer norms, no gate, biases everywhere."""


def stack(
    kind: Literal["decoder", "encoder", "tower"], sizes: Sizes, vocab_size: int, context_length: int, **fields: Any
) -> TransformerSpec:
    """A stack of these sizes; head_dim from the first."""
    hidden, layers, heads, kv_heads, feedforward = sizes
    return TransformerSpec.from_fields(
        kind=kind,
        vocab_size=vocab_size,
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        **{"head_dim": hidden // heads, "feedforward_size": feedforward, "context_length": context_length, **fields},
    )


def decoder(sizes: Sizes, vocab_size: int, context_length: int, **fields: Any) -> TransformerSpec:
    return stack("decoder", sizes, vocab_size, context_length, **fields)


def gpt(hidden: int, layers: int, heads: int, context_length: int) -> TransformerSpec:
    """GPT-2 and GPT-3: learned positions, layer norms, biases everywhere, no gate."""
    fields = BIASED | {"position_rows": context_length, "activation": "gelu_tanh"}
    return decoder((hidden, layers, heads, heads, 4 * hidden), 50257, context_length, **fields)


def llama2(sizes: Sizes, vocab_size: int = 32_000, context_length: int = 4096, **fields: Any) -> TransformerSpec:
    """Llama 2, and those that differ from it in sizes and windows."""
    return decoder(sizes, vocab_size, context_length, **{"rope": Rope(), "tied_head": False, **fields})


def llama3(sizes: Sizes, factor: float, tied: bool) -> TransformerSpec:
    """Llama 3.1 and 3.2."""
    rope = Rope(500_000.0, Llama3Scaling(factor, 1.0, 4.0, 8192))
    return decoder(sizes, 128_256, 131_072, rope=rope, tied_head=tied)


def smollm2(sizes: Sizes, theta: float) -> TransformerSpec:
    return decoder(sizes, 49_152, 8192, rope=Rope(theta))


def qwen2(sizes: Sizes, vocab_size: int, context: int, tied: bool) -> TransformerSpec:
    """Qwen2 and 2.5: biases of queries, keys and values."""
    fields = {"rope": Rope(1_000_000.0), "norm_eps": 1e-6, "attention_bias": True, "output_bias": False}
    return decoder(sizes, vocab_size, context, tied_head=tied, **fields)


def qwen3(sizes: Sizes, tied: bool, **fields: Any) -> TransformerSpec:
    """Qwen3: normalised queries and keys, heads of 128 features."""
    fields |= {"rope": Rope(1_000_000.0), "norm_eps": 1e-6, "qk_norm": "head"}
    return decoder(sizes, 151_936, 40_960, head_dim=128, tied_head=tied, **fields)


_GEMMA = {"norm_eps": 1e-6, "norm_placement": "sandwich", "activation": "gelu_tanh"}


def gemma2(sizes: Sizes, head_dim: int, query_scalar: float) -> TransformerSpec:
    """Gemma 2: a window in every other layer, norms on both sides, capped scores and logits."""
    return decoder(
        sizes,
        256_000,
        8192,
        head_dim=head_dim,
        rope=Rope(10_000.0),
        windows=(4096, None),
        scales=Scales(sizes[0] ** 0.5, query_scalar**-0.5, attention_cap=50.0, logit_cap=30.0),
        **_GEMMA,
    )


def gemma3(sizes: Sizes, head_dim: int, window: int, vocab_size: int, context: int, **fields: Any) -> TransformerSpec:
    """Gemma 3: five layers with a window to one without."""
    scale = fields.pop("query_scalar", head_dim) ** -0.5
    return decoder(
        sizes,
        vocab_size,
        context,
        head_dim=head_dim,
        rope=Rope(1_000_000.0, LinearScaling(8.0) if context > 32_768 else None),
        local_rope=Rope(10_000.0),
        qk_norm="head",
        windows=(window,) * 5 + (None,),
        scales=Scales(sizes[0] ** 0.5, scale),
        **_GEMMA | fields,
    )


def olmo(sizes: Sizes, vocab_size: int, context: int, **fields: Any) -> TransformerSpec:
    """OLMo 2 and 3: norms on what attention and feed-forward give, and on whole queries and keys."""
    parts = {"norm_eps": 1e-6, "norm_placement": "branch", "qk_norm": "projection", "rope": Rope(500_000.0)}
    return decoder(sizes, vocab_size, context, tied_head=False, **parts | fields)


_OLMO3 = {
    "rope": Rope(500_000.0, YarnScaling(8.0, 8192)),
    "local_rope": Rope(500_000.0),
    "windows": (4096, 4096, 4096, None),
}


def lfm2(hidden: int, heads: int, feedforward: int) -> TransformerSpec:
    """LFM2: six layers of sixteen are attention, the others short convolutions."""
    attention = (2, 5, 8, 10, 12, 14)
    return decoder(
        (hidden, 16, heads, 8, feedforward),
        65_536,
        128_000,
        rope=Rope(1_000_000.0),
        qk_norm="head",
        state=ShortConvolution(),
        state_layers=tuple(layer not in attention for layer in range(16)),
    )


def granite4(sizes: Sizes, mamba_heads: int, scales: Scales, experts: Experts | None) -> TransformerSpec:
    """Granite 4.0: nine layers of ten are Mamba-2, and no layer has positions."""
    return decoder(
        sizes,
        100_352,
        131_072,
        scales=scales,
        experts=experts,
        state=Mamba2(mamba_heads, 2 * sizes[0] // mamba_heads, 1, 128),
        state_layers=tuple(layer != 5 for layer in range(10)),
    )


def gpt_oss(layers: int, experts: int) -> TransformerSpec:
    """gpt-oss: a window of 128 in every other layer, attention sinks, biases everywhere."""
    return decoder(
        (2880, layers, 64, 8, 2880),
        201_088,
        131_072,
        head_dim=64,
        rope=Rope(150_000.0, YarnScaling(32.0, 4096)),
        activation="clamped_silu",
        attention_bias=True,
        attention_sinks=True,
        windows=(128, None),
        tied_head=False,
        experts=Experts(experts, 4, 2880, router_bias=True, bias=True, scoring="softmax_chosen"),
    )


def mixtral(sizes: Sizes, context: int) -> TransformerSpec:
    """Mixtral: two of eight experts."""
    return llama2(sizes, context_length=context, rope=Rope(1_000_000.0), experts=Experts(8, 2, sizes[-1]))


def deepseek(sizes: Sizes, vocab_size: int, yarn_scale: float, q_rank: int | None, experts: Experts) -> TransformerSpec:
    """DeepSeek-V2 and V3: latent attention; experts beside a shared one, behind dense layers."""
    return llama2(
        *(sizes, vocab_size, 163_840),
        head_dim=192,
        rope=Rope(10_000.0, YarnScaling(40.0, 4096, scale=yarn_scale, scale_all=yarn_scale)),
        norm_eps=1e-6,
        latent=LatentAttention(kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128, q_rank=q_rank),
        experts=experts,
    )


_V3_ROUTER: dict[str, Any] = {
    "selection_bias": True,
    "scoring": "sigmoid",
    "scale": 2.5,
    "groups": 8,
    "groups_chosen": 4,
}

DECODERS: dict[str, Spec] = {
    # https://github.com/openai/gpt-2 (model card)
    "gpt2": gpt(768, 12, 12, 1024),
    "gpt2-medium": gpt(1024, 24, 16, 1024),
    "gpt2-large": gpt(1280, 36, 20, 1024),
    "gpt2-xl": gpt(1600, 48, 25, 1024),
    # https://arxiv.org/abs/2005.14165, table 2.1
    # Alternate layers attend to bands whose width is not published: all are counted as full.
    "gpt3-175b": gpt(12_288, 96, 96, 2048),
    # https://arxiv.org/abs/2203.15556, table 4; parts as in Gopher, 2112.11446
    "chinchilla-70b": decoder(
        (8192, 80, 64, 64, 32_768), 32_000, 2048, activation="gelu", gated=False, relative_projection=True
    ),
    # https://arxiv.org/abs/2401.02385
    "tinyllama-1.1b": llama2((2048, 22, 32, 4, 5632), context_length=2048),
    # https://arxiv.org/abs/2302.13971
    "llama-1-7b": llama2((4096, 32, 32, 32, 11_008), context_length=2048),
    "llama-1-13b": llama2((5120, 40, 40, 40, 13_824), context_length=2048),
    "llama-1-33b": llama2((6656, 60, 52, 52, 17_920), context_length=2048),
    "llama-1-65b": llama2((8192, 80, 64, 64, 22_016), context_length=2048),
    # https://arxiv.org/abs/2307.09288
    "llama-2-7b": llama2((4096, 32, 32, 32, 11_008)),
    "llama-2-13b": llama2((5120, 40, 40, 40, 13_824)),
    "llama-2-70b": llama2((8192, 80, 64, 8, 28_672)),
    # https://arxiv.org/abs/2407.21783
    "llama-3.1-8b": llama3((4096, 32, 32, 8, 14_336), 8.0, False),
    "llama-3.1-70b": llama3((8192, 80, 64, 8, 28_672), 8.0, False),
    "llama-3.1-405b": llama3((16_384, 126, 128, 8, 53_248), 8.0, False),
    # https://huggingface.co/meta-llama/Llama-3.2-1B
    "llama-3.2-1b": llama3((2048, 16, 32, 8, 8192), 32.0, True),
    # https://huggingface.co/meta-llama/Llama-3.2-3B
    "llama-3.2-3b": llama3((3072, 28, 24, 8, 8192), 32.0, True),
    # https://arxiv.org/abs/2502.02737
    "smollm2-135m": smollm2((576, 30, 9, 3, 1536), 100_000.0),
    "smollm2-360m": smollm2((960, 32, 15, 5, 2560), 100_000.0),
    "smollm2-1.7b": smollm2((2048, 24, 32, 32, 8192), 130_000.0),
    # https://arxiv.org/abs/2310.06825
    "mistral-7b": llama2((4096, 32, 32, 8, 14_336), context_length=32_768, windows=(4096,)),
    # https://huggingface.co/mistralai/Mistral-Nemo-Base-2407
    "mistral-nemo-12b": llama2((5120, 40, 32, 8, 14_336), 131_072, 131_072, head_dim=128, rope=Rope(1_000_000.0)),
    # https://arxiv.org/abs/2412.15115
    "qwen2.5-0.5b": qwen2((896, 24, 14, 2, 4864), 151_936, 32_768, True),
    "qwen2.5-1.5b": qwen2((1536, 28, 12, 2, 8960), 151_936, 32_768, True),
    "qwen2.5-7b": qwen2((3584, 28, 28, 4, 18_944), 152_064, 131_072, False),
    "qwen2.5-14b": qwen2((5120, 48, 40, 8, 13_824), 152_064, 131_072, False),
    "qwen2.5-32b": qwen2((5120, 64, 40, 8, 27_648), 152_064, 131_072, False),
    "qwen2.5-72b": qwen2((8192, 80, 64, 8, 29_568), 152_064, 131_072, False),
    # https://arxiv.org/abs/2505.09388
    "qwen3-0.6b": qwen3((1024, 28, 16, 8, 3072), True),
    "qwen3-1.7b": qwen3((2048, 28, 16, 8, 6144), True),
    "qwen3-4b": qwen3((2560, 36, 32, 8, 9728), True),
    "qwen3-8b": qwen3((4096, 36, 32, 8, 12_288), False),
    "qwen3-14b": qwen3((5120, 40, 40, 8, 17_408), False),
    "qwen3-32b": qwen3((5120, 64, 64, 8, 25_600), False),
    # https://arxiv.org/abs/2408.00118
    "gemma-2-2b": gemma2((2304, 26, 8, 4, 9216), 256, 256),
    "gemma-2-9b": gemma2((3584, 42, 16, 8, 14_336), 256, 256),
    "gemma-2-27b": gemma2((4608, 46, 32, 16, 36_864), 128, 144),
    # https://arxiv.org/abs/2503.19786
    "gemma-3-1b": gemma3((1152, 26, 4, 1, 6912), 256, 512, 262_144, 32_768),
    # https://arxiv.org/abs/2501.00656
    "olmo-2-7b": olmo((4096, 32, 32, 32, 11_008), 100_352, 4096),
    "olmo-2-13b": olmo((5120, 40, 40, 40, 13_824), 100_352, 4096),
    "olmo-2-32b": olmo((5120, 64, 40, 8, 27_648), 100_352, 4096),
    # https://arxiv.org/abs/2512.13961
    "olmo-3-7b": olmo((4096, 32, 32, 32, 11_008), 100_278, 65_536, **_OLMO3),
    "olmo-3-32b": olmo((5120, 64, 40, 8, 27_648), 100_278, 65_536, **_OLMO3),
    # https://arxiv.org/abs/2404.14219
    "phi-3-mini": llama2((3072, 32, 32, 32, 8192), 32_064, windows=(2047,)),
    # https://arxiv.org/abs/2412.08905
    "phi-4": llama2((5120, 40, 40, 10, 17_920), 100_352, 16_384, rope=Rope(250_000.0)),
    # https://arxiv.org/abs/2304.01373, table 1
    "pythia-6.9b": llama2(
        *((4096, 32, 32, 32, 16_384), 50_432, 2048),
        **BIASED | {"rope": Rope(fraction=0.25), "activation": "gelu", "parallel": True},
    ),
    # https://github.com/karpathy/nanochat (dev/LEADERBOARD.md, run 1)
    # Its gates of value tables and factors of the residual stream, some 5,000 values, are left out.
    "nanochat-d24": llama2(
        *((1536, 24, 12, 12, 6144), 32_768, 2048),
        norm_weight=False,
        qk_norm="head",
        embedding_norm=True,
        activation="relu2",
        gated=False,
        windows=(1024, 1024, 1024, None),
        value_tables=12,
        scales=Scales(logit_cap=15.0),
    ),
    # https://arxiv.org/abs/2401.04088
    "mixtral-8x7b": mixtral((4096, 32, 32, 8, 14_336), 32_768),
    # https://mistral.ai/news/mixtral-8x22b
    "mixtral-8x22b": mixtral((6144, 56, 48, 8, 16_384), 65_536),
    # https://arxiv.org/abs/2505.09388
    "qwen3-30b-a3b": qwen3((2048, 48, 32, 4, 6144), False, experts=Experts(128, 8, 768)),
    "qwen3-235b-a22b": qwen3((4096, 94, 64, 4, 12_288), False, experts=Experts(128, 8, 1536)),
    # https://arxiv.org/abs/2405.04434
    "deepseek-v2-lite": deepseek(
        *((2048, 27, 16, 16, 10_944), 102_400, 0.707, None),
        Experts(64, 6, 1408, shared_size=2 * 1408, first_dense=1, renormalise=False),
    ),
    # https://arxiv.org/abs/2412.19437
    # Without the module that predicts a second token in training: `prediction_modules=1` has it (14 billion more).
    "deepseek-v3": deepseek(
        *((7168, 61, 128, 128, 18_432), 129_280, 1.0, 1536),
        Experts(256, 8, 2048, shared_size=2048, first_dense=3, **_V3_ROUTER),
    ),
    # https://arxiv.org/abs/2508.10925, table 1
    "gpt-oss-20b": gpt_oss(24, 32),
    "gpt-oss-120b": gpt_oss(36, 128),
    # https://arxiv.org/abs/2511.23404
    "lfm2-350m": lfm2(1024, 16, 4608),
    "lfm2-700m": lfm2(1536, 24, 6912),
    "lfm2-1.2b": lfm2(2048, 32, 8192),
    # https://www.ibm.com/granite/docs/models/granite
    "granite-4.0-h-micro": granite4(
        (2048, 40, 32, 8, 8192), 64, Scales(12.0, 0.015625, residual=0.22, head=1 / 8), None
    ),
    "granite-4.0-h-tiny": granite4(
        (1536, 40, 12, 4, 1024),
        48,
        Scales(12.0, 0.0078125, residual=0.22, head=1 / 6),
        Experts(64, 6, 512, shared_size=1024, scoring="softmax_chosen"),
    ),
    # https://qwen.ai/blog?id=qwen3-next
    "qwen3-next-80b-a3b": decoder(
        (2048, 48, 16, 2, 5632),
        151_936,
        262_144,
        head_dim=256,
        rope=Rope(10_000_000.0, fraction=0.25),
        norm_eps=1e-6,
        norm_offset=1.0,
        qk_norm="head",
        attention_gate=True,
        tied_head=False,
        experts=Experts(512, 10, 512, shared_size=512, shared_gate=True),
        state=DeltaRule(heads=32, key_heads=16, key_dim=128, value_dim=128),
        state_layers=(True, True, True, False),
    ),
}
