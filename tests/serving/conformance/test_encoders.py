"""Sentence encoders, classifiers and cross-encoders over HTTP, against sentence-transformers and transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from tests.inference.predict.test_sentence import TEXTS, saved, write_body
from tests.serving.conftest import Server, running

from bedplate.serving.server.app import loaded_server
from bedplate.serving.settings.server_config import BaseConfig, ServerConfig

QUERY = "a lazy dog"


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    body = write_body(root / "body", "bert")
    prompts = {"query": "query: ", "document": "passage: a "}
    saved(body, root / "embedder", Pooling(48, "mean"), Dense(48, 20), Normalize(), prompts=prompts)
    dot = saved(body, root / "dot", Pooling(48, "cls"))
    dot.similarity_fn_name = "dot"
    dot.save(str(root / "dot"))
    labels = {0: "bad", 1: "fair", 2: "good"}
    write_body(root / "classifier", "bert, three labels", id2label=labels)
    write_body(root / "tagger", "bert, three labels", id2label=labels, problem_type="multi_label_classification")
    write_body(root / "judge", "bert, three labels", num_labels=1)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def encoders(directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    bases = tuple(BaseConfig(source=str(path), name=name, dtype="float32") for name, path in directories.items())
    config = ServerConfig(bases=bases, state=tmp_path_factory.mktemp("encoders-state"))
    with loaded_server(config, []) as state, running(state) as url:
        yield Server(url, state, {})


def test_embeddings_are_the_librarys(encoders: Server, directories: dict[str, Path]) -> None:
    theirs = SentenceTransformer(str(directories["embedder"]), device="cpu")
    request = {"model": "embedder", "input": TEXTS, "truncate_prompt_tokens": -1}
    for options in ({}, {"prompt_name": "query"}):
        reply = encoders.post("/v1/embeddings", json={**request, **options}).json()
        vectors = np.array([row["embedding"] for row in reply["data"]])
        np.testing.assert_allclose(vectors, theirs.encode(TEXTS, **options), atol=1e-5)
    short = encoders.post("/v1/embeddings", json={**request, "dimensions": 5}).json()["data"][0]["embedding"]
    whole = theirs.encode(TEXTS[:1])[0][:5]
    np.testing.assert_allclose(short, whole / np.linalg.norm(whole), atol=1e-5)
    raw = encoders.post("/v1/embeddings", json={**request, "model": "dot"}).json()["data"][0]["embedding"]
    assert np.linalg.norm(raw) != pytest.approx(1, abs=0.1)  # its library leaves its vectors as long as they are


@pytest.mark.parametrize("name", ["embedder", "dot"])
def test_rerank_by_embeddings(encoders: Server, directories: dict[str, Path], name: str) -> None:
    theirs = SentenceTransformer(str(directories[name]), device="cpu")
    expected = theirs.similarity(theirs.encode_query([QUERY]), theirs.encode_document(TEXTS))[0].numpy()
    request = {"model": name, "query": QUERY, "documents": TEXTS, "truncate_prompt_tokens": -1}
    results = encoders.post("/v1/rerank", json=request).json()["results"]
    assert [row["index"] for row in results] == list(np.argsort(-expected, kind="stable"))
    for row in results:
        assert row["relevance_score"] == pytest.approx(expected[row["index"]], rel=1e-4, abs=1e-5)


def test_rerank_by_a_cross_encoder(encoders: Server, directories: dict[str, Path]) -> None:
    expected = CrossEncoder(str(directories["judge"]), device="cpu").predict([(QUERY, text) for text in TEXTS])
    request = {"model": "judge", "query": QUERY, "documents": TEXTS, "truncate_prompt_tokens": -1, "top_n": 3}
    reply = encoders.post("/v1/rerank", json=request).json()
    assert [row["index"] for row in reply["results"]] == list(np.argsort(-expected, kind="stable"))[:3]
    for row in reply["results"]:
        assert row["relevance_score"] == pytest.approx(expected[row["index"]], abs=1e-5)
        assert row["document"] == {"text": TEXTS[row["index"]]}
    pairs = [{"text": QUERY, "text_pair": text} for text in TEXTS]
    judged = encoders.post("/v1/classify", json={"model": "judge", "input": pairs, "truncate_prompt_tokens": -1}).json()
    assert [row["probs"][0] for row in judged["data"]] == pytest.approx(list(expected), abs=1e-5)


@pytest.mark.parametrize("name", ["classifier", "tagger"])
def test_classify_by_a_checkpoints_own_head(encoders: Server, directories: dict[str, Path], name: str) -> None:
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(directories[name]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directories[name])
    with torch.no_grad():
        logits = reference(**tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")).logits
    expected = (logits.softmax(-1) if name == "classifier" else logits.sigmoid()).numpy()
    request = {"model": name, "input": TEXTS, "truncate_prompt_tokens": -1}
    for row, probs in zip(encoders.post("/v1/classify", json=request).json()["data"], expected, strict=True):
        assert row["probs"] == pytest.approx(list(probs), abs=1e-5)
        assert row["num_classes"] == 3
        if name == "classifier":
            assert row["label"] == ("bad", "fair", "good")[int(probs.argmax())]
        else:
            assert row["labels"] == [label for label, p in zip(("bad", "fair", "good"), probs, strict=True) if p >= 0.5]


def test_models_say_what_they_are(encoders: Server) -> None:
    models = {model["id"]: model["bedplate"] for model in httpx.get(f"{encoders.url}/v1/models").json()["data"]}
    assert models["embedder"]["dimensions"] == 20
    assert models["embedder"]["prompts"]["query"] == "query: "
    assert models["classifier"]["labels"] == ["bad", "fair", "good"]
    assert "dimensions" not in models["classifier"]


LONG = "fox " * 100
REFUSED = [
    ("/v1/embeddings", {"model": "embedder", "input": "a", "prompt_name": "title"}, "prompt_name"),
    ("/v1/embeddings", {"model": "embedder", "input": "a", "prompt_name": 3}, "prompt_name"),
    ("/v1/embeddings", {"model": "embedder", "input": "a", "dimensions": 21}, "dimensions"),
    ("/v1/embeddings", {"model": "embedder", "input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ("/v1/embeddings", {"model": "embedder", "input": "a", "truncate_prompt_tokens": True}, "truncate_prompt_tokens"),
    ("/v1/embeddings", {"model": "embedder", "input": "a", "truncate_prompt_tokens": 2**63}, "truncate_prompt_tokens"),
    ("/v1/embeddings", {"model": "embedder", "input": "a", "truncate_prompt_tokens": 2}, "truncate_prompt_tokens"),
    ("/v1/embeddings", {"model": "embedder", "input": LONG}, "input"),
    ("/v1/embeddings", {"model": "judge", "input": "a"}, "model"),
    ("/v1/classify", {"model": "embedder", "input": "a"}, "model"),
    ("/v1/classify", {"model": "judge", "input": LONG}, "input"),
    ("/v1/classify", {"model": "judge", "input": {"text": "a"}}, "input"),
    ("/v1/classify", {"model": "judge", "input": {"text": "a", "text_pair": 1}}, None),
    ("/v1/rerank", {"model": "classifier", "query": "a", "documents": ["b"]}, "model"),
    ("/v1/rerank", {"model": "judge", "query": "a", "documents": [LONG]}, "documents"),
    ("/v1/chat/completions", {"model": "judge", "messages": [{"role": "user", "content": "a"}]}, "model"),
]


@pytest.mark.parametrize(("path", "body", "param"), REFUSED, ids=lambda value: str(value)[:60])
def test_refused(encoders: Server, path: str, body: dict[str, object], param: str | None) -> None:
    reply = encoders.post(path, json=body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    if param is not None:
        assert error["param"] == param
    assert encoders.post("/v1/embeddings", json={"model": "embedder", "input": "a"}).status_code == 200
