"""Encoders, and encoder–decoders of text and of sound; vision towers, models that read images, and models that make
them: as their publishers configure them."""

from __future__ import annotations

from typing import Any

from bedplate.models.specs import (
    AudioSpec,
    DiffusionSpec,
    EncoderDecoderSpec,
    MultimodalSpec,
    Projector,
    Spec,
    TextCondition,
    VisionSpec,
)
from bedplate.models.specs.position import RelativeBias
from bedplate.models.specs.presets.decoders import BIASED, decoder, gemma3, llama2, qwen2, stack
from bedplate.models.specs.transformer import Rope, Scales, TransformerSpec


def bert(hidden: int, layers: int, heads: int) -> TransformerSpec:
    """BERT without its pretraining heads."""
    fields = BIASED | {"norm_eps": 1e-12, "norm_placement": "post", "activation": "gelu"}
    return stack(
        "encoder", (hidden, layers, heads, heads, 4 * hidden), 30_522, 512, token_types=2, pooler=True, **fields
    )


def modernbert(hidden: int, layers: int, heads: int, feedforward: int) -> TransformerSpec:
    """ModernBERT: every third layer, from the first on, sees all; the others 64 tokens on each side."""
    norms = {"norm": "layer", "norm_bias": False, "final_norm": True, "first_norm": False}
    return stack(
        *("encoder", (hidden, layers, heads, heads, feedforward), 50_368, 8192),
        windows=(None, 128, 128),
        activation="gelu",
        rope=Rope(160_000.0),
        local_rope=Rope(10_000.0),
        **norms,
    )


def t5(
    hidden: int, layers: int, heads: int, feedforward: int, *, gated: bool = False, tied: bool = True
) -> EncoderDecoderSpec:
    """T5 (v1.0: ReLU, tied head, scaled states before it), and v1.1 and Flan (gated GELU, a head of its own)."""
    sizes = hidden, layers, heads, heads, feedforward
    fields: dict[str, Any] = {
        "head_dim": 64,
        "norm_eps": 1e-6,
        "position_rows": 0,
        "relative_bias": RelativeBias(32, 128),
        "activation": "gelu_tanh" if gated else "relu",
        "gated": gated,
        "tied_head": tied,
        "embedding_norm": False,
        "final_norm": True,
        "scales": Scales(attention=1.0, head=hidden**-0.5 if tied else 1.0),
    }
    encoder = stack("encoder", sizes, 32_128, 512, **fields)
    return EncoderDecoderSpec(encoder, decoder(sizes, 32_128, 512, cross_size=hidden, **fields), shared_embedding=True)


def whisper(hidden: int, layers: int, heads: int, mel_bins: int, vocab_size: int) -> EncoderDecoderSpec:
    """Whisper: keys have no bias."""
    sizes = hidden, layers, heads, heads, 4 * hidden
    fields = BIASED | {"activation": "gelu", "key_bias": False, "final_norm": True}
    tower = stack("tower", sizes, 0, 1500, position_rows=1500, **fields)
    writer = decoder(sizes, vocab_size, 448, position_rows=448, cross_size=hidden, **fields)
    return EncoderDecoderSpec(AudioSpec(tower=tower, mel_bins=mel_bins), writer)


ENCODERS: dict[str, Spec] = {
    # https://arxiv.org/abs/1810.04805
    "bert-base": bert(768, 12, 12),
    "bert-large": bert(1024, 24, 16),
    # https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2
    "minilm-l6": bert(384, 6, 12),
    # https://arxiv.org/abs/2412.13663
    "modernbert-base": modernbert(768, 22, 12, 1152),
    "modernbert-large": modernbert(1024, 28, 16, 2624),
    # https://arxiv.org/abs/1910.10683
    "t5-base": t5(768, 12, 12, 3072),
    "t5-large": t5(1024, 24, 16, 4096),
    # https://huggingface.co/google/flan-t5-xl
    "flan-t5-xl": t5(2048, 24, 32, 5120, gated=True, tied=False),
    # https://arxiv.org/abs/2212.04356
    "whisper-small": whisper(768, 12, 12, 80, 51_865),
    "whisper-large-v3": whisper(1280, 32, 20, 128, 51_866),
}


def tower(hidden: int, layers: int, heads: int, feedforward: int, tokens: int, **fields: Any) -> TransformerSpec:
    """A pre-norm encoder with learned positions and biases everywhere."""
    parts = BIASED | {"position_rows": tokens, "norm_eps": 1e-6, "activation": "gelu", "final_norm": True}
    return stack("tower", (hidden, layers, heads, heads, feedforward), 0, tokens, **parts | fields)


def clip(image_size: int, projection_size: int) -> VisionSpec:
    """CLIP's ViT-L/14: normalised before the first block too."""
    tokens = (image_size // 14) ** 2 + 1
    return VisionSpec(
        tower(1024, 24, 16, 4096, tokens, norm_eps=1e-5, embedding_norm=True, activation="quick_gelu"),
        image_size,
        patch_size=14,
        class_token=True,
        patch_bias=False,
        projection_size=projection_size,
    )


def siglip(image_size: int, *, pooled: bool) -> VisionSpec:
    """SigLIP's shape-optimised tower."""
    tokens = (image_size // 14) ** 2
    blocks = tower(1152, 27, 16, 4304, tokens, activation="gelu_tanh")
    return VisionSpec(blocks, image_size, patch_size=14, pooling="map" if pooled else None)


def gemma3_vision(language: TransformerSpec) -> MultimodalSpec:
    """896 pixels a side; 4,096 patches averaged to 256 tokens."""
    return MultimodalSpec(language, siglip(896, pooled=False), Projector(bias=False, norm="rms", pool=4))


IMAGES: dict[str, Spec] = {
    # https://arxiv.org/abs/2010.11929
    "vit-b-16": VisionSpec(tower(768, 12, 12, 3072, 197, norm_eps=1e-12), 224, 16, class_token=True, classes=1000),
    # https://arxiv.org/abs/2103.00020
    "clip-vit-l-14": clip(224, 768),
    # https://arxiv.org/abs/2303.15343
    "siglip-so400m": siglip(384, pooled=True),
    # https://arxiv.org/abs/2310.03744
    "llava-1.5-7b": MultimodalSpec(
        llama2((4096, 32, 32, 32, 11_008), 32_064), clip(336, 0), Projector(hidden_size=4096)
    ),
    # https://arxiv.org/abs/2409.12191
    # Images of any size; counted at 448 pixels a side. Its towers turn positions in two dimensions.
    "qwen2-vl-7b": MultimodalSpec(
        qwen2((3584, 28, 28, 4, 18_944), 152_064, 32_768, False),
        VisionSpec(
            tower(1280, 32, 16, 5120, 1024, position_rows=0, rope=Rope(), final_norm=False, activation="quick_gelu"),
            448,
            patch_size=14,
            frames=2,
            patch_bias=False,
        ),
        Projector(hidden_size=5120, norm="layer", merge=2),
    ),
    # https://arxiv.org/abs/2503.19786
    "gemma-3-4b": gemma3_vision(gemma3((2560, 34, 8, 4, 10_240), 256, 1024, 262_208, 131_072)),
    "gemma-3-27b": gemma3_vision(gemma3((5376, 62, 32, 16, 21_504), 128, 1024, 262_208, 131_072, query_scalar=168)),
    # https://arxiv.org/abs/2212.09748
    "dit-xl-2": DiffusionSpec(28, 1152, 16, 4608, latent_size=32, latent_channels=4, out_channels=8, classes=1001),
    # https://arxiv.org/abs/2403.03206
    # 1024 pixels a side; 77 tokens of CLIP and 77 of T5 beside each other, as in the paper.
    "sd3-medium": DiffusionSpec(
        24,
        1536,
        24,
        6144,
        latent_size=128,
        latent_channels=16,
        out_channels=16,
        text=TextCondition(154, 4096, 2048),
    ),
}
