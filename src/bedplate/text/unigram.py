"""A SentencePiece vocabulary of the Unigram kind (T5) as a `tokenizers` one, and back.

Unigram (Kudo, https://arxiv.org/abs/1804.10959) cuts a text into the pieces whose scores have the largest sum. Before
that, characters are replaced by a table that the vocabulary's trainer compiled, and runs of spaces become one.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bedplate.core.errors import TokenizerError

_SPACES = [{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": space} for space in (" ", "▁")]
_END = {"type": "Strip", "strip_left": False, "strip_right": True}


def build(
    tokens: Sequence[str], scores: Sequence[float], unknown: int, table: bytes, prefix: bool, one_space: bool
) -> Tokenizer:
    """The tokenizer, without its added tokens.

    unknown: the id of what has no piece. table: the compiled one of characters, empty where there is none. prefix: a
    space is put before every text; one_space: of several only one is left, and none at a text's end.
    """
    backend = Tokenizer(models.Unigram(list(zip(tokens, scores, strict=True)), unknown, False))
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(table)] if table else []
    if one_space:
        steps += [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    scheme = "always" if prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return backend


def is_one(content: Mapping[str, Any]) -> bool:
    """Whether a tokenizer, as its JSON says it, is of this kind."""
    return content["model"]["type"] == "Unigram"


def fields_of(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The inverse of `build`: what a GGUF file says of it. TokenizerError where it cannot. (Older conversions of T5's
    vocabulary keep a space at the end of a text, which SentencePiece itself drops; the file means SentencePiece.)"""
    steps = content["normalizer"]
    steps = [] if steps is None else steps["normalizers"] if steps["type"] == "Sequence" else [steps]
    tables = [step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"]
    spaces = [step for step in steps if step in _SPACES]
    ends = [step for step in steps if step == _END]
    before = content["pre_tokenizer"] or {}
    scheme = before.get("prepend_scheme")
    if (
        len(tables) > 1
        or len(tables) + len(spaces) + len(ends) != len(steps)
        or len(ends) > len(spaces)
        or before.get("type") != "Metaspace"
        or scheme not in ("always", "never")
        or content["model"].get("byte_fallback")
    ):
        raise TokenizerError(
            f"{source}: of Unigram tokenizers only those can be written into a GGUF file that replace characters by a "
            "compiled table, join spaces and mark them as SentencePiece does; export a Hugging Face directory instead"
        )
    fields: dict[str, Any] = {
        "model": "t5",
        "pre": "default",
        "add_space_prefix": scheme == "always",
        "remove_extra_whitespaces": bool(spaces),
        "unknown_token_id": content["model"]["unk_id"],
    }
    return fields | ({"precompiled_charsmap": base64.b64decode(tables[0])} if tables else {})


def table_of(value: Any) -> bytes:
    """The compiled table out of a file's array, whose numbers may have signs."""
    numbers = value.tolist() if hasattr(value, "tolist") else value
    return bytes(int(number) & 0xFF for number in numbers or ())
