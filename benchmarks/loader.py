"""The loader: tokens a second of packed, masked batches from a corpus on disk, against the rate of a training step, and
memory as the corpus grows.

The corpus is of random ids in documents of 20 to 4,000 tokens. The step is a forward and backward pass of a small
decoder on the same batches. The peer is torch's DataLoader (no workers) over datatrove's own data set, shuffled, which
neither packs nor masks.

usage: loader.py [--tokens 20000000] [--row 1024] [--rows 16] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bedplate.core.files import atomic_write
from bedplate.data.corpus.shards import Corpus, CorpusManifest, ShardWriter, SourceEntry, TokenizerEntry
from bedplate.data.loader import CorpusLoader
from bedplate.text.bpe import train_bpe
from comparison import Row, interleaved, need, report, start

GOAL = 20.0
STEPS = 20


def write(place: Path, tokens: int) -> Path:
    tokenizer = train_bpe(["some words to train on " * 40], 300, "made")
    assert tokenizer.eos_id is not None
    tokenizer.save(place)
    tokenizer_entry = TokenizerEntry(
        tokenizer_id=tokenizer.identity, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id
    )
    draw = np.random.Generator(np.random.PCG64(0))
    with ShardWriter(place, "shards/text-train-00000.ds", tokenizer_entry, "uint16") as writer:
        while writer.tokens < tokens:
            length = int(np.clip(draw.lognormal(6, 1), 20, 4000))
            writer.write(draw.integers(1, tokenizer_entry.vocab_size, length), length)
    assert writer.shard is not None
    shard = writer.shard
    source = SourceEntry(
        name="text",
        documents=shard.documents,
        tokens=shard.tokens,
        bytes=shard.bytes,
        splits={"train": (shard,), "valid": ()},
    )
    manifest = CorpusManifest(recipe="0" * 64, tokenizer=tokenizer_entry, dtype="uint16", sources=(source,))
    atomic_write(place / "corpus.json", manifest.model_dump_json())
    return place


def memory(place: Path, row: int, rows: int) -> float:
    """Peak of this process beyond its imports, in MB, anonymous memory alone: mapped pages are the system's cache."""
    from bedplate.training.sources import CorpusSource

    def resident_mb() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 1024

    before = resident_mb()
    steps = iter(CorpusSource(CorpusLoader(Corpus.open(place), row, quiet=True), rows))
    peak = 0.0
    for _ in range(200):
        next(steps)
        peak = max(peak, resident_mb() - before)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--row", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    if "--memory" in sys.argv:
        parser.add_argument("--memory")
        options = parser.parse_args()
        print(json.dumps(memory(Path(options.memory), options.row, options.rows)))
        return
    options = start(parser).options
    version = need("datatrove", "datatrove")
    with tempfile.TemporaryDirectory() as place:
        report(compare(Path(place), options, version))


def compare(place: Path, options: argparse.Namespace, version: str) -> list[Row]:
    import torch
    from datatrove.utils.dataset import DatatroveFileDataset
    from torch.utils.data import DataLoader

    from bedplate.models.decoder import Decoder
    from bedplate.models.specs.transformer import AttentionSpec, FeedForwardSpec, PositionSpec, Rope, TransformerSpec
    from bedplate.training.objectives.language import NextToken
    from bedplate.training.sources import CorpusSource

    corpus = write(place / "large", options.tokens)
    began = time.perf_counter()
    loader = CorpusLoader(Corpus.open(corpus), options.row, quiet=True)
    print(f"{options.tokens:,} tokens laid into rows in {time.perf_counter() - began:.2f} s: {loader.layouts}")
    source = CorpusSource(loader, options.rows)
    steps = iter(source)
    dataset = DatatroveFileDataset(str(corpus / "shards/text-train-00000.ds"), options.row, token_size=2)
    peer = iter(DataLoader(dataset, batch_size=options.rows, shuffle=True))

    def ours() -> None:
        for _ in range(STEPS):
            next(steps)

    def theirs() -> None:
        for _ in range(STEPS):
            next(peer)

    spec = TransformerSpec(
        kind="decoder",
        vocab_size=512,
        hidden_size=128,
        layers=4,
        context_length=options.row,
        attention=AttentionSpec(heads=4, kv_heads=4, head_dim=32),
        feedforward=FeedForwardSpec(size=384),
        position=PositionSpec(rope=Rope(10_000.0)),
    )
    model = Decoder(spec).train()

    def step() -> None:
        for batch in next(steps):
            NextToken()({"policy": model}, batch)["next_token"].total.backward()
        model.zero_grad(set_to_none=True)

    seconds = interleaved({"ours": ours, "theirs": theirs, "step": step}, options.repeats)
    tokens = options.row * options.rows
    rate, peer_rate, trained = (
        STEPS * tokens / seconds["ours"],
        STEPS * tokens / seconds["theirs"],
        tokens / seconds["step"],
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"a step of {parameters / 1e6:.1f} M parameters: {trained:,.0f} tokens/s", flush=True)
    small = write(place / "small", options.tokens // 10)
    sizes = ["--row", str(options.row), "--rows", str(options.rows)]
    peaks = [
        float(json.loads(subprocess.run([sys.executable, __file__, "--memory", str(directory), *sizes], check=True,
                                        capture_output=True, text=True).stdout.splitlines()[-1]))
        for directory in (corpus, small)
    ]  # fmt: skip
    return [
        Row("loader", rate, peer_rate, "tokens/s", "datatrove's data set", version, goal=1.0),
        Row("loader against a step", rate, trained, "tokens/s", "a step", torch.__version__, goal=GOAL),
        Row(
            "loader's memory, ten times the corpus", peaks[0], peaks[1], "MB", "a tenth of it", "", lower_is_better=True
        ),
    ]


if __name__ == "__main__":
    main()
