"""A GGUF's own vocabulary (`tokenizer.ggml.*`) as a tokenizer, and back.

llama.cpp is the reference for these files: what it does with a pre-tokenizer's name is what is done here (its
`llama-vocab.cpp`), also where the tokenizer.json of the same model normalises text first.
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from bedplate.core.errors import TokenizerError
from bedplate.text import sentencepiece, unigram
from bedplate.text.decoding import state
from bedplate.text.gguf_pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from bedplate.text.tokenizer_parts import TokenizerParts

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_ROLE_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # spelt so in the format
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
_FURTHER_ENDS = ("eot_token_id", "eom_token_id")
# Of a SentencePiece file that does not say.
_SENTENCEPIECE_IDS = {
    f"tokenizer.ggml.{key}": index for key, index in (("unknown_token_id", 0), ("bos_token_id", 1), ("eos_token_id", 2))
}


def parts_from_fields(fields: Mapping[str, Any], source: str = "the GGUF file") -> TokenizerParts:
    """`fields`: GGUF metadata as Python values. Raises TokenizerError for what is missing, inconsistent or unknown."""
    model = _field(fields, "model", str, source)
    tokens, types = _tokens(fields, source)
    if model == "gpt2":
        pre_tokenizer = _pre_tokenizer(fields, source)
        backend = _built(lambda merges: _byte_level_bpe(tokens, merges, pre_tokenizer), fields, source)
        ids, bos = _role_ids(fields, len(tokens), source), pre_tokenizer.bos
    elif model == "llama":
        backend = _sentencepiece(fields, tokens, types, source)
        ids, bos = _role_ids(_SENTENCEPIECE_IDS | dict(fields), len(tokens), source), True
    elif model == "t5":
        backend = _unigram(fields, tokens, types, source)
        ids, bos = _role_ids(fields, len(tokens), source), False
    elif model == "gemma4":
        _check_bytes(tokens, source)
        unknown = _unknown(tokens, types)
        backend = _built(lambda merges: sentencepiece.build_merged(tokens, merges, unknown), fields, source)
        ids, bos = _role_ids(fields, len(tokens), source), True
    else:
        raise TokenizerError(
            f"{source}: tokenizer.ggml.model is {model!r}; supported: 'gpt2' (byte-level BPE), 'llama' "
            "(SentencePiece), 't5' (SentencePiece's Unigram), 'gemma4' (BPE of characters). Load the model's Hugging "
            "Face directory with its tokenizer.json instead"
        )
    _add_tokens(backend, tokens, types, str(fields.get("general.name", "")))
    _add_ends(backend, tokens, ids, fields, bos, source)
    template = fields.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise TokenizerError(f"{source}: tokenizer.chat_template is a {type(template).__name__}, not text")
    extra_ends = ((key, fields.get(f"tokenizer.ggml.{key}")) for key in _FURTHER_ENDS)
    ends = [_token_id(value, key, len(tokens), source) for key, value in extra_ends if value is not None]
    ends = [ids["eos_token"], *ends] if "eos_token" in ids else ends
    return TokenizerParts(
        backend=backend,
        roles={role: tokens[index] for role, index in ids.items()},
        eos_ids=tuple(dict.fromkeys(ends)),
        template=template,
        source=source,
        size=len(tokens),
    )


def _field(fields: Mapping[str, Any], key: str, expected_type: type, source: str) -> Any:
    value = fields.get(f"tokenizer.ggml.{key}")
    if value is None:
        raise TokenizerError(f"{source}: tokenizer.ggml.{key} is missing, so it holds no complete tokenizer")
    accepted_type = Sequence if expected_type is list else expected_type
    if expected_type is list and hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, accepted_type) or (expected_type is list and isinstance(value, str)):
        raise TokenizerError(
            f"{source}: tokenizer.ggml.{key} is a {type(value).__name__}, not a {expected_type.__name__}"
        )
    return value


def _tokens(fields: Mapping[str, Any], source: str) -> tuple[list[str], list[int]]:
    tokens = [str(token) for token in _field(fields, "tokens", list, source)]
    types: list[Any] = list(_field(fields, "token_type", list, source))
    odd = next(
        (token_type for token_type in types if not isinstance(token_type, int) or not 0 <= token_type <= BYTE), None
    )
    if odd is not None:
        raise TokenizerError(
            f"{source}: tokenizer.ggml.token_type holds {reprlib.repr(odd)}, which is no type of tokens"
        )
    if len(types) != len(tokens):
        raise TokenizerError(f"{source}: {len(tokens)} tokens but {len(types)} token types; the file is inconsistent")
    # A model may have more rows than tokens, which the format does not allow: writers fill them up.
    while tokens and types[-1] == UNUSED and tokens[-1] == _filler(len(tokens) - 1):
        tokens.pop()
        types.pop()
    if len(set(tokens)) != len(tokens):
        duplicate = next(token for token, count in Counter(tokens).items() if count > 1)
        raise TokenizerError(f"{source}: the token {duplicate!r} is in the vocabulary twice; the file is inconsistent")
    return tokens, types


def _filler(index: int) -> str:
    """What an id without a token is called."""
    return f"[PAD{index}]"


def filled(fields: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The metadata with a token for each of a model's rows."""
    tokens = fields["tokenizer.ggml.tokens"]
    padding_rows = range(len(tokens), rows)
    extended = {
        "tokenizer.ggml.tokens": [*tokens, *map(_filler, padding_rows)],
        "tokenizer.ggml.token_type": [*fields["tokenizer.ggml.token_type"], *(UNUSED for _ in padding_rows)],
    }
    if "tokenizer.ggml.scores" in fields:
        extended["tokenizer.ggml.scores"] = [*fields["tokenizer.ggml.scores"], *(0.0 for _ in padding_rows)]
    return {**fields, **extended} if padding_rows else dict(fields)


def _merges(fields: Mapping[str, Any], source: str) -> list[tuple[str, str]]:
    """The two parts of each merge. That they are tokens, and make a third, is for whoever builds with them to see."""
    merges: list[tuple[str, str]] = []
    for position, merge in enumerate(map(str, _field(fields, "merges", list, source))):
        left, space, right = merge.partition(" ")
        if not left:  # llama.cpp looks for the separating space from the second character on
            remainder, space, right = merge[1:].partition(" ")
            left = merge[:1] + remainder
        if not space:
            raise _no_merge(position, merge, source)
        merges.append((left, right))
    return merges


def _no_merge(position: int, merge: str, source: str) -> TokenizerError:
    return TokenizerError(
        f"{source}: merge {position} ({merge!r}) does not join two tokens of the vocabulary into a third"
    )


def _built(build: Callable[[list[tuple[str, str]]], Tokenizer], fields: Mapping[str, Any], source: str) -> Tokenizer:
    """A tokenizer of the file's merges. TokenizerError for one that does not fit the vocabulary."""
    merges = _merges(fields, source)
    try:
        return build(merges)
    except Exception as error:  # the library's own kind for a part that is no token
        vocabulary = set(_field(fields, "tokens", list, source))
        for position, (left, right) in enumerate(merges):
            if not {left, right, left + right} <= vocabulary:
                raise _no_merge(position, f"{left} {right}", source) from error
        raise


def _pre_tokenizer(fields: Mapping[str, Any], source: str) -> PreTokenizer:
    name = str(fields.get("tokenizer.ggml.pre", "default"))
    pre_tokenizer = PRE_TOKENIZERS.get(name)
    if pre_tokenizer is None:
        raise TokenizerError(
            f"{source}: the pre-tokenizer {name!r} is not known; known: {', '.join(PRE_TOKENIZERS)}. Load the model's "
            "Hugging Face directory with its tokenizer.json instead"
        )
    return pre_tokenizer


def _byte_level_bpe(tokens: Sequence[str], merges: list[tuple[str, str]], pre_tokenizer: PreTokenizer) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre_tokenizer.whole_words))
    backend.pre_tokenizer = pre_tokenizer.build()
    backend.decoder = decoders.ByteLevel()
    return backend


def _scores(fields: Mapping[str, Any], tokens: Sequence[str], source: str) -> list[float]:
    scores = [float(score) for score in _field(fields, "scores", list, source)]
    count = len(_field(fields, "tokens", list, source))
    if len(scores) != count:
        raise TokenizerError(f"{source}: {count} tokens but {len(scores)} scores; the file is inconsistent")
    return scores[: len(tokens)]


def _unigram(fields: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], source: str) -> Tokenizer:
    if UNKNOWN not in types:
        raise TokenizerError(f"{source}: no token is of the type of unknown ones; the file is inconsistent")
    return unigram.build(
        tokens,
        _scores(fields, tokens, source),
        types.index(UNKNOWN),
        unigram.table_of(fields.get("tokenizer.ggml.precompiled_charsmap")),
        _flag(fields, "add_space_prefix", True, source),
        _flag(fields, "remove_extra_whitespaces", False, source),
    )


def _sentencepiece(fields: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], source: str) -> Tokenizer:
    scores = _scores(fields, tokens, source)
    _check_bytes(tokens, source)
    joined = [index for index, token_type in enumerate(types) if token_type in (NORMAL, USER_DEFINED, UNUSED)]
    prefix = _flag(fields, "add_space_prefix", True, source)
    return sentencepiece.build(tokens, scores, joined, _unknown(tokens, types), prefix)


def _unknown(tokens: Sequence[str], types: Sequence[int]) -> str | None:
    return next((token for token, token_type in zip(tokens, types, strict=True) if token_type == UNKNOWN), None)


def _check_bytes(tokens: Sequence[str], source: str) -> None:
    """TokenizerError where a byte has no token."""
    vocabulary = set(tokens)
    missing = [token for token in sentencepiece.byte_tokens() if token not in vocabulary]
    if missing:
        raise TokenizerError(
            f"{source}: the vocabulary has no tokens for {len(missing)} bytes, the first {missing[0]!r}; what it does "
            "with unknown characters is not known"
        )


def _add_tokens(backend: Tokenizer, tokens: Sequence[str], types: Sequence[int], name: str) -> None:
    """Tokens that are matched whole. Phi-3's swallow the white space after them; its files say that by name only."""
    swallows = any(part in name.lower() for part in ("phi-3", "phi3"))
    backend.add_tokens(
        [
            AddedToken(
                token, special=token_type != USER_DEFINED, normalized=False, rstrip=swallows and _swallows(token)
            )
            for token, token_type in zip(tokens, types, strict=True)
            if token and token_type in (CONTROL, UNKNOWN, USER_DEFINED)
        ]
    )


def _swallows(token: str) -> bool:
    """Whether the token swallows white space in files of Phi-3."""
    return token not in ("<unk>", "<s>", "<|endoftext|>")


def _role_ids(fields: Mapping[str, Any], size: int, source: str) -> dict[str, int]:
    ids: dict[str, int] = {}
    for role, key in _ROLE_KEYS.items():
        value = fields.get(f"tokenizer.ggml.{key}")
        if value is None:
            continue
        ids[role] = _token_id(value, key, size, source)
    return ids


def _token_id(value: Any, key: str, size: int, source: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TokenizerError(f"{source}: tokenizer.ggml.{key} is {reprlib.repr(value)}, not the id of a token")
    if not 0 <= value < size:
        raise TokenizerError(f"{source}: tokenizer.ggml.{key} is {value}, outside the vocabulary of {size} tokens")
    return value


def _flag(fields: Mapping[str, Any], key: str, default: bool, source: str) -> bool:
    value = fields.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        raise TokenizerError(f"{source}: tokenizer.ggml.{key} is {reprlib.repr(value)}, not true or false")
    return value


def _add_ends(
    backend: Tokenizer,
    tokens: Sequence[str],
    ids: Mapping[str, int],
    fields: Mapping[str, Any],
    adds_bos: bool,
    source: str,
) -> None:
    bos = _flag(fields, "add_bos_token", adds_bos, source)
    eos = _flag(fields, "add_eos_token", False, source)
    pieces: list[str] = []
    named: list[tuple[str, int]] = []
    for is_added, role in ((bos, "bos_token"), (eos, "eos_token")):
        if is_added and role not in ids:
            raise TokenizerError(f"{source}: it asks for a {role} at the end of texts but names none")
        if is_added:
            named.append((tokens[ids[role]], ids[role]))
        pieces.extend([tokens[ids[role]]] if is_added else [])
        pieces.extend(["$A"] if role == "bos_token" else [])
    if named:
        backend.post_processor = processors.TemplateProcessing(
            single=pieces, pair=[*pieces, *(piece if piece != "$A" else "$B" for piece in pieces)], special_tokens=named
        )


def fields_from_parts(parts: TokenizerParts) -> dict[str, Any]:
    """The `tokenizer.*` metadata of a GGUF file, for byte-level BPE tokenizers whose pre-tokenizer is in the table, for
    SentencePiece ones whose merges follow from scores, and for Unigram ones.

    Raises TokenizerError where the format (as supported here) cannot say what the tokenizer does."""
    content = json.loads(parts.backend.to_str())
    tokens, types = _written_tokens(parts)
    if sentencepiece.is_one(content):
        scores, prefix = sentencepiece.scores_of(content, tokens, parts.source)
        bytes_ = set(sentencepiece.byte_tokens())
        unknown = content["model"]["unk_token"]
        named = {**dict.fromkeys(bytes_, BYTE), unknown: UNKNOWN}
        types = [named.get(token, token_type) for token, token_type in zip(tokens, types, strict=True)]
        model_fields = {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefix}
    elif unigram.is_one(content):
        model_fields = unigram.fields_of(content, parts.source)
        pieces = content["model"]["vocab"]
        model_fields["scores"] = [pieces[index][1] if index < len(pieces) else 0.0 for index in range(len(tokens))]
        types[model_fields["unknown_token_id"]] = UNKNOWN
    else:
        merges = [" ".join(pair) for pair in content["model"].get("merges", ())]
        model_fields = {
            "model": "gpt2",
            "pre": _known_name(content, parts.source),
            "merges": merges,
            "add_space_prefix": False,
        }
    fields: dict[str, Any] = {**model_fields, "tokens": tokens, "token_type": types, **_written_ends(parts, content)}
    for role, key in _ROLE_KEYS.items():
        if (index := parts.role_id(role)) is not None:
            fields[key] = index
    for key, index in zip(_FURTHER_ENDS, parts.eos_ids[1:], strict=False):
        fields[key] = index
    result = {f"tokenizer.ggml.{key}": value for key, value in fields.items()} | _written_name(parts)
    if parts.template is not None:
        result["tokenizer.chat_template"] = parts.template
    return result


def _written_tokens(parts: TokenizerParts) -> tuple[list[str], list[int]]:
    """Every id's token and type; ids without a token are unused ones."""
    by_id = {index: token for token, index in parts.backend.get_vocab(with_added_tokens=True).items()}
    added = parts.backend.get_added_tokens_decoder()
    tokens: list[str] = []
    types: list[int] = []
    for index in range(max(by_id) + 1):
        tokens.append(by_id.get(index, _filler(index)))
        default_type = UNUSED if index not in by_id else NORMAL
        types.append((CONTROL if added[index].special else USER_DEFINED) if index in added else default_type)
    return tokens, types


def _written_name(parts: TokenizerParts) -> dict[str, str]:
    """The name that a file needs whose added tokens swallow white space."""
    added = parts.backend.get_added_tokens_decoder().values()
    if not any(token.lstrip or token.rstrip for token in added):
        return {}
    if any(token.lstrip or token.rstrip != _swallows(token.content) for token in added):
        raise TokenizerError(f"{parts.source}: some added tokens swallow white space beside them; GGUF cannot say that")
    return {"general.name": "Phi-3"}


def _written_ends(parts: TokenizerParts, content: Mapping[str, Any]) -> dict[str, bool]:
    ends = {"add_bos_token": False, "add_eos_token": False}
    if content["post_processor"] is not None:
        ids = parts.backend.encode("", add_special_tokens=True).ids
        ends["add_bos_token"] = parts.role_id("bos_token") in ids[:1]
        ends["add_eos_token"] = parts.role_id("eos_token") in ids[1:] or ids == [parts.role_id("eos_token")]
        if len(ids) != sum(ends.values()):
            raise TokenizerError(f"{parts.source}: its post-processor adds more than BOS and EOS; GGUF cannot say that")
    return ends


def _known_name(content: Mapping[str, Any], source: str) -> str:
    name = _pre_tokenizer_name(content)
    if content["model"]["type"] != "BPE" or content["normalizer"] is not None or name is None:
        raise TokenizerError(
            f"{source}: only byte-level BPE tokenizers with a pre-tokenizer of {', '.join(PRE_TOKENIZERS)} and no "
            "normalizer, and SentencePiece ones, can be written into a GGUF file; export a Hugging Face directory "
            "instead"
        )
    return name


def _pre_tokenizer_name(content: Mapping[str, Any]) -> str | None:
    for name, candidate in PRE_TOKENIZERS.items():
        probe = Tokenizer(models.BPE())
        probe.pre_tokenizer = candidate.build()
        matches = state(probe.pre_tokenizer) == content["pre_tokenizer"]
        if matches and content["model"].get("ignore_merges", False) == candidate.whole_words:
            return name
    return None
