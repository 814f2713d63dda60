"""The weights of a directory, whatever files hold them."""

from __future__ import annotations

from pathlib import Path

from bedplate.models.checkpoints.onnx import OnnxReader
from bedplate.models.checkpoints.safetensors import INDEX, SINGLE, SafetensorsReader
from bedplate.models.families.weights import WeightMap

Reader = SafetensorsReader | OnnxReader


def open_weights(directory: Path, weights: WeightMap | None = None) -> Reader:
    """Safetensors files, or else ONNX's. weights: of the family whose names a graph's are turned into; without it they
    stay the graph's own."""
    plain = any((directory / name).is_file() for name in (SINGLE, INDEX))
    return OnnxReader(directory, weights) if not plain and OnnxReader.is_in(directory) else SafetensorsReader(directory)
