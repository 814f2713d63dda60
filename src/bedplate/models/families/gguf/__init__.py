"""The families' GGUF files, one file per architecture of the format: llama.cpp, which names them, is the reference."""

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

__all__ = [
    "deepseek2",
    "gemma2",
    "gemma3",
    "gemma4",
    "gpt2",
    "gpt_oss",
    "granite",
    "llama",
    "olmo2",
    "olmoe",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3moe",
    "t5",
]
