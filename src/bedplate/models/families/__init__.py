"""Published families: one file each, in the folder of its group, and one row in MODULES. Free of torch.

FAMILIES is keyed (format, name in that format). A file is imported when its family is first looked up.
"""

from __future__ import annotations

from collections import UserDict
from importlib import import_module
from typing import Any, cast

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.family import Family
from bedplate.models.families.multimodal import MULTIMODAL

__all__ = ["FAMILIES", "Family", "find_family", "in_format"]

MODULES: dict[tuple[str, str], str] = {
    ("hf", "llama"): "dense.llama",
    ("hf", "gemma2"): "dense.gemma2",
    ("hf", "gpt2"): "dense.gpt2",
    ("hf", "gpt_neox"): "dense.gpt_neox",
    ("hf", "granite"): "dense.granite",
    ("hf", "ministral3"): "dense.ministral3",
    ("hf", "mistral"): "dense.mistral",
    ("hf", "olmo2"): "dense.olmo2",
    ("hf", "olmo3"): "dense.olmo3",
    ("hf", "phi3"): "dense.phi3",
    ("hf", "qwen2"): "dense.qwen2",
    ("hf", "qwen3"): "dense.qwen3",
    ("hf", "smollm3"): "dense.smollm3",
    ("hf", "starcoder2"): "dense.starcoder2",
    ("hf", "gemma3_text"): "dense.gemma3_text",
    ("hf", "gemma4_text"): "dense.gemma4_text",
    ("hf", "mixtral"): "experts.mixtral",
    ("hf", "qwen3_moe"): "experts.qwen3_moe",
    ("hf", "olmoe"): "experts.olmoe",
    ("hf", "gpt_oss"): "experts.gpt_oss",
    ("hf", "glm4_moe"): "experts.glm4_moe",
    ("hf", "deepseek_v3"): "experts.deepseek_v3",
    ("hf", "qwen3_5_text"): "mixed.qwen3_5_text",
    ("hf", "qwen3_next"): "mixed.qwen3_next",
    ("hf", "lfm2"): "mixed.lfm2",
    ("hf", "granitemoehybrid"): "mixed.granitemoehybrid",
    ("hf", "bert"): "encoders.bert",
    ("hf", "roberta"): "encoders.roberta",
    ("hf", "xlm-roberta"): "encoders.xlm_roberta",
    ("hf", "modernbert"): "encoders.modernbert",
    ("hf", "t5"): "encoder_decoders.t5",
    ("hf", "bart"): "encoder_decoders.bart",
    ("hf", "marian"): "encoder_decoders.marian",
    ("gguf", "llama"): "dense.llama",
    ("gguf", "qwen2"): "dense.qwen2",
    ("gguf", "qwen3"): "dense.qwen3",
    ("gguf", "qwen3moe"): "experts.qwen3_moe",
    ("gguf", "gemma2"): "dense.gemma2",
    ("gguf", "gemma3"): "dense.gemma3_text",
    ("gguf", "gemma4"): "dense.gemma4_text",
    ("gguf", "deepseek2"): "experts.deepseek_v3",
    ("gguf", "phi3"): "dense.phi3",
    ("gguf", "olmo2"): "dense.olmo3",
    ("gguf", "olmoe"): "experts.olmoe",
    ("gguf", "granite"): "dense.granite",
    ("gguf", "gpt-oss"): "experts.gpt_oss",
    ("gguf", "gpt2"): "dense.gpt2",
    ("gguf", "t5"): "encoder_decoders.t5",
}
"""The file of each family, whose `HF` or `GGUF` it is."""


class FamilyTable(UserDict[tuple[str, str], Family]):
    """The families by (format, name), imported as they are looked up."""

    def __getitem__(self, key: tuple[str, str]) -> Family:
        family: Any = self.data[key]
        if family is None:
            family = self.data[key] = getattr(import_module(f"{__name__}.{MODULES[key]}"), key[0].upper())
        return family


FAMILIES = FamilyTable(cast("dict[tuple[str, str], Family]", dict.fromkeys(MODULES)))


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
