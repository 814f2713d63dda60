"""What a checkpoint's files say of its texts: the tokenizer, or the two of an encoder–decoder that writes other tokens
than it reads, and how texts are written (`generation_config.json`, and older ones' `config.json`,
https://huggingface.co/docs/transformers/main_classes/text_generation)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bedplate.core.errors import CheckpointError
from bedplate.models.checkpoints.safetensors import read_object
from bedplate.models.families.fields import GENERATION, shown
from bedplate.models.specs import EncoderDecoderSpec, TextSpec
from bedplate.text.directory import FILE, TARGET_FILE
from bedplate.text.source_target import SourceTargetTokenizer
from bedplate.text.tokenizer import Tokenizer

log = logging.getLogger("bedplate.models")

_FILE = "generation_config.json"
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "guidance_scale": (1.0,),
    "begin_suppress_tokens": ([],),
    "exponential_decay_length_penalty": (),
    "sequence_bias": ({}, []),
    "force_words_ids": ([],),
    "constraints": ([],),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
}
"""Fields that change which text is likeliest and that are not followed, each with its values that change nothing. (How
texts are drawn at random is each request's own.)"""


def read_generation(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the settings of a directory with this config.json. Logs by name those that are not followed.
    CheckpointError for lists that are none."""
    settings = {name: config[name] for name in GENERATION if config.get(name) is not None}
    if (path / _FILE).is_file():
        settings |= read_object(path / _FILE)
    else:
        settings |= _of_config(config)
    try:
        _, ignored = never_written(settings), unfollowed(settings)
    except TypeError as error:
        raise CheckpointError(f"{path}: a generation setting has a value of the wrong kind ({error})") from error
    if ignored:
        listing = ", ".join(f"{name} = {value!r}" for name, value in ignored.items())
        log.warning(
            "%s: its generation settings have %s, which texts here are not written by; give a request its own "
            "repetition_penalty or min_tokens, or expect other texts than transformers' generate",
            path,
            listing,
        )
    return settings


def _of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json alone says in fields that are also about something else: the tokens that end a text, and that
    BART's answers begin with the token that begins texts."""
    ends, begin = config.get("eos_token_id"), config.get("bos_token_id")
    listed = ends if isinstance(ends, list) else [ends]
    settings = {"eos_token_id": ends} if all(isinstance(token_id, int) for token_id in listed) else {}
    if config.get("force_bos_token_to_be_generated") and isinstance(begin, int):
        settings |= {"forced_bos_token_id": begin}
    return settings


def unfollowed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among these that change which text is likeliest, and are not followed."""
    non_neutral = {
        name: settings[name] for name, neutral in _NEUTRAL.items() if settings.get(name) not in (None, *neutral)
    }
    phrases = [ids for ids in settings.get("bad_words_ids") or () if len(ids) > 1]
    return non_neutral | ({"bad_words_ids": phrases} if phrases else {})


def never_written(settings: Mapping[str, Any]) -> frozenset[int]:
    """Tokens that are no part of any text, such as Marian's padding, whose logit nobody trained."""
    lists, tokens = settings.get("bad_words_ids") or [], settings.get("suppress_tokens") or []
    for ids in (tokens, *lists):
        if not isinstance(ids, list) or not all(isinstance(token_id, int) for token_id in ids):
            raise TypeError(f"bad_words_ids are lists of ids, and suppress_tokens is one, not {shown(ids)}")
    return frozenset((*(ids[0] for ids in lists if len(ids) == 1), *tokens))


def gguf_generation(metadata: Mapping[str, Any], architecture: str | None) -> dict[str, Any]:
    """What a GGUF file says of it."""
    keys = {
        "decoder_start_token_id": f"{architecture}.decoder_start_token_id",
        "eos_token_id": "tokenizer.ggml.eos_token_id",
        "pad_token_id": "tokenizer.ggml.padding_token_id",
    }
    return {name: metadata[key] for name, key in keys.items() if metadata.get(key) is not None}


# --- tokenizers

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
            f"{path}: its config tells of {vocabularies}, but there is {'a' if has_target else 'no'} {TARGET_FILE}, "
            "the tokenizer of its answers"
        )
    return SourceTargetTokenizer.of(
        tokenizer, first_is_forced, Tokenizer.from_directory(path, TARGET_FILE) if has_target else None
    )


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
        ids = max(vocabulary.vocab_size, *(number + 1 for number in vocabulary.encode("", add_special_tokens=True)), 0)
        if ids > rows or rows - ids > max(ids, _SPARE):
            fit = "only" if ids > rows else "more than twice as many:"
            raise CheckpointError(
                f"{origin}: the tokenizer has {ids} ids, but the model has {fit} {rows} rows for them; it is another "
                "model's tokenizer"
            )
    return tokenizer


def written_id(value: object, rows: int, name: str, origin: str) -> int:
    """The id of a token that the files name of what is written. CheckpointError for what is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < rows:
        raise CheckpointError(f"{origin}: {name} is {shown(value)}, which is no id of a vocabulary of {rows}")
    return value
