"""Several bases behind one server: each skin finds its own, and each is asked for what it can do."""

from __future__ import annotations

import dataclasses
import math
import time

import httpx
import numpy as np
import pytest
from tests.serving.conformance.conftest import write_tiny_encoder
from tests.tiny import NATIVE_SHAPE, write_tiny_base

from bedplate.models.checkpoints.base import load_base
from bedplate.serving.request.lifecycle import TIMEOUT_HEADER
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.serving.settings.server_config import BaseConfig
from bedplate.skins.files import card_of, read_card, read_skin, write_skin
from bedplate.skins.lookup_index import Neighbours
from bedplate.skins.prompt import Demonstration, Prompt
from bedplate.skins.skin import BaseReference, EvaluatedWith, cascaded

from .conftest import Server, make_skins, running


def test_two_decoders_with_a_skin_each(files, tmp_path):
    second = write_tiny_base(tmp_path / "second", seed=9, **NATIVE_SHAPE)
    write_skin(make_skins(load_base(second))[0], tmp_path / "skin")
    config = server_config(files.base, second)
    with (
        pytest.raises(Exception, match="two models are called"),
        loaded_server(config, [files.skins[0], tmp_path / "skin"]),
    ):
        pass
    with loaded_server(config, [files.skins[1], tmp_path / "skin"]) as state, running(state) as url:
        server = Server(url, state, {})
        listed = {model.id: model.to_dict()["bedplate"]["base"] for model in server.client.models.list()}
        assert listed == {"tiny": "tiny", "second": "second", "tuned": "tiny", "prompted": "second"}
        for name in listed:
            assert server.chat(model=name).status_code == 200


@pytest.fixture
def looking(files, tmp_path):
    """A second base, and a skin of the first whose demonstrations it chooses, held in bfloat16."""
    second = write_tiny_base(tmp_path / "second", seed=9, **NATIVE_SHAPE)
    embedder, skin = load_base(second, dtype="bfloat16"), make_skins(load_base(files.base))[0]
    rows = tuple(Demonstration({"review": f"row {i}"}, "positive") for i in range(3))
    knn = dataclasses.replace(
        skin,
        bases={**skin.bases, "embedder": BaseReference.of("second", "llama", embedder.identity)},
        prompt=Prompt("{% for d in demonstrations %}{{ d.inputs.review }}:{{ d.answer }}\n{% endfor %}{{ review }}:"),
        neighbours=Neighbours(np.eye(3, 64, dtype=np.float32), rows, 2),
        embedded_with=EvaluatedWith(weights="bfloat16", kernel="torch"),
    )
    return second, knn


def test_an_embedder_is_held_as_it_was_for_the_pool(files, looking, tmp_path):
    second, knn = looking
    write_skin(knn, tmp_path / "skins" / "knn")
    assert read_card(tmp_path / "skins" / "knn") == card_of(read_skin(tmp_path / "skins" / "knn"))
    config = server_config(files.base, second, skins_directory=tmp_path / "skins")
    with loaded_server(config) as state, running(state) as url:
        settings = {engine.base.name: (engine.weights, engine.kernel) for engine in state.registry.engines}
        assert settings["second"] == ("bfloat16", "torch")
        assert settings["tiny"][0] == "float32"
        assert Server(url, state, {}).chat(model=knn.name).status_code == 200
    changed_knn = dataclasses.replace(knn, embedded_with=EvaluatedWith(weights="float32"))
    write_skin(changed_knn, tmp_path / "skins" / "knn", replace=True)
    settings = BaseConfig(source=str(second), dtype="bfloat16")
    config = config.model_copy(update={"bases": (config.bases[0], settings)})
    with loaded_server(config) as state:  # told when it is registered, not when it is first asked
        assert knn.name not in state.registry.models


def test_lookups_are_made_in_the_callers_name_and_end_with_the_call(files, looking, monkeypatch):
    second, knn = looking
    write_skin(cascaded("both", knn, knn, 1.0), second.parent / "both")
    config = server_config(files.base, second)
    with loaded_server(config, [knn, second.parent / "both"]) as state, running(state) as url:
        server, (main, embedder) = Server(url, state, {}), state.registry.engines
        caller = dataclasses.replace(state.guard.identify({}), tenant="acme")
        monkeypatch.setattr(state.guard, "identify", lambda headers: caller)
        queued = {main: [], embedder: []}
        for engine, requests in queued.items():
            submit = engine.submit
            monkeypatch.setattr(engine, "submit", lambda request, r=requests, s=submit: r.append(request) or s(request))
        for call in (
            lambda: server.chat(model=knn.name),
            lambda: server.chat(model="both"),
            lambda: server.post("/v1/completions", json={"model": knn.name, "prompt": "hi"}),
            lambda: server.post("/v1/classify", json={"model": knn.name, "input": ["it broke"]}),
            lambda: server.post("/tokenize", json={"model": knn.name, "messages": [{"role": "user", "content": "x"}]}),
        ):
            assert call().status_code == 200
        assert [len(requests) for requests in queued.values()] == [5, 6]
        for request in (*queued[main], *queued[embedder]):
            assert request.tenant == "acme"
            assert request.deadline is not None
        pooled = state.registry.pooled(knn.name)
        with embedder.exclusive():  # it is busy for longer than anybody waits
            reply = server.post("/v1/classify", json={"model": knn.name, "input": "x"}, headers={TIMEOUT_HEADER: "0.3"})
            assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
            assert pooled.use_count == 0
            with pytest.raises(httpx.ReadTimeout), httpx.Client(trust_env=False, timeout=0.3) as client:
                client.post(f"{url}/v1/classify", json={"model": knn.name, "input": "x"})
            end = time.monotonic() + 5
            while pooled.use_count and time.monotonic() < end:
                time.sleep(0.01)
            assert pooled.use_count == 0
        assert server.chat(model=knn.name).status_code == 200


@pytest.mark.parametrize("main", ["decoder", "encoder"])
def test_an_encoder_beside_a_decoder(files, tmp_path, main):
    encoder = write_tiny_encoder(tmp_path / "bert")
    bases = (files.base, encoder) if main == "decoder" else (encoder, files.base)
    with loaded_server(server_config(*bases), [files.skins[1]]) as state, running(state) as url:
        server = Server(url, state, {})
        with server.client as client:
            architectures = {
                model.id: model.to_dict()["bedplate"].get("architecture") for model in client.models.list()
            }
            assert architectures == {"tiny": None, "bert": "encoder", "tuned": None}
            for name, size in (("tiny", 64), ("bert", state.registry.models["bert"].engine.base.spec.hidden_size)):
                response = client.embeddings.create(model=name, input=["the answer is yes", "it broke after a day"])
                vectors = [row.embedding for row in response.data]
                assert [len(vector) for vector in vectors] == [size, size]
                assert all(math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-4) for vector in vectors)
                assert vectors[0] != vectors[1]
        for name in ("tiny", "tuned"):
            assert server.chat(model=name).status_code == 200
        for path, body in (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "stream": True}),
            ("/v1/completions", {"prompt": "hi"}),
            ("/v1/classify", {"input": "hi"}),
            ("/v1/responses", {"input": "hi"}),
        ):
            reply = server.post(path, json={"model": "bert", **body})
            error = reply.json()["error"]
            assert (reply.status_code, error["param"], error["type"]) == (400, "model", "invalid_request_error"), path
            assert "/v1/embeddings" in error["message"], path
        messages = [{"role": "user", "content": "hi"}]
        reply = server.post("/v1/messages", json={"model": "bert", "max_tokens": 2, "messages": messages})
        assert reply.status_code == 400
        assert "/v1/embeddings" in reply.json()["error"]["message"]
        assert server.chat(model="tiny").status_code == 200
        assert server.idle()
