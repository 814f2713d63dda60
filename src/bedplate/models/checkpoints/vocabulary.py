"""A checkpoint's tokenizer, or the two of an encoder–decoder that writes other tokens than it reads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bedplate.core.errors import CheckpointError
from bedplate.models.families.fields import shown
from bedplate.models.specs import EncoderDecoderSpec, TextSpec
from bedplate.text.directory import FILE, TARGET_FILE
from bedplate.text.tokenizer import Tokenizer

log = logging.getLogger("bedplate.models")

_SPARE = 10_000
"""Rows that are nobody's, of which no model has so many: tables are rounded up to multiples of some hundreds."""


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


def fitting(tokenizer: Tokenizer | None, spec: TextSpec, where: str) -> Tokenizer | None:
    """The tokenizer, without control tokens that the model has no row for and nobody needs, which is said.

    CheckpointError for one that is another model's: with other ids behind the model's rows, or with so few that most
    rows would be nobody's. (A model may have some more rows than ids.)
    """
    if tokenizer is None:
        return None
    others = tokenizer.unneeded(spec.vocab_size)
    if others:
        said = ", ".join(others)
        log.warning("%s: the model has no row for the token %s, which in a text is read as characters", where, said)
        tokenizer = tokenizer.without(others)
    for each, rows in ((tokenizer.reading, spec.source_vocab_size), (tokenizer, spec.vocab_size)):
        ids = max((each.vocab_size, *(one + 1 for one in each.encode("", add_special_tokens=True))))
        if ids > rows:
            raise CheckpointError(
                f"{where}: the tokenizer has {ids} ids, but the model has only {rows} rows for them; it is another "
                "model's tokenizer"
            )
        if rows - ids > max(ids, _SPARE):
            raise CheckpointError(
                f"{where}: the tokenizer has {ids} ids, and the model {rows} rows for them, more than twice as many; "
                "it is another model's tokenizer"
            )
    return tokenizer


def written_id(value: object, rows: int, name: str, where: str) -> int:
    """The id of a token that the files name of what is written. CheckpointError for what is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < rows:
        raise CheckpointError(
            f"{where}: {name} is {shown(value)}, which is no id of a vocabulary of {rows}; correct it in "
            "generation_config.json"
        )
    return value


def gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """That of a GGUF file; None where it has none."""
    none = metadata.get("tokenizer.ggml.model", "none") in ("none", "no_vocab")
    return None if none else Tokenizer.from_fields(metadata)
