"""Small corpora for the tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from bedplate.core.files import atomic_write
from bedplate.data.corpus.shards import CorpusManifest, ShardWriter, SourceEntry, TokenizerEntry
from bedplate.text.directory import TokenizerParts
from bedplate.text.tokenizer import Tokenizer

END = "<|endoftext|>"


def byte_tokenizer() -> Tokenizer:
    """One token for each byte, and an end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(END, special=True, normalized=False)])
    return Tokenizer(TokenizerParts(backend, {"eos_token": END}, (256,), None, "made"))


def write_corpus(
    directory: Path, sources: Mapping[str, Sequence[str]], *, valid: int = 0, shards: int = 1, dtype: str = "uint16"
) -> Path:
    """A corpus of texts, one token a byte. valid: so many last documents of each source; shards: of a train split."""
    tokenizer = byte_tokenizer()
    assert tokenizer.eos_id is not None
    tokenizer_entry = TokenizerEntry(
        tokenizer_id=tokenizer.identity, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id
    )
    source_entries: list[SourceEntry] = []
    for name, texts in sources.items():
        splits: dict = {}
        for split, part, count in (
            ("train", texts[: len(texts) - valid], shards),
            ("valid", texts[len(texts) - valid :], 1),
        ):
            splits[split] = tuple(
                _shard(directory, f"shards/{name}-{split}-{k:05}.ds", part[k::count], tokenizer, tokenizer_entry, dtype)
                for k in range(count)
                if part
            )
        all_shards = [shard for shards_ in splits.values() for shard in shards_]
        totals = {key: sum(getattr(shard, key) for shard in all_shards) for key in ("documents", "tokens", "bytes")}
        source_entries.append(SourceEntry(name=name, splits=splits, **totals))
    manifest = CorpusManifest(recipe="0" * 64, tokenizer=tokenizer_entry, dtype=dtype, sources=tuple(source_entries))  # pyright: ignore
    tokenizer.save(directory)
    atomic_write(directory / "corpus.json", manifest.model_dump_json(indent=2))
    return directory


def _shard(
    directory: Path, file: str, texts: Sequence[str], tokenizer: Tokenizer, tokenizer_entry: TokenizerEntry, dtype: str
):
    with ShardWriter(directory, file, tokenizer_entry, dtype) as writer:
        for text in texts:
            writer.write(tokenizer.encode(text), len(text.encode()))
    assert writer.shard is not None
    return writer.shard
