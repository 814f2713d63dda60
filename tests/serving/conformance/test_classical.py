"""A skin without a base behind the API: every route that a probe's skin has answers, beside whatever base there is."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import time
from pathlib import Path

import openai
import pytest
from tests.serving.conftest import INPUTS, LABELS, Files, Server, running, words_model

from bedplate.core.config import load_config
from bedplate.core.errors import SkinError, UsageError
from bedplate.core.files import sha256_file
from bedplate.inference.predict.classical import ClassicalPredictor
from bedplate.serving.models.served_skin import ServedClassical
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.serving.settings.server_config import ServerConfig
from bedplate.skins.classical import VOCABULARY_FILE
from bedplate.skins.files import SKIN_FILE, read_skin, write_skin
from bedplate.skins.output import LabelOutput, LabelsOutput
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import InputField, Skin, cascaded


def words(name: str = "worded", **fields: object) -> Skin:
    settings: dict[str, object] = {
        "inputs": {"review": InputField()},
        "output": LabelOutput(labels=LABELS),
        "prompt": Prompt("{{ review }}"),
        **fields,
    }
    return Skin(name=name, bases={}, classical=words_model(), **settings)  # type: ignore[arg-type]


def test_what_is_said_of_it(server: Server) -> None:
    details = server.client.models.retrieve("worded").to_dict()["bedplate"]
    assert details["base"] is None  # type: ignore[index]
    assert (details["kind"], details["labels"], details["inputs"]) == ("classical", list(LABELS), ["review"])  # type: ignore[index]
    listed = {skin["name"]: skin for skin in server.request("GET", "/admin/skins").json()["data"]}
    assert (listed["worded"]["base"], listed["probed"]["base"]) == (None, "tiny")
    fingerprints = [server.chat(model=name).json()["system_fingerprint"] for name in ("worded", "tiny", "probed")]
    assert fingerprints[0] != fingerprints[1] == fingerprints[2]


def test_responses_and_what_it_cannot_do(server: Server) -> None:
    expected = server.skins["worded"](INPUTS[0])
    reply = server.post("/v1/responses", json={"model": "worded", "input": INPUTS[0]}).json()
    assert reply["output"][0]["content"][0]["text"] == expected
    for path, body, message in (
        ("/v1/embeddings", {"input": "x"}, "has no embeddings; ask a base"),
        ("/tokenize", {"prompt": "x"}, "counts words and has no tokenizer; name a base"),
        ("/detokenize", {"tokens": [5]}, "counts words and has no tokenizer; name a base"),
        ("/v1/rerank", {"query": "x", "documents": ["y"]}, "cannot rerank"),
        ("/v1/classify", {"input": {"other": "x"}}, "review"),
        ("/v1/classify", {"input": "x", "truncate_prompt_tokens": 3}, "cuts no input"),
        ("/v1/completions", {"prompt": [5, 6]}, "its input is text"),
        ("/v1/completions", {"prompt": "x", "n": 2}, "n can only be 1"),
        ("/v1/completions", {"prompt": "x", "logprobs": 1}, "ask the base for logprobs"),
        ("/v1/chat/completions", {"messages": [{"role": "system", "content": "x"}]}, "reads one user message"),
    ):
        refused = server.post(path, json={"model": "worded", **body})
        assert (refused.status_code, message in refused.json()["error"]["message"]) == (400, True), (path, refused.text)


def test_a_batch_of_it(server: Server) -> None:
    client = server.client
    body = {"model": "worded", "input": list(INPUTS)}
    row = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/classify", "body": body})
    file = client.files.create(file=("rows.jsonl", io.BytesIO(row.encode())), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/classify", completion_window="24h")  # type: ignore[arg-type]
    end = time.monotonic() + 30
    while batch.status != "completed" and time.monotonic() < end:
        time.sleep(0.02)
        batch = client.batches.retrieve(batch.id)
    assert batch.output_file_id is not None, batch
    (answer,) = map(json.loads, client.files.content(batch.output_file_id).text.splitlines())
    expected = server.skins["worded"].predict(INPUTS)
    assert [result["label"] for result in answer["response"]["body"]["data"]] == [
        prediction.output for prediction in expected
    ]


def test_it_is_loaded_replaced_and_removed_while_the_server_runs(files: Files, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    write_skin(words(), shelf / "one")
    changed_model = dataclasses.replace(words_model(), idf=words_model().idf * 2)
    write_skin(dataclasses.replace(words(), classical=changed_model), tmp_path / "two")
    topics = LabelsOutput(labels=LABELS, threshold=0.4)
    write_skin(words("several", output=topics), tmp_path / "three")
    price = {"usd_per_hour": 3600.0, "as_of": "2026-11-24"}
    config = server_config(files.base, skins_directory=shelf, price=price)
    with loaded_server(config) as state, running(state) as url:
        server = Server(url, state, {})
        assert isinstance(state.registry.models["worded"], ServedClassical)  # found by the scan
        reply = server.post("/v1/classify", json={"model": "worded", "input": list(INPUTS)})
        expected = ClassicalPredictor(words()).predict(INPUTS)
        assert [row["label"] for row in reply.json()["data"]] == [prediction.output for prediction in expected]
        assert reply.json()["usage"]["prompt_tokens"] == sum(prediction.prompt_tokens for prediction in expected)
        assert 0 < server.chat(model="worded").json()["bedplate"]["cost_usd"] < 0.1  # a dollar a second
        for name in ("two", "three"):
            (tmp_path / name).rename(shelf / name)
        conflict = server.post("/admin/skins", json={"source": "two"})
        assert conflict.status_code == 409
        swapped = server.post("/admin/skins", json={"source": "two", "replace": True}).json()
        assert (swapped["kind"], swapped["base"], swapped["state"]) == ("classical", None, "registered")
        assert server.post("/admin/skins", json={"source": "three"}).status_code == 201
        answer = server.post("/v1/classify", json={"model": "several", "input": INPUTS[0]}).json()["data"][0]
        (alone,) = ClassicalPredictor(words(output=topics)).predict([INPUTS[0]])
        assert answer["labels"] == json.loads(alone.output)
        assert answer["probs"] == pytest.approx([math.exp(score) for score in alone.scores.values()], abs=1e-6)
        assert server.request("GET", "/admin/skins/several").json()["state"] == "resident"
        assert server.request("DELETE", "/admin/skins/several").json()["deleted"] is True
        assert server.post("/v1/classify", json={"model": "several", "input": "x"}).status_code == 404
        spoil(shelf / "three")
        refused = server.post("/admin/skins", json={"source": "three"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_skin")
        assert "is not 1 to 2 words of a text" in refused.json()["error"]["message"]
        assert state.registry.engines[0].bank.slots == ()  # no base's adapters had a part in any of it


def test_it_is_served_without_a_base(tmp_path: Path) -> None:
    file, skin = tmp_path / "server.yaml", write_skin(words(), tmp_path / "worded")
    file.write_text(f"skins:\n  - source: {skin}\n")
    with loaded_server(load_config(file, ServerConfig)) as state, running(state) as url:
        server = Server(url, state, {})
        assert (state.registry.engines, list(state.registry.models)) == ([], ["worded"])
        assert server.request("GET", "/ready").status_code == server.request("GET", "/metrics").status_code == 200
        expected = ClassicalPredictor(words())(INPUTS[0])
        reply = server.client.chat.completions.create(model="worded", messages=[{"role": "user", "content": INPUTS[0]}])
        assert reply.choices[0].message.content == expected
        assert "counts words and has no tokenizer" in server.post("/tokenize", json={"prompt": "x"}).text
    with loaded_server(skins=[skin]) as state:
        assert list(state.registry.models) == ["worded"]


def test_a_server_without_a_base_says_what_a_skin_lacks(files: Files) -> None:
    probed = next(path for path in files.skins if path.name == "probed")
    with pytest.raises(SkinError, match="served here is no base: serve that base too"), loaded_server(skins=[probed]):
        pass
    with pytest.raises(UsageError, match="nothing to serve; name a base, a skin"), loaded_server():
        pass


def spoil(directory: Path) -> None:
    """A pattern where words should be, with its right hash."""
    path = directory / VOCABULARY_FILE
    terms = json.loads(path.read_text())["terms"]
    path.write_text(json.dumps({"terms": ["(a+)+$", *terms[1:]]}))
    listed = json.loads((directory / SKIN_FILE).read_text())
    listed["files"][VOCABULARY_FILE] = sha256_file(path)
    (directory / SKIN_FILE).write_text(json.dumps(listed))


def test_a_cascade_asks_it_first_and_a_base_where_it_is_unsure(files: Files, server: Server, tmp_path: Path) -> None:
    second = read_skin(next(path for path in files.skins if path.name == "probed"))
    first = ClassicalPredictor(words()).predict(INPUTS)
    sure = sorted(math.exp(prediction.scores[prediction.output]) for prediction in first)
    threshold = (sure[1] + sure[2]) / 2
    cascade_path = write_skin(cascaded("both", words(), second, threshold), tmp_path / "both")
    with loaded_server(files.base, [cascade_path]) as state, running(state) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        passed = 0
        for text, alone in zip(INPUTS, first, strict=True):
            unsure = math.exp(alone.scores[alone.output]) < threshold
            passed += unsure
            expected = server.skins["probed"].predict([text])[0] if unsure else alone
            completion = client.chat.completions.create(model="both", messages=[{"role": "user", "content": text}])
            assert completion.choices[0].message.content == expected.output
            assert completion.choices[0].to_dict()["bedplate"]["passed_on"] is unsure  # type: ignore[index]
        assert 0 < passed < len(INPUTS)
