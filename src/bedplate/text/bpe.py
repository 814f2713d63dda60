"""A byte-level BPE trained on texts (https://arxiv.org/abs/1508.07909, on bytes as GPT-2 has it).

Digits stand alone, as in PaLM (https://arxiv.org/abs/2204.02311, section 2.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from bedplate.core.errors import TokenizerError
from bedplate.text.directory import TokenizerParts
from bedplate.text.tokenizer import Tokenizer

END = "<|endoftext|>"
LEAST_IDS = 257


def train_bpe(texts: Iterable[str], vocab_size: int, source: str, special: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer of at most `vocab_size` ids: all bytes, the token that ends a text (id 0), `special` control tokens
    behind it, and merges. A text with few different words has fewer merges. `source`: for messages. TokenizerError for
    too few ids, or a control token that is named twice."""
    controls = [END, *special]
    if len(set(controls)) < len(controls):
        raise TokenizerError(f"the control tokens {', '.join(controls)} are not all different")
    if vocab_size < LEAST_IDS + len(special):
        raise TokenizerError(
            f"a byte-level vocabulary of {vocab_size} ids is not possible: 256 bytes and {', '.join(controls)} are "
            f"{LEAST_IDS + len(special)}"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(control, special=True, normalized=False) for control in controls],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    roles = {"bos_token": END, "eos_token": END}
    end = backend.token_to_id(END)
    assert end is not None
    return Tokenizer(TokenizerParts(backend, roles, (end,), None, source))
