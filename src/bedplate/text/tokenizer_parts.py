"""What a tokenizer is made of, wherever it was read from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tokenizers

from bedplate.core.errors import TokenizerError
from bedplate.core.files import sha256_json

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerParts:
    """`roles`: token text by role name (`bos_token` …). `eos_ids`: the ids that end a generation. `config`: further
    entries of tokenizer_config.json that are kept on export. `source`: for messages. `size`: one more than the largest
    id, where that was told."""

    backend: tokenizers.Tokenizer
    roles: dict[str, str]
    eos_ids: tuple[int, ...]
    template: str | None
    source: str
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    size: int | None = None

    def role_id(self, role: str) -> int | None:
        token = self.roles.get(role)
        return None if token is None else self.backend.token_to_id(token)


def check_roles(parts: TokenizerParts) -> None:
    """Every role's token is in the vocabulary, or TokenizerError."""
    for role, token in parts.roles.items():
        if parts.backend.token_to_id(token) is None:
            raise TokenizerError(
                f"{parts.source}: {role} is {token!r}, which is not in the vocabulary; correct tokenizer_config.json "
                "or add the token to tokenizer.json"
            )


def unneeded(parts: TokenizerParts, size: int) -> tuple[str, ...]:
    """Control tokens that a table of `size` rows has none for, where they are all that stands behind its end, without a
    gap, and no role, end of a text or chat template has a use for them: those of images, in a tokenizer that a text
    model shares with its multimodal kin (Gemma 3's). () where it is not so."""
    added = parts.backend.get_added_tokens_decoder()
    if max(added, default=-1) < size:
        return ()
    vocabulary = parts.backend.get_vocab(with_added_tokens=True)
    behind = {index: token for token, index in vocabulary.items() if index >= size}
    if sorted(behind) != list(range(size, size + len(behind))):
        return ()
    used = {*parts.roles.values(), *(token for index, token in behind.items() if index in parts.eos_ids)}
    for index, token in behind.items():
        if index not in added or not added[index].special or token in used or token in (parts.template or ""):
            return ()
    return tuple(behind[index] for index in sorted(behind))


def without(parts: TokenizerParts, tokens: Sequence[str]) -> TokenizerParts:
    """The same without some of its control tokens, which are then the characters that they are written with."""
    content = json.loads(parts.backend.to_str())
    content["added_tokens"] = [
        added_token for added_token in content["added_tokens"] if added_token["content"] not in tokens
    ]
    model = content["model"]  # whose vocabulary may list them too
    if isinstance(model["vocab"], dict):
        model["vocab"] = {token: index for token, index in model["vocab"].items() if token not in tokens}
    else:
        model["vocab"] = [piece for piece in model["vocab"] if piece[0] not in tokens]
    return replace(parts, backend=tokenizers.Tokenizer.from_str(json.dumps(content)), size=None)


def identity(parts: TokenizerParts) -> str:
    """sha256 of what decides ids: vocabulary, model, normalizer, pre-tokenizer, post-processor, added tokens, roles.

    The same tokenizer gives the same value from a GGUF and from its export: vocabulary and added tokens are taken
    together (files differ in whether added tokens are listed twice), and what only moves offsets is left out."""
    content = json.loads(parts.backend.to_str())
    model = content["model"]
    vocabulary = model.pop("vocab")
    if isinstance(vocabulary, list):  # Unigram: pieces and scores
        model["pieces"] = [[piece, repr(score)] for piece, score in vocabulary]
    tokens = sorted(
        parts.backend.get_vocab(with_added_tokens=True).items(),
        key=lambda token_and_id: (token_and_id[1], token_and_id[0]),
    )
    return sha256_json(
        {
            "model": model,
            "tokens": [[index, token] for token, index in tokens],
            "added": sorted(content["added_tokens"], key=lambda token: token["id"]),
            "normalizer": content["normalizer"],
            "pre_tokenizer": _without_offsets(content["pre_tokenizer"]),
            "post_processor": _post_processor(content["post_processor"]),
            "roles": {role: parts.role_id(role) for role in parts.roles},
        }
    )


def _post_processor(step: Any) -> Any:
    """Without byte-level steps, which move offsets and add no ids."""
    if step is None or step["type"] == "ByteLevel":
        return None
    if step["type"] != "Sequence":
        return _without_offsets(step)
    steps = [part for part in map(_post_processor, step["processors"]) if part is not None]
    return steps[0] if len(steps) == 1 else (steps or None)


def _without_offsets(step: Any) -> Any:
    if isinstance(step, dict):
        return {key: _without_offsets(value) for key, value in step.items() if key != "trim_offsets"}
    if isinstance(step, list):
        return [_without_offsets(child) for child in step]
    return step
