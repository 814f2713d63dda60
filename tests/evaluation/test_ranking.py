"""Search tasks: ranked documents against scikit-learn's nDCG, targets that must exist, bases that embed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from sklearn.metrics.pairwise import cosine_similarity
from tests.tiny import write_tiny_base

import bedplate
from bedplate.adaptation.postprocess.evaluate import evaluate
from bedplate.core.errors import ConfigError, DataError, UsageError
from bedplate.evaluation.examples import Example, load_examples
from bedplate.evaluation.harness import evaluate_predictions
from bedplate.evaluation.ledger import TestLedger
from bedplate.evaluation.metrics import METRICS, ndcg_at, recall_at, reciprocal_rank_at
from bedplate.evaluation.ranking import RankedDocuments, Ranker
from bedplate.evaluation.task import load_task
from bedplate.inference.predict.local import LocalModel

IDS = [f"d{i}" for i in range(15)]
WORDS = ("apple", "bridge", "cloud", "dune", "ember", "fjord", "grove", "harbour")


@given(st.permutations(IDS), st.sets(st.sampled_from(IDS), min_size=1), st.integers(1, 15))
@settings(max_examples=60, deadline=None)
def test_ndcg_matches_scikit_learn(ranked: list[str], relevant: set[str], k: int) -> None:
    score = {name: float(len(ranked) - place) for place, name in enumerate(ranked)}
    peer = ndcg_score([[float(name in relevant) for name in IDS]], [[score[name] for name in IDS]], k=k)
    target, prediction = json.dumps(sorted(relevant)), json.dumps(ranked)
    assert ndcg_at(k)(target, prediction) == pytest.approx(peer)
    # by their definitions
    first = min(ranked.index(name) for name in relevant)
    assert recall_at(k)(target, prediction) == pytest.approx(sum(x in relevant for x in ranked[:k]) / len(relevant))
    assert reciprocal_rank_at(k)(target, prediction) == (1 / (first + 1) if first < k else 0.0)


def test_nothing_parsed_scores_nothing() -> None:
    assert {METRICS[name].row('["a"]', None) for name in METRICS if METRICS[name].outputs == ("embedding",)} == {0.0}


class Words:
    """Embeds a text as the counts of eight words; remembers how it was asked."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def embed(self, rows: Sequence[str], /) -> list[tuple[float, ...]]:
        self.batches.append(len(rows))
        return [tuple(float(text.split().count(word)) for word in WORDS) for text in rows]


def test_documents_are_ranked_by_cosine_ties_in_the_files_order() -> None:
    rng = np.random.default_rng(0)
    texts = {f"d{i}": " ".join(rng.choice(WORDS, 5)) for i in range(600)}
    queries = [" ".join(rng.choice(WORDS, 3)) for _ in range(20)]
    model = Words()
    rankings = [json.loads(answer) for answer in Ranker(model, texts).predict([{"q": text} for text in queries])]
    assert model.batches == [256, 256, 88, 20]
    similarities = cosine_similarity(Words().embed(queries), Words().embed(list(texts.values())))
    for ranked, scores in zip(rankings, similarities, strict=True):
        assert len(ranked) == 100
        ranked_scores = np.array([scores[int(name[1:])] for name in ranked])
        assert ranked_scores == pytest.approx(np.sort(scores)[::-1][:100])
        for a, b, x, y in zip(ranked, ranked[1:], ranked_scores, ranked_scores[1:], strict=False):
            assert x > y - 1e-6
            if len(set(texts[a].split())) == 1 and texts[a] == texts[b]:
                assert int(a[1:]) < int(b[1:])


def write(
    directory: Path, targets: list[Any] | None = None, documents: list[dict] | None = None, **output: Any
) -> Path:
    """50 queries, each a document's first two words; every target names that document."""
    texts = [f"{a} {b} {a}" for a in WORDS for b in WORDS if a != b][:50]
    if documents is None:
        documents = [{"id": i, "text": text} for i, text in enumerate(texts)]
    if targets is None:
        targets = [i if i % 2 else [str(i)] for i in range(50)]
    rows = [
        {"q": text.rsplit(" ", 1)[0] + f" {i}", "y": y} for i, (text, y) in enumerate(zip(texts, targets, strict=False))
    ]
    for name, content in (("rows", rows), ("documents", documents)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
    task = {
        "task": "search",
        "inputs": {"q": {"column": "q"}},
        "output": {"kind": "embedding", "documents": {"source": "documents.jsonl"}, **output},
        "data": {"source": "rows.jsonl", "target": "y", "split": {"train": 0.4, "valid": 0.3, "test": 0.3}},
        "metric": "ndcg@10",
    }
    path = directory / "task.yaml"
    path.write_text(json.dumps(task), "utf-8")
    return path


def test_what_embeds_is_evaluated_on_its_ranking(tmp_path: Path) -> None:
    result = evaluate(Words(), write(tmp_path))
    assert result.n == 15
    # "a b" is as near to "a b a" as to "b a b": of the two, the right one comes first or second
    assert {round(row.score, 3) for row in result.rows} <= {1.0, 0.631}
    assert 0.6 < result.estimate < 1
    assert (result.scoring, result.output, result.unparsed) == ("real", "embedding", 0)
    ranked = json.loads(result.rows[0].prediction or "")
    assert len(set(ranked)) == 50
    recall = evaluate(Words(), load_task(tmp_path / "task.yaml", ['metric="recall@10"']))
    assert recall.estimate == 1.0
    with pytest.raises(UsageError, match="cannot be evaluated"):
        evaluate(object(), tmp_path / "task.yaml")  # type: ignore[arg-type]


def test_a_base_ranks_with_its_own_vectors(tmp_path: Path) -> None:
    path, base = write(tmp_path), write_tiny_base(tmp_path / "base")
    result = evaluate(base, path, split="test")
    documents = [json.loads(line)["text"] for line in (tmp_path / "documents.jsonl").read_text("utf-8").splitlines()]
    queries = [e.inputs["q"] for e in load_examples(load_task(path)).test.open("to rank")]
    with bedplate.load(base) as model:
        similarities = model.embed(queries) @ model.embed(documents).T
    for row, scores in zip(result.rows, similarities, strict=True):
        ranked_scores = [scores[int(name)] for name in json.loads(row.prediction or "")]
        assert ranked_scores == pytest.approx(np.sort(scores)[::-1], abs=1e-5)


def test_what_evaluate_loads_it_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, base, closed = write(tmp_path), write_tiny_base(tmp_path / "base"), list[LocalModel]()
    close = LocalModel.close

    def record_close(self: LocalModel) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(LocalModel, "close", record_close)
    evaluate(base, path)
    assert len(closed) == 1
    with pytest.raises(UsageError, match="has no `predict`"):
        evaluate(base, path, data=replace(load_examples(load_task(path)), documents=None))
    assert len(closed) == 2
    with bedplate.load(base) as model:
        assert isinstance(model, LocalModel)
        evaluate(model, path)
        assert len(closed) == 2  # what somebody else opened stays open


def test_other_documents_are_another_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same base asked again about the same rows spends nothing; among other documents it does. Read once each."""
    path, base = write(tmp_path), write_tiny_base(tmp_path / "base")
    read, reads = RankedDocuments.read, list[Path]()
    monkeypatch.setattr(
        RankedDocuments, "read", lambda self, directory: reads.append(directory) or read(self, directory)
    )
    rows = load_examples(load_task(path)).test.row_hashes

    def openings() -> int:
        return len(TestLedger().path.read_text("utf-8").splitlines())

    evaluate(base, path, split="test")
    assert len(reads) == 2  # of them one here
    before = openings()
    evaluate(base, path, split="test")
    assert openings() == before
    with (tmp_path / "documents.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "more", "text": "fjord fjord"}) + "\n")
    evaluate(base, path, split="test")
    assert openings() == before + 1
    assert TestLedger().open("later", rows, task="t", reason="verdict").exploratory


@pytest.mark.parametrize("answer", ['["a", "a", "b"]', "a", '["a"', '{"a": 1}', "[1]", "[" * 100_000])
def test_what_is_no_ranking_is_unparsed(tmp_path: Path, answer: str) -> None:
    """A document that is ranked twice would score twice: nDCG of 1.63."""
    task = load_task(write(tmp_path))
    rows = [Example(str(i), {"q": str(i)}, '["a"]', str(i), str(i)) for i in range(2)]
    evaluation = evaluate_predictions(task, rows, [answer, '["a","b"]'])
    assert ([row.score for row in evaluation.rows], evaluation.unparsed) == ([0.0, 1.0], 1)
    assert evaluation.rows[1].prediction == '["a", "b"]'


def test_targets_are_ids_lists_or_separated_text(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, [f"{i}; {(i + 1) % 50}" for i in range(50)], separator=";"))
    loaded = load_examples(task)
    assert all(len(json.loads(example.target)) == 2 for example in loaded.train)
    assert "file:documents.jsonl" in loaded.hashes
    before = task.hash
    assert load_task(write(tmp_path)).hash != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ["none"] * 50}, r"line 1: the target \(y\): names the document 'none', which is not among"),
        ({"targets": [[]] * 50}, r"line 1: the target \(y\): names no relevant document"),
        ({"targets": [True] * 50}, "line 1: .*names the document None"),
        ({"documents": [{"id": 0, "text": "a"}, {"id": 0, "text": "b"}]}, "line 2: the id '0' is on more than one"),
        ({"documents": [{"id": 0, "text": " "}]}, r"line 1: the text \(text\) of the document is missing"),
        ({"documents": [{"id": None, "text": "a"}]}, r"line 1: the id \(id\) of the document is missing"),
        ({"documents": [{"name": 0, "text": "a"}]}, "no column 'id'; the columns are name, text"),
    ],
)
def test_targets_and_documents_that_cannot_be_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_examples(load_task(write(tmp_path, **change)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["output.documents=null"], "an output of kind embedding needs `documents`, what is searched"),
        (
            ["output={kind: text, documents: {source: documents.jsonl}}", "metric=exact_match"],
            "belongs to outputs of",
        ),
        (["inputs={q: {column: q}, r: {column: y}}"], "has one input, the query"),
        (["metric=accuracy"], "'accuracy' does not fit an output of kind embedding; ndcg@10, mrr@10, recall@1"),
    ],
)
def test_the_task_file_says_what_does_not_fit(tmp_path: Path, overrides: list[str], message: str) -> None:
    path = write(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_task(path, overrides)
