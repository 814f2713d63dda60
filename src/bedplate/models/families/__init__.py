"""One file per published family, in the folder of its group; FAMILIES is keyed (format, name in that format). Free of
torch."""

from __future__ import annotations

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.dense import gemma3_text, llama
from bedplate.models.families.encoders import bert, modernbert, roberta, xlm_roberta
from bedplate.models.families.family import Family
from bedplate.models.families.gguf import gemma3 as gguf_gemma3
from bedplate.models.families.gguf import llama as gguf_llama

__all__ = ["FAMILIES", "Family", "find_family", "in_format"]

FAMILIES: dict[tuple[str, str], Family] = {
    ("hf", "llama"): llama.HF,
    ("gguf", "llama"): gguf_llama.GGUF,
    ("hf", "gemma3_text"): gemma3_text.HF,
    ("gguf", "gemma3"): gguf_gemma3.GGUF,
    ("hf", "bert"): bert.HF,
    ("hf", "roberta"): roberta.HF,
    ("hf", "xlm-roberta"): xlm_roberta.HF,
    ("hf", "modernbert"): modernbert.HF,
}


def in_format(family: Family, format_: str) -> Family | None:
    """The same family in that format, or None where it has none."""
    return next((FAMILIES[key] for key in (family.key, *family.partners) if key[0] == format_), None)


def find_family(format_: str, name: str | None, where: str) -> Family:
    """The family of this name in this format, or UnsupportedModelError listing the supported ones."""
    # What a damaged config calls its type can be anything, a list too.
    found = FAMILIES.get((format_, str(name)))
    if found is None:
        known = ", ".join(sorted(key[1] for key in FAMILIES if key[0] == format_))
        raise UnsupportedModelError(f"{where}: model type {name!r} is not supported; supported are: {known}")
    return found
