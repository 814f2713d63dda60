"""One file per published family, in the folder of its group; FAMILIES is keyed (format, name in that format). Free of
torch."""

from __future__ import annotations

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families import gguf
from bedplate.models.families.dense import (
    gemma2,
    gemma3_text,
    gemma4_text,
    gpt2,
    gpt_neox,
    granite,
    llama,
    ministral3,
    mistral,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen3,
    smollm3,
    starcoder2,
)
from bedplate.models.families.encoder_decoders import bart, marian, t5
from bedplate.models.families.encoders import bert, modernbert, roberta, xlm_roberta
from bedplate.models.families.experts import deepseek_v3, glm4_moe, gpt_oss, mixtral, olmoe, qwen3_moe
from bedplate.models.families.family import Family
from bedplate.models.families.mixed import granitemoehybrid, lfm2, qwen3_5_text, qwen3_next
from bedplate.models.families.multimodal import MULTIMODAL

__all__ = ["FAMILIES", "Family", "find_family", "in_format"]

FAMILIES: dict[tuple[str, str], Family] = {
    ("hf", "llama"): llama.HF,
    ("hf", "gemma2"): gemma2.HF,
    ("hf", "gpt2"): gpt2.HF,
    ("hf", "gpt_neox"): gpt_neox.HF,
    ("hf", "granite"): granite.HF,
    ("hf", "ministral3"): ministral3.HF,
    ("hf", "mistral"): mistral.HF,
    ("hf", "olmo2"): olmo2.HF,
    ("hf", "olmo3"): olmo3.HF,
    ("hf", "phi3"): phi3.HF,
    ("hf", "qwen2"): qwen2.HF,
    ("hf", "qwen3"): qwen3.HF,
    ("hf", "smollm3"): smollm3.HF,
    ("hf", "starcoder2"): starcoder2.HF,
    ("hf", "gemma3_text"): gemma3_text.HF,
    ("hf", "gemma4_text"): gemma4_text.HF,
    ("hf", "mixtral"): mixtral.HF,
    ("hf", "qwen3_moe"): qwen3_moe.HF,
    ("hf", "olmoe"): olmoe.HF,
    ("hf", "gpt_oss"): gpt_oss.HF,
    ("hf", "glm4_moe"): glm4_moe.HF,
    ("hf", "deepseek_v3"): deepseek_v3.HF,
    ("hf", "qwen3_5_text"): qwen3_5_text.HF,
    ("hf", "qwen3_next"): qwen3_next.HF,
    ("hf", "lfm2"): lfm2.HF,
    ("hf", "granitemoehybrid"): granitemoehybrid.HF,
    ("hf", "bert"): bert.HF,
    ("hf", "roberta"): roberta.HF,
    ("hf", "xlm-roberta"): xlm_roberta.HF,
    ("hf", "modernbert"): modernbert.HF,
    ("hf", "t5"): t5.HF,
    ("hf", "bart"): bart.HF,
    ("hf", "marian"): marian.HF,
    ("gguf", "llama"): gguf.llama.GGUF,
    ("gguf", "qwen2"): gguf.qwen2.GGUF,
    ("gguf", "qwen3"): gguf.qwen3.GGUF,
    ("gguf", "qwen3moe"): gguf.qwen3moe.GGUF,
    ("gguf", "gemma2"): gguf.gemma2.GGUF,
    ("gguf", "gemma3"): gguf.gemma3.GGUF,
    ("gguf", "gemma4"): gguf.gemma4.GGUF,
    ("gguf", "deepseek2"): gguf.deepseek2.GGUF,
    ("gguf", "phi3"): gguf.phi3.GGUF,
    ("gguf", "olmo2"): gguf.olmo2.GGUF,
    ("gguf", "olmoe"): gguf.olmoe.GGUF,
    ("gguf", "granite"): gguf.granite.GGUF,
    ("gguf", "gpt-oss"): gguf.gpt_oss.GGUF,
    ("gguf", "gpt2"): gguf.gpt2.GGUF,
    ("gguf", "t5"): gguf.t5.GGUF,
}


def in_format(family: Family, format_: str) -> Family | None:
    """The same family in that format, or None where it has none."""
    if family.key[0] == format_:
        return family
    return next((FAMILIES[key] for key in (family.key, *family.partners) if key[0] == format_), None)


def find_family(format_: str, name: str | None, origin: str) -> Family:
    """The family of this name in this format, or UnsupportedModelError listing the supported ones."""
    # What a damaged config calls its type can be anything, a list too.
    family = FAMILIES.get((format_, str(name)))
    if family is None:
        supported = ", ".join(sorted(key[1] for key in FAMILIES if key[0] == format_))
        if format_ == "hf":
            supported += f"; of multimodal checkpoints, the text models of {', '.join(MULTIMODAL)}"
        raise UnsupportedModelError(f"{origin}: model type {name!r} is not supported; supported are: {supported}")
    return family
