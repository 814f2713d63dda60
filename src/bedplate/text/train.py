"""Training of byte-level BPE vocabularies (Sennrich et al., https://arxiv.org/abs/1508.07909; bytes: GPT-2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from bedplate.core.errors import TokenizerError
from bedplate.text.tokenizer import Tokenizer
from bedplate.text.tokenizer_parts import TokenizerParts

END = "<|endoftext|>"
BYTES = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int, special: Sequence[str] = ()) -> Tokenizer:
    """A vocabulary of so many tokens, special ones included, of some texts: the end of a document first, then
    `special`, then the bytes, then what is merged most often. Split before merging as SmolLM's and GPT-2's are (digits
    one by one), which GGUF files can say. A small text may give a smaller vocabulary.

    Raises TokenizerError for a size without room for merges, or special tokens that are named twice.
    """
    controls = [END, *special]
    if len(set(controls)) < len(controls):
        raise TokenizerError(f"the special tokens {', '.join(controls)} are not all different")
    if vocab_size <= BYTES + len(controls):
        raise TokenizerError(
            f"a vocabulary of {vocab_size} has no room for {BYTES} bytes, {len(controls)} special tokens and merges"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[tokenizers.AddedToken(one, special=True, normalized=False) for one in controls],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    end = controls.index(END)  # special tokens come first
    return Tokenizer(
        TokenizerParts(backend, {"eos_token": END, "bos_token": END}, (end,), None, "the trained tokenizer")
    )
