"""Small safetensors files that come from elsewhere: read whole, checked, never through a pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from bedplate.core.errors import SkinError
from bedplate.core.json import load_json

if TYPE_CHECKING:  # arrays alone have no need of torch
    from torch import Tensor

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
SOFT_PROMPT_FILE = "soft_prompt.safetensors"
MAX_TENSOR_BYTES = 8 * 1024**3
MAX_JSON_BYTES = 16 * 1024**2


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file: the same for the same tensors, whatever their order."""
    import safetensors.torch

    cpu_tensors = {name: t.detach().to("cpu").contiguous().clone() for name, t in sorted(tensors.items())}
    data = safetensors.torch.save(cpu_tensors, metadata={"format": "pt", **(metadata or {})})
    if not metadata:
        return data
    # The library writes several metadata in any order.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def read_bytes(path: Path, limit: int) -> bytes:
    """A regular file's content. SkinError when it is missing, a link, not a file, or larger than `limit` bytes."""
    if path.is_symlink():
        raise SkinError(f"{path} is a symbolic link; an adapter's files must be regular files: copy it in place")
    if not path.is_file():
        raise SkinError(f"{path} is missing or not a regular file")
    size = path.stat().st_size
    if size > limit:
        raise SkinError(f"{path} has {size:,} bytes, more than the {limit:,} that are allowed")
    return path.read_bytes()


def read_tensors(path: Path, content: bytes | None = None) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, as float32 on the CPU. `content` is the file's bytes when they are at hand.
    Raises SkinError for a corrupt or truncated file, a tensor that is not floating point, NaN or infinity."""
    import safetensors.torch

    return _checked(path, content, safetensors.torch.load)


def array_bytes(arrays: Mapping[str, NDArray[np.float32]]) -> bytes:
    """What `tensor_bytes` gives for the same numbers, without torch."""
    contiguous = {
        name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())
    }  # it saves memory as it lies
    return safetensors.numpy.save(contiguous, metadata={"format": "pt"})


def read_arrays(path: Path, content: bytes | None = None) -> dict[str, NDArray[np.float32]]:
    """`read_tensors` as arrays, without torch: for files of types that numpy has."""
    return _checked(path, content, safetensors.numpy.load)


def _checked(path: Path, content: bytes | None, load: Callable[[bytes], Mapping[str, Any]]) -> dict[str, Any]:
    data = read_bytes(path, MAX_TENSOR_BYTES) if content is None else content
    try:
        tensors = load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise SkinError(f"{path} is not a whole safetensors file: {error}") from error
    read: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if "float" not in str(tensor.dtype):
            raise SkinError(f"{path}: tensor {name!r} has dtype {tensor.dtype}; a floating-point type is needed")
        values = tensor.astype(np.float32, copy=False) if isinstance(tensor, np.ndarray) else tensor.float()
        if not bool((abs(values) < math.inf).all()):
            raise SkinError(f"{path}: tensor {name!r} holds NaN or infinity; the file is refused")
        read[name] = values
    return read


def read_metadata(path: Path, content: bytes | None = None) -> dict[str, str]:
    """What a safetensors file says beside its tensors. `content` as in `read_tensors`, which checks the file."""
    data = read_bytes(path, MAX_TENSOR_BYTES) if content is None else content
    size = int.from_bytes(data[:8], "little")
    if size > MAX_JSON_BYTES:
        raise SkinError(f"{path}: its header has {size:,} bytes, more than the {MAX_JSON_BYTES:,} that are allowed")
    header = read_json_object(path, data[8 : 8 + size])
    return cast("dict[str, str]", header.get("__metadata__", {}))


def read_json_object(path: Path, content: bytes | None = None) -> dict[str, Any]:
    """A JSON object. SkinError for bad UTF-8, bad JSON, NaN, a repeated key, or anything but an object."""
    data = read_bytes(path, MAX_JSON_BYTES) if content is None else content
    try:
        value = load_json(data)
    except ValueError as error:
        raise SkinError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise SkinError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return cast("dict[str, Any]", value)
