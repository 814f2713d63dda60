"""The header of GGUF files: all that the gguf package writes is read as it reads it; damage is told, whatever it is."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import CheckpointError
from bedplate.models.checkpoints.gguf import GgufReader, add_field
from bedplate.models.gguf_header import read_header


def written(path: Path) -> bytes:
    """A small file with every type of value, and tensors of several types."""
    writer = gguf.GGUFWriter(path, "llama")
    for number_type in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{number_type}")(f"number.{number_type}", 7)
    writer.add_float32("number.float32", 0.1)
    writer.add_float64("number.float64", 0.1)
    writer.add_bool("flag", True)
    writer.add_string("text", "naïve 数字\n")
    writer.add_array("texts", ["", "a", "ü" * 300])
    writer.add_array("numbers", [1, 2, -3])
    writer.add_array("scores", [0.5, -1.25])
    writer.add_array("flags", [True, False])
    noise = np.random.default_rng(0)
    writer.add_tensor("a.weight", noise.standard_normal((3, 64)).astype(np.float32))
    writer.add_tensor("b.weight", noise.standard_normal(5).astype(np.float32))
    q8 = gguf.quants.quantize(noise.standard_normal((4, 64)).astype(np.float32), GGMLQuantizationType.Q8_0)
    writer.add_tensor("c.weight", q8, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.add_tensor("d.weight", noise.standard_normal((2, 3, 4)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_it_is_read_as_the_package_reads_it(tmp_path: Path) -> None:
    written(tmp_path / "a.gguf")
    header, ours = read_header(tmp_path / "a.gguf"), GgufReader(tmp_path / "a.gguf")
    package = gguf.GGUFReader(tmp_path / "a.gguf")
    fields = {name: field.contents() for name, field in package.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata == fields
    assert list(header.tensors) == [tensor.name for tensor in package.tensors]
    for tensor in package.tensors:
        placed = header.tensors[tensor.name]
        assert placed.shape == tuple(int(size) for size in reversed(tensor.shape))
        assert (placed.ggml_type, placed.begin, placed.size) == (
            tensor.tensor_type.name,
            tensor.data_offset,
            int(tensor.n_bytes),
        )
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours.get(tensor.name).numpy(), np.asarray(expected).reshape(placed.shape))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    directory = tmp_path_factory.mktemp("damaged")
    return directory, written(directory / "whole.gguf")


@settings(max_examples=300, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), change=st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]), width=st.integers(1, 8))
def test_a_changed_header_is_read_or_told(whole: tuple[Path, bytes], at: float, change: int, width: int) -> None:
    directory, data = whole
    begin = int(at * len(data))
    damaged = bytearray(data)
    damaged[begin : begin + width] = bytes([change]) * width
    path = directory / "changed.gguf"
    path.write_bytes(damaged[: len(data)])
    with contextlib.suppress(CheckpointError):  # nothing else
        assert len(read_header(path).tensors) <= 4


def test_a_cut_file_is_told_wherever_it_ends(whole: tuple[Path, bytes]) -> None:
    directory, data = whole
    path = directory / "cut.gguf"
    for end in (*range(4, 200, 3), len(data) // 2, len(data) - 33):
        path.write_bytes(data[:end])
        with pytest.raises(CheckpointError, match="download it again"):
            read_header(path)


def test_a_tensor_without_values_is_told(whole: tuple[Path, bytes]) -> None:
    directory, data = whole
    at = data.index(b"a.weight") + len(b"a.weight") + 4  # behind the name and the count of dimensions
    path = directory / "none.gguf"
    path.write_bytes(data[:at] + struct.pack("<Q", 0) + data[at + 8 :])
    with pytest.raises(CheckpointError, match=r"'a\.weight' has the shape \[3, 0\]"):
        read_header(path)


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        (b"GGML", "not a GGUF file"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "of version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "promises 1152921504606846976 entries"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "promises 1152921504606846976 entries"),
    ],
)
def test_what_is_not_read_is_said(tmp_path: Path, begin: bytes, message: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(begin)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_tensors_that_share_bytes_are_told(whole: tuple[Path, bytes]) -> None:
    """One weight would be another's; and a small file could be a model of any size."""
    directory, data = whole
    at = data.index(b"d.weight") + len(b"d.weight") + 4 + 3 * 8 + 4  # its offset, behind its shape and its type
    path = directory / "shared.gguf"
    path.write_bytes(data[:at] + struct.pack("<Q", 32) + data[at + 8 :])
    with pytest.raises(CheckpointError, match=r"the tensors 'a\.weight' and 'd\.weight' overlap"):
        read_header(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.type", "adapter", "holds no model: its general.type is 'adapter'"),
        ("split.count", 3, r"is one of 3 parts; join them with .*llama-gguf-split --merge"),
    ],
)
def test_what_is_no_whole_model_is_told(tmp_path: Path, key: str, value: object, message: str) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    add_field(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / "a.gguf")
