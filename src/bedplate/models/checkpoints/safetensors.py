"""Hugging Face safetensors directories, one file or an index with shards: read lazily, written whole. And a
checkpoint's JSON files, read with errors that name them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bedplate.core.errors import CheckpointError, DataError, UsageError
from bedplate.core.files import MODEL_JSON_BYTES, atomic_write, read_text
from bedplate.core.json import load_model_json
from bedplate.core.memory import forget_pages
from bedplate.models.families.fields import shown

_INDEX_BYTES = 128 << 20
"""The largest index that is read: about a hundred bytes a tensor."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_object(path: Path) -> dict[str, Any]:
    """The object that a file holds. CheckpointError for one that is missing or holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value


def read_json(path: Path, max_bytes: int = MODEL_JSON_BYTES) -> Any:
    """What a file of at most so many bytes holds. CheckpointError for one that is missing or no JSON."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; download the checkpoint again")
    try:
        return load_model_json(read_text(path, max_bytes))
    except DataError as error:
        raise CheckpointError(str(error)) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error


def is_file_name(name: str) -> bool:
    """Whether what a file says is the name of another beside it, and no path."""
    return Path(name).name == name and name != ".." and 0 < len(name) < 256 and "\0" not in name


class SafetensorsReader:
    """The tensors of a directory, memory-mapped. `names` in the files' own order; use as a context manager."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, Any] = {}
        self._file_by_name: dict[str, str] = {}
        if (directory / INDEX).is_file():
            self._file_by_name = self._read_index(directory / INDEX)
            if (directory / SINGLE).is_file() and SINGLE not in self.files:
                raise CheckpointError(
                    f"{directory} holds {SINGLE} and, beside it, {INDEX}, which names other files; programs differ in "
                    "which they read: remove the one that is not meant"
                )
        elif (directory / SINGLE).is_file():
            self._file_by_name = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        else:
            raise CheckpointError(
                f"{directory} holds neither {SINGLE} nor {INDEX}; a pytorch_model.bin is a pickle, not loaded: "
                "convert it to safetensors first"
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._file_by_name)

    def get(self, name: str) -> Tensor:
        """One tensor, in the file's dtype."""
        try:
            return self._open(self._file_by_name[name]).get_tensor(name)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise CheckpointError(
                f"{self.directory}: cannot read {name!r} of {self._file_by_name[name]}: {error}"
            ) from error

    def release(self, name: str) -> None:
        """A tensor's values are not needed any more: of a mapped file every page that was touched stays in the
        process's memory otherwise, until the file is closed."""
        tensor, reread = self.get(name), self.get(name)
        if tensor.data_ptr() == reread.data_ptr():  # and not two copies of what the file holds
            forget_pages(tensor.data_ptr(), tensor.nbytes)

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that hold them."""
        return tuple(sorted(set(self._file_by_name.values())))

    def nbytes(self, name: str) -> int:
        """The bytes of one tensor, whose values are not read."""
        tensor_slice = self._open(self._file_by_name[name]).get_slice(name)
        bits = int(re.findall(r"\d+", str(tensor_slice.get_dtype()).replace("BOOL", "U8"))[0])
        return math.prod(tensor_slice.get_shape()) * bits // 8

    def matrix_types(self, names: Collection[str] | None = None) -> frozenset[str]:
        """The types that matrices of real numbers are stored in, as the files name them ("BF16"); their values are not
        read. Tables of integers, such as positions, are no weights."""
        selected = self._file_by_name if names is None else names
        slices = [self._open(self._file_by_name[name]).get_slice(name) for name in selected]
        types = {str(tensor_slice.get_dtype()) for tensor_slice in slices if len(tensor_slice.get_shape()) > 1}
        return frozenset(stored_type for stored_type in types if stored_type.startswith(("F", "BF")))

    def _read_index(self, path: Path) -> dict[str, str]:
        try:
            shard_by_name: dict[str, Any] = dict(read_json(path, _INDEX_BYTES)["weight_map"])
            if not shard_by_name or not all(isinstance(shard, str) for shard in shard_by_name.values()):
                raise ValueError("its weight_map does not map tensor names to files")
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is not a safetensors index ({error})") from error
        names_by_shard = {shard: set(self._open(shard).keys()) for shard in sorted(set(shard_by_name.values()))}
        lost = [name for name, shard in shard_by_name.items() if name not in names_by_shard[shard]]
        if lost:
            raise CheckpointError(f"{path} promises {lost[0]!r} in {shard_by_name[lost[0]]}, which does not hold it")
        stored = ((name, shard) for shard, names in names_by_shard.items() for name in names)
        unindexed = sorted((name, shard) for name, shard in stored if shard_by_name.get(name) != shard)
        if unindexed:
            name, shard = unindexed[0]
            raise CheckpointError(
                f"{path} does not say that {shard} holds {name!r}, as it does ({len(unindexed)} such tensors); shards "
                "and index are of different downloads: download the checkpoint again"
            )
        return shard_by_name

    def _open(self, name: str) -> Any:
        if name not in self._files:
            path = self.directory / name
            if not is_file_name(name):
                raise CheckpointError(f"{self.directory / INDEX} names a shard outside the directory: {shown(name)}")
            if not path.is_file():
                raise CheckpointError(f"{path} is missing; download the checkpoint again")
            try:
                self._files[name] = safe_open(path, framework="pt").__enter__()
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path} is not a readable safetensors file ({error}); download it again"
                ) from error
        return self._files[name]

    def __enter__(self) -> SafetensorsReader:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.__exit__(None, None, None)


def write_safetensors(directory: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = 5 * 10**9) -> None:
    """Writes `model.safetensors`, or shards of at most `shard_bytes` bytes with their index; holds one of them at a
    time."""
    shards: list[list[str]] = []
    total = 0
    for shard in _shards(tensors, shard_bytes):
        _save(shard, directory / f"model-{len(shards):05d}.safetensors")
        shards.append(list(shard))
        total += sum(map(_bytes, shard.values()))
    file_by_name: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = SINGLE if len(shards) == 1 else f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"model-{number:05d}.safetensors").rename(directory / file)
        file_by_name.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        atomic_write(
            directory / INDEX, json.dumps({"metadata": {"total_size": total}, "weight_map": file_by_name}, indent=2)
        )


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """The metadata is what transformers wants. The library makes its files readable by their owner only, however the
    process is set up; a served checkpoint is often another user's, so the file gets the mode of any new file."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(
            {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"}
        )
    except SafetensorError as error:  # a full disk is one: the library has no errors of the system's kind
        raise UsageError(f"{path}: the weights cannot be written: {error}; is there room on the disk?") from error
    path.chmod(mode)


def _shards(tensors: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + _bytes(tensor) > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += _bytes(tensor)
    yield shard


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
