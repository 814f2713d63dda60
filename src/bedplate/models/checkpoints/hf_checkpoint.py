"""Hugging Face directories: `config.json`, weights in safetensors or ONNX files, tokenizer, generation settings."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bedplate.core.errors import CheckpointError
from bedplate.core.files import file_state
from bedplate.models.checkpoints.conversion import spec_of_fields
from bedplate.models.checkpoints.onnx import OnnxReader
from bedplate.models.checkpoints.packed_weights import unpacked
from bedplate.models.checkpoints.safetensors import INDEX, SINGLE, SafetensorsReader, read_object
from bedplate.models.checkpoints.sentence_transformers import MODULES, read_scored, read_sentence
from bedplate.models.checkpoints.text_files import read_generation, read_tokenizer
from bedplate.models.families import Family
from bedplate.models.families.claims import claimed_family
from bedplate.models.families.multimodal import Multimodal, find_multimodal
from bedplate.models.families.weights import WeightMap
from bedplate.models.layers.sentence_layers import SentenceLayers
from bedplate.models.precision import dtype_name
from bedplate.models.specs import TextSpec, TransformerSpec
from bedplate.text.tokenizer import Tokenizer

log = logging.getLogger("bedplate.models")

BASE_FILE = "base.json"
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


class HfCheckpoint:
    """One directory (see `Checkpoint`)."""

    gguf = None

    def __init__(self, path: Path) -> None:
        self.path, self.location = path, str(path / "config.json")
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{path} has no config.json; a base directory needs one (Hugging Face layout)")
        config = read_object(path / "config.json")
        self._outer = outer = find_multimodal(config)
        self._generation: dict[str, Any] | None = None
        config = config if outer is None else outer.text_config(config, self.location)
        family = claimed_family(config, self.location)
        self.packing: Any = config.pop("quantization_config", None)
        self._files = open_weights(path, family.weights)
        self._part = None if outer is None else TextPart(self._files, outer, self.location)
        self._tensors = unpacked(self._part or self._files, self.packing, self.location)
        self.names = tuple(self._tensors.names)
        self.config = config = config if outer is None else outer.with_head(config, self.names)
        spec = read_scored(path, spec_of_fields(family, config, self.names, self.location))
        self.headless = is_headless(spec, family, self.names, config, path)
        # Its model makes predictions of the token table, which nobody is to use.
        self.spec = spec.with_(tied_head=True) if self.headless and isinstance(spec, TransformerSpec) else spec
        self.family = family.of(self.spec)
        self.states = [file_state(path / name) for name in self._files.files]
        self.stored_dtype = self._stored_dtype()
        self.stored_types = dtype_name(self.stored_dtype)
        self.record = read_object(path / BASE_FILE) if (path / BASE_FILE).is_file() else {}
        self.lineage: dict[str, Any] = self.record.get("lineage", {})
        if outer is not None and self._part is not None:
            self.lineage = self.lineage | {"text_of": {"model_type": outer.name, "left_out": self._part.left_out}}

    @property
    def _stored_names(self) -> Collection[str] | None:
        return None if self._part is None else self._part.stored_names

    @property
    def matrix_types(self) -> frozenset[str]:
        return self._files.matrix_types(self._stored_names)

    def _stored_dtype(self) -> torch.dtype:
        """The narrowest dtype that holds every matrix as it is stored; where matrices are packed, that of the token
        table, or else of the first tensor that is not packed."""
        dtypes = [_DTYPES[name] for name in sorted(self.matrix_types) if name in _DTYPES]
        if dtypes and self.packing is None:
            return reduce(torch.promote_types, dtypes)
        embedding = (n for n in self.names if self.family.weights.from_external(n) == "embedding.weight")
        return self._tensors.get(next(embedding, self.names[0])).dtype

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._tensors.get(name)

    def release(self, name: str) -> None:
        if self._tensors is self._files and isinstance(self._files, SafetensorsReader):
            self._files.release(name)

    def close(self) -> None:
        self._files.__exit__()

    def reopener(self) -> Callable[[], AbstractContextManager[Callable[[str], Tensor]]]:
        path, weights, outer = self.path, self.family.weights, self._outer
        packing, location = self.packing, self.location

        @contextmanager
        def reopen() -> Generator[Callable[[str], Tensor]]:
            with open_weights(path, weights) as files:
                yield unpacked(files if outer is None else TextPart(files, outer, location), packing, location).get

        return reopen

    @property
    def generation(self) -> dict[str, Any]:
        if self._generation is None:  # read once: it logs what is not followed
            self._generation = read_generation(self.path, self.config)
        return self._generation

    def tokenizer(self) -> Tokenizer | None:
        forced = self.generation.get("forced_bos_token_id") is not None
        return read_tokenizer(self.path, self.spec, first_is_forced=forced)

    def sentence(self) -> SentenceLayers | None:
        return read_sentence(self.path, self.spec.hidden_size)

    def log_omitted(self, source: str) -> None:
        if self._outer is not None and self._part is not None:
            self._part.log_omitted(source, self._outer)


WeightFiles = SafetensorsReader | OnnxReader


def open_weights(directory: Path, weights: WeightMap | None = None) -> WeightFiles:
    """Safetensors files, or else ONNX's. weights: of the family whose names a graph's are turned into; without it they
    stay the graph's own."""
    plain = any((directory / name).is_file() for name in (SINGLE, INDEX))
    return OnnxReader(directory, weights) if not plain and OnnxReader.is_in(directory) else SafetensorsReader(directory)


def is_headless(spec: TextSpec, family: Family, names: Collection[str], config: Mapping[str, Any], path: Path) -> bool:
    """Whether a head that is not the token table is left out on purpose (e5-mistral, Qwen3-Embedding-8B): as the
    sentence encoder's file beside it says, or the class that config.json names."""
    if spec.kind != "decoder" or spec.tied_head:
        return False
    if any(family.weights.from_external(name) == "lm_head.weight" for name in names):
        return False
    architectures = config.get("architectures")
    classes = architectures if isinstance(architectures, list) else [architectures]
    # GPT-2's class with a head ends in "LMHeadModel".
    bodies = (str(class_name).endswith("Model") and not str(class_name).endswith("HeadModel") for class_name in classes)
    return (path / MODULES).is_file() or any(bodies)


class TextPart:
    """A view of `files`. left_out: bytes of each other part, whose tensors are not read. CheckpointError, naming it,
    for a tensor that is of no part, or that is stored twice."""

    def __init__(self, files: WeightFiles, outer: Multimodal, origin: str) -> None:
        self._files = files
        self._stored_names: dict[str, str] = {}
        sizes: Counter[str] = Counter()
        for name in files.names:
            text, part = outer.text_name(name), outer.part_of(name)
            if text is not None:
                if text in self._stored_names:
                    raise CheckpointError(
                        f"{origin}: {self._stored_names[text]!r} and {name!r} are both the text model's {text!r}"
                    )
                self._stored_names[text] = name
            elif part is not None:
                sizes[part] += files.nbytes(name)
            else:
                parts = ", ".join(dict.fromkeys(part for _, part in outer.parts))
                raise CheckpointError(
                    f"{origin}: the checkpoint holds {name!r}, which is neither of the text model nor of another part "
                    f"of {outer.name} ({parts})"
                )
        self.left_out = dict(sorted(sizes.items()))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._stored_names)

    @property
    def stored_names(self) -> tuple[str, ...]:
        """The same tensors, as the files name them."""
        return tuple(self._stored_names.values())

    def get(self, name: str) -> Tensor:
        """One tensor, in the file's dtype."""
        return self._files.get(self._stored_names[name])

    def log_omitted(self, source: str, outer: Multimodal) -> None:
        """What is not loaded, in one line."""
        parts = ", ".join(f"{part} ({size:,} bytes)" for part, size in self.left_out.items()) or "nothing"
        log.warning("%s: of this %s checkpoint the text model alone is loaded; left out: %s", source, outer.name, parts)
