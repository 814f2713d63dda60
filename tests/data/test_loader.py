"""Rows of a corpus: every token once an epoch, documents whole, one order for any number of ranks, resumed anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.data.corpus.made import byte_tokenizer, write_corpus

from bedplate.core.errors import DataError, TrainingError
from bedplate.data.corpus.shards import Corpus
from bedplate.data.loader import CorpusLoader, row_table
from bedplate.data.mixture import MixtureConfig
from bedplate.training.sources import CorpusSource

ROW = 64
A = [f"a{n} " * (n % 23 + 1) for n in range(150)]
B = [f"b{n};" * (n % 40 + 1) for n in range(60)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus.open(write_corpus(tmp_path_factory.mktemp("corpus"), {"a": A, "b": B}, shards=2))


def texts_of(loader: CorpusLoader, indices: range) -> dict[str, str]:
    """What the rows hold of each document, put together again."""
    parts: dict[str, dict[int, bytes]] = {}
    for index in indices:
        read = loader.read([index])
        for piece in read.rows[0]:
            ids = read.documents[piece.document][piece.start : piece.stop].tolist()
            text = byte_tokenizer().decode([i for i in ids if i != 256]).encode()
            assert piece.start not in parts.setdefault(read.names[piece.document], {})
            parts[read.names[piece.document]][piece.start] = text
    return {
        name: b"".join(stretches[start] for start in sorted(stretches)).decode() for name, stretches in parts.items()
    }


def test_an_epoch_holds_every_document_once(corpus: Corpus) -> None:
    loader = CorpusLoader(corpus, ROW, seed=3)
    texts = texts_of(loader, range(loader.total))
    assert sorted(texts.values()) == sorted([*A, *B])
    tokens = sum(layout.tokens for layout in loader.layouts.values())
    assert tokens == sum(corpus.tokens(name, "train") for name in "ab")
    assert sum(layout.padding for layout in loader.layouts.values()) == loader.total * ROW - tokens
    assert loader.drawn(loader.total) == {name: layout.rows for name, layout in loader.layouts.items()}


def test_by_default_each_source_is_seen_once_however_full_its_rows_are(tmp_path: Path) -> None:
    sources = {"full": ["x" * (ROW - 1)] * 40, "half": ["y" * (ROW // 2 + 8)] * 40}
    loader = CorpusLoader(Corpus.open(write_corpus(tmp_path, sources)), ROW)
    assert loader.total == 80
    assert loader.drawn(80) == {"full": 40, "half": 40}
    assert {loader.place(index).epoch for index in range(80)} == {0}
    weighted = CorpusLoader(loader.corpus, ROW, mixture=MixtureConfig(weights={"full": 3, "half": 1}))
    assert weighted.drawn(80) == {"full": 60, "half": 20}


def test_only_documents_longer_than_a_row_are_split(corpus: Corpus) -> None:
    table = row_table(corpus, "b", "train", ROW, seed=0)
    lengths = corpus.documents("b", "train").lengths()
    cut = {p.document for row in table for p in row if len(p) < lengths[p.document]}
    assert cut == set(np.flatnonzero(lengths > ROW).tolist())
    assert all(sum(map(len, row)) <= ROW for row in table)
    cropped = row_table(corpus, "b", "train", ROW, seed=0, long="crop").layout
    dropped = row_table(corpus, "b", "train", ROW, seed=0, long="drop").layout
    long = lengths[lengths > ROW]
    assert cropped.lost_tokens == int((long - ROW).sum())
    assert dropped.lost_tokens == int(long.sum())
    assert cropped.long_documents == dropped.long_documents == len(long)
    assert dropped.tokens + dropped.lost_tokens == int(lengths.sum())


def test_a_second_epoch_is_in_another_order_and_a_seed_decides(corpus: Corpus) -> None:
    epoch_rows = CorpusLoader(corpus, ROW).total
    config = MixtureConfig(epochs=2, weights={"a": 1, "b": 0})
    rows = len(row_table(corpus, "a", "train", ROW, seed=0))
    loader = CorpusLoader(corpus, ROW, total=2 * rows, mixture=config)
    places = [loader.place(i) for i in range(2 * rows)]
    first, second = ([p.row for p in places if p.epoch == epoch] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(rows))
    assert first != second
    repeated, reseeded = CorpusLoader(corpus, ROW), CorpusLoader(corpus, ROW, seed=1)
    order = [repeated.place(i) for i in range(epoch_rows)]
    assert order == [CorpusLoader(corpus, ROW).place(i) for i in range(epoch_rows)]
    assert order[:20] != [reseeded.place(i) for i in range(20)]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_world_size_sees_one_order(corpus: Corpus, world: int) -> None:
    loader = CorpusLoader(corpus, ROW, seed=5)
    alone = [np.concatenate([b.tokens.numpy() for b in step]) for step in CorpusSource(loader, 7)]
    ranks = [CorpusSource(loader, 7, micro_rows=2, shard=(rank, world)) for rank in range(world)]
    assert [rank.steps for rank in ranks] == [len(alone)] * world
    for whole, *shares in zip(alone, *ranks, strict=True):
        assert np.array_equal(whole, np.concatenate([b.tokens.numpy() for share in shares for b in share]))


def test_a_batch_learns_within_documents_and_resumes(corpus: Corpus) -> None:
    loader = CorpusLoader(corpus, ROW)
    source = CorpusSource(loader, 4)
    steps = list(source)
    with pytest.raises(StopIteration):
        next(iter(source))
    for (batch,) in steps[:5]:
        tokens, targets, segments = batch.tokens.numpy(), batch.targets.numpy(), batch.segments.numpy()
        inner = (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] > 0)
        assert np.array_equal(targets[:, :-1][inner], tokens[:, 1:][inner])
        assert (targets[segments < 0] == -100).all()
        assert (targets[tokens == 256] == -100).all()  # nothing follows an end
        starts = np.diff(segments, prepend=0, axis=1) != 0
        assert (batch.positions.numpy()[starts] == 0).all()
    resumed = CorpusSource(CorpusLoader(corpus, ROW), 4)
    resumed.load_state({"rows": 12})
    assert resumed.identity == source.identity
    assert np.array_equal(next(iter(resumed))[0].tokens.numpy(), steps[3][0].tokens.numpy())
    assert resumed.state() == {"rows": 16}
    for state in ({"rows": 3}, {"epoch": 0, "step": 1}, {"rows": True}):
        with pytest.raises(TrainingError, match="not this source's"):
            resumed.load_state(state)


def test_what_cannot_be_read(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no documents to read in its valid split"):
        CorpusLoader(corpus, ROW, split="valid")
    with pytest.raises(DataError, match="a row of 1 tokens"):
        CorpusLoader(corpus, 1)
    with pytest.raises(DataError, match="too few for one step of 100000 rows"):
        CorpusSource(CorpusLoader(corpus, ROW), 100_000)
    damaged = Corpus.open(write_corpus(tmp_path, {"c": ["some text"]}))
    path = tmp_path / "shards/c-train-00000.ds"
    path.write_bytes(b"\xff\x7f" + path.read_bytes()[2:])
    with pytest.raises(DataError, match=r"c-train-00000.ds: document 0 holds the id 32767, but the vocabulary has 257"):
        CorpusLoader(damaged, ROW).read([0])


def test_tables_are_kept_and_a_corpus_may_be_read_only(corpus: Corpus, tmp_path: Path) -> None:
    place = corpus.directory / "rows"
    CorpusLoader(corpus, 48)
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*.bin")}
    assert before
    CorpusLoader(corpus, 48)
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*.bin")} == before
    write_corpus(tmp_path / "c", {"a": A})
    (tmp_path / "c" / "rows").write_text("in the way")
    loader = CorpusLoader(Corpus.open(tmp_path / "c"), ROW)
    assert sorted(texts_of(loader, range(loader.total)).values()) == sorted(A)
