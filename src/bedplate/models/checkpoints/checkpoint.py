"""`Checkpoint`, the protocol of an opened checkpoint of any file format, from which a `Base` is loaded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bedplate.core.files import FileState
from bedplate.hub.pull import resolve
from bedplate.models.checkpoints.gguf import GgufCheckpoint, GgufReader
from bedplate.models.checkpoints.hf_checkpoint import HfCheckpoint
from bedplate.models.families import Family
from bedplate.models.layers.sentence_layers import SentenceLayers
from bedplate.models.specs import TextSpec
from bedplate.text.tokenizer import Tokenizer


class Checkpoint(Protocol):
    """A checkpoint whose header was read, and whose tensors are read on demand.

    location: names its config in messages. names: of its tensors, by the family's names. packing: how its matrices are
    quantised, as part of the key of a cached hash. states: of the files that hold its tensors, when they were opened.
    stored_dtype: the dtype that holds every matrix as it is stored; None where they are quantised. record: the
    directory's base.json. stored_types, lineage, headless, gguf: as `Base` has them.
    """

    path: Path
    location: str
    family: Family
    spec: TextSpec
    names: tuple[str, ...]
    packing: Any
    states: list[FileState]
    stored_types: str
    headless: bool
    lineage: dict[str, Any]
    record: dict[str, Any]

    @property
    def stored_dtype(self) -> torch.dtype | None: ...

    @property
    def gguf(self) -> GgufReader | None: ...

    @property
    def matrix_types(self) -> frozenset[str]:
        """The types that matrices of real numbers are stored in, as the files name them ("BF16", "Q4_1")."""
        ...

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """One tensor as it is stored, or where it must be dequantised, in this dtype."""
        ...

    def release(self, name: str) -> None:
        """Drops the mapped pages of a tensor whose values were copied."""
        ...

    def close(self) -> None:
        """Closes its files."""
        ...

    def reopener(self) -> Callable[[], AbstractContextManager[Callable[[str], Tensor]]]:
        """A function that opens the tensors once more, to hash them later, and holds nothing of the vocabulary."""
        ...

    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def generation(self) -> dict[str, Any]:
        """Its settings for generation, such as the tokens that end a text."""
        ...

    def log_omitted(self, source: str) -> None:
        """Says in one line what of a multimodal checkpoint is not loaded."""
        ...

    def sentence(self) -> SentenceLayers | None:
        """How its own library makes vectors of texts, where the files say so."""
        ...


def locate(source: str | Path) -> Path:
    """The directory or .gguf file of a source (catalogue name, path, hf:owner/name), pulled if need be. HubError."""
    path = resolve(str(source))
    if path.is_dir():
        ggufs = sorted(path.glob("*.gguf"))
        if not (path / "config.json").is_file() and len(ggufs) == 1:
            return ggufs[0]
    return path


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Opens what `locate` names. Raises HubError, CheckpointError (damaged files) or UnsupportedModelError."""
    path = locate(source)
    return GgufCheckpoint(path) if path.is_file() else HfCheckpoint(path)
