"""The families' GGUF files, one file per architecture of the format: llama.cpp, which names them, is the reference."""
