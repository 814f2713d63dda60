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
