"""A tiny random T5 base on disk, with a Unigram tokenizer as T5's is: whole, but fast."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import T5Config, T5ForConditionalGeneration

SPECIAL = ("<pad>", "</s>", "<unk>")


def unigram(texts: Iterable[str], size: int = 200) -> Tokenizer:
    """A tokenizer of SentencePiece's Unigram kind that ends every text with </s>."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def write_tiny_t5(directory: Path, texts: Iterable[str], *, flan: bool = True, size: int = 48) -> Path:
    """A Hugging Face directory of a random T5 in Flan's shape (gated), or T5's own."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = unigram(texts)
    shape = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if flan else {}
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=size,
        d_kv=12,
        d_ff=2 * size,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        **shape,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    roles = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", **roles}))
    return directory
