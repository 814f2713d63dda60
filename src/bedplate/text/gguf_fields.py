"""A GGUF's own vocabulary (`tokenizer.ggml.*`) as a tokenizer, and back.

llama.cpp is the reference for these files: what it does with a pre-tokenizer's name is what is done here (its
`llama-vocab.cpp`), also where the tokenizer.json of the same model normalises text first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from bedplate.core.errors import TokenizerError
from bedplate.text.decoding import state
from bedplate.text.tokenizer_parts import TokenizerParts

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class PreTokenizer:
    """`splits`: regular expressions applied one after the other, matches and gaps both being pieces. `digits`: each
    numeral alone, first. `byte_regex`: GPT-2's expression, last. `whole_words`: a piece that is in the vocabulary is
    one token without merges. `bos`: whether a file that does not say adds the BOS token."""

    splits: tuple[str, ...] = ()
    digits: bool = False
    byte_regex: bool = False
    whole_words: bool = False
    bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps.extend(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.splits)
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.byte_regex))
        return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


_BY_GPT2 = PreTokenizer(byte_regex=True)
_BY_DIGITS = PreTokenizer(digits=True, byte_regex=True)
_BY_LLAMA3 = PreTokenizer(splits=(_LLAMA3,), whole_words=True, bos=True)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer(splits=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _BY_GPT2,
    "gpt2": _BY_GPT2,
    "phi-2": _BY_GPT2,
    "smollm": _BY_DIGITS,
    "starcoder": _BY_DIGITS,
    "refact": _BY_DIGITS,
    "command-r": _BY_DIGITS,
    "llama-bpe": _BY_LLAMA3,
    "llama3": _BY_LLAMA3,
    "llama-v3": _BY_LLAMA3,
    "qwen2": PreTokenizer(splits=(_QWEN2,)),
    "deepseek-r1-qwen": PreTokenizer(splits=(_QWEN2,)),
}

_ROLE_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # spelt so in the format
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def parts_from_fields(fields: Mapping[str, Any], source: str = "the GGUF file") -> TokenizerParts:
    """`fields`: GGUF metadata as Python values. Raises TokenizerError for what is missing, inconsistent or unknown."""
    model = _field(fields, "model", str, source)
    if model != "gpt2":
        raise TokenizerError(
            f"{source}: tokenizer.ggml.model is {model!r}; supported: 'gpt2' (byte-level BPE). Load the model's "
            "Hugging Face directory with its tokenizer.json instead"
        )
    name = str(fields.get("tokenizer.ggml.pre", "default"))
    pre_tokenizer = PRE_TOKENIZERS.get(name)
    if pre_tokenizer is None:
        raise TokenizerError(
            f"{source}: the pre-tokenizer {name!r} is not known; known: {', '.join(PRE_TOKENIZERS)}. Load the model's "
            "Hugging Face directory with its tokenizer.json instead"
        )
    tokens, types = _tokens(fields, source)
    backend = _byte_level_bpe(tokens, types, _merges(fields, tokens, source), pre_tokenizer)
    ids = _role_ids(fields, len(tokens), source)
    _add_ends(backend, tokens, ids, fields, pre_tokenizer, source)
    template = fields.get("tokenizer.chat_template")
    ends = [fields.get(f"tokenizer.ggml.{key}") for key in _END_KEYS]
    return TokenizerParts(
        backend=backend,
        roles={role: tokens[index] for role, index in ids.items()},
        eos_ids=tuple(dict.fromkeys(int(index) for index in ends if index is not None)),
        template=None if template is None else str(template),
        source=source,
    )


def _field(fields: Mapping[str, Any], key: str, kind: type, source: str) -> Any:
    value = fields.get(f"tokenizer.ggml.{key}")
    if value is None:
        raise TokenizerError(f"{source}: tokenizer.ggml.{key} is missing, so it holds no complete tokenizer")
    wanted = Sequence if kind is list else kind
    if kind is list and hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, wanted) or (kind is list and isinstance(value, str)):
        raise TokenizerError(f"{source}: tokenizer.ggml.{key} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _tokens(fields: Mapping[str, Any], source: str) -> tuple[list[str], list[int]]:
    tokens = [str(token) for token in _field(fields, "tokens", list, source)]
    types = [int(kind) for kind in _field(fields, "token_type", list, source)]
    if len(types) != len(tokens):
        raise TokenizerError(f"{source}: {len(tokens)} tokens but {len(types)} token types; the file is inconsistent")
    if len(set(tokens)) != len(tokens):
        twice = next(token for position, token in enumerate(tokens) if token in set(tokens[:position]))
        raise TokenizerError(f"{source}: the token {twice!r} is in the vocabulary twice; the file is inconsistent")
    return tokens, types


def _merges(fields: Mapping[str, Any], tokens: Sequence[str], source: str) -> list[tuple[str, str]]:
    known = set(tokens)
    merges: list[tuple[str, str]] = []
    for position, merge in enumerate(_field(fields, "merges", list, source)):
        # llama.cpp looks for the separating space from the second character on
        left, space, right = str(merge)[:1], *str(merge)[1:].partition(" ")[1:]
        left += str(merge)[1:].partition(" ")[0]
        if not space or not {left, right, left + right} <= known:
            raise TokenizerError(
                f"{source}: merge {position} ({merge!r}) does not join two tokens of the vocabulary into a third"
            )
        merges.append((left, right))
    return merges


def _byte_level_bpe(
    tokens: Sequence[str], types: Sequence[int], merges: list[tuple[str, str]], pre_tokenizer: PreTokenizer
) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre_tokenizer.whole_words))
    backend.pre_tokenizer = pre_tokenizer.build()
    backend.decoder = decoders.ByteLevel()
    added: list[AddedToken] = []
    for token, kind in zip(tokens, types, strict=True):
        if token and kind in (CONTROL, UNKNOWN, USER_DEFINED):
            added.append(AddedToken(token, special=kind != USER_DEFINED, normalized=False))
    backend.add_tokens(added)
    return backend


def _role_ids(fields: Mapping[str, Any], size: int, source: str) -> dict[str, int]:
    ids: dict[str, int] = {}
    for role, key in _ROLE_KEYS.items():
        value = fields.get(f"tokenizer.ggml.{key}")
        if value is None:
            continue
        if not 0 <= int(value) < size:
            raise TokenizerError(f"{source}: tokenizer.ggml.{key} is {value}, outside the vocabulary of {size} tokens")
        ids[role] = int(value)
    return ids


def _add_ends(
    backend: Tokenizer,
    tokens: Sequence[str],
    ids: Mapping[str, int],
    fields: Mapping[str, Any],
    pre_tokenizer: PreTokenizer,
    source: str,
) -> None:
    bos = bool(fields.get("tokenizer.ggml.add_bos_token", pre_tokenizer.bos))
    eos = bool(fields.get("tokenizer.ggml.add_eos_token", False))
    pieces: list[str] = []
    named: list[tuple[str, int]] = []
    for wanted, role in ((bos, "bos_token"), (eos, "eos_token")):
        if wanted and role not in ids:
            raise TokenizerError(f"{source}: it asks for a {role} at the end of texts but names none")
        if wanted:
            named.append((tokens[ids[role]], ids[role]))
        pieces.extend([tokens[ids[role]]] if wanted else [])
        pieces.extend(["$A"] if role == "bos_token" else [])
    if named:
        backend.post_processor = processors.TemplateProcessing(
            single=pieces, pair=[*pieces, *(piece if piece != "$A" else "$B" for piece in pieces)], special_tokens=named
        )


def fields_from_parts(parts: TokenizerParts) -> dict[str, Any]:
    """The `tokenizer.*` metadata of a GGUF file for a byte-level BPE tokenizer whose pre-tokenizer is in the table.

    Raises TokenizerError where the format (as supported here) cannot say what the tokenizer does."""
    content = json.loads(parts.backend.to_str())
    model = content["model"]
    name = _pre_tokenizer_name(content)
    if model["type"] != "BPE" or content["normalizer"] is not None or name is None:
        raise TokenizerError(
            f"{parts.source}: only byte-level BPE tokenizers with a pre-tokenizer of {', '.join(PRE_TOKENIZERS)} and "
            "no normalizer can be written into a GGUF file; export a Hugging Face directory instead"
        )
    by_id = {index: token for token, index in parts.backend.get_vocab(with_added_tokens=True).items()}
    added = parts.backend.get_added_tokens_decoder()
    tokens: list[str] = []
    types: list[int] = []
    for index in range(max(by_id) + 1):
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        kind = UNUSED if index not in by_id else NORMAL
        types.append((CONTROL if added[index].special else USER_DEFINED) if index in added else kind)
    fields: dict[str, Any] = {
        "model": "gpt2",
        "pre": name,
        "tokens": tokens,
        "token_type": types,
        "merges": [" ".join(pair) for pair in model["merges"]],
        "add_bos_token": False,
        "add_eos_token": False,
        "add_space_prefix": False,
    }
    if content["post_processor"] is not None:
        ends = parts.backend.encode("", add_special_tokens=True).ids
        fields["add_bos_token"] = parts.role_id("bos_token") in ends[:1]
        fields["add_eos_token"] = parts.role_id("eos_token") in ends[1:] or ends == [parts.role_id("eos_token")]
        if len(ends) != fields["add_bos_token"] + fields["add_eos_token"]:
            raise TokenizerError(f"{parts.source}: its post-processor adds more than BOS and EOS; GGUF cannot say that")
    for role, key in _ROLE_KEYS.items():
        if (index := parts.role_id(role)) is not None:
            fields[key] = index
    for key, index in zip(("eot_token_id", "eom_token_id"), parts.eos_ids[1:], strict=False):
        fields[key] = index
    result = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    if parts.template is not None:
        result["tokenizer.chat_template"] = parts.template
    return result


def _pre_tokenizer_name(content: Mapping[str, Any]) -> str | None:
    for name, known in PRE_TOKENIZERS.items():
        probe = Tokenizer(models.BPE())
        probe.pre_tokenizer = known.build()
        same = state(probe.pre_tokenizer) == content["pre_tokenizer"]
        if same and content["model"].get("ignore_merges", False) == known.whole_words:
            return name
    return None
