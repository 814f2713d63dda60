"""A checkpoint's tokenizer, or the two of an encoder–decoder that writes other tokens than it reads."""

from __future__ import annotations

import logging
from pathlib import Path

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
    tokenizer = Tokenizer.from_directory(path)
    if not isinstance(spec, EncoderDecoderSpec):
        return tokenizer
    has_target = (path / TARGET_FILE).is_file()
    if has_target == spec.shared_embedding:
        vocabularies = "one vocabulary" if has_target else "two vocabularies"
        raise CheckpointError(
            f"{path}: its config tells of {vocabularies}, but there is {'a' if has_target else 'no'} {TARGET_FILE}; "
            + (
                "remove it or correct the config"
                if has_target
                else f"write the tokenizer of its answers there, beside {FILE}"
            )
        )
    return tokenizer.for_encoder(first_is_forced, Tokenizer.from_directory(path, TARGET_FILE) if has_target else None)


def fitting(tokenizer: Tokenizer | None, spec: TextSpec, origin: str) -> Tokenizer | None:
    """The tokenizer, without control tokens that the model has no row for and nobody needs, which is said.

    CheckpointError for one that is another model's: with other ids behind the model's rows, or with so few that most
    rows would be nobody's. (A model may have some more rows than ids.)
    """
    if tokenizer is None:
        return None
    unneeded = tokenizer.unneeded(spec.vocab_size)
    if unneeded:
        listing = ", ".join(unneeded)
        log.warning("%s: the model has no row for the token %s, which in a text is read as characters", origin, listing)
        tokenizer = tokenizer.without(unneeded)
    for vocabulary, rows in ((tokenizer.reading, spec.source_vocab_size), (tokenizer, spec.vocab_size)):
        ids = max(
            (vocabulary.vocab_size, *(token_id + 1 for token_id in vocabulary.encode("", add_special_tokens=True)))
        )
        if ids > rows:
            raise CheckpointError(
                f"{origin}: the tokenizer has {ids} ids, but the model has only {rows} rows for them; it is another "
                "model's tokenizer"
            )
        if rows - ids > max(ids, _SPARE):
            raise CheckpointError(
                f"{origin}: the tokenizer has {ids} ids, and the model {rows} rows for them, more than twice as many; "
                "it is another model's tokenizer"
            )
    return tokenizer


def written_id(value: object, rows: int, name: str, origin: str) -> int:
    """The id of a token that the files name of what is written. CheckpointError for what is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < rows:
        raise CheckpointError(
            f"{origin}: {name} is {shown(value)}, which is no id of a vocabulary of {rows}; correct it in "
            "generation_config.json"
        )
    return value
