"""Arrays on disk, whole or absent. numpy's own writing tells of a full disk without the system's number for it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.core.files import atomic_write


def save_array(path: Path, array: NDArray[Any]) -> None:
    """A .npy file. UsageError where it cannot be written."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    atomic_write(path, content.getvalue())


def save_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """A .npz file. UsageError where it cannot be written."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType] (its stubs take `allow_pickle` for one of them)
    atomic_write(path, content.getvalue())
