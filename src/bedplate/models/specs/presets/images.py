"""Vision towers, models that read images, and models that make them, as their publishers configure them."""

from __future__ import annotations

from typing import Any

from bedplate.models.specs import DiffusionSpec, MultimodalSpec, Projector, TextCondition, VisionSpec
from bedplate.models.specs.presets.decoders import BIASED, Preset, gemma3, llama2, qwen2, stack
from bedplate.models.specs.transformer import Rope, TransformerSpec


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


GEMMA3 = "https://arxiv.org/abs/2503.19786"

IMAGES: dict[str, Preset] = {
    "vit-b-16": Preset(
        VisionSpec(tower(768, 12, 12, 3072, 197, norm_eps=1e-12), 224, 16, class_token=True, classes=1000),
        "https://arxiv.org/abs/2010.11929",
        "0.086",
    ),
    "clip-vit-l-14": Preset(clip(224, 768), "https://arxiv.org/abs/2103.00020"),
    "siglip-so400m": Preset(siglip(384, pooled=True), "https://arxiv.org/abs/2303.15343"),
    "llava-1.5-7b": Preset(
        MultimodalSpec(llama2((4096, 32, 32, 32, 11_008), 32_064), clip(336, 0), Projector(hidden_size=4096)),
        "https://arxiv.org/abs/2310.03744",
    ),
    # Images of any size; counted at 448 pixels a side. Its towers turn positions in two dimensions.
    "qwen2-vl-7b": Preset(
        MultimodalSpec(
            qwen2((3584, 28, 28, 4, 18_944), 152_064, 32_768, False),
            VisionSpec(
                tower(
                    1280, 32, 16, 5120, 1024, position_rows=0, rope=Rope(), final_norm=False, activation="quick_gelu"
                ),
                448,
                patch_size=14,
                frames=2,
                patch_bias=False,
            ),
            Projector(hidden_size=5120, norm="layer", merge=2),
        ),
        "https://arxiv.org/abs/2409.12191",
        "8.29",
    ),
    # Vision tower, embedding and other parameters, as the report's table has them.
    "gemma-3-4b": Preset(gemma3_vision(gemma3((2560, 34, 8, 4, 10_240), 256, 1024, 262_208, 131_072)), GEMMA3, "4.3"),
    "gemma-3-27b": Preset(
        gemma3_vision(gemma3((5376, 62, 32, 16, 21_504), 128, 1024, 262_208, 131_072, query_scalar=168)), GEMMA3, "27.4"
    ),
    "dit-xl-2": Preset(
        DiffusionSpec(28, 1152, 16, 4608, latent_size=32, latent_channels=4, out_channels=8, classes=1001),
        "https://arxiv.org/abs/2212.09748",
        "0.675",
    ),
    # 1024 pixels a side; 77 tokens of CLIP and 77 of T5 beside each other, as in the paper.
    "sd3-medium": Preset(
        DiffusionSpec(
            24,
            1536,
            24,
            6144,
            latent_size=128,
            latent_channels=16,
            out_channels=16,
            text=TextCondition(154, 4096, 2048),
        ),
        "https://arxiv.org/abs/2403.03206",
        "2.0",
    ),
}
