"""Shared libraries that are loaded while Python does something else.

Loading torch's own takes a sixth of a second, in which the interpreter is free to import what needs no torch.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import threading
from pathlib import Path

_TORCH = (("libtorch_global_deps.so", ctypes.RTLD_GLOBAL), ("libtorch_cpu.so", ctypes.DEFAULT_MODE))
"""In the order, and seen by others, as `import torch` loads them."""


def torch_beside() -> threading.Thread | None:
    """Begins to load the libraries that `import torch` will need; None where it was imported already, or where they do
    not lie as on Linux. What goes wrong is left for that import to say."""
    found = None if "torch" in sys.modules else importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    place = Path(found.origin).parent / "lib"
    if not all((place / name).is_file() for name, _ in _TORCH):
        return None
    loading = threading.Thread(target=_load, args=(place,), name="bedplate-libraries")
    loading.start()
    return loading


def _load(place: Path) -> None:
    try:
        for name, mode in _TORCH:
            ctypes.CDLL(str(place / name), mode)
    except OSError:
        return
