"""A GGUF's own vocabulary (`tokenizer.ggml.*`) as a tokenizer, and back.

llama.cpp is the reference for these files: what it does with a pre-tokenizer's name is what is done here (its
`llama-vocab.cpp`), also where the tokenizer.json of the same model normalises text first.
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from bedplate.core.errors import TokenizerError
from bedplate.text import sentencepiece
from bedplate.text.decoding import state
from bedplate.text.directory import TokenizerParts

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Upper and lower case are told apart in ASCII alone: llama.cpp's expressions know no cases beyond.
_UPPER, _LOWER = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
_COMMON_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = rf"{_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*|\p{{N}}{_COMMON_TAIL}"
_GPT4O = (
    rf"{_WORD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_WORD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}{_COMMON_TAIL}"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


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


_KNOWN: tuple[tuple[PreTokenizer, str], ...] = (
    (PreTokenizer(splits=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")), "default"),
    (PreTokenizer(byte_regex=True), "gpt-2 gpt2 phi-2 mpt olmo jais exaone4"),
    (PreTokenizer(digits=True, byte_regex=True), "smollm starcoder refact command-r codeshell exaone minerva-7b"),
    (
        PreTokenizer(splits=(_LLAMA3,), whole_words=True, bos=True),
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral lfm2",
    ),
    (PreTokenizer(splits=(_LLAMA3,)), "dbrx smaug-bpe"),
    (PreTokenizer(splits=(_LLAMA3,), whole_words=True), "glm4"),
    (PreTokenizer(splits=(_QWEN2,)), "qwen2 deepseek-r1-qwen stablelm2 megrez hunyuan grok-2"),
    (PreTokenizer(splits=(_QWEN35,)), "qwen35"),
    (PreTokenizer(splits=(_TEKKEN,), whole_words=True, bos=True), "tekken"),
    (PreTokenizer(splits=(_GPT4O,)), "gpt-4o llama4 kanana2 minimax-m2"),
    (PreTokenizer(splits=(r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3)), "deepseek-v3 hunyuan-dense"),
)
PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: rules for rules, names in _KNOWN for name in names.split()}


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
_SENTENCEPIECE_IDS = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def parts_from_fields(fields: Mapping[str, Any], source: str = "the GGUF file") -> TokenizerParts:
    """`fields`: GGUF metadata as Python values. Raises TokenizerError for what is missing, inconsistent or unknown."""
    return _Vocabulary(fields, source).parts()


class _Vocabulary:
    """The vocabulary of one file."""

    def __init__(self, fields: Mapping[str, Any], source: str) -> None:
        self._fields, self._source = fields, source
        self._model: str = self._field("model", str)
        self._all_tokens = [str(token) for token in self._field("tokens", list)]
        self._tokens, self._types = self._checked_tokens()
        self._unknown = self._tokens[self._types.index(UNKNOWN)] if UNKNOWN in self._types else None

    def parts(self) -> TokenizerParts:
        ids, bos = self._role_ids(), False
        if self._model == "gpt2":
            pre_tokenizer = self._pre_tokenizer()
            backend = self._built(lambda merges: _byte_level_bpe(self._tokens, merges, pre_tokenizer))
            bos = pre_tokenizer.bos
        elif self._model == "llama":
            backend, bos = self._sentencepiece(), True
        elif self._model == "t5":
            backend = self._unigram()
        elif self._model == "gemma4":
            self._check_bytes()
            backend = self._built(lambda merges: sentencepiece.build_merged(self._tokens, merges, self._unknown))
            bos = True
        else:
            raise self._error(
                f"tokenizer.ggml.model is {self._model!r}; supported: 'gpt2' (byte-level BPE), 'llama' "
                "(SentencePiece), 't5' (SentencePiece's Unigram), 'gemma4' (BPE of characters). Load the model's "
                "Hugging Face directory with its tokenizer.json instead"
            )
        self._add_tokens(backend)
        self._add_ends(backend, ids, bos)
        template = self._fields.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise self._error(f"tokenizer.chat_template is a {type(template).__name__}, not text")
        ends = [ids["eos_token"]] if "eos_token" in ids else []
        ends += [index for key in _FURTHER_ENDS if (index := self._token_id(key)) is not None]
        return TokenizerParts(
            backend=backend,
            roles={role: self._tokens[index] for role, index in ids.items()},
            eos_ids=tuple(dict.fromkeys(ends)),
            template=template,
            source=self._source,
            size=len(self._tokens),
        )

    def _error(self, problem: str) -> TokenizerError:
        return TokenizerError(f"{self._source}: {problem}")

    def _field(self, key: str, expected_type: type) -> Any:
        value = self._fields.get(f"tokenizer.ggml.{key}")
        if value is None:
            raise self._error(f"tokenizer.ggml.{key} is missing, so it holds no complete tokenizer")
        if expected_type is list and hasattr(value, "tolist"):
            value = value.tolist()
        accepted = isinstance(value, str) if expected_type is str else isinstance(value, list | tuple)
        if not accepted:
            raise self._error(f"tokenizer.ggml.{key} is a {type(value).__name__}, not a {expected_type.__name__}")
        return value

    def _checked_tokens(self) -> tuple[list[str], list[int]]:
        tokens, types = list(self._all_tokens), list(self._field("token_type", list))
        odd = next((value for value in types if not isinstance(value, int) or not 0 <= value <= BYTE), None)
        if odd is not None:
            raise self._error(f"tokenizer.ggml.token_type holds {reprlib.repr(odd)}, which is no type of tokens")
        if len(types) != len(tokens):
            raise self._error(f"{len(tokens)} tokens but {len(types)} token types; the file is inconsistent")
        # A model may have more rows than tokens, which the format does not allow: writers fill them up.
        while tokens and types[-1] == UNUSED and tokens[-1] == _filler(len(tokens) - 1):
            tokens.pop()
            types.pop()
        if len(set(tokens)) != len(tokens):
            duplicate = next(token for token, count in Counter(tokens).items() if count > 1)
            raise self._error(f"the token {duplicate!r} is in the vocabulary twice; the file is inconsistent")
        return tokens, types

    def _built(self, build: Callable[[list[tuple[str, str]]], Tokenizer]) -> Tokenizer:
        """A tokenizer of the file's merges. TokenizerError for one that does not fit the vocabulary."""
        merges: list[tuple[str, str]] = []
        for position, merge in enumerate(map(str, self._field("merges", list))):
            left, space, right = merge.partition(" ")
            if not left:  # llama.cpp looks for the separating space from the second character on
                remainder, space, right = merge[1:].partition(" ")
                left = merge[:1] + remainder
            if not space:
                raise self._no_merge(position, merge)
            merges.append((left, right))
        try:
            return build(merges)
        except Exception as error:  # the library's own kind for a part that is no token
            vocabulary = set(self._all_tokens)
            for position, (left, right) in enumerate(merges):
                if not {left, right, left + right} <= vocabulary:
                    raise self._no_merge(position, f"{left} {right}") from error
            raise

    def _no_merge(self, position: int, merge: str) -> TokenizerError:
        return self._error(f"merge {position} ({merge!r}) does not join two tokens of the vocabulary into a third")

    def _pre_tokenizer(self) -> PreTokenizer:
        name = str(self._fields.get("tokenizer.ggml.pre", "default"))
        if name not in PRE_TOKENIZERS:
            raise self._error(
                f"the pre-tokenizer {name!r} is not known; known: {', '.join(PRE_TOKENIZERS)}. Load the model's "
                "Hugging Face directory with its tokenizer.json instead"
            )
        return PRE_TOKENIZERS[name]

    def _scores(self) -> list[float]:
        scores = [float(score) for score in self._field("scores", list)]
        if len(scores) != len(self._all_tokens):
            raise self._error(f"{len(self._all_tokens)} tokens but {len(scores)} scores; the file is inconsistent")
        return scores[: len(self._tokens)]

    def _unigram(self) -> Tokenizer:
        if self._unknown is None:
            raise self._error("no token is of the type of unknown ones; the file is inconsistent")
        table = sentencepiece.unigram_table(self._fields.get("tokenizer.ggml.precompiled_charsmap"))
        prefix, one_space = self._flag("add_space_prefix", True), self._flag("remove_extra_whitespaces", False)
        unknown = self._types.index(UNKNOWN)
        return sentencepiece.build_unigram(self._tokens, self._scores(), unknown, table, prefix, one_space)

    def _sentencepiece(self) -> Tokenizer:
        scores = self._scores()
        self._check_bytes()
        joined = [index for index, token_type in enumerate(self._types) if token_type in (NORMAL, USER_DEFINED, UNUSED)]
        prefix = self._flag("add_space_prefix", True)
        return sentencepiece.build(self._tokens, scores, joined, self._unknown, prefix)

    def _check_bytes(self) -> None:
        """TokenizerError where a byte has no token."""
        vocabulary = set(self._tokens)
        missing = [token for token in sentencepiece.byte_tokens() if token not in vocabulary]
        if missing:
            raise self._error(
                f"the vocabulary has no tokens for {len(missing)} bytes, the first {missing[0]!r}; what it does with "
                "unknown characters is not known"
            )

    def _add_tokens(self, backend: Tokenizer) -> None:
        """Tokens that are matched whole. Phi-3's swallow the white space after them; its files say that by name
        only."""
        name = str(self._fields.get("general.name", "")).lower()
        swallows = "phi-3" in name or "phi3" in name
        whole = [
            AddedToken(token, special=number != USER_DEFINED, normalized=False, rstrip=swallows and _swallows(token))
            for token, number in zip(self._tokens, self._types, strict=True)
            if token and number in (CONTROL, UNKNOWN, USER_DEFINED)
        ]
        backend.add_tokens(whole)

    def _role_ids(self) -> dict[str, int]:
        defaults = _SENTENCEPIECE_IDS if self._model == "llama" else {}
        ids = {role: self._token_id(key, defaults.get(key)) for role, key in _ROLE_KEYS.items()}
        return {role: index for role, index in ids.items() if index is not None}

    def _token_id(self, key: str, default: int | None = None) -> int | None:
        value = self._fields.get(f"tokenizer.ggml.{key}", default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._error(f"tokenizer.ggml.{key} is {reprlib.repr(value)}, not the id of a token")
        if not 0 <= value < len(self._tokens):
            raise self._error(f"tokenizer.ggml.{key} is {value}, outside the vocabulary of {len(self._tokens)} tokens")
        return value

    def _flag(self, key: str, default: bool) -> bool:
        value = self._fields.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, bool):
            raise self._error(f"tokenizer.ggml.{key} is {reprlib.repr(value)}, not true or false")
        return value

    def _add_ends(self, backend: Tokenizer, ids: Mapping[str, int], adds_bos: bool) -> None:
        """Sets the BOS and EOS tokens that are put around texts."""
        pieces, special_tokens = ["$A"], list[tuple[str, int]]()
        for role, default in (("bos_token", adds_bos), ("eos_token", False)):
            if not self._flag(f"add_{role}", default):
                continue
            if role not in ids:
                raise self._error(f"it asks for a {role} at the end of texts but names none")
            token = self._tokens[ids[role]]
            special_tokens.append((token, ids[role]))
            pieces.insert(0 if role == "bos_token" else len(pieces), token)
        if special_tokens:
            pair = [*pieces, *("$B" if piece == "$A" else piece for piece in pieces)]
            backend.post_processor = processors.TemplateProcessing(pieces, pair, special_tokens)


def _byte_level_bpe(tokens: Sequence[str], merges: list[tuple[str, str]], pre_tokenizer: PreTokenizer) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre_tokenizer.whole_words))
    backend.pre_tokenizer = pre_tokenizer.build()
    backend.decoder = decoders.ByteLevel()
    return backend


def _filler(index: int) -> str:
    """What an id without a token is called."""
    return f"[PAD{index}]"


def _swallows(token: str) -> bool:
    """Whether the token swallows white space in files of Phi-3."""
    return token not in ("<unk>", "<s>", "<|endoftext|>")


def filled(fields: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The metadata with a token for each of a model's rows."""
    count = len(fields["tokenizer.ggml.tokens"])
    padding: dict[str, list[Any]] = {
        "tokens": [*map(_filler, range(count, rows))],
        "token_type": [UNUSED] * max(0, rows - count),
    }
    if "tokenizer.ggml.scores" in fields:
        padding["scores"] = [0.0] * max(0, rows - count)
    extended = {f"tokenizer.ggml.{key}": values for key, values in padding.items()}
    return {**fields, **{key: [*fields[key], *values] for key, values in extended.items() if values}}


def fields_from_parts(parts: TokenizerParts) -> dict[str, Any]:
    """The `tokenizer.*` metadata of a GGUF file, for byte-level BPE tokenizers whose pre-tokenizer is in the table, for
    SentencePiece ones whose merges follow from scores, and for Unigram ones. Raises TokenizerError where the format (as
    supported here) cannot say what the tokenizer does."""
    content = json.loads(parts.backend.to_str())
    tokens, types = _written_tokens(parts)
    if sentencepiece.is_one(content):
        scores, prefix = sentencepiece.scores_of(content, tokens, parts.source)
        bytes_ = set(sentencepiece.byte_tokens())
        unknown = content["model"]["unk_token"]
        named = {**dict.fromkeys(bytes_, BYTE), unknown: UNKNOWN}
        types = [named.get(token, token_type) for token, token_type in zip(tokens, types, strict=True)]
        model_fields = {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefix}
    elif sentencepiece.is_unigram(content):
        model_fields = sentencepiece.unigram_fields(content, parts.source)
        pieces = content["model"]["vocab"]
        model_fields["scores"] = [pieces[index][1] if index < len(pieces) else 0.0 for index in range(len(tokens))]
        types[model_fields["unknown_token_id"]] = UNKNOWN
    else:
        merges = [" ".join(pair) for pair in content["model"].get("merges", ())]
        name = _known_name(content, parts.source)
        model_fields = {"model": "gpt2", "pre": name, "merges": merges, "add_space_prefix": False}
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
    model = content["model"]
    for name, candidate in PRE_TOKENIZERS.items() if model["type"] == "BPE" and content["normalizer"] is None else ():
        probe = Tokenizer(models.BPE())
        probe.pre_tokenizer = candidate.build()
        same_merging = model.get("ignore_merges", False) == candidate.whole_words
        if same_merging and state(probe.pre_tokenizer) == content["pre_tokenizer"]:
            return name
    raise TokenizerError(
        f"{source}: only byte-level BPE tokenizers with a pre-tokenizer of {', '.join(PRE_TOKENIZERS)} and no "
        "normalizer, and SentencePiece ones, can be written into a GGUF file; export a Hugging Face directory instead"
    )
