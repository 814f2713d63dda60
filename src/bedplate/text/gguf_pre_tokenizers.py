"""The pre-tokenizers of byte-level BPE vocabularies in GGUF files, by the names that the files give them.

llama.cpp is the reference: what it does with a name is what is done here (its `llama-vocab.cpp`), also where the
tokenizer.json of the same model normalises text first.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

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


_BY_GPT2 = PreTokenizer(byte_regex=True)
_BY_DIGITS = PreTokenizer(digits=True, byte_regex=True)
_BY_LLAMA3 = PreTokenizer(splits=(_LLAMA3,), whole_words=True, bos=True)
_BY_LLAMA3_MERGED = PreTokenizer(splits=(_LLAMA3,))
_BY_QWEN2 = PreTokenizer(splits=(_QWEN2,))
_BY_GPT4O = PreTokenizer(splits=(_GPT4O,))
_BY_DEEPSEEK3 = PreTokenizer(splits=(r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer(splits=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _BY_GPT2,
    "gpt2": _BY_GPT2,
    "phi-2": _BY_GPT2,
    "mpt": _BY_GPT2,
    "olmo": _BY_GPT2,
    "jais": _BY_GPT2,
    "exaone4": _BY_GPT2,
    "smollm": _BY_DIGITS,
    "starcoder": _BY_DIGITS,
    "refact": _BY_DIGITS,
    "command-r": _BY_DIGITS,
    "codeshell": _BY_DIGITS,
    "exaone": _BY_DIGITS,
    "minerva-7b": _BY_DIGITS,
    "llama-bpe": _BY_LLAMA3,
    "llama3": _BY_LLAMA3,
    "llama-v3": _BY_LLAMA3,
    "falcon3": _BY_LLAMA3,
    "falcon-h1": _BY_LLAMA3,
    "pixtral": _BY_LLAMA3,
    "lfm2": _BY_LLAMA3,
    "dbrx": _BY_LLAMA3_MERGED,
    "smaug-bpe": _BY_LLAMA3_MERGED,
    "glm4": PreTokenizer(splits=(_LLAMA3,), whole_words=True),
    "qwen2": _BY_QWEN2,
    "deepseek-r1-qwen": _BY_QWEN2,
    "stablelm2": _BY_QWEN2,
    "megrez": _BY_QWEN2,
    "hunyuan": _BY_QWEN2,
    "grok-2": _BY_QWEN2,
    "qwen35": PreTokenizer(splits=(_QWEN35,)),
    "tekken": PreTokenizer(splits=(_TEKKEN,), whole_words=True, bos=True),
    "gpt-4o": _BY_GPT4O,
    "llama4": _BY_GPT4O,
    "kanana2": _BY_GPT4O,
    "minimax-m2": _BY_GPT4O,
    "deepseek-v3": _BY_DEEPSEEK3,
    "hunyuan-dense": _BY_DEEPSEEK3,
}
