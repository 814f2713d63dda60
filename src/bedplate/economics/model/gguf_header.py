"""The header of a GGUF file, read without its tensors (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

The gguf package reads it too, with numpy and in half a second; an architecture needs a few numbers of it.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from bedplate.core.errors import CheckpointError

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_LAYERS = 1024
"""More than any model has."""
# Value type → how struct reads it.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Type of a tensor → its name, of those that are told apart (ggml_type of ggml.h).
_TENSORS = {0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 28: "f64", 30: "bf16"}


def read_gguf_header(path: Path) -> dict[str, Any]:
    """The file's values by key, and what a family needs beside them: `tensor_names` and `embedding_rows`; and
    `matrix_types`, the types that its matrices are stored in ("q4_1", "f16", …, or a number for another one).

    Of lists only those of a number for each layer are read, none of a vocabulary's. Raises CheckpointError for what is
    no whole GGUF file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(_Cursor(data))
    except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not a readable GGUF file ({error}); it may be truncated") from error


class _Cursor:
    """Reads one value after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def scalar(self, fmt: str) -> Any:
        (value,) = struct.unpack_from(f"<{fmt}", self._data, self._at)
        self._at += struct.calcsize(f"<{fmt}")
        return value

    def skip(self, size: int) -> None:
        if size < 0 or self._at + size > len(self._data):
            raise ValueError("a value ends after the file does")
        self._at += size

    def bytes(self) -> bytes:
        size = self.scalar("Q")
        start = self._at
        self.skip(size)
        return self._data[start : self._at]

    def text(self) -> str:
        return self.bytes().decode()


def _read(cursor: _Cursor) -> dict[str, Any]:
    start = cursor.scalar("4s")
    if start != _MAGIC:
        raise ValueError(f"it begins with {start!r}, not {_MAGIC!r}")
    version = cursor.scalar("I")
    if version not in {2, 3}:
        raise ValueError(f"version {version} is not known")
    tensors, fields = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(fields):
        key, type_id = cursor.text(), cursor.scalar("I")
        if type_id == _ARRAY:
            numbers = _list(cursor)
            metadata |= {} if numbers is None else {key: numbers}
        else:
            metadata[key] = cursor.text() if type_id == _STRING else cursor.scalar(_scalar(type_id))
    names: list[str] = []
    matrices: set[str] = set()
    for _ in range(tensors):
        name = cursor.text()
        shape = [cursor.scalar("Q") for _ in range(cursor.scalar("I"))]  # the fastest dimension first
        type_id = cursor.scalar("I")
        cursor.skip(8)  # where it lies
        names.append(name)
        if len(shape) > 1:
            matrices.add(_TENSORS.get(type_id, f"type {type_id}"))
        if name == "token_embd.weight":
            metadata["embedding_rows"] = shape[-1] if shape else 0
    return metadata | {"tensor_names": tuple(names), "matrix_types": tuple(sorted(matrices))}


def _list(cursor: _Cursor) -> list[Any] | None:
    """A list of few numbers; None for another one, which is passed over."""
    type_id, count = cursor.scalar("I"), cursor.scalar("Q")
    if type_id in _SCALARS and count <= _LAYERS:
        return [cursor.scalar(_SCALARS[type_id]) for _ in range(count)]
    if type_id == _STRING:
        for _ in range(count):
            cursor.skip(cursor.scalar("Q"))
    else:
        cursor.skip(count * struct.calcsize(f"<{_scalar(type_id)}"))
    return None


def _scalar(type_id: int) -> str:
    if type_id not in _SCALARS:
        raise ValueError(f"a value of type {type_id} is not known")
    return _SCALARS[type_id]
