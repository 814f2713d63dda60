"""The header of a GGUF file: its metadata, and where each tensor lies (docs/gguf.md of ggml describes the format).

Parsed in one pass over the mapped file, without torch, numpy or the gguf package, which takes a tenth of the time to a
first token to import. What a count promises must fit into the bytes that are left, so that a damaged file costs no
more than its size.
"""

from __future__ import annotations

import mmap
import reprlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from bedplate.core.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_NUMBERS = ("B", "b", "H", "h", "I", "i", "f", "?", "", "", "Q", "q", "d")
"""`struct` formats by the number of a value's type; between them are strings and arrays."""
_STRING, _ARRAY = 8, 9
_MAX_NESTING = 4
"""Arrays within arrays."""


class GgufType(NamedTuple):
    """A type of tensors: its number in files, and the values and bytes of one block of a row."""

    number: int
    values: int
    size: int


TYPES: Mapping[str, GgufType] = {
    "F32": GgufType(0, 1, 4),
    "F16": GgufType(1, 1, 2),
    "Q4_0": GgufType(2, 32, 18),
    "Q4_1": GgufType(3, 32, 20),
    "Q5_0": GgufType(6, 32, 22),
    "Q5_1": GgufType(7, 32, 24),
    "Q8_0": GgufType(8, 32, 34),
    "Q8_1": GgufType(9, 32, 40),
    "Q2_K": GgufType(10, 256, 84),
    "Q3_K": GgufType(11, 256, 110),
    "Q4_K": GgufType(12, 256, 144),
    "Q5_K": GgufType(13, 256, 176),
    "Q6_K": GgufType(14, 256, 210),
    "Q8_K": GgufType(15, 256, 292),
    "IQ2_XXS": GgufType(16, 256, 66),
    "IQ2_XS": GgufType(17, 256, 74),
    "IQ3_XXS": GgufType(18, 256, 98),
    "IQ1_S": GgufType(19, 256, 50),
    "IQ4_NL": GgufType(20, 32, 18),
    "IQ3_S": GgufType(21, 256, 110),
    "IQ2_S": GgufType(22, 256, 82),
    "IQ4_XS": GgufType(23, 256, 136),
    "I8": GgufType(24, 1, 1),
    "I16": GgufType(25, 1, 2),
    "I32": GgufType(26, 1, 4),
    "I64": GgufType(27, 1, 8),
    "F64": GgufType(28, 1, 8),
    "IQ1_M": GgufType(29, 256, 56),
    "BF16": GgufType(30, 1, 2),
    "TQ1_0": GgufType(34, 256, 54),
    "TQ2_0": GgufType(35, 256, 66),
    "MXFP4": GgufType(39, 32, 17),
    "NVFP4": GgufType(40, 64, 36),
    "Q1_0": GgufType(41, 128, 18),
}
_TYPE_NAMES = {ggml_type.number: name for name, ggml_type in TYPES.items()}


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: shape with rows first, the name of its type ("Q4_1"), and its bytes in the file."""

    name: str
    ggml_type: str
    shape: tuple[int, ...]
    begin: int
    size: int


@dataclass(frozen=True, eq=False)
class GgufHeader:
    """Everything before the tensors' values."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    def fields(self, tables: Mapping[str, list[float]] | None = None) -> dict[str, Any]:
        """The config that a family's `to_spec` reads: the metadata, `tensor_names`, `embedding_rows` where there is a
        token table, and the `tables` of rope factors where the tensors' values were read."""
        embedding = self.tensors.get("token_embd.weight")
        fields = {**self.metadata, "tensor_names": tuple(self.tensors)}
        fields |= {} if embedding is None else {"embedding_rows": embedding.shape[0]}
        return fields | ({} if tables is None else {"tables": tables})


def read_header(path: Path) -> GgufHeader:
    """Parses a file's header. CheckpointError for one that is no GGUF file, is damaged, or ends before its tensors."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
            if magic != MAGIC:
                raise CheckpointError(f"{path} is not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Parser(path, data).header()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


class _Parser:
    """Goes through the bytes once, from front to back."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.end = path, data, len(MAGIC), len(data)

    def header(self) -> GgufHeader:
        version = self.number("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            why = "its numbers are big-endian" if swapped in VERSIONS else f"it is of version {version}"
            raise CheckpointError(f"{self.path}: {why}; GGUF files of versions 2 and 3, little-endian, are read")
        tensors, fields = self.count(24), self.count(12)
        metadata: dict[str, Any] = {}
        for _ in range(fields):
            key = self.string()
            if key in metadata:
                raise self.damaged(f"the field {key!r} appears twice")
            metadata[key] = self.value(self.number("I"), 0)
        entries = [self.tensor_header() for _ in range(tensors)]
        self.check_model(metadata)
        return GgufHeader(metadata, self.placed(entries, metadata.get("general.alignment", 32)))

    def check_model(self, metadata: Mapping[str, Any]) -> None:
        """CheckpointError for a file that holds a part of a model, or something else."""
        general_type, parts = metadata.get("general.type", "model"), metadata.get("split.count", 1)
        if general_type != "model":
            raise CheckpointError(f"{self.path} holds no model: its general.type is {reprlib.repr(general_type)}")
        if parts not in (0, 1):
            raise CheckpointError(
                f"{self.path} is one of {reprlib.repr(parts)} parts; join them with `llama-gguf-split --merge`"
            )

    def tensor_header(self) -> tuple[str, tuple[int, ...], int, int]:
        """A tensor's name, shape, type and offset."""
        name, dimensions = self.string(), self.number("I")
        if not 1 <= dimensions <= 8:
            raise self.damaged(f"the tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        if 0 in shape:
            raise self.damaged(f"the tensor {name!r} has the shape {list(shape)}")
        return name, shape, self.number("I"), self.number("Q")

    def placed(self, entries: list[tuple[str, tuple[int, ...], int, int]], alignment: Any) -> dict[str, GgufTensor]:
        if not isinstance(alignment, int) or alignment < 1:
            raise self.damaged(f"general.alignment is {alignment!r}")
        begin = -(-self.at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, type_number, offset in entries:
            if name in tensors:
                raise self.damaged(f"the tensor {name!r} appears twice")
            if type_number not in _TYPE_NAMES:
                raise self.damaged(f"the tensor {name!r} has the unknown type {type_number}")
            _, values, size = TYPES[_TYPE_NAMES[type_number]]
            if shape[-1] % values:
                raise self.damaged(f"the rows of {name!r}, {shape[-1]} values, do not divide into blocks of {values}")
            tensors[name] = GgufTensor(
                name, _TYPE_NAMES[type_number], shape, begin + offset, prod(shape) // values * size
            )
            if begin + offset + tensors[name].size > self.end:
                raise CheckpointError(f"{self.path} ends before its tensor {name!r} does; download it again")
        for current, following in pairwise(sorted(tensors.values(), key=lambda placed: placed.begin)):
            if current.begin + current.size > following.begin:
                raise self.damaged(f"the tensors {current.name!r} and {following.name!r} overlap")
        return tensors

    def damaged(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is not a readable GGUF file ({why}); it may be truncated: download it again"
        )

    def need(self, size: int) -> int:
        """The place of the next `size` bytes, which are passed over."""
        at = self.at
        if size > self.end - at:
            raise self.damaged("it ends within its header")
        self.at = at + size
        return at

    def number(self, form: str) -> Any:
        return struct.unpack_from("<" + form, self.data, self.need(struct.calcsize("<" + form)))[0]

    def count(self, min_bytes: int) -> int:
        """How many there are of what takes `min_bytes` bytes each."""
        total = self.number("Q")
        if total * min_bytes > self.end - self.at:
            raise self.damaged(f"it promises {total} entries")
        return total

    def string(self) -> str:
        size = self.number("Q")
        at = self.need(size)
        try:
            return self.data[at : at + size].decode()
        except UnicodeDecodeError as error:
            raise self.damaged("a string is not UTF-8") from error

    def value(self, value_type: int, depth: int) -> Any:
        if value_type == _STRING:
            return self.string()
        if value_type == _ARRAY:
            return self.array(depth)
        return self.number(self.form(value_type))

    def form(self, value_type: int) -> str:
        if not 0 <= value_type < len(_NUMBERS) or not _NUMBERS[value_type]:
            raise self.damaged(f"a value has the unknown type {value_type}")
        return _NUMBERS[value_type]

    def array(self, depth: int) -> list[Any]:
        value_type = self.number("I")
        if value_type == _STRING:
            return self.strings(self.count(8))
        if value_type == _ARRAY:
            if depth == _MAX_NESTING:
                raise self.damaged("its arrays lie too deep within each other")
            return [self.array(depth + 1) for _ in range(self.count(12))]
        form = self.form(value_type)
        length = self.count(struct.calcsize("<" + form))
        packed = f"<{length}{form}"
        return list(struct.unpack_from(packed, self.data, self.need(struct.calcsize(packed))))

    def strings(self, length: int) -> list[str]:
        """A vocabulary has hundreds of thousands."""
        data, at, end = self.data, self.at, self.end
        unpack: Callable[..., tuple[int]] = struct.Struct("<Q").unpack_from
        texts: list[str] = []
        try:
            for _ in range(length):
                (size,) = unpack(data, at)
                at += 8
                if size > end - at:
                    raise self.damaged("it ends within a string")
                texts.append(data[at : at + size].decode())
                at += size
        except struct.error as error:
            raise self.damaged("it ends within an array") from error
        except UnicodeDecodeError as error:
            raise self.damaged("a string is not UTF-8") from error
        self.at = at
        return texts
