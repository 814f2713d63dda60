"""Shards against datatrove's own reader and writer, and corpora whose files were changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tests.data.corpus.made import byte_tokenizer, write_corpus

from bedplate.core.errors import DataError, TokenizerError, UsageError
from bedplate.core.files import sha256_file
from bedplate.data.corpus.shards import Corpus, ShardWriter, TokenizerEntry

TEXTS = ["one", "", "a longer document", "naïve €", "x" * 300, "last"]
TOKENIZER_ENTRY = TokenizerEntry(tokenizer_id="0" * 64, vocab_size=70_000, eos_id=69_999)


@pytest.mark.parametrize(("dtype", "size"), [("uint16", 2), ("uint32", 4)])
def test_datatroves_reader_sees_what_was_written(tmp_path: Path, dtype: str, size: int) -> None:
    dataset = pytest.importorskip("datatrove.utils.dataset")
    write_corpus(tmp_path, {"text": TEXTS}, dtype=dtype)
    path, length = tmp_path / "shards/text-train-00000.ds", 9
    read = dataset.DatatroveFileDataset(str(path), length, token_size=size, return_positions=True)
    whole = [id for text in TEXTS for id in [*text.encode(), 256]]
    ids = byte_tokenizer().encode("".join(TEXTS))
    windows = [read[i] for i in range(len(read))]  # past its end it begins again
    token_ids = [token for window in windows for token in window["input_ids"].tolist()]
    documents = Corpus.open(tmp_path).documents("text", "train")
    ours = np.concatenate(list(documents))
    assert len(ours) == len(whole)
    assert token_ids == ours[: len(token_ids)].tolist()
    assert len(token_ids) == len(whole) // (length + 1) * (length + 1)
    assert ours[ours != 256].tolist() == ids
    starts = [position == 0 for window in windows for position in window["positions"].tolist()]
    firsts = np.zeros(len(whole), bool)
    firsts[[0, *np.cumsum(documents.lengths())[:-1]]] = True
    inner = [i for i in range(len(starts)) if i % (length + 1)]  # its windows begin at 0 wherever they are cut
    assert [starts[i] for i in inner] == firsts[inner].tolist()


def test_datatroves_writer_writes_the_same_bytes(tmp_path: Path) -> None:
    tokens = pytest.importorskip("datatrove.pipeline.tokens.tokenizer")
    io = pytest.importorskip("datatrove.io")
    file = tokens.TokenizedFile(io.get_datafolder(str(tmp_path / "theirs")), "a.ds", token_size=4)
    with ShardWriter(tmp_path, "a.ds", TOKENIZER_ENTRY, "uint32") as ours:
        for ids in ([1, 66_000, 3], [], [5]):
            file.write([*ids, TOKENIZER_ENTRY.eos_id], None)
            ours.write(ids, 0)
    file.close()
    for name in ("a.ds", "a.ds.index"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


def test_documents_over_several_shards(tmp_path: Path) -> None:
    texts = [f"document {n} " * (n % 7 + 1) for n in range(40)]
    corpus = Corpus.open(write_corpus(tmp_path, {"a": texts, "b": ["only", "held"]}, valid=1, shards=3), "hashes")
    assert list(corpus.sources) == ["a", "b"]
    documents = corpus.documents("a", "train")
    decode = byte_tokenizer().decode
    order = [text for k in range(3) for text in texts[:39][k::3]]
    assert [decode(ids[:-1].tolist()) for ids in documents] == order
    assert all(ids[-1] == corpus.eos_id for ids in documents)
    assert documents.lengths().tolist() == [len(ids) for ids in documents]
    indices = np.array([38, 0, 12, 13, 14, 25])
    assert documents.lengths(indices).tolist() == [len(documents[int(i)]) for i in indices]
    assert corpus.tokens("a", "train") == int(documents.lengths().sum())
    assert decode(corpus.documents("b", "valid")[-1][:-1].tolist()) == "held"
    with pytest.raises(IndexError):
        documents[39]
    with pytest.raises(DataError, match="no source 'c'; it has a, b"):
        corpus.documents("c", "train")


def test_a_changed_shard_is_named_with_both_hashes(tmp_path: Path) -> None:
    write_corpus(tmp_path, {"text": TEXTS})
    path = tmp_path / "shards/text-train-00000.ds"
    was, content = sha256_file(path), path.read_bytes()
    path.write_bytes(b"\1" + content[1:])
    Corpus.open(tmp_path)
    with pytest.raises(DataError, match=f"text-train-00000.ds is not what.*{sha256_file(path)}.*{was}"):
        Corpus.open(tmp_path, verify="hashes")
    path.write_bytes(content[:-2])
    with pytest.raises(DataError, match=f"text-train-00000.ds is short.*{sha256_file(path)}.*{was}"):
        Corpus.open(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=f"text-train-00000.ds is missing.*{was}"):
        Corpus.open(tmp_path)
    path.write_bytes(content)
    index = path.with_name(path.name + ".index")
    index.write_bytes(b"\7" + index.read_bytes()[1:])
    with pytest.raises(DataError, match=r"ds\.index is not what was written"):
        Corpus.open(tmp_path, verify="hashes")


def test_another_tokenizer_or_manifest_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path, {"text": TEXTS})
    manifest = json.loads((tmp_path / "corpus.json").read_text())
    cases = {
        "documents is 7, but its shards have 6": {"documents": 7},
        "bytes is 1, but": {"bytes": 1},
        "unknown key 'extra'": {"extra": 1},
    }
    for message, change in cases.items():
        changed = {**manifest, "sources": [{**manifest["sources"][0], **change}]}
        (tmp_path / "corpus.json").write_text(json.dumps(changed))
        with pytest.raises(DataError, match=message):
            Corpus.open(tmp_path)
    changed_manifest = {**manifest, "tokenizer": {**manifest["tokenizer"], "vocab_size": 300}}
    (tmp_path / "corpus.json").write_text(json.dumps(changed_manifest))
    with pytest.raises(TokenizerError, match=r"257 ids, corpus.json says .* with 300"):
        Corpus.open(tmp_path)
    (tmp_path / "corpus.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        Corpus.open(tmp_path)
    with pytest.raises(DataError, match="not a corpus directory"):
        Corpus.open(tmp_path / "shards")


def test_ids_out_of_range_and_a_full_disk(tmp_path: Path) -> None:
    def write(file: str, ids: list[int], times: int) -> None:
        with ShardWriter(tmp_path, file, TOKENIZER_ENTRY, "uint32") as writer:
            for _ in range(times):
                writer.write(ids, 0)

    with pytest.raises(DataError, match="id 70000 is not in the vocabulary"):
        write("a.ds", [1, 70_000], 1)
    assert not any(tmp_path.iterdir())
    if os.path.exists("/dev/full"):
        (tmp_path / "b.ds.part").symlink_to("/dev/full")
        with pytest.raises(UsageError, match=r"cannot write .*b.ds: No space left on device; make room"):
            write("b.ds", [1, 2, 3], 5_000)
    assert not (tmp_path / "b.ds").exists()


def test_an_index_that_runs_backwards_is_named(tmp_path: Path) -> None:
    corpus = Corpus.open(write_corpus(tmp_path, {"a": ["one", "two", "three"]}))
    shard = corpus.shards("a", "train")[0]
    index = tmp_path / f"{shard.file}.index"
    ends = np.fromfile(index, "<u8")
    ends[[0, 1]] = ends[[1, 0]]
    ends.tofile(index)
    documents = Corpus.open(tmp_path).documents("a", "train")  # of the same size: only what is read can tell
    for read in (lambda: documents[1], documents.lengths, lambda: documents.lengths(np.array([1]))):
        with pytest.raises(DataError, match=r"\.ds\.index: the ends of its documents are not in increasing order"):
            read()
