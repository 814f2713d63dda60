"""Checkpoints on disk: safetensors directories and GGUF files in, a Base out, and back."""
