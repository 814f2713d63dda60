"""A tokenizer's files: `tokenizer.json` and what stands beside it, read and written as transformers does."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tokenizers

from bedplate.core.errors import DataError, TokenizerError, need_failure
from bedplate.core.files import MODEL_JSON_BYTES, atomic_write, read_text, sha256_json
from bedplate.core.json import load_model_json

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
    content["added_tokens"] = [added for added in content["added_tokens"] if added["content"] not in tokens]
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
    tokens = parts.backend.get_vocab(with_added_tokens=True).items()
    return sha256_json(
        {
            "model": model,
            "tokens": sorted([index, token] for token, index in tokens),
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


FILE = "tokenizer.json"
TARGET_FILE = "target_tokenizer.json"
"""The vocabulary of the texts that an encoder–decoder writes, where it reads another one. (No published layout has a
name for it; Marian's own files call the pieces `target_vocab.json`.)"""

_VOCABULARY_BYTES = 256 << 20
"""The largest tokenizer.json that is read; those of 262,144 tokens have 33 MB."""
_CONFIG_KEYS = ("model_max_length", "padding_side", "truncation_side", "model_input_names")


def parts_from_directory(directory: Path, file: str = FILE) -> TokenizerParts:
    """Raises TokenizerError for files that are missing, corrupt or inconsistent. file: the one with the vocabulary;
    what stands beside it, such as the tokens' roles, is that of all. Truncation and padding that tokenizer.json asks
    for are turned off: nothing is cut silently."""
    path = directory / file
    if not path.is_file():
        others = [name for name in ("tokenizer.model", "vocab.txt", "vocab.json") if (directory / name).is_file()]
        hint = f" ({', '.join(others)} is there; convert it with transformers' save_pretrained)" if others else ""
        raise TokenizerError(f"{directory} has no {file}{hint}")
    try:
        backend = tokenizers.Tokenizer.from_str(_read(path, _VOCABULARY_BYTES))
    except TokenizerError:
        raise
    except BaseException as error:  # the library raises bare Exception for everything, and panics
        need_failure(error)
        raise TokenizerError(f"{path} is not a readable tokenizer: {error}; fetch the file again") from error
    dropout = getattr(backend.model, "dropout", None)
    if dropout:
        raise TokenizerError(
            f"{path}: its model leaves merges out at random (dropout {dropout:g}), which is for training; set dropout "
            "to null"
        )
    backend.no_truncation()
    backend.no_padding()
    config = _read_object(directory / "tokenizer_config.json")
    roles = _roles(config, _read_object(directory / "special_tokens_map.json"), path)
    # The ids that the config gives to tokens are those of the first vocabulary.
    ids = config if file == FILE else {k: v for k, v in config.items() if k != "added_tokens_decoder"}
    _add_tokens(backend, ids, roles)
    parts = TokenizerParts(
        backend=backend,
        roles=roles,
        eos_ids=(),
        template=_template(directory, config),
        source=str(path),
        config=_config_subset(config, path),
    )
    check_roles(parts)
    ends = _eos_ids(_read_object(directory / "generation_config.json"), directory)
    eos_id = parts.role_id("eos_token")
    return replace(parts, eos_ids=ends or (() if eos_id is None else (eos_id,)))


def save_target(parts: TokenizerParts, directory: Path) -> None:
    """Write the vocabulary of what is written beside that of what is read."""
    atomic_write(directory / TARGET_FILE, parts.backend.to_str(pretty=True))


def save_parts(parts: TokenizerParts, directory: Path, types: bool = False) -> None:
    """Write tokenizer.json and tokenizer_config.json (chat template inside); each file whole or not at all. types: the
    model tells a pair's texts apart, of which transformers otherwise leaves it to the tokenizer's class to say so."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **parts.roles,
        **({"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if types else {}),
        **parts.config,
    }
    if parts.template is not None:
        config["chat_template"] = parts.template
    atomic_write(directory / FILE, parts.backend.to_str(pretty=True))
    atomic_write(directory / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2) + "\n")


def _read(path: Path, max_bytes: int = MODEL_JSON_BYTES) -> str:
    try:
        return read_text(path, max_bytes)
    except DataError as error:
        raise TokenizerError(str(error)) from error
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from error


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = load_model_json(_read(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path} is not JSON: line {error.lineno}: {error.msg}") from error
    except ValueError as error:  # such as JsonRuleError, or a number of thousands of digits
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _content(token: Any) -> str | None:
    """A token as the files write it: text, or an object with its content."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _roles(config: Mapping[str, Any], special: Mapping[str, Any], path: Path) -> dict[str, str]:
    roles: dict[str, str] = {}
    for role in ROLES:
        declared = config.get(role) if config.get(role) is not None else special.get(role)
        token = _content(declared)
        if token is not None:
            roles[role] = token
        elif declared not in (None, ""):
            raise TokenizerError(f"{path.parent}: {role} is {declared!r}, neither text nor an object with content")
    return roles


def _add_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any], roles: Mapping[str, str]) -> None:
    """Tokens that the config names are matched whole, as transformers does, if tokenizer.json does not say so."""
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    for key, token_fields in _declared(config):
        if token_fields["content"] in added:
            continue
        names = ("single_word", "lstrip", "rstrip", "normalized", "special")
        flags = {name: bool(token_fields.get(name, False)) for name in names}
        backend.add_tokens([tokenizers.AddedToken(token_fields["content"], **flags)])
        if backend.token_to_id(token_fields["content"]) != key:
            raise TokenizerError(
                f"tokenizer_config.json gives {token_fields['content']!r} the id {key}, but it would be "
                f"{backend.token_to_id(token_fields['content'])} in tokenizer.json's; the files do not belong together"
            )
        added.add(token_fields["content"])
    listed = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if not isinstance(listed, list | Mapping):
        raise TokenizerError(f"tokenizer_config.json: its list of special tokens is a {type(listed).__name__}")
    extra = [_content(token) for token in (listed.values() if isinstance(listed, Mapping) else listed)]
    if None in extra:
        raise TokenizerError("tokenizer_config.json: its list of special tokens holds something that is no token")
    named = [token for token in (*roles.values(), *extra) if token is not None]
    missing = [token for token in dict.fromkeys(named) if token not in added]
    existing = [token for token in missing if backend.token_to_id(token) is not None]
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in existing])


def _declared(config: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """The config's tokens by their ids, in order."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping):
        problem = f"added_tokens_decoder is a {type(decoder).__name__}, not an object"
        raise TokenizerError(f"tokenizer_config.json: {problem}")
    for key, fields in decoder.items():
        if not (key.isdecimal() and isinstance(fields, Mapping) and isinstance(fields.get("content"), str)):
            raise TokenizerError(
                f"tokenizer_config.json: added_tokens_decoder has {reprlib.repr(fields)} under {reprlib.repr(key)}, "
                "where an id and a token with its content are wanted"
            )
    return [(int(key), decoder[key]) for key in sorted(decoder, key=int)]


def _config_subset(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What of tokenizer_config.json is kept as it is. TokenizerError for values that mean nothing."""
    settings = {key: config[key] for key in _CONFIG_KEYS if config.get(key) is not None}
    longest, names = settings.get("model_max_length", 1), settings.get("model_input_names", [])
    if isinstance(longest, bool) or not isinstance(longest, int | float) or not longest >= 1:
        raise TokenizerError(f"{path.parent}: model_max_length is {reprlib.repr(longest)}, not a number of tokens")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TokenizerError(f"{path.parent}: model_input_names is {reprlib.repr(names)}, not a list of names")
    return settings


def _template(directory: Path, config: Mapping[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return _read(path)
    template = config.get("chat_template")
    path = directory / "chat_template.json"  # of processors saved by transformers before its version 4.50
    if template is None and path.is_file():
        template = _read_object(path).get("chat_template")
    if isinstance(template, list):
        named = {form.get("name"): form.get("template") for form in template if isinstance(form, Mapping)}
        if "default" not in named:
            raise TokenizerError(
                f"{directory}: chat_template is a list, of {', '.join(map(str, named))}, without 'default'; "
                "write the one to use into chat_template.jinja"
            )
        template = named["default"]
    if template is None or isinstance(template, str):
        return template
    raise TokenizerError(f"{directory}: chat_template is a {type(template).__name__}, not text")


def _eos_ids(generation: Mapping[str, Any], directory: Path) -> tuple[int, ...]:
    declared = generation.get("eos_token_id")
    ids = declared if isinstance(declared, list) else [] if declared is None else [declared]
    if not all(isinstance(index, int) and not isinstance(index, bool) for index in ids):
        path = directory / "generation_config.json"
        raise TokenizerError(f"{path}: eos_token_id is {declared!r}, not one or more ids")
    return tuple(ids)
