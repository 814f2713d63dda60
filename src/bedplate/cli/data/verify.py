"""`bedplate data verify`: whether every shard of a corpus is as it was written."""

from __future__ import annotations

from bedplate.cli.options import CorpusDirectory


def verify(
    directory: CorpusDirectory,
) -> None:
    """Whether every shard of a corpus is as it was written: all is read and held against the hashes in corpus.json."""
    from bedplate.data.corpus.shards import Corpus

    corpus = Corpus.open(directory, verify="hashes")
    count = sum(1 for _ in corpus.manifest.shards())
    tokens = sum(source.tokens for source in corpus.manifest.sources)
    print(f"{directory}: {count} shards with {tokens:,} tokens are whole; the corpus is {corpus.sha256}")
