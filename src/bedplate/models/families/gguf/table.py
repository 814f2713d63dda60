"""The architectures of GGUF files that are read and written: one row each."""

from __future__ import annotations

from bedplate.models.families.family import Family
from bedplate.models.families.gguf import gemma3, llama

ARCHITECTURES: dict[tuple[str, str], Family] = {
    ("gguf", "llama"): llama.GGUF,
    ("gguf", "gemma3"): gemma3.GGUF,
}
