"""The architectures of GGUF files that are read and written: one row each."""

from __future__ import annotations

from bedplate.models.families.family import Family
from bedplate.models.families.gguf import (
    deepseek2,
    gemma2,
    gemma3,
    gemma4,
    gpt2,
    gpt_oss,
    granite,
    llama,
    olmo2,
    olmoe,
    phi3,
    qwen2,
    qwen3,
    qwen3moe,
    t5,
)

ARCHITECTURES: dict[tuple[str, str], Family] = {
    ("gguf", "llama"): llama.GGUF,
    ("gguf", "qwen2"): qwen2.GGUF,
    ("gguf", "qwen3"): qwen3.GGUF,
    ("gguf", "qwen3moe"): qwen3moe.GGUF,
    ("gguf", "gemma2"): gemma2.GGUF,
    ("gguf", "gemma3"): gemma3.GGUF,
    ("gguf", "gemma4"): gemma4.GGUF,
    ("gguf", "deepseek2"): deepseek2.GGUF,
    ("gguf", "phi3"): phi3.GGUF,
    ("gguf", "olmo2"): olmo2.GGUF,
    ("gguf", "olmoe"): olmoe.GGUF,
    ("gguf", "granite"): granite.GGUF,
    ("gguf", "gpt-oss"): gpt_oss.GGUF,
    ("gguf", "gpt2"): gpt2.GGUF,
    ("gguf", "t5"): t5.GGUF,
}
