"""Encoders, and encoder–decoders of text and of sound, as their publishers configure them."""

from __future__ import annotations

from typing import Any

from bedplate.models.specs import AudioSpec, EncoderDecoderSpec
from bedplate.models.specs.position import RelativeBias
from bedplate.models.specs.presets.decoders import BIASED, Preset, decoder, stack
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


BERT = "https://arxiv.org/abs/1810.04805"
MODERNBERT = "https://arxiv.org/abs/2412.13663"
T5 = "https://arxiv.org/abs/1910.10683"
WHISPER = "https://arxiv.org/abs/2212.04356"

ENCODERS: dict[str, Preset] = {
    "bert-base": Preset(bert(768, 12, 12), BERT, "0.11"),
    "bert-large": Preset(bert(1024, 24, 16), BERT, "0.34"),
    "minilm-l6": Preset(bert(384, 6, 12), "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2", "0.0227"),
    "modernbert-base": Preset(modernbert(768, 22, 12, 1152), MODERNBERT, "0.149"),
    "modernbert-large": Preset(modernbert(1024, 28, 16, 2624), MODERNBERT, "0.395"),
    "t5-base": Preset(t5(768, 12, 12, 3072), T5, "0.22"),
    # The paper prints 770 million, with a head beside the table; the files that are published tie the two.
    "t5-large": Preset(t5(1024, 24, 16, 4096), T5),
    "flan-t5-xl": Preset(
        t5(2048, 24, 32, 5120, gated=True, tied=False), "https://huggingface.co/google/flan-t5-xl", "2.85"
    ),
    "whisper-small": Preset(whisper(768, 12, 12, 80, 51_865), WHISPER, "0.24"),
    "whisper-large-v3": Preset(whisper(1280, 32, 20, 128, 51_866), WHISPER, "1.54"),
}
