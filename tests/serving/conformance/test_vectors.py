"""Embeddings, classification and reranking, against transformers and the engine's own predictors."""

from __future__ import annotations

import base64

import numpy as np
import openai
import pytest
import torch
import transformers
from tests.serving.conftest import INPUTS

TEXTS = ("the product is great", "it broke after a day", "no")


def unit(vectors):
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def llama_vectors(files):
    """The mean of transformers' last hidden states, of unit length."""
    reference = transformers.AutoModel.from_pretrained(files.base, dtype=torch.float32)

    def embed(ids):
        with torch.inference_mode():
            return unit(reference(torch.tensor([ids])).last_hidden_state[0].mean(0))

    return embed


def test_embeddings_of_a_decoder_are_transformers_means(mixed_server, llama_vectors):
    tokenizer = mixed_server.tokenizer
    ids = [tokenizer.encode(text) for text in TEXTS]
    client = mixed_server.client
    reply = client.embeddings.create(model="tiny", input=list(TEXTS))  # the client asks for base64, and decodes it
    assert [row.index for row in reply.data] == [0, 1, 2]
    for row, token_ids in zip(reply.data, ids, strict=True):
        np.testing.assert_allclose(row.embedding, llama_vectors(token_ids), atol=1e-5)
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == sum(map(len, ids))
    assert (reply.object, reply.model) == ("list", "tiny")
    for prompt, expected in ((TEXTS[0], ids[:1]), (ids[0], ids[:1]), (ids, ids)):
        embeddings = client.embeddings.create(model="tiny", input=prompt).data
        assert len(embeddings) == len(expected)
        for row, token_ids in zip(embeddings, expected, strict=True):
            np.testing.assert_allclose(row.embedding, llama_vectors(token_ids), atol=1e-5)


def test_embeddings_of_an_encoder_are_transformers_means(mixed_server, encoder_dir):
    reference = transformers.BertModel.from_pretrained(encoder_dir)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(encoder_dir / "tokenizer.json"))
    rows = mixed_server.client.embeddings.create(model="bert", input=list(TEXTS)).data
    for row, text in zip(rows, TEXTS, strict=True):
        with torch.inference_mode():
            states = reference(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0]
        np.testing.assert_allclose(row.embedding, unit(states.mean(0)), atol=1e-5)


def test_formats_and_dimensions(mixed_server):
    client = mixed_server.client
    request = {"model": "tiny", "input": TEXTS[0]}
    numbers = client.embeddings.create(**request, encoding_format="float").data[0].embedding
    text = mixed_server.post("/v1/embeddings", json={**request, "encoding_format": "base64"}).json()["data"][0][
        "embedding"
    ]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(text), "<f4"), numbers, atol=1e-7)
    assert np.linalg.norm(numbers) == pytest.approx(1, abs=1e-5)
    cut = client.embeddings.create(**request, dimensions=7).data[0].embedding
    np.testing.assert_allclose(cut, unit(numbers[:7]), atol=1e-6)
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(**request, dimensions=len(numbers) + 1)
    assert caught.value.param == "dimensions"


def test_more_texts_than_the_queue_holds(mixed_server):
    queue_size = mixed_server.state.config.limits.max_waiting
    texts = [f"{i}" for i in range(queue_size + 50)]
    embeddings = mixed_server.client.embeddings.create(model="tiny", input=texts).data
    repeated = mixed_server.client.embeddings.create(model="tiny", input=texts[-1]).data[0].embedding
    assert len(embeddings) == len(texts)
    np.testing.assert_allclose(embeddings[-1].embedding, repeated, atol=1e-5)


def test_an_encoder_only_embeds(mixed_server):
    for fields in ({"model": "bert"}, {"model": "bert", "stream": True}):
        reply = mixed_server.chat(**fields)
        assert reply.status_code == 400
        assert "embed" in reply.json()["error"]["message"]


@pytest.mark.parametrize("name", ["prompted", "tuned", "probed", "worded"])
def test_classify_gives_predictors_probabilities(server, name):
    expected = server.skins[name].predict(INPUTS)
    reply = server.post("/v1/classify", json={"model": name, "input": list(INPUTS)}).json()
    assert [row["index"] for row in reply["data"]] == list(range(len(INPUTS)))
    for row, prediction in zip(reply["data"], expected, strict=True):
        assert row["label"] == prediction.output
        assert row["num_classes"] == 2
        assert row["probs"] == pytest.approx(list(np.exp(list(prediction.scores.values()))), abs=1e-5)
        assert sum(row["probs"]) == pytest.approx(1)
    assert reply["usage"]["prompt_tokens"] == sum(prediction.prompt_tokens for prediction in expected)
    prediction = server.post("/classify", json={"model": name, "input": INPUTS[0]}).json()["data"]
    assert [row["label"] for row in prediction] == [expected[0].output]


def test_classify_of_several_inputs(server):
    row = {"question": "is it good", "answer": "yes"}
    expected = server.skins["pair"].predict([row])[0]
    reply = server.post("/v1/classify", json={"model": "pair", "input": [row]}).json()
    assert reply["data"][0]["label"] == expected.output


def test_rerank_by_embeddings(mixed_server):
    vectors = unit(
        [row.embedding for row in mixed_server.client.embeddings.create(model="bert", input=list(TEXTS)).data]
    )
    cosines = vectors[1:] @ vectors[0]
    request = {"model": "bert", "query": TEXTS[0], "documents": [TEXTS[1], {"text": TEXTS[2]}]}
    reply = mixed_server.post("/v1/rerank", json=request).json()
    order = list(np.argsort(-cosines))
    assert [row["index"] for row in reply["results"]] == order
    assert [row["relevance_score"] for row in reply["results"]] == pytest.approx(cosines[order], abs=1e-5)
    assert [row["document"]["text"] for row in reply["results"]] == [TEXTS[1 + i] for i in order]
    assert reply["usage"]["total_tokens"] > 0
    for path in ("/rerank", "/v2/rerank"):
        short = mixed_server.post(path, json={**request, "top_n": 1, "return_documents": False}).json()["results"]
        assert len(short) == 1
        assert short[0].keys() == {"index", "relevance_score"}


def test_rerank_by_a_skin_that_judges_pairs(mixed_server):
    documents = list(TEXTS)
    pairs = [{"query": "good", "document": text} for text in documents]
    judged = mixed_server.post("/v1/classify", json={"model": "judge", "input": pairs}).json()["data"]
    expected = [row["probs"][1] for row in judged]
    reply = mixed_server.post("/v1/rerank", json={"model": "judge", "query": "good", "documents": documents}).json()
    for row in reply["results"]:
        assert row["relevance_score"] == pytest.approx(expected[row["index"]], abs=1e-6)
    scores = [row["relevance_score"] for row in reply["results"]]
    assert scores == sorted(scores, reverse=True)


REFUSED = [
    ("/v1/embeddings", {"model": "tiny"}, "input"),
    ("/v1/embeddings", {"model": "tiny", "input": []}, "input"),
    ("/v1/embeddings", {"model": "tiny", "input": ""}, "input"),
    ("/v1/embeddings", {"model": "tiny", "input": ["a", [1]]}, "input"),
    ("/v1/embeddings", {"model": "tiny", "input": [[-1]]}, "input"),
    ("/v1/embeddings", {"model": "tiny", "input": [[2**40]]}, "input"),
    ("/v1/embeddings", {"model": "tiny", "input": [[100_000]]}, "input"),
    ("/v1/embeddings", {"model": "tiny", "input": "a " * 9000}, "input"),
    ("/v1/embeddings", {"model": "tiny", "input": "a", "encoding_format": "hex"}, "encoding_format"),
    ("/v1/embeddings", {"model": "tiny", "input": "a", "dimensions": 0}, "dimensions"),
    ("/v1/embeddings", {"model": "judge", "input": "a"}, "model"),
    ("/v1/classify", {"model": "tiny", "input": "a"}, "model"),
    ("/v1/classify", {"model": "judge", "input": []}, "input"),
    ("/v1/classify", {"model": "judge", "input": [1]}, "input"),
    ("/v1/classify", {"model": "judge", "input": {"query": "a"}}, "input"),
    ("/v1/classify", {"model": "judge", "input": {"query": "a", "document": 1}}, None),
    ("/v1/rerank", {"model": "tiny", "query": "a", "documents": []}, "documents"),
    ("/v1/rerank", {"model": "tiny", "query": "a", "documents": [{"body": "a"}]}, "documents"),
    ("/v1/rerank", {"model": "tiny", "query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
    ("/v1/rerank", {"model": "tiny", "query": 1, "documents": ["b"]}, "query"),
]


@pytest.mark.parametrize(("path", "body", "param"), REFUSED, ids=lambda value: str(value)[:50])
def test_refused(mixed_server, path, body, param):
    reply = mixed_server.post(path, json=body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    if param is not None:
        assert error["param"] == param
    assert mixed_server.post("/v1/embeddings", json={"model": "tiny", "input": "a"}).status_code == 200


def test_unknown_models(mixed_server):
    for path, body in (
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/classify", {"input": "a"}),
        ("/v1/rerank", {"query": "a", "documents": ["a"]}),
        ("/tokenize", {"prompt": "a"}),
    ):
        reply = mixed_server.post(path, json={"model": "nobody", **body})
        assert reply.status_code == 404
        assert reply.json()["error"]["code"] == "model_not_found"
