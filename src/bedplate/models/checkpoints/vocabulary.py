"""A checkpoint's tokenizer, or the two of an encoder–decoder that writes other tokens than it reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bedplate.core.errors import CheckpointError
from bedplate.models.specs import EncoderDecoderSpec, TextSpec
from bedplate.text.directory import FILE, TARGET_FILE
from bedplate.text.tokenizer import Tokenizer


def read_tokenizer(path: Path, spec: TextSpec, first_is_forced: bool) -> Tokenizer | None:
    """The directory's, or both where the model writes other tokens than it reads; None where there is no file."""
    if not (path / FILE).is_file():
        return None
    found = Tokenizer.from_directory(path)
    if not isinstance(spec, EncoderDecoderSpec):
        return found
    given = (path / TARGET_FILE).is_file()
    if given == spec.shared_embedding:
        one = "one vocabulary" if given else "two vocabularies"
        raise CheckpointError(
            f"{path}: its config tells of {one}, but there is {'a' if given else 'no'} {TARGET_FILE}; "
            + (
                "remove it or correct the config"
                if given
                else f"write the tokenizer of its answers there, beside {FILE}"
            )
        )
    return found.for_encoder(first_is_forced, Tokenizer.from_directory(path, TARGET_FILE) if given else None)


def refuse_other_tokenizer(tokenizer: Tokenizer | None, spec: TextSpec, where: str) -> None:
    """A tokenizer with ids that the model has no row for is another model's. (A model may have more rows than ids.)"""
    if tokenizer is None:
        return
    for ids, rows in ((tokenizer.reading.vocab_size, spec.source_vocab_size), (tokenizer.vocab_size, spec.vocab_size)):
        if ids > rows:
            raise CheckpointError(
                f"{where}: the tokenizer has {ids} ids, but the model has only {rows} rows for them; it is another "
                "model's tokenizer"
            )


def gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """That of a GGUF file; None where it has none."""
    none = metadata.get("tokenizer.ggml.model", "none") in ("none", "no_vocab")
    return None if none else Tokenizer.from_fields(metadata)
