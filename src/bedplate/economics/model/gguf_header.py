"""What tells a GGUF file's architecture, of the header that loading reads too. Free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bedplate.models.checkpoints.gguf_header import read_header


def read_gguf_header(path: Path) -> dict[str, Any]:
    """The file's single values by key, and what a family needs beside them: `tensor_names` and `embedding_rows`; and
    `matrix_types`, the types that its matrices are stored in ("q4_1", "f16", …).

    Lists (the vocabulary and the like) are left out. Raises CheckpointError for what is no whole GGUF file.
    """
    header = read_header(path)
    found = {key: value for key, value in header.metadata.items() if not isinstance(value, list)}
    matrices = {tensor.kind.lower() for tensor in header.tensors.values() if len(tensor.shape) > 1}
    embedding = header.tensors.get("token_embd.weight")
    if embedding is not None:
        found["embedding_rows"] = embedding.shape[0]
    return found | {"tensor_names": tuple(header.tensors), "matrix_types": tuple(sorted(matrices))}
