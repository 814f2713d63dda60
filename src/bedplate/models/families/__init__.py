"""Published families: one file each, in the folder of its group, and one row in FILES. Free of torch.

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

FILES: dict[str, tuple[str, str | None]] = {
    "dense.llama": ("llama", "llama"),
    "dense.gemma2": ("gemma2", "gemma2"),
    "dense.gpt2": ("gpt2", "gpt2"),
    "dense.gpt_neox": ("gpt_neox", None),
    "dense.granite": ("granite", "granite"),
    "dense.ministral3": ("ministral3", None),
    "dense.mistral": ("mistral", None),
    "dense.olmo2": ("olmo2", None),
    "dense.olmo3": ("olmo3", "olmo2"),
    "dense.phi3": ("phi3", "phi3"),
    "dense.qwen2": ("qwen2", "qwen2"),
    "dense.qwen3": ("qwen3", "qwen3"),
    "dense.smollm3": ("smollm3", None),
    "dense.starcoder2": ("starcoder2", None),
    "dense.gemma3_text": ("gemma3_text", "gemma3"),
    "dense.gemma4_text": ("gemma4_text", "gemma4"),
    "experts.mixtral": ("mixtral", None),
    "experts.qwen3_moe": ("qwen3_moe", "qwen3moe"),
    "experts.olmoe": ("olmoe", "olmoe"),
    "experts.gpt_oss": ("gpt_oss", "gpt-oss"),
    "experts.glm4_moe": ("glm4_moe", None),
    "experts.deepseek_v3": ("deepseek_v3", "deepseek2"),
    "mixed.qwen3_5_text": ("qwen3_5_text", None),
    "mixed.qwen3_next": ("qwen3_next", None),
    "mixed.lfm2": ("lfm2", None),
    "mixed.granitemoehybrid": ("granitemoehybrid", None),
    "encoders.bert": ("bert", None),
    "encoders.roberta": ("roberta", None),
    "encoders.xlm_roberta": ("xlm-roberta", None),
    "encoders.modernbert": ("modernbert", None),
    "encoder_decoders.t5": ("t5", "t5"),
    "encoder_decoders.bart": ("bart", None),
    "encoder_decoders.marian": ("marian", None),
}
"""Each file's family: the name of its `HF` in Hugging Face's format, and of its `GGUF`, where it has one."""
_MODULES = {("hf", hf): file for file, (hf, _) in FILES.items()} | {
    ("gguf", gguf): file for file, (_, gguf) in FILES.items() if gguf is not None
}


class FamilyTable(UserDict[tuple[str, str], Family]):
    """The families by (format, name), imported as they are looked up."""

    def __getitem__(self, key: tuple[str, str]) -> Family:
        family: Any = self.data[key]
        if family is None:
            family = self.data[key] = getattr(import_module(f"{__name__}.{_MODULES[key]}"), key[0].upper())
        return family


FAMILIES = FamilyTable(cast("dict[tuple[str, str], Family]", dict.fromkeys(_MODULES)))


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
